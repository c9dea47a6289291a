"""What lies between the matrix products of a Transformer block, as functions with gradients.

Each is a kernel of `block.c` that does in one pass over memory what PyTorch's kernels do in several: adds the bias
of the product before it, scales, bends or normalizes, and casts to bf16 for the product after it. Residual sums,
norms, softmax and all sums of gradients are made in fp32. Gradients are for one backward pass.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Int64
from torch import Tensor, nn

from .build import addresses, library


class Branch(NamedTuple):
    """A residual branch before its last bias: (product + bias) * gamma * chance is added to the residual stream."""

    product: BFloat16[Tensor, "*rows D"]
    bias: Float[Tensor, "D"]
    gamma: Float[Tensor, "D"] | None
    """layer scale"""
    chance: Float[Tensor, "*_"] | None
    """drop path's factor; broadcasts to [*rows 1]"""
    kept: "Kept | None"
    """the samples that have this branch; None: all"""


class Kept(NamedTuple):
    """Some samples of a batch."""

    number: int
    places: Int64[Tensor, "B"]
    """where each sample is among them; -1: it is not"""


def kept(chance: Float[Tensor, "B 1 1"] | None) -> Kept | None:
    """The samples that drop path leaves; None: all."""
    if chance is None:
        return None
    stays = chance.numpy().ravel() > 0
    places = np.where(stays, np.cumsum(stays) - 1, -1)
    return None if stays.all() else Kept(int(stays.sum()), torch.from_numpy(places))


def norm(
    x: Float[Tensor, "*rows D"], layer: nn.LayerNorm, some: Kept | None = None
) -> tuple[Float[Tensor, "*rows D"], Tensor]:
    """x, and its samples, or some of them, normalized in bf16.

    Go on with the x that is returned: the gradients of both are then added in one pass.
    """
    return _Residual.apply(x, None, None, None, None, None, layer.weight, layer.bias, layer.eps, some)  # pyright: ignore[reportReturnType]


def add(x: Float[Tensor, "*rows D"], branch: Branch) -> Float[Tensor, "*rows D"]:
    """Add a branch to x."""
    return _Residual.apply(x, *branch, None, None, 0.0, None)[0]  # pyright: ignore[reportOptionalSubscript, reportReturnType]


def add_norm(
    x: Float[Tensor, "*rows D"], branch: Branch, layer: nn.LayerNorm, some: Kept | None = None
) -> tuple[Float[Tensor, "*rows D"], Tensor]:
    """Add a branch to x; the sum, and all or some samples of it normalized in bf16."""
    return _Residual.apply(x, *branch, layer.weight, layer.bias, layer.eps, some)  # pyright: ignore[reportReturnType]


def gelu(product: BFloat16[Tensor, "*rows D"], bias: Float[Tensor, "D"]) -> BFloat16[Tensor, "*rows D"]:
    """GELU(product + bias), by the error function. For one reader: its gradient is overwritten."""
    return _GELU.apply(product, bias)  # pyright: ignore[reportReturnType]


