"""One process or many: who we are, how a method is wrapped, what is added up between ranks.

The same code runs as a plain process, under `torchrun` with DDP (weights copied) or with FSDP2
(weights, optimizer state and a teacher sharded alike). Nothing else in the package asks for ranks.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel as DDP

from .methods.base import Method
from .rendezvous import meet

JOINING = timedelta(minutes=10)
"""how long the processes of a start wait for each other"""
WAITING = timedelta(minutes=30)
"""how long a collective waits for the slowest process: rank 0 evaluates, and the others wait for it"""


class Lost(RuntimeError):
    """Another process of the run is gone or does not answer; the same command continues the run."""


class World(NamedTuple):
    """Where this process stands among the processes of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that speaks and writes."""
        return self.rank == 0

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any rank raised each flag; every rank gets the same answer."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)  # on the CPU, over gloo: the GPU never waits for it
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(bool(v) for v in votes.tolist())

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def least(self, value: int) -> int:
        """The smallest of the ranks' values."""
        if self.size > 1:
            vote = torch.tensor(value)
            dist.all_reduce(vote, op=dist.ReduceOp.MIN)
            value = int(vote)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when every rank is here."""
        self.agree(True)


def start(device: str = "auto") -> World:
    """Join the processes that torchrun started, if any, and choose this one's device.

    Args:
        device: auto (the GPU of this local rank if there is one), cpu, cuda or cuda:N.
    Raises:
        ValueError: a GPU was asked for and there is none.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: torch sees no GPU here; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{local}"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not dist.is_initialized():
        join(chosen)
    return World(int(os.environ.get("RANK", "0")) if size > 1 else 0, size, chosen)


def join(device: torch.device) -> None:
    """Make the process group of this start; no wait is without end.

    Raises:
        TimeoutError: some processes did not come within `JOINING`; names them.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=JOINING))
    store.set_timeout(JOINING)
    own = dist.PrefixStore(meet(store, rank, size, JOINING), store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=JOINING)
    limit_waiting(device, WAITING)


def limit_waiting(device: torch.device, limit: timedelta) -> None:
    """Let every collective of this process fail when the others did not come to it in time."""
    assert dist.group.WORLD is not None
    for kind in {"cpu", device.type}:
        dist.group.WORLD._get_backend(torch.device(kind))._set_default_timeout(limit)


def stop(world: World) -> None:
    """Leave the process group."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone or did not answer in time, and not a fault of this one."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def wrap(method: Method, world: World, how: Literal["auto", "ddp", "fsdp"]) -> nn.Module:
    """Prepare a method for this world and return what to call for training.

    One process: the method itself. ddp: a DDP around it. fsdp: the method, its blocks and then its
    root sharded in place. auto: fsdp where weights, gradients and AdamW's state (16 bytes a
    parameter) would take over 40 % of a GPU, else ddp.
    """
    method.to(world.device)
    if world.size == 1:
        return method
    if how == "auto":
        need = 16 * sum(p.numel() for p in method.parameters())
        gpu = world.device.type == "cuda"
        how = "fsdp" if gpu and need > 0.4 * torch.cuda.mem_get_info(world.device)[1] else "ddp"
    if how == "ddp":
        ids = [world.device] if world.device.type == "cuda" else None
        with warnings.catch_warnings():  # the new name of the option is not in the older versions of torch
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DDP(method, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)
    for tensor in (*method.parameters(), *method.buffers()):  # every rank starts from rank 0's state, as in DDP
        dist.broadcast(tensor.data, 0)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in method.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    return method


@contextlib.contextmanager
def sync(engine: nn.Module, last: bool) -> Iterator[None]:
    """Exchange gradients only after the last micro-batch of a step."""
    if isinstance(engine, DDP) and not last:
        with engine.no_sync():
            yield
        return
    if isinstance(engine, FSDPModule):
        engine.set_requires_gradient_sync(last)
    yield


def reduce(sums: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Add a method's statistics over all ranks."""
    return {name: world.total(value) for name, value in sums.items()}


def full_copy(network: nn.Module, fresh: nn.Module) -> nn.Module:
    """Gather a sharded network's weights into `fresh`, on every rank; all ranks must call it."""
    state = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in network.state_dict().items()
    }
    fresh.load_state_dict(state)
    return fresh


def is_sharded(network: nn.Module) -> bool:
    """Whether FSDP2 holds this network in shards."""
    return any(isinstance(p, DTensor) for p in network.parameters())


def autocast(device: torch.device, precision: Literal["bf16", "fp32"]) -> torch.autocast:
    """bf16 products over fp32 weights, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def hardware_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """bf16 where the device multiplies it in hardware: Ampere and later GPUs, AVX-512 BF16, AMX, Arm BF16."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux: nothing to ask
        return "fp32"
    return "bf16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, StopIteration):  # what the page cache holds can be taken, too
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def unwrap(engine: nn.Module) -> Method:
    """The method inside what is called for training."""
    return cast(Method, engine.module if isinstance(engine, DDP) else engine)
