"""The Transformer block: attention and MLP on residual branches, normalized before."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from . import fused, passes
from .attend import attend
from .positions import RelativePositionBias


class Attention(nn.Module):
    """Multi-head self-attention; softmax(q k^T / sqrt(D/H) + bias) v."""

    def __init__(
        self,
        width: int,
        heads: int,
        qkv_bias: Literal["full", "qv", "none"] = "full",
        rel_pos: tuple[int, int] | None = None,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias == "full")
        self.q_bias = nn.Parameter(torch.zeros(width)) if qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if qkv_bias == "qv" else None
        self.rel_pos_bias = None if rel_pos is None else RelativePositionBias(rel_pos, heads)
        self.proj = nn.Linear(width, width)

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T three_D"]:
        return F.linear(x, self.qkv.weight, self.project_bias())

    def project_bias(self) -> Float[Tensor, "three_D"] | None:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv.bias
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])  # BEiT: a key's would cancel

    def queries_keys_values(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor, Tensor]:
        return self.split(self.project(x))

    def split(self, qkv: Float[Tensor, "B T three_D"]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # each [B H T D/H]
        return q, k, v

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Float[Tensor, "B H T T"]:
        logits = (q * self.scale) @ k.transpose(-2, -1)
        return (logits if bias is None else logits + bias).softmax(-1)

    def bias(self, shared: Float[Tensor, "H T T"] | None) -> Float[Tensor, "H T T"] | None:
        return shared if self.rel_pos_bias is None else self.rel_pos_bias()

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        shared: Float[Tensor, "H T T"] | None = None,
        only: Int[Tensor, "M"] | None = None,
    ) -> Float[Tensor, "B T D"] | Float[Tensor, "M D"]:
        """Attend; project what the tokens at `only`, flat indices of B*T, have gathered, or all."""
        bias = self.bias(shared)
        if fused.usable(x) and fused.fits(x.shape[1], x.shape[2] // self.heads):
            gathered = fused.attend(x, self.qkv.weight, self.project_bias(), self.heads, bias)
            return self.proj(pick(gathered, only))
        qkv = self.project(x)
        if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
            return self.proj(pick(attend(qkv, self.heads, bias), only))
        q, k, v = self.split(qkv)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # compiled: the same products, fused as it sees fit
            x = self.weights(q, k, bias).to(v.dtype) @ v
        else:
            mask = None if bias is None else bias.to(q.dtype)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.proj(pick(x.transpose(1, 2).flatten(2), only))


class Mlp(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, width: int, ratio: float = 4.0, gelu: Literal["erf", "tanh"] = "erf", dropout: float = 0.0):
        super().__init__()
        hidden = int(width * ratio)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="none" if gelu == "erf" else "tanh")
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        if fused.usable(x) and self.act.approximate == "none":
            hidden = fused.gelu(F.linear(x, self.fc1.weight), self.fc1.bias)
        else:
            hidden = self.act(self.fc1(x))
        return self.drop(self.fc2(self.drop(hidden)))


class LayerScale(nn.Module):
    """A learned factor per feature on a residual branch (Touvron et al. 2021)."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, factor: Float[Tensor, "rows *ones"] | None) -> Float[Tensor, "*rows D"]:
        """The branch's factor, with what drop path made of it."""
        return self.gamma if factor is None else factor * self.gamma


