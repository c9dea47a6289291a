"""BEiT: BERT pre-training of image Transformers (Bao et al. 2021, arXiv:2106.08254).

A frozen tokenizer turns the image into a grid of visual tokens, one for each patch. Blocks of patches
are hidden behind a mask embedding, the ViT sees the rest, and says for each hidden patch which token
stands there. Only hidden patches are scored.

    x            image                                   image        [B C h w]
    z            visual tokens of the same crop          ids          [B N], from twins [B C t t]
    M            hidden patches, in blocks               mask         [B N]; hidden [M], flat indices
    x^M          patches, e_[M] at M, then positions     vit(image, hidden=mask)
    h^L          the last layer's patches, normalized    vit.at       [M D]
    p_MIM        softmax(W_c h_i + b_c), i in M          lm_head      [M K]
    loss = - mean over M of log p_MIM(z_i | x^M)         loss

The tokenizer is part of the method and of its state dict: a checkpoint decodes its own tokens and does
not need the file it came from. On `build`, `tokenizer_from` is read where it still exists; otherwise the
weights come with the checkpoint. Before the first step their fingerprint is compared with the config's.

What this file does differently: tokens, the end of the last block and logits are computed for hidden
patches alone, picked by indices that were counted on the CPU; the mean runs over the hidden patches of
the whole step, over micro-batches and processes (`Batch.shares`), where the original averages each
process's own. The accuracies are averaged alike; `constant_acc` takes the most frequent token of each
micro-batch.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..config import MethodConfig, differences
from ..initialize import initialize
from ..masks import BlockMask, MaskPolicy
from ..positions import pair
from ..tokenizers import Tokenizer, fingerprint, load
from ..views import Jitter, View
from ..vit import ViT, ViTConfig, places_of
from .base import Batch, Group, Method, Output, Progress, decay_groups
from .codec import Codec, CodecConfig, build_codec
from .codec_health import frequencies
from .logits import cross_entropy


@dataclass(frozen=True)
class BEiTConfig(MethodConfig):
    """Defaults: ViT-B/16 at 224 px with DALL-E's tokenizer at 112 px, the released code."""

    pools, layers, probe = ("mean",), "best", "beit"

    # --- what changes results ---
    vit: ViTConfig = ViTConfig(
        pos_embed="none",
        rel_pos="shared",
        qkv_bias="qv",
        layer_scale=0.1,
        drop_path=0.1,
        mask_token=True,
        init="beit",
    )
    """the backbone; BEiT-L has layer_scale 1e-5"""
    views: tuple[View, ...] = (View(224, scale=(0.08, 1.0), jitter=Jitter(), jitter_before_crop=True, twin=112),)
    """one view and its twin, which the tokenizer reads: as many cells as the view has patches"""
    masks: tuple[MaskPolicy, ...] = (BlockMask(),)
    """which patches are hidden: up to 75 of 196, in blocks"""
    tokenizer: CodecConfig = CodecConfig()
    """architecture of the tokenizer; its vocabulary is what the head predicts"""
    tokenizer_from: str = ""
    """where its weights come from: a run, tokenizer.safetensors, DALL-E's encoder.pkl"""
    tokenizer_hash: str = ""
    """fingerprint that its weights must have; empty: any, even fresh ones (tests)"""
    tokenizer_precision: Literal["fp32", "bf16"] = "fp32"
    """of the products that make tokens, the original's by default; bf16 changes 1 to 2 % of the tokens and
    takes less than two thirds of their time on a CPU, far less on a GPU (docs/decisions/0007)"""

    def grids(self) -> tuple[tuple[int, int], ...]:
        return (self.vit.grid,)

    def build(self, tokenizer: nn.Module | None = None) -> "BEiT":
        """Make the networks.

        Args:
            tokenizer: a Tokenizer to predict; None: `tokenizer_from` if it exists, else fresh weights,
                which a checkpoint replaces.
        """
        if self.views[0].twin is None:
            raise ValueError("BEiT's view has no twin for the tokenizer; give it one: --method.views.0.twin 112")
        if tokenizer is None:
            tokenizer = self.stored_tokenizer() or build_codec(self.tokenizer)
        return BEiT(self, tokenizer)

    def stored_tokenizer(self) -> nn.Module | None:
        """Read `tokenizer_from`; None where it is not given or, with a fingerprint to go by, gone or another now."""
        if not self.tokenizer_from:
            return None
        try:
            codec = load(self.tokenizer_from)
        except ValueError:
            if self.tokenizer_hash:
                return None
            raise
        if self.tokenizer_hash:
            same = codec.config == self.tokenizer and fingerprint(codec) == self.tokenizer_hash
            return codec if same else None
        if codec.config != self.tokenizer:
            changed = "; ".join(differences(codec.config, self.tokenizer))
            raise ValueError(
                f"the tokenizer {self.tokenizer_from} is another than the config says ({changed}); "
                f"leave --method.tokenizer.* out, or give another with --tokenizer PATH"
            )
        return codec


