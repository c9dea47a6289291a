"""The floor of a step: what it cannot do without, at the shapes and in the precision that our step has.

"floor" is its matrix products alone. "floor, AdamW" goes on to read and write every weight seven times; "floor, AdamW,
passes" also normalizes, weighs (softmax) and bends (GELU), forward and backward, and casts weights to bf16 and their
gradients back: each of these is one of PyTorch's kernels, so that no order of calls makes a step faster than that,
only kernels that do two of them at once.

They are written down while our step runs, forward and backward, and then repeated with operands that are in memory
already: nothing is cast, laid out, normalized or stored. On a CPU our step leaves out what drop path drops, other
samples each time: a floor's turn has the products of that very step, of the first few. The passes, of one step by
PyTorch's kernels, are of all samples. Convolutions count as products, and so does attention where a fused kernel makes
both of its products (on a GPU): that kernel is repeated as it is.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import torch
from race import Turn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .cases import Case
from .ours import make as make_ours

aten = torch.ops.aten
PASSES = (
    aten.native_layer_norm.default, aten.native_layer_norm_backward.default, aten.gelu.default,
    aten.gelu_backward.default, aten._softmax.default, aten._softmax_backward_data.default,
    aten._softmax_backward_data.out,
)  # fmt: skip
"""kernels that go once over activations"""
STEPS = 7
"""whose products are written down: a race's first turn, which does not count, and its usual six rounds"""
Shape = tuple[tuple[int, ...], bool, torch.dtype]
"""of an operand, whether it lies transposed in memory, and its precision: DALL-E's tokens are made in fp32"""


class Products(TorchDispatchMode):
    """Writes down every matrix product and convolution, and the passes over what lies between.

    Args:
        weights: shapes of the matrices that are cast.
    """

    def __init__(self, weights: Collection[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.weights = set(weights)
        self.products: list[tuple[Shape, Shape]] = []
        self.convolutions: list[tuple[Any, torch.dtype, tuple[Any, ...]]] = []
        self.attention: list[str] = []
        """calls of a fused kernel, forward or backward; `kept` has the first of each kind with its operands"""
        self.passes: list[str] = []
        """likewise, calls of PASSES and casts of weights"""
        self.kept: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in (aten.mm.default, aten.mm.out, aten.bmm.default, aten.bmm.out):
            self.products.append((_shape(args[0]), _shape(args[1])))
        elif func in (aten.addmm.default, aten.baddbmm.default):
            self.products.append((_shape(args[1]), _shape(args[2])))
        elif func in (aten.convolution.default, aten.convolution_backward.default):
            sizes = tuple(tuple(a.shape) if isinstance(a, Tensor) else a for a in args)
            self.convolutions.append((func, args[0].dtype, sizes))
        elif func.overloadpacket.__name__.startswith("_scaled_dot_product"):
            self.attention.append(self.keep(func, args, kwargs or {}))
        elif func in PASSES:
            plain = aten._softmax_backward_data.default if func is aten._softmax_backward_data.out else func
            self.passes.append(self.keep(plain, args, {}))
        elif func is aten._to_copy.default and tuple(args[0].shape) in self.weights:
            self.passes.append(self.keep(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def keep(self, func: Any, args: tuple[Any, ...], more: dict[str, Any]) -> str:
        """Keep the first call of its kind, and name the kind."""
        kind = f"{func} {[(a.shape, a.dtype) if isinstance(a, Tensor) else a for a in args]} {more}"
        copies = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
        self.kept.setdefault(kind, (func, copies, more))
        return kind


def written_down(step: Turn, weights: Collection[tuple[int, ...]] = ()) -> Products:
    """The products of a step."""
    products = Products(weights)
    with products:
        step()
    return products


def make(case: Case, precision: str, optimizer: bool = False, passes: bool = False) -> Turn:
    """Repeat the products of a case; then, if so asked, the passes over activations and weights, and the optimizer."""
    plain = make_ours(case, precision, "torch")
    adamw = plain.optimizer
    whole = written_down(plain, {tuple(w.shape) for g in adamw.param_groups for w in g["params"] if w.ndim == 2})
    steps = [whole]
    if case.device == "cpu":
        ours = make_ours(case, precision)
        steps = [written_down(ours) for _ in range(STEPS)]
    memory: dict[tuple, Tensor] = {}

    def operand(shape: Sequence[int], transposed: bool, dtype: torch.dtype, images: bool = False) -> Tensor:
        place = (tuple(shape), transposed, dtype, images)
        if place not in memory:
            size = (*shape[:-2], shape[-1], shape[-2]) if transposed else tuple(shape)
            made = torch.randn(size, dtype=dtype, device=case.device)
            if images:
                made = made.contiguous(memory_format=torch.channels_last)
            memory[place] = made.transpose(-2, -1) if transposed else made
        return memory[place]

    def calls_of(seen: Products) -> list[tuple[Any, tuple, dict[str, Any]]]:
        calls: list[tuple[Any, tuple, dict[str, Any]]] = []
        for a, b in seen.products:
            out = operand((*a[0][:-1], b[0][-1]), False, a[2])
            calls.append((torch.matmul, (operand(*a), operand(*b)), {"out": out}))
        for func, dtype, args in seen.convolutions:
            if func is aten.convolution.default:
                shapes, how = args[:2], args[3:]
            else:
                shapes, how = args[:3], (*args[4:-1], [*args[-1][:2], False])
            tensors = (operand(shape, False, dtype, images=True) for shape in shapes)
            calls.append((func, (*tensors, None, *how), {}))
        return calls + [seen.kept[call] for call in seen.attention]

    turns = itertools.cycle([calls_of(seen) for seen in steps])
    more_calls = [whole.kept[call] for call in whole.passes] if passes else []

    @torch.no_grad()
    def turn() -> None:
        for function, arguments, more in (*next(turns), *more_calls):
            function(*arguments, **more)
        if optimizer:
            adamw.step()

    if optimizer:
        for group in adamw.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
    else:
        del adamw, plain
    return turn


def flops(products: Products) -> int:
    """Floating-point operations of the matrix products, convolutions left out."""
    return sum(2 * _count(a[0]) * b[0][-1] for a, b in products.products)


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _shape(tensor: Tensor) -> Shape:
    transposed = tensor.stride(-2) == 1 and tensor.shape[-2] > 1 and tensor.stride(-1) != 1
    return tuple(tensor.shape), transposed, tensor.dtype
