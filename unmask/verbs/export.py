"""`unmask export MODEL --format FORMAT --out DIR`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..arguments import parse
from ..config import UsageError
from .common import Opening, Result

ABOUT = "MODEL --format safetensors|timm|hf|onnx|torch --out DIR: weights for other programs, with a card"


def run(arguments: list[str]) -> Result:
    """Write one folder."""
    import tyro

    from ..console import Console
    from ..export import export

    @dataclass(frozen=True)
    class Arguments(Opening):
        model: tyro.conf.Positional[str] = ""
        """a run, a checkpoint, an exported folder, untrained:RECIPE"""
        format: Literal["", "safetensors", "timm", "hf", "onnx", "torch"] = ""
        """what for: ours, timm, transformers, ONNX or torch.export"""
        out: Path | None = None
        """folder to make"""
        overwrite: bool = False
        """replace the export that is there"""
        license: str = "unknown"
        """what the card says, e.g. cc-by-nc-4.0"""
        opset: int | None = None
        """of ONNX (default: 18, the oldest)"""

    given = parse(Arguments, arguments, "export", ABOUT)
    if not given.model or not given.format or given.out is None:
        raise UsageError("export needs MODEL, --format and --out: unmask export RUN --format hf --out DIR")
    made = export(
        given.model,
        given.format,
        given.out,
        overwrite=given.overwrite,
        license=given.license,
        opset=given.opset,
        heads=given.heads,
    )
    console = Console()
    for note in made.notes:
        console.say(note)
    console.say(f"{made.path}: {', '.join(str(file.relative_to(made.path.resolve())) for file in made.files)}")
    seed = 0 if given.model.startswith("untrained:") else None  # nothing else is drawn
    return {"seed": seed, "dir": str(made.path), "files": [str(file) for file in made.files]}
