"""A reader of pickled modules that executes nothing.

DALL-E's `encoder.pkl` and `decoder.pkl` are whole pickled modules: to unpickle them is to run what they say.
Here an unpickler that knows no function of this machine reads them: every class of theirs becomes an
empty shell that keeps its attributes, every tensor a note of where its bytes are. What is left is a tree
of names and notes, from which the state dict is read. Any other name in the file is refused. Both of
torch's layouts are read, zip (since 1.6) and legacy.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SHELLS = re.compile(r"(dall_e|torch\.nn\.modules)(\.\w+)*")
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ZIP_MAGIC = b"PK\x03\x04"


class _Shell:
    """Stands for an object of a module class: remembers attributes, does nothing."""

    state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module without named attributes")
        self.state = state


class _Items(dict):
    """Stands for OrderedDict, but takes no attributes."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a dictionary with attributes")


class _Call:
    """A function that a file may call, and may not change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function with attributes")


class _Storage(NamedTuple):
    """Where a tensor's bytes are."""

    key: str
    dtype: torch.dtype


class _Slice(NamedTuple):
    """A tensor, as a view of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _slice(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Slice:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Slice(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _text(*arguments: Any) -> str:
    return ":".join(map(str, arguments))


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Items,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # its name in Python 2, which protocol 2 writes
    ("torch", "device"): _Call(_text),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_slice),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda data, *_: data),
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Reader(pickle.Unpickler):
    """Knows shells, dictionaries, sets and tensors; refuses the rest."""

    def find_class(self, module: str, name: str, /) -> Any:
        if _SHELLS.fullmatch(module) and name.isidentifier():
            return _Shell
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any, /) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 3:
            raise pickle.UnpicklingError("a reference that is no storage")
        if pid[0] == "module" and pid[1] is _Shell:  # legacy: the class, its file and its source text
            return _Shell
        if pid[0] != "storage" or not isinstance(pid[1], torch.dtype) or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError(f"a reference of kind {pid[0]!r}")
        return _Storage(str(pid[2]), pid[1])


def read_module(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a pickled module without importing or executing anything of it.

    Args:
        path: OpenAI's `encoder.pkl` or `decoder.pkl`, in torch's zip or legacy layout.
    Returns:
        official name -> tensor, as `module.state_dict()` would give.
    Raises:
        ValueError: the file is missing or damaged, or holds anything but modules and tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no file {file}; DALL-E's tokenizer is two files, encoder.pkl and decoder.pkl, side by side")
    try:
        with file.open("rb") as opened:
            archive = opened.read(4) == _ZIP_MAGIC
        tree, data = _read_zip(file) if archive else _read_legacy(file)
        if not isinstance(tree, _Shell):
            raise pickle.UnpicklingError("no module")
        return {name: _tensor(note, data) for name, note in _walk(tree, "")}
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file}: refused, it holds more than modules and tensors: {error}. Reading it could execute foreign "
            f"code; take the file from its official place"
        ) from None
    except (
        zipfile.BadZipFile,
        EOFError,
        LookupError,
        RuntimeError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise ValueError(f"{file}: damaged or no torch file ({type(error).__name__}: {error}); copy it again") from None


def _read_zip(file: Path) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        root = next((n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("/data.pkl")), None)
        if root is None:
            raise zipfile.BadZipFile("no data.pkl inside")
        tree = _Reader(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        stored = [n for n in archive.namelist() if n.startswith(f"{root}data/")]
        return tree, {n.removeprefix(f"{root}data/"): archive.read(n) for n in stored}


def _read_legacy(file: Path) -> tuple[Any, dict[str, bytes]]:
    """Four pickles (magic, protocol, system, object), a list of keys, then length and bytes of each storage."""
    with file.open("rb") as opened:
        if _Reader(opened).load() != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("no mark of torch at its beginning")
        _Reader(opened).load()
        if not _Reader(opened).load().get("little_endian"):
            raise RuntimeError("written on a big-endian machine")
        reader = _Widths(opened)
        tree = reader.load()
        data = {}
        for key in _Reader(opened).load():
            count = int.from_bytes(opened.read(8), "little")
            data[str(key)] = opened.read(count * reader.widths[str(key)])
        return tree, data


class _Widths(_Reader):
    """A reader that notes the bytes of an element, which the legacy layout does not store."""

    def __init__(self, file: Any):
        super().__init__(file)
        self.widths: dict[str, int] = {}

    def persistent_load(self, pid: Any, /) -> Any:
        found = super().persistent_load(pid)
        if isinstance(found, _Storage):
            self.widths[found.key] = found.dtype.itemsize
        return found


def _walk(shell: _Shell, prefix: str) -> list[tuple[str, _Slice]]:
    """Names and notes of a module's parameters and buffers, in the order of its state dict."""
    found = []
    for kind in ("_parameters", "_buffers"):
        for name, value in shell.state.get(kind, {}).items():
            if isinstance(value, _Slice):
                found.append((f"{prefix}{name}", value))
    for name, child in shell.state.get("_modules", {}).items():
        if isinstance(child, _Shell):
            found += _walk(child, f"{prefix}{name}.")
    return found


def _tensor(note: _Slice, data: dict[str, bytes]) -> Tensor:
    flat = torch.frombuffer(bytearray(data[note.storage.key]), dtype=note.storage.dtype)
    return flat.as_strided(note.size, note.stride, note.offset).clone()  # as_strided checks the bounds
