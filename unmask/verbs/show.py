"""`unmask show MODEL WHAT IMAGES`."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ..arguments import parse
from ..config import UsageError
from .common import Common, Result

ABOUT = "MODEL WHAT IMAGES: draw reconstruction, tokens, attention, ... or analyze attention-distance, cka, ..."


def run(arguments: list[str]) -> Result:
    """Draw one picture, or run one analysis."""
    import tyro

    from .. import parallel
    from ..analyze import ANALYSES
    from ..models import names_run, parse_run
    from ..pictures import picture

    @dataclass(frozen=True)
    class Arguments(Common):
        model: tyro.conf.Positional[str] = ""
        """RUN, RUN@STEP, RUN:student; for attention, patches, reconstruction files, timm:NAME, hf:NAME too; for
        analyses untrained:RECIPE too, and several with commas between"""
        what: tyro.conf.Positional[str] = ""
        """pictures: reconstruction (MAE), tokens (dvae, BEiT), attention, patches, augmentations, curves;
        analyses: attention-distance, attention-nmi, amplitude, bands, error-spectrum, range, targets, cka;
        of iBOT and DINO runs: teacher-student, averaging, target-noise, flatness, collapse"""
        data: tyro.conf.Positional[str | None] = None
        """images to draw, evenly spread over these, or to measure"""
        out: Path | None = None
        """the picture (default: RUN/figures/WHAT.png); an analysis writes its numbers beside it, as .json"""
        count: int | None = None
        """images drawn (8) or measured (128 to 1000, as the analysis has it)"""
        size: int | None = None
        """pixels of the images' sides, for tokens, attention and patches (default: the run's)"""
        heads: int | None = None
        """attention heads of a checkpoint file that does not tell them"""
        train: str | None = None
        """analyses: labelled images that k-NN learns from (default: half of DATA), or images that averaging and
        target-noise go on training with (default: the run's)"""
        seed: int | None = None
        """analyses: of the sample, masks, noise and intervals (default: 0)"""
        steps: int | None = None
        """averaging, target-noise: steps to go on for, in memory (default: 500)"""
        device: str | None = None
        """analyses: auto, cpu, cuda or cuda:1 (default: auto)"""

    given = parse(Arguments, arguments, "show", ABOUT)
    if not given.model or not given.what:
        raise UsageError("show needs MODEL and WHAT, e.g. unmask show RUN reconstruction IMAGES")
    options = {name: getattr(given, name) for name in ("train", "seed", "steps", "device")}
    options = {name: value for name, value in options.items() if value is not None}
    if given.what in ANALYSES:
        options["device"] = parallel.start(given.device or "auto").device
    file = picture(given.model, given.what, given.data, given.out, given.count, given.size, given.heads, **options)
    print(file, file=sys.stderr)
    of_run = given.what not in ANALYSES and names_run(given.model)  # a picture's masks are drawn by its run's seed
    seed = parse_run(given.model)[0].config.seed if of_run else given.seed or 0
    return {"seed": seed, "file": str(file)}
