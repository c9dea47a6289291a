"""A real `unmask pretrain` beside its bare step: where the time goes that is no forward, backward or optimizer.

    python benchmarks/end_to_end.py [--data FOLDER] [--recipe mae] [--steps 60] [--save-every 30] [--eval-every 30]
                                    [--rounds 3] [--quick] [--json FILE]

The verb runs in a process of its own, a new run in each round, with a stopwatch on the functions that its loop
calls; the bare step of the same configuration runs as often, on one batch in memory, in another. "of the floor" is
thus the share of the loop that the bare step would have taken. The loop is counted from its first batch: what
happens once a run (imports, looking at the data, starting workers, the first batch's picture) is said beside it.
metrics.jsonl knows two of the parts, `data_wait` and `outside_step` (upload, color, the loop itself) between log
lines, and leaves out checkpoints and evaluations; its own figures are said too. --data: images, best of 64 px and
with labels; default: crops of scikit-image's photographs. Tables go to the screen and to `results/<machine>.md`,
except under --quick.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from feeds import loop, photographs
from feeds.loop import PARTS, Training
from race import Contender, race
from rich.console import Console
from tables import QUICK, Results, Row, compare, facts, table, write_json

WHOLE, BARE = "unmask pretrain", "the bare step"


def measure(training: Training, rounds: int, threads: int, scratch: str) -> tuple[list[Row], list[dict]]:
    """Both, in turns; and how each round of the verb was split."""
    both = [Contender(WHOLE, loop.whole, (training, scratch)), Contender(BARE, loop.bare, (training, scratch))]
    timings, _ = race(both, rounds, threads, ("torch", "unmask.train"))
    lines = (Path(scratch) / "split.jsonl").read_text().splitlines()
    rows = compare(timings, WHOLE, training.steps * training.batch, BARE)
    return rows, [json.loads(line) for line in lines[1:]]  # round 0 does not count


def describe(splits: list[dict], rows: list[Row]) -> list[str]:
    """The split, as lines."""

    def of(values: list[float], show: str) -> str:
        return f"{median(values):{show}} ({min(values):{show}} - {max(values):{show}})"

    said = [f"{part}: {of([s[part] / s['loop'] for s in splits], '.1%')} of the loop" for part in PARTS]
    steps = [s["steps"] / seconds for s, seconds in zip(splits, rows[1].seconds, strict=True)]
    said.append(f"a step inside the loop takes {of(steps, '.2f')} times the bare one: workers share its cores")
    for part in ("checkpoints", "evaluations"):
        each = [s[part] / s["calls"][part] for s in splits if s["calls"].get(part)]
        if each:
            said.append(f"each of {splits[0]['calls'][part]} {part}: {of(each, '.2f')} s")
    said.append(f"once a run: {of([s['start'] for s in splits], '.1f')} s before the first batch is there, imports")
    said[-1] += f" not counted, and {of([s['picture'] for s in splits], '.1f')} s for the first batch's picture"
    for name in ("data_wait", "outside_step"):
        logged = of([event[name] for s in splits for event in s["log"]], ".1%")
        said += [f"metrics.jsonl: {name} {logged} of the time of a log line"]
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="as `unmask pretrain` takes it")
    parser.add_argument("--recipe", help="default mae, under --quick mae-nano")
    parser.add_argument("--steps", type=int, help="of a round; default 60, under --quick 4")
    parser.add_argument("--batch", type=int, help="default 64, under --quick 16")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    parser.add_argument("--save-every", type=int, help="steps; default and under --quick half of the round's")
    parser.add_argument("--eval-every", type=int, help="steps; likewise")
    parser.add_argument("--rounds", type=int, help="default 3, under --quick 1")
    parser.add_argument("--threads", type=int, default=2, help="of each contender")
    parser.add_argument("--quick", action="store_true", help="a few steps: does it all run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line for each row, and one with the split")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", metavar="DIR",
        help="where tables go, by machine; default: benchmarks/results",
    )  # fmt: skip
    arguments = parser.parse_args()
    quick = arguments.quick
    rounds = arguments.rounds or (1 if quick else 3)
    steps = arguments.steps or (4 if quick else 60)
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory() as scratch:
        data = arguments.data or photographs.write_classes(
            photographs.crops(32 if quick else 64, 10 if quick else 100), Path(scratch) / "crops"
        )
        training = Training(
            recipe=arguments.recipe or ("mae-nano" if quick else "mae"),
            data=data,
            steps=steps,
            batch=arguments.batch or (16 if quick else 64),
            workers=arguments.workers,
            save_every=arguments.save_every or steps // 2,
            eval_every=arguments.eval_every or steps // 2,
        )
        about = facts(threads=arguments.threads, rounds=rounds)
        about |= {name: getattr(training, name) for name in ("steps", "batch", "workers", "save_every", "eval_every")}
        rows, splits = measure(training, rounds, arguments.threads, scratch)
    case, said = f"{training.recipe}, {steps} steps", describe(splits, rows)
    console.print(table(case, rows))
    for line in said:
        console.print(line, highlight=False)
    if arguments.json:
        write_json(arguments.json, "end_to_end", {**about, "case": training.recipe}, rows)
        with arguments.json.open("a") as lines:
            lines.write(
                json.dumps({"benchmark": "end_to_end", **about, "case": training.recipe, "split": splits}) + "\n"
            )
    if quick:
        console.print(QUICK)
    else:
        with Results(arguments.results, "end to end", about) as results:
            results.add(case, rows)
            results.notes += said
        console.print(f"written to {results.file}", highlight=False)


if __name__ == "__main__":
    main()
