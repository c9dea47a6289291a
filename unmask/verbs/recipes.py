"""`unmask recipes`."""

from ..arguments import parse
from .common import Common, Result

ABOUT = "list the recipes: paper, expected number, cost"


def run(arguments: list[str]) -> Result:
    """Print the table of recipes."""
    from rich.console import Console
    from rich.table import Table

    from ..recipes import RECIPES, card

    parse(Common, arguments, "recipes", ABOUT)
    cards = [card(recipe) for recipe in RECIPES]
    drawn = Table(show_lines=True)
    drawn.add_column("recipe", no_wrap=True)
    for column in ("what", "paper", "expected", "cost"):
        drawn.add_column(column, overflow="fold")
    for fields in cards:
        drawn.add_row(*(fields.get(c, "") for c in ("recipe", "what", "paper", "expected", "cost")))
    Console(stderr=True).print(drawn)
    return {"recipes": cards}
