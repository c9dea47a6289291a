"""Parity with the real classes of timm and transformers, at random weights and tiny sizes."""

import logging
from typing import Any

import pytest
import torch

from unmask.methods.mae import MAEConfig
from unmask.views import View
from unmask.vit import ViT, ViTConfig
from unmask.weights.hf import from_hf, to_hf
from unmask.weights.timm import from_timm, to_timm

IMAGE = torch.linspace(-2, 2, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32)
BASE: dict[str, Any] = {"image_size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 2}
BEIT: dict[str, Any] = {"pos_embed": "none", "qkv_bias": "qv", "layer_scale": 0.1, "init": "beit"}


def drawn(module: torch.nn.Module) -> Any:
    """The module with every tensor at random: zeros and ones would hide a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            value.normal_(std=0.1)
    return module.eval()


@torch.no_grad()
def everything(vit: ViT) -> torch.Tensor:
    """All tokens after the norm; of a mean-pooled classifier, whose norm comes later, its logits."""
    if vit.config.classes:
        return vit.logits(IMAGE)
    tokens = vit(IMAGE)
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


TIMM = {
    "plain": ({}, {"num_classes": 0}),
    "classifier": ({"classes": 3}, {"num_classes": 3}),
    "mean-pooled": ({"classes": 3, "pool": "mean"}, {"num_classes": 3, "global_pool": "avg"}),
    "layer scale, no qkv bias": (
        {"layer_scale": 0.1, "qkv_bias": "none"},
        {"num_classes": 0, "init_values": 0.1, "qkv_bias": False},
    ),
    "registers": ({"registers": 2}, {"num_classes": 0, "reg_tokens": 2}),
    "other proportions": (
        {"patch": (8, 4), "mlp_ratio": 2.5, "heads": 4},
        {"patch_size": (8, 4), "mlp_ratio": 2.5, "num_heads": 4, "num_classes": 0},
    ),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm_vit_parity_both_ways(case):
    models = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed: pip install timm")
    ours, theirs = TIMM[case]
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    real = drawn(models.VisionTransformer(**(sizes | theirs)))
    mine = ViT(ViTConfig(**(BASE | ours))).eval()
    mine.load_state_dict(from_timm(real.state_dict(), mine.config.grid))
    expected = real(IMAGE) if mine.config.classes else real.forward_features(IMAGE)
    close(everything(mine), expected)

    mine = drawn(ViT(ViTConfig(**(BASE | ours))))
    real.load_state_dict(to_timm(mine.state_dict()))
    close(everything(mine), real(IMAGE) if mine.config.classes else real.forward_features(IMAGE))


@pytest.mark.parametrize("shared", [True, False])
def test_timm_beit_parity_both_ways(shared):
    models = pytest.importorskip("timm.models.beit", reason="timm is not installed: pip install timm")
    real = models.Beit(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, init_values=0.1, use_abs_pos_emb=False,
        num_classes=0 if shared else 3, global_pool="token" if shared else "avg",
        use_shared_rel_pos_bias=shared, use_rel_pos_bias=not shared,
    )  # fmt: skip
    drawn(real)
    kind = {"rel_pos": "shared"} if shared else {"rel_pos": "per-block", "classes": 3, "pool": "mean"}
    mine = ViT(ViTConfig(**(BASE | BEIT | kind))).eval()
    mine.load_state_dict(from_timm(real.state_dict()))
    close(everything(mine), real.forward_features(IMAGE) if shared else real(IMAGE))

    drawn(mine)
    real.load_state_dict(to_timm(mine.state_dict()))
    close(everything(mine), real.forward_features(IMAGE) if shared else real(IMAGE))


HF: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
    "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6,
}  # fmt: skip


@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return module


def from_disk(model_class: Any, state: dict[str, torch.Tensor], config: Any, folder: Any) -> Any:
    """Load tensors as a user would: a folder, `from_pretrained`, nothing missing."""
    from safetensors.torch import save_file

    config.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def to_disk(model: Any, folder: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stored", ["disk", "memory"])
def test_hf_vit_parity(transformers, tmp_path, stored):
    config = transformers.ViTConfig(**HF, num_labels=3)
    real = drawn(transformers.ViTForImageClassification(config))
    state = to_disk(real, tmp_path) if stored == "disk" else real.state_dict()
    mine = ViT(ViTConfig(**BASE, classes=3)).eval()
    mine.load_state_dict(from_hf(state))
    close(everything(mine), real(IMAGE).logits)

    mine = drawn(mine)
    close(everything(mine), from_disk(type(real), to_hf(mine.state_dict(), "vit"), config, tmp_path)(IMAGE).logits)


def test_hf_vit_mae_parity(transformers, tmp_path):
    config = transformers.ViTMAEConfig(
        **HF, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, mask_ratio=0.75,
    )  # fmt: skip
    real = drawn(transformers.ViTMAEForPreTraining(config))
    ours = MAEConfig(
        vit=ViTConfig(**BASE, pos_embed="sincos"), views=(View(32, scale=(0.2, 1.0)),),
        decoder_width=16, decoder_depth=1, decoder_heads=2,
    ).build().eval()  # fmt: skip
    noise = torch.linspace(0, 1, 16).flip(0).repeat(2, 1)  # the last four patches stay
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[:, 12:] = False
    for state in (real.state_dict(), to_disk(real, tmp_path)):
        found = from_hf(state)
        ours.load_state_dict({k if k.startswith("decoder.") else f"encoder.{k}": v for k, v in found.items()})
        close(ours.reconstruct(IMAGE, mask).detach(), real(IMAGE, noise=noise).logits)

    drawn(ours)
    state = to_hf({k.removeprefix("encoder."): v for k, v in ours.state_dict().items()}, "vit_mae")
    again = from_disk(type(real), state, config, tmp_path)
    close(ours.reconstruct(IMAGE, mask).detach(), again(IMAGE, noise=noise).logits)


def test_hf_beit_pre_training_parity(transformers, tmp_path):
    config = transformers.BeitConfig(
        **HF, vocab_size=11, use_mask_token=True, use_shared_relative_position_bias=True,
        use_relative_position_bias=False,
    )  # fmt: skip
    real = drawn(transformers.BeitForMaskedImageModeling(config))
    mine = ViT(ViTConfig(**BASE, **BEIT, rel_pos="shared", mask_token=True)).eval()
    hidden = torch.arange(32).reshape(2, 16) % 3 == 0
    for state in (to_disk(real, tmp_path), real.state_dict()):
        found = from_hf(state)
        head = {name.removeprefix("lm_head."): found.pop(name) for name in ("lm_head.weight", "lm_head.bias")}
        mine.load_state_dict(found)
        logits = torch.nn.functional.linear(mine(IMAGE, hidden=hidden).patches, head["weight"], head["bias"])
        close(logits.detach(), real(IMAGE, bool_masked_pos=hidden).logits)
    drawn(mine)
    back = to_hf(mine.state_dict() | {f"lm_head.{k}": v for k, v in head.items()}, "beit")
    logits = torch.nn.functional.linear(mine(IMAGE, hidden=hidden).patches, head["weight"], head["bias"])
    close(logits.detach(), from_disk(type(real), back, config, tmp_path)(IMAGE, bool_masked_pos=hidden).logits)


def test_hf_beit_classifier_parity(transformers, tmp_path):
    config = transformers.BeitConfig(**HF, num_labels=3, use_relative_position_bias=True)
    real = drawn(transformers.BeitForImageClassification(config))
    mine = ViT(ViTConfig(**BASE, **BEIT, rel_pos="per-block", classes=3, pool="mean")).eval()
    mine.load_state_dict(from_hf(to_disk(real, tmp_path)))
    close(everything(mine), real(IMAGE).logits)
    drawn(mine)
    close(everything(mine), from_disk(type(real), to_hf(mine.state_dict(), "beit"), config, tmp_path)(IMAGE).logits)
