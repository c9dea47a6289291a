"""Golden cases of the discrete VAEs: DALL-E's encoder and decoder, and BEiT's own `DiscreteVAE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..methods.codec import CodecConfig
from ..methods.codec_dalle import DalleCodec
from ..methods.dvae import DVAE, Anneal, DVAEConfig
from ..methods.pixels import map_pixels, unmap_pixels
from ..methods.relaxation import relax
from ..tokenizers import from_state
from ..views import View
from ..weights import dalle

if TYPE_CHECKING:
    from .goldens import Case

Produced = dict[str, "Tensor | float"]


def grid_last(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B N K] as the official [B K gh gw]."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


@torch.no_grad()
def dalle_dvae(case: Case) -> Produced:
    """Encode, take the argmax, decode it and the soft codes; the pixel map both ways."""
    config, weights = case.config, case.weights
    blocks = config["n_blk_per_group"]
    groups = config.get("group_count", 4)
    codec = from_state(
        CodecConfig(
            vocab=config["vocab_size"],
            stride=2 ** (groups - 1),
            channels=config.get("input_channels", 3),
            width=config["n_hid"],
            groups=groups,
            blocks=blocks,
            code_width=config["n_init"],
        ),
        dalle.from_official(weights["encoder"], weights["decoder"]),
    )
    assert isinstance(codec, DalleCodec)
    image = case.inputs["images01"]
    out: Produced = {"mapped": map_pixels(image), "unmap_out": unmap_pixels(case.inputs["unmap_in"])}

    def watch(name: str, module: torch.nn.Module) -> None:
        def keep(_module: torch.nn.Module, _args: Any, value: Any) -> None:
            out[name] = value

        module.register_forward_hook(keep)

    watch("encoder_input_conv", codec.encoder.input)
    for i, part in enumerate(codec.encoder.groups, start=1):
        watch(f"encoder_group{i}", part)
    grid = codec.grid(image)
    logits, ids = codec.logits(codec.map(image)), codec.encode(image)
    top = logits.topk(2, dim=-1).values
    probabilities = logits.softmax(-1)
    painted = codec.paint(ids, grid)
    keys = {"encoder_keys": "encoder", "decoder_keys": "decoder"}
    ours = dict(zip(keys.values(), dalle.to_official(codec.state_dict()), strict=True))
    for name, part in keys.items():
        if name in case.outputs_json:
            out[name] = 0.0 if sorted(ours[part]) == sorted(case.outputs_json[name]) else float("inf")
    return {
        **out,
        "encoder_logits": grid_last(logits, grid),
        "tokens": ids.unflatten(1, grid),
        "codebook_probs": grid_last(probabilities, grid),
        "argmax_margin": (top[..., 0] - top[..., 1]).unflatten(1, grid),
        "decoder_out": painted,
        "reconstruction": codec.decode(ids, grid),
        "decoder_out_soft": codec.paint(probabilities, grid),
    }


def discrete_vae(case: Case) -> Produced:
    """The loss of BEiT's class with the given Gumbel noise, its gradients, and its decoding."""
    config = case.config["model"]
    (weights,) = case.weights.values()
    method = build_discrete_vae(config, weights)
    x, noise = case.inputs["img"], case.inputs["gumbel"].flatten(2).transpose(1, 2)
    given = case.config.get("temp")
    temperature, weight = given if given is not None else config["temperature"], config["kl_div_loss_weight"]
    grid = method.codec.grid(x)
    out: Produced = {}
    for name, beta in (("recon_loss", 0.0), ("recon_plus_1x_kl", 1.0), ("loss", weight)):
        result = method.score(x, temperature, beta, noise)
        out[name] = result.loss.detach()
    result.loss.backward()
    out |= {f"grad/{name}": p.grad for name, p in method.codec.named_parameters() if p.grad is not None}
    with torch.no_grad():
        logits = method.codec.logits(x)
        soft = relax(logits, temperature, noise, hard=config["straight_through"])
        ids = logits.argmax(-1)
        return {
            **out,
            "logits": grid_last(logits, grid),
            "soft_one_hot": grid_last(soft, grid),
            "out": method.codec.paint(soft, grid),
            "codebook_indices": ids.unflatten(1, grid),
            "codebook_probs": grid_last(logits.softmax(-1), grid),
            "decode": method.codec.paint(ids, grid),
        }


def build_discrete_vae(config: dict[str, Any], weights: dict[str, Tensor]) -> DVAE:
    """Our DVAE in the guise of BEiT's class, its KL quirk included."""
    weight, temperature = config["kl_div_loss_weight"], config["temperature"]
    side = config["image_size"]
    method = DVAEConfig(
        codec=CodecConfig(
            kind="beit",
            vocab=config["num_tokens"],
            stride=2 ** config["num_layers"],
            channels=config.get("channels", 3),
            width=config["hidden_dim"],
            code_width=config["codebook_dim"],
            likelihood="smooth_l1" if config["smooth_l1_loss"] else "mse",
        ),
        views=(View(side if isinstance(side, int) else tuple(side)),),
        beta=Anneal(weight, weight, 1.0),
        temperature=Anneal(temperature, temperature, 1.0),
        straight_through=config["straight_through"],
        kl_over="sum",
    ).build()
    method.codec.load_state_dict(weights)
    return method
