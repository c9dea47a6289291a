"""What training with labels adds to a view: RandAugment, erasing, mixing, each a named draw."""

import numpy as np
import pytest
import torch

from unmask import randaugment
from unmask.erasing import AREA, Erased, draw_erased, erase
from unmask.mixing import Mix, Mixed, draw_mixed, mix_images, neighbors, own_shares, plan_mixed
from unmask.randaugment import RandAugment
from unmask.randomness import key
from unmask.views import View, color, crop, plan, stack

PLAIN = (0.0,) * 3, (1.0,) * 3


def image(channels=3, side=12):
    return torch.from_numpy(key(0, "image").integers(0, 256, (channels, side, side), np.uint8))


def test_randaugment_draws_every_operation_about_as_often_as_timm_does():
    drawn = [randaugment.draw(RandAugment(), key(0, "draw", i)) for i in range(6000)]
    names = [name for operations in drawn for name, _ in operations]
    counts = {name: names.count(name) / len(names) for name in set(names)}
    assert len(counts) == 15
    assert all(abs(share - 1 / 15) < 0.02 for share in counts.values())
    assert len(names) / len(drawn) == pytest.approx(1.0, abs=0.05)  # two drawn, each done by half


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # timm's level functions at magnitude 9
        ("rotate", {27.0, -27.0}),
        ("shear_x", {0.27, -0.27}),
        ("translate_y", {0.405, -0.405}),
        ("posterize", {1.0}),
        ("solarize", {26.0}),
        ("solarize_add", {99.0}),
        ("contrast", {1.81, 0.19}),
        ("sharpness", {1.81, 0.19}),
    ],
)
def test_amounts_are_timm_s_at_magnitude_9(name, expected):
    policy = RandAugment(spread=0.0, p=1.0)
    drawn = [each for i in range(600) for each in randaugment.draw(policy, key(1, i))]
    amounts = {round(amount, 6) for drawn_name, amount in drawn if drawn_name == name}
    assert amounts == expected


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_every_operation_renders_any_number_of_channels(channels):
    before = image(channels)
    for name in randaugment._RENDER:
        amount = {"posterize": 2, "solarize": 100, "solarize_add": 30}.get(name, 0.3)
        after = randaugment.apply(before, ((name, amount),), (10, 20, 30))
        assert after.shape == before.shape and after.dtype == torch.uint8
    assert torch.equal(randaugment.apply(before, (("invert", 0.0),), (0,)), 255 - before)
    assert torch.equal(randaugment.apply(before, (), ()), before)


def test_a_shifted_image_shows_the_fill():
    after = randaugment.apply(image(), (("translate_x", 0.5),), (10, 20, 30))
    assert after[:, :, -1].unique(dim=1).flatten().tolist() == [10, 20, 30]


def test_a_view_with_randaugment_is_drawn_again_from_its_key():
    view = View(8, randaugment=RandAugment(p=1.0), erase=1.0)
    first, again = (plan(view, (12, 12), key(3, "view")) for _ in range(2))
    assert first == again and len(first.augment) == 2 and first.erased is not None
    assert torch.equal(crop(image(), first), crop(image(), again))


def test_a_view_without_them_draws_what_it_always_drew():
    plain, more = View(8), View(8, randaugment=RandAugment(), erase=0.5)
    assert plan(plain, (12, 12), key(3, "view"))[:5] == plan(more, (12, 12), key(3, "view"))[:5]


def test_erased_boxes_are_inside_and_of_timm_s_areas():
    for i in range(300):
        erased = draw_erased((20, 30), key(0, "erase", i))
        assert erased is not None
        top, left, h, w = erased.box
        assert top >= 0 and top + h <= 20 and left >= 0 and left + w <= 30
        assert AREA[0] * 0.7 < h * w / 600 < AREA[1] * 1.2


def test_erasing_is_noise_in_the_box_and_nothing_elsewhere():
    images = torch.full((2, 3, 16, 16), 5.0)
    erase(images, ((1, Erased((2, 4, 6, 8), 7)),))
    assert (images[0] == 5).all()
    box = images[1, :, 2:8, 4:12].clone()
    assert abs(float(box.mean())) < 0.4 and 0.7 < float(box.std()) < 1.3
    images[1, :, 2:8, 4:12] = 5
    assert (images == 5).all()


def test_mixup_blends_neighbors_and_their_shares_say_how():
    images = torch.arange(4.0).view(4, 1, 1, 1).repeat(1, 1, 2, 2)
    mixed = (Mixed(0, 2, 0.75, None), Mixed(2, 4, 1.0, None))
    mix_images(images, mixed)
    assert images[:, 0, 0, 0].tolist() == [0.25, 0.75, 2.0, 3.0]
    assert own_shares(mixed).tolist() == [0.75, 0.75, 1.0, 1.0]


def test_cutmix_pastes_the_neighbor_s_box():
    images = torch.arange(2.0).view(2, 1, 1, 1).repeat(1, 1, 4, 4)
    mix_images(images, (Mixed(0, 2, 0.75, (0, 2, 0, 2)),))
    assert images[0, 0, :2, :2].eq(1).all() and images[0, 0].sum() == 4
    assert images[1, 0, :2, :2].eq(0).all() and images[1, 0].sum() == 12


def test_the_share_of_cutmix_is_the_area_that_stays():
    for i in range(200):
        weight, box = draw_mixed(Mix(mixup=0.0), (10, 20), key(0, "mix", i))
        top, bottom, left, right = box
        assert weight == pytest.approx(1 - (bottom - top) * (right - left) / 200)


def test_half_is_cutmix_and_p_leaves_images_alone():
    boxes = [draw_mixed(Mix(), (8, 8), key(0, "m", i))[1] for i in range(1000)]
    assert 430 < sum(box is not None for box in boxes) < 570
    alone = [draw_mixed(Mix(p=0.5), (8, 8), key(0, "m", i)) == (1.0, None) for i in range(1000)]
    assert 430 < sum(alone) < 570


def test_a_draw_is_shared_by_positions_not_by_micro_batches():
    mix = Mix(share=4)
    whole = plan_mixed(mix, (8, 8), 0, 0, range(8, 16))
    parts = [run for start in (8, 10, 12, 14) for run in plan_mixed(mix, (8, 8), 0, 0, range(start, start + 2))]
    assert [(run.first, run.last) for run in whole] == [(0, 4), (4, 8)]
    assert [run[2:] for run in parts] == [whole[0][2:], whole[0][2:], whole[1][2:], whole[1][2:]]
    assert plan_mixed(None, (8, 8), 0, 0, range(4)) == ()


def test_the_plan_s_mixture_is_rendered_after_normalization():
    crops = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 255)])
    plans = stack([plan(View(4), (4, 4), key(0, i)) for i in range(2)], (Mixed(0, 2, 0.75, None),))
    assert color(crops, plans, *PLAIN)[:, 0, 0, 0].tolist() == pytest.approx([0.25, 0.75])


def test_neighbors_are_pairs():
    assert neighbors(torch.arange(6.0)).tolist() == [1, 0, 3, 2, 5, 4]


@pytest.mark.parametrize(("values", "message"), [({"share": 3}, "even"), ({"mixup": 0.0, "cutmix": 0.0}, "no Mix")])
def test_a_mix_that_mixes_nothing_or_unevenly_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Mix(**values)
