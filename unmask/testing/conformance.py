"""What every method must be able to do: `check_method(MyConfig())` says so, or which promise is broken."""

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ..budget import synthetic_batch
from ..config import DataConfig, MethodConfig, OptimConfig, RunConfig
from ..methods.base import Batch, Method, Output, Progress
from ..optim import build_optimizer
from ..parallel import World, wrap
from ..step import update
from .processes import on_processes

AT = Progress(3, 10, 5.0)
IMAGES = 8


def check_method(
    config: MethodConfig,
    *,
    other: MethodConfig | None = None,
    falls: float = 0.9,
    steps: int = 30,
    lr: float = 1e-3,
    compiled: bool = False,
    distributed: bool = False,
) -> None:
    """Check the contract of `methods.base.Method` on random images.

    Args:
        config: a small configuration of the method; its class must be importable for `distributed`.
        other: the same method at another image size; built and run too.
        falls: after `steps` steps on eight memorized images the loss is below this part of its start.
        steps, lr: how they are memorized.
        compiled: also run with compiled blocks; a minute.
        distributed: also run on two gloo processes, with DDP and with FSDP2; half a minute.
    Raises:
        AssertionError: a promise is broken; says which.
    """
    for each in (config, *([other] if other is not None else [])):
        gradients_are_finite(each)
    output_is_a_function_of_batch_and_step(config)
    frozen_parameters_move_only_after_the_step(config)
    sums_add_up(config)
    state_returns(config)
    loss_falls(config, falls, steps, lr)
    if compiled:
        compiles(config)
    if distributed:
        for how in ("ddp", "fsdp"):
            losses = on_processes(distributed_loss, 2, config, how)
            assert all(map(math.isfinite, losses)), f"{_name(config)}: loss under {how} is {losses}"


def gradients_are_finite(config: MethodConfig) -> None:
    """Loss and every trainable parameter's gradient are finite; frozen parameters have none; metrics detached."""
    method, batch = _fresh(config)
    out = method(batch, AT)
    assert isinstance(out, Output), f"{_name(config)}: forward returns {type(out).__name__}, not Output"
    assert out.loss.ndim == 0 and torch.isfinite(out.loss), f"{_name(config)}: loss is {out.loss}"
    for name, value in {**out.metrics, **out.sums}.items():
        assert not value.requires_grad, f"{_name(config)}: {name} is not detached"
    out.loss.backward()
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, f"{_name(config)}: frozen {name} has a gradient"
            continue
        assert parameter.grad is not None, f"{_name(config)}: {name} has no gradient; DDP would wait for it"
        assert torch.isfinite(parameter.grad).all(), f"{_name(config)}: gradient of {name} is not finite"


def output_is_a_function_of_batch_and_step(config: MethodConfig) -> None:
    """The same batch, step and seed give the same Output: nothing is remembered between calls."""
    method, batch = _fresh(config)
    first, again = _forward(method, batch), _forward(method, batch)
    for name, value in _flat(first).items():
        assert torch.equal(value, _flat(again)[name]), f"{_name(config)}: {name} differs between equal calls"


def frozen_parameters_move_only_after_the_step(config: MethodConfig) -> None:
    """Forward and backward change no state; the optimizer changes what is trained and nothing else."""
    method, batch = _fresh(config)
    before = _copy(method.state_dict())
    out = _forward(method, batch)
    out.loss.backward()
    assert _equal(before, method.state_dict()), f"{_name(config)}: forward or backward changes parameters or buffers"
    optimizer = build_optimizer(method.parameter_groups(), OptimConfig())
    grouped = [name for group in method.parameter_groups() for name in group.names]
    trained = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)), f"{_name(config)}: a parameter is in two groups"
    assert set(grouped) == trained, f"{_name(config)}: groups and trained differ: {set(grouped) ^ trained}"
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    method.before_step(AT)
    optimizer.step()
    for name, value in method.state_dict().items():
        assert name in trained or torch.equal(value, before[name]), f"{_name(config)}: {name} moved in the step"
    method.after_step(AT, out.sums)
    assert all(torch.isfinite(v).all() for v in method.state_dict().values() if v.is_floating_point())


