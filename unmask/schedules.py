"""Values that change while a run goes on: frozen callables of Progress, no hidden counters."""

import math
from dataclasses import dataclass
from typing import NamedTuple


class Progress(NamedTuple):
    """Where the run is: the argument of every schedule."""

    step: int
    """optimizer updates done so far; the first update has step 0"""
    steps: int
    """optimizer updates of the whole run"""
    steps_per_epoch: float
    """updates for one pass over the data; a fraction when a batch holds more than the data set"""

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_per_epoch


@dataclass(frozen=True)
class Constant:
    """The same value always."""

    value: float

    def __call__(self, at: Progress) -> float:
        return self.value


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up from 0, then half a cosine to `final`, on fractional epochs.

    MAE's `util/lr_sched.py` (He et al. 2021, A.1): the very first update has value 0.
    """

    peak: float
    warmup_epochs: float
    final: float = 0.0
    warmup_fraction: float | None = None
    """warm-up as a part of the run, whatever its length, instead of `warmup_epochs`"""

    def __call__(self, at: Progress) -> float:
        warmup = self.warmup_epochs if self.warmup_fraction is None else self.warmup_fraction * at.epochs
        if at.epoch < warmup:
            return self.peak * at.epoch / warmup
        done = (at.epoch - warmup) / max(at.epochs - warmup, 1e-12)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class StepCosine:
    """Warm-up by `linspace(start, peak, n)` with both ends, then a cosine that stops one step short.

    The `cosine_scheduler` that DINO, iBOT and BEiT share: the peak comes twice (last step of the
    warm-up, first of the cosine) and the final value is never quite reached. Without a warm-up it
    serves iBOT's weight decay and teacher momentum.
    """

    peak: float
    warmup_epochs: float = 0.0
    final: float = 0.0
    start: float = 0.0
    warmup_fraction: float | None = None
    """warm-up as a part of the run, whatever its length, instead of `warmup_epochs`"""

    def __call__(self, at: Progress) -> float:
        part = self.warmup_fraction
        warmup = int(self.warmup_epochs * at.steps_per_epoch if part is None else part * at.steps)
        if at.step < warmup:
            return self.start + (self.peak - self.start) * at.step / max(warmup - 1, 1)
        done = min((at.step - warmup) / max(at.steps - warmup, 1), 1.0)
        return self.final + 0.5 * (self.peak - self.final) * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class EveryEpochs:
    """A teacher's momentum: 0 after each so many epochs, which copies the student; 1 between, which keeps the copy."""

    epochs: float

    def __call__(self, at: Progress) -> float:
        done = at._replace(step=at.step + 1)  # the update that it follows is made
        return float(done.epoch // self.epochs == at.epoch // self.epochs)


Schedule = Constant | WarmupCosine | StepCosine
