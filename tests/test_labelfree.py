import math

import numpy as np
import pytest
import torch
from test_features import Photos, small_vit

from unmask.evaluate import EvalModel
from unmask.evaluate.labelfree import LabelFree, alignment, effective_rank, lidar, rankme, uniformity


def test_rankme_counts_orthogonal_directions_and_not_copies():
    assert rankme(torch.eye(6).repeat(4, 1)) == pytest.approx(6, abs=1e-4)
    assert rankme(torch.ones(20, 5)) == pytest.approx(1, abs=1e-4)


def test_rankme_is_the_entropy_of_singular_values_not_of_their_squares():
    p = np.array([3, 1]) / 4
    expected = math.exp(-(p * np.log(p)).sum())
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected, abs=1e-4)


def test_the_effective_rank_ignores_the_mean_and_weighs_by_variance():
    cross = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    p = np.array([1, 4]) / 5
    expected = math.exp(-(p * np.log(p)).sum())
    assert effective_rank(cross) == pytest.approx(expected, abs=1e-9)
    assert effective_rank(cross + 100) == pytest.approx(expected, abs=1e-6)
    assert effective_rank(torch.full((7, 3), 2.5)) == 1.0


def test_lidar_counts_directions_between_images_and_forgives_what_views_change():
    corners = torch.cat([torch.eye(4), -torch.eye(4)])[:, None].repeat(1, 2, 1)  # [S Q D], views agree
    assert lidar(corners) == pytest.approx(4, abs=1e-6)
    noisy = corners.clone()
    noisy[:, 0, 3] += 30  # views differ along one direction a lot: it no longer tells images apart
    noisy[:, 1, 3] -= 30
    assert lidar(noisy) == pytest.approx(3, abs=0.01)


def test_alignment_is_the_squared_distance_on_the_sphere():
    x, y = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    assert alignment(x, x * 7) == pytest.approx(0, abs=1e-12)
    assert alignment(x, y) == pytest.approx((2 + 0) / 2)
    assert alignment(x, -x) == pytest.approx(4)


def test_uniformity_of_poles_of_one_point_and_of_independent_directions():
    assert uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.eye(9)) == pytest.approx(-4)


def test_a_collapsed_backbone_is_seen_without_labels():
    source, vit = Photos(12), small_vit()
    model = EvalModel("toy", vit, (32, 32), (0.5,) * 3, (0.25,) * 3)
    measure = LabelFree(source, max_images=10)
    healthy = measure(model)
    assert healthy == measure(model)
    assert vit.training
    torch.nn.init.zeros_(vit.norm.weight)
    torch.nn.init.ones_(vit.norm.bias)
    dead = measure(model)
    for pool in ("cls", "mean"):
        assert dead[f"labelfree/rankme/{pool}"] == pytest.approx(1, abs=1e-3)
        assert dead[f"labelfree/uniformity/{pool}"] == pytest.approx(0, abs=1e-9)
        assert healthy[f"labelfree/rankme/{pool}"] > 1.5
        assert healthy[f"labelfree/uniformity/{pool}"] < -1e-4
