"""`unmask demo`."""

from dataclasses import dataclass
from pathlib import Path

from ..arguments import parse
from .common import Common, Result, newest, progress_line, run_result

ABOUT = "the main job in minutes: pre-train on real photographs, evaluate, draw"


def run(arguments: list[str]) -> Result:
    """Carry out the demo and print its table."""
    from ..console import Console
    from ..demo import STEPS
    from ..demo import demo as carry_out
    from ..evaluate import table

    @dataclass(frozen=True)
    class Arguments(Common):
        out: Path = Path("demo")
        """folder for everything it makes; the same one again continues"""
        steps: int = STEPS
        """optimizer steps"""
        seed: int = 0
        """names every random draw"""

    given = parse(Arguments, arguments, "demo", ABOUT)
    before = newest(given.out / "run")
    console = Console()
    with progress_line(console) as progress:
        made = carry_out(given.out, steps=given.steps, seed=given.seed, progress=progress)
    console.rich.print(table(made.rows, title="which photograph is this crop from?"))
    console.say(
        "chance is 5.6 %. The ViT learned without labels, in minutes; its features should beat raw pixels and\n"
        "the untrained ViT by far. Masked image modelling wants many images seen: longer training is better."
    )
    for figure in made.figures:
        console.say(f"picture: {figure}")
    return {"seed": given.seed} | run_result(made.run, before) | {"table": made.rows}
