"""Controls on the target network: DINO as it is, but for where its teacher comes from (Caron et al. 2021, Figure 6).

Compared with `dino` under one budget they ask what the moving average is for.
"""

import dataclasses

from ..config import RunConfig
from ..methods.ibot import IBOTConfig
from .ibot import dino
from .sizing import Facts


def dino_student_target(facts: Facts) -> RunConfig:
    """DINO whose teacher is the student of the step before: momentum 0.

    Paper: Caron et al. 2021, section 5.2: does not learn there
    Expected: see docs/why-the-teacher.md
    Cost: as dino
    """
    return _with("dino-student-target", facts, momentum=0.0, momentum_end=0.0)


def dino_epoch_target(facts: Facts) -> RunConfig:
    """DINO whose teacher is the student of the epoch before, and still in between.

    Paper: Caron et al. 2021, section 5.2: learns, to k-NN 66.6 % where momentum gets 72.8 %
    Expected: see docs/why-the-teacher.md
    Cost: as dino
    """
    return _with("dino-epoch-target", facts, teacher_every=1.0)


def dino_frozen_target(facts: Facts) -> RunConfig:
    """DINO whose teacher stays as it was made: a random network's answers are the targets.

    Paper: none; the control for what any fixed target teaches
    Expected: see docs/why-the-teacher.md
    Cost: as dino
    """
    return _with("dino-frozen-target", facts, momentum=1.0, momentum_end=1.0)


def dino_constant_target(facts: Facts) -> RunConfig:
    """DINO with one momentum from the first step to the last, in place of the cosine to 1.

    Paper: none; the control for the cosine
    Expected: see docs/why-the-teacher.md
    Cost: as dino
    """
    method = dino(facts).method
    assert isinstance(method, IBOTConfig)
    return _with("dino-constant-target", facts, momentum_end=method.momentum)


def _with(name: str, facts: Facts, **changes: float) -> RunConfig:
    config = dino(facts)
    return dataclasses.replace(config, recipe=name, method=dataclasses.replace(config.method, **changes))
