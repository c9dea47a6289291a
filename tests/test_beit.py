"""BEiT against fidelity.md section 3, items 26 to 37 and section 9, and its golden cases."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from safetensors.torch import load_file, save_file

from unmask import stages
from unmask.config import DataConfig, OptimConfig, RunConfig, from_json, to_json
from unmask.layer_decay import layer_decay_groups, layer_id
from unmask.masks import BlockMask
from unmask.methods.base import Batch, Progress
from unmask.methods.beit import BEiT, BEiTConfig
from unmask.methods.codec import CodecConfig, build_codec
from unmask.methods.codec_health import frequencies
from unmask.optim import build_optimizer
from unmask.parallel import World
from unmask.positions import relative_position_index
from unmask.randomness import key
from unmask.testing.beit_cases import GivenTokens, batch_of
from unmask.testing.goldens import CASES, ratio, read
from unmask.tokenizers import fingerprint, save
from unmask.train import share_hidden, update
from unmask.views import Jitter, View, crop, plan, twin
from unmask.vit import ViT, ViTConfig
from unmask.weights import dalle
from unmask.weights.beit import from_official, grid_of_index, to_official

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(p.stem for p in GOLDEN.glob("beit_*.safetensors") if p.stem != "beit_discrete_vae")
NOW = Progress(0, 10, 5.0)
WORLD = World(0, 1, torch.device("cpu"))
CODEC = CodecConfig(vocab=32, stride=4, width=8, groups=3, blocks=1, code_width=8)
VIT = ViTConfig(
    image_size=32,
    patch=8,
    width=32,
    depth=2,
    heads=4,
    pos_embed="none",
    rel_pos="shared",
    qkv_bias="qv",
    layer_scale=0.1,
    mask_token=True,
    init="beit",
)
VIEW = View(32, scale=(0.08, 1.0), jitter=Jitter(), jitter_before_crop=True, twin=16)
TINY = BEiTConfig(vit=VIT, views=(VIEW,), masks=(BlockMask(smallest=2),), tokenizer=CODEC)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def masks(count, grid=(4, 4), fraction=0.4):
    return torch.rand(count, grid[0] * grid[1]) < fraction


def real_batch(count=3, mask=None):
    mask = masks(count) if mask is None else mask
    return Batch(
        views=(torch.randn(count, 3, 32, 32),),
        twins=(torch.rand(count, 3, 16, 16),),
        masks=(mask,),
        hidden=(mask.flatten().nonzero().flatten(),),
        position=torch.arange(count),
    )


def given(config=TINY, vocab=32):
    """A BEiT whose tokens are given in the twin."""
    views = tuple(dataclasses.replace(v, twin=4) for v in config.views)
    return dataclasses.replace(config, views=views).build(GivenTokens(vocab, 3))


@pytest.mark.parametrize("name", NAMES)
def test_golden_beit(name):
    kind, case = read(GOLDEN / f"{name}.safetensors")
    produced = CASES[kind](case)
    flips = 2 * case.config["lr"] * case.config["steps"] if "trajectory" in kind else 0.0
    for output, golden in case.outputs.items():
        assert ratio(produced[output], golden, case.tolerances[f"outputs/{output}"], flips) <= 1, output
    assert all(value <= 1 for value in produced.values() if isinstance(value, float))


# --- the two renderings, item 26 and 27 ------------------------------------------------------------


def test_a_token_and_its_patch_show_the_same_part_of_the_image():
    coarse = np.random.default_rng(0).integers(0, 255, (3, 20, 20), dtype=np.uint8)
    image = torch.from_numpy(coarse.repeat(20, 1).repeat(20, 2))
    view = View(224, scale=(0.3, 1.0), twin=112)
    for i in range(4):
        drawn = plan(view, (400, 400), key(0, "test", i))
        patches = crop(image, drawn).float().unfold(1, 16, 16).unfold(2, 16, 16).mean((-1, -2))
        cells = twin(image, drawn).float().unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))
        assert patches.shape == cells.shape == (3, 14, 14)
        assert (patches - cells).abs().max() < 4  # two filters, one crop, one flip
        assert (patches - cells.flip(-1)).abs().max() > 20


def test_the_default_view_jitters_the_whole_image_and_has_a_twin_of_the_grids_size():
    (view,) = BEiTConfig().views
    assert view.jitter_before_crop
    assert view.jitter == Jitter(0.4, 0.4, 0.4, 0.0, 1.0)
    assert (view.scale, view.flip, view.twin) == ((0.08, 1.0), 0.5, 14 * 8)


# --- masks, item 28 --------------------------------------------------------------------------------


def test_the_default_mask_hides_at_most_75_patches_and_prefers_the_center():
    (policy,) = BEiTConfig().masks
    drawn = np.stack([policy((14, 14), key(0, "mask", i)) for i in range(1500)])
    counts = drawn.sum((1, 2))
    assert counts.max() == 75
    assert 0.6 < (counts == 75).mean() < 0.73
    rate = drawn.mean(0)
    corner = rate[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert corner / rate[6:8, 6:8].mean() == pytest.approx(0.056, abs=0.02)


# --- the model, items 29 to 34 ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scale", "parameters"),
    [((768, 12, 12), 0.1, 91_965_776), ((1024, 24, 16), 1e-5, 311_534_016)],
    ids=["base", "large"],
)
def test_the_published_models_have_their_sizes(size, scale, parameters):
    width, depth, heads = size
    vit = dataclasses.replace(BEiTConfig().vit, width=width, depth=depth, heads=heads, layer_scale=scale)
    with torch.device("meta"):
        beit = BEiTConfig(vit=vit).build()
    assert sum(p.numel() for p in beit.parameters() if p.requires_grad) == parameters
    assert beit.vit.rel_pos_bias.relative_position_bias_table.shape == (732, heads)


def test_queries_and_values_have_biases_of_zero_and_keys_have_none():
    beit = given()
    undecayed, decayed = beit.parameter_groups()
    for block in beit.vit.blocks:
        assert block.attn.qkv.bias is None
        assert not block.attn.q_bias.any()
        assert not block.attn.v_bias.any()
    assert {"vit.blocks.0.attn.q_bias", "vit.blocks.1.attn.v_bias"} <= set(undecayed.names)
    assert not any("k_bias" in name for name in undecayed.names + decayed.names)


def test_the_relative_table_starts_at_zero_with_three_rows_for_the_class_token():
    assert not given().vit.rel_pos_bias.relative_position_bias_table.any()
    index = relative_position_index((14, 14))
    assert index.max() == 731
    assert index[0, :3].tolist() == [731, 729, 729]
    assert index[:3, 0].tolist() == [731, 730, 730]
    known = {(1, 1): 364, (1, 2): 363, (2, 1): 365, (1, 15): 337, (15, 1): 391, (1, 196): 0, (196, 1): 728}
    assert {place: index[place].item() for place in known} == known
    assert index.sum() == 14_270_119
    small = [[11, 9, 9, 9, 9], [10, 4, 3, 1, 0], [10, 5, 4, 2, 1], [10, 7, 6, 4, 3], [10, 8, 7, 5, 4]]
    assert relative_position_index((2, 2)).tolist() == small


def test_pretraining_shares_one_table_and_blocks_can_own_one_each():
    shared = [n for n, _ in ViT(VIT).named_parameters() if n.endswith("bias_table")]
    assert shared == ["rel_pos_bias.relative_position_bias_table"]
    own = [
        n for n, _ in ViT(dataclasses.replace(VIT, rel_pos="per-block")).named_parameters() if n.endswith("bias_table")
    ]
    assert own == [f"blocks.{i}.attn.rel_pos_bias.relative_position_bias_table" for i in range(2)]


def test_without_a_bias_the_order_of_patches_is_unknown():
    beit, order = given().eval(), torch.randperm(16)
    image = torch.randn(1, 3, 32, 32)
    patches = image.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # [1 3 16 8 8]
    shuffled = patches[:, :, order].unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 32, 32)
    expected, found = beit.vit(image).patches[:, order], beit.vit(shuffled).patches
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.nn.init.normal_(beit.vit.rel_pos_bias.relative_position_bias_table)
    expected, found = beit.vit(image).patches[:, order], beit.vit(shuffled).patches
    assert (found - expected).abs().max() > 1e-3


def test_weights_are_cut_at_one_deviation_and_deep_projections_shrink():
    vit = dataclasses.replace(VIT, width=128, depth=6, heads=4)
    beit = given(dataclasses.replace(TINY, vit=vit), vocab=256)
    true = 0.0107974
    for weight in (beit.lm_head.weight, beit.vit.patch_embed.proj.weight, beit.vit.blocks[5].mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(true, rel=0.03)
        assert weight.abs().max() <= 0.02
    for i, block in enumerate(beit.vit.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(true / math.sqrt(2 * i), rel=0.04)
    assert not beit.lm_head.bias.any()
    assert beit.vit.mask_token.any()


def test_layer_scale_is_a_tenth_and_lies_inside_drop_path():
    beit = given()
    assert all((b.ls1.gamma == 0.1).all() and (b.ls2.gamma == 0.1).all() for b in beit.vit.blocks)
    assert BEiTConfig().vit.drop_path == 0.1
    image = torch.randn(2, 3, 32, 32)
    expected = beit.vit(image).patches
    for block in beit.vit.blocks:
        block.drop_path1.register_forward_hook(lambda *_: torch.zeros(2, 1, 1))
        block.drop_path2.register_forward_hook(lambda *_: torch.zeros(2, 1, 1))
    dropped = beit.vit.norm(beit.vit.embed(image)[0])[:, 1:]
    torch.testing.assert_close(beit.vit(image).patches, dropped)
    assert not torch.equal(expected, dropped)


# --- loss and optimizer, items 35 to 37 ------------------------------------------------------------


def test_the_loss_is_the_mean_over_all_hidden_tokens_of_the_batch():
    beit, mask = given(), masks(3)
    mask[1] = False
    mask[1, 5] = True  # a mean over images would weigh this one more
    image, tokens = torch.randn(3, 3, 32, 32), torch.randint(0, 32, (3, 4, 4))
    seen = []
    beit.lm_head.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape))
    out = beit(batch_of(image, tokens, mask), NOW)
    assert seen == [(int(mask.sum()), 32)]
    every = F.linear(beit.vit(image, hidden=mask).patches, beit.lm_head.weight, beit.lm_head.bias)
    labels = tokens.flatten(1)[mask]
    torch.testing.assert_close(out.loss, F.cross_entropy(every[mask], labels))
    assert out.metrics["mlm_acc"].item() == pytest.approx((every[mask].argmax(-1) == labels).float().mean().item())
    most = torch.bincount(labels).max() / len(labels)
    assert out.metrics["constant_acc"].item() == pytest.approx(most.item())


def test_a_fresh_model_starts_at_log_k():
    out = given(vocab=512)(batch_of(torch.randn(4, 3, 32, 32), torch.randint(0, 512, (4, 16)), masks(4)), NOW)
    assert out.loss.item() == pytest.approx(math.log(512), abs=0.05)


def test_a_batch_without_a_hidden_patch_is_no_accident():
    beit = given()
    out = beit(batch_of(torch.randn(2, 3, 32, 32), torch.zeros(2, 16), torch.zeros(2, 16).bool()), NOW)
    out.loss.backward()
    assert out.loss == 0
    assert all(v.isfinite() for v in out.metrics.values())


def test_uneven_micro_batches_add_up_to_the_mean_over_the_step():
    mask = masks(4)
    mask[:2] = False
    mask[0, 3] = True
    whole = real_batch(4, mask)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        some = mask[part]
        half = [t[0][part] for t in (whole.views, whole.twins)]
        halves.append(
            Batch(
                views=(half[0],),
                twins=(half[1],),
                masks=(some,),
                hidden=(some.flatten().nonzero().flatten(),),
                position=torch.arange(2),
            )
        )
    share_hidden(halves, WORLD)
    beit = TINY.build()
    expected, found = beit(whole, NOW), [beit(half, NOW) for half in halves]
    torch.testing.assert_close(sum(out.loss for out in found) / 2, expected.loss)
    with torch.no_grad():  # some guesses right, whatever the weights
        beit.lm_head.bias[beit.tokens(whole)[mask].mode().values] = 100.0
    expected, found = beit(whole, NOW), [beit(half, NOW) for half in halves]
    assert expected.metrics["mlm_acc"] > 0
    torch.testing.assert_close(sum(out.metrics["mlm_acc"] for out in found) / 2, expected.metrics["mlm_acc"])
    each = [frequencies(beit.tokens(half)[half.masks[0]], 32).max() * len(half.hidden[0]) for half in halves]
    torch.testing.assert_close(sum(out.metrics["constant_acc"] for out in found) / 2, sum(each) / mask.sum())


def test_relative_tables_and_mask_token_decay_and_the_class_token_does_not():
    vit = dataclasses.replace(VIT, pos_embed="learned")
    undecayed, decayed = given(dataclasses.replace(TINY, vit=vit)).parameter_groups()
    outside = {name for name in decayed.names if ".blocks." not in name}
    assert outside == {
        "vit.mask_token",
        "vit.patch_embed.proj.weight",
        "vit.rel_pos_bias.relative_position_bias_table",
        "lm_head.weight",
    }
    inside = {name.split(".", 3)[3] for name in decayed.names if ".blocks." in name}
    assert inside == {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    assert {"vit.cls_token", "vit.pos_embed", "vit.blocks.0.ls1.gamma", "lm_head.bias"} <= set(undecayed.names)
    assert {g.lr_scale for g in (undecayed, decayed)} == {1.0}


def test_the_rate_is_absolute_and_starts_at_zero():
    optim = OptimConfig(base_lr=1.5e-3, base_batch=None, min_lr=1e-5, warmup_epochs=10, schedule="step")
    schedule = optim.lr_schedule(2048)
    assert schedule(Progress(0, 80_000, 100.0)) == 0
    assert schedule(Progress(999, 80_000, 100.0)) == schedule(Progress(1000, 80_000, 100.0)) == 1.5e-3
    assert 1e-5 < schedule(Progress(79_999, 80_000, 100.0)) < 1.01e-5


class Watched(GivenTokens):
    def encode(self, image):
        self.seen = (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), self.training, image.dtype)
        return super().encode(image)


def test_the_tokenizer_is_frozen_in_eval_mode_without_gradient_outside_autocast():
    tokenizer = Watched(32, 3)
    tokenizer.weight = torch.nn.Parameter(torch.zeros(2))
    beit = dataclasses.replace(TINY, views=(dataclasses.replace(VIEW, twin=4),)).build(tokenizer)
    beit.train()
    batch = batch_of(torch.randn(2, 3, 32, 32), torch.zeros(2, 16), masks(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = beit(batch, NOW)
    assert out.loss.dtype == torch.float32
    assert tokenizer.seen == (False, False, False, torch.float32)
    assert not tokenizer.weight.requires_grad
    assert "tokenizer.weight" not in {n for g in beit.parameter_groups() for n in g.names}


def test_targets_are_the_tokens_of_the_hidden_patches_in_fp32_whatever_the_autocast():
    beit, batch = TINY.build(), real_batch(40)
    wanted = beit.tokens(batch).flatten()[batch.hidden[0]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(beit.target(batch), wanted)


def test_registers_shift_no_token_that_is_predicted():
    vit = dataclasses.replace(TINY.vit, rel_pos="none", registers=2)
    beit, batch = dataclasses.replace(TINY, vit=vit).build().eval(), real_batch()
    with torch.no_grad():
        whole = beit.lm_head(beit.vit(batch.views[0], hidden=batch.masks[0]).patches).flatten(0, 1)
        wanted = torch.nn.functional.cross_entropy(whole[batch.hidden[0]], beit.target(batch))
        torch.testing.assert_close(beit(batch, NOW).loss, wanted)


def test_tokens_can_be_made_in_bf16_which_changes_few_and_only_where_asked():
    beit, batch = dataclasses.replace(TINY, tokenizer_precision="bf16").build(), real_batch(40)
    exact = beit.tokens(batch).flatten()[batch.hidden[0]]
    products = []
    beit.tokenizer.encoder.input.register_forward_hook(lambda _m, _a, out: products.append(out.dtype))
    agreed = (beit.target(batch) == exact).float().mean()
    assert products == [torch.bfloat16]
    assert agreed > 0.8
    with pytest.raises(ValueError, match="tokenizer_precision bf16 is for codecs"):
        given(dataclasses.replace(TINY, tokenizer_precision="bf16"))


def test_training_changes_everything_but_the_tokenizer():
    beit = TINY.build()
    optim = OptimConfig(base_lr=1e-3, base_batch=None, schedule="constant", clip=3.0)
    run = RunConfig(recipe="t", method=TINY, data=DataConfig(), optim=optim, batch=3, precision="fp32")
    optimizer, batch = build_optimizer(beit.parameter_groups(), optim), real_batch()
    share_hidden([batch], WORLD)
    name, before = fingerprint(beit.tokenizer), {n: p.clone() for n, p in beit.named_parameters()}
    losses = [update(beit, optimizer, [batch], Progress(step, 10, 1.0), run, WORLD).loss.item() for step in range(10)]
    assert losses[-1] < losses[0]
    assert fingerprint(beit.tokenizer) == name
    same = {n for n, p in beit.named_parameters() if torch.equal(before[n], p)}
    assert same == {n for n, _ in beit.named_parameters() if n.startswith("tokenizer.")}


# --- the tokenizer and the grid --------------------------------------------------------------------


def test_a_tokenizer_that_does_not_fit_is_refused_with_the_cure():
    for change, cure in (
        ({"views": (dataclasses.replace(VIEW, twin=32),)}, "8x8 cells, the ViT has 4x4 patches; use .* 16"),
        ({"tokenizer": dataclasses.replace(CODEC, stride=2)}, "views.0.twin 8"),
        ({"tokenizer": dataclasses.replace(CODEC, channels=1)}, "pretrain dvae DATA --channels 3"),
        ({"views": (dataclasses.replace(VIEW, twin=None),)}, "no twin"),
        ({"views": (dataclasses.replace(VIEW, size=64),)}, "give both"),
        ({"vit": dataclasses.replace(VIT, mask_token=False)}, "mask_token=True"),
    ):
        with pytest.raises(ValueError, match=cure):
            dataclasses.replace(TINY, **change).build()


def test_a_batch_without_twins_or_with_others_is_refused():
    beit, batch = TINY.build(), real_batch()
    with pytest.raises(ValueError, match="no twins"):
        beit(batch._replace(twins=()), NOW)
    with pytest.raises(ValueError, match="64 tokens for 16 patches"):
        beit(batch._replace(twins=(torch.rand(3, 3, 32, 32),)), NOW)


def with_tokenizer(folder):
    codec = build_codec(CODEC)
    name = save(codec, folder)
    config = dataclasses.replace(TINY, tokenizer_from=str(folder), tokenizer_hash=name)
    return config, codec


def test_a_stored_tokenizer_is_read_and_verified(tmp_path):
    config, codec = with_tokenizer(tmp_path)
    beit = config.build()
    assert fingerprint(beit.tokenizer) == fingerprint(codec)
    beit(real_batch(), NOW)
    other = dataclasses.replace(config, tokenizer=dataclasses.replace(CODEC, vocab=64), tokenizer_hash="")
    with pytest.raises(ValueError, match=r"says \(vocab: 32 -> 64\); .* --tokenizer PATH"):
        other.build()


def test_a_file_that_is_another_tokenizer_now_is_left_to_the_checkpoint(tmp_path):
    config, _ = with_tokenizer(tmp_path)
    assert config.stored_tokenizer() is not None
    save(build_codec(CODEC), tmp_path)
    assert config.stored_tokenizer() is None
    save(build_codec(dataclasses.replace(CODEC, vocab=64)), tmp_path)
    assert config.stored_tokenizer() is None


def test_a_checkpoint_brings_its_tokenizer_when_the_file_is_gone(tmp_path):
    config, codec = with_tokenizer(tmp_path)
    state = config.build().state_dict()
    next(tmp_path.iterdir()).unlink()
    beit = config.build()
    with pytest.raises(ValueError, match="give that one with --tokenizer"):
        beit(real_batch(), NOW)
    beit.load_state_dict(state)
    beit(real_batch(), NOW)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(beit.tokenizer.encode(image), codec.encode(image))
    with pytest.raises(ValueError, match="no tokenizer at"):
        dataclasses.replace(config, tokenizer_hash="").build()


def test_beit_trains_on_the_tokens_of_dall_es_files(tmp_path):
    codec = build_codec(CODEC)
    for part, state in zip(("encoder", "decoder"), dalle.to_official(codec.state_dict()), strict=True):
        save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / f"{part}.safetensors")
    method = stages.with_tokenizer(dataclasses.replace(TINY, tokenizer_from=""), str(tmp_path))
    run = toys.run(tmp_path / "run", method=method, steps=2)
    assert run.config.method.tokenizer_hash == fingerprint(codec)
    assert fingerprint(run.method().tokenizer) == fingerprint(codec)
    assert all(math.isfinite(line["loss"]) for line in run.metrics())


def test_guesses_are_tokens_of_every_patch():
    beit, batch = TINY.build(), real_batch()
    ids = beit.guess(batch.views[0], batch.masks[0])
    assert ids.shape == (3, 16)
    assert beit.tokenizer.decode(ids, (4, 4)).shape == (3, 3, 16, 16)


def test_a_config_survives_json():
    assert from_json(json.loads(json.dumps(to_json(TINY)))) == TINY


# --- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if "pretrain_" in name])
def test_official_names_go_both_ways_bit_by_bit(name):
    grid = (4, 6) if "nonsquare" in name else (4, 4)
    official = {
        k.removeprefix("weights/model/"): v
        for k, v in load_file(GOLDEN / f"{name}.safetensors").items()
        if k.startswith("weights/")
    }
    back = to_official(from_official(official), grid)
    assert back.keys() == official.keys()
    assert all(torch.equal(v, back[k]) for k, v in official.items())
    bare = to_official(from_official(official, prefix=""), grid, prefix="")
    assert bare.keys() == official.keys()


def test_the_tokenizer_stays_out_of_official_weights():
    names = to_official(TINY.build().state_dict(), (4, 4))
    assert not any("encoder" in n or "decoder" in n or n.startswith("tokenizer") for n in names)
    assert "lm_head.weight" in names
    bare = to_official(TINY.build().state_dict(), (4, 4), prefix="vit.")
    assert bare.keys() == names.keys()


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (5, 3), (1, 4), (2, 2), (1, 1)])
def test_a_grid_is_told_from_its_index(grid):
    assert grid_of_index(relative_position_index(grid)) == grid


def test_a_damaged_index_is_refused():
    index = relative_position_index((4, 4))
    index[3, 4] += 1
    with pytest.raises(ValueError, match="no relative position index of a 4x4 grid"):
        from_official({"rel_pos_bias.relative_position_index": index})


# --- layer decay -----------------------------------------------------------------------------------


def test_layers_are_numbered_from_the_pixels_up():
    last = ("rel_pos_bias.relative_position_bias_table", "fc_norm.weight", "norm.bias", "head.weight")
    assert [layer_id(name, 12) for name in last] == [13] * 4
    assert [layer_id(name, 12) for name in ("cls_token", "pos_embed", "patch_embed.proj.bias")] == [0] * 3
    assert layer_id("blocks.11.attn.rel_pos_bias.relative_position_bias_table", 12) == 12


def test_layer_decay_of_vit_b_has_its_known_scales():
    config = ViTConfig(image_size=32, patch=16, width=24, depth=12, heads=3, classes=4)
    vit = ViT(config)
    groups = layer_decay_groups(vit, 12, 0.65)
    scale = {name: g.lr_scale for g in groups for name in g.names}
    assert scale["patch_embed.proj.weight"] == pytest.approx(0.003697, abs=1e-6)
    assert scale["blocks.0.mlp.fc1.weight"] == pytest.approx(0.005688, abs=1e-6)
    assert scale["blocks.11.norm1.bias"] == pytest.approx(0.65)
    assert scale["head.weight"] == 1
    assert scale.keys() == dict(vit.named_parameters()).keys()
    decayed = {name for g in groups if g.decay for name in g.names}
    assert not decayed & {"cls_token", "pos_embed", "head.bias"}


def test_a_beit_needs_a_tokenizer_to_be_one():
    with pytest.raises(AssertionError):
        BEiT(TINY, torch.nn.Linear(1, 1))
