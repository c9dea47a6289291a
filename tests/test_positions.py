"""Positions: the official tables, both resize rules, the relative index."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from unmask.positions import (
    RelativePositionBias,
    grid_of,
    relative_position_index,
    resize_pos_embed,
    sincos_2d,
)

GOLDEN = Path(__file__).parent / "golden"


def test_golden_numbers_of_the_sincos_table_768_wide_on_14x14():
    table = torch.from_numpy(sincos_2d(768, (14, 14)))
    right, below = table[1], table[14]  # (row 0, column 1) and (row 1, column 0)
    sin = torch.tensor([0.841471, 0.815251, 0.788593, 0.761720]).double()
    cos = torch.tensor([0.540302, 0.579108, 0.614915, 0.647906]).double()
    close = {"atol": 1e-6, "rtol": 0.0}
    torch.testing.assert_close(right[:4], sin, **close)  # the column fills the first half, sin then cos
    torch.testing.assert_close(right[192:196], cos, **close)
    assert right[384:388].eq(0).all()
    assert right[576:580].eq(1).all()
    assert below[:4].eq(0).all()
    torch.testing.assert_close(below[384:388], sin, **close)  # the row fills the second
    torch.testing.assert_close(table.norm(dim=1), torch.full((196,), 384**0.5).double())
    assert float(table.sum()) == pytest.approx(69594.4939, abs=1e-4)


def test_sincos_rows_of_the_prefix_are_zero_and_a_rectangle_keeps_row_and_column_apart():
    table = torch.from_numpy(sincos_2d(16, (2, 5), prefix=1))
    assert table.shape == (11, 16)
    assert table[0].eq(0).all()
    grid = table[1:].view(2, 5, 16)
    assert torch.equal(grid[0, :, :8], grid[1, :, :8])  # the same columns
    assert torch.equal(grid[:, 0, 8:], grid[:, 4, 8:])  # the same rows


def test_sincos_needs_a_width_of_fours():
    with pytest.raises(ValueError, match="divisible by 4, not 18"):
        sincos_2d(18, (2, 2))


@pytest.mark.parametrize("window", [(2, 2), (4, 4), (3, 5), (14, 14)], ids=str)
def test_golden_relative_position_index(window):
    golden = load_file(GOLDEN / "beit_relative_position_index.safetensors")
    index = relative_position_index(window)
    assert torch.equal(index, golden["outputs/index_{}x{}".format(*window)].long())


def test_golden_numbers_of_the_relative_index_on_14x14():
    index = relative_position_index((14, 14))
    assert index[0, :3].tolist() == [731, 729, 729]
    assert index[:3, 0].tolist() == [731, 730, 730]
    places = ((1, 1), (1, 2), (2, 1), (1, 15), (15, 1), (1, 196), (196, 1))
    assert [int(index[p]) for p in places] == [364, 363, 365, 337, 391, 0, 728]
    assert int(index.sum()) == 14_270_119


def test_relative_bias_is_born_zero_and_reads_its_table_by_head():
    bias = RelativePositionBias((2, 3), heads=2)
    assert bias.relative_position_bias_table.shape == (3 * 5 + 3, 2)
    assert bias().eq(0).all()
    with torch.no_grad():
        bias.relative_position_bias_table.copy_(torch.arange(36.0).view(18, 2))
    got = bias()
    assert got.shape == (2, 7, 7)
    assert torch.equal(got[1], 2.0 * relative_position_index((2, 3)) + 1)
    assert "relative_position_index" not in bias.state_dict()


@pytest.mark.parametrize("target", [(6, 6), (16, 16), (10, 20)], ids=str)
def test_resize_by_size_is_maes_and_beits_interpolation(target):
    pos = torch.randn(1, 1 + 196, 8)
    got = resize_pos_embed(pos, (14, 14), target, "size")
    image = pos[:, 1:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=target, mode="bicubic", align_corners=False)
    torch.testing.assert_close(got[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(got[:, :1], pos[:, :1])


@pytest.mark.parametrize("target", [(6, 6), (16, 16), (6, 9)], ids=str)
def test_resize_by_factor_is_dinos_interpolation(target):
    pos = torch.randn(1, 1 + 196, 8)
    got = resize_pos_embed(pos, (14, 14), target, "factor")
    image = pos[:, 1:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    factors = tuple((t + 0.1) / math.sqrt(196) for t in target)
    expected = F.interpolate(image, scale_factor=factors, mode="bicubic")
    assert expected.shape[-2:] == target
    torch.testing.assert_close(got[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(got[:, :1], pos[:, :1])


def test_the_three_resize_rules_differ_from_14_to_6():
    table = torch.randn(1, 1 + 196, 32) * 0.02
    size, factor, antialias = (
        resize_pos_embed(table, (14, 14), (6, 6), rule) for rule in ("size", "factor", "antialias")
    )
    assert (size - factor).abs().max() > 1e-3  # 0.026 on a table of at most 0.087
    assert antialias.std() < 0.8 * size.std()  # the filter averages what size= steps over


@pytest.mark.parametrize("rule", ["size", "factor", "antialias"])
def test_resize_to_the_same_grid_changes_nothing_and_between_shapes_of_one_count_something(rule):
    pos = torch.randn(1, 1 + 36, 4)
    assert resize_pos_embed(pos, (6, 6), (6, 6), rule) is pos
    assert not torch.equal(resize_pos_embed(pos, (6, 6), (4, 9), rule), pos)  # 36 patches, another shape


def test_resize_copies_every_row_before_the_patches():
    pos = torch.randn(1, 3 + 4, 4)
    assert torch.equal(resize_pos_embed(pos, (2, 2), (4, 4))[:, :3], pos[:, :3])


@pytest.mark.parametrize(
    ("image", "patch", "cure"),
    [
        ((225, 225), (16, 16), "use 224 or 240"),
        ((8, 8), (16, 16), "use 16"),
        ((224, 100), (16, 16), "a height of 224 and a width of 96 or 112"),
    ],
)
def test_an_image_that_does_not_divide_is_refused_with_the_cure(image, patch, cure):
    with pytest.raises(ValueError, match=cure):
        grid_of(image, patch)
