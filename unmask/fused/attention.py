"""Attention over short sequences: softmax(q k^T / sqrt(d) + bias) v.

As FlashAttention-2 does it (Dao 2023, arXiv:2307.08691), for what a ViT has: at most 256 tokens. Queries, keys and
values are read as one projection gives them and gradients are written so, hence nothing is copied; the gradient of what
the projection added is summed up on the way; and a bias has a gradient, which PyTorch's fast kernels lack (BEiT's
relative positions). All sums are made in an order that does not vary.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LONGEST = 256
"""tokens"""
OF_E = math.log2(math.e)
"""logits are to base 2 here: the exponential of a GPU is"""


def fits(tokens: int, width: int) -> bool:
    """Whether `attend` is for sequences so long and heads so wide."""
    return tokens <= LONGEST and width in (32, 64)


def attend(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "three_D D"],
    shift: Float[Tensor, "three_D"] | None,
    heads: int,
    bias: Float[Tensor, "H T T"] | None,
) -> Float[Tensor, "B T D"]:
    """Project tokens to queries, keys and values, [3 H d] features a token, and attend.

    Args:
        x: of a length and width that `fits`, under autocast.
        weight, shift: the projection x W^T + shift.
        heads: H.
        bias: added to the logits in fp32.
    """
    if shift is None:
        shift = torch.zeros_like(weight[:, 0])
    qkv = F.linear(x, weight, shift.detach())  # its gradient comes from `_backward`
    return _attend(qkv.contiguous(), shift, None if bias is None else bias.float(), heads)[0]


@torch.library.custom_op("unmask::attend", mutates_args=())
def _attend(qkv: Tensor, shift: Tensor, bias: Tensor | None, heads: int) -> tuple[Tensor, Tensor]:
    """What is attended to [B T D], and the logarithm, to base 2, of the sum of each softmax [B H T]."""
    b, t, d = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    out, lse = qkv.new_empty(b, t, d), qkv.new_empty(b, heads, t, dtype=torch.float32)
    how = tiles(t, d // heads, bias is not None).forward
    kernels().forward[(math.ceil(t / how.rows) * b * heads,)](
        qkv, padded(bias, lse), out, lse, (d // heads) ** -0.5 * OF_E,
        T=t, H=heads, D=d // heads, BIAS=bias is not None, **how.constants(),
    )  # fmt: skip
    return out, lse


@_attend.register_fake
def _(qkv: Tensor, shift: Tensor, bias: Tensor | None, heads: int) -> tuple[Tensor, Tensor]:
    b, t, d = qkv.shape
    return qkv.new_empty(b, t, d // 3), qkv.new_empty(b, heads, t, dtype=torch.float32)


@torch.library.custom_op("unmask::attend_backward", mutates_args=())
def _backward(
    qkv: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, grad: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of qkv, of the shift [B P 3D] and of the bias [C H T T], parts that are to be summed."""
    b, t, d = out.shape
    width, has = d // heads, bias is not None
    how, scale, shape = tiles(t, width, has), width**-0.5, {"T": t, "H": heads, "D": width}
    of_qkv, of_shift = torch.empty_like(qkv), lse.new_empty(b, pieces(t), 3 * d)
    of_bias = lse.new_empty(shares(b) if has else 0, heads, t, t)
    if how.whole is not None:
        kernels().of_all[(b * heads,)](
            qkv, out, grad, lse, of_qkv, of_shift, scale * OF_E, scale, **shape, **how.whole.constants()
        )
        return of_qkv, of_shift, of_bias
    delta, table = torch.empty_like(lse), padded(bias, lse)
    kernels().of_queries[(math.ceil(t / how.queries.rows) * b * heads,)](
        qkv, table, out, grad, lse, delta, of_qkv, of_shift, scale * OF_E, scale,
        **shape, BIAS=has, P=pieces(t), **how.queries.constants(),
    )  # fmt: skip
    kernels().of_keys_and_values[(math.ceil(t / how.keys.columns) * b * heads,)](
        qkv, table.mT.contiguous() if has else table, grad, lse, delta, of_qkv, of_shift, scale * OF_E, scale,
        **shape, BIAS=has, P=pieces(t), **how.keys.constants(),
    )  # fmt: skip
    if has:
        squares = math.ceil(t / how.bias.rows) * math.ceil(t / how.bias.columns)
        kernels().of_bias[(squares, heads, len(of_bias))](
            qkv, table, grad, lse, delta, of_bias, scale * OF_E,
            **shape, EACH=b // len(of_bias), **how.bias.constants(),
        )  # fmt: skip
    return of_qkv, of_shift, of_bias


@_backward.register_fake
def _(
    qkv: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, grad: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    (b, t, d), parts = out.shape, 0 if bias is None else shares(out.shape[0])
    return torch.empty_like(qkv), lse.new_empty(b, pieces(t), 3 * d), lse.new_empty(parts, heads, t, t)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[2], *output)
    ctx.heads = inputs[3]


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
    qkv, bias, out, lse = ctx.saved_tensors
    of_qkv, of_shift, of_bias = _backward(qkv, bias, out, lse, grad.contiguous(), ctx.heads)
    return of_qkv, of_shift.sum((0, 1)), None if bias is None else of_bias.sum(0), None


_attend.register_autograd(_differentiate, setup_context=_keep)


def kernels() -> Any:
    """Where Triton's language is: read when the first one runs, and by Triton's own rules."""
    from . import attention_kernels

    return attention_kernels


# --- how the work is cut ---------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """What a program has before it at a time."""

    rows: int
    """queries"""
    columns: int
    """keys and values"""
    warps: int
    stages: int

    def constants(self) -> dict[str, int]:
        """For a kernel."""
        return {"M": self.rows, "N": self.columns, "num_warps": self.warps, "num_stages": self.stages}


class Tiles(NamedTuple):
    """Those of all kernels, as measured on an H200 (docs/results.md): at least 64 queries for theirs, keys likewise."""

    forward: Tile
    queries: Tile
    keys: Tile
    bias: Tile
    whole: Tile | None
    """all gradients in one kernel, for few tokens without a bias"""


@functools.cache
def tiles(tokens: int, width: int, bias: bool) -> Tiles:
    """For sequences of so many tokens, heads so wide."""
    square, flat = Tile(64, 64, 4, 1), Tile(64, 32, 4, 3)
    if bias:
        return Tiles(flat, flat, Tile(32, 64, 4, 3), Tile(64, 64, 4, 3), None)
    return Tiles(Tile(128, 32, 4, 3), flat, Tile(32, 128, 4, 1), square, None) if tokens > 64 else Tiles(*5 * [square])


def pieces(tokens: int) -> int:
    """Parts of an image's gradient of the shift: as many as there are tiles, which have 64 rows at least."""
    return math.ceil(tokens / 64)


def shares(images: int) -> int:
    """Into how many shares of equal size images are cut, whose gradients of a bias are summed one by one."""
    return next(parts for parts in (4, 2, 1) if images % parts == 0)


def padded(bias: Float[Tensor, "H T T"] | None, other: Tensor) -> Float[Tensor, "H L L"]:
    """A bias, to base 2, in rows that begin at round addresses; none leads to a key that is not there.

    Args:
        bias: None: `other` is returned, to be looked at by nobody.
        other: any tensor.
    """
    if bias is None:
        return other
    more = LONGEST - bias.shape[1]
    return F.pad(F.pad(bias * OF_E, (0, more), value=-math.inf), (0, 0, 0, more))
