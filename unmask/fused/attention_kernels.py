"""The kernels of `attention.py`, in Triton's language; what a program does is one head of one image, or a tile of it.

A pointer to queries + width is one to keys, + 2 width to values.
"""

import triton
import triton.language as tl

from .attention import LONGEST

L = tl.constexpr(LONGEST)


@triton.jit
def _read(at, rows, width, T: tl.constexpr, D: tl.constexpr):
    """Rows of D features, `width` apart; zeros beyond the last token."""
    return tl.load(at + rows[:, None] * width + tl.arange(0, D)[None, :], mask=rows[:, None] < T, other=0.0)


@triton.jit
def _write(at, rows, width, values, T: tl.constexpr, D: tl.constexpr):
    where = at + rows[:, None] * width + tl.arange(0, D)[None, :]
    tl.store(where, values.to(at.dtype.element_ty), mask=rows[:, None] < T)


@triton.jit
def _write_sum(at, rows, values, T: tl.constexpr, D: tl.constexpr):
    tl.store(at + tl.arange(0, D), tl.sum(tl.where(rows[:, None] < T, values, 0.0), 0))


@triton.jit
def _table(bias, h, rows, columns, L: tl.constexpr):
    """Biases of a head, of a `padded` table or its transpose."""
    return tl.load(bias + (h * L + rows[:, None]) * L + columns[None, :])


