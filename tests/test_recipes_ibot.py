"""iBOT's and DINO's recipes: the published ones field by field, the self-sizing ones by their arithmetic.

Published constants: README.md, main_ibot.py and loader.py of bytedance/ibot; README.md ("boosting") and main_dino.py
of facebookresearch/dino; the sizes, epochs and scales of ViT-B and -L are the paper's (section 3.2, appendix).
"""

import pytest
import torch

from unmask.recipes import Facts, find
from unmask.views import expand

IBOT = {  # width, depth, heads; epochs; smallest global and largest local area; norm_last_layer; frozen epochs
    "ibot-vit-s16-in1k": ((384, 12, 6), 800.0, 0.25, False, 1.0),
    "ibot-vit-b16-in1k": ((768, 12, 12), 400.0, 0.32, True, 3.0),
    "ibot-vit-l16-in1k": ((1024, 24, 16), 250.0, 0.32, True, 3.0),
}
PUBLISHED = (*IBOT, "dino-vit-s16-in1k")
HEADS = {"ibot-vit-s16-in1k": 7_614_720, "ibot-vit-b16-in1k": 8_401_152, "ibot-vit-l16-in1k": 8_925_440}
SMALL = Facts(images=12_500, side=64, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_share_the_official_optimization(name):
    config = find(name)(Facts())
    optim, method = config.optim, config.method
    assert (optim.name, optim.betas, optim.eps) == ("adamw", (0.9, 0.999), 1e-8)
    assert (optim.base_lr, optim.base_batch, optim.min_lr) == (5e-4, 256, 1e-6)
    assert (optim.warmup_epochs, optim.warmup_fraction, optim.schedule) == (10.0, None, "step")
    assert (optim.weight_decay, optim.weight_decay_end) == (0.04, 0.4)
    assert (optim.clip, optim.clip_by) == (3.0, "tensor")
    assert config.batch == 1024
    assert optim.lr(config.batch) == pytest.approx(0.002)
    assert (method.momentum, method.momentum_end) == (0.996, 1.0)
    assert (method.center_momentum, method.patch_center_momentum) == (0.9, 0.9)
    assert (method.student_temperature, method.warmup_temperature, method.teacher_temperature) == (0.1, 0.04, 0.07)
    assert (method.warmup_temperature_epochs, method.cls_weight, method.koleo_weight) == (30, 1.0, 0.0)
    assert (method.head_layers, method.head_width, method.bottleneck, method.head_act) == (3, 2048, 256, "gelu")
    assert method.head_norm == "none"
    assert (config.data.mean, config.data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", IBOT)
def test_published_ibot_is_the_readmes(name):
    sizes, epochs, area, unit, frozen = IBOT[name]
    config = find(name)(Facts())
    method, vit = config.method, config.method.vit
    assert (vit.width, vit.depth, vit.heads) == sizes
    assert (vit.image_size, vit.patch, vit.drop_path, vit.qkv_bias, vit.pos_resize) == (224, 16, 0.1, "full", "factor")
    assert vit.layer_scale is None
    assert (config.epochs, config.steps) == (epochs, None)
    first, second, local = method.views
    assert [(v.size, v.scale, v.count) for v in method.views] == [
        (224, (area, 1.0), 1), (224, (area, 1.0), 1), (96, (0.05, area), 10)
    ]  # fmt: skip
    assert (first.blur.p, second.blur.p, local.blur.p, second.solarize) == (1.0, 0.1, 0.5, 0.2)
    assert [mask.ratios for mask in method.masks] == [((0.0, 0.0), (0.3, 0.2))] * 2
    assert (method.prototypes, method.shared_head, method.shared_head_teacher) == (8192, True, None)
    assert (method.patch_warmup_temperature, method.patch_teacher_temperature) == (0.04, 0.07)
    assert (method.patch_start_epoch, method.patch_weight) == (0, 1.0)
    assert (method.norm_last_layer, method.freeze_last_layer) == (unit, frozen)
    with torch.device("meta"):
        head = method.build().student.head
    assert sum(p.numel() for p in head.parameters()) == HEADS[name]


def test_published_dino_is_the_boosting_command():
    config = find("dino-vit-s16-in1k")(Facts())
    method = config.method
    assert (config.epochs, method.masks, method.prototypes) == (300.0, (), 65536)
    assert (method.norm_last_layer, method.freeze_last_layer, method.vit.drop_path) == (False, 1.0, 0.1)
    assert [(v.size, v.scale, v.count) for v in method.views] == [
        (224, (0.4, 1.0), 1), (224, (0.4, 1.0), 1), (96, (0.05, 0.4), 8)
    ]  # fmt: skip
    assert len(expand(method.views)) == 10


@pytest.mark.parametrize("name", ["ibot", "dino"])
def test_self_sizing_recipes_are_as_long_as_the_data_wants_and_their_phases_are_parts_of_it(name):
    small, large = find(name)(SMALL), find(name)(SMALL._replace(gpu=True))
    assert (small.epochs, small.batch, large.epochs, large.batch) == (40.0, 64, 1600.0, 1024)  # 5e5 and 1e8 images
    assert (small.method.vit.image_size, small.method.views[2].size) == (48, 24)  # 3/4 of the side; 96 of 224 px
    for config in (small, large):
        method = config.method
        assert (method.warmup_temperature_epochs, method.warmup_temperature_fraction) == (30, 0.3)
        assert (method.freeze_last_layer, method.freeze_fraction) == (1.0, 0.05)
        assert bool(method.masks) == (name == "ibot")
    assert small.method.lengths(40.0) == pytest.approx((12.0, 1.0))
    assert small.method.lengths(5.0) == pytest.approx((1.5, 0.25))  # --epochs 5
    assert large.method.lengths(1600.0) == (30, 1.0)
