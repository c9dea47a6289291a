"""ONNX: model.onnx for onnxruntime and other engines, checked against the network before it is kept."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ..weights.loaded import Loaded
from .graph import TOLERANCE, Graph, difference
from .subject import Written
from .torch import sizes, trace

FILE = "model.onnx"
OPSET = 18
"""the oldest operator set that torch's exporter writes, and what is written when none is asked for"""
NEWEST = 25
"""the newest that it writes: the last that onnxscript converts to"""


def write(weights: Loaded, folder: Path, opset: int = OPSET) -> Written:
    """Write model.onnx, and compare what onnxruntime makes of it with the network's own outputs.

    Raises:
        ImportError: the extra [onnx] is not installed.
        ValueError: the opset is too old, or newer than torch's exporter knows.
        RuntimeError: the outputs differ.
    """
    check(opset)
    import onnxruntime

    graph, file = Graph(weights.build()), folder / FILE
    with _quiet():
        program = torch.onnx.export(
            trace(graph),
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=list(graph.names),
            verbose=False,
        )
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    worst = difference(graph, lambda image: map(torch.from_numpy, session.run(None, {"image": image.numpy()})))
    if worst > TOLERANCE:
        raise RuntimeError(f"onnxruntime's outputs differ from PyTorch's by {worst:.1e} of the largest one")
    loading = (
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("FOLDER/{FILE}")\n'
        f'{", ".join(graph.names)} = session.run(None, {{"image": images}})  # float32 '
        f"[B {weights.vit.channels} h w], prepared as below"
    )
    checked = f"Opset {opset}. onnxruntime and PyTorch differ by {worst:.0e} of the largest output."
    return Written(loading, (sizes(graph), checked))


def check(opset: int) -> None:
    """Refuse what cannot be written, before anything is traced."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"--format onnx needs {', '.join(missing)}: pip install 'unmask[onnx]'")
    if opset < OPSET:
        raise ValueError(f"--opset {opset} is too old: torch's exporter writes {OPSET} or newer; give --opset {OPSET}")
    if opset > NEWEST:
        raise ValueError(f"--opset {opset} is too new: torch's exporter writes {NEWEST} at most; give --opset {NEWEST}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress on standard output, which belongs to --json, and its talk of versions."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
