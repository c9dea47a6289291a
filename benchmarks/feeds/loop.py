"""`unmask pretrain` with a stopwatch on the parts of its loop, and the step alone."""

import contextlib
import io
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from race import Took, Turn

from unmask import checkpoint, cli, parallel, pretrain, train
from unmask.compilation import optimizer_of
from unmask.data.stream import Stream
from unmask.methods.base import Progress
from unmask.options import Options
from unmask.run import Run
from unmask.step import share_hidden, to_device, update

PARTS = ("steps", "waiting for data", "upload and color", "logging", "checkpoints", "evaluations", "rest")
"""into which the loop's time is split"""


@dataclass(frozen=True)
class Training:
    """What is run, and bare."""

    recipe: str
    data: str
    steps: int
    batch: int
    workers: int
    save_every: int
    eval_every: int


class Stopwatch:
    """Seconds and calls of functions by the name of their part, from the first batch to the end of the loop."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self.begun = self.ended = 0.0

    def around(self, part: str, owner: Any, name: str) -> contextlib.AbstractContextManager:
        """While in the context, time `owner.name`."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            with self.timing(part):
                return function(*args, **kwargs)

        return _in_its_place(owner, name, timed)

    def around_batches(self) -> contextlib.AbstractContextManager:
        """Time every wait of the loop but the first: workers start once a run."""
        iterate = Stream.__iter__

        def timed(stream: Stream) -> Iterator:
            with contextlib.closing(iterate(stream)) as batches:
                yield self._first(batches)
                while True:
                    with self.timing("waiting for data"):
                        hosts = next(batches, None)
                    if hosts is None:
                        return
                    yield hosts

        return _in_its_place(Stream, "__iter__", timed)

    def _first(self, batches: Iterator) -> Any:
        hosts = next(batches)
        self.begun = time.perf_counter()
        return hosts

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.ended = time.perf_counter()  # the last is the checkpoint of the last step
        self.seconds[part] = self.seconds.get(part, 0.0) + self.ended - begin
        self.calls[part] += 1


@contextlib.contextmanager
def _in_its_place(owner: Any, name: str, other: Callable) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, before)


def whole(training: Training, scratch: str) -> Turn:
    """Run the verb, a new run in each turn; a line of split time goes to SCRATCH/split.jsonl."""
    numbers = itertools.count()

    def turn() -> Took:
        out = Path(scratch) / f"run-{next(numbers)}"
        words = ["pretrain", training.recipe, training.data, "--out", str(out)]
        given = asdict(training) | {"device_batch": training.batch, "device": "cpu"}
        for name in ("steps", "batch", "device_batch", "workers", "save_every", "eval_every", "device"):
            words += [f"--{name.replace('_', '-')}", str(given[name])]
        watch, said, start = Stopwatch(), io.StringIO(), time.perf_counter()
        with contextlib.ExitStack() as stack:
            for part, owner, name in (
                ("steps", train, "update"),
                ("upload and color", train.Upload, "__call__"),
                ("logging", train.Meter, "report"),
                ("checkpoints", checkpoint, "save"),
                ("evaluations", train, "evaluate_networks"),
                ("picture", pretrain.augmentations, "draw"),
            ):
                stack.enter_context(watch.around(part, owner, name))
            stack.enter_context(watch.around_batches())
            stack.enter_context(contextlib.redirect_stderr(said))
            stack.enter_context(contextlib.redirect_stdout(said))
            code = cli.main(words)
        if code:
            raise RuntimeError(said.getvalue())
        loop = watch.ended - watch.begun - watch.seconds.get("picture", 0.0)
        split = {part: watch.seconds.get(part, 0.0) for part in PARTS[:-1]}
        split["rest"] = loop - sum(split.values())
        line = {
            "loop": loop,
            **split,
            "calls": watch.calls,
            "start": watch.begun - start,
            "picture": watch.seconds.get("picture", 0.0),
            "log": [event for event in Run(out).metrics() if "data_wait" in event],
        }
        with (Path(scratch) / "split.jsonl").open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        return Took(loop)

    return turn


def bare(training: Training, scratch: str) -> Turn:
    """As many steps of the same configuration on one batch in memory."""
    options = Options(
        out=Path(scratch) / "bare",
        steps=training.steps,
        batch=training.batch,
        device_batch=training.batch,
        workers=0,
        eval_every=str(training.eval_every),  # holds the same images out
        device="cpu",
    )
    with pretrain.planned(training.recipe, training.data, options) as plans:
        plan = next(plans)
    config, world = replace(plan.config, workers=0), plan.world
    engine = parallel.wrap(plan.method, world, config.parallel)
    optimizer = optimizer_of(plan.method, config, world)
    engine.train()
    hosts = next(iter(train.stream_of(config, plan.source, world, 0, 1)))
    batches = [to_device(host, config, world.device) for host in hosts]
    share_hidden(batches, world)

    def turn() -> None:
        for step in range(training.steps):
            at = Progress(step, training.steps, len(plan.source) / training.batch)
            update(engine, optimizer, batches, at, config, world)

    return turn
