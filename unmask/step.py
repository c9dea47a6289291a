"""One optimizer step: micro-batches to the device, forward, backward, clip, step, what follows it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from . import parallel
from .config import RunConfig
from .data.stream import HostBatch
from .methods.base import Batch, Progress
from .mixing import own_shares
from .optim import clip_gradients, set_schedules
from .parallel import World
from .randomness import fold
from .views import color, expand


class Step(NamedTuple):
    """What one optimizer step reports; tensors stay on the device."""

    loss: Tensor
    grad_norm: Tensor
    metrics: dict[str, Tensor]


def update(
    engine: nn.Module,
    optimizer: Optimizer,
    batches: list[Batch],
    at: Progress,
    config: RunConfig,
    world: World,
) -> Step:
    """One optimizer step over the micro-batches of this rank."""
    method, optim = parallel.unwrap(engine), config.optim
    set_schedules(optimizer, optim.lr_schedule(config.batch)(at), optim.weight_decay_schedule()(at))
    torch.manual_seed(fold(config.seed, "device", at.step, world.rank))  # drop path, Gumbel noise
    precision = "bf16" if config.precision == "bf16" else "fp32"
    losses: list[Tensor] = []
    metrics: dict[str, list[Tensor]] = {}
    sums: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        with parallel.sync(engine, last=i == len(batches) - 1):
            with parallel.autocast(world.device, precision):
                out = engine(batch, at)
            (out.loss / len(batches)).backward()
        losses.append(out.loss.detach())
        for name, value in out.metrics.items():
            metrics.setdefault(name, []).append(value)
        for name, value in out.sums.items():
            sums[name] = sums[name] + value if name in sums else value
    grad_norm = clip_gradients(method.parameters(), optim)
    method.before_step(at)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    whole = method.after_step(at, parallel.reduce(sums, world)) or {}
    means = {name: torch.stack(values).mean() for name, values in metrics.items()}
    return Step(torch.stack(losses).mean(), grad_norm, means | whole)


def to_device(host: HostBatch, config: RunConfig, device: torch.device) -> Batch:
    """Copy a micro-batch, as uint8, and render its colors on the device."""

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    mean, std, channels = config.data.mean, config.data.std, config.data.channels
    twinned = [p for v, p in zip(expand(config.method.views), host.plans, strict=True) if v.twin is not None]
    plain = (0.0,) * channels, (1.0,) * channels  # a tokenizer's input stays in [0, 1]
    return Batch(
        views=tuple(color(there(c), p, mean, std) for c, p in zip(host.crops, host.plans, strict=True)),
        twins=tuple(color(there(t), p, *plain) for t, p in zip(host.twins, twinned, strict=True)),
        masks=tuple(map(there, host.masks)),
        hidden=tuple(map(there, host.hidden)),
        label=there(host.label),
        own=there(own_shares(host.plans[0].mixed)) if host.plans[0].mixed else None,
        position=there(host.position),
    )


class Upload:
    """Brings micro-batches to the device; on a GPU beside what it computes.

    The host queues a step long before the GPU has done it, and comes here for the next one. A second
    stream then copies (from the page-locked memory that `Stream` reads into) and renders colors while
    the first one computes, which waits for the result and nothing else.
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        self.beside: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.beside = torch.cuda.Stream(device)
            self.beside.wait_stream(torch.cuda.current_stream(device))  # constants that were made before

    def __call__(self, hosts: list[HostBatch]) -> list[Batch]:
        """The micro-batches of a step, for the current stream to use."""
        if self.beside is None:
            return [to_device(host, self.config, self.device) for host in hosts]
        with torch.cuda.stream(self.beside):
            batches = [to_device(host, self.config, self.device) for host in hosts]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.beside)
        for tensor in tree_leaves(batches):
            if isinstance(tensor, Tensor):
                tensor.record_stream(current)  # its memory is not used anew before `current` is done with it
        return batches


def share_hidden(batches: list[Batch], world: World) -> None:
    """Give each micro-batch its share of the step's hidden patches, in place of the list's items.

    A loss averaged over hidden patches, times this, then averaged over micro-batches and ranks, is
    the mean over all hidden patches of the global batch.
    """
    if not batches[0].hidden or len(batches) == world.size == 1:
        return  # the share of a step's only micro-batch is 1, which is what a loss takes without it
    device = batches[0].position.device if batches[0].position is not None else None
    counts = torch.tensor([[h.numel() for h in b.hidden] for b in batches], dtype=torch.float32)
    total = world.total(counts.sum(0))
    shares = counts * len(batches) * world.size / total.clamp(min=1)
    for i, batch in enumerate(batches):
        batches[i] = batch._replace(shares=tuple(shares[i].to(device, non_blocking=True)))
