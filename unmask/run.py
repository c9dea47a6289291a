"""The run directory: everything about a run in one folder that outlives the process.

config.json        the full resolved RunConfig; enough to rebuild everything
environment.json   versions, machine, world size; one entry a start
metrics.jsonl      one object a log event; cut back to the checkpoint's step on resume
log.txt            the lines a person saw
classes.json       names of the classes by label, of a run that learns from labels
holdout.npy        places of the images that are held out of training, where some are
bad-files.txt      images that could not be read, with the reason
checkpoints/       see checkpoint.py
figures/           pictures
"""

import fcntl
import io
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from . import checkpoint, passes
from .config import SPEED_FIELDS, RunConfig, differences, from_json, to_json
from .methods.base import Method
from .parallel import World
from .vit import ViT

CLASSES = "classes.json"
"""the names of the classes by label, in a run that learns from labels"""
HELD = "holdout.npy"
"""the places of the held-out images, in a run that has some"""


class Run:
    """A run directory, to read or to train in."""

    def __init__(self, path: str | Path):
        """Read an existing run.

        Raises:
            FileNotFoundError: no config.json there.
        """
        self.path = Path(path)
        file = self.path / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} is not a run: it has no config.json")
        try:
            config = from_json(json.loads(file.read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON ({error}); the run was written by something else") from None
        if not isinstance(config, RunConfig):
            raise ValueError(f"{file} holds no RunConfig")
        self.config: RunConfig = config
        self._lock: IO[str] | None = None

    def release(self) -> None:
        """Let others train in this directory; reading goes on as before."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @classmethod
    def open(cls, config: RunConfig, world: World) -> "Run":
        """Create the run of `config.out`, or continue it.

        Raises:
            ValueError: a run of another configuration lives there; lists the differing fields.
            RuntimeError: another process is training this run.
        """
        path = Path(config.out)
        problem = ""
        lock = None
        if world.first:
            try:
                lock = _prepare(path, config)
            except (OSError, ValueError, RuntimeError) as error:
                problem = str(error)
                if world.size == 1:
                    raise
        (failed,) = world.agree(bool(problem))
        if failed:
            raise RuntimeError(problem or f"rank 0 could not open {path}")
        run = cls(path)
        run.config = config
        run._lock = lock
        return run

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first."""
        return checkpoint.steps(self.path)

    def latest(self) -> int | None:
        return checkpoint.latest(self.path)

    def log(self, **values: Any) -> None:
        """Append one object to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All log events; a last line cut short by a kill is left out."""
        return read_metrics(self.path) if (self.path / "metrics.jsonl").exists() else []

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`: the run continues from there."""
        kept = [event for event in self.metrics() if event["step"] <= step]
        checkpoint.write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in kept))

    def bad_images(self) -> dict[str, str]:
        """The images that could not be read so far, with the reason."""
        file = self.path / "bad-files.txt"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return {name: why for name, _, why in (line.partition("\t") for line in lines)}

    def report_failure(self, rank: int, text: str) -> None:
        """Keep what a failing rank had to say; of many ranks the console shows one."""
        (self.path / f"errors-rank{rank:03d}.txt").write_text(text, encoding="utf-8")

    def report_bad(self, bad: dict[str, str]) -> None:
        """List the images that could not be read, with the reason."""
        text = "".join(f"{name}\t{why}\n" for name, why in sorted(bad.items()))
        checkpoint.write_atomically(self.path / "bad-files.txt", text)

    def method(self, step: int | None = None) -> Method:
        """Rebuild the method with the weights of a checkpoint, on the CPU, in eval mode.

        Raises:
            ValueError: the run has no such checkpoint; lists those it has.
        """
        at = self.latest() if step is None else step
        if at is None or at not in self.steps():
            have = ", ".join(map(str, self.steps())) or "none yet"
            raise ValueError(f"{self.path} has no checkpoint {'' if step is None else step}; it has: {have}")
        method: Method = self.config.method.build()
        checkpoint.load(self.path, at, method, single=True)
        return method.eval()

    def backbone(self, step: int | None = None) -> ViT:
        """The network to use: of a student and a teacher, the teacher."""
        network = self.method(step).backbone()
        assert isinstance(network, ViT)
        return network


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read a run's log; a last line cut short by a kill is left out.

    Args:
        path: a run directory or its metrics.jsonl.
    Raises:
        FileNotFoundError: no log there.
        ValueError: a line other than the last is not JSON.
    """
    file = Path(path)
    file = file / "metrics.jsonl" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such log; curves are drawn from a run directory with a metrics.jsonl")
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{file}, line {number}: not JSON ({error}); delete that line") from None
    return found


def changed_fields(stored: RunConfig, wanted: RunConfig) -> list[str]:
    """The fields in which a run may not change when it is continued, with both values."""
    return [line for line in differences(stored, wanted) if line.partition(":")[0] not in SPEED_FIELDS]


def _prepare(path: Path, config: RunConfig) -> IO[str]:
    """Rank 0 makes the directory, takes its lock and writes what does not change while training."""
    path.mkdir(parents=True, exist_ok=True)
    lock = open(path / ".lock", "w", encoding="utf-8")  # noqa: SIM115 - held as long as the run
    patience = time.monotonic() + 3.0  # a killed run's loader workers share its lock and die a moment after it
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() < patience:
                time.sleep(0.05)
                continue
            lock.close()
            raise RuntimeError(
                f"{path} is being trained by another process; wait for it or choose another --out"
            ) from None
    try:
        _settle(path, config)
    except BaseException:
        lock.close()
        raise
    return lock


def _settle(path: Path, config: RunConfig) -> None:
    """Compare with the run that is there, or make it, and write down this start."""
    file = path / "config.json"
    if file.exists():
        changed = changed_fields(Run(path).config, config)
        if changed:
            longer = any(line.startswith(("steps:", "epochs:")) for line in changed)
            cure = f"train on with --from {path} and a new --out" if longer else "choose another --out"
            raise ValueError(f"{path} belongs to another configuration; differing: {'; '.join(changed)}; {cure}")
    elif any(entry.name not in (".lock", ".config.json.tmp", "tokenizer") for entry in path.iterdir()):
        raise ValueError(f"{path} exists and is not a run; choose another --out or empty it")
    # before anything else is there: a run killed in this very moment is still a run
    checkpoint.write_atomically(file, json.dumps(to_json(config), indent=1) + "\n")
    (path / "figures").mkdir(exist_ok=True)
    starts = path / "environment.json"
    entries = json.loads(starts.read_text(encoding="utf-8")) if starts.exists() else []
    checkpoint.write_atomically(starts, json.dumps([*entries, environment()], indent=1) + "\n")


def keep_held(path: Path, places: np.ndarray) -> None:
    """Keep the places of the images that a run holds out of training."""
    written = io.BytesIO()
    np.save(written, places)
    checkpoint.write_atomically(path / HELD, written.getvalue())


def held_in(path: Path) -> np.ndarray | None:
    """The places of the images that a run holds out of training; None: nothing of that is there."""
    return np.load(path / HELD) if (path / HELD).is_file() else None


def last_kernels(path: Path) -> list[str]:
    """What `passes.which` said at the last two starts of a run, or the one."""
    entries = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    return [entry["kernels"] for entry in entries[-2:] if "kernels" in entry]


def environment() -> dict[str, Any]:
    """What a run is made on: versions, machine, processes."""
    here = Path(__file__).parent
    commit = "unknown"

    def git(*words: str) -> str:
        call = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=5, check=True)
        return call.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) == here.parent.resolve():  # not a repository around site-packages
            commit = git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    from . import __version__

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "unmask": __version__,
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processor": platform.processor() or platform.machine(),
        "host": platform.node(),
        "threads": torch.get_num_threads(),
        "kernels": passes.which(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }
