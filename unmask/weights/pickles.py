"""A reader of torch's pickled files that executes nothing.

Checkpoints (`.pth`, `.bin`) and DALL-E's whole modules are pickles: to unpickle them is to run what they
say. Here an unpickler that knows no function of this machine reads them: modules and settings become
empty shells that keep their attributes, every tensor a note of where its bytes are. What is left is a
tree of names and notes. Any other name in the file is refused. Both of torch's layouts are read, zip
(since 1.6) and legacy. Nothing is allocated because a file claims a size: bytes are counted first.
"""

import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

_SHELLS = re.compile(r"(dall_e|torch\.nn\.modules)(\.\w+)*")
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ZIP_MAGIC = b"PK\x03\x04"

Read = Callable[[str], bytes]
"""the bytes of a storage by its key"""


class _Shell:
    """Stands for an object of a module class: remembers attributes, does nothing."""

    state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module without named attributes")
        self.state = state


class _Items(dict):
    """Stands for OrderedDict; of its attributes only a state dict's versions may be there, and are left out."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise pickle.UnpicklingError("a dictionary with attributes")


class Settings:
    """Stands for argparse.Namespace, and for whatever small objects training code saves: inert."""

    def __init__(self, *arguments: Any):
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


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
    return ":".join(str(a) for a in arguments if isinstance(a, str | int))  # no nests, which may be endless


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Items,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # its name in Python 2, which protocol 2 writes
    ("torch", "device"): _Call(_text),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_slice),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda data, *_: data),
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}
_SETTINGS: dict[tuple[str, str], Any] = {  # in training checkpoints; numpy's scalars are losses and the like
    ("argparse", "Namespace"): Settings,
    ("pathlib", "PosixPath"): _Call(_text),
    ("pathlib._local", "PosixPath"): _Call(_text),
    ("numpy", "dtype"): Settings,
    ("numpy.core.multiarray", "scalar"): _Call(lambda *_: None),
    ("numpy._core.multiarray", "scalar"): _Call(lambda *_: None),
    ("_codecs", "encode"): _Call(lambda *_: b""),
    **{("torch", str(t).removeprefix("torch.")): str(t) for t in (torch.float32, torch.float16, torch.bfloat16)},
}
_UNUSED = {"optimizer", "scaler", "fp16_scaler", "amp", "lr_scheduler", "scheduler", "rng_state"}
"""entries of training checkpoints whose tensors are not read"""


class _Reader(pickle.Unpickler):
    """Knows shells, dictionaries, sets and tensors, or settings in place of shells; refuses the rest."""

    def __init__(self, file: Any, settings: bool = False):
        super().__init__(file)
        self.settings = settings
        self.widths: dict[str, int] = {}
        """bytes of an element by storage, which the legacy layout does not store"""

    def find_class(self, module: str, name: str, /) -> Any:
        if not self.settings and _SHELLS.fullmatch(module) and name.isidentifier():
            return _Shell
        known = _KNOWN | _SETTINGS if self.settings else _KNOWN
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any, /) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 3:
            raise pickle.UnpicklingError("a reference that is no storage")
        if pid[0] == "module" and pid[1] is _Shell:  # legacy: the class, its file and its source text
            return _Shell
        if pid[0] != "storage" or not isinstance(pid[1], torch.dtype) or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError(f"a reference of kind {pid[0]!r}")
        self.widths[str(pid[2])] = pid[1].itemsize
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
    with _opened(file, settings=False, holds="modules and tensors") as (tree, read):
        if not isinstance(tree, _Shell):
            raise pickle.UnpicklingError("no module")
        return {name: _tensor(note, read) for name, note in _walk(tree, "")}


def read_checkpoint(path: str | Path) -> Any:
    """Read a checkpoint of nested dictionaries without executing anything of it.

    Optimizer and scaler are left out, unread.

    Args:
        path: what `torch.save` wrote, in its zip or legacy layout.
    Returns:
        its dictionaries and lists, with tensors, numbers and text; Settings for argparse's Namespace.
    Raises:
        ValueError: the file is damaged, or holds anything but these.
    """
    with _opened(Path(path), settings=True, holds="dictionaries, tensors and settings") as (tree, read):
        if isinstance(tree, dict):
            tree = {name: value for name, value in tree.items() if name not in _UNUSED}
        return _filled(tree, read)


@contextmanager
def _opened(file: Path, settings: bool, holds: str) -> Iterator[tuple[Any, Read]]:
    """The tree of a file and the bytes of its storages, read when asked for; errors in one line."""
    try:
        with file.open("rb") as opened:
            archive = opened.read(4) == _ZIP_MAGIC
            opened.seek(0)
            if archive:
                with zipfile.ZipFile(opened) as entries:
                    yield _read_zip(entries, file.stat().st_size, settings)
            else:
                yield _read_legacy(opened, file.stat().st_size, settings)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file}: refused, it holds more than {holds}: {error}. Reading it could execute foreign "
            f"code; take the file from its official place" + (", or save its state_dict() alone" if settings else "")
        ) from None
    except (
        zipfile.BadZipFile,
        ArithmeticError,
        EOFError,
        LookupError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise ValueError(f"{file}: damaged or no torch file ({type(error).__name__}: {error}); copy it again") from None


def _read_zip(archive: zipfile.ZipFile, length: int, settings: bool) -> tuple[Any, Read]:
    entries = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > length:
        raise zipfile.BadZipFile("it claims more bytes than it has")  # torch compresses nothing
    root = next((e.filename.removesuffix("data.pkl") for e in entries if e.filename.endswith("/data.pkl")), None)
    if root is None:
        raise zipfile.BadZipFile("no data.pkl inside")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise RuntimeError("written on a big-endian machine")
    tree = _Reader(io.BytesIO(archive.read(f"{root}data.pkl")), settings).load()
    return tree, lru_cache(1)(lambda key: archive.read(f"{root}data/{key}"))


def _read_legacy(opened: IO[bytes], length: int, settings: bool) -> tuple[Any, Read]:
    """Four pickles (magic, protocol, system, object), a list of keys, then length and bytes of each storage."""
    if _Reader(opened).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("no mark of torch at its beginning")
    _Reader(opened).load()
    if not _Reader(opened).load().get("little_endian"):
        raise RuntimeError("written on a big-endian machine")
    reader = _Reader(opened, settings)
    tree = reader.load()
    places = {}
    for key in map(str, _Reader(opened).load()):
        count = int.from_bytes(opened.read(8), "little") * reader.widths[key]
        places[key] = opened.tell(), count
        if opened.tell() + count > length:
            raise EOFError(f"storage {key} is cut short")
        opened.seek(count, io.SEEK_CUR)

    def read(key: str) -> bytes:
        opened.seek(places[key][0])
        return opened.read(places[key][1])

    return tree, lru_cache(1)(read)


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


def _filled(tree: Any, read: Read) -> Any:
    """The tree with tensors in place of their notes."""
    if isinstance(tree, _Slice):
        return _tensor(tree, read)
    if isinstance(tree, dict):
        return {name: _filled(value, read) for name, value in tree.items()}
    return [_filled(value, read) for value in tree] if type(tree) is list else tree


def _tensor(note: _Slice, read: Read) -> Tensor:
    content = bytearray(read(note.storage.key))
    flat = torch.frombuffer(content, dtype=note.storage.dtype) if content else torch.empty(0, dtype=note.storage.dtype)
    if math.prod(note.size) > len(flat):
        raise RuntimeError(f"a tensor of {math.prod(note.size)} numbers in a storage of {len(flat)}")
    return flat.as_strided(note.size, note.stride, note.offset).clone()  # as_strided checks the bounds
