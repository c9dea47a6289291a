"""Names of transformers' ViT, ViTMAE and BEiT: both ways, and parity with the real classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.methods.mae import MAEConfig
from unmask.views import View
from unmask.vit import ViT, ViTConfig
from unmask.weights.hf import from_hf, to_hf

TINY = ViTConfig(image_size=32, patch=8, width=32, depth=2, heads=2, mlp_ratio=2)
BEIT = ViTConfig(
    **{**vars(TINY), "pos_embed": "none", "rel_pos": "shared", "qkv_bias": "qv", "layer_scale": 0.1, "mask_token": True}
)


def drawn(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of a module at random: zeros and ones would hide a mistake."""
    torch.manual_seed(0)
    return {name: torch.randn_like(value) * 0.1 for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.sampled_from([(16, 2), (24, 3)]), st.sampled_from(["full", "none"]), st.booleans())
def test_a_vit_goes_to_transformers_and_back_to_the_bit(depth, size, bias, pooled):
    config = ViTConfig(
        image_size=(16, 24), patch=8, width=size[0], heads=size[1], depth=depth, qkv_bias=bias,
        classes=3 if pooled else 0, pool="mean" if pooled else "cls",
    )  # fmt: skip
    state = drawn(ViT(config))
    assert same(from_hf(to_hf(state, "vit")), state)


@pytest.mark.parametrize("rel_pos", ["shared", "per-block", "none"])
def test_a_beit_goes_to_transformers_and_back_to_the_bit(rel_pos):
    state = drawn(ViT(ViTConfig(**{**vars(BEIT), "rel_pos": rel_pos})))
    head = {"lm_head.weight": torch.randn(11, 32), "lm_head.bias": torch.randn(11)}
    assert same(from_hf(to_hf(state | head, "beit")), state | head)
    assert "layernorm.weight" in to_hf(state | head, "beit")
    assert "beit.layernorm.weight" in to_hf(state, "beit")


def test_an_mae_goes_to_transformers_and_back_to_the_bit():
    config = MAEConfig(
        vit=ViTConfig(**{**vars(TINY), "pos_embed": "sincos"}), views=(View(32, scale=(0.2, 1.0)),),
        decoder_width=16, decoder_depth=2, decoder_heads=2,
    )  # fmt: skip
    state = {name.removeprefix("encoder."): value for name, value in drawn(config.build()).items()}
    assert same(from_hf(to_hf(state, "vit_mae")), state)


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("blocks.0.ls1.gamma", "vit", "only beit"),
        ("blocks.0.attn.qkv.bias", "beit", "no bias of keys"),
        ("decoder.pred.bias", "vit", "no decoder"),
        ("reg_token", "vit", "registers"),
        ("blocks.0.attn.k_norm.weight", "vit", "no name"),
    ],
)
def test_what_transformers_cannot_say_is_refused(name, kind, why):
    with pytest.raises(ValueError, match=why):
        to_hf({name: torch.zeros(3)}, kind)


def test_foreign_names_are_listed():
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        from_hf({"conv1.weight": torch.zeros(1)})


def test_the_names_of_transformers_5_in_memory_and_of_its_decoder_on_disk_are_read():
    layer = {f"vit.layers.0.attention.{part}_proj.weight": torch.full((2, 2), float(i)) for i, part in enumerate("qkv")}
    read = from_hf(layer | {"vit.layers.0.mlp.fc1.bias": torch.ones(1)})
    assert read["blocks.0.attn.qkv.weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert "blocks.0.mlp.fc1.bias" in read
    assert set(from_hf({"decoder.decoder_encoder.layer.1.lambda_1": torch.ones(1)})) == {"decoder.blocks.1.ls1.gamma"}
