"""GELU of a product and its bias, and the gradients of both, each in one pass over memory."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

ROWS, COLUMNS = 16, 128
"""what a program has before it at a time"""
CHUNKS = 64
"""of rows: so many partial sums has the gradient of a bias, added up in an order that does not vary"""


def gelu(product: Float[Tensor, "*rows F"], bias: Float[Tensor, "F"]) -> Float[Tensor, "*rows F"]:
    """(product + bias) Phi(product + bias), computed in fp32, of a contiguous bf16 product."""
    return _gelu(product.contiguous(), bias.float())


@torch.library.custom_op("unmask::gelu", mutates_args=())
def _gelu(product: Tensor, bias: Tensor) -> Tensor:
    out, width = torch.empty_like(product), product.shape[-1]
    rows = product.numel() // width
    kernels().forward[(math.ceil(rows / (4 * ROWS)), math.ceil(width / COLUMNS))](
        product, bias, out, rows, width, M=4 * ROWS, N=COLUMNS, num_warps=8
    )
    return out


@_gelu.register_fake
def _(product: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(product)


@torch.library.custom_op("unmask::gelu_backward", mutates_args=())
def _gelu_backward(product: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the product, and of the bias [C F], a part for each chunk of rows."""
    out, width = torch.empty_like(product), product.shape[-1]
    rows = product.numel() // width
    parts = bias.new_empty(CHUNKS, width)
    kernels().backward[(CHUNKS, math.ceil(width / COLUMNS))](
        product, bias, grad, out, parts, rows, math.ceil(rows / CHUNKS), width, M=ROWS, N=COLUMNS, num_warps=4
    )
    return out, parts


@_gelu_backward.register_fake
def _(product: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(product), bias.new_empty(CHUNKS, product.shape[-1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    product, bias = ctx.saved_tensors
    of_product, parts = _gelu_backward(product, bias, grad.contiguous())
    return of_product, parts.sum(0)


_gelu.register_autograd(_differentiate, setup_context=_keep)


def kernels() -> Any:
    """Where Triton's language is: read when the first one runs, and by Triton's own rules."""
    from . import gelu_kernels

    return gelu_kernels
