"""What happened in the last few steps: averages kept on the device, read once per log line."""

import contextlib
import resource
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parallel import World
from .run import Run


class Diverged(RuntimeError):
    """The loss or the gradient became infinite or not a number."""


class Meter:
    """Averages loss and metrics between log lines and accounts for every second of the loop.

    Time is split into waiting for data, stepping (forward, backward, optimizer, and on a GPU the
    time to queue them) and everything else; their fractions are in each log line.
    """

    def __init__(self, world: World, batch: int):
        self.world, self.batch = world, batch
        self.last_loss = float("nan")
        self.bad_step = torch.full((), -1.0, device=world.device)
        self.restart()

    def restart(self) -> None:
        """Begin a new interval now: what lies between (a checkpoint, an evaluation) is not counted."""
        self.begun, self.steps = time.perf_counter(), 0
        self.waited = self.stepped = 0.0
        self.sums: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.stepped += time.perf_counter() - begin

    def add(self, step: int, loss: Tensor, grad_norm: Tensor, metrics: dict[str, Tensor]) -> None:
        """Add one step; nothing is read back from the device."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm)) & (self.bad_step < 0)
        self.bad_step = torch.where(bad, torch.full_like(self.bad_step, step), self.bad_step)
        self.steps += 1
        for name, value in {"loss": loss, "grad_norm": grad_norm, **metrics}.items():
            value = value.float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def check_finite(self, run: Run) -> None:
        """Raise if any step so far was not finite, on every rank alike.

        Raises:
            Diverged: names the step, the checkpoint to go back to, and what to try.
        """
        step = int(self.bad_step)
        (failed,) = self.world.agree(step >= 0)
        if failed:
            good = run.latest()
            back = f"checkpoint step {good} is from before" if good is not None else "no checkpoint was made yet"
            raise Diverged(
                f"loss or gradient is not finite at step {step if step >= 0 else '(another rank)'} of {run.path}; "
                f"{back} and nothing was saved since. Try a lower --optim.base-lr, a longer "
                f"--optim.warmup-epochs, --optim.clip 1.0 or --precision fp32, with a new --out and --from"
            )

    def report(self, run: Run, optimizer: Optimizer, step: int, steps_per_epoch: float) -> dict[str, float]:
        """Write one line to metrics.jsonl, restart the interval and return the line."""
        self.check_finite(run)
        names = sorted(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / max(self.steps, 1)
        values = (self.world.total(means) / self.world.size).tolist()
        seconds = time.perf_counter() - self.begun
        gpu = self.world.device.type == "cuda"
        line = {
            "step": step,
            "epoch": step / steps_per_epoch,
            "images": step * self.batch,
            **dict(zip(names, values, strict=True)),
            "lr": max(group["lr"] for group in optimizer.param_groups),
            "img/s": self.steps * self.batch / seconds,
            "data_wait": self.waited / seconds,
            "outside_step": max(seconds - self.waited - self.stepped, 0.0) / seconds,
            "memory_gb": peak_memory(gpu) / 1e9,
        }
        self.last_loss = line["loss"]
        if self.world.first:
            run.log(**line)
        self.restart()
        return line


def peak_memory(gpu: bool) -> int:
    """Most bytes held so far: by the GPU's allocator, or resident in this process."""
    return torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
