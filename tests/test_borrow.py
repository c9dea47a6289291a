"""A method that begins with weights from elsewhere: what is carried over, what is fresh, what is said."""

from dataclasses import replace
from typing import Any

import cli_toys
import numpy as np
import pytest
import torch
import toys

from unmask.borrow import fill, pictured, shaped, start_from
from unmask.config import DataConfig
from unmask.evaluate.classifier import Classifier, write_classifier
from unmask.export.subject import open_subject
from unmask.methods.classify import ClassifyConfig, labelled_view
from unmask.methods.ibot import IBOTConfig
from unmask.methods.mae import MAEConfig
from unmask.models import load, open_model
from unmask.positions import relative_position_index, resize_pos_embed, resize_relative
from unmask.recipes import Facts, find
from unmask.run import Run
from unmask.views import View
from unmask.vit import ViT, ViTConfig
from unmask.weights.adapt import fit, fit_patches
from unmask.weights.loaded import Loaded
from unmask.weights.mae import to_official
from unmask.weights.unmask import write

SMALL = ViTConfig(image_size=16, patch=4, width=32, depth=2, heads=2)
BEIT: dict[str, Any] = {"pos_embed": "none", "rel_pos": "shared", "qkv_bias": "qv", "layer_scale": 0.1}


def drawn(config: ViTConfig, **beside: torch.Tensor) -> Loaded:
    """Weights with every tensor at random."""
    torch.manual_seed(0)
    vit = ViT(config)
    state = {n: v if not p else torch.randn_like(v) * 0.1 for n, v, p in _trained(vit)}
    return Loaded("some weights", config, state, beside)


def _trained(vit: ViT) -> list[tuple[str, torch.Tensor, bool]]:
    return [(n, p.detach(), p.requires_grad) for n, p in vit.named_parameters()]


def moved(loaded: Loaded, config: ViTConfig) -> tuple[ViT, list[str]]:
    vit = ViT(config).eval()
    state, notes = fit(loaded, config)
    vit.load_state_dict(vit.state_dict() | state)
    return vit, notes


@torch.no_grad()
def output(vit: ViT, image: torch.Tensor) -> torch.Tensor:
    tokens = vit(image)
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


IMAGE = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ({}, {"layer_scale": 0.1}),
        ({"layer_scale": 0.1}, {}),
        ({"qkv_bias": "qv"}, {}),
        ({"qkv_bias": "none"}, {"qkv_bias": "qv"}),
        ({}, {"qkv_bias": "qv"}),  # a key's bias cancels in the softmax
        (BEIT, {**BEIT, "rel_pos": "per-block"}),
        ({"mask_token": True}, {}),
    ],
    ids=str,
)
def test_what_can_be_carried_over_exactly_is(source, target):
    loaded = drawn(replace(SMALL, **source))
    vit, _ = moved(loaded, replace(SMALL, **target))
    torch.testing.assert_close(output(vit, IMAGE), output(loaded.build(), IMAGE), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "field", [{"width": 64}, {"depth": 1}, {"heads": 4}, {"patch": 8}, {"mlp_ratio": 2.0}], ids=str
)
def test_another_size_is_refused_with_both_numbers(field):
    with pytest.raises(ValueError, match=r"of another size: .* there and .* here; give --method\.vit"):
        fit(drawn(SMALL), replace(SMALL, **field))


@pytest.mark.parametrize("rule", ["size", "factor", "antialias"])
def test_positions_are_resized_by_the_rule_of_their_dialect(rule):
    loaded = drawn(replace(SMALL, pos_resize=rule))
    state, notes = fit(loaded, replace(SMALL, image_size=24))
    assert torch.equal(state["pos_embed"], resize_pos_embed(loaded.state["pos_embed"], (4, 4), (6, 6), rule))
    assert any("from 4x4 to 6x6" in note and rule in note for note in notes)


def test_fixed_positions_are_computed_for_the_new_size():
    vit, _ = moved(drawn(replace(SMALL, pos_embed="sincos")), replace(SMALL, pos_embed="sincos", image_size=24))
    assert torch.equal(vit.pos_embed, ViT(replace(SMALL, pos_embed="sincos", image_size=24)).pos_embed)


def test_three_channels_become_one_by_their_sum_and_more_by_turns():
    weight = torch.randn(4, 3, 2, 2)
    gray = torch.randn(1, 1, 2, 2)
    rgb = torch.nn.functional.conv2d(gray.expand(1, 3, 2, 2), weight)
    torch.testing.assert_close(torch.nn.functional.conv2d(gray, fit_patches(weight, 1)), rgb)
    five = fit_patches(weight, 5)
    assert torch.equal(five[:, 3], weight[:, 0] * (3 / 5))
    even = fit_patches(weight, 6)
    torch.testing.assert_close(torch.nn.functional.conv2d(gray.expand(1, 6, 2, 2), even), rgb)
    assert any(
        "3 input channels became 1: filters summed" in n for n in fit(drawn(SMALL), replace(SMALL, channels=1))[1]
    )


