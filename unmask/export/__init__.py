"""`unmask export`: a MODEL as a folder that other programs load, with a card that says what it is.

One format a file: `safetensors` (ours), `timm`, `hf`, `onnx`, `torch`. A folder appears whole or not at
all: it is made under another name beside its place, then renamed.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..config import UsageError
from ..nearest import unknown

if TYPE_CHECKING:
    from .subject import Subject, Written

FORMATS = ("safetensors", "timm", "hf", "onnx", "torch")
"""of `--format`"""
_CARD, _OURS = "README.md", 'tags: ["unmask"'
"""the card of every export, and the line of it that no other has"""
_FILES = (
    *(_CARD, "config.json", "preprocessor_config.json", "model.safetensors", "model.pt2"),
    *("model.onnx", "model.onnx.data", "encoder.safetensors", "decoder.safetensors"),
    *("discrete_vae.safetensors", "tokenizer.safetensors"),
)
"""all that any format writes, here or in `backbone`"""


class Folder(NamedTuple):
    """What was made."""

    path: Path
    files: list[Path]
    """all files, sorted; absolute"""
    notes: tuple[str, ...]
    """what the weights look like, and what was left out and why"""


def export(
    model: str,
    format: str,  # noqa: A002 - the name of the option
    out: str | Path,
    *,
    overwrite: bool = False,
    license: str = "unknown",  # noqa: A002
    opset: int | None = None,
    heads: int | None = None,
) -> Folder:
    """Write a MODEL for other programs.

    Args:
        model: a run (`RUN[@STEP][:student|:teacher]`), a checkpoint, an exported folder, untrained:RECIPE.
        format: safetensors, timm, hf, onnx or torch; a dVAE run: safetensors.
        out: the folder to make; it may exist if it is empty.
        overwrite: replace an earlier export; a folder that holds anything else is refused.
        license: what the card says, e.g. cc-by-nc-4.0.
        opset: of ONNX; None: 18.
        heads: attention heads, where the weights do not tell them.
    Raises:
        ValueError: an unknown format, a folder in the way, a network that the format cannot say.
        ImportError: the format needs an extra that is not installed.
    """
    if format not in FORMATS:
        raise UsageError(unknown("format", format, FORMATS))
    if opset is not None and format != "onnx":
        raise UsageError(f"--opset {opset} is for --format onnx; leave it out")
    _check_free(Path(out), overwrite)
    from ..methods.codec import Codec
    from ..weights.load import describe
    from . import onnx
    from .card import write_card
    from .subject import open_subject

    opset = onnx.OPSET if opset is None else opset
    if format == "onnx":
        onnx.check(opset)
    subject = open_subject(model, heads)
    with _whole(Path(out), overwrite) as folder:
        written = _write(subject, format, folder, opset)
        write_card(subject, format, written, folder, license)
    path = Path(out).resolve()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    described = (
        () if subject.run is not None or isinstance(subject.weights, Codec) else tuple(describe(subject.weights))
    )
    return Folder(Path(out), files, (*described, *written.notes))


def _write(subject: "Subject", format: str, folder: Path, opset: int) -> "Written":  # noqa: A002
    from ..methods.codec import Codec
    from . import hf, onnx, safetensors, timm, torch

    weights = subject.weights
    if isinstance(weights, Codec):
        if format != "safetensors":
            raise ValueError(f"--format {format}: {subject.name} is a tokenizer, which is written as safetensors only")
        return safetensors.write_tokenizer(weights, folder)
    if format == "hf":
        return hf.write(weights, folder, subject.run)
    if format == "onnx":
        return onnx.write(weights, folder, opset)
    return {"safetensors": safetensors, "timm": timm, "torch": torch}[format].write(weights, folder)


def _check_free(out: Path, overwrite: bool) -> None:
    """Refuse a place where something is, before anything is computed."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out {out} exists and is not empty; choose another folder, or replace it with --overwrite")
    if out.is_dir() and (foreign := _foreign(out)):
        raise ValueError(
            f"--out {out} has {foreign}, which --overwrite would delete: it replaces earlier exports only; choose "
            f"another folder"
        )


def _foreign(folder: Path) -> str:
    """What a folder has that no export wrote; empty: nothing."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    files = {str(Path(where) / name) for where in ("", "backbone") for name in _FILES} | {"backbone"}
    other = [str(path) for path in paths if str(path) not in files]
    card = folder / _CARD
    if other or not paths:
        return other[0] if other else ""
    return "" if card.is_file() and _OURS in card.read_text(encoding="utf-8", errors="replace") else str(paths[0])


@contextlib.contextmanager
def _whole(out: Path, overwrite: bool) -> Iterator[Path]:
    """Make a folder beside `out` and put it in its place when it is whole; gone when something fails."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old.tmp"))
    fresh.mkdir()
    try:
        yield fresh
        _check_free(out, overwrite)  # an hour may have gone by
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
