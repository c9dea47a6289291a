"""The verbs of the command line, one a module: `ABOUT` says what it is for, `run(arguments)` does it.

To add a verb: a module here, its name in `VERBS`. A module imports at its top what costs nothing, and
what needs torch inside `run`: `unmask --help` reads every ABOUT.
"""

import importlib

from .common import Result

VERBS = ("demo", "pretrain", "evaluate", "predict", "show", "embed", "export", "compare", "recipes")
"""in the order of `unmask --help`"""


def about(verb: str) -> str:
    """What a verb is for, in one line."""
    return importlib.import_module(f".{verb}", __name__).ABOUT


def run(verb: str, arguments: list[str]) -> Result:
    """Carry out a verb; what it returns is printed with --json."""
    return importlib.import_module(f".{verb}", __name__).run(arguments)
