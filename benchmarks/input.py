"""From JPEGs or decoded images to batches, ours against torchvision's and kornia's pipelines, and decoding alone.

    python benchmarks/input.py [--cases crop-small views-large ...] [--workers 1 2] [--data FOLDER] [--rounds 6]
                               [--rows "torchvision v1" ...] [--quick] [--json FILE]

crop: one random resized crop at 224 px, mirrored, uint8; ours from a folder, a tar and a parquet file. views: iBOT's
ten, 2 x 224 + 8 x 96, with all their colors, normalized. small and large: JPEGs made from scikit-image's
photographs, or --data's as they are; decoded: the small ones, decoded before the clock starts. With w workers each
contender has w cores, whatever processes it runs on them, and w threads in its main one; the files are in the page
cache; starting and ending the workers is not counted. Ours is what the others are compared with; memory is the main
process's. "of the floor": decoding whole images alone (where images are decoded: their crops alone, resized), in the
same round, over the contender's time; "crops alone" decodes as far as the crops need it and resizes them. Tables go to
the screen and to `results/<machine>.md`, except under --quick.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from feeds import ours, peers, photographs
from feeds.photographs import Photos
from feeds.work import Work
from race import Contender, race
from rich.console import Console
from tables import QUICK, Results, Row, check_rows, compare, facts, table, write_json

FLOOR, CROPS = "decoding alone", "crops alone"
DECODED = "views-decoded"
TURNS = {"crop": (512, 32), "views": (128, 16), DECODED: (512, 16)}
"""images of a turn and of a batch"""
COUNT = 64
"""photographs that are made of each kind"""
PRELOAD = ("torch", "torchvision.transforms.v2", "unmask.data.stream", "unmask.methods.ibot")


def contenders(photos: Photos, work: Work) -> list[Contender]:
    """Who makes the batches; the first is the reference."""
    folder = photos.folder
    if work.policy == "crop":
        formats = {"folder": folder, "tar": photos.tar, "parquet": photos.parquet}
        found = [Contender(f"unmask, {name}", ours.make, (data, work, False)) for name, data in formats.items()]
    else:
        found = [Contender("unmask", ours.make, (folder, work, True))]
        found.append(Contender("unmask, colors left to a GPU", ours.make, (folder, work, False)))
        found.append(Contender("unmask, colors by torch", ours.make_by_torch, (folder, work)))
    return [
        *found,
        Contender("torchvision v1", peers.pillow, (folder, work)),
        Contender("torchvision v2", peers.tensors, (folder, work)),
        Contender("kornia", peers.kornia, (folder, work)),
        *([] if work.decoded else [Contender(FLOOR, ours.decoding, (folder, work))]),
        Contender(CROPS, ours.cropping, (folder, work)),
    ]


def measure(
    case: str, photos: Photos, work: Work, arguments: argparse.Namespace, console: Console, notes: list[str]
) -> list[Row]:
    """One case with one number of workers: all contenders that are here, in one run."""
    everyone = contenders(photos, work)
    reference = everyone[0].name
    wanted = {reference, *arguments.rows} if arguments.rows else {c.name for c in everyone}
    timings, left_out = race([c for c in everyone if c.name in wanted], arguments.rounds, work.workers, PRELOAD)
    rows = compare(timings, reference, work.images, CROPS if work.decoded else FLOOR)
    console.print(table(f"{case}, {photos.about}; {work.images} images a turn, {arguments.rounds} rounds", rows))
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}", style="dim", highlight=False, markup=False)
        notes.append(f"{case}: left out {name}: {why}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="CASE",
        help="default: crop-small crop-large views-small views-large views-decoded",
    )
    parser.add_argument("--workers", nargs="+", type=int, help="processes that read, on as many cores; default 1 2")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="JPEGs of one's own: cases crop-own, views-own")
    parser.add_argument("--rows", nargs="+", default=[], help="contenders as the table names them; ours always")
    parser.add_argument("--rounds", type=int, help="default 6, under --quick 1")
    parser.add_argument("--scale", type=int, default=1, help="so many times the images a round, and a batch")
    parser.add_argument("--quick", action="store_true", help="a few images: does it all run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line for each row")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", metavar="DIR",
        help="where tables go, by machine; default: benchmarks/results",
    )  # fmt: skip
    arguments = parser.parse_args()
    kinds = ["own"] if arguments.data else ["small"] if arguments.quick else list(photographs.KINDS)
    possible = [f"{policy}-{kind}" for policy in ("crop", "views") for kind in kinds]
    possible += [] if arguments.data else [DECODED]
    cases = arguments.cases or possible
    if unknown := sorted(set(cases) - set(possible)):
        parser.error(f"--cases {' '.join(unknown)}: choose from {' '.join(possible)}")
    somewhere = Photos("", "", "", "")
    works = [Work(case.partition("-")[0], 1, 1, 1, case == DECODED) for case in cases]
    try:
        check_rows(arguments.rows, (c.name for work in works for c in contenders(somewhere, work)))
    except ValueError as error:
        parser.error(str(error))
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 6)
    workers = arguments.workers or ([2] if arguments.quick else [1, 2])
    console = Console(width=None if sys.stdout.isatty() else 120)
    about = facts(rounds=arguments.rounds)
    folder = None if arguments.quick else arguments.results
    with tempfile.TemporaryDirectory() as scratch, Results(folder, "input", about) as results:
        for kind in sorted({case.partition("-")[2] for case in cases}):
            recipe = "small" if kind == "decoded" else kind
            made = photographs.own(arguments.data) if arguments.data else photographs.make(recipe, COUNT)
            photos = photographs.write(made, Path(scratch) / kind)
            results.notes.append(f"{kind}: {photos.about}")
            for case, w in [(case, w) for case in cases if case.endswith(f"-{kind}") for w in workers]:
                policy = case.partition("-")[0]
                images, batch = (8, 2) if arguments.quick else TURNS.get(case, TURNS[policy])
                work = Work(policy, images * arguments.scale, batch * arguments.scale, w, case == DECODED)
                name = f"{case}, {w} worker{'s' if w > 1 else ''}"
                rows = measure(name, photos, work, arguments, console, results.notes)
                results.add(name, rows)
                if arguments.json:
                    known = {**about, "case": case, "workers": w, "images": work.images, "photos": photos.about}
                    write_json(arguments.json, "input", known, rows)
    console.print(QUICK if arguments.quick else f"written to {results.file}", highlight=False)


if __name__ == "__main__":
    main()