@pytest.mark.parametrize(("old", "new", "q"), [(14, 24, 1.09031), (14, 32, 1.13492)])
def test_relative_positions_are_resized_geometrically(old, new, q):
    # a table that is linear in the geometric coordinates must become linear in the new displacements
    half = np.cumsum(q ** np.arange(old - 1))
    places = np.concatenate([-half[::-1], [0.0], half])
    table = np.concatenate([(2 * places[:, None] + 3 * places[None]).reshape(-1), [7.0, 8.0, 9.0]])
    found = resize_relative(torch.from_numpy(table)[:, None].repeat(1, 2), (old, old), (new, new))
    wanted = np.arange(2 * new - 1) - (new - 1)
    expected = torch.from_numpy((2 * wanted[:, None] + 3 * wanted[None]).reshape(-1)).double()
    torch.testing.assert_close(found[:-3, 1], expected, atol=5e-3, rtol=0)
    assert found[-3:, 0].tolist() == [7, 8, 9]


def test_a_non_square_grid_keeps_its_axes_apart():
    columns = torch.arange(7.0).repeat(5)  # (2*3-1) x (2*4-1): says the column's displacement
    table = torch.cat([columns, torch.zeros(3)])[:, None]
    found = resize_relative(table, (3, 4), (5, 4))[:-3, 0].reshape(9, 7)
    torch.testing.assert_close(found, torch.arange(7.0).repeat(9, 1))
    assert len(found.flatten()) + 3 == int(relative_position_index((5, 4)).max()) + 1


# --- methods ------------------------------------------------------------------------------------------


def official_mae(path):
    torch.manual_seed(1)
    mae = toys.TINY.build()
    torch.save({"model": to_official(mae.state_dict())}, path)
    return mae


def test_an_mae_goes_on_with_its_decoder(tmp_path):
    mae = official_mae(tmp_path / "a.pth")
    other = toys.TINY.build()
    name, notes = start_from(str(tmp_path / "a.pth"), other, heads=2)
    assert name == str(tmp_path / "a.pth")
    assert toys.same(dict(other.state_dict()), dict(mae.state_dict()))
    assert any(note.startswith("decoder: from the weights, read with 2 heads") for note in notes)


def test_an_encoder_alone_gets_a_fresh_decoder_and_that_is_said(tmp_path):
    mae, other = toys.TINY.build(), toys.TINY.build()
    torch.save({"model": mae.encoder.state_dict()}, tmp_path / "a.pth")
    before = {name: value.clone() for name, value in other.decoder.state_dict().items()}
    _, notes = start_from(str(tmp_path / "a.pth"), other, heads=2)
    assert "decoder: the weights have none, freshly made" in notes
    assert toys.same(dict(other.encoder.state_dict()), dict(mae.encoder.state_dict()))
    assert toys.same(dict(other.decoder.state_dict()), before)


def test_a_decoder_of_another_size_is_not_loaded_in_part(tmp_path):
    official_mae(tmp_path / "a.pth")
    other = replace(toys.TINY, decoder_width=24).build()
    before = {name: value.clone() for name, value in other.decoder.state_dict().items()}
    _, notes = start_from(str(tmp_path / "a.pth"), other, heads=2)
    assert any(note.startswith("decoder: freshly made, ") and "there and" in note for note in notes)
    assert toys.same(dict(other.decoder.state_dict()), before)


def ibot(prototypes: int = 8) -> Any:
    views = (View(16, scale=(0.4, 1.0), count=2),)
    vit = replace(SMALL, pos_resize="factor")
    return IBOTConfig(vit=vit, views=views, prototypes=prototypes, head_width=16, bottleneck=8).build()


def test_self_distillation_goes_on_with_teacher_heads_and_centers():
    torch.manual_seed(0)
    first = ibot()
    with torch.no_grad():
        for value in [*first.teacher.parameters(), first.center, first.patch_center]:
            value.add_(torch.randn_like(value))
    state = {name: value.clone() for name, value in first.state_dict().items()}
    vit = {n.removeprefix("teacher.vit."): v for n, v in state.items() if n.startswith("teacher.vit.")}
    loaded = Loaded("an iBOT checkpoint", first.teacher.vit.config, vit, state)
    second = ibot()
    notes = fill(second, loaded)
    assert toys.same(dict(second.state_dict()), state)
    assert not any("fresh" in note for note in notes)

    other = ibot(prototypes=16)
    notes = fill(other, loaded)
    assert sum("head: freshly made" in note for note in notes) == 2
    assert "centers: none from the file, the others begin at 0" in notes
    assert toys.same(dict(other.teacher.head.state_dict()), dict(other.student.head.state_dict()))


