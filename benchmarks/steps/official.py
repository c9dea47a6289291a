"""The official repositories' steps, read from folders outside this one.

    DIR/mae            facebookresearch/mae
    DIR/unilm/beit     microsoft/unilm, beit alone; its DiscreteVAE is the dVAE's peer
    DIR/DALL-E         openai/DALL-E
    DIR/ibot           bytedance/ibot

They were written for torch 1.7 and timm 0.3.2. What today's versions lack is put in their way when they are
imported, and nothing else is changed: their models, losses, clipping and averaging run as they are, in fp32
(on a GPU as torch has it: TF32 in convolutions, not in products), or under bf16 autocast, the one line that
their CUDA autocast, fp16 with a GradScaler, becomes: on a CPU, which has no fp16 products, and on a GPU, where
bf16 is as fast and spares the scaler's pass over the gradients. Their attention is the explicit product that
timm 0.3.2 had. Each takes its training loop's way through a step: loss read back, gradients cleared,
backward, clip, AdamW, teacher. DALL-E's encoder makes its tokens as it does by itself: in fp32 on a CPU, in
fp16 on a GPU.
"""

import importlib
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from race import Absent, Turn
from torch import Tensor, nn

from unmask.methods.beit import BEiTConfig
from unmask.methods.dvae import DVAEConfig
from unmask.methods.ibot import IBOTConfig
from unmask.methods.mae import MAEConfig

from .cases import AT, Case


def make(given: Case, precision: str, folder: str | None) -> Turn:
    """A step of the official code."""
    if folder is None:
        raise Absent("give --official DIR, a folder with mae, unilm/beit, DALL-E and ibot")
    torch.manual_seed(0)
    root = Path(folder)
    match given.method:
        case MAEConfig() as config:
            return _mae(given, config, root, precision)
        case BEiTConfig() as config:
            return _beit(given, config, root, precision)
        case IBOTConfig() as config:
            return _ibot(given, config, root, precision)
        case DVAEConfig() as config:
            return _dvae(given, config, root, precision)
    raise Absent(f"there is no official code for {type(given.method).__name__}")


