"""Our GPU kernels on a CPU, by Triton's interpreter: a JSON line for each check, its name and the worst error.

TRITON_INTERPRET=1 python tests/fused_toys.py
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))

from ibot_toys import SMALL
from toys import TINY

from unmask import fused
from unmask.blocks import DropPath
from unmask.budget import synthetic_batch
from unmask.compilation import compile_blocks
from unmask.config import DataConfig
from unmask.fused import attention, attention_kernels
from unmask.methods.base import Progress
from unmask.methods.beit import BEiTConfig
from unmask.methods.codec import CodecConfig


def error(ours, exact):
    """Of the worst tensor, relative to what it should be."""
    return max(float((a.detach().double() - b.detach()).norm() / b.norm()) for a, b in zip(ours, exact, strict=True))


def doubles(tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def attended(qkv, shift, bias, heads):
    """The formula; the shift is in qkv already, as it is for the kernel."""
    q, k, v = (qkv + shift - shift.detach()).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    return ((logits if bias is None else logits + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)


def check_attention(images, tokens, heads, width, biased):
    qkv = torch.randn(images, tokens, 3 * heads * width).requires_grad_()
    shift = torch.randn(3 * heads * width).requires_grad_()
    bias = torch.randn(heads, tokens, tokens).requires_grad_() if biased else None
    grad = torch.randn(images, tokens, heads * width)
    out = attention._attend(qkv, shift, bias, heads)[0]
    out.backward(grad)
    exact = doubles((qkv, shift, bias))
    should = attended(*exact, heads)
    should.backward(grad.double())
    given = [t for t in (qkv, shift, bias) if t is not None]
    return error([out, *(t.grad for t in given)], [should, *(t.grad for t in exact if t is not None)])


def check_gelu(rows, width):
    product, bias = torch.randn(3, rows, width).mul(3).requires_grad_(), torch.randn(width).requires_grad_()
    grad = torch.randn(3, rows, width)
    out = fused.gelu(product, bias)
    out.backward(grad)
    exact = doubles((product, bias))
    should = F.gelu(exact[0] + exact[1])
    should.backward(grad.double())
    return error([out, product.grad, bias.grad], [should, *(t.grad for t in exact)])


def check_method(config, whole):
    """Loss and gradients of compiled blocks, through the kernels, beside those of PyTorch."""
    torch.manual_seed(0)
    method, batch = config.build().train(), synthetic_batch(config, DataConfig(), 4, torch.device("cpu"))
    for part in method.modules():
        if isinstance(part, DropPath):
            part.rate = 0.0  # a compiled stack draws otherwise

    def gradients():
        loss = method(batch, Progress(1, 4, 1.0)).loss
        loss.backward()
        found = [loss, *(p.grad for p in method.parameters() if p.grad is not None)]
        method.zero_grad()
        return [f.detach().double() for f in found]

    plain = gradients()
    compile_blocks(method, whole)
    fused.usable = lambda x: torch.compiler.is_compiling()
    calls, before = [], attention_kernels.forward.run
    attention_kernels.forward.run = lambda *args, **kwargs: (calls.append(1), before(*args, **kwargs))[1]
    kernels = gradients()
    assert calls, "the kernels were not used"
    return error(kernels, plain)


def main():
    torch.manual_seed(0)
    cases = {
        "attention of few tokens": (check_attention, 2, 50, 3, 32, False),
        "attention of few tokens, wide heads": (check_attention, 1, 37, 2, 64, False),
        "attention of few tokens with a bias": (check_attention, 4, 50, 2, 32, True),
        "attention": (check_attention, 2, 197, 2, 32, False),
        "attention of as many tokens as fit": (check_attention, 1, 256, 1, 64, False),
        "attention with a bias": (check_attention, 2, 197, 2, 64, True),
        "attention with a bias, an odd number of images": (check_attention, 3, 100, 1, 64, True),
        "gelu": (check_gelu, 77, 200),
        "gelu of one row": (check_gelu, 1, 96),
        "gelu of more rows than chunks": (check_gelu, 500, 128),
    }
    heads = {"width": 64, "heads": 2}  # 32 a head, of which there are kernels
    mae = dataclasses.replace(
        TINY, vit=dataclasses.replace(TINY.vit, **heads), decoder_width=64, decoder_heads=2, decoder_depth=2
    )
    ibot = dataclasses.replace(SMALL, vit=dataclasses.replace(SMALL.vit, **heads))
    usual = BEiTConfig()
    vit = dataclasses.replace(usual.vit, image_size=32, patch=8, depth=2, **heads)
    view = dataclasses.replace(usual.views[0], size=32, twin=32)
    masks = (dataclasses.replace(usual.masks[0], count=6, smallest=2),)
    codec = CodecConfig(vocab=32, width=8)
    beit = BEiTConfig(vit=vit, views=(view,), masks=masks, tokenizer=codec)
    cases |= {
        "MAE, whole": (check_method, mae, True),
        "BEiT, by block": (check_method, beit, False),
        "iBOT, whole": (check_method, ibot, True),
    }
    for name, (check, *arguments) in cases.items():
        print(json.dumps([name, check(*arguments)]), flush=True)


if __name__ == "__main__":
    main()
