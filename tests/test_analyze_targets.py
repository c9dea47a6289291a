"""A7: what tokens say of classes, of colors and of details."""

import analyze_toys
import numpy as np
import pytest
import torch

from unmask.analyze import targets


def test_tokens_that_are_the_class_have_all_its_information():
    labels = np.arange(40) % 4
    assert targets.mutual_information(np.repeat(labels[:, None], 9, 1), labels) == pytest.approx(1)
    other = np.random.default_rng(0).integers(0, 4, (40, 9))
    assert targets.mutual_information(other, labels) < 0.05
    assert targets.chance(np.repeat(labels[:, None], 9, 1), labels) < 0.3


def test_tokens_that_determine_a_property_explain_it_on_other_images():
    ids = np.random.default_rng(0).integers(0, 5, (40, 9))
    left, whole = targets.explained(ids, np.stack([ids * 2.0, ids**2.0], 2))
    assert left.sum() / whole.sum() == pytest.approx(1)


def test_tokens_that_say_nothing_explain_nothing_though_there_are_many():
    rng = np.random.default_rng(0)
    left, whole = targets.explained(rng.integers(0, 200, (40, 9)), rng.standard_normal((40, 9, 1)))
    assert left.sum() / whole.sum() < 0.05  # fitted on the same images it would be near 0.5


def test_flips_are_counted_by_image():
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert targets.flips(ids, ids).tolist() == [0, 0]
    assert targets.flips(ids, np.array([[1, 2, 3, 9], [8, 7, 6, 5]])).tolist() == [0.25, 1]


def test_gradient_energy_is_0_on_flat_cells_and_counts_steps():
    images = torch.zeros(1, 1, 4, 4)
    images[..., 1] = 1  # in each row of the left cells: up, and down outside of the cell's half
    found = targets.gradient_energy(images, (1, 2))
    assert found[0].tolist() == pytest.approx([2 * 4 / 8, 0])


@pytest.mark.parametrize("method", ["dvae", "beit", "ibot"])
def test_tokenizers_and_teachers_are_measured(method):
    subject = analyze_toys.fresh(method)
    (found,) = analyze_toys.drawn(targets.run([subject], analyze_toys.asked())).values()
    assert 0 <= found["nmi"] <= 1
    assert 0 <= found["flips_low_pass"].value <= 1
    assert found["r2_color"].low <= found["r2_color"].value <= found["r2_color"].high


def test_an_mae_has_no_tokens():
    subject = analyze_toys.fresh("mae")
    with pytest.raises(ValueError, match="targets is measured on DVAE or BEiT or IBOT"):
        targets.run([subject], analyze_toys.asked())
