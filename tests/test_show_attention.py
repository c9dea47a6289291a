"""Where the class token looks."""

import dataclasses

import numpy as np
import pytest
import torch
from cli_toys import SHORT, pictures, unmask
from hypothesis import given
from hypothesis import strategies as st
from test_show import MEAN, STD, photographs, size_of

from unmask.show import attention
from unmask.vit import ViT, ViTConfig

VIT = ViTConfig(image_size=32, patch=8, width=16, depth=2, heads=2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.floats(0.05, 0.95))
def test_the_mass_is_held_by_the_fewest_patches(weights, part):
    share = torch.tensor(weights, dtype=torch.float64)
    share = (share / share.sum()).float()
    kept = attention.mass_of(share, part)
    assert share[kept].sum() >= part - 1e-5
    assert share[kept].sum() - share[kept].min() < part + 1e-5
    assert kept.all() or share[~kept].max() <= share[kept].min()


def test_the_mass_agrees_with_the_original_s_rule():
    share = torch.rand(3, 2, 49)
    share = share / share.sum(-1, keepdim=True)
    value, place = share.sort(-1)  # DINO's visualize_attention.py, threshold 0.6
    kept = (value.cumsum(-1) > 1 - 0.6).gather(-1, place.argsort(-1))
    assert torch.equal(attention.mass_of(share), kept)


@pytest.mark.parametrize("size", [(32, 32), (64, 40)], ids=["own", "another"])
@pytest.mark.parametrize("registers", [0, 3])
def test_attention_is_that_of_the_last_block_s_class_token(size, registers):
    vit, images = ViT(dataclasses.replace(VIT, registers=registers, drop_path=0.5)).train(), photographs(size)
    found = attention.cls_attention(vit, images)
    assert vit.training
    whole = vit.eval().attention(images)[-1][:, :, 0]
    share = whole[:, :, 1 + registers :]
    assert torch.allclose(found, share / share.sum(-1, keepdim=True), atol=1e-6)
    assert found.shape[2] == size[0] * size[1] // 64


def test_pictures_show_the_highest_patch_brightest_and_washes_the_rest(monkeypatch, tmp_path):
    given_ = torch.full((4, 2, 24), 0.2 / 23)
    given_[:, 0, 5], given_[:, 1, 23] = 0.8, 0.8
    monkeypatch.setattr(attention, "cls_attention", lambda vit, images: given_)
    maps = attention.attend(ViT(VIT), photographs((32, 48)), MEAN, STD)
    assert maps.names == ("all heads", "head 1", "head 2")
    assert maps.heat.shape == maps.mass.shape == (4, 3, *maps.original.shape[1:])
    side = maps.original.shape[1] // 4
    lit = np.s_[:, 0:side, 5 * side : 6 * side]  # patch 5 of 4 x 6: first row, last column
    assert (maps.mass[:, 1][lit] == maps.original[lit]).all()
    assert maps.heat[:, 1][lit].astype(int).sum(-1).min() > maps.heat[:, 1, side:].astype(int).sum(-1).max()
    washed = maps.mass[:, 1, side:].astype(int)
    assert (washed[..., 2] - washed[..., 0]).min() > 60
    assert maps.mass[:, 2, -1, -1].tolist() == maps.original[:, -1, -1].tolist()
    file = attention.draw(maps, tmp_path / "a.png", labels=list("abcd"), note="first")
    assert size_of(file)[0] > 4 * 160


def test_show_attention_of_teacher_and_student_at_any_size(tmp_path):
    photos, run = pictures(tmp_path / "photos", 16), tmp_path / "run"
    assert unmask("pretrain", "ibot-nano", photos, "--out", run, *SHORT).code == 0
    for name, model, more in (("a", run, ()), ("b", f"{run}:student", ()), ("c", f"{run}@3", ("--size", "48"))):
        said = unmask("show", model, "attention", photos, "--count", 2, "--out", tmp_path / f"{name}.png", *more)
        assert said.code == 0, said.err
    drawn = {(tmp_path / f"{name}.png").read_bytes() for name in "abc"}
    assert len(drawn) == 3
    assert "image 30x30 does not divide into 4x4-px" in unmask("show", run, "attention", photos, "--size", 30).line
    assert "--size 0: give a positive number" in unmask("show", run, "attention", photos, "--size", 0).line
    assert "is drawn at the run's own size" in unmask("show", run, "curves", "--size", 32).line


def test_any_backbone_has_attention_to_show(tmp_path):
    photos, run = pictures(tmp_path / "photos", 16), tmp_path / "run"
    assert unmask("pretrain", "mae-nano", photos, "--out", run, *SHORT).code == 0
    assert unmask("show", run, "attention", photos, "--count", 1, "--size", 64).code == 0
    assert "MAE has no student; leave :student out" in unmask("show", f"{run}:student", "attention", photos).line
