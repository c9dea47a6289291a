"""Hugging Face transformers: a folder for `AutoModel.from_pretrained(DIR)`, without transformers to write it.

    a plain network             ViTModel, ViTForImageClassification
    an MAE run                  the same file has the decoder: AutoModel gives the encoder with all patches,
                                ViTMAEForPreTraining the whole
    relative positions, layer   BeitModel, BeitForImageClassification
    scale, a head on the mean
    a BEiT run                  BeitForMaskedImageModeling; DIR/backbone is its BeitModel

BEiT's two forms need two folders: with the final norm inside BeitModel, which its features want, the
model of pre-training would normalize twice. `model_type` of an MAE is `vit`, not `vit_mae`: AutoModel
would give a network that hides three quarters of every image.
"""

import json
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from ..masks import RandomMask
from ..methods.beit import BEiT
from ..methods.mae import MAE
from ..vit import ViT, ViTConfig
from ..weights.exported import tensors
from ..weights.hf import to_hf
from .fit import State, one_or_two, with_key_bias, with_positions, without_key_bias, without_mask_token
from .processor import write_processor
from .subject import Subject, Written

BACKBONE = "backbone"
"""the folder of a BEiT run's features"""


def write(subject: Subject, folder: Path) -> Written:
    """Write config.json, model.safetensors and preprocessor_config.json.

    Raises:
        ValueError: transformers cannot say something of this network.
    """
    vit = subject.vit
    assert vit is not None
    config = vit.config
    check(config)
    processed = write_processor(subject.preparation, folder)
    notes = () if processed else (f"No preprocessor_config.json: {processed.reason}.",)
    if isinstance(subject.method, BEiT) and subject.method.vit is vit:
        return _beit_pretraining(subject.method, subject, folder, notes)
    if _needs_beit(config):
        return _save_beit(vit, subject, folder, notes)
    return _save_vit(vit, subject, folder, notes)


def check(config: ViTConfig) -> None:
    """Refuse what neither ViT nor BEiT of transformers can say.

    Raises:
        ValueError: registers; relative positions on a grid or patch that is not square.
    """
    if config.registers:
        raise ValueError(f"transformers' ViT and BEiT have no registers, this network has {config.registers}; use timm")
    if config.rel_pos != "none" and (config.grid[0] != config.grid[1] or config.patch_hw[0] != config.patch_hw[1]):
        raise ValueError(
            f"transformers reads relative positions of a {config.grid[0]}x{config.grid[1]} grid wrongly: "
            f"squares only; use --format timm, onnx or torch"
        )


def _needs_beit(config: ViTConfig) -> bool:
    return config.rel_pos != "none" or config.layer_scale is not None or (config.classes > 0 and config.pool == "mean")


def _save_vit(vit: ViT, subject: Subject, folder: Path, notes: tuple[str, ...]) -> Written:
    config, kind = vit.config, "ViTForImageClassification" if vit.config.classes else "ViTModel"
    state = without_mask_token(with_positions(with_key_bias(tensors(vit), config), config))
    content = _common(config, "vit", kind) | {"qkv_bias": True} | _labels(config, subject.classes)
    if config.mask_token:
        notes += ("The mask token, which only training needs, is left out.",)
    if not config.classes:
        loading = _AUTO.format("AutoModel", ", add_pooling_layer=False")
    else:
        loading = _CLASSIFIER
    method = subject.method
    if isinstance(method, MAE) and method.encoder is vit and not config.classes:
        problem = _decoder_problem(method)
        if problem:
            notes += (f"The decoder is left out: {problem}.",)
        else:
            state |= {k: v for k, v in tensors(method).items() if k.startswith("decoder.")}
            content |= _decoder(method)
            loading += _PAINTER
            notes += (
                "The file holds encoder and decoder. AutoModel reports the decoder's keys as unexpected, and "
                "ViTMAEForPreTraining that the type is `vit`: both are meant so.",
            )
    save_file(to_hf(state, "vit_mae"), folder / "model.safetensors", metadata={"format": "pt"})
    _write_config(content, folder)
    return Written(loading, notes)


