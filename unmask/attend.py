"""Attention by explicit products, forward and backward, for bf16 on a CPU.

softmax(q k^T / sqrt(d) + bias) v. The CPU's fused kernel has a bf16 backward pass 2 to 6 times slower than
these products where it was measured, and autograd's own way through them copies q, k, v and their
gradients once each where one copy of the three is enough. Without a bias the result is the same bits.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def attend(
    qkv: Float[Tensor, "B T three_D"], heads: int, bias: Float[Tensor, "H T T"] | None
) -> Float[Tensor, "B T D"]:
    """Attend with queries, keys and values as one projection gives them: [3 H d] features a token.

    Args:
        qkv: contiguous.
        heads: H.
        bias: added to the logits, in their precision; the softmax is made in fp32 inside.
    """
    return _Attend.apply(qkv, heads, bias)  # pyright: ignore[reportReturnType]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, bias: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        b, t, d = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        packed = qkv.view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4).contiguous()  # [3 B H T d]
        q, k, v = packed.flatten(1, 2).unbind(0)
        q.mul_((d // heads) ** -0.5)
        logits = torch.bmm(q, k.mT)
        if bias is not None:
            # in the order of the logits in memory: a transposed table is added seven times slower
            logits.view(b, heads, t, t).add_(bias.to(logits.dtype).contiguous())
        weights = logits.softmax(-1)
        ctx.save_for_backward(packed, weights)
        ctx.heads = heads
        return torch.bmm(weights, v).view(b, heads, t, -1).transpose(1, 2).reshape(b, t, d)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (packed, weights), heads, (b, t, d) = ctx.saved_tensors, ctx.heads, grad.shape
        q, k, v = packed.flatten(1, 2).unbind(0)  # q is scaled
        grad = grad.view(b, t, heads, -1).transpose(1, 2).reshape(b * heads, t, -1)
        out = torch.empty_like(packed)
        of_q, of_k, of_v = out.flatten(1, 2).unbind(0)
        torch.bmm(weights.mT, grad, out=of_v)
        logits = torch.bmm(grad, v.mT)
        torch.ops.aten._softmax_backward_data.out(logits, weights, -1, logits.dtype, grad_input=logits)
        of_bias = logits.view(b, heads, t, t).sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        torch.bmm(logits, k, out=of_q).mul_((d // heads) ** -0.5)
        torch.bmm(logits.mT, q, out=of_k)
        return out.permute(1, 3, 0, 2, 4).reshape(b, t, 3 * d), None, of_bias
