"""A8: similarity of representations."""

import analyze_toys
import numpy as np
import pytest
import torch

from unmask.analyze import cka


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_rotation_is_the_same_representation():
    x = drawn(50, 8)
    q = torch.linalg.qr(drawn(8, 8, seed=1)).Q
    assert cka.linear_cka(x, x @ q) == pytest.approx(1, abs=1e-6)
    assert cka.linear_cka(x, 3 * x @ q + 7) == pytest.approx(1, abs=1e-6)
    found = cka.minibatch_cka(iter([[x[:25], x[:25] @ q], [x[25:], x[25:] @ q]]))
    assert np.allclose(found, 1, atol=1e-6)


def test_unrelated_features_are_at_0_without_bias():
    parts = [[drawn(32, 40, seed=i), drawn(32, 40, seed=100 + i)] for i in range(40)]
    assert cka.minibatch_cka(iter(parts))[0, 1] == pytest.approx(0, abs=0.05)
    assert cka.linear_cka(*parts[0]) > 0.3  # the biased one, with fewer images than features


def test_hsic_is_the_formula():
    k, l = (x @ x.T for x in (drawn(7, 3).double(), drawn(7, 2, seed=1).double()))  # noqa: E741
    n, one = 7, torch.ones(7, dtype=torch.float64)
    a, b = k - k.diag().diag(), l - l.diag().diag()
    wanted = (a @ b).trace() + one @ a @ one * (one @ b @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ a @ b @ one)
    assert float(cka.hsic(k[None], l[None])) == pytest.approx(float(wanted / (n * (n - 3))))


def test_minibatches_agree_with_all_at_once_on_many_images():
    x = drawn(2048, 6)
    y = x[:, :3] + 0.5 * drawn(2048, 3, seed=1)
    found = cka.minibatch_cka([a, b] for a, b in zip(x.split(256), y.split(256), strict=True))
    assert found[0, 1] == pytest.approx(cka.linear_cka(x, y), abs=0.02)


def test_few_images_are_refused():
    with pytest.raises(ValueError, match="needs at least 4 images and has 3"):
        cka.hsic(torch.eye(3)[None], torch.eye(3)[None])


def test_all_blocks_of_all_models_are_compared():
    found = analyze_toys.drawn(cka.run([analyze_toys.fresh(name) for name in ("mae", "beit")], analyze_toys.asked()))
    assert found["cka"].shape == (4, 4)
    assert np.allclose(np.diag(found["cka"]), 1)
    assert len(found["blocks"]) == 4