def _save_beit(vit: ViT, subject: Subject, folder: Path, notes: tuple[str, ...]) -> Written:
    config, kind = vit.config, "BeitForImageClassification" if vit.config.classes else "BeitModel"
    state = without_key_bias(tensors(vit), config)
    save_file(to_hf(state, "beit"), folder / "model.safetensors", metadata={"format": "pt"})
    mean = config.classes > 0 and config.pool == "mean"
    content = _common(config, "beit", kind) | _beit(config, mean_pooling=mean) | _labels(config, subject.classes)
    _write_config(content, folder)
    return Written(_CLASSIFIER if config.classes else _AUTO.format("AutoModel", ""), notes)


def _beit_pretraining(method: BEiT, subject: Subject, folder: Path, notes: tuple[str, ...]) -> Written:
    config, head = method.vit.config, tensors(method.lm_head)
    state = without_key_bias(tensors(method.vit), config) | {f"lm_head.{k}": v for k, v in head.items()}
    save_file(to_hf(state, "beit"), folder / "model.safetensors", metadata={"format": "pt"})
    content = _common(config, "beit", "BeitForMaskedImageModeling") | _beit(config, mean_pooling=True)
    _write_config(content | {"vocab_size": method.lm_head.out_features}, folder)
    (folder / BACKBONE).mkdir()
    _save_beit(method.vit, subject, folder / BACKBONE, ())
    write_processor(subject.preparation, folder / BACKBONE)
    loading = (
        _AUTO.format("AutoModel", "").replace("FOLDER", f"FOLDER/{BACKBONE}")
        + "\nfrom transformers import BeitForMaskedImageModeling\n\n"
        'guesser = BeitForMaskedImageModeling.from_pretrained("FOLDER").eval()  # tokens of hidden patches'
    )
    left_out = "The tokenizer is not here: export its run, or take it from RUN/tokenizer."
    return Written(loading, (*notes, left_out))


def _common(config: ViTConfig, model_type: Literal["vit", "beit"], architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "hidden_act": "gelu" if config.gelu == "erf" else "gelu_pytorch_tanh",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.norm_eps,
        "image_size": one_or_two(config.image_hw),
        "patch_size": one_or_two(config.patch_hw),
        "num_channels": config.channels,
    }


def _beit(config: ViTConfig, *, mean_pooling: bool) -> dict[str, Any]:
    scale = config.layer_scale
    return {
        "use_mask_token": config.mask_token,
        "use_absolute_position_embeddings": config.pos_embed != "none",
        "use_relative_position_bias": config.rel_pos == "per-block",
        "use_shared_relative_position_bias": config.rel_pos == "shared",
        "layer_scale_init_value": 0.0 if scale is None else scale if scale > 0 else 1.0,  # 0: none; the file has values
        "drop_path_rate": config.drop_path,
        "use_mean_pooling": mean_pooling,
    }


def _labels(config: ViTConfig, classes: tuple[str, ...] | None) -> dict[str, Any]:
    if not config.classes:
        return {}
    names = classes or tuple(f"LABEL_{i}" for i in range(config.classes))
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _decoder(method: MAE) -> dict[str, Any]:
    config, mask = method.config, method.config.masks[0]
    assert isinstance(mask, RandomMask)
    return {
        "decoder_hidden_size": config.decoder_width,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_heads,
        "decoder_intermediate_size": int(config.decoder_width * config.vit.mlp_ratio),
        "mask_ratio": mask.ratio,
        "norm_pix_loss": config.norm_pixels,
    }


def _decoder_problem(method: MAE) -> str:
    """Why transformers' ViTMAE cannot have this decoder; empty: it can."""
    vit = method.config.vit
    if vit.patch_hw[0] != vit.patch_hw[1] or vit.image_hw[0] != vit.image_hw[1]:
        return "ViTMAE takes square images and patches only"
    if vit.gelu != "erf":
        return "ViTMAE has one GELU for encoder and decoder, here they differ"
    return ""


def _write_config(content: dict[str, Any], folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


_AUTO = """\
from transformers import AutoImageProcessor, {0}

processor, model = AutoImageProcessor.from_pretrained("FOLDER"), {0}.from_pretrained("FOLDER"{1}).eval()
tokens = model(**processor(pictures, return_tensors="pt")).last_hidden_state  # [B 1+N D], class token first
"""
_CLASSIFIER = """\
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = AutoModelForImageClassification.from_pretrained("FOLDER").eval()
logits = model(**processor(pictures, return_tensors="pt")).logits  # [B K]; names in model.config.id2label
"""
_PAINTER = """
from transformers import ViTMAEForPreTraining

painter = ViTMAEForPreTraining.from_pretrained("FOLDER").eval()  # encoder and decoder
"""
