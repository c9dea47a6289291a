"""The command line: which verb, what it prints, and what a failure looks like.

Standard output belongs to `--json` (its last line is one object) and to help; everything else for people
goes to standard error. Exit codes: 0 done, 1 failed, 2 usage, 75 stopped by a signal after saving, 130 on
a second Ctrl-C.
"""

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence

from . import __version__, waiting
from .config import UsageError
from .nearest import unknown
from .verbs import VERBS, about
from .verbs import run as run_verb
from .verbs.common import Result

INTERRUPTED = 130
"""exit code of Ctrl-C: the second one while training, the first one elsewhere"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"unmask {__version__}")
        return 0
    waiting.settle()  # before torch is loaded
    verb, rest = arguments[0], arguments[1:]
    speaks = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun, the first
    begin = time.perf_counter()
    report: Result = {"verb": verb, "ok": True, "version": __version__, "seed": None, "seconds": 0.0}
    code, message = 0, ""
    try:
        if verb not in VERBS:
            raise UsageError(unknown("verb", verb, VERBS))
        report |= run_verb(verb, rest)
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "interrupted; the last complete checkpoint is intact"
    except SystemExit as stop:  # after --help
        return int(stop.code or 0)
    except Exception as error:
        code, message = _exit_code(error), _one_line(error)
        if "--debug" in rest:
            traceback.print_exc()
    if code:
        report |= {"ok": False, "error": message, "seed": _asked_seed(rest)}
        if speaks or code == 1:
            print(f"{'error' if code in (1, 2) else 'stopped'}: {message}", file=sys.stderr)
    if "--json" in rest and speaks:
        report["seconds"] = round(time.perf_counter() - begin, 3)
        print(json.dumps(report), flush=True)
    return code


def overview() -> str:
    """The text of `unmask --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {about(verb)}" for verb in VERBS)
    return (
        f"unmask {__version__}: pre-train Vision Transformers on unlabelled images\n\n"
        f"usage: unmask VERB ...\n\n{verbs}\n\n"
        f"`unmask VERB --help` tells a verb's options; --json prints one JSON object; --debug a traceback.\n"
        f"start with: unmask demo\n"
    )


def _asked_seed(words: Sequence[str]) -> int | None:
    """The seed that a command named, where it failed; None: it named none, or no number."""
    joined = [word for part in words for word in part.split("=", 1)] if words else []
    after = joined[joined.index("--seed") + 1 :] if "--seed" in joined else []
    return int(after[0]) if after and after[0].isdecimal() else None


def _exit_code(error: Exception) -> int:
    from .signals import EXIT_STOPPED, Stopped

    return EXIT_STOPPED if isinstance(error, Stopped) else 2 if isinstance(error, UsageError) else 1


def _one_line(error: Exception) -> str:
    """What went wrong, in one line; expected failures speak for themselves, others say what they are."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return (
            "out of memory; give a smaller --device-batch (the result stays the same), e.g. half of the one shown above"
        )
    if isinstance(error, OSError):
        room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if error.filename is not None:
            cure = "make room" if room else "check the path and its permissions"
            return f"{os.fsdecode(error.filename)}: {error.strerror}; {cure}, or choose another place"
        if room:  # of a file that was open already: Python does not say which
            return f"{error.strerror}; make room and run the same command again, checkpoints are intact"
    expected = isinstance(error, (ValueError, OSError, RuntimeError)) or type(error).__name__ == "Stopped"
    return text if text and expected else f"{type(error).__name__}: {text} (--debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
