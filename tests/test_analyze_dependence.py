"""A6: from how far away hidden patches are predicted."""

import analyze_toys
import numpy as np
import pytest
import torch

from unmask.analyze import dependence
from unmask.analyze.subject import draw_masks, look, normalized


def test_nothing_seen_gains_nothing_and_everything_seen_gains_all():
    gains = dependence.gain(np.array([2.0, 1.5, 1.2, 1.0]))
    assert gains.tolist() == pytest.approx([0, 0.5, 0.8, 1])
    assert np.isnan(dependence.gain(np.array([1.0, 1.0]))).all()  # the context does not help


def test_reach_lies_between_measured_radii():
    gains = np.array([0, 0.4, 0.8, 1.0])
    assert dependence.reach([0, 1, 2, 3], gains, 0.5) == pytest.approx(1.25)
    assert dependence.reach([0, 1, 2, 3], gains, 0.9) == pytest.approx(2.5)
    assert np.isnan(dependence.reach([0, 1], np.array([0.0, np.nan]), 0.5))


def test_a_window_is_square_and_cut_by_the_border():
    found = dependence.window((4, 5), torch.tensor([6, 0]), 1).view(2, 4, 5)
    assert found[0].nonzero().tolist() == [[r, c] for r in range(3) for c in range(3)]
    assert found[1].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert dependence.window((4, 5), torch.tensor([6]), 4).all()


@pytest.mark.parametrize("method", ["mae", "beit", "ibot"])
def test_every_method_is_scored_by_its_own_loss(method):
    subject = analyze_toys.fresh(method)
    (found,) = analyze_toys.drawn(dependence.run([subject], analyze_toys.asked())).values()
    assert found["radii"] == [0, 1, 2, 3]
    assert np.isfinite(found["loss"].value).all()
    gains = found["gain"].value
    assert np.isnan(gains).all() or (gains[0] == 0 and gains[-1] == 1)


def test_the_whole_context_gives_the_loss_that_mae_trains_on():
    subject = analyze_toys.fresh("mae")
    ask = analyze_toys.asked()
    images = normalized(subject, look(subject, ask.data, ask).images)
    mask, method = draw_masks(subject, 12, 0), subject.method
    error = (method.reconstruct(images, mask) - method.target(images)).square().mean(-1)
    at = mask.float().argmax(1)
    found = dependence.loss_at(method, images, None, ~mask, at)
    assert torch.allclose(found, error[torch.arange(12), at], atol=1e-5)


def test_what_lies_outside_the_window_does_not_matter():
    subject = analyze_toys.fresh("mae")
    at = torch.tensor([0, 0])
    seen = dependence.window((4, 4), at, 1).clone()
    seen[:, 0] = False
    images = torch.rand(1, 3, 16, 16).repeat(2, 1, 1, 1)
    images[1, :, 8:] = 9.0
    a, b = dependence.loss_at(subject.method, images, None, seen, at)
    assert a == pytest.approx(float(b), abs=1e-6)


def test_dino_hides_nothing():
    subject = analyze_toys.fresh("dino")
    with pytest.raises(ValueError, match="is a DINO, which hides no patches"):
        dependence.run([subject], analyze_toys.asked())
