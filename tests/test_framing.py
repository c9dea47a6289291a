"""The evaluation crop against torchvision and Pillow, by the rule of each protocol."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from skimage import data
from torchvision.transforms import InterpolationMode

from unmask.evaluate.settings import PUBLISHED
from unmask.framing import Frame, center, margin


def photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((width, height))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize(("size", "short"), [(224, 256), (96, 110), (32, 32), (384, 384)])
@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
def test_the_crop_is_torchvisions_resize_and_center_crop(size, short, kind):
    image = photo(400, 500)
    theirs = TF.center_crop(TF.resize(image, short, InterpolationMode(kind)), [size, size])
    ours = center(tensor(image), size, Frame(kind))
    assert ours.shape == (3, size, size)
    assert (ours.int() - tensor(theirs).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (96, 64), (128, 96)])
def test_the_evaluation_frame_is_central_and_has_the_size(size):
    image = torch.zeros(3, 200, 150, dtype=torch.uint8)
    image[:, 95:105, 70:80] = 255
    framed = center(image, size).float()
    assert framed.shape == (3, *size)
    rows, columns = framed[0].mean(1), framed[0].mean(0)
    assert abs(float((rows * torch.arange(size[0])).sum() / rows.sum()) - (size[0] - 1) / 2) < 1
    assert abs(float((columns * torch.arange(size[1])).sum() / columns.sum()) - (size[1] - 1) / 2) < 1


def test_an_image_of_one_pixel_is_enlarged():
    image = torch.full((3, 1, 1), 9, dtype=torch.uint8)
    assert torch.equal(center(image, 32), torch.full((3, 32, 32), 9, dtype=torch.uint8))


def test_frozen_features_take_bicubic_crops_and_fine_tuning_each_method_s():
    """k-NN and linear of all: Resize(256, 3); iBOT's run_class_finetuning.py: Resize(256, 2); MAE's datasets.py."""
    assert (Frame().interpolation, margin((224, 224)), margin((384, 384))) == ("bicubic", 256 / 224, 1.0)
    for (whose, _), setting in PUBLISHED.items():
        assert setting.frame.interpolation == ("bilinear" if whose == "ibot" else "bicubic")
        trimmed = {side: margin((side, side), setting.frame) > 1 for side in (224, 256, 384)}
        assert trimmed == {224: True, 256: whose != "mae", 384: False}
