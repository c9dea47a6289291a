"""The kernels of `gelu.py`, in Triton's language; a program has a tile of rows and features before it."""

import math

import triton
import triton.language as tl

ROOT = tl.constexpr(math.sqrt(0.5))
DENSITY = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def _normal(x):
    """Phi(x), and exp(-x^2 / 2), of which the first is made.

    erfc by Abramowitz and Stegun 7.1.26, to 1.5e-7: a bf16 has three digits. The library's takes three times the
    instructions, and memory waits for them.
    """
    t = 1 / (1 + 0.3275911 * ROOT * tl.abs(x))
    e = tl.exp(-0.5 * x * x)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail *= 0.5 * e
    return tl.where(x < 0, tail, 1 - tail), e


@triton.jit
def forward(product, bias, out, rows, width, M: tl.constexpr, N: tl.constexpr):
    """Of x = product + bias: x Phi(x)."""
    i, j = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
    at, mask = i[:, None].to(tl.int64) * width + j[None, :], (i[:, None] < rows) & (j[None, :] < width)
    x = tl.load(product + at, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(bias + j, mask=j < width, other=0.0)[None, :]
    p, _ = _normal(x)
    tl.store(out + at, (x * p).to(out.dtype.element_ty), mask=mask)


@triton.jit
def backward(product, bias, grad, out, parts, rows, each, width, M: tl.constexpr, N: tl.constexpr):
    """Gradients of the product, and of the bias over a chunk of `each` rows."""
    j = tl.program_id(1) * N + tl.arange(0, N)
    shift = tl.load(bias + j, mask=j < width, other=0.0)[None, :]
    begin = tl.program_id(0) * each
    end, total = tl.minimum(begin + each, rows), tl.zeros([M, N], tl.float32)
    for start in range(begin, end, M):
        i = start + tl.arange(0, M)
        at, mask = i[:, None].to(tl.int64) * width + j[None, :], (i[:, None] < end) & (j[None, :] < width)
        x = tl.load(product + at, mask=mask, other=0.0).to(tl.float32) + shift
        p, e = _normal(x)
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * (p + x * e * DENSITY)
        tl.store(out + at, g.to(out.dtype.element_ty), mask=mask)
        total += g
    tl.store(parts + tl.program_id(0) * width + j, tl.sum(total, 0), mask=j < width)