def test_a_backbone_becomes_student_and_teacher():
    loaded = drawn(SMALL)
    method = ibot()
    notes = fill(method, loaded)
    assert toys.same(dict(method.teacher.vit.state_dict()), loaded.state)
    assert torch.equal(method.student.vit.blocks[1].attn.qkv.weight, loaded.state["blocks.1.attn.qkv.weight"])
    assert "student: mask token: freshly made" in notes


def test_what_a_method_has_no_use_for_is_named():
    notes = fill(toys.TINY.build(), drawn(SMALL, **{"lm_head.weight": torch.ones(3, 32)}))
    assert "left out: lm_head" in notes


@pytest.mark.parametrize("recipe", ["mae", "ibot", "dino"])
def test_a_recipe_that_sizes_itself_is_sized_by_the_weights(recipe):
    loaded = replace(drawn(replace(SMALL, image_size=32, norm_eps=1e-12)), mean=(0.5,) * 3, std=(0.25,) * 3)
    config = shaped(find(recipe)(Facts(side=64)), loaded)
    vit = config.method.vit
    assert (vit.width, vit.depth, vit.heads, vit.patch, vit.image_size, vit.norm_eps) == (32, 2, 2, 4, 32, 1e-12)
    assert config.data.mean == (0.5,) * 3
    assert all(view.shape[0] % 4 == 0 for view in config.method.views)
    fill(config.method.build(), loaded)


def test_mae_keeps_its_own_positions_where_the_weights_have_relative_ones():
    config = shaped(find("mae")(Facts(side=64)), drawn(replace(SMALL, **BEIT)))
    assert (config.method.vit.rel_pos, config.method.vit.pos_embed) == ("none", "sincos")
    notes = fill(config.method.build(), drawn(replace(SMALL, **BEIT)))
    assert "its relative positions are left out: there are none here" in notes


def test_a_run_of_another_method_gives_its_backbone(tmp_path):
    run = toys.run(tmp_path / "mae", steps=1)
    method = IBOTConfig(
        vit=toys.TINY.vit, views=(View(16, count=2),), prototypes=8, head_width=16, bottleneck=8
    ).build()  # fmt: skip
    name, notes = start_from(str(run.path), method)
    assert name.endswith("mae@1")
    assert torch.equal(method.teacher.vit.blocks[0].mlp.fc1.weight, run.method().encoder.blocks[0].mlp.fc1.weight)
    assert "left out" not in "".join(notes) or "decoder" in "".join(notes)

    larger = MAEConfig(
        **{**vars(toys.TINY), "vit": replace(toys.TINY.vit, image_size=24), "views": (View(24, scale=(0.2, 1.0)),)}
    ).build()
    _, notes = start_from(str(run.path), larger)
    assert "decoder: from the weights" in notes
    assert torch.equal(larger.decoder.pred.weight, run.method().decoder.pred.weight)


# --- MODEL ----------------------------------------------------------------------------------------------


def test_a_file_is_a_model_and_says_what_it_is(tmp_path):
    mae = official_mae(tmp_path / "a.pth")
    said: list[str] = []
    vit = load(str(tmp_path / "a.pth"), heads=2, note=said.append)
    torch.testing.assert_close(output(vit, IMAGE), output(mae.encoder.eval(), IMAGE))
    assert said[0].startswith("an MAE encoder with its decoder: width 32")
    opened = open_model(str(tmp_path / "a.pth"), Facts(), heads=2, note=said.append)
    assert (opened.size, opened.mean) == ((16, 16), DataConfig().mean)