def sums_add_up(config: MethodConfig) -> None:
    """`sums` of two half-batches add up to those of the whole."""
    method, batch = _fresh(config, drop_noise=True)
    whole = _forward(method, batch).sums
    first, second = (_forward(method, half).sums for half in halves(batch))
    assert whole.keys() == first.keys() == second.keys()
    for name, value in whole.items():
        torch.testing.assert_close(first[name] + second[name], value, atol=1e-4, rtol=1e-4, msg=f"sums[{name!r}]")


def state_returns(config: MethodConfig) -> None:
    """A state_dict loaded into a fresh method gives the same Output."""
    method, batch = _fresh(config)
    torch.manual_seed(99)
    other: Method = config.build()
    other.load_state_dict(method.state_dict())
    other.train(method.training)
    expected, got = _flat(_forward(method, batch)), _flat(_forward(other, batch))
    for name, value in expected.items():
        assert torch.equal(value, got[name]), f"{_name(config)}: {name} is not restored by its state_dict"


def loss_falls(config: MethodConfig, falls: float, steps: int, lr: float) -> None:
    """Eight images can be memorized, by the loop's own step."""
    method, batch = _fresh(config)
    losses = _train(method, batch, config, steps, lr)
    start, end = losses[0], sum(losses[-3:]) / 3
    assert end < falls * start, f"{_name(config)}: loss fell from {start:.4f} to {end:.4f} only in {steps} steps"
    assert method.backbone() is not None


def compiles(config: MethodConfig) -> None:
    """Compiled blocks give the same loss, to rounding."""
    method, batch = _fresh(config, drop_noise=True)
    plain = _forward(method, batch).loss
    for block in method.blocks():
        block.compile()
    compiled = _forward(method, batch).loss
    compiled.backward()
    torch.testing.assert_close(compiled.detach(), plain.detach(), atol=1e-4, rtol=1e-3)


def distributed_loss(world: World, config: MethodConfig, how: Any) -> float:
    """The loss after three steps on two processes; each sees its half."""
    method, batch = _fresh(config)
    return _train(wrap(method, world, how), halves(batch)[world.rank], config, 3, 1e-3, world)[-1]


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Split a batch in two, its hidden indices recounted."""
    count = len(batch.views[0]) // 2
    parts = []
    for part in (slice(0, count), slice(count, 2 * count)):
        masks = tuple(mask[part] for mask in batch.masks)
        parts.append(
            batch._replace(
                views=tuple(view[part] for view in batch.views),
                twins=tuple(twin[part] for twin in batch.twins),
                masks=masks,
                hidden=tuple(mask.flatten().nonzero().flatten() for mask in masks),
                label=None if batch.label is None else batch.label[part],
                position=None if batch.position is None else batch.position[part],
            )
        )
    return parts[0], parts[1]


def _fresh(config: MethodConfig, drop_noise: bool = False) -> tuple[Method, Batch]:
    torch.manual_seed(0)
    method: Method = config.build()
    channels = getattr(getattr(config, "vit", None), "channels", 3)
    batch = synthetic_batch(config, DataConfig(channels=channels), IMAGES, torch.device("cpu"))
    return (method.eval() if drop_noise else method.train()), batch


def _forward(method: Method, batch: Batch) -> Output:
    torch.manual_seed(1)  # as the loop does for each step: drop path and Gumbel noise are part of the step
    return method(batch, AT)


def _train(engine: Any, batch: Batch, config: MethodConfig, steps: int, lr: float, world: World | None = None) -> list:
    world = world or World(0, 1, torch.device("cpu"))
    optim = OptimConfig(base_lr=lr, base_batch=None, schedule="constant")
    run = RunConfig("conformance", config, DataConfig(), optim, batch=IMAGES, precision="fp32")
    method = getattr(engine, "module", engine)
    optimizer = build_optimizer(method.parameter_groups(), optim)
    return [float(update(engine, optimizer, [batch], Progress(i, steps, 1.0), run, world).loss) for i in range(steps)]


def _flat(out: Output) -> dict[str, Tensor]:
    return {"loss": out.loss.detach(), **out.metrics, **out.sums}


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return copy.deepcopy({name: value.detach() for name, value in state.items()})


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], value) for name, value in b.items())


def _name(config: MethodConfig) -> str:
    return type(config).__name__ if dataclasses.is_dataclass(config) else str(config)
