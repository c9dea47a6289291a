"""`unmask compare DATA`."""

from dataclasses import dataclass

from ..arguments import parse
from ..config import UsageError
from .common import Common, Result, progress_line

ABOUT = "DATA --methods M... --budget 20m, or --runs RUN...: several methods, one answer, one page"


def run(arguments: list[str]) -> Result:
    """Compare methods, and print the table and the answer."""
    import dataclasses

    import tyro

    from ..compare.conduct import carry_out
    from ..compare.settings import Settings, settled
    from ..console import Console
    from ..evaluate import table

    @dataclass(frozen=True)
    class Arguments(Common, Settings):
        data: tyro.conf.Positional[str] = ""
        """images that all methods train on: a folder, tar or parquet (or a quoted glob), hf:NAME"""

    given = parse(Arguments, arguments, "compare", ABOUT)
    if not given.data:
        raise UsageError("compare needs DATA first: unmask compare FOLDER --methods mae ibot --budget 20m")
    settings = settled(Settings(**{f.name: getattr(given, f.name) for f in dataclasses.fields(Settings)}))
    console = Console()
    with progress_line(console) as progress:
        made = carry_out(given.data, settings, console.say, progress)
    if made.content["rows"]:
        console.rich.print(table(made.content["rows"]))
    console.say(made.content["answer"]["sentence"])
    console.say(f"page: {made.report}")
    result: Result = {"seed": settings.seed, "dir": str(made.dir), "report": str(made.report)}
    result |= {"methods": made.content["methods"], "results": made.content["rows"]}
    return result | {"answer": made.content["answer"]}
