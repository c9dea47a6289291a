"""`python -m unmask.testing goldens FOLDER [--device cuda] [--json]`."""

import argparse
import json
import sys
from pathlib import Path

from .goldens import run_goldens


def main() -> int:
    """Run the verb and return the exit code: 1 if anything is missing or beyond its tolerance."""
    parser = argparse.ArgumentParser(prog="python -m unmask.testing", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    goldens = verbs.add_parser("goldens", help="run our code on the cases of a folder laid out like tests/golden")
    goldens.add_argument("folder", type=Path)
    goldens.add_argument("--device", default="cpu", help="where ours computes; on a GPU in fp32 without TF32")
    goldens.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    arguments = parser.parse_args()
    try:
        report = run_goldens(arguments.folder, arguments.device)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(report))
    else:
        for case, ratios in report["cases"].items():
            worst = f"worst ratio {max(ratios.values()):.3g}" if ratios else "nothing produced"
            print(f"{case:40} {len(ratios):4} outputs  {worst}")
        for word in ("missing", "failed"):
            for line in report[word]:
                print(f"{word}: {line}")
    return 1 if report["missing"] or report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
