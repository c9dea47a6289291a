"""What the tests of BEiT's two stages share: a dVAE and a BEiT of 16 px that train in milliseconds."""

import dataclasses

from toys import TINY

from unmask.masks import BlockMask
from unmask.methods import relaxation
from unmask.methods.beit import BEiTConfig
from unmask.methods.codec import CodecConfig
from unmask.methods.dvae import DVAEConfig
from unmask.views import View

CODEC = CodecConfig(vocab=16, stride=4, width=8, groups=3, blocks=1, code_width=8)
DVAE = DVAEConfig(codec=CODEC, views=(View(16, scale=(0.2, 1.0), twin=16),))
BEIT = BEiTConfig(
    vit=dataclasses.replace(
        TINY.vit, pos_embed="none", rel_pos="shared", qkv_bias="qv", layer_scale=0.1, mask_token=True, init="beit"
    ),
    views=(View(16, scale=(0.2, 1.0), twin=16),),
    masks=(BlockMask(ratios=((0.0, 0.0), (0.5, 0.3)), smallest=1),),  # some images hide nothing, others most
    tokenizer=CODEC,
)
STAGES = {"dvae": DVAE, "beit": BEIT}


def without_noise():
    """Let every cell's Gumbel noise be 0: what ranks draw differs, what they make of it must not."""
    relaxation.gumbel = lambda like, generator=None: like * 0