def attend(
    product: BFloat16[Tensor, "B T three_D"],
    bias: Float[Tensor, "three_D"] | None,
    heads: int,
    shared: Float[Tensor, "H T T"] | None,
) -> BFloat16[Tensor, "B T D"]:
    """softmax(q k^T / sqrt(d) + shared) v of queries, keys and values as one projection gives them, less its bias."""
    return _Attend.apply(product, bias, heads, shared)  # pyright: ignore[reportReturnType]


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        product: Tensor | None,
        bias: Tensor | None,
        gamma: Tensor | None,
        chance: Tensor | None,
        having: Kept | None,
        weight: Tensor | None,
        shift: Tensor | None,
        eps: float,
        some: Kept | None,
    ) -> tuple[Tensor, Tensor | None]:
        x, width, tokens = x.contiguous(), x.shape[-1], x.shape[-2] if x.ndim > 2 else 1
        rows = x.numel() // width
        places = [None if kept is None else kept.places for kept in (having, some)]
        total = x.view_as(x) if product is None else torch.empty_like(x)
        if product is not None:
            product = product.contiguous()
        if chance is not None:
            if having is not None:
                chance = chance[having.places >= 0]
            of_rows = chance.expand(*(x if product is None else product).shape[:-1], 1)
            chance = of_rows.reshape(-1).contiguous()  # of one sample the first is a view
        normed = mean = rstd = None
        if weight is not None:
            shape = x.shape if some is None else (some.number, *x.shape[1:])
            normed = x.new_empty(shape, dtype=torch.bfloat16)
            mean, rstd = x.new_empty(2, rows).unbind()
        library().norm_forward(
            torch.get_num_threads(), rows, width, tokens, *addresses(*places, x, product, bias, gamma, chance),
            *addresses(total, weight, shift), eps, *addresses(normed, mean, rstd),
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total if weight is not None else None, product, bias, gamma, chance, weight, mean, rstd)
        ctx.size, ctx.places = (rows, width, tokens), places
        return total, normed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_total: Tensor | None, of_normed: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total, product, bias, gamma, chance, weight, mean, rstd = ctx.saved_tensors
        if of_total is None and of_normed is None:
            return 10 * (None,)
        of_total = None if of_total is None else of_total.contiguous()
        of_normed = None if of_normed is None else of_normed.contiguous()
        of_x = of_total if of_normed is None else torch.empty_like(total)
        assert of_x is not None
        of_product = None if product is None else torch.empty_like(product)
        if of_normed is None:
            weight = None
        of_bias, of_gamma, of_weight, of_shift = (
            None if of is None else torch.empty_like(of) for of in (bias, gamma, weight, weight)
        )
        library().norm_backward(
            torch.get_num_threads(), *ctx.size, *addresses(*ctx.places),
            *addresses(of_total, of_normed, total, mean, rstd, weight, product, bias, gamma, chance),
            *addresses(of_x, of_product, of_bias, of_gamma, of_weight, of_shift),
        )  # fmt: skip
        return of_x, of_product, of_bias, of_gamma, None, None, of_weight, of_shift, None, None


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, product: Tensor, bias: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        product, width = product.contiguous(), product.shape[-1]
        out = torch.empty_like(product)
        library().gelu_forward(torch.get_num_threads(), product.numel() // width, width, *addresses(product, bias, out))
        ctx.save_for_backward(product, bias)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        product, bias = ctx.saved_tensors
        grad, of_bias, width = grad.contiguous(), torch.empty_like(bias), product.shape[-1]
        rows = product.numel() // width
        library().gelu_backward(torch.get_num_threads(), rows, width, *addresses(grad, product, bias, of_bias))
        return grad, of_bias


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, product: Tensor, bias: Tensor | None, heads: int, shared: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        b, t, d = product.shape[0], product.shape[1], product.shape[2] // 3
        threads, scale = torch.get_num_threads(), (d // heads) ** -0.5
        product = product.contiguous()
        packed = product.new_empty(3, b * heads, t, d // heads)
        library().split(threads, b, t, heads, d // heads, *addresses(product, bias), scale, *addresses(packed))
        q, k, v = packed.unbind(0)
        weights = torch.bmm(q, k.mT)
        shared = None if shared is None else shared.float().contiguous()
        library().softmax_forward(threads, b * heads * t, t, *addresses(weights, shared), heads * t)
        ctx.save_for_backward(packed, weights)
        ctx.heads, ctx.biased = heads, bias is not None
        return torch.bmm(weights, v).view(b, heads, t, d // heads).transpose(1, 2).reshape(b, t, d)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (packed, weights), heads, (b, t, d) = ctx.saved_tensors, ctx.heads, grad.shape
        threads = torch.get_num_threads()
        q, k, v = packed.unbind(0)  # q is scaled
        grad = grad.view(b, t, heads, d // heads).transpose(1, 2).reshape(b * heads, t, d // heads)
        of_packed = torch.empty_like(packed)
        of_q, of_k, of_v = of_packed.unbind(0)
        torch.bmm(weights.mT, grad, out=of_v)
        logits = torch.bmm(grad, v.mT)
        library().softmax_backward(threads, b * heads * t, t, *addresses(logits, weights))
        of_shared = logits.view(b, heads, t, t).sum(0, dtype=torch.float32) if ctx.needs_input_grad[3] else None
        torch.bmm(logits, k, out=of_q)
        torch.bmm(logits.mT, q, out=of_k)
        of_product = grad.new_empty(b, t, 3 * d)
        of_bias = torch.empty(3 * d, dtype=torch.float32) if ctx.biased else None
        scale = (d // heads) ** -0.5
        library().join(threads, b, t, heads, d // heads, *addresses(of_packed), scale, *addresses(of_product, of_bias))
        return of_product, of_bias, None, of_shared
