"""A function per recipe: published runs with the paper's table, and ones that size themselves.

Each docstring is the recipe's card (`unmask recipes` prints it): what, paper, expected, cost. A
function takes the facts of the data and the machine and returns the whole RunConfig; published
recipes look only at the number of channels. Cost is paper arithmetic for one H200 at half its
790 bf16 TFLOP/s: docs/results.md has what was measured.
"""

import inspect
from collections.abc import Callable

from ..config import RunConfig, UsageError
from ..nearest import unknown
from .beit import (
    beit,
    beit_nano,
    beit_vit_b16_in1k,
    beit_vit_b16_in22k,
    beit_vit_l16_in1k,
    beit_vit_l16_in22k,
    dvae,
    dvae_nano,
)
from .ibot import (
    dino,
    dino_nano,
    dino_vit_s16_in1k,
    ibot,
    ibot_nano,
    ibot_vit_b16_in1k,
    ibot_vit_l16_in1k,
    ibot_vit_s16_in1k,
)
from .mae import mae, mae_nano, mae_vit_b16_in1k, mae_vit_h14_in1k, mae_vit_l16_in1k
from .sizing import Facts, fitting_size
from .supervised import (
    supervised,
    supervised_nano,
    supervised_vit_b16_in1k,
    supervised_vit_b16_in1k_original,
)
from .targets import dino_constant_target, dino_epoch_target, dino_frozen_target, dino_student_target

__all__ = ["RECIPES", "Facts", "Recipe", "card", "find", "fitting_size", "name_of"]

Recipe = Callable[[Facts], RunConfig]

RECIPES: tuple[Recipe, ...] = (
    *(mae, mae_nano, mae_vit_b16_in1k, mae_vit_l16_in1k, mae_vit_h14_in1k),
    *(dvae, dvae_nano),
    *(beit, beit_nano, beit_vit_b16_in1k, beit_vit_l16_in1k, beit_vit_b16_in22k, beit_vit_l16_in22k),
    *(ibot, ibot_nano, ibot_vit_s16_in1k, ibot_vit_b16_in1k, ibot_vit_l16_in1k),
    *(dino, dino_nano, dino_vit_s16_in1k),
    *(dino_student_target, dino_epoch_target, dino_frozen_target, dino_constant_target),
    *(supervised, supervised_nano, supervised_vit_b16_in1k, supervised_vit_b16_in1k_original),
)
"""all of them, in the order in which they are listed"""


def name_of(recipe: Recipe) -> str:
    """The recipe's name on the command line: hyphens for underscores."""
    return recipe.__name__.replace("_", "-")


def find(name: str) -> Recipe:
    """Look a recipe up by name.

    Raises:
        UsageError: there is none; names the nearest, and all.
    """
    named = {name_of(recipe): recipe for recipe in RECIPES}
    wanted = name.replace("_", "-")
    if wanted in named:
        return named[wanted]
    raise UsageError(unknown("recipe", wanted, named))


def card(recipe: Recipe) -> dict[str, str]:
    """The docstring of a recipe as its fields: recipe, what, paper, expected, cost."""
    text = inspect.getdoc(recipe) or ""
    fields = {"recipe": name_of(recipe), "what": text.splitlines()[0].rstrip(".")}
    for line in text.splitlines()[1:]:
        field, colon, value = line.partition(": ")
        if colon:
            fields[field.lower()] = value
    return fields
