"""`unmask recipes [NAME...]`."""

from dataclasses import dataclass

from ..arguments import parse
from .common import Common, Result

ABOUT = "[NAME...]: list the recipes; with names: paper, expected number, cost"


def run(arguments: list[str]) -> Result:
    """Print what each recipe is, or all that is known of some."""
    import tyro
    from rich.console import Console
    from rich.table import Table

    from ..recipes import RECIPES, card, find

    @dataclass(frozen=True)
    class Arguments(Common):
        names: tyro.conf.Positional[tuple[str, ...]] = ()
        """recipes to tell more of"""

    given = parse(Arguments, arguments, "recipes", ABOUT)
    cards = [card(recipe) for recipe in (map(find, given.names) if given.names else RECIPES)]
    console = Console(stderr=True)
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(no_wrap=True)
    drawn.add_column()
    for fields in cards:
        if given.names:
            for name, value in fields.items():
                drawn.add_row(f"[dim]{name}[/dim]", value)
            drawn.add_row()
        else:
            drawn.add_row(f"[bold]{fields['recipe']}[/bold]", fields["what"])
    console.print(drawn)
    if not given.names:
        console.print("\nunmask recipes NAME: paper, expected number, cost; unmask pretrain NAME --help: every field")
    return {"recipes": cards}
