"""`unmask show MODEL WHAT IMAGES`."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ..arguments import parse
from ..config import UsageError
from .common import Common, Result

ABOUT = "MODEL WHAT IMAGES: draw reconstruction, tokens, attention, patches, augmentations or curves"


def run(arguments: list[str]) -> Result:
    """Draw one picture."""
    import tyro

    from ..pictures import picture

    @dataclass(frozen=True)
    class Arguments(Common):
        model: tyro.conf.Positional[str] = ""
        """RUN or RUN@STEP; for attention and patches RUN:student, checkpoint files, timm:NAME and hf:NAME too"""
        what: tyro.conf.Positional[str] = ""
        """reconstruction (MAE), tokens (dvae, BEiT), attention, patches, augmentations or curves"""
        data: tyro.conf.Positional[str | None] = None
        """images to draw, evenly spread over these"""
        out: Path | None = None
        """the picture (default: RUN/figures/WHAT.png)"""
        count: int = 8
        """images drawn"""
        size: int | None = None
        """pixels of the images' sides, for tokens, attention and patches (default: the run's)"""
        heads: int | None = None
        """attention heads of a checkpoint file that does not tell them"""

    given = parse(Arguments, arguments, "show", ABOUT)
    if not given.model or not given.what:
        raise UsageError("show needs MODEL and WHAT, e.g. unmask show RUN reconstruction IMAGES")
    file = picture(given.model, given.what, given.data, given.out, given.count, given.size, given.heads)
    print(file, file=sys.stderr)
    return {"file": str(file)}
