"""`unmask predict`: a saved classifier's answer for every image, as a table."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .checkpoint import write_atomically
from .config import UsageError
from .data.record import Source
from .data.sources import open_source
from .evaluate import classify
from .evaluate.classifier import FILE, Classifier, read_classifier
from .evaluate.features import Report
from .feature_files import whole
from .methods.classify import Classify, ClassifyConfig
from .models import Note, exists, names_run, parse_run, read_weights
from .run import CLASSES
from .weights.load import describe

ENDINGS = (".csv", ".parquet", ".jsonl")
"""of a table's file: what is written into it"""
TOP = 5
"""classes of a row, at most"""


class Answers(NamedTuple):
    """What a classifier said."""

    keys: list[str]
    """the source's name for each readable image"""
    classes: list[list[str]]
    """for each image its likeliest classes, the likeliest first"""
    probabilities: list[list[float]]
    """of those classes"""
    skipped: list[str]
    """unreadable images: key and reason"""


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def open_classifier(spec: str, heads: int | None = None, note: Note = _to_stderr) -> Classifier:
    """Open a MODEL that has a classifier.

    Args:
        spec: a folder of `evaluate --save`, a run of a recipe with labels, `RUN[@STEP]`, or weights of any
            dialect with a head: a file, an exported folder, `hf:NAME`, `timm:NAME`. Classes whose names the
            weights do not tell are called by their numbers.
        heads: attention heads, where the weights do not tell them.
        note: is told what weights look like and what was taken for granted.
    Raises:
        ValueError, FileNotFoundError: there is none; names the command that makes one.
    """
    if (Path(spec) / FILE).is_file():
        return read_classifier(Path(spec))
    cure = f"make one: unmask evaluate {spec} linear --train DATA --test DATA --save CLASSIFIER"
    if spec == "pixels" or spec.startswith("untrained:"):
        raise ValueError(f"{spec} has no classifier; {cure}")
    if not names_run(spec) and exists(spec):
        return _of_weights(spec, heads, note, cure)
    run, step, _ = parse_run(spec, "give a folder of `evaluate --save`, or a run of `pretrain supervised`")
    if not isinstance(run.config.method, ClassifyConfig):
        raise ValueError(f"{spec} is a run without labels and has no classifier; {cure}")
    method, data = run.method(step), run.config.data
    assert isinstance(method, Classify)
    names = json.loads((run.path / CLASSES).read_text(encoding="utf-8"))
    return Classifier(method.backbone(), names, data.mean, data.std, data.range, {"model": spec})


def _of_weights(spec: str, heads: int | None, note: Note, cure: str) -> Classifier:
    """The classifier of weights that are no run."""
    loaded = read_weights(spec, heads)
    if not loaded.vit.classes:
        raise ValueError(f"{spec} is {loaded.looks}, without a head that tells classes; {cure}")
    for line in describe(loaded):
        note(line)
    names = list(loaded.classes) or [str(i) for i in range(loaded.vit.classes)]
    return Classifier(loaded.build(), names, loaded.mean, loaded.std, loaded.range, {"model": spec}, loaded.frame)


def predict(
    model: str | Classifier,
    images: str | Source,
    out: str | Path | None = None,
    *,
    top: int = TOP,
    heads: int | None = None,
    note: Note = _to_stderr,
    device: torch.device | str = "cpu",
    workers: int = -1,
    progress: Report | None = None,
) -> Answers:
    """Classify images, labelled or not.

    Args:
        model: as for `open_classifier`, or a classifier.
        images: DATA; unreadable ones are skipped and listed.
        out: FILE.csv, FILE.parquet or FILE.jsonl to write: key, class, probability, then class_2,
            probability_2, ... up to `top`; what was skipped goes to the same name with `.bad.txt`, a key and a
            reason a line.
        top: likeliest classes of each image.
        heads, note: as for `open_classifier`.
        device, workers, progress: as for `evaluate`.
    Raises:
        UsageError: `out` is a folder or ends otherwise; nothing is computed.
        ValueError, OSError: no classifier, no image that can be read; one line with the cure.
    """
    if out is not None:
        check_out(Path(out))
    classifier = open_classifier(model, heads, note) if isinstance(model, str) else model
    source = open_source(images, "none") if isinstance(images, str) else images
    said = classify(
        classifier.vit.to(device), source, mean=classifier.mean, std=classifier.std,
        value_range=classifier.value_range, frame=classifier.frame, device=device, workers=workers, progress=progress,
    )  # fmt: skip
    best = np.argsort(-said.probabilities, axis=1, kind="stable")[:, :top]
    chances = np.take_along_axis(said.probabilities, best, axis=1)
    names = [[classifier.classes[i] for i in row] for row in best]
    answers = Answers(said.keys, names, [[float(p) for p in row] for row in chances], said.skipped)
    if out is not None:
        write(answers, Path(out))
    return answers


def write(answers: Answers, out: Path) -> None:
    """Write the table, and the list of what was skipped where there is something."""
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = columns_of(answers)
    if out.suffix.lower() == ".parquet":
        with whole(out) as partial:
            pq.write_table(pa.table(columns), partial)
    else:
        text, rows = io.StringIO(), zip(*columns.values(), strict=True)
        if out.suffix.lower() == ".jsonl":
            text.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        else:
            table = csv.writer(text, lineterminator="\n")
            table.writerow(columns)
            table.writerows([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
        write_atomically(out, text.getvalue())
    bad = bad_file(out)
    if answers.skipped:
        lines = (line.replace("\n", " ") for line in answers.skipped)
        write_atomically(bad, "".join(line.replace(": ", "\t", 1) + "\n" for line in lines))
    else:
        bad.unlink(missing_ok=True)


def columns_of(answers: Answers) -> dict[str, list]:
    """The table by column: key, class, probability, then class_2, probability_2, ..."""
    columns: dict[str, list] = {"key": answers.keys}
    for i in range(len(answers.classes[0])):
        place = f"_{i + 1}" if i else ""
        columns[f"class{place}"] = [row[i] for row in answers.classes]
        columns[f"probability{place}"] = [row[i] for row in answers.probabilities]
    return columns


def check_out(out: Path) -> None:
    """Refuse a file that no table can be written into, before anything is computed."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; give a file, as in --out {out / 'predictions.csv'}")
    if out.suffix.lower() not in ENDINGS:
        named = f"ends with {out.suffix}" if out.suffix else "has no ending"
        raise UsageError(f"--out {out} {named}, and a table is written as {', '.join(ENDINGS)}; give FILE.csv")


def bad_file(out: Path) -> Path:
    """Where the unreadable images of a table are listed."""
    return out.with_name(out.name + ".bad.txt")