def test_an_encoder_alone_cannot_reconstruct_and_says_so(tmp_path):
    torch.save({"model": toys.TINY.build().encoder.state_dict()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="it has no decoder to paint pixels with; train one"):
        pictured(str(tmp_path / "a.pth"), "reconstruction", heads=2)


def test_weights_without_a_run_have_attention(tmp_path, capsys):
    official_mae(tmp_path / "a.pth")
    run, _, _ = pictured(str(tmp_path / "a.pth"), "attention", heads=2)
    assert run.method().backbone().config.width == 32
    assert "an MAE encoder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="attention, patches and an MAE's reconstruction are drawn"):
        pictured(str(tmp_path / "a.pth"), "curves", heads=2)


def test_pretrain_goes_on_from_a_file(tmp_path):
    official_mae(tmp_path / "a.pth")
    photos = cli_toys.pictures(tmp_path / "photos")
    words = ("--from", tmp_path / "a.pth", "--heads", "2", "--out", tmp_path / "run", *cli_toys.SHORT)
    said = cli_toys.unmask("pretrain", "mae", photos, *words)
    assert said.code == 0, said.err
    assert "an MAE encoder with its decoder: width 32, depth 2, 2 heads" in said.err
    assert "decoder: from the weights" in said.err
    config = Run(tmp_path / "run").config
    assert (config.init_from, config.method.vit.width) == (str(tmp_path / "a.pth"), 32)
    again = cli_toys.unmask("pretrain", "mae", photos, *words)  # the same command goes on
    assert again.code == 0 and again.json["resumed_from"] == 3


def classify(average: float | None = None, **fields: Any) -> ClassifyConfig:
    vit = replace(SMALL, classes=3, **fields)
    return ClassifyConfig(vit=vit, views=(labelled_view(vit.image_size, (0.5,) * 3),), average=average)


def test_a_classifier_and_its_average_begin_with_the_same_weights():
    loaded, method = drawn(SMALL), classify(average=0.9).build()
    fill(method, loaded)
    assert torch.equal(method.vit.cls_token, loaded.state["cls_token"])
    assert all(torch.equal(a, b) for a, b in zip(method.vit.parameters(), method.averaged.parameters(), strict=True))


def test_supervised_training_from_an_mae_trains_its_positions():
    source = replace(
        drawn(replace(SMALL, pos_embed="sincos")), state=ViT(replace(SMALL, pos_embed="sincos")).state_dict()
    )
    config = shaped(find("supervised")(Facts(100, 32, classes=3)), source)
    assert config.method.vit.pos_embed == "learned"
    method = config.method.build()
    fill(method, source)
    assert method.vit.pos_embed.requires_grad
    torch.testing.assert_close(method.vit.pos_embed.detach(), source.state["pos_embed"])


def test_fixed_positions_that_become_trained_are_computed_for_the_new_grid():
    loaded = drawn(replace(SMALL, pos_embed="sincos"))
    there = ViT(replace(SMALL, pos_embed="sincos", image_size=(16, 24)))
    vit, _ = moved(loaded, replace(SMALL, image_size=(16, 24)))
    torch.testing.assert_close(vit.pos_embed.detach(), there.pos_embed.detach())


@pytest.mark.parametrize(("head_norm", "norm"), [("after", "fc_norm"), ("before", "norm"), ("none", "")])
def test_the_last_norm_goes_where_the_head_has_it(head_norm, norm):
    config = replace(SMALL, classes=3, pool="mean", head_norm=head_norm)
    loaded = drawn(config)
    state, notes = fit(loaded, config)
    assert {name.partition(".")[0] for name in state if "norm" in name.partition(".")[0]} == ({norm} if norm else set())
    assert not any("freshly" in note for note in notes)


def test_a_saved_classifier_is_a_model_to_export_and_to_begin_with(tmp_path):
    vit = drawn(replace(SMALL, classes=2)).build()
    write_classifier(tmp_path, Classifier(vit, ["cat", "dog"], (0.1,) * 3, (0.2,) * 3, (0.0, 9.0)))
    found = open_subject(str(tmp_path)).weights
    assert isinstance(found, Loaded)
    assert (found.classes, found.mean, found.range) == (("cat", "dog"), (0.1,) * 3, (0.0, 9.0))
    method = classify().build()
    start_from(str(tmp_path), method)
    assert torch.equal(method.vit.cls_token, vit.cls_token)


@pytest.mark.parametrize("normed", [None, True])
@torch.no_grad()
def test_a_file_with_a_decoder_paints_as_its_method_does(tmp_path, capsys, normed):
    mae = official_mae(tmp_path / "a.pth").eval()
    heads = mae.config.decoder_heads
    parts = {n: v for n, v in mae.state_dict().items() if n.startswith("decoder.")}
    about = {"decoder_heads": heads, "norm_pixels": normed}
    write(Loaded("an MAE", mae.config.vit, mae.encoder.state_dict(), parts, **about), tmp_path)
    run, _, _ = pictured(str(tmp_path), "reconstruction")
    method, mask = run.method(), torch.arange(16).expand(2, 16) >= 4
    assert (method.norm_pixels, run.config.data.mean) == (bool(normed), Loaded("", SMALL, {}).mean)
    torch.testing.assert_close(method.reconstruct(IMAGE, mask), mae.reconstruct(IMAGE, mask))
    assert ("taken to paint plain pixels" in capsys.readouterr().err) == (normed is None)


def test_a_decoder_of_unknown_heads_is_not_drawn(tmp_path):
    official_mae(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="nothing tells the attention heads of its decoder"):
        pictured(str(tmp_path / "a.pth"), "reconstruction", heads=2)
