"""Masks against the official generators: bit by bit from their draws, in distribution from ours."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import ndimage

from unmask import masks
from unmask.masks import (
    BlockMask,
    MaskPolicy,
    RandomMask,
    ScatterMask,
    block_mask,
    keep_count,
    shuffle,
    visible_indices,
)
from unmask.randomness import key

GOLDEN = Path(__file__).parent / "golden"
IBOT = ((0.0, 0.0), (0.3, 0.2))


class PythonDraws(np.random.Generator):
    """Deals the numbers that the official loaders draw: Python's `random`, and NumPy's legacy shuffle."""

    def __init__(self, seed):
        super().__init__(np.random.PCG64(0))
        self.python, self.legacy = random.Random(seed), np.random.RandomState(seed)

    def random(self):
        return self.python.random()

    def integers(self, n):
        return self.python.randrange(n)

    def shuffle(self, x):
        self.legacy.shuffle(x)


def golden_policies():
    """(case, generator name, our policy, grid, seed) for every generator of the two golden cases."""
    for case in ("beit_blockwise_masking", "ibot_loader_masks"):
        config = json.loads((GOLDEN / f"{case}.json").read_text())["config"]
        for name, g in config["generators"].items():
            if case.startswith("beit"):
                policy = BlockMask(
                    count=g["num_masking_patches"],
                    smallest=g["min_num_patches"],
                    largest=g["max_num_patches"],
                    aspect=(g["min_aspect"], g["max_aspect"] or 1 / g["min_aspect"]),
                )
                grid = tuple(g["input_size"])
            else:
                mean, spread = g["pred_ratio"], g["pred_ratio_var"]
                ratios = tuple(zip(mean, spread, strict=True)) if isinstance(mean, list) else ((mean, spread),)
                block = g["pred_shape"] == "block"
                policy = BlockMask(ratios=ratios, smallest=None) if block else ScatterMask(ratios)
                grid = tuple(g["grid"])
            yield pytest.param(case, name, policy, grid, g["seed"], id=name)


golden_generators = pytest.mark.parametrize(("case", "name", "policy", "grid", "seed"), list(golden_policies()))


@golden_generators
def test_golden_masks_are_equal_from_the_official_draws(case, name, policy, grid, seed):
    golden = load_file(GOLDEN / f"{case}.safetensors")[f"outputs/masks_{name}"].numpy()
    rng = PythonDraws(seed)
    for i, mask in enumerate(golden):
        np.testing.assert_array_equal(policy(grid, rng), mask, err_msg=f"mask {i}")


@golden_generators
def test_golden_statistics_hold_with_our_generator(case, name, policy, grid, seed, monkeypatch):
    n, population = 2000, 4000 if case.startswith("beit") else 3000
    golden = json.loads((GOLDEN / f"{case}.json").read_text())["outputs_json"][name]["stats_population"]
    rectangles = record_rectangles(monkeypatch)
    drawn, first, per_mask = [], [], []
    for i in range(n):
        drawn.append(policy(grid, key(0, "test", name, i)))
        per_mask.append(len(rectangles))
        first += rectangles[:1]
        rectangles.clear()
    ours = statistics(np.stack(drawn), np.array(first), np.array(per_mask))

    for statistic, expected in golden.items():
        if isinstance(expected, dict) and "stderr" in expected:
            sample = ours[statistic]
            limit = 4 * math.hypot(sample.std() / math.sqrt(len(sample)), expected["stderr"])
            assert abs(sample.mean() - expected["mean"]) <= limit, statistic
        elif statistic == "fraction_empty":
            limit = 4 * math.sqrt(expected * (1 - expected) * (1 / n + 1 / population))
            assert abs((ours["masked_count"] == 0).mean() - expected) <= limit, statistic

    p = load_file(GOLDEN / f"{case}.safetensors")[f"outputs/population_freq_{name}"].numpy()
    close = np.abs(np.mean(drawn, axis=0) - p) <= 4 * np.sqrt(p * (1 - p) * (1 / n + 1 / population))
    assert close.mean() >= 0.99


def record_rectangles(monkeypatch):
    """Collect the bounding box (h, w) of what each accepted rectangle hid."""
    boxes, original = [], masks._hide_block

    def recorded(mask, *args):
        before = mask.copy()
        new = original(mask, *args)
        if new:
            rows, columns = np.nonzero(mask & ~before)
            boxes.append((np.ptp(rows) + 1, np.ptp(columns) + 1))
        return new

    monkeypatch.setattr(masks, "_hide_block", recorded)
    return boxes


def statistics(drawn, first, per_mask):
    """Samples of the statistics in the sidecars, by their names there."""
    parts = [ndimage.label(mask)[0] for mask in drawn]
    pairs = (drawn[:, 1:] & drawn[:, :-1]).sum((1, 2)) + (drawn[:, :, 1:] & drawn[:, :, :-1]).sum((1, 2))
    samples = {
        "masked_count": drawn.sum((1, 2)),
        "connected_components(4-neighbour) per mask": np.array([part.max() for part in parts]),
        "component_size": np.concatenate([np.bincount(part.ravel())[1:] for part in parts]),
        "adjacent_masked_pairs(4-neighbour) per mask": pairs,
        "adjacent_masked_pairs(4-neighbour)": pairs,
        "rows_touched": drawn.any(2).sum(1),
        "cols_touched": drawn.any(1).sum(1),
        "rectangles_per_mask": per_mask,
    }
    if len(first):
        log_aspect = np.log(first[:, 0] / first[:, 1])
        samples["first_rectangle_log_aspect(log h/w)"] = log_aspect
        samples["first_rectangle_abs_log_aspect"] = np.abs(log_aspect)
        samples["first_rectangle_area"] = first.prod(1)
    return samples


def test_golden_keep_counts_round_as_mae_does():
    table = json.loads((GOLDEN / "mae_forward.json").read_text())["outputs_json"]
    for case, keep in table["len_keep_table (official int(L*(1-ratio)))"].items():
        patches, ratio = (part.split("=")[1] for part in case.split(","))
        assert keep_count(int(patches), float(ratio)) == keep, case


def test_golden_shuffle_has_maes_indices():
    golden = load_file(GOLDEN / "mae_forward.safetensors")
    got = shuffle(golden["inputs/noise"], keep_count(16, 0.75))
    for field in ("ids_shuffle", "ids_keep", "ids_restore"):
        assert torch.equal(getattr(got, field), golden[f"outputs/{field}"]), field
    assert torch.equal(got.mask, golden["outputs/mask"].bool())


grids = st.tuples(st.integers(1, 16), st.integers(1, 16))
seeds = st.integers(0, 2**32)


@given(grids, st.floats(0, 1), seeds, st.integers(0, 20), st.integers(1, 20) | st.none())
def test_block_mask_never_hides_more_than_count(grid, share, seed, smallest, largest):
    count = share * grid[0] * grid[1]
    mask = block_mask(grid, count, smallest=smallest, largest=largest, rng=key(seed, "test"))
    assert mask.shape == grid
    assert mask.dtype == bool
    assert mask.sum() <= count


@given(grids, st.floats(0, 0.99), seeds)
def test_random_mask_leaves_exactly_keep_count(grid, ratio, seed):
    mask = RandomMask(ratio)(grid, key(seed, "test"))
    assert mask.shape == grid
    assert (~mask).sum() == keep_count(mask.size, ratio)


@given(grids, st.floats(0, 1), seeds)
def test_scatter_mask_hides_the_whole_patches_of_its_ratio(grid, ratio, seed):
    mask = ScatterMask(((ratio, 0.0),))(grid, key(seed, "test"))
    assert mask.sum() == int(ratio * grid[0] * grid[1])


@pytest.mark.parametrize("policy", [RandomMask(), ScatterMask(((0.4, 0.1),)), BlockMask(), BlockMask(count=75)])
def test_the_same_place_has_the_same_mask(policy):
    first, again = (policy((14, 14), key(3, "mask", 0, 7)) for _ in range(2))
    other = policy((14, 14), key(3, "mask", 0, 9))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_random_mask_hides_every_patch_equally_often():
    rate = np.mean([RandomMask(0.6)((4, 5), key(0, "test", i)) for i in range(2000)], axis=0)
    assert np.abs(rate - 0.6).max() < 5 * math.sqrt(0.6 * 0.4 / 2000)


def test_block_masks_defaults_are_beits_75_of_196():
    for i in range(50):
        by_ratio, by_count = (policy((14, 14), key(0, i)) for policy in (BlockMask(), BlockMask(count=75)))
        np.testing.assert_array_equal(by_ratio, by_count)


@pytest.mark.parametrize(("side", "smallest"), [(4, None), (6, None), (8, None), (8, 16), (14, 16), (16, 16), (24, 16)])
def test_block_mask_comes_near_its_share_on_any_grid(side, smallest):
    policy = BlockMask(smallest=smallest)
    hidden = [policy((side, side), key(0, i)).mean() for i in range(200)]
    assert max(hidden) <= 75 / 196
    assert np.mean(hidden) > 0.9 * 75 / 196


def test_no_rectangle_spans_a_side(monkeypatch):
    boxes = record_rectangles(monkeypatch)
    for i in range(200):
        BlockMask(count=60, smallest=4)((8, 12), key(0, i))
    assert max(h for h, _ in boxes) < 8
    assert max(w for _, w in boxes) < 12


def test_ibots_recipe_leaves_half_of_the_crops_whole():
    counts = np.array([BlockMask(IBOT, smallest=None)((14, 14), key(0, i)).sum() for i in range(2000)])
    assert abs((counts == 0).mean() - 0.5) < 0.05
    assert abs(counts[counts > 0].mean() / 196 - 0.293) < 0.015


@given(st.integers(1, 30), st.integers(1, 6), seeds, st.data())
def test_visible_indices_are_the_unmasked_patches_in_raster_order(patches, batch, seed, data):
    keep = data.draw(st.integers(0, patches))
    mask = shuffle(torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)), keep).mask
    indices = visible_indices(mask, keep)
    assert indices.shape == (batch, keep)
    for row, visible in zip(mask, indices, strict=True):
        assert visible.tolist() == (~row).nonzero().flatten().tolist()


@settings(max_examples=30)
@given(st.integers(1, 40), seeds)
def test_restore_undoes_shuffle(patches, seed):
    noise = torch.rand(2, patches, generator=torch.Generator().manual_seed(seed))
    got = shuffle(noise, patches // 2)
    ids = torch.arange(patches).expand(2, -1)
    assert torch.equal(got.ids_shuffle.gather(1, got.ids_restore), ids)
    assert torch.equal((~got.mask).sum(1), torch.tensor([patches // 2] * 2))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: RandomMask(1.0), ["ratio 1.0", "0.75"]),
        (lambda: BlockMask(ratios=()), ["no ratio"]),
        (lambda: BlockMask(ratios=((0.3, 0.4),)), ["0.3 +- 0.4"]),
        (lambda: ScatterMask(ratios=((0.9, 0.2),)), ["0.9 +- 0.2"]),
        (lambda: BlockMask(count=75)((8, 8), key(0)), ["75", "8x8"]),
    ],
)
def test_impossible_masks_are_refused_by_value_and_place(make, names):
    with pytest.raises(ValueError) as error:
        make()
    assert all(name in str(error.value) for name in names)


def test_a_policy_without_a_draw_says_what_to_define():
    with pytest.raises(TypeError, match="__call__"):
        MaskPolicy()((2, 2), key(0))
