"""The projection head of iBOT and DINO: an MLP to a bottleneck on the unit sphere, then prototypes.

    z = normalize(mlp(x))        a direction in the bottleneck space            [_ d]
    logits = z . w_k g_k         cosines with K unit vectors w_k, if all g_k = 1   [_ K]

The MLP is one for [CLS] and patches. Prototypes are shared by both, or each has its own. As they are
linear in z, the mean of the logits of many tokens is the logits of their mean z: a center over all
patches costs one row, not one row a patch.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ..blocks import Compilable, compiled
from ..initialize import initialize

Norm = Literal["none", "ln", "bn"]
Act = Literal["gelu", "relu"]


class Head(Compilable):
    """MLP, l2 normalization, weight-normed prototypes (`DINOHead` and `iBOTHead` of the original).

    Args:
        width: features of a token, D.
        prototypes: K of the [CLS] token; of patches too, unless they have their own.
        patch_prototypes: K of the patches' own prototypes; None: shared.
        hidden: units of the MLP's hidden layers.
        bottleneck: d, features in which cosines are taken.
        layers: linear layers of the MLP, at least 1.
        std: of the MLP's first weights. With 0.02 a hidden layer of 2048 units keeps the length of what it gets;
            one of 256 shrinks it threefold, until the biases' first steps drown the image.
        act, norm: after each hidden layer. As in the original, `bn` is one BatchNorm for all layers.
        unit: keep the length g of every prototype at 1; False trains g.
    Raises:
        ValueError: no layer or no bottleneck.
    """

    def __init__(
        self,
        width: int,
        prototypes: int,
        patch_prototypes: int | None = None,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        std: float = 0.02,
        act: Act = "gelu",
        norm: Norm = "none",
        unit: bool = True,
    ):
        super().__init__()
        if layers < 1 or bottleneck < 1:
            raise ValueError(
                f"head with {layers} layers and a bottleneck of {bottleneck}: both are at least 1; use 3, 256"
            )
        widths = [width] + [hidden] * (layers - 1) + [bottleneck]
        linear = [nn.Linear(i, o) for i, o in pairwise(widths)]
        between: list[nn.Module] = [nn.GELU() if act == "gelu" else nn.ReLU()]
        if norm != "none":
            between.insert(0, nn.BatchNorm1d(hidden) if norm == "bn" else nn.LayerNorm(hidden))
        parts = [part for layer in linear[:-1] for part in (layer, *between)]
        self.mlp = nn.Sequential(*parts, linear[-1]) if parts else linear[0]
        initialize(self, "timm")
        with torch.no_grad():
            for layer in linear:
                layer.weight.mul_(std / 0.02)
        # made after `initialize`: the original leaves the directions as torch.nn.Linear draws them
        self.last_layer = _prototypes(bottleneck, prototypes, unit)
        self.patch_layer = None if patch_prototypes is None else _prototypes(bottleneck, patch_prototypes, unit)

    def embed(self, tokens: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows d"]:
        """Direction of each token in the bottleneck space, fp32 and of length 1."""
        return self.compiled(tokens) if self.compiled is not None and self.training else self.directions(tokens)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile `embed`."""
        self.compiled = compiled(self.directions, (0,), *args, **kwargs)

    def directions(self, tokens: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows d"]:
        z = self.mlp(tokens.reshape(-1, tokens.shape[-1]))
        return F.normalize(z.float(), dim=-1).reshape(*tokens.shape[:-1], -1)

    def cls(self, z: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows K"]:
        """Logits of [CLS] tokens."""
        return self.last_layer(z)

    def patches(self, z: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows K"]:
        """Logits of patches, by their own prototypes or the shared ones."""
        return self.last_layer(z) if self.patch_layer is None else self.patch_layer(z)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B N K2"]]:
        """Logits of all tokens of an image, the class token first: for analysis; training needs fewer."""
        z = self.embed(tokens)
        return self.cls(z[:, 0]), self.patches(z[:, 1:])

    def last(self) -> list[nn.Parameter]:
        """The prototypes' parameters, which stay frozen at first."""
        layers = [self.last_layer] if self.patch_layer is None else [self.last_layer, self.patch_layer]
        return [parameter for layer in layers for parameter in layer.parameters()]


def _prototypes(features: int, count: int, unit: bool) -> nn.Module:
    layer = weight_norm(nn.Linear(features, count, bias=False))
    length = layer.get_parameter("parametrizations.weight.original0")  # g; original1 is the direction v
    nn.init.ones_(length)
    length.requires_grad_(not unit)
    return layer
