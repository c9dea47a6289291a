"""Explicit attention against the same formula by autograd."""

import pytest
import torch

from unmask.attend import attend
from unmask.blocks import Attention


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (64, 2)])
def test_without_a_bias_attention_and_its_gradient_are_the_bits_of_the_formula(width, heads):
    torch.manual_seed(0)
    layer = Attention(width, heads)
    one = torch.randn(3, 11, 3 * width).bfloat16().requires_grad_()
    other = one.detach().clone().requires_grad_()
    q, k, v = layer.split(other)
    expected = (layer.weights(q, k, None) @ v).transpose(1, 2).flatten(2)
    found = attend(one, heads, None)
    grad = torch.randn_like(found)
    found.backward(grad)
    expected.backward(grad)
    assert torch.equal(found, expected)
    assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_a_bias_and_its_gradient_agree_with_the_formula_in_fp32():
    torch.manual_seed(0)
    layer, qkv, bias = Attention(64, 2), torch.randn(3, 11, 192), torch.randn(2, 11, 11)
    exact, rounded = (qkv.clone().requires_grad_(), qkv.bfloat16().requires_grad_())
    biases = bias.clone().requires_grad_(), bias.clone().requires_grad_()
    q, k, v = layer.split(exact)
    expected = (layer.weights(q, k, biases[0]) @ v).transpose(1, 2).flatten(2)
    found = attend(rounded, 2, biases[1])
    grad = torch.randn_like(expected)
    expected.backward(grad)
    found.backward(grad.bfloat16())
    pairs = (found, expected), (rounded.grad, exact.grad), (biases[1].grad, biases[0].grad)
    for a, b in pairs:
        assert a is not None and b is not None
        assert (a.float() - b).norm() / b.norm() < 0.02


def test_attention_in_bf16_gives_every_parameter_a_finite_gradient():
    torch.manual_seed(0)
    layer, x = Attention(64, 2, "qv", (3, 3)), torch.randn(2, 10, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