@triton.jit
def forward(
    qkv, bias, out, lse, scale2,
    T: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BIAS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys; `lse` is kept for the gradients."""
    tile, head = tl.program_id(0) % tl.cdiv(T, M), tl.program_id(0) // tl.cdiv(T, M)
    b, h, width = (head // H).to(tl.int64), head % H, H * D
    i = tile * M + tl.arange(0, M)
    qkv += b * T * 3 * width + h * D
    q = _read(qkv, i, 3 * width, T, D)
    peak, total = tl.full([M], -float("inf"), tl.float32), tl.zeros([M], tl.float32)
    gathered = tl.zeros([M, D], tl.float32)
    for start in range(0, T, N):
        j = start + tl.arange(0, N)
        k = _read(qkv + width, j, 3 * width, T, D)
        s = tl.dot(q, tl.trans(k)) * scale2
        if BIAS:
            s += _table(bias, h, i, j, L)
        s = tl.where(j[None, :] < T, s, -float("inf"))
        higher = tl.maximum(peak, tl.max(s, 1))
        p, shrunk = tl.exp2(s - higher[:, None]), tl.exp2(peak - higher)
        total = total * shrunk + tl.sum(p, 1)
        v = _read(qkv + 2 * width, j, 3 * width, T, D)
        gathered = tl.dot(p.to(v.dtype), v, gathered * shrunk[:, None])
        peak = higher
    _write(out + b * T * width + h * D, i, width, gathered / total[:, None], T, D)
    tl.store(lse + head * T + i, peak + tl.log2(total), mask=i < T)


@triton.jit
def of_queries(
    qkv, bias, out, grad, lse, delta, of_qkv, of_shift, scale2, scale,
    T: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, and `delta`: for each what its output has in common with its gradient."""
    tile, head = tl.program_id(0) % tl.cdiv(T, M), tl.program_id(0) // tl.cdiv(T, M)
    b, h, width = (head // H).to(tl.int64), head % H, H * D
    i = tile * M + tl.arange(0, M)
    qkv += b * T * 3 * width + h * D
    q = _read(qkv, i, 3 * width, T, D)
    do = _read(grad + b * T * width + h * D, i, width, T, D)
    o = _read(out + b * T * width + h * D, i, width, T, D)
    d = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + head * T + i, d, mask=i < T)
    z = tl.load(lse + head * T + i, mask=i < T, other=float("inf"))
    dq = tl.zeros([M, D], tl.float32)
    for start in range(0, T, N):
        j = start + tl.arange(0, N)
        k = _read(qkv + width, j, 3 * width, T, D)
        s = tl.dot(q, tl.trans(k)) * scale2
        if BIAS:
            s += _table(bias, h, i, j, L)
        p = tl.where(j[None, :] < T, tl.exp2(s - z[:, None]), 0.0)
        v = _read(qkv + 2 * width, j, 3 * width, T, D)
        ds = p * (tl.dot(do, tl.trans(v)) - d[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    _write(of_qkv + b * T * 3 * width + h * D, i, 3 * width, dq * scale, T, D)
    _write_sum(of_shift + (b * P + tile) * 3 * width + h * D, i, dq * scale, T, D)
    for rest in range(tile + tl.cdiv(T, M), P, tl.cdiv(T, M)):
        tl.store(of_shift + (b * P + rest) * 3 * width + h * D + tl.arange(0, D), tl.zeros([D], tl.float32))


@triton.jit
def of_keys_and_values(
    qkv, bias, grad, lse, delta, of_qkv, of_shift, scale2, scale,
    T: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values; logits are transposed here, a row a key."""
    tile, head = tl.program_id(0) % tl.cdiv(T, N), tl.program_id(0) // tl.cdiv(T, N)
    b, h, width = (head // H).to(tl.int64), head % H, H * D
    j = tile * N + tl.arange(0, N)
    qkv += b * T * 3 * width + h * D
    k = _read(qkv + width, j, 3 * width, T, D)
    v = _read(qkv + 2 * width, j, 3 * width, T, D)
    dk, dv = tl.zeros([N, D], tl.float32), tl.zeros([N, D], tl.float32)
    for start in range(0, T, M):
        i = start + tl.arange(0, M)
        q, do = _read(qkv, i, 3 * width, T, D), _read(grad + b * T * width + h * D, i, width, T, D)
        z = tl.load(lse + head * T + i, mask=i < T, other=float("inf"))
        d = tl.load(delta + head * T + i, mask=i < T, other=0.0)
        s = tl.dot(k, tl.trans(q)) * scale2
        if BIAS:
            s += _table(bias, h, j, i, L)
        p = tl.exp2(s - z[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv)
        ds = p * (tl.dot(v, tl.trans(do)) - d[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk)
    of_qkv += b * T * 3 * width + h * D
    _write(of_qkv + width, j, 3 * width, dk * scale, T, D)
    _write(of_qkv + 2 * width, j, 3 * width, dv, T, D)
    of_shift += (b * P + tile) * 3 * width + h * D
    _write_sum(of_shift + width, j, dk * scale, T, D)
    _write_sum(of_shift + 2 * width, j, dv, T, D)
    for rest in range(tl.cdiv(T, N), P - tile, tl.cdiv(T, N)):
        tl.store(of_shift + rest * 3 * width + width + tl.arange(0, D), tl.zeros([D], tl.float32))
        tl.store(of_shift + rest * 3 * width + 2 * width + tl.arange(0, D), tl.zeros([D], tl.float32))


@triton.jit
def of_bias(
    qkv, bias, grad, lse, delta, of_bias, scale2,
    T: tl.constexpr, H: tl.constexpr, D: tl.constexpr, EACH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """A square of the bias's gradient, summed over images one after the other."""
    h, width = tl.program_id(1), H * D
    i = tl.program_id(0) // tl.cdiv(T, N) * M + tl.arange(0, M)
    j = tl.program_id(0) % tl.cdiv(T, N) * N + tl.arange(0, N)
    table, total = _table(bias, h, i, j, L), tl.zeros([M, N], tl.float32)
    for one in range(EACH):
        b = (tl.program_id(2) * EACH + one).to(tl.int64)
        here = qkv + b * T * 3 * width + h * D
        q, do = _read(here, i, 3 * width, T, D), _read(grad + b * T * width + h * D, i, width, T, D)
        k = _read(here + width, j, 3 * width, T, D)
        v = _read(here + 2 * width, j, 3 * width, T, D)
        z = tl.load(lse + (b * H + h) * T + i, mask=i < T, other=float("inf"))
        d = tl.load(delta + (b * H + h) * T + i, mask=i < T, other=0.0)
        p = tl.exp2(tl.dot(q, tl.trans(k)) * scale2 + table - z[:, None])
        total += p * (tl.dot(do, tl.trans(v)) - d[:, None])
    at = of_bias + ((tl.program_id(2) * H + h) * T + i[:, None]) * T + j[None, :]
    tl.store(at, total, mask=(i[:, None] < T) & (j[None, :] < T))


@triton.jit
def of_all(
    qkv, out, grad, lse, of_qkv, of_shift, scale2, scale,
    T: tl.constexpr, H: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """All gradients of a head: its keys and values at once, and queries in turns."""
    b, h, width = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H, H * D
    j = tl.arange(0, N)
    qkv += b * T * 3 * width + h * D
    k = _read(qkv + width, j, 3 * width, T, D)
    v = _read(qkv + 2 * width, j, 3 * width, T, D)
    dk, dv = tl.zeros([N, D], tl.float32), tl.zeros([N, D], tl.float32)
    of_q, there = tl.zeros([M, D], tl.float32), b * T * width + h * D
    of_qkv += b * T * 3 * width + h * D
    for start in range(0, T, M):
        i = start + tl.arange(0, M)
        q, do = _read(qkv, i, 3 * width, T, D), _read(grad + there, i, width, T, D)
        d = tl.sum(do.to(tl.float32) * _read(out + there, i, width, T, D).to(tl.float32), 1)
        z = tl.load(lse + tl.program_id(0) * T + i, mask=i < T, other=float("inf"))
        s = tl.dot(q, tl.trans(k)) * scale2
        p = tl.where(j[None, :] < T, tl.exp2(s - z[:, None]), 0.0)
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv)
        ds = (p * (tl.dot(do, tl.trans(v)) - d[:, None])).to(q.dtype)
        dq = tl.dot(ds, k) * scale
        of_q += dq
        _write(of_qkv, i, 3 * width, dq, T, D)
        dk = tl.dot(tl.trans(ds), q, dk)
    _write(of_qkv + width, j, 3 * width, dk * scale, T, D)
    _write(of_qkv + 2 * width, j, 3 * width, dv, T, D)
    of_shift += b * 3 * width + h * D
    tl.store(of_shift + tl.arange(0, D), tl.sum(of_q, 0))
    _write_sum(of_shift + width, j, dk * scale, T, D)
    _write_sum(of_shift + 2 * width, j, dv, T, D)
