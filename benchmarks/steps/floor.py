"""The floor of a step: what it cannot do without, at the shapes and in the precision that our bf16 step has.

"floor" is its matrix products alone. "floor, AdamW" goes on to read and write every weight seven times; "floor, AdamW,
passes" also normalizes, weighs (softmax) and bends (GELU), forward and backward, and casts weights to bf16 and their
gradients back: each of these is one of PyTorch's kernels, so that no order of calls makes a step faster than that,
only kernels that do two of them at once.

They are written down while our step runs once, forward and backward, and then repeated with operands that
are in memory already: nothing is cast, laid out, normalized or stored. Convolutions count as products, and so does
attention where a fused kernel makes both of its products (on a GPU): that kernel is repeated as it is.
"""

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


def make(case: Case, optimizer: bool = False, passes: bool = False) -> Turn:
    """Repeat the products of a case; then, if so asked, the passes over activations and weights, and the optimizer."""
    step = make_ours(case, "bf16", "torch")
    adamw = step.args[1]
    seen = written_down(step, {tuple(w.shape) for group in adamw.param_groups for w in group["params"] if w.ndim == 2})
    memory: dict[tuple, Tensor] = {}

    def operand(
        shape: Sequence[int], transposed: bool = False, dtype: torch.dtype = torch.bfloat16, images: bool = False
    ) -> Tensor:
        place = (tuple(shape), transposed, dtype, images)
        if place not in memory:
            size = (*shape[:-2], shape[-1], shape[-2]) if transposed else tuple(shape)
            made = torch.randn(size, dtype=dtype, device=case.device)
            if images:
                made = made.contiguous(memory_format=torch.channels_last)
            memory[place] = made.transpose(-2, -1) if transposed else made
        return memory[place]

    calls: list[tuple[Any, tuple, dict[str, Any]]] = []
    for a, b in seen.products:
        out = operand((*a[0][:-1], b[0][-1]), dtype=a[2])
        calls.append((torch.matmul, (operand(*a), operand(*b)), {"out": out}))
    for func, dtype, args in seen.convolutions:
        if func is aten.convolution.default:
            x, weight, _, *how = args
            calls.append((func, (*(operand(shape, dtype=dtype, images=True) for shape in (x, weight)), None, *how), {}))
        else:
            grad, x, weight, _, *how, mask = args
            tensors = (operand(shape, dtype=dtype, images=True) for shape in (grad, x, weight))
            calls.append((func, (*tensors, None, *how, [mask[0], mask[1], False]), {}))

    calls += [seen.kept[call] for call in (*seen.attention, *(seen.passes if passes else ()))]

    @torch.no_grad()
    def turn() -> None:
        for function, arguments, more in calls:
            function(*arguments, **more)
        if optimizer:
            adamw.step()

    if optimizer:
        for group in adamw.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
    else:
        del adamw, step
    return turn


def flops(products: Products) -> int:
    """Floating-point operations of the matrix products, convolutions left out."""
    return sum(2 * _count(a[0]) * b[0][-1] for a, b in products.products)


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _shape(tensor: Tensor) -> Shape:
    transposed = tensor.stride(-2) == 1 and tensor.shape[-2] > 1 and tensor.stride(-1) != 1
    return tuple(tensor.shape), transposed, tensor.dtype
