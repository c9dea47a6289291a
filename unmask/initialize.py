"""Fresh weights, drawn the way each method's official code draws them."""

import math
from typing import Literal

import torch
from torch import nn

from .blocks import Block


@torch.no_grad()
def initialize(module: nn.Module, style: Literal["timm", "mae", "beit", "jax"]) -> None:
    """Draw fresh weights, in place, the way a method's official code does.

    | part                | timm, DINO, iBOT | mae                     | beit (pre-training)  | jax (ViT)      |
    |---------------------|------------------|-------------------------|----------------------|----------------|
    | Linear weight       | normal .02 (*)   | xavier uniform          | normal .02 cut at 1s | xavier uniform |
    | Linear bias         | 0                | 0                       | 0                    | MLP: N(0,1e-6) |
    | patch conv weight   | torch's default  | xavier on [D, C ph pw]  | normal .02 cut at 1s | LeCun normal   |
    | patch conv bias     | torch's default  | torch's default         | 0                    | 0              |
    | cls, pos, registers | normal .02 (*)   | normal .02; pos sin-cos | normal .02 cut at 1s | cls 0, pos .02 |
    | attn.proj, mlp.fc2  | -                | -                       | / sqrt(2 * layer)    | -              |
    | head                | as Linear        | as Linear               | as Linear            | 0              |

    (*) cut at +-2, absolute: in effect not cut. The mask token is drawn like the class token, but is
    zero in timm style (iBOT). BEiT's cut at one sigma leaves a true deviation of 0.0108.
    """
    cut = 0.02 if style == "beit" else 2.0
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            if style in ("mae", "jax"):
                nn.init.xavier_uniform_(part.weight)
            else:
                nn.init.trunc_normal_(part.weight, std=0.02, a=-cut, b=cut)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
                if style == "jax" and ".mlp." in name:
                    nn.init.normal_(part.bias, std=1e-6)
            if style == "jax" and name == "head":
                nn.init.zeros_(part.weight)
        elif isinstance(part, nn.Conv2d):  # the patch embedding
            weight, bias = part.weight, part.bias
            assert bias is not None
            if style == "mae":
                nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
            elif style == "beit":
                nn.init.trunc_normal_(weight, std=0.02, a=-cut, b=cut)
                nn.init.zeros_(bias)
            elif style == "jax":
                std = math.sqrt(1 / weight[0].numel()) / 0.87962566103423978  # flax: cut at two sigma, then rescaled
                nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(bias)
    for name, parameter in module.named_parameters():
        last = name.rpartition(".")[2]
        learned = last in ("cls_token", "reg_token", "mask_token") or (last == "pos_embed" and parameter.requires_grad)
        if not learned:
            continue
        if style == "mae":
            nn.init.normal_(parameter, std=0.02)
        elif (style == "timm" and last == "mask_token") or (style == "jax" and last == "cls_token"):
            nn.init.zeros_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=0.02, a=-cut, b=cut)
    if style == "beit":
        blocks = [part for part in module.modules() if isinstance(part, Block)]
        for i, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2.0 * i))
            block.mlp.fc2.weight.div_(math.sqrt(2.0 * i))
