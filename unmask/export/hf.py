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

Where no processor of theirs makes our inputs, and for 16-bit images, config.json says them under `unmask`,
a key that transformers keeps and does not read: {mean, std, range, classes}.
"""

import json
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from ..masks import RandomMask
from ..methods.mae import MAEConfig
from ..run import Run
from ..vit import ViTConfig
from ..weights.hf import to_hf
from ..weights.loaded import Loaded
from .fit import check_head, one_or_two, with_key_bias, with_positions, without_key_bias, without_mask_token
from .processor import write_processor
from .subject import Written

OURS = "unmask"
"""the key of config.json under which our preparation of images is"""
BACKBONE = "backbone"
"""the folder of a BEiT run's features"""


def write(weights: Loaded, folder: Path, run: Run | None = None) -> Written:
    """Write config.json, model.safetensors and preprocessor_config.json.

    Args:
        weights: the ViT, and the decoder or head that was trained beside it.
        folder: an empty one.
        run: where the weights came from: of an MAE, it knows the mask ratio and the target.
    Raises:
        ValueError: transformers cannot say something of this network.
    """
    check(weights.vit)
    check_head(weights.vit)
    problem = write_processor(weights, folder)
    notes = (f"No preprocessor_config.json: {problem}.",) if problem else ()
    if "lm_head.weight" in weights.beside:
        written = _save_guesser(weights, folder)
    elif _needs_beit(weights.vit):
        written = _save_beit(weights, folder)
    else:
        written = _save_vit(weights, folder, run)
    return Written(written.loading, notes + written.notes)


def check(config: ViTConfig) -> None:
    """Refuse what neither ViT nor BEiT of transformers can say.

    Raises:
        ValueError: registers; relative positions on a grid or patch that is not square.
    """
    if config.registers:
        raise ValueError(
            f"transformers' ViT and BEiT have no registers, this network has {config.registers}; use --format timm"
        )
    if config.rel_pos != "none" and (config.grid[0] != config.grid[1] or config.patch_hw[0] != config.patch_hw[1]):
        raise ValueError(
            f"transformers reads relative positions of squares only, this network has a {config.grid[0]}x"
            f"{config.grid[1]} grid of {config.patch_hw[0]}x{config.patch_hw[1]}-px patches; use --format timm"
        )


def _needs_beit(config: ViTConfig) -> bool:
    return config.rel_pos != "none" or config.layer_scale is not None or (config.classes > 0 and config.pool == "mean")


def _save_vit(weights: Loaded, folder: Path, run: Run | None) -> Written:
    config = weights.vit
    state = without_mask_token(with_positions(with_key_bias(weights.state, config), config))
    notes = ("The mask token, which only training needs, is left out.",) if config.mask_token else ()
    content = _common(config, "vit", "ViTForImageClassification" if config.classes else "ViTModel")
    content |= {"qkv_bias": True} | _labels(weights)
    loading = _CLASSIFIER if config.classes else _AUTO.format("FOLDER", ", add_pooling_layer=False")
    if "decoder.mask_token" in weights.beside and not config.classes:
        problem = _decoder_problem(config)
        if problem:
            notes += (f"The decoder is left out: {problem}.",)
        else:
            state |= weights.beside
            content |= _decoder(weights, run)
            loading += _PAINTER
            notes += (_BOTH,)
    save_file(to_hf(state, "vit_mae"), folder / "model.safetensors", metadata={"format": "pt"})
    _write_config(content, weights, folder)
    return Written(loading, notes)


def _save_beit(weights: Loaded, folder: Path) -> Written:
    config = weights.vit
    state = without_key_bias(weights.state, config)
    save_file(to_hf(state, "beit"), folder / "model.safetensors", metadata={"format": "pt"})
    mean = config.classes > 0 and config.pool == "mean"
    content = _common(config, "beit", "BeitForImageClassification" if config.classes else "BeitModel")
    _write_config(content | _beit(config, mean_pooling=mean) | _labels(weights), weights, folder)
    return Written(_CLASSIFIER if config.classes else _AUTO.format("FOLDER", ""))


def _save_guesser(weights: Loaded, folder: Path) -> Written:
    config = weights.vit
    state = without_key_bias(weights.state, config) | weights.beside
    save_file(to_hf(state, "beit"), folder / "model.safetensors", metadata={"format": "pt"})
    content = _common(config, "beit", "BeitForMaskedImageModeling") | _beit(config, mean_pooling=True)
    _write_config(content | {"vocab_size": len(weights.beside["lm_head.weight"])}, weights, folder)
    features = folder / BACKBONE
    features.mkdir()
    _save_beit(weights, features)
    write_processor(weights, features)
    note = "The tokenizer is not here: `unmask export` its run, or RUN/tokenizer."
    return Written(_AUTO.format(f"FOLDER/{BACKBONE}", "") + _GUESSER, (note,))


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


def _labels(weights: Loaded) -> dict[str, Any]:
    if not weights.vit.classes:
        return {}
    names = weights.classes or tuple(f"LABEL_{i}" for i in range(weights.vit.classes))
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _decoder(weights: Loaded, run: Run | None) -> dict[str, Any]:
    names = {name.split(".")[2] for name in weights.beside if name.startswith("decoder.blocks.")}
    content: dict[str, Any] = {
        "decoder_hidden_size": weights.beside["decoder.embed.weight"].shape[0],
        "decoder_num_hidden_layers": len(names),
        "decoder_num_attention_heads": weights.decoder_heads,
        "decoder_intermediate_size": weights.beside["decoder.blocks.0.mlp.fc1.weight"].shape[0],
    }
    method = None if run is None else run.config.method
    if isinstance(method, MAEConfig) and isinstance(method.masks[0], RandomMask):
        content |= {"mask_ratio": method.masks[0].ratio, "norm_pix_loss": method.norm_pixels}
    return content


def _decoder_problem(config: ViTConfig) -> str:
    """Why transformers' ViTMAE cannot have this decoder; empty: it can."""
    if config.patch_hw[0] != config.patch_hw[1] or config.image_hw[0] != config.image_hw[1]:
        return "ViTMAE takes square images and patches only"
    if config.gelu != "erf":
        return "ViTMAE has one GELU for encoder and decoder, here they differ"
    return ""


def _write_config(content: dict[str, Any], weights: Loaded, folder: Path) -> None:
    content = content | {OURS: {name: getattr(weights, name) for name in ("mean", "std", "range", "classes")}}
    (folder / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


_AUTO = """\
from transformers import AutoImageProcessor, AutoModel

processor, model = AutoImageProcessor.from_pretrained("{0}"), AutoModel.from_pretrained("{0}"{1}).eval()
tokens = model(**processor(pictures, return_tensors="pt")).last_hidden_state  # [B 1+N D], class token first
"""
_CLASSIFIER = """\
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = AutoModelForImageClassification.from_pretrained("FOLDER").eval()
logits = model(**processor(pictures, return_tensors="pt")).logits  # [B K]; names in model.config.id2label
"""
_BOTH = """\
The file holds encoder and decoder. AutoModel reports the decoder's keys as unexpected, and \
ViTMAEForPreTraining that the type is `vit`: both are meant so."""
_PAINTER = """
from transformers import ViTMAEForPreTraining

painter = ViTMAEForPreTraining.from_pretrained("FOLDER").eval()  # encoder and decoder
"""
_GUESSER = """
from transformers import BeitForMaskedImageModeling

guesser = BeitForMaskedImageModeling.from_pretrained("FOLDER").eval()  # tokens of hidden patches
"""
