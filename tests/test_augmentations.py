"""The crops of iBOT and DINO against the official pipeline of Pillow and torchvision.

Two bounds. Plan by plan, every pixel that Pillow renders from the same parameters is met to a few levels. Draw by
draw, six numbers that describe a crop have the same distribution: their Kolmogorov-Smirnov distance over 700 crops
each is at most 0.1 (two samples of one distribution exceed 0.087 once in a hundred), and every constant that toy
versions get wrong exceeds it.
"""

import dataclasses
import random

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp
from skimage import data

from unmask import photometry_cpu
from unmask.methods.ibot import GLOBAL_1, GLOBAL_2, LOCAL
from unmask.randomness import key
from unmask.views import Blur, Jitter, Plan, View, color, crop, plan, stack

CROPS = 700
BOUND = 0.1
"""greatest distance between the two distribution functions of one number"""
POLICIES = {"first global": GLOBAL_1, "second global": GLOBAL_2, "local": LOCAL}
PHOTO = Image.fromarray(data.astronaut()).resize((160, 120))
PIXELS = torch.from_numpy(np.array(PHOTO)).permute(2, 0, 1)


def small(view: View) -> View:
    """A policy of the recipe, at 40 px."""
    return dataclasses.replace(view, size=40, count=1)


def ours(plans: list[Plan]) -> np.ndarray:
    crops = torch.stack([crop(PIXELS, drawn) for drawn in plans])
    return color(crops, stack(plans), (0.0,) * 3, (1 / 255,) * 3).permute(0, 2, 3, 1).numpy()


def rendered(drawn: Plan) -> np.ndarray:
    """What the official transforms make of one plan's parameters."""
    top, left, height, width = drawn.box
    image = TF.resized_crop(PHOTO, top, left, height, width, list(drawn.shape), T.InterpolationMode.BICUBIC)
    image = TF.hflip(image) if drawn.flip else image
    adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for k in drawn.order:
        image = adjust[k](image, drawn.factors[k])
    image = image.convert("L").convert("RGB") if drawn.gray else image
    image = image.filter(ImageFilter.GaussianBlur(drawn.radius)) if drawn.radius else image
    return np.array(ImageOps.solarize(image) if drawn.solarize else image).astype(np.float32)


def official(view: View) -> T.Compose:
    """`DataAugmentationiBOT` of main_ibot.py: its transforms in its order, with one view's constants."""
    jitter = view.jitter
    return T.Compose(
        [
            T.RandomResizedCrop(view.size, scale=view.scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(p=0.5),
            T.RandomApply(
                [T.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)], p=jitter.p
            ),
            T.RandomGrayscale(p=view.gray),
            lambda image: (
                image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
                if random.random() <= view.blur.p
                else image
            ),
            lambda image: ImageOps.solarize(image) if random.random() < view.solarize else image,
        ]
    )


def described(crops: np.ndarray) -> dict[str, np.ndarray]:
    """Six numbers a crop: what brightness, contrast, color, blur, solarize and mirroring would change."""
    gray = crops.mean(-1)
    return {
        "brightness": gray.mean((1, 2)),
        "contrast": gray.std((1, 2)),
        "saturation": (crops.max(-1) - crops.min(-1)).mean((1, 2)),
        "hue": (crops[..., 0] - crops[..., 2]).mean((1, 2)),
        "sharpness": np.abs(np.diff(gray, axis=1)).mean((1, 2)) / (gray.std((1, 2)) + 1),
        "side": (gray[:, :, :20] - gray[:, :, 20:]).mean((1, 2)),
    }


def distances(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    first, second = described(a), described(b)
    return {name: ks_2samp(first[name], second[name]).statistic for name in first}


@pytest.fixture(scope="module")
def originals():
    torch.manual_seed(0)
    random.seed(0)
    made = {}
    for name, view in POLICIES.items():
        transform = official(small(view))
        made[name] = np.stack([np.array(transform(PHOTO)) for _ in range(CROPS)]).astype(np.float32)
    return made


@pytest.fixture(params=["opencv", "torch"])
def renderer(request, monkeypatch):
    """Colors by OpenCV, and where it is missing."""
    if request.param == "torch":
        monkeypatch.setattr(photometry_cpu, "cv2", None)
    else:
        pytest.importorskip("cv2")


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize("name", POLICIES)
def test_the_same_parameters_give_pillows_pixels_through_the_whole_chain(name):
    plans = [plan(small(POLICIES[name]), (120, 160), key(0, name, i)) for i in range(80)]
    off = np.abs(ours(plans) - np.stack([rendered(drawn) for drawn in plans]))
    assert off.mean() < 0.5
    assert np.quantile(off, 0.999) <= 6


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize("name", POLICIES)
def test_crops_have_the_official_distribution(name, originals):
    drawn = ours([plan(small(POLICIES[name]), (120, 160), key(1, name, i)) for i in range(CROPS)])
    found = distances(drawn, originals[name])
    assert max(found.values()) <= BOUND, found


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize(
    ("name", "wrong", "told_by"),
    [
        ("first global", {"blur": Blur(0.5)}, "sharpness"),
        ("second global", {"blur": Blur(0.5)}, "sharpness"),
        ("second global", {"solarize": 0.0}, "brightness"),
        ("first global", {"gray": 0.0}, "saturation"),
        ("first global", {"jitter": Jitter(0.4, 0.4, 0.2, 0.4, p=0.8)}, "hue"),
        ("first global", {"jitter": None}, "brightness"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_constant_exceeds_the_bound(name, wrong, told_by, originals):
    view = dataclasses.replace(small(POLICIES[name]), **wrong)
    drawn = ours([plan(view, (120, 160), key(1, name, i)) for i in range(CROPS)])
    assert distances(drawn, originals[name])[told_by] > BOUND


@pytest.mark.parametrize("name", POLICIES)
def test_boxes_have_torchvisions_areas_and_ratios(name):
    view, image = POLICIES[name], torch.empty(3, 375, 500)
    torch.manual_seed(0)
    theirs = np.array([T.RandomResizedCrop.get_params(image, list(view.scale), [3 / 4, 4 / 3]) for _ in range(1500)])
    boxes = np.array([plan(view, (375, 500), key(3, name, i)).box for i in range(1500)])
    areas, ratios = ([of(drawn[:, 2], drawn[:, 3]) for drawn in (boxes, theirs)] for of in (np.multiply, np.divide))
    for a, b in (*zip(boxes.T, theirs.T, strict=True), areas, ratios):
        assert ks_2samp(a, b).statistic <= 0.06  # 1 in a hundred pairs exceeds it
    wrong = np.array(
        [plan(dataclasses.replace(view, scale=(0.14, 0.9)), (375, 500), key(3, i)).box for i in range(1500)]
    )
    assert ks_2samp(wrong[:, 2] * wrong[:, 3], theirs[:, 2] * theirs[:, 3]).statistic > 0.06


def test_jitter_orders_are_uniform_and_factors_are_uniform_in_their_ranges():
    plans = [plan(GLOBAL_1, (100, 100), key(2, i)) for i in range(4000)]
    jittered = [drawn for drawn in plans if drawn.order]
    assert abs(len(jittered) / 4000 - 0.8) < 0.03
    orders, counts = np.unique([drawn.order for drawn in jittered], axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.abs(counts / len(jittered) - 1 / 24).max() < 0.012
    factors = np.array([drawn.factors for drawn in jittered])
    for values, low, high in zip(factors.T, (0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1), strict=True):
        assert np.abs(np.quantile((values - low) / (high - low), [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.03
    assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 0.05  # each is drawn for itself
