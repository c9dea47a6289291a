"""From words to dataclasses: the only file, with the verbs' positional arguments, that knows tyro."""

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from .config import RunConfig, UsageError
from .nearest import nearest


def parse(kind: type, arguments: Sequence[str], verb: str, about: str = "", *, unknown: bool = False) -> Any:
    """Parse a verb's arguments into its dataclass; with `unknown`, return what is left over too."""
    import tyro

    quiet = tyro.conf.arg(help_behavior_hint="")  # what is not given goes without saying
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if field.default in (None, "", ()) and (typing.get_origin(hint) is not Annotated or len(hint.__metadata__) < 2):
            kind.__annotations__[field.name] = Annotated[hint, quiet]
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName)
    how = {"description": f"unmask {verb}: {about}", "config": config, "return_unknown_args": unknown}
    with _one_line(f"unmask {verb}"):
        return tyro.cli(kind, args=list(arguments), prog=f"unmask {verb}", **how)


def override(config: RunConfig, arguments: Sequence[str], recipe: str) -> RunConfig:
    """Change fields of a configuration by their dotted names: `--method.vit.width 384`."""
    import tyro

    with _one_line(f"unmask pretrain {recipe}"):
        prog = f"unmask pretrain {recipe} DATA"
        return tyro.cli(type(config), default=config, args=list(arguments), prog=prog) if arguments else config


@contextlib.contextmanager
def _one_line(command: str) -> Iterator[None]:
    """Turn the parser's box of an error into a UsageError of one line; help and its exit pass through."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        # a box, drawn in ASCII where the terminal knows no more: title, problem, rule, perhaps suggestions, rule
        lines = [re.sub(r"[\u2500-\u257f]|-{5,}", "", line).strip() for line in said.getvalue().splitlines()][1:]
        lines = lines[1:] if lines and not lines[0] else lines
        problem = " ".join(lines[: lines.index("")] if "" in lines else lines)
        near = next((line.split()[0] for line in lines if line.startswith("-") and "meant" in said.getvalue()), "")
        if choice := re.match(r"invalid choice '(.*?)' for argument '.*?'\. Expected one of \((.*)\)", problem):
            near = nearest(choice[1], [each.strip(" '") for each in choice[2].split(",")])
        cure = f"did you mean {near}?" if near else f"{command} --help lists the options"
        raise UsageError(f"{problem.rstrip('.')}; {cure}") from None


def check_names(rest: Sequence[str], verb: type) -> None:
    """Refuse an option that neither the verb nor RunConfig has; dotted names are the recipe's to judge."""
    fields = {f.name.replace("_", "-") for f in dataclasses.fields(RunConfig)}
    known = fields | {f.name.strip("_").replace("_", "-") for f in dataclasses.fields(verb)}
    for word in rest:
        name = word.partition("=")[0].removeprefix("--").replace("_", "-")
        if word.startswith("--") and "." not in name and name not in fields:
            near = nearest(name, sorted(known))
            cure = f"did you mean --{near}?" if near else "unmask pretrain --help lists the options"
            raise UsageError(f"no option --{name}; {cure}")