class BEiT(Method):
    """A ViT with a head over visual tokens, and the frozen tokenizer that makes them."""

    def __init__(self, config: BEiTConfig, tokenizer: nn.Module):
        super().__init__()
        assert isinstance(tokenizer, Tokenizer)
        (view,), (_,) = config.views, config.masks
        check_fit(config.vit, view, tokenizer)
        self.config = config
        self.vit = ViT(config.vit)
        self.lm_head = nn.Linear(config.vit.width, tokenizer.vocab)
        initialize(self.lm_head, config.vit.init)
        if config.tokenizer_precision != "fp32" and not isinstance(tokenizer, Codec):
            raise ValueError(
                f"tokenizer_precision {config.tokenizer_precision} is for codecs, not for {type(tokenizer)}"
            )
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.verified = not config.tokenizer_hash

    def forward(self, batch: Batch, at: Progress) -> Output:
        (image,), (mask,), (hidden,) = batch.views, batch.masks, batch.hidden
        self.verify()
        target = self.target(batch)  # [M]
        places = places_of(hidden, mask.shape[1], 1 + self.config.vit.registers)
        logits = self.lm_head(self.vit.at(image, places, hidden=mask))  # [M K]
        count = max(len(hidden), 1)
        share = batch.shares[0] if batch.shares else 1.0
        nats, best = cross_entropy(logits, target)
        loss = nats / count * share
        with torch.no_grad():
            metrics = {
                "mlm_acc": (best == target).sum() / count * share,
                # what guessing the micro-batch's most frequent token everywhere would get
                "constant_acc": frequencies(target, logits.shape[1]).max() * share
                if len(hidden)
                else loss.detach() * 0,
            }
        return Output(loss, metrics)

    def target(self, batch: Batch) -> Int[Tensor, "M"]:
        """The visual tokens of the hidden patches: no gradient, and no bf16 unless the config says so."""
        (hidden,) = batch.hidden
        if not isinstance(self.tokenizer, Codec):
            return self.tokens(batch).flatten().index_select(0, hidden)
        self.check_twins(batch)
        return self.tokenizer.encode(batch.twins[0].float(), hidden, self.config.tokenizer_precision)

    def tokens(self, batch: Batch) -> Int[Tensor, "B N"]:
        """The visual tokens of all patches of the batch's twins, in fp32 whatever the autocast says."""
        self.check_twins(batch)
        with torch.no_grad(), torch.autocast(batch.twins[0].device.type, enabled=False):
            return self.tokenizer.encode(batch.twins[0].float())

    def check_twins(self, batch: Batch) -> None:
        """Refuse a batch without the tokenizer's images, or with other cells than patches."""
        if not batch.twins:
            raise ValueError("BEiT's batch has no twins for the tokenizer; give its view one: View(twin=112)")
        stride, (h, w), patches = self.tokenizer.stride, batch.twins[0].shape[2:], batch.masks[0].shape[1]
        if (h // stride) * (w // stride) != patches:
            raise ValueError(f"the tokenizer gives {(h // stride) * (w // stride)} tokens for {patches} patches")

    def guess(self, image: Float[Tensor, "B C h w"], mask: Bool[Tensor, "B N"]) -> Int[Tensor, "B N"]:
        """The most likely token of every patch, from the patches that `mask` leaves visible."""
        return self.lm_head(self.vit(image, hidden=mask).patches).argmax(-1)

    def verify(self) -> None:
        """Make sure, once, that the tokenizer's weights are those of the config.

        Raises:
            ValueError: they are not: their file is gone or another one is in its place.
        """
        if self.verified:
            return
        found, wanted = fingerprint(self.tokenizer), self.config.tokenizer_hash
        if found != wanted:
            raise ValueError(
                f"the tokenizer's weights are {found}, this run was made with {wanted} from "
                f"{self.config.tokenizer_from or 'an unknown place'}; give that one with --tokenizer"
            )
        self.verified = True

    def train(self, mode: bool = True) -> "BEiT":
        super().train(mode)
        self.tokenizer.eval()
        return self

    def parameter_groups(self) -> list[Group]:
        """Leave biases, norms, gammas, positions and the class token undecayed.

        Relative position tables and the mask token do decay, as in the official code.
        """
        return decay_groups(self, skip={"pos_embed", "cls_token"})

    def blocks(self) -> list[nn.Module]:
        return list(self.vit.blocks)

    def backbone(self) -> ViT:
        return self.vit


def check_fit(vit: ViTConfig, view: View, tokenizer: Tokenizer) -> None:
    """Refuse a view, a ViT and a tokenizer whose grids differ.

    Raises:
        ValueError: names both sides and what to change.
    """
    if not vit.mask_token:
        raise ValueError("BEiT hides patches behind a mask token: build the ViT with mask_token=True")
    if pair(view.size) != vit.image_hw:
        raise ValueError(
            f"the view is {view.size} px and the ViT expects {vit.image_size}; "
            f"give both --method.views.0.size and --method.vit.image-size"
        )
    if tokenizer.channels != vit.channels:
        raise ValueError(
            f"the tokenizer reads {tokenizer.channels} channels and the ViT {vit.channels}; "
            f"train a tokenizer on these images (unmask pretrain dvae DATA --channels {vit.channels})"
        )
    (gh, gw), stride = vit.grid, tokenizer.stride
    if view.twin is not None and (view.twin, view.twin) != (gh * stride, gw * stride):
        cells = view.twin / stride
        cure = f"use --method.views.0.twin {gh * stride}" if gh == gw else "a twin is square: use a square view"
        raise ValueError(
            f"a tokenizer of stride {stride} cuts the {view.twin}-px twin into {cells:g}x{cells:g} cells, "
            f"the ViT has {gh}x{gw} patches; {cure}"
        )
