"""JPEGs that are decoded at a part of their size, where every crop is smaller still."""

import dataclasses
import io
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data

from unmask.data.record import BadImage, Record
from unmask.data.stream import Samples
from unmask.methods.ibot import GLOBAL_1, LOCAL
from unmask.randomness import key
from unmask.views import View, crop, divisor, plan, twin

decoding = import_module("unmask.data.decode")  # the package binds its function by this name
pytest.importorskip("simplejpeg", reason="JPEGs are decoded at a part of their size by simplejpeg")

PHOTO = Image.fromarray(data.astronaut())  # 512 x 512
SMALL = View(64, scale=(0.2, 1.0))


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    held, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(held, "JPEG", quality=95, exif=exif)
    return held.getvalue()


def decoded(data: bytes, by: int, asked: list | None = None) -> torch.Tensor:
    def divide(size: tuple[int, int]) -> int:
        if asked is not None:
            asked.append(size)
        return by

    return decoding.decode(Record(data, -1, "photo.jpg"), divisor=divide)


class Photos:
    """A source of the same photograph; every second one is broken."""

    name, classes, labels = "photos", None, None

    def __init__(self, broken: bool = False, kind: str = "JPEG"):
        self.broken, self.kind = broken, kind

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Record:
        if self.broken and i % 2:
            raise BadImage(str(i), "broken on purpose")
        held = io.BytesIO()
        PHOTO.save(held, "PNG") if self.kind == "PNG" else held.write(jpeg(PHOTO))
        return Record(held.getvalue(), i, str(i))


def samples(source: Photos, *views: View) -> Samples:
    return Samples(source, views, (), (), 0, 3, None)


@pytest.mark.parametrize("by", [1, 2, 4, 8])
def test_a_part_of_the_size_is_what_area_averaging_would_give(by):
    photo = PHOTO.crop((0, 0, 501, 371))
    small = decoded(jpeg(photo), by)
    assert tuple(small.shape) == (3, -(-371 // by), -(-501 // by))
    whole = decoded(jpeg(photo), 1)[:, : 371 // by * by, : 501 // by * by].float()
    means = torch.nn.functional.avg_pool2d(whole, by)
    assert (small[:, : 371 // by, : 501 // by] - means).abs().mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_that_is_asked_about_is_the_upright_one(orientation):
    photo, asked = PHOTO.crop((0, 0, 480, 320)), []
    data = jpeg(photo, orientation)
    small = decoded(data, 2, asked)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).reduce(2)).astype(int)
    assert asked == [tuple(2 * side for side in small.shape[1:])] == [tuple(2 * side for side in upright.shape[:2])]
    assert np.abs(small.permute(1, 2, 0).numpy() - upright).mean() < 3


def test_the_divisor_leaves_every_crop_and_twin_smaller_than_its_box():
    views = (dataclasses.replace(GLOBAL_1, size=100, twin=180), dataclasses.replace(LOCAL, size=30, count=1))
    seen = set()
    for i in range(400):
        plans = [plan(view, (768, 1024), key(0, v, i)) for v, view in enumerate(views)]
        by = divisor(plans)
        seen.add(by)
        sides = [min(p.box[2:]) / (max(*p.shape, p.twin or 0) + 1) for p in plans]
        assert by == max(d for d in (1, 2, 4, 8) if d == 1 or d <= min(sides))
    assert len(seen) > 1


@pytest.mark.parametrize("place", range(6))
def test_crop_and_twin_are_those_of_the_whole_image_within_few_levels(place):
    drawn = plan(dataclasses.replace(SMALL, twin=64), (512, 512), key(0, "place", place))
    by = divisor([drawn])
    assert by >= 2
    data = jpeg(PHOTO)
    small, whole = decoded(data, by), decoded(data, 1)
    top, left, height, width = drawn.box
    top, bottom, left, right = (by * round(edge / by) for edge in (top, top + height, left, left + width))
    snapped = (top, left, bottom - top, right - left)  # on the smaller image's pixels
    exact = drawn._replace(box=snapped, image=None)
    for render in (crop, twin):
        off = (render(small, drawn).float() - render(whole, exact).float()).abs()
        assert off.mean() < 2.5
        # no shift: a pixel to any side would be farther off
        shifted = exact._replace(box=(snapped[0], max(0, snapped[1] - 2 * by), *snapped[2:]))
        if shifted.box != exact.box:
            assert off.mean() < (render(small, drawn).float() - render(whole, shifted).float()).abs().mean()


def test_a_stream_takes_the_part_of_the_size_its_views_allow():
    small, large = samples(Photos(), SMALL), samples(Photos(), View(250, scale=(0.9, 1.0)))
    assert {tuple(small.image(i)[0].shape) for i in range(8)} <= {(3, 256, 256), (3, 128, 128)}
    assert {tuple(large.image(i)[0].shape) for i in range(8)} == {(3, 512, 512), (3, 256, 256)}
    assert all(p.image == (512, 512) for i in range(8) for p in small.image(i)[1])


def test_views_are_the_same_draws_whatever_the_format():
    boxes = [[samples(Photos(kind=kind), SMALL).image(i)[1][0].box for i in range(4)] for kind in ("JPEG", "PNG")]
    assert boxes[0] == boxes[1]


def test_the_substitute_of_a_bad_image_has_plans_of_its_own():
    for position in range(8):
        _, plans, label, _ = samples(Photos(broken=True), SMALL).image(position)
        assert len(plans) == 1
        assert label % 2 == 0


def test_without_simplejpeg_images_are_decoded_whole(monkeypatch):
    monkeypatch.setattr(decoding, "simplejpeg", None)
    asked = []
    assert tuple(decoded(jpeg(PHOTO), 2, asked).shape) == (3, 512, 512)
    assert asked == []
