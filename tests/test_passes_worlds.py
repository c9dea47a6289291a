"""Kernels of our own under FSDP2: the gradients of two processes are those of one."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from unmask import passes
from unmask.blocks import Block
from unmask.parallel import World
from unmask.testing.processes import on_processes


def differences(world: World) -> list[float]:
    """Of outputs and of gradients, between two blocks whose weights are sharded and two that have them."""
    torch.manual_seed(0)
    whole = nn.Sequential(*(Block(64, 2, layer_scale=0.1, drop_path=0.5, qkv_bias="qv") for _ in range(2)))
    sharded, x = copy.deepcopy(whole), torch.randn(4, 9, 64)
    mesh = init_device_mesh("cpu", (world.size,))
    for block in sharded:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)

    def run(model):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.square().mean().backward()
        return y.detach()

    found = [float((run(sharded) - run(whole)).abs().max())]
    for shard, parameter in zip(sharded.parameters(), whole.parameters(), strict=True):
        found.append(float((shard.grad.full_tensor() - parameter.grad).abs().max()))
    return found


@pytest.mark.skipif(passes.why_not() is not None, reason=f"no kernels here: {passes.why_not()}")
def test_sharded_weights_get_the_gradients_that_whole_ones_get():
    for found in on_processes(differences, 2, timeout=240):
        assert max(found) < 1e-6