def stepping(
    given: Case,
    loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    precision: str,
    clip: Callable[[], object],
    after: Callable[[], object] = lambda: None,
) -> Turn:
    """A step in the order of all four training loops."""

    def turn() -> None:
        with torch.autocast(given.device, torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.item()  # they stop where it is not finite
        optimizer.zero_grad()
        value.backward()
        clip()
        optimizer.step()
        after()

    return turn


def adamw(module: nn.Module, given: Case) -> torch.optim.Optimizer:
    """AdamW as they make it, not fused; biases and norms undecayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": given.optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=given.optim.lr(given.images), betas=given.optim.betas)


def _mae(given: Case, config: MAEConfig, root: Path, precision: str) -> Turn:
    module = official(root / "mae", "models_mae")
    vit, (image,) = config.vit, given.batch().views
    model = module.MaskedAutoencoderViT(
        img_size=vit.image_size,
        patch_size=vit.patch,
        embed_dim=vit.width,
        depth=vit.depth,
        num_heads=vit.heads,
        decoder_embed_dim=config.decoder_width,
        decoder_depth=config.decoder_depth,
        decoder_num_heads=config.decoder_heads,
        norm_layer=partial(nn.LayerNorm, eps=vit.norm_eps),
        norm_pix_loss=config.norm_pixels,
    ).to(given.device)
    trained = [p for p in model.train().parameters() if p.requires_grad]

    def norm() -> object:  # its scaler measures the norm without clipping
        return nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])

    return stepping(given, lambda: model(image, mask_ratio=0.75)[0], adamw(model, given), precision, norm)


def _beit(given: Case, config: BEiTConfig, root: Path, precision: str) -> Turn:
    module = official(root / "unilm" / "beit", "modeling_pretrain", root / "DALL-E")
    vit, batch = config.vit, given.batch()
    (image,), (twin,), (mask,) = batch.views, batch.twins, batch.masks
    model = module.VisionTransformerForMaskedImageModeling(
        img_size=vit.image_size,
        patch_size=vit.patch,
        vocab_size=config.tokenizer.vocab,
        embed_dim=vit.width,
        depth=vit.depth,
        num_heads=vit.heads,
        qkv_bias=True,
        drop_path_rate=vit.drop_path,
        norm_layer=partial(nn.LayerNorm, eps=vit.norm_eps),
        init_values=vit.layer_scale,
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
    ).to(given.device)
    model.train()
    ids = given.tokens()
    tokenizer = None
    if not given.tokens_given:
        codec, vae = config.tokenizer, importlib.import_module("modeling_discrete_vae")
        tokenizer = vae.Dalle_VAE(twin.shape[-1])
        tokenizer.encoder = vae_encoder(codec.width, codec.blocks, codec.vocab).to(given.device)

    def loss() -> Tensor:
        tokens = ids
        if tokenizer is not None:
            with torch.no_grad(), torch.autocast(given.device, enabled=False):  # made before their autocast begins
                tokens = tokenizer.get_codebook_indices(0.8 * twin + 0.1).flatten(1)
        logits = model(image, bool_masked_pos=mask, return_all_tokens=False)
        labels = tokens[mask]
        (logits.max(-1)[1] == labels).float().mean().item()  # its accuracy
        return nn.functional.cross_entropy(logits, labels)

    def clip() -> object:
        return nn.utils.clip_grad_norm_(model.parameters(), 3.0)

    return stepping(given, loss, adamw(model, given), precision, clip)


def vae_encoder(width: int, blocks: int, vocab: int) -> nn.Module:
    """OpenAI's encoder with fresh weights: what it computes does not depend on them."""
    encoder = importlib.import_module("dall_e.encoder")
    return encoder.Encoder(n_hid=width, n_blk_per_group=blocks, vocab_size=vocab).eval()


def _dvae(given: Case, config: DVAEConfig, root: Path, precision: str) -> Turn:
    module = official(root / "unilm" / "beit", "modeling_discrete_vae", root / "DALL-E")
    codec, (image,) = config.codec, given.batch().twins
    model = module.DiscreteVAE(
        image_size=image.shape[-1],
        num_tokens=codec.vocab,
        codebook_dim=codec.code_width,
        num_layers=codec.pools,
        hidden_dim=codec.width,
        temperature=config.temperature(AT),
        kl_div_loss_weight=config.beta(AT),
    ).to(given.device)
    model.train()

    def loss() -> Tensor:
        return model((image - 0.5) / 0.5, return_loss=True)

    return stepping(given, loss, adamw(model, given), precision, lambda: None)


def _ibot(given: Case, config: IBOTConfig, root: Path, precision: str) -> Turn:
    main, utils = official(root / "ibot", "main_ibot"), importlib.import_module("utils")
    models, heads = importlib.import_module("models.vision_transformer"), importlib.import_module("models.head")
    if not torch.distributed.is_initialized():  # its centers are added up between processes
        backend = "gloo" if given.device == "cpu" else "nccl"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    vit, batch = config.vit, given.batch()

    def network(student: bool) -> nn.Module:
        backbone = models.VisionTransformer(
            img_size=[vit.image_size],
            patch_size=vit.patch,
            embed_dim=vit.width,
            depth=vit.depth,
            num_heads=vit.heads,
            qkv_bias=True,
            drop_path_rate=vit.drop_path if student else 0.0,
            return_all_tokens=True,
            masked_im_modeling=student,
        )
        head = heads.iBOTHead(
            vit.width,
            config.prototypes,
            patch_out_dim=config.prototypes,
            hidden_dim=config.head_width,
            norm_last_layer=config.norm_last_layer,
            shared_head=True,
        )
        return utils.MultiCropWrapper(backbone, head).to(given.device)

    student, teacher = network(True), network(False)
    teacher.load_state_dict(student.state_dict(), strict=False)
    teacher.requires_grad_(False)
    views, n = list(batch.views), config.globals
    masks = [mask.unflatten(1, vit.grid) for mask in batch.masks]
    criterion = main.iBOTLoss(
        config.prototypes, config.prototypes, n, len(views) - n, 0.04, 0.07, 0.04, 0.07, 5, 1 + int(AT.epochs)
    ).to(given.device)
    names = dict(teacher.named_parameters())
    common = [(p, names[name]) for name, p in student.named_parameters() if name in names]

    def loss() -> Tensor:
        taught = teacher(views[:n])
        seen = student(views[:n], mask=masks)
        student.backbone.masked_im_modeling = False
        local = student(views[n:])[0] if len(views) > n else None
        student.backbone.masked_im_modeling = True
        losses = criterion(seen, taught, local, masks, int(AT.epoch))
        chosen = [out[0].chunk(n)[i].max(dim=1)[1] for i, out in enumerate((taught, seen))]
        (chosen[0] == chosen[1]).sum()  # its accuracy
        return losses["loss"]

    @torch.no_grad()
    def after() -> None:
        utils.cancel_gradients_last_layer(int(AT.epoch), student, 1)
        for new, average in common:
            average.data.mul_(0.996).add_((1 - 0.996) * new.detach().data)

    optimizer = torch.optim.AdamW(utils.get_params_groups(student), lr=given.optim.lr(given.images))
    return stepping(given, loss, optimizer, precision, lambda: utils.clip_gradients(student, 3.0), after)


# --- what today's versions lack ------------------------------------------------------------------------


def official(folder: Path, name: str, *more: Path) -> Any:
    """Import a module of an official repository, with what it misses put in its way.

    Raises:
        Absent: the folder or a package that it needs is not there.
    """
    for each in (folder, *more):
        if not each.is_dir():
            raise Absent(f"{each} is not there; fetch the repository into it")
    try:
        import timm.layers
    except ImportError:
        raise Absent("the official code needs timm: pip install 'unmask[bench]'") from None
    timm.layers.set_fused_attn(False)  # 0.3.2 had none
    vars(np).setdefault("float", float)
    stand_in("timm.models.layers", **vars(timm.layers))
    stand_in("timm.models.registry", register_model=lambda function: function)
    stand_in("timm.models.vision_transformer", **vars(importlib.import_module("timm.models.vision_transformer")))
    stands = sys.modules["timm.models.vision_transformer"]
    vars(stands)["Block"] = _block(vars(stands)["Block"])
    stand_in("einops", rearrange=_rearrange)
    stand_in("requests")
    stand_in("tensorboardX", SummaryWriter=object)
    stand_in("evaluation")
    stand_in("evaluation.unsupervised")
    stand_in("evaluation.unsupervised.unsup_cls", eval_pred=None)
    stand_in("loader", ImageFolderMask=None)
    sys.path[:0] = [str(folder), *map(str, more)]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"{folder}: {error}") from error


def stand_in(name: str, **contents: Any) -> None:
    """Put a module of this name, with these contents, where imports look first."""
    module = types.ModuleType(name)
    vars(module).update({k: v for k, v in contents.items() if not k.startswith("__")})
    sys.modules[name] = module


def _block(block: type[nn.Module]) -> Callable[..., nn.Module]:
    """timm's block with the argument that it no longer takes."""

    def make_block(*args: Any, qk_scale: None = None, **kwargs: Any) -> nn.Module:
        return block(*args, **kwargs)

    return make_block


def _rearrange(tensor: Tensor, pattern: str, **sizes: int) -> Tensor:
    """The one rearrangement that a training step of BEiT's DiscreteVAE makes."""
    if pattern != "b n h w -> b (h w) n":
        raise ValueError(f"einops is not installed, and {pattern!r} is not known here; pip install einops")
    return tensor.permute(0, 2, 3, 1).flatten(1, 2)
