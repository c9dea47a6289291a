"""Recipes: the papers' tables field by field, published sizes, and a whole way to JSON and back."""

import dataclasses
import json

import pytest
import torch

from unmask.config import UsageError, from_json, to_json
from unmask.recipes import RECIPES, Facts, card, find, fitting_size, name_of

FACTS = (Facts(), Facts(7560, 32, 3, (0.5,) * 3, (0.2,) * 3), Facts(12_500, 64, 1, (0.4,), (0.3,), gpu=True))
PUBLISHED = {  # fidelity.md 5.6: total and trained parameters; Table 8's sizes
    "mae-vit-b16-in1k": (111_907_840, 111_655_680, (768, 12, 12, 16)),
    "mae-vit-l16-in1k": (329_541_888, 329_239_296, (1024, 24, 16, 16)),
    "mae-vit-h14-in1k": (657_074_508, 656_613_964, (1280, 32, 16, 14)),
}


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: f"{facts.side}px-{facts.channels}")
@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_every_recipe_builds_and_survives_json(recipe, facts):
    config = recipe(facts)
    with torch.device("meta"):
        method = config.method.build()
    assert method.backbone().config.channels == facts.channels == config.data.channels
    assert len(config.data.mean) == len(config.data.std) == facts.channels
    assert config.recipe == name_of(recipe)
    assert (config.epochs is None) != (config.steps is None)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_published_parameters(name):
    total, trained, _ = PUBLISHED[name]
    with torch.device("meta"):
        method = find(name)(Facts()).method.build()
    fixed = [p for p in method.parameters() if not p.requires_grad] + list(method.buffers())
    learned = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert learned == trained
    assert learned + sum(p.numel() for p in fixed) == total


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_mae_recipes_are_table_8(name):
    config = find(name)(Facts())
    method, optim, (width, depth, heads, patch) = config.method, config.optim, PUBLISHED[name][2]
    vit = method.vit
    assert (vit.image_size, vit.width, vit.depth, vit.heads, vit.patch) == (224, width, depth, heads, patch)
    assert (vit.pos_embed, vit.init, vit.drop_path) == ("sincos", "mae", 0.0)
    assert (method.decoder_width, method.decoder_depth, method.decoder_heads, method.norm_pixels) == (512, 8, 16, True)
    assert (optim.name, optim.betas, optim.weight_decay) == ("adamw", (0.9, 0.95), 0.05)
    assert (optim.base_lr, optim.base_batch, optim.min_lr, optim.clip) == (1.5e-4, 256, 0.0, None)
    assert (optim.warmup_epochs, optim.schedule) == (40.0, "epoch")
    assert (config.batch, config.epochs, config.steps) == (4096, 800.0, None)
    assert optim.lr(config.batch) == pytest.approx(2.4e-3)
    (view,), (mask,) = method.views, method.masks
    assert (view.size, view.scale, view.flip, view.interpolation) == (224, (0.2, 1.0), 0.5, "bicubic")
    assert (view.jitter, view.gray, view.blur, view.solarize) == (None, 0.0, None, 0.0)
    assert mask.ratio == 0.75
    assert (config.data.mean, config.data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_published_recipes_keep_the_papers_mean_and_self_sizing_ones_take_the_measured():
    facts = Facts(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
    for recipe in RECIPES:
        data = recipe(facts).data
        assert (data.mean == facts.mean) == ("-vit-" not in name_of(recipe))
        assert (data.std == facts.std) == ("-vit-" not in name_of(recipe))


@pytest.mark.parametrize("side", [1, 28, 32, 48, 64, 96, 200, 224, 500, 4000])
def test_a_fitting_size_divides_into_at_least_64_patches(side):
    size, patch = fitting_size(side)
    assert size % patch == 0 and (size // patch) ** 2 >= 64 and 32 <= size <= 224


def test_every_recipe_has_a_whole_card():
    for recipe in RECIPES:
        assert card(recipe).keys() >= {"recipe", "what", "paper", "expected", "cost"}
        assert all(card(recipe).values())


def test_names_take_hyphens_or_underscores_and_the_nearest_is_named():
    assert find("mae_vit_b16_in1k") is find("mae-vit-b16-in1k")
    with pytest.raises(UsageError, match="did you mean mae-vit-b16-in1k"):
        find("mae-vit-b16-in1")
    with pytest.raises(UsageError, match="there are: mae, mae-nano"):
        find("quux")


def test_a_recipe_is_a_value():
    assert all(dataclasses.is_dataclass(recipe(Facts())) and recipe(Facts()) == recipe(Facts()) for recipe in RECIPES)


def test_the_modern_vit_from_scratch_is_mae_s_table_11():
    config = find("supervised-vit-b16-in1k")(Facts())
    method, optim, (view,) = config.method, config.optim, config.method.views
    assert (method.vit.width, method.vit.depth, method.vit.heads, method.vit.patch) == (768, 12, 12, 16)
    assert (method.vit.drop_path, method.vit.dropout, method.vit.pool) == (0.1, 0.0, "mean")
    assert (method.smoothing, method.average, method.layer_decay, method.loss) == (0.1, 0.9999, 1.0, "softmax")
    assert (optim.name, optim.betas, optim.weight_decay, optim.clip) == ("adamw", (0.9, 0.95), 0.3, None)
    assert (optim.warmup_epochs, optim.schedule, optim.min_lr) == (20.0, "epoch", 1e-6)
    assert (config.batch, config.epochs) == (4096, 300.0)
    assert optim.lr(config.batch) == pytest.approx(1.6e-3)
    assert (view.randaugment.magnitude, view.randaugment.spread, view.erase) == (9.0, 0.5, 0.0)
    assert (view.mix.mixup, view.mix.cutmix, view.mix.p, view.scale) == (0.8, 1.0, 1.0, (0.08, 1.0))


def test_the_original_vit_from_scratch_is_its_table_3():
    config = find("supervised-vit-b16-in1k-original")(Facts())
    method, optim, (view,) = config.method, config.optim, config.method.views
    assert (method.vit.dropout, method.vit.drop_path, method.vit.pool) == (0.1, 0.0, "cls")
    assert (method.vit.init, method.vit.gelu, method.vit.image_size) == ("jax", "tanh", 224)
    assert (method.smoothing, method.loss, method.head_bias, method.average) == (0.0, "sigmoid", -10.0, None)
    assert (optim.name, optim.betas, optim.weight_decay) == ("adamw", (0.9, 0.999), 0.3)
    assert (optim.lr(config.batch), optim.min_lr, optim.clip, optim.clip_by) == (3e-3, 0.0, 1.0, "global")
    assert optim.warmup_epochs * 1_281_167 / config.batch == pytest.approx(10_000)
    assert (config.batch, config.epochs) == (4096, 300.0)
    assert (view.scale, view.interpolation, view.flip) == ((0.05, 1.0), "bilinear", 0.5)
    assert (view.randaugment, view.mix, view.erase, view.jitter) == (None, None, 0.0, None)
    assert (config.data.mean, config.data.std) == ((0.5,) * 3, (0.5,) * 3)
    with torch.device("meta"):
        assert sum(p.numel() for p in method.build().parameters()) == 86_567_656  # of timm's vit_base_patch16_224


def test_controls_differ_from_dino_in_where_the_target_comes_from_alone():
    plain = find("dino")(Facts()).method
    changes = {
        "dino-student-target": {"momentum": 0.0, "momentum_end": 0.0},
        "dino-epoch-target": {"teacher_every": 1.0},
        "dino-frozen-target": {"momentum": 1.0, "momentum_end": 1.0},
        "dino-constant-target": {"momentum_end": plain.momentum},
    }
    for name, change in changes.items():
        assert find(name)(Facts()).method == dataclasses.replace(plain, **change) != plain
