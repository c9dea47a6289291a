"""The steps of packages that install from a registry: transformers and lightly.

Assembled as their documentation does it. lightly's iBOT is a smaller problem than the paper's: its teacher's
head and its second center see hidden patches alone.
"""

from collections.abc import Callable

import torch
from race import Absent, Turn
from torch import Tensor, nn

from unmask.methods.beit import BEiTConfig
from unmask.methods.ibot import IBOTConfig
from unmask.methods.mae import MAEConfig, normalize, patchify
from unmask.vit import ViTConfig

from .cases import Case
from .official import adamw, stepping


def transformers(given: Case, precision: str) -> Turn:
    """A step of Hugging Face's ViTMAE or BEiT."""
    try:
        import transformers as hf
    except ImportError:
        raise Absent("transformers is not installed: pip install 'unmask[bench]'") from None
    torch.manual_seed(0)
    config, batch = given.method, given.batch()
    if isinstance(config, MAEConfig):
        model: nn.Module = hf.ViTMAEForPreTraining(
            hf.ViTMAEConfig(
                **_hf_sizes(config.vit),
                decoder_hidden_size=config.decoder_width,
                decoder_num_hidden_layers=config.decoder_depth,
                decoder_num_attention_heads=config.decoder_heads,
                decoder_intermediate_size=4 * config.decoder_width,
                norm_pix_loss=config.norm_pixels,
            )
        )
        inputs = {"pixel_values": batch.views[0]}
    elif isinstance(config, BEiTConfig) and given.tokens_given:
        model = hf.BeitForMaskedImageModeling(
            hf.BeitConfig(
                **_hf_sizes(config.vit),
                vocab_size=config.tokenizer.vocab,
                use_mask_token=True,
                use_shared_relative_position_bias=True,
                layer_scale_init_value=config.vit.layer_scale,
                drop_path_rate=config.vit.drop_path,
            )
        )
        (mask,) = batch.masks
        inputs = {"pixel_values": batch.views[0], "bool_masked_pos": mask, "labels": given.tokens()[mask]}
    else:
        raise Absent("transformers has no such step")
    return _stepping(model.to(given.device).train(), given, precision, lambda: model(**inputs).loss)


def _hf_sizes(vit: ViTConfig) -> dict[str, int]:
    assert isinstance(vit.image_size, int) and isinstance(vit.patch, int)
    return {
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "intermediate_size": 4 * vit.width,
        "image_size": vit.image_size,
        "patch_size": vit.patch,
    }


def lightly(given: Case, precision: str) -> Turn:
    """A step of lightly's MAE or iBOT parts."""
    try:
        import lightly.models.modules  # noqa: F401
    except ImportError:
        raise Absent("lightly is not installed: pip install 'unmask[bench]'") from None
    torch.manual_seed(0)
    if isinstance(given.method, MAEConfig):
        return _lightly_mae(given, given.method, precision)
    if isinstance(given.method, IBOTConfig):
        return _lightly_ibot(given, given.method, precision)
    raise Absent("lightly has no such step")


def _timm(vit: ViTConfig, **more: object) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(vit.image_size, vit.patch, embed_dim=vit.width, depth=vit.depth, num_heads=vit.heads,
        num_classes=0, global_pool="", **more)  # fmt: skip


def _lightly_mae(given: Case, config: MAEConfig, precision: str) -> Turn:
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM

    (image,), vit, width = given.batch().views, config.vit, config.decoder_width
    patches = vit.grid[0] * vit.grid[1]
    parts = nn.ModuleDict(
        {
            "encoder": MaskedVisionTransformerTIMM(_timm(vit)),
            "embed": nn.Linear(vit.width, width),
            "decoder": MaskedVisionTransformerDecoderTIMM(patches, width, config.decoder_depth, config.decoder_heads),
            "pred": nn.Linear(width, 3 * vit.patch_hw[0] * vit.patch_hw[1]),
        }
    ).to(given.device)
    parts.train()
    target = normalize(patchify(image, vit.patch_hw))

    def loss() -> Tensor:
        keep, hidden = utils.random_token_mask((len(image), 1 + patches), 0.75, device=image.device)
        seen = parts["embed"](parts["encoder"].encode(images=image, idx_keep=keep))
        tokens = utils.repeat_token(parts["decoder"].mask_token, (len(image), 1 + patches))
        tokens = utils.set_at_index(tokens, keep, seen.type_as(tokens))
        predicted = parts["pred"](utils.get_at_index(parts["decoder"](tokens), hidden))
        return nn.functional.mse_loss(predicted.float(), utils.get_at_index(target, hidden - 1))

    return _stepping(parts, given, precision, loss)


def _lightly_ibot(given: Case, config: IBOTConfig, precision: str) -> Turn:
    from lightly.loss import DINOLoss, IBOTPatchLoss
    from lightly.models import utils
    from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM

    vit, batch, n, b = config.vit, given.batch(), config.globals, given.images

    def network() -> nn.ModuleDict:
        backbone = MaskedVisionTransformerTIMM(
            _timm(vit, dynamic_img_size=True), antialias=False, pos_embed_initialization="skip"
        )
        head = DINOProjectionHead(
            vit.width, config.head_width, config.bottleneck, config.prototypes, norm_last_layer=config.norm_last_layer
        )
        return nn.ModuleDict({"backbone": backbone, "head": head}).to(given.device)

    student, teacher = network(), network().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    utils.update_drop_path_rate(student["backbone"].vit, vit.drop_path, mode="linear")
    cls_loss = DINOLoss(config.prototypes).to(given.device)
    patch_loss = IBOTPatchLoss(config.prototypes).to(given.device)
    image, mask = torch.cat(batch.views[:n]), torch.cat(batch.masks)
    local = torch.cat(batch.views[n:]) if len(batch.views) > n else None
    tokens_mask = nn.functional.pad(mask, (1, 0))

    def loss() -> Tensor:
        with torch.no_grad():
            features = teacher["backbone"].encode(image)
            taught = teacher["head"](features[:, 0]).chunk(n)
            taught_patches = teacher["head"](features[tokens_mask])
        features = student["backbone"].encode(image, mask=tokens_mask)
        seen = list(student["head"](features[:, 0]).chunk(n))
        seen_patches = student["head"](features[tokens_mask])
        if local is not None:
            seen += student["head"](student["backbone"].encode(local)[:, 0]).split(b)
        patches = patch_loss(taught_patches, seen_patches, mask.unflatten(1, vit.grid), teacher_temp=0.07)
        return cls_loss(list(taught), seen, teacher_temp=0.07) + patches

    def after() -> None:
        utils.update_momentum(student, teacher, 0.996)

    def clip() -> object:
        return nn.utils.clip_grad_norm_(student.parameters(), 3.0)

    return stepping(given, loss, adamw(student, given), precision, clip, after)


def _stepping(model: nn.Module, given: Case, precision: str, loss: Callable[[], Tensor]) -> Turn:
    def clip() -> None:
        if given.optim.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), given.optim.clip)

    return stepping(given, loss, adamw(model, given), precision, clip)
