"""Cross-entropy over wide logits: torch's value and gradient, a few rows at a time."""

import pytest
import torch
import torch.nn.functional as F

from unmask.methods import logits as module
from unmask.methods.logits import cross_entropy


def scores(rows: int, ids: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(rows, ids, generator=generator)
    return logits.to(dtype).requires_grad_(), torch.randint(ids, (rows,), generator=generator)


@pytest.mark.parametrize("few", [1, 3, 100])
def test_value_and_gradient_are_torchs(monkeypatch, few):
    monkeypatch.setattr(module, "AT_A_TIME", 50 * few)
    logits, target = scores(10, 50)
    found = cross_entropy(logits, target)
    known = F.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(found.nats, known)
    assert torch.equal(found.best, logits.argmax(-1))
    ours, torchs = (torch.autograd.grad(3 * loss, logits)[0] for loss in (found.nats, known))
    torch.testing.assert_close(ours, torchs)


def test_the_gradient_is_that_of_small_differences():
    logits, target = scores(3, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, target).nats, logits)
    assert torch.autograd.gradgradcheck(lambda x: cross_entropy(x, target).nats, logits)


def test_bf16_logits_are_scored_in_fp32():
    logits, target = scores(64, 1000, torch.bfloat16)
    found, exact = cross_entropy(logits, target), logits.detach().float().requires_grad_()
    known = F.cross_entropy(exact, target, reduction="sum")
    assert found.nats.dtype == torch.float32
    torch.testing.assert_close(found.nats, known, rtol=1e-6, atol=0)
    (found.nats / 64).backward()
    (known / 64).backward()
    assert logits.grad is not None and exact.grad is not None
    torch.testing.assert_close(logits.grad.float(), exact.grad, rtol=2**-8, atol=0)  # rounded once, at its end


def test_confident_logits_neither_overflow_nor_lose_their_loss():
    logits = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]], requires_grad=True)
    found = cross_entropy(logits, torch.tensor([1, 1]))
    assert found.nats.item() == 1000.0
    found.nats.backward()
    assert logits.grad is not None and logits.grad.tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_no_tokens_cost_nothing_and_keep_their_gradient():
    logits, target = scores(0, 7)
    found = cross_entropy(logits, target)
    found.nats.backward()
    assert found.nats.item() == 0.0 and logits.grad is not None and logits.grad.shape == (0, 7)
