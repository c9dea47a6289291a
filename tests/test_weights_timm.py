"""Folders of timm: config.json says what tensors do not, and what we export comes back as it was."""

import json

import pytest
import torch
from export_toys import BEIT, weights
from safetensors.torch import save_file

from unmask.export import timm as exported
from unmask.models import open_model
from unmask.recipes import Facts
from unmask.weights.load import load


@pytest.mark.parametrize(
    "config",
    [
        {"width": 384, "depth": 12, "heads": 12, "mlp_ratio": 0.25},  # published with 6
        {"image_size": (32, 48)},
        {"image_size": (16, 64), "patch": (8, 8)},
        {"image_size": (16, 128)},  # 32 patches
        {"image_size": (16, 64), "patch": (8, 4), "registers": 4},  # 32 + 4 rows
        {"image_size": (8, 128)},  # 16 patches in one row
        {"image_size": (8, 128), "pos_embed": "sincos"},
        {"pos_embed": "sincos", "classes": 3},
        {"gelu": "tanh", "classes": 3, "pool": "mean"},
        {**BEIT, "rel_pos": "per-block", "image_size": (32, 48), "classes": 3},
        {**BEIT, "rel_pos": "shared", "image_size": (8, 128)},
    ],
    ids=str,
)
@torch.no_grad()
def test_an_exported_folder_comes_back_without_heads(config, tmp_path):
    wrote = weights(**config)
    exported.write(wrote, tmp_path)
    found, opened = load(str(tmp_path)), open_model(str(tmp_path), Facts())
    for name in ("heads", "grid", "pos_embed", "gelu", "pool"):
        assert getattr(found.vit, name) == getattr(wrote.vit, name)
    assert found.classes == wrote.classes
    assert (opened.mean, opened.std, opened.size) == (wrote.mean, wrote.std, wrote.vit.image_hw)
    image = torch.linspace(-2, 2, 3 * wrote.vit.image_hw[0] * wrote.vit.image_hw[1]).sin()
    image = image.reshape(1, 3, *wrote.vit.image_hw)
    ours, theirs = wrote.build()(image), found.build()(image)
    torch.testing.assert_close(theirs.patches, ours.patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs.prefix, ours.prefix, atol=1e-5, rtol=0)


def test_a_timm_classifier_may_normalize_before_the_mean(tmp_path):
    save_file(weights(classes=3).state, tmp_path / "model.safetensors")
    said = {"model_args": {"num_heads": 2, "global_pool": "avg"}, "label_names": ["a", "b", "c"]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    found = load(str(tmp_path))
    assert (found.vit.pool, found.vit.head_norm, found.classes) == ("mean", "before", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"act_layer": "quick_gelu"}, "act_layer quick_gelu"),
        ({"global_pool": "map"}, "global_pool map"),
        ({"img_size": 64}, "another shape: pos_embed"),
    ],
)
def test_what_a_timm_folder_says_and_ours_cannot_do_is_refused(said, why, tmp_path):
    save_file(weights(classes=3).state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_args": {"num_heads": 2, **said}}))
    with pytest.raises(ValueError, match=why):
        load(str(tmp_path))
