"""Files and folders of weights as nested dictionaries of tensors, whatever their container.

The container is told by its first bytes, never by its name: safetensors, torch's zip and legacy pickles,
numpy's zip. Pickles go through `pickles.py`, arrays through numpy with `allow_pickle=False`: nothing in a
file is executed. Sizes that a header claims are compared with the bytes that are there before anything is
allocated; safetensors does that itself.
"""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from .pickles import read_checkpoint, read_module

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "tokenizer.safetensors")
"""what a folder of weights has, the first that is there"""
_KINDS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"PAR1": "a parquet file: data, not a model",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run git lfs pull",
    b"<!DOCTYPE": "a web page, not the download",
    b"<html": "a web page, not the download",
    b"\x08": "an ONNX file; onnxruntime runs it, and the file that it was exported from can be loaded",
}


class Contents(NamedTuple):
    """A file as it is, before anybody knows what it means."""

    where: str
    """the path, for messages"""
    tree: Any
    """nested dictionaries; leaves are tensors, numbers, text, `pickles.Settings`"""
    header: dict[str, str]
    """of a safetensors file"""
    config: dict[str, Any]
    """config.json beside it"""
    processor: dict[str, Any]
    """preprocessor_config.json beside it"""


def read(path: str | Path) -> Contents:
    """Read a file of weights, or a folder with one.

    Raises:
        ValueError: no file of weights, a damaged one, or one that would execute code.
        FileNotFoundError: nothing is there.
    """
    given = Path(path)
    if not given.exists():
        raise FileNotFoundError(f"no file or folder {given}")
    file = given
    if given.is_dir():
        found = [given / name for name in WEIGHTS if (given / name).is_file()]
        if not found:
            raise ValueError(
                f"{given} is not a run: it has no config.json of one, and no weights ({', '.join(WEIGHTS)})"
            )
        file = found[0]
    beside = (read_json(file.with_name(name)) for name in ("config.json", "preprocessor_config.json"))
    if file.name == WEIGHTS[1]:
        return Contents(str(given), _shards(file), {}, *beside)
    tree, header = _read_one(file)
    return Contents(str(given), tree, header, *beside)


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object; {} where there is none.

    Raises:
        ValueError: the file is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is no JSON ({error}); copy it again") from None
    return found if isinstance(found, dict) else {}


def _read_one(file: Path) -> tuple[Any, dict[str, str]]:
    with file.open("rb") as opened:
        start = opened.read(64)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27:
        return _safetensors(file)
    if start.startswith(b"PK\x03\x04"):
        return (_arrays(file) if _is_npz(file) else _pickle(file)), {}
    if start.startswith(b"\x80"):  # a pickle's first byte
        return _pickle(file), {}
    kind = next((what for magic, what in _KINDS.items() if start.startswith(magic)), None)
    if not start:
        kind = "empty"
    raise ValueError(f"{file} is {kind or 'no file of weights'}: safetensors, .pth, .bin, .pkl or .npz is wanted")


def _safetensors(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata() or {}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}); copy it again") from None


def _shards(index: Path) -> dict[str, Any]:
    names = read_json(index).get("weight_map")
    files = sorted(set(names.values())) if isinstance(names, dict) else []
    if not files or any(Path(str(name)).name != name for name in files):
        raise ValueError(f"{index} lists no files of its own folder; copy the folder again")
    found: dict[str, Any] = {}
    for name in files:
        found |= _safetensors(index.with_name(name))[0]
    return found


def _pickle(file: Path) -> Any:
    """A checkpoint; or a whole module of DALL-E, which only the other reader takes."""
    try:
        return read_checkpoint(file)
    except ValueError as refusal:
        if "dall_e" not in str(refusal):
            raise
        return read_module(file)


def _is_npz(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False  # torch's reader says what is wrong


def _arrays(file: Path) -> dict[str, Any]:
    """Arrays of numbers; an array of objects would be a pickle."""
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as opened:
                    _check_array(entry, opened, file.stat().st_size)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (zipfile.BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: refused or damaged: {str(error).splitlines()[0]}") from None


def _check_array(entry: zipfile.ZipInfo, opened: Any, length: int) -> None:
    """Compare what an array's header claims with its bytes, and its bytes with the file's."""
    version = np.lib.format.read_magic(opened)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(opened)
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds Python objects; reading them could execute foreign code")
    count = 1
    for side in shape:
        count *= side
    if count * dtype.itemsize > entry.file_size or entry.file_size > 100 * length:
        raise ValueError(f"{entry.filename} claims {shape} numbers in {entry.file_size} bytes")
