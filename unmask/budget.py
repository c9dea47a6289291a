"""How much a step costs before the first one is made: images that fit a device, seconds, gigabytes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import DataConfig, MethodConfig
from .methods.base import Batch, Method, Progress
from .optim import largest_divisor
from .parallel import World, available_memory
from .positions import pair
from .randomness import key
from .recompute import recompute

CPU_WORKING_SET = 2 << 30
"""bytes of activations beyond which a bigger batch on a CPU gains nothing"""


def synthetic_batch(method: MethodConfig, data: DataConfig, count: int, device: torch.device) -> Batch:
    """A batch of noise with a method's views and masks: for measuring and for tests."""
    views, twins, masks, hidden = [], [], [], []
    generator = torch.Generator().manual_seed(0)
    for view in method.views:
        for _ in range(view.count):
            views.append(torch.randn(count, data.channels, *pair(view.size), generator=generator).to(device))
            if view.twin is not None:
                size = (count, data.channels, view.twin, view.twin)
                twins.append(torch.rand(size, generator=generator).to(device))
    for i, (policy, grid) in enumerate(zip(method.masks, method.grids(), strict=True)):
        drawn = [policy(grid, key(0, "mask", i, position)) for position in range(count)]
        mask = torch.stack([torch.from_numpy(m).flatten() for m in drawn])
        masks.append(mask.to(device))
        hidden.append(mask.flatten().nonzero().flatten().to(device))
    return Batch(
        views=tuple(views),
        twins=tuple(twins),
        masks=tuple(masks),
        hidden=tuple(hidden),
        label=torch.zeros(count, dtype=torch.int64, device=device),
        position=torch.arange(count, device=device),
        shares=tuple(torch.ones((), device=device) for _ in masks),
    )


def activation_bytes(
    method: Method, batch: Batch, context: Callable[[], torch.autocast], recomputed: bool = False
) -> float:
    """Bytes per image that one forward pass keeps for its backward pass.

    Args:
        recomputed: with recomputation: the inputs of blocks, what lies between blocks, and the most
            that a single block needs. The method is left switched so.
    """
    recompute(method, False)
    parameters = {p.untyped_storage().data_ptr() for p in method.parameters()}
    outside: dict[int, int] = {}  # place in memory -> bytes
    entered: dict[int, int] = {}  # the blocks' inputs
    inside: list[dict[int, int]] = []  # a block each
    running: list[dict[int, int]] = []  # the one that runs, if one does
    alive: list[Tensor] = []  # so that no place is used twice

    def note(tensor: Tensor, where: dict[int, int]) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            where[storage.data_ptr()] = storage.nbytes()

    def keep(tensor: Tensor) -> Tensor:
        note(tensor, running[-1] if running else outside)
        return tensor

    def enter(block: nn.Module, inputs: tuple) -> None:
        if torch.is_grad_enabled():  # else it is a teacher's
            note(inputs[0], entered)
            alive.append(inputs[0])
        inside.append({})
        running.append(inside[-1])

    hooks = [block.register_forward_pre_hook(enter) for block in method.blocks()]
    hooks += [block.register_forward_hook(lambda *_: running.clear()) for block in method.blocks()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), context():
        out = method(batch, Progress(0, 1, 1.0))  # holds the graph, for the same reason
    for hook in hooks:
        hook.remove()
    del out
    if recomputed:
        stays = outside | entered
        most = max((sum(size for place, size in block.items() if place not in stays) for block in inside), default=0)
        total = sum(stays.values()) + most
    else:
        total = sum({place: size for held in (outside, *inside) for place, size in held.items()}.values())
    recompute(method, recomputed)
    return total / len(batch.views[0])


def fit_device_batch(
    method: Method,
    config: MethodConfig,
    data: DataConfig,
    batch: int,
    world: World,
    context: Callable,
    recomputed: bool = False,
) -> int:
    """The largest number of images a forward pass that divides the step evenly and fits the device.

    A GPU may be filled to 80 % of what is free after weights, gradients and AdamW's state; a CPU
    takes what keeps its activations under `CPU_WORKING_SET`.

    Raises:
        ValueError: the batch does not divide among the processes.
    """
    if batch % world.size:
        raise ValueError(f"batch {batch} does not divide among {world.size} processes; use a multiple of {world.size}")
    share = batch // world.size
    probe = min(2, share)
    per_image = activation_bytes(method, synthetic_batch(config, data, probe, world.device), context, recomputed)
    weights = 12 * sum(p.numel() for p in method.parameters() if p.requires_grad)
    room = 0.8 * (available_memory(world.device) - weights)
    if world.device.type == "cpu":
        room = min(room, CPU_WORKING_SET)
    unit = 2 if share % 2 == 0 and any(view.mix for view in config.views) else 1  # images are mixed in pairs
    fits = unit * largest_divisor(share // unit, max(room, 0) / (1.3 * per_image * unit))
    return world.least(fits)  # ranks must agree; the lesser of two divisors is one, too
