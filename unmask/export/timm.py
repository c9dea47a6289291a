"""timm: a folder that `timm.create_model("local-dir:DIR", pretrained=True)` loads, classifier included.

A network with relative positions becomes timm's `Beit`, any other a `VisionTransformer`, whose
configuration (config.json) overrides every size of the architecture that it names.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..framing import margin
from ..vit import ViTConfig
from ..weights.loaded import Loaded
from ..weights.timm import to_timm
from .fit import check_head, one_or_two, with_key_bias, without_key_bias
from .subject import Written

_EPS = 1e-6
"""of timm's LayerNorm; a configuration cannot say another"""


def write(weights: Loaded, folder: Path) -> Written:
    """Write config.json and model.safetensors.

    Raises:
        ValueError: timm's networks cannot say something of this one.
    """
    config, beit = weights.vit, weights.vit.rel_pos != "none"
    if config.norm_eps != _EPS:
        raise ValueError(
            f"LayerNorm epsilon {config.norm_eps:g}: timm's configuration knows {_EPS:g} only; use --format hf"
        )
    if beit and config.gelu != "erf":
        raise ValueError("timm's Beit has no tanh GELU; use --format onnx or torch")
    check_head(config)
    state = weights.state
    if beit:
        state = without_key_bias(state, config)
    elif config.qkv_bias == "qv":
        state = with_key_bias(state, config)
    save_file(to_timm(state), folder / "model.safetensors", metadata={"format": "pt"})
    description = {
        "architecture": "beit_base_patch16_224" if beit else "vit_base_patch16_224",
        "num_classes": config.classes,
        "num_features": config.width,
        "global_pool": _pool(config),
        "model_args": model_args(config),
        "pretrained_cfg": pretrained_cfg(weights),
    }
    (folder / "config.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    loading = (
        "import timm\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
        f"tokens = model.forward_features(images)  # [B {1 + config.registers}+N D], class token first"
    )
    notes = ("The mask token, which only training needs, is left out.",) if config.mask_token else ()
    return Written(loading, notes)


def model_args(config: ViTConfig) -> dict[str, Any]:
    """The arguments of timm's constructor that make this architecture."""
    common = {
        "img_size": one_or_two(config.image_hw),
        "patch_size": one_or_two(config.patch_hw),
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "init_values": config.layer_scale,
        "global_pool": _pool(config),
    }
    if config.rel_pos != "none":
        return common | {
            "qkv_bias": True,
            "use_abs_pos_emb": config.pos_embed != "none",
            "use_rel_pos_bias": config.rel_pos == "per-block",
            "use_shared_rel_pos_bias": config.rel_pos == "shared",
        }
    return common | {
        "qkv_bias": config.qkv_bias != "none",
        "pos_embed": "none" if config.pos_embed == "none" else "learn",
        "reg_tokens": config.registers,
        "act_layer": "gelu" if config.gelu == "erf" else "gelu_tanh",
    }


def pretrained_cfg(weights: Loaded) -> dict[str, Any]:
    """What timm's own transforms need to prepare images as we do."""
    config = weights.vit
    return {
        "input_size": [config.channels, *config.image_hw],
        "interpolation": weights.frame.interpolation,
        "crop_pct": 1 / margin(config.image_hw, weights.frame),
        "crop_mode": "center",
        "mean": list(weights.mean),
        "std": list(weights.std),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    } | ({"label_names": list(weights.classes)} if weights.classes else {})


def _pool(config: ViTConfig) -> str:
    return "avg" if config.classes and config.pool == "mean" else "token"
