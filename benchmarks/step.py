"""A whole training step, ours against the official code, the packages of a registry, and the floor.

    python benchmarks/step.py [--cases mae-small beit-small ...] [--official DIR] [--rounds 6] [--threads 2]
                              [--rows "unmask bf16" "official bf16" ...] [--compile] [--quick] [--json FILE]

Forward, backward, clipping, optimizer and moving averages, on a batch that is in memory. Contenders take turns
(see `common.py`); ours in bf16, the default of `unmask pretrain` here, is what the others are compared with, and "of
the floor" is the time of that step's matrix products alone, in the same round, over the contender's. The official
code is not part of this package: `steps/official.py` says where it is looked for. Tables go to the screen and to
`results/<machine>.md`, except under --quick, whose sizes are too small to tell.
"""

import argparse
import sys
from pathlib import Path

from common import QUICK, Contender, Row, append_results, check_rows, compare, facts, race, table, write_json
from rich.console import Console
from steps import cases, floor, official, ours, peers
from steps.cases import Case

from unmask.methods.beit import BEiTConfig

REFERENCE, FLOOR = "unmask bf16", "floor"


def contenders(case: Case, folder: str | None, compiled: bool) -> list[Contender]:
    """Who takes the step."""
    found = [Contender(f"unmask {how}", ours.make, (case.name, how)) for how in ("bf16", "fp32")]
    if compiled:
        found.append(Contender("unmask bf16, compiled", ours.make, (case.name, "bf16", True)))
    if isinstance(case.method, BEiTConfig) and not case.tokens_given:
        found.append(Contender("unmask bf16, tokens too", ours.make, (case.name, "bf16", False, "bf16")))
    found += [Contender(f"official {how}", official.make, (case.name, how, folder)) for how in ("fp32", "bf16")]
    for who in (peers.transformers, peers.lightly):
        found += [Contender(f"{who.__name__} {how}", who, (case.name, how)) for how in ("fp32", "bf16")]
    floors = [Contender(FLOOR, floor.make, (case.name,)), Contender(f"{FLOOR}, AdamW", floor.make, (case.name, True))]
    return [*found, *floors]


def measure(case: Case, arguments: argparse.Namespace, rounds: int, console: Console, notes: list[str]) -> list[Row]:
    """One case: all contenders that are here, in one run."""
    folder = str(Path(arguments.official).resolve()) if arguments.official else None
    all_of_them = contenders(case, folder, arguments.compile)
    wanted = {REFERENCE, *arguments.rows} if arguments.rows else {c.name for c in all_of_them}
    timings, left_out = race([c for c in all_of_them if c.name in wanted], rounds, arguments.threads)
    rows = compare(timings, REFERENCE, case.images, FLOOR)
    console.print(table(f"{case.name}, {case.images} images a step, {rounds} rounds", rows))
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}", style="dim", highlight=False)
        notes.append(f"{case.name}: left out {name}: {why}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [case.name for case in (*cases.CASES, *cases.QUICK)]
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=names,
        metavar="CASE",
        help=f"default: {', '.join(case.name for case in cases.CASES)}",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        help='contenders as the table names them: "unmask fp32" floor; ours in bf16 always',
    )
    parser.add_argument("--official", metavar="DIR", help="with mae, unilm/beit, DALL-E and ibot in it")
    parser.add_argument("--rounds", type=int, help="default 6, under --quick 3")
    parser.add_argument("--threads", type=int, default=2, help="of each contender")
    parser.add_argument("--compile", action="store_true", help="ours with compiled blocks, too; a minute more each")
    parser.add_argument("--quick", action="store_true", help="sizes of seconds: does it all run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line for each row")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", metavar="DIR",
        help="where tables go, by machine; default: benchmarks/results",
    )  # fmt: skip
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 6)
    chosen = cases.QUICK if arguments.quick else cases.CASES
    if arguments.cases:
        chosen = [cases.case(name) for name in arguments.cases]
    try:
        check_rows(arguments.rows, (c.name for case in chosen for c in contenders(case, None, arguments.compile)))
    except ValueError as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 120)
    about = facts(threads=arguments.threads, rounds=rounds)
    tables, notes = {}, []
    for case in chosen:
        tables[case.name] = measure(case, arguments, rounds, console, notes)
        if arguments.json:
            write_json(arguments.json, "step", {**about, "case": case.name, "images": case.images}, tables[case.name])
    if arguments.quick:
        console.print(QUICK)
    else:
        console.print(f"written to {append_results(arguments.results, 'step', about, tables, notes)}", highlight=False)


if __name__ == "__main__":
    main()
