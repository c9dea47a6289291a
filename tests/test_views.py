"""Views against torchvision and Pillow: the geometry's distribution, and every color operation."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter, ImageOps
from skimage import data
from torchvision.transforms import RandomResizedCrop

from unmask import photometry_cpu, views
from unmask.randomness import key
from unmask.views import (
    Blur,
    Jitter,
    Plan,
    View,
    color,
    crop,
    expand,
    gray_mean,
    plan,
    random_box,
    skipped_operations,
    stack,
    twin,
)

BYTES = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
"""normalization that returns levels 0...255"""


@pytest.fixture(params=["opencv", "torch"])
def renderer(request, monkeypatch):
    """Colors by either of the two, and not by the other."""
    if request.param == "torch":
        monkeypatch.setattr(photometry_cpu, "cv2", None)
    else:
        pytest.importorskip("cv2")
        monkeypatch.setattr(views, "photometry", None)


def photo(height=120, width=160) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((width, height))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def as_is(size=(120, 160), **changes) -> Plan:
    return Plan((0, 0, *size), size, False, "bicubic", None)._replace(**changes)


def distance(levels: torch.Tensor, image: Image.Image) -> torch.Tensor:
    return (levels[0] - tensor(image).float()).abs()


def test_the_crop_geometry_has_torchvisions_distribution():
    torch.manual_seed(0)
    for size in ((375, 500), (500, 120)):  # the second often falls back to the center
        image = torch.empty(3, *size)
        theirs = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
        ours = [random_box(size, (0.2, 1.0), (3 / 4, 4 / 3), key(0, "test", i)) for i in range(3000)]
        for quantile in (0.1, 0.5, 0.9):
            a, b = (np.quantile(np.array(boxes), quantile, axis=0) for boxes in (ours, theirs))
            assert np.abs(a - b).max() <= 0.04 * max(size), (size, quantile, a, b)


def test_a_box_lies_inside_the_image_even_if_that_is_one_pixel_wide():
    for size in ((1, 1), (1, 500), (500, 1), (2, 3)):
        for i in range(50):
            top, left, height, width = random_box(size, (0.05, 1.0), (3 / 4, 4 / 3), key(0, i))
            assert height >= 1
            assert width >= 1
            assert top >= 0
            assert left >= 0
            assert top + height <= size[0]
            assert left + width <= size[1]


def test_a_crop_is_pillows_crop_and_resize_within_one_level():
    drawn = as_is(box=(7, 11, 90, 101), shape=(64, 48), flip=True)
    ours = crop(tensor(photo()), drawn)
    theirs = photo().crop((11, 7, 112, 97)).resize((48, 64), Image.Resampling.BICUBIC)
    assert (ours.int() - tensor(ImageOps.mirror(theirs)).int()).abs().max() <= 1


def test_a_twin_is_the_same_crop_by_pillows_lanczos():
    drawn = as_is(box=(7, 11, 90, 101), twin=32, flip=True)
    theirs = photo().crop((11, 7, 112, 97)).resize((32, 32), Image.Resampling.LANCZOS)
    assert torch.equal(twin(tensor(photo()), drawn), tensor(ImageOps.mirror(theirs)))
    five = twin(torch.randint(0, 256, (5, 40, 40), dtype=torch.uint8), drawn._replace(box=(0, 0, 40, 40)))
    assert five.shape == (5, 32, 32)


def test_a_plan_is_a_function_of_its_key_and_of_nothing_else():
    view = View(224, jitter=Jitter(hue=0.1, p=0.8), gray=0.2, blur=Blur(), solarize=0.2)
    assert plan(view, (300, 400), key(0, "view", 0, 5)) == plan(view, (300, 400), key(0, "view", 0, 5))
    assert plan(view, (300, 400), key(0, "view", 0, 5)) != plan(view, (300, 400), key(0, "view", 1, 5))


def test_operations_come_with_their_probabilities_and_ranges():
    view = View(96, flip=0.3, jitter=Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), gray=0.2, blur=Blur(0.5), solarize=0.1)
    plans = [plan(view, (100, 100), key(1, i)) for i in range(4000)]
    jittered = [p for p in plans if p.order]
    rates = [np.mean([p.flip for p in plans]), len(jittered) / 4000, np.mean([p.gray for p in plans])]
    rates += [np.mean([p.radius > 0 for p in plans]), np.mean([p.solarize for p in plans])]
    assert np.allclose(rates, [0.3, 0.8, 0.2, 0.5, 0.1], atol=0.03)
    assert {p.order for p in jittered} == set(permutations(range(4)))
    factors = np.array([p.factors for p in jittered])
    assert np.allclose(factors.min(0), [0.6, 0.6, 0.8, -0.1], atol=0.01)
    assert np.allclose(factors.max(0), [1.4, 1.4, 1.2, 0.1], atol=0.01)
    assert min(p.radius for p in plans if p.radius) >= 0.1
    assert max(p.radius for p in plans) <= 2.0


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize(("k", "factor"), [(0, 0.6), (0, 1.4), (1, 0.6), (1, 1.4), (2, 0.0), (2, 1.4)])
def test_brightness_contrast_and_saturation_are_pillows_exactly(k, factor):
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[k] = factor
    theirs = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)[k](photo(), factor)
    ours = color(tensor(photo())[None], stack([as_is(order=(k,), factors=tuple(factors))]), **BYTES)
    assert distance(ours, theirs).max() < 1e-3


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize("turn", [-0.1, 0.05, 0.5])
def test_hue_is_pillows_within_a_level_at_999_of_1000_pixels(turn):
    ours = color(tensor(photo())[None], stack([as_is(order=(3,), factors=(1, 1, 1, turn))]), **BYTES)
    off = distance(ours, TF.adjust_hue(photo(), turn))
    assert (off > 1).float().mean() < 1e-3
    assert off.max() <= 6


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 1.7, 2.0, 5.0])
def test_blur_is_pillows_within_three_levels_up_to_the_edges(radius):
    ours = color(tensor(photo())[None], stack([as_is(radius=radius)]), **BYTES)
    off = distance(ours, photo().filter(ImageFilter.GaussianBlur(radius)))
    assert off.max() <= 3.01
    assert off.mean() < 0.6


@pytest.mark.usefixtures("renderer")
def test_gray_and_solarize_are_pillows_exactly():
    ours = color(tensor(photo())[None], stack([as_is(gray=True)]), **BYTES)
    assert distance(ours, photo().convert("L").convert("RGB")).max() < 1e-3
    ours = color(tensor(photo())[None], stack([as_is(solarize=True)]), **BYTES)
    assert distance(ours, ImageOps.solarize(photo(), 128)).max() < 1e-3


@pytest.mark.usefixtures("renderer")
def test_jitter_runs_in_the_drawn_order_and_each_sample_gets_its_own():
    plans = [
        as_is(order=(1, 0, 2), factors=(1.3, 0.7, 1.2, 0.0)),
        as_is(),
        as_is(order=(2, 0, 1), factors=(0.7, 1.3, 0.8, 0.0), solarize=True),
    ]
    ours = color(tensor(photo()).repeat(3, 1, 1, 1), stack(plans), **BYTES)
    first = TF.adjust_saturation(TF.adjust_brightness(TF.adjust_contrast(photo(), 0.7), 1.3), 1.2)
    last = TF.adjust_contrast(TF.adjust_brightness(TF.adjust_saturation(photo(), 0.8), 0.7), 1.3)
    for image, expected in zip(ours, (first, photo(), ImageOps.solarize(last, 128)), strict=True):
        assert distance(image[None], expected).max() < 1e-3


@pytest.mark.usefixtures("renderer")
def test_jitter_before_the_crop_takes_contrast_about_the_whole_images_gray():
    box = (40, 30, 60, 80)
    drawn = as_is(box=box, shape=(60, 80), order=(0, 1), factors=(0.9, 1.4, 1.0, 0.0))
    drawn = drawn._replace(gray_mean=gray_mean(tensor(photo())))
    ours = color(crop(tensor(photo()), drawn)[None], stack([drawn]), **BYTES)
    whole = TF.adjust_contrast(TF.adjust_brightness(photo(), 0.9), 1.4)
    assert distance(ours, whole.crop((30, 40, 110, 100))).max() <= 1.01


def test_without_photometric_operations_color_only_normalizes():
    images = torch.randint(0, 256, (2, 3, 120, 160), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plans = stack([as_is(), as_is()])
    expected = TF.normalize(images / 255, mean, std)
    assert plans.steps == ()
    assert torch.allclose(color(images, plans, mean, std), expected, atol=1e-6)


def test_operations_that_need_rgb_are_left_out_for_other_channels_and_named():
    view = View(32, jitter=Jitter(hue=0.1), gray=0.2)
    assert skipped_operations(view, 3) == []
    assert skipped_operations(View(), 5) == []
    assert skipped_operations(view, 5) == ["saturation", "hue", "gray"]
    images = torch.randint(0, 256, (1, 5, 120, 160), dtype=torch.uint8)
    done = color(images, stack([as_is(order=(2, 3), factors=(1, 1, 0.2, 0.3), gray=True)]), (0.0,) * 5, (1 / 255,) * 5)
    assert torch.allclose(done, images.float(), atol=1e-3)


def test_an_image_of_one_pixel_is_enlarged():
    image = torch.full((3, 1, 1), 9, dtype=torch.uint8)
    assert crop(image, plan(View(16), (1, 1), key(0))).shape == (3, 16, 16)


def test_a_view_of_count_ten_fills_ten_places():
    assert [view.size for view in expand((View(224), View(96, count=10)))] == [224] + [96] * 10


def test_a_blur_too_wide_for_its_kernel_is_refused():
    with pytest.raises(ValueError, match="blur radius"):
        Blur(radius=(0.1, 9.0))
