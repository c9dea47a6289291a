"""`unmask predict MODEL IMAGES --out FILE.csv|FILE.parquet|FILE.jsonl`."""

from dataclasses import dataclass
from pathlib import Path

from ..arguments import parse
from ..config import UsageError
from .common import Computing, Result, progress_line

ABOUT = "MODEL IMAGES --out FILE.csv|FILE.parquet|FILE.jsonl: classes of images, by a saved classifier"


def run(arguments: list[str]) -> Result:
    """Classify images and write a table."""
    import tyro

    from .. import parallel
    from ..console import Console
    from ..predict import bad_file, check_out, predict

    @dataclass(frozen=True)
    class Arguments(Computing):
        model: tyro.conf.Positional[str] = ""
        """a folder of `evaluate --save`, a run of `pretrain supervised`, or weights that have a head"""
        images: tyro.conf.Positional[str] = ""
        """a folder, tar or parquet (or a quoted glob), hf:NAME, image files; labels are not needed"""
        out: Path | None = None
        """the table, .csv, .parquet or .jsonl: key, class, probability, and the next likeliest"""
        top: int = 5
        """likeliest classes of each image"""

    given = parse(Arguments, arguments, "predict", ABOUT)
    if not given.model or not given.images or given.out is None:
        raise UsageError("predict needs MODEL, IMAGES and --out FILE.csv")
    if given.top < 1:
        raise UsageError(f"--top {given.top}: give at least 1")
    check_out(given.out)
    world = parallel.start(given.device)
    console = Console(world.first)
    with progress_line(console) as progress:
        answers = predict(
            given.model, given.images, given.out, top=given.top, heads=given.heads, note=console.say,
            device=world.device, workers=given.workers, progress=progress("predict"),
        )  # fmt: skip
    for complaint in answers.skipped[:10]:
        console.warn(f"skipped {complaint}")
    more = f", {len(answers.skipped)} skipped, listed in {bad_file(given.out)}" if answers.skipped else ""
    console.say(f"{len(answers.keys):,} images in {given.out}{more}")
    return {"file": str(given.out), "n": len(answers.keys), "skipped": len(answers.skipped)}
