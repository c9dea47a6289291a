"""What patches have in common."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli_toys import SHORT, pictures, unmask
from test_show import MEAN, STD, photographs, size_of

from unmask.show import patches
from unmask.show.picture import frame
from unmask.vit import ViT, ViTConfig

VIT = ViTConfig(image_size=32, patch=8, width=16, depth=2, heads=2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def kinds(places: torch.Tensor, width: int = 12) -> torch.Tensor:
    """Features of length 1, a direction a kind, with a little noise."""
    return F.normalize(torch.eye(width)[places] + 0.01 * torch.randn(*places.shape, width), dim=-1)


def test_one_kind_of_patch_has_one_color_in_all_images():
    places = torch.randint(0, 3, (5, 30))
    colors, held = patches.principal_colors(kinds(places))
    means = [colors[places == kind].mean(0) for kind in range(3)]
    assert all((colors[places == kind] - means[kind]).norm(dim=-1).mean() < 0.35 for kind in range(3))
    assert min((means[0] - means[1]).norm(), (means[1] - means[2]).norm(), (means[0] - means[2]).norm()) > 0.5
    assert 0.9 < held <= 1
    assert 0 <= colors.min() <= colors.max() <= 1


def test_colors_do_not_depend_on_the_sign_or_the_order_of_images():
    values = F.normalize(torch.randn(4, 9, 12), dim=-1)
    colors, _ = patches.principal_colors(values)
    turned, _ = patches.principal_colors(values.flip(0))
    assert torch.allclose(colors, turned.flip(0), atol=1e-5)


def test_features_that_are_all_alike_have_a_color_and_fewer_queries():
    same = F.normalize(torch.ones(2, 9, 12), dim=-1)
    colors, _ = patches.principal_colors(same)
    assert colors.isfinite().all()
    assert len(patches.representatives(same[0], 5)) == 1


def test_representatives_stand_for_all_kinds():
    places = torch.tensor([0] * 20 + [1] * 5 + [2] * 3 + [3] * 2)
    chosen = patches.representatives(kinds(places), 4)
    assert sorted(places[chosen].tolist()) == [0, 1, 2, 3]


def test_the_nearest_patch_is_of_the_query_s_kind():
    places = torch.stack([torch.randperm(6) for _ in range(4)])
    found, cosine = patches.nearest(kinds(places), torch.tensor([4, 1]))
    assert found[0].tolist() == [4, 1]
    assert (places.gather(1, found) == places[0, [4, 1]]).all()
    assert cosine[0].tolist() == [1, 1]
    assert cosine.min() > 0.9


@pytest.mark.parametrize("size", [(32, 32), (64, 40)], ids=["own", "another"])
def test_the_boxes_of_a_query_have_its_color_in_every_image(size, tmp_path):
    vit = ViT(VIT).train()
    panels = patches.compare(vit, photographs(size), MEAN, STD, count=3)
    assert vit.training
    assert panels.original.shape == panels.colors.shape == panels.nearest.shape
    for color in patches.QUERIES[: panels.cosine.shape[1]]:
        assert (panels.nearest[0] == color).all(-1).any()
    changed = (panels.nearest != panels.original).any(-1)
    assert changed.any(axis=(1, 2)).all()
    assert (panels.cosine[1:] <= 1 + 1e-6).all()
    file = patches.draw(panels, tmp_path / "p.png", labels=list("abcd"))
    assert size_of(file)[0] > 3 * 160


def test_a_frame_leaves_what_it_marks_and_stays_in_the_picture():
    picture = np.full((160, 160, 3), 9, np.uint8)
    frame(picture, (0, 150), (10, 10), (200, 0, 0))
    assert (picture[:10, 150:] == 9).all()
    assert (picture[11, 150:] == (200, 0, 0)).all()
    assert (picture[:10, 148] == (200, 0, 0)).all()
    assert (picture[20:] == 9).all()
    frame(picture, (0, 150), (10, 10), (0, 0, 200), ring=1)
    assert (picture[11, 152:] == (200, 0, 0)).all()
    assert (picture[15, 150:] == (0, 0, 200)).all()


def test_patches_of_a_frequent_prototype_have_its_color_in_all_images_and_the_rest_is_gray(tmp_path):
    ids = torch.arange(2 * 16).view(2, 16) + 10
    ids[0, :5] = ids[1, 8:11] = 3
    ids[1, :4] = 7
    assert patches.frequent(ids, 2) == [3, 7]
    panels = patches.compare(ViT(VIT), photographs((32, 32))[:2], MEAN, STD, ids=ids)
    cells = panels.prototypes[:, 20::40, 20::40].reshape(2, 16, 3)  # the middle of each patch of 8 pixels, enlarged
    for one, color in zip((3, 7), patches.QUERIES, strict=False):
        assert (cells[(ids == one).numpy()] == color).all()
    singles = cells[1, 15]
    assert len(set(singles.tolist())) == 1
    assert patches.compare(ViT(VIT), photographs((32, 32))[:2], MEAN, STD).prototypes is None
    assert size_of(patches.draw(panels, tmp_path / "p.png"))[0] > 4 * 160


def test_one_image_alone_can_be_drawn(tmp_path):
    panels = patches.compare(ViT(VIT), photographs((32, 32))[:1], MEAN, STD)
    patches.draw(panels, tmp_path / "p.png")


def test_show_patches_of_teacher_and_student(tmp_path):
    photos, run = pictures(tmp_path / "photos", 16), tmp_path / "run"
    assert unmask("pretrain", "ibot-nano", photos, "--out", run, *SHORT).code == 0
    for model, more in ((run, ()), (f"{run}:student", ("--size", "64"))):
        said = unmask("show", model, "patches", photos, "--count", 3, *more)
        assert said.code == 0, said.err
    assert said.json["file"] == str(run / "figures" / "patches.png")