class DropPath(nn.Module):
    """Drop a residual branch for whole samples; what stays is divided by the chance to stay."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(
        self, tokens: Float[Tensor, "B T D"], only: Int[Tensor, "M"] | None = None
    ) -> Float[Tensor, "B 1 1"] | Float[Tensor, "M 1"] | None:
        """The branch's factor for each sample of `tokens`, or for the sample of each token at `only`; None: 1."""
        if self.rate == 0.0 or not self.training:
            return None
        keep = 1.0 - self.rate
        factor = tokens.new_empty(tokens.shape[0]).bernoulli_(keep).div_(keep)
        return factor.view(-1, 1, 1) if only is None else factor.index_select(0, only // tokens.shape[1]).view(-1, 1)


class Compilable(nn.Module):
    """A part whose `forward` has a compiled stand-in, for training only: what is evaluated comes in many sizes."""

    compiled: Callable[..., Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "compiled": None}  # a copy has weights of its own


class Block(Compilable):
    """x + attention(norm(x)), then x + mlp(norm(x)); dropout ends the attention and both layers of the MLP."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        qkv_bias: Literal["full", "qv", "none"] = "full",
        rel_pos: tuple[int, int] | None = None,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm_eps: float = 1e-6,
        gelu: Literal["erf", "tanh"] = "erf",
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, qkv_bias, rel_pos)
        self.drop = nn.Dropout(dropout)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_ratio, gelu, dropout)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path2 = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        bias: Float[Tensor, "H T T"] | None = None,
        only: Int[Tensor, "M"] | None = None,
    ) -> Float[Tensor, "B T D"] | Float[Tensor, "M D"]:
        """Transform tokens.

        Args:
            x: all tokens: each attends to all.
            bias: added to the logits of attention.
            only: flat indices of B*T: return these tokens, and make projection and MLP for them alone. For a last
                block, of which a loss reads some tokens.
        """
        chances = self.drop_path1(x, only), self.drop_path2(x, only)
        if self.compiled is not None and self.training:
            return self.compiled(x, bias, only, *chances)
        if self.can_join(x):
            return self.joined(x, bias, only, chances)
        return self.branches(x, bias, only, *chances)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all but the draws of drop path: blocks of all rates are one function then."""
        self.compiled = compiled(self.branches, (2, 3, 4), *args, **kwargs)

    def branches(
        self,
        x: Float[Tensor, "B T D"],
        bias: Float[Tensor, "H T T"] | None,
        only: Int[Tensor, "M"] | None,
        *chances: Float[Tensor, "..."] | None,
    ) -> Float[Tensor, "B T D"] | Float[Tensor, "M D"]:
        """`forward` by PyTorch's kernels, for what drop path has drawn."""
        x = add(pick(x, only), self.drop(self.attn(self.norm1(x), bias, only)), self.ls1(chances[0]))
        return add(x, self.mlp(self.norm2(x)), self.ls2(chances[1]))

    def can_join(self, x: Tensor) -> bool:
        """Whether `joined` computes what is asked for: bf16 products on a CPU, GELU by the error function."""
        if type(x) is not Tensor or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return False  # or a tensor without memory, by which others estimate
        if x.dtype != torch.float32 or self.norm1.weight.dtype != torch.float32:
            return False
        dropout = self.training and self.drop.p > 0.0
        plain = self.mlp.act.approximate == "none" and not dropout
        return plain and torch.get_autocast_dtype("cpu") == torch.bfloat16 and passes.ready()

    def joined(
        self,
        x: Float[Tensor, "B T D"],
        bias: Float[Tensor, "H T T"] | None,
        only: Int[Tensor, "M"] | None,
        chances: tuple[Tensor | None, Tensor | None],
    ) -> Float[Tensor, "B T D"] | Float[Tensor, "M D"]:
        """`forward` by kernels of our own: products without bias, and one pass over memory between two of them.

        The modules inside give their weights and are not called: hooks on them see nothing.
        """
        attn, mlp = self.attn, self.mlp
        gammas = [ls.gamma if isinstance(ls, LayerScale) else None for ls in (self.ls1, self.ls2)]
        # a dropped branch is not even computed; with `only` samples have unequal numbers of tokens
        kept = [passes.kept(chance) if only is None else None for chance in chances]
        x, normed = passes.norm(x, self.norm1, kept[0])
        gathered = passes.attend(
            passes.project(normed, attn.qkv.weight), attn.project_bias(), attn.heads, attn.bias(bias)
        )
        product = passes.project(pick(gathered, only), attn.proj.weight)
        branch = passes.Branch(product, attn.proj.bias, gammas[0], chances[0], kept[0])
        x, normed = passes.add_norm(pick(x, only), branch, self.norm2, kept[1])
        hidden = passes.gelu(passes.project(normed, mlp.fc1.weight), mlp.fc1.bias)
        product = passes.project(hidden, mlp.fc2.weight)
        return passes.add(x, passes.Branch(product, mlp.fc2.bias, gammas[1], chances[1], kept[1]))


class Stack(Compilable, nn.ModuleList):
    """Blocks one after the other."""

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        bias: Float[Tensor, "H T T"] | None = None,
        only: Int[Tensor, "M"] | None = None,
    ) -> Float[Tensor, "B T D"] | Float[Tensor, "M D"]:
        """Transform tokens; the last block returns those at `only`, as in `Block.forward`."""
        if self.compiled is not None and self.training:
            return self.compiled(x, bias, only)
        return self.through(x, bias, only)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all blocks as one function: what ends one and begins the next is one pass then."""
        self.compiled = compiled(self.through, (2,), *args, **kwargs)

    def through(
        self, x: Float[Tensor, "B T D"], bias: Float[Tensor, "H T T"] | None, only: Int[Tensor, "M"] | None
    ) -> Float[Tensor, "B T D"] | Float[Tensor, "M D"]:
        for i, block in enumerate(self):
            x = block(x, bias, only if i == len(self) - 1 else None)
        return x if len(self) else pick(x, only)


def compiled(
    function: Callable[..., Tensor], varying: tuple[int, ...], *args: Any, **kwargs: Any
) -> Callable[..., Tensor]:
    """torch.compile for a function whose sizes are constants, as they are in training, but for some.

    Args:
        function: of tensors, or None in place of one.
        varying: places of arguments whose first size differs from step to step, as hidden patches do.
        args, kwargs: for torch.compile.
    """
    fast = torch.compile(function, *args, **{"dynamic": False, **kwargs})

    def call(*given: Any) -> Tensor:
        for argument in (given[place] for place in varying):
            if argument is not None:
                torch._dynamo.maybe_mark_dynamic(argument, 0)
        return fast(*given)

    return call


def add(
    x: Float[Tensor, "*rows D"], branch: Float[Tensor, "*rows D"], factor: Float[Tensor, "*_"] | None
) -> Float[Tensor, "*rows D"]:
    """The residual sum, x + factor * branch, in one pass over memory."""
    return x + branch if factor is None else torch.addcmul(x, branch, factor)


def pick(x: Float[Tensor, "B T D"], only: Int[Tensor, "M"] | None) -> Float[Tensor, "B T D"] | Float[Tensor, "M D"]:
    """The tokens at `only`, flat indices of B*T; all without it."""
    return x if only is None else x.flatten(0, 1).index_select(0, only)
