"""`unmask embed`: the features of every image of DATA in one file, streamed and resumable.

    .FILE.parts/settings.json            what is computed: weights, data, preparation
    .FILE.parts/part-00000000-00004096   the features of these records, in the source's order; appears whole
    FILE                                 all parts one after the other; then the folder is removed

Memory holds one part, whatever the size of DATA. A killed run goes on after its last whole part.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checkpoint import write_atomically
from .config import UsageError, to_json
from .data.fingerprint import content_hash, fingerprints
from .data.record import Source, Subset
from .data.sources import open_source
from .evaluate.crops import Chunk, crops
from .evaluate.features import Report, broken_images, evaluating, not_finite, pool
from .evaluate.run import EvalModel
from .feature_files import Rows, join, read_about, write_part
from .models import open_models
from .parallel import autocast
from .tokenizers import fingerprint

PART_BYTES = 64 << 20
"""features of a part at most; at least one batch"""
SUFFIXES = (".parquet", ".npz")


class Embedded(NamedTuple):
    """What was made."""

    file: Path
    n: int
    """images in the file"""
    dim: int
    """features of `cls` and of `mean`, D"""
    bad: list[str]
    """unreadable images, which the file does not have: key and reason"""


def embed(
    model: str,
    data: str | Source,
    out: str | Path,
    *,
    patches: bool = False,
    labels: Literal["auto", "folder", "none"] = "auto",
    overwrite: bool = False,
    seed: int = 0,
    heads: int | None = None,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch: int = 256,
    workers: int = -1,
    progress: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Embedded:
    """Write the features of every readable image: `key` str, `label` int64, `cls` and `mean` float32 [D].

    The crop is that of evaluation; `cls` is the class token and `mean` the mean of the patches, both after
    the final norm. The same call again continues what was interrupted, and computes nothing when all is done;
    every image's bytes are read once more to know that they are the same.

    Args:
        model: MODEL; `untrained:RECIPE` is sized by the data.
        data: DATA; labels are -1 where there are none.
        out: FILE.parquet or FILE.npz.
        patches: write every patch too, `patches` float32 [N D], in raster order.
        labels: as for `open_source`.
        overwrite: replace a file of other settings.
        seed: of the survey that sizes an untrained model.
        heads: attention heads, where the weights do not tell them.
        device: where to compute.
        precision: bf16 runs under autocast; features are written as fp32.
        batch: images a forward pass.
        workers: decoding processes; -1: up to four, none for small sets.
        progress: called with the images done and all of them.
        say: told what is continued and what could not be read.
    Raises:
        ValueError: FILE or its parts are of other settings; nothing could be read; a feature is not finite.
    """
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: features are written as FILE.parquet or FILE.npz")
    if out.is_dir():
        raise UsageError(f"{out} is a folder; give a file, as in {out / 'features.parquet'}")
    source = open_source(data, labels) if isinstance(data, str) else data
    (opened,) = open_models([model], source, seed=seed, device=device, heads=heads, note=say)
    if opened.backbone is None:
        raise ValueError(f"{model} has no network; give a run, a checkpoint or untrained:RECIPE")
    settings = describe(opened, source, patches=patches, precision=precision)
    dim = opened.backbone.config.width
    if out.exists():
        about = read_about(out)
        differing = differences(about, settings)
        if about is not None and not differing:
            say(f"{out} is there already, of the same weights and data")
            return Embedded(out, about["n"], dim, read_bad(out))
        if not overwrite:
            raise ValueError(f"{out} exists and differs in {differing}; choose another --out, or --overwrite")
    folder = out.with_name(f".{out.name}.parts")
    done = _begin(folder, settings, overwrite)
    if done:
        say(f"continuing: {done:,} of {len(source):,} images are done")
    _fill(folder, opened, source, done, settings, torch.device(device), batch, workers, progress)
    parts = [part.file for part in whole_parts(folder)]
    bad = [line for part in parts for line in (read_about(part) or {})["bad"]]
    n = len(source) - len(bad)
    if n == 0:
        raise ValueError(f"none of {len(source)} images could be read, the first: {bad[0]}; check the files")
    listed = bad_file(out)
    listed.unlink(missing_ok=True)
    if bad:
        listed.write_text("\n".join(bad) + "\n", encoding="utf-8")
        say(
            f"{len(bad):,} of {len(source):,} images could not be read and are left out, listed in {listed}; the first:"
        )
        for line in bad[:5]:
            say(f"  {line}")
    join(parts, out, {"n": n, "settings": settings})
    shutil.rmtree(folder)
    return Embedded(out, n, dim, bad)


def bad_file(out: Path) -> Path:
    """Where the unreadable images are listed, if there are some."""
    return out.with_name(f"{out.name}.bad-files.txt")


def read_bad(out: Path) -> list[str]:
    """The unreadable images of a finished file: key and reason."""
    file = bad_file(out)
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def describe(model: EvalModel, source: Source, *, patches: bool, precision: str) -> dict[str, Any]:
    """All that the features depend on, as plain JSON; reads every record once for its hash."""
    assert model.backbone is not None
    labels = source.labels
    given = {
        "weights": fingerprint(model.backbone),
        "architecture": to_json(model.backbone.config),
        "data": source.name,
        "images": len(source),
        "content": content_hash(fingerprints(source, keys=True)),
        "labels": None if labels is None else hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:16],
        "classes": hashlib.sha256(json.dumps(source.classes).encode()).hexdigest()[:16],
        "size": model.size,
        "mean": model.mean,
        "std": model.std,
        "channels": model.channels,
        "range": model.value_range,
        "patches": model.backbone.config.grid if patches else None,
        "precision": precision,
    }
    return json.loads(json.dumps(given))


def differences(about: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    """In which settings a file differs from what is wanted; empty: in none."""
    there = (about or {}).get("settings")
    if not isinstance(there, dict):
        return "origin: unmask embed did not write it"
    return ", ".join(name for name in wanted if there.get(name) != wanted[name])


class Part(NamedTuple):
    """Records first ... last - 1, in a file."""

    first: int
    last: int
    file: Path


def whole_parts(folder: Path) -> list[Part]:
    """The parts that are there, without a gap from record 0."""
    found: list[Part] = []
    for file in sorted(folder.glob("part-*.parquet")):
        first, last = map(int, re.findall(r"\d+", file.stem))
        if first == (found[-1].last if found else 0):
            found.append(Part(first, last, file))
    return found


def _begin(folder: Path, settings: dict[str, Any], overwrite: bool) -> int:
    """Make the folder of parts, or take it up; returns how many records are done."""
    file = folder / "settings.json"
    if file.exists() and not overwrite:
        differing = differences(json.loads(file.read_text(encoding="utf-8")), settings)
        if differing:
            raise ValueError(f"{folder} was begun with other {differing}; begin anew with --overwrite")
        parts = whole_parts(folder)
        return parts[-1].last if parts else 0
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomically(file, json.dumps({"settings": settings}))
    return 0


def _fill(
    folder: Path,
    model: EvalModel,
    source: Source,
    done: int,
    settings: dict[str, Any],
    device: torch.device,
    batch: int,
    workers: int,
    progress: Report | None,
) -> None:
    """Compute what is not there yet, part after part."""
    backbone = model.backbone
    assert backbone is not None
    (gh, gw), width = backbone.config.grid, backbone.config.width
    patches = gh * gw if settings["patches"] else None
    most = max(1, PART_BYTES // (4 * width * (2 + (patches or 0))) // batch) * batch
    mean, std = (torch.tensor(v, dtype=torch.float32, device=device).view(-1, 1, 1) for v in (model.mean, model.std))

    def features(chunk: Chunk) -> dict[str, np.ndarray]:
        images = (chunk.images.to(device, torch.float32) / 255 - mean) / std
        with autocast(device, settings["precision"]):
            tokens = backbone(images)
        values: dict[str, Tensor] = {"cls": pool(tokens, "cls"), "mean": pool(tokens, "mean")}
        if patches:
            values["patches"] = tokens.patches.float()
        made = {name: value.cpu().numpy() for name, value in values.items()}
        for name, value in made.items():
            if wrong := broken_images(value, chunk.keys):
                raise ValueError(not_finite(name, wrong, len(chunk.keys)))
        return made

    rows, first, seen = Rows(width, patches), done, done
    rest = Subset(source, np.arange(done, len(source)))
    loader = crops(rest, model.size, model.channels, model.value_range, batch, workers) if len(rest) else ()
    with evaluating(backbone), torch.no_grad():
        for chunk in loader:
            if chunk.keys:
                rows.add(chunk.keys, chunk.labels, features(chunk))
            rows.bad += chunk.bad
            seen += len(chunk.keys) + len(chunk.bad)
            if seen - first >= most or seen == len(source):
                write_part(rows, folder / f"part-{first:012d}-{seen:012d}.parquet")
                rows, first = Rows(width, patches), seen
            if progress is not None:
                progress(seen, len(source))
