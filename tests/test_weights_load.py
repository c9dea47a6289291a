"""Weights of every dialect by `load`: recognized by content, told from tensors, refused when not whole."""

import argparse
import json
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from unmask.methods.codec import CodecConfig, build_codec
from unmask.methods.ibot import IBOTConfig
from unmask.methods.mae import MAEConfig
from unmask.views import View
from unmask.vit import ViT, ViTConfig
from unmask.weights import beit, hf, ibot, jax, mae, timm, unmask
from unmask.weights.load import describe, load
from unmask.weights.loaded import HALF, IMAGENET, Loaded

GOLDENS = Path(__file__).parent / "golden"
TINY = ViTConfig(image_size=32, patch=8, width=32, depth=2, heads=2, mlp_ratio=2)
SINCOS = replace(TINY, pos_embed="sincos", init="mae")
BEIT = replace(TINY, pos_embed="none", rel_pos="shared", qkv_bias="qv", layer_scale=0.1, mask_token=True, init="beit")
VIEW = (View(32, scale=(0.2, 1.0)),)


def drawn(config: ViTConfig) -> dict[str, torch.Tensor]:
    """Every tensor at random, fixed positions excepted: zeros and ones would hide a mistake."""
    torch.manual_seed(0)
    state = ViT(config).state_dict()
    fixed = config.pos_embed == "sincos"
    return {n: v if n == "pos_embed" and fixed else torch.randn_like(v) * 0.1 for n, v in state.items()}


def full_mae() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return MAEConfig(vit=SINCOS, views=VIEW, decoder_width=16, decoder_depth=1, decoder_heads=2).build().state_dict()


def ibot_state(**fields: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    views = (View(32, scale=(0.4, 1.0), count=2),)
    config = replace(IBOTConfig(), vit=replace(TINY, pos_resize="factor"), views=views, prototypes=8, **fields)
    return config.build().state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- recognized ---------------------------------------------------------------------------------------


def test_an_mae_encoder_is_known_by_its_fixed_positions(tmp_path):
    state = drawn(SINCOS)
    torch.save({"model": state}, tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert "without a decoder" in found.looks
    assert found.vit == SINCOS
    assert (found.mean, found.std) == IMAGENET
    assert same(found.state, state)


def test_an_mae_comes_with_its_decoder(tmp_path):
    state = full_mae()
    torch.save({"model": mae.to_official(state)}, tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert "with its decoder" in found.looks
    parts = {f"encoder.{name}": value for name, value in found.state.items()} | found.beside
    assert same(parts, state)


def test_a_fine_tuned_mae_is_pooled_by_the_mean_and_has_its_classes(tmp_path):
    config = replace(TINY, classes=5, pool="mean")
    torch.save({"model": drawn(config)}, tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert found.vit == replace(config, pos_resize="size")
    assert found.looks == "a fine-tuned MAE or DeiT"


@pytest.mark.parametrize("shape", [(32, 32), (16, 32)])
def test_a_pre_trained_beit_tells_its_heads_grid_and_vocabulary(tmp_path, shape):
    config = replace(BEIT, image_size=32 if shape == (32, 32) else shape)
    head = {"lm_head.weight": torch.randn(11, 32), "lm_head.bias": torch.randn(11)}
    official = beit.to_official({f"vit.{n}": v for n, v in drawn(config).items()} | head, config.grid)
    torch.save({"module": official}, tmp_path / "a")  # DeepSpeed's name for it
    found = load(str(tmp_path / "a"))
    assert found.vit == config
    assert same(found.beside, head)
    assert (found.mean, found.std) == HALF
    assert same(found.state, drawn(config))


def test_a_fine_tuned_beit_has_a_table_a_block(tmp_path):
    config = replace(BEIT, rel_pos="per-block", mask_token=False, classes=3, pool="mean")
    torch.save({"model": beit.to_official(drawn(config), config.grid, prefix="")}, tmp_path / "a")
    found = load(str(tmp_path / "a"))
    assert found.vit == config
    assert found.looks == "a BEiT, fine-tuned"


@pytest.mark.parametrize(("part", "role"), [("", "teacher"), ("teacher", "teacher"), ("student", "student")])
def test_a_self_distillation_checkpoint_gives_its_teacher_or_student(tmp_path, part, role):
    state = ibot_state()
    args = argparse.Namespace(arch="vit_small", num_heads=2)
    torch.save({**ibot.to_official(state), "optimizer": {"state": {}}, "epoch": 3, "args": args}, tmp_path / "a")
    found = load(str(tmp_path / "a"), part=part)
    mine = {n.removeprefix(f"{role}.vit."): v for n, v in state.items() if n.startswith(f"{role}.vit.")}
    assert same(found.state, mine)
    assert same(found.beside, state)
    assert found.vit.pos_resize == "factor"
    assert found.looks == f"an iBOT training checkpoint, its {role}"


@pytest.mark.parametrize("wrapper", ["state_dict", "teacher", "flat"])
def test_an_extracted_backbone_is_taken_from_any_wrapper(tmp_path, wrapper):
    state = drawn(TINY)
    torch.save(state if wrapper == "flat" else {wrapper: state}, tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert found.looks == "an iBOT or DINO backbone"
    assert same(found.state, state)


def test_a_timm_classifier_says_that_its_input_is_a_guess(tmp_path):
    config = replace(TINY, classes=4, registers=1, layer_scale=0.1)
    save_file(timm.to_timm(drawn(config)), tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert found.vit == replace(config, pos_resize="antialias")
    assert any("timm:NAME knows" in note for note in found.notes)


def test_a_timm_folder_says_its_input(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    save_file(drawn(TINY), tmp_path / "model.safetensors")
    found = load(str(tmp_path), heads=2)
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_transformers_folder_says_heads_epsilon_gelu_and_input(tmp_path, file):
    state = hf.to_hf(drawn(TINY), "vit")
    config = {"model_type": "vit", "num_attention_heads": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    if file.endswith("bin"):
        torch.save(state, tmp_path / file)
    else:
        save_file(state, tmp_path / file)
    for spec in (str(tmp_path), f"hf:{tmp_path}"):
        found = load(spec)
        assert found.vit == replace(TINY, norm_eps=1e-5, gelu="tanh")
        assert found.mean == (0.1, 0.2, 0.3)
        assert same(found.state, drawn(TINY))


def hf_folder(folder: Path, config: ViTConfig, **said: Any) -> Loaded:
    about = {"model_type": "vit", "num_attention_heads": 2, **said}
    (folder / "config.json").write_text(json.dumps(about))
    save_file(hf.to_hf(drawn(config), "vit"), folder / "model.safetensors")
    return load(str(folder))


def test_a_transformers_folder_of_ours_says_input_range_and_classes(tmp_path):
    own = {"mean": [0.1], "std": [0.2], "range": [0, 4095], "classes": ["a", "b"]}
    found = hf_folder(tmp_path, replace(TINY, channels=1, classes=2), unmask=own)
    assert (found.mean, found.std, found.range, found.classes) == ((0.1,), (0.2,), (0.0, 4095.0), ("a", "b"))
    with pytest.raises(ValueError, match="input mean of 1 numbers and std of 1 for 3 channels"):
        hf_folder(tmp_path, TINY, unmask=own)
    with pytest.raises(ValueError, match=r"config\.json's unmask is damaged"):
        hf_folder(tmp_path, TINY, unmask={"mean": 3})


@pytest.mark.parametrize(
    ("labels", "names"), [({"1": "dog", "0": "cat"}, ("cat", "dog")), ({"0": "LABEL_0", "1": "LABEL_1"}, ())]
)
def test_id2label_names_the_classes_unless_transformers_made_it_up(tmp_path, labels, names):
    assert hf_folder(tmp_path, replace(TINY, classes=2), id2label=labels).classes == names


def test_input_of_other_than_three_channels_is_a_guess_that_is_said(tmp_path):
    torch.save(drawn(replace(TINY, channels=1)), tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert (found.mean, found.std) == ((0.5,), (0.5,))
    assert any("1 channels normalized with 0.5" in note for note in found.notes)


def test_a_sharded_transformers_folder_is_read_whole(tmp_path):
    state = hf.to_hf(drawn(TINY), "vit")
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load(str(tmp_path), heads=2).state, drawn(TINY))
    index["weight_map"]["x"] = "../outside.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="own folder"):
        load(str(tmp_path), heads=2)


def test_an_npz_is_jax_with_its_heads_and_tanh(tmp_path):
    config = replace(TINY, classes=3, gelu="tanh", init="jax")
    arrays = {name: value.numpy() for name, value in jax.to_jax(drawn(config), 2).items()}
    arrays["pre_logits/kernel"] = np.zeros((32, 32), np.float32)
    np.savez(tmp_path / "a.npz", **arrays)
    found = load(str(tmp_path / "a.npz"))
    assert found.vit == replace(config, classes=0)  # pre_logits have no place, nor has the head behind them
    assert any("pre_logits" in note for note in found.notes)
    del arrays["pre_logits/kernel"]
    np.savez(tmp_path / "b.npz", **arrays)
    assert same(load(str(tmp_path / "b.npz")).state, drawn(config))


def test_the_same_arrays_go_to_jax_and_back_to_the_bit():
    state = drawn(replace(TINY, classes=3, mlp_ratio=3.0, patch=(8, 4)))
    assert same(jax.from_jax(jax.to_jax(state, 4)), state)


def test_our_export_says_everything(tmp_path):
    wrote = Loaded("an MAE", SINCOS, drawn(SINCOS), {"decoder.mask_token": torch.ones(1, 1, 4)}, (0.1,) * 3, (0.2,) * 3)
    unmask.write(wrote, tmp_path)
    for spec in (tmp_path, tmp_path / "model.safetensors"):
        found = load(str(spec))
        assert (found.vit, found.mean, found.std) == (SINCOS, (0.1,) * 3, (0.2,) * 3)
        assert same(found.beside, wrote.beside)


def test_a_timm_model_is_loaded_by_name(monkeypatch):
    library = pytest.importorskip("timm", reason="timm is not installed: pip install 'unmask[hub]'")
    made = library.models.vision_transformer.VisionTransformer(
        img_size=(16, 32), patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    made.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(library, "create_model", lambda name, pretrained: made)
    found = load("timm:vit_of_mine")
    assert (found.vit.grid, found.vit.heads, found.vit.pos_resize) == ((2, 4), 2, "antialias")
    assert found.mean == (0.5,) * 3
    with pytest.raises(ValueError, match="is a Linear"):
        timm.of_model(torch.nn.Linear(1, 1), "x")


# --- heads ----------------------------------------------------------------------------------------------


def test_heads_that_nothing_tells_are_demanded(tmp_path):
    torch.save(drawn(TINY), tmp_path / "a")
    with pytest.raises(ValueError, match="give --heads N"):
        load(str(tmp_path / "a"))
    with pytest.raises(ValueError, match="does not divide"):
        load(str(tmp_path / "a"), heads=3)


def test_published_sizes_have_their_heads_and_say_so(tmp_path):
    torch.save(drawn(replace(TINY, width=192, depth=12, heads=3, mlp_ratio=0.25)), tmp_path / "a")
    found = load(str(tmp_path / "a"))
    assert found.vit.heads == 3
    assert any(note.startswith("3 heads, as published") for note in found.notes)
    assert load(str(tmp_path / "a"), heads=6).vit.heads == 6


def test_heads_against_the_files_own_are_refused(tmp_path):
    torch.save({"model": beit.to_official(drawn(BEIT), BEIT.grid, prefix="")}, tmp_path / "a")
    with pytest.raises(ValueError, match="--heads 4: the file says 2"):
        load(str(tmp_path / "a"), heads=4)


def test_what_was_read_is_described_for_people(tmp_path):
    torch.save({"model": drawn(SINCOS)}, tmp_path / "a")
    text = "\n".join(describe(load(str(tmp_path / "a"), heads=2)))
    assert "width 32, depth 2, 2 heads, 32x32 px in patches of 8x8" in text
    assert "mean 0.485 0.456 0.406" in text
    assert "eps 1e-06, GELU erf" in text


# --- wrappers and precision ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "backbone."]
)
def test_prefixes_of_ddp_compile_and_lightning_are_taken_off(tmp_path, prefix):
    state = drawn(TINY)
    torch.save({"state_dict": {prefix + name: value for name, value in state.items()}}, tmp_path / "a")
    assert same(load(str(tmp_path / "a"), heads=2).state, state)


def test_blocks_that_were_compiled_one_by_one_are_read(tmp_path):
    state = {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in drawn(TINY).items()}
    torch.save(state, tmp_path / "a")
    assert same(load(str(tmp_path / "a"), heads=2).state, drawn(TINY))


def test_heads_of_another_task_are_left_out_and_that_is_said(tmp_path):
    state = {f"backbone.{name}": value for name, value in drawn(TINY).items()}
    torch.save({"state_dict": state | {"decode_head.conv.weight": torch.ones(1)}}, tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert same(found.state, drawn(TINY))
    assert any("left out: decode_head" in note for note in found.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32_and_that_is_said(tmp_path, dtype):
    torch.save({name: value.to(dtype) for name, value in drawn(TINY).items()}, tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert {value.dtype for value in found.state.values()} == {torch.float32}
    assert any(str(dtype).removeprefix("torch.") in note for note in found.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [32, (16, 64)])
def test_an_mae_of_few_digits_is_still_one(tmp_path, dtype, size):
    state = drawn(replace(SINCOS, image_size=size))
    torch.save({"model": {name: value.to(dtype) for name, value in state.items()}}, tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert found.vit == replace(SINCOS, image_size=size)


def test_learned_positions_are_taken_for_a_square_and_that_is_said(tmp_path):
    torch.save(drawn(replace(TINY, image_size=(16, 64))), tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=2)
    assert found.vit.grid == (4, 4)
    assert "its 16 learned positions are taken for a square grid, 4x4" in found.notes


# --- refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.pop("norm.weight"), r"missing: norm\.weight"),
        (lambda s: s.pop("blocks.1.mlp.fc2.bias"), r"missing: blocks\.1\.mlp\.fc2\.bias"),
        (lambda s: s.update({"blocks.0.attn.q_norm.weight": torch.ones(4)}), r"unexpected: blocks\.0\.attn\.q_norm"),
        (lambda s: s.update({"norm.bias": torch.ones(4)}), r"another shape: norm\.bias \(4,\) not \(32,\)"),
        (lambda s: s.pop("patch_embed.proj.weight"), "no dialect known here"),
    ],
)
def test_a_state_that_is_not_whole_is_refused_with_a_list(tmp_path, change, why):
    state = drawn(TINY)
    change(state)
    torch.save(state, tmp_path / "a")
    with pytest.raises(ValueError, match=why) as failure:
        load(str(tmp_path / "a"), heads=2)
    assert str(tmp_path / "a") in str(failure.value)


def test_another_architecture_is_named_by_what_it_has(tmp_path):
    torch.save({"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}, tmp_path / "a")
    with pytest.raises(ValueError, match=r"no dialect known here: conv1\.weight, fc\.bias"):
        load(str(tmp_path / "a"))
    torch.save({"epoch": 3}, tmp_path / "b")
    with pytest.raises(ValueError, match="it has: epoch"):
        load(str(tmp_path / "b"))


def test_another_model_of_transformers_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    save_file(hf.to_hf(drawn(TINY), "vit"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'dinov2'"):
        load(str(tmp_path))


def test_a_tokenizer_is_no_model_and_is_told_its_option(tmp_path):
    codec = build_codec(CodecConfig(kind="beit", vocab=8, width=4, code_width=4, stride=4, likelihood="mse"))
    torch.save({"weights": codec.state_dict()}, tmp_path / "a")
    with pytest.raises(ValueError, match="--tokenizer"):
        load(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "a PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "is empty"),
        (b"hello, world", "no file of weights"),
    ],
)
def test_a_file_of_another_kind_is_told_what_it_is(tmp_path, start, why):
    (tmp_path / "a.pth").write_bytes(start)
    with pytest.raises(ValueError, match=why):
        load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "npz"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.97])
def test_a_truncated_file_is_refused(tmp_path, kind, part):
    file, state = tmp_path / "a", drawn(TINY)
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "npz":
        with file.open("wb") as opened:
            np.savez(opened, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"whole|damaged|refused|no file of weights"):
        load(str(file), heads=2)


def test_a_folder_without_weights_and_a_path_without_anything(tmp_path):
    with pytest.raises(ValueError, match=r"no weights \(model\.safetensors"):
        load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("pos_embed", torch.zeros(17, 32), r"pos_embed is \(17, 32\), and 3 sides are wanted"),
        ("blocks.0.mlp.fc1.bias", torch.zeros(()), r"fc1\.bias is \(\), and 1 sides"),
        ("patch_embed.proj.weight", torch.zeros(32, 192), r"patch_embed\.proj\.weight is \(32, 192\), and 4"),
        ("cls_token", torch.zeros(()), r"cls_token is \(\), and 3"),
    ],
)
def test_a_tensor_of_other_sides_is_refused_by_name(tmp_path, name, value, why):
    torch.save(drawn(TINY) | {name: value}, tmp_path / "a")
    with pytest.raises(ValueError, match=why):
        load(str(tmp_path / "a"), heads=2)


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("query/bias", None, r"blocks\.0\.attn has no query/bias"),
        ("key/kernel", None, r"blocks\.0\.attn has no key/kernel"),
        ("query/kernel", np.zeros(32, np.float32), r"query/kernel is \(32,\), and 3 sides"),
    ],
)
def test_an_npz_that_is_not_whole_says_what_lacks(tmp_path, part, value, why):
    arrays = {name: tensor.numpy() for name, tensor in jax.to_jax(drawn(TINY), 2).items()}
    name = f"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/{part}"
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=why):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("index", [torch.zeros(17, 17, dtype=torch.int64), torch.zeros(17, dtype=torch.int64)])
def test_a_damaged_index_of_a_transformers_beit_is_refused(index):
    state = hf.to_hf(drawn(BEIT), "beit")
    state["beit.encoder.relative_position_bias.relative_position_index"] = index
    with pytest.raises(ValueError, match="relative position index"):
        hf.from_hf(state)


# --- hostile --------------------------------------------------------------------------------------------


class Call:
    def __init__(self, function: Any, *arguments: Any):
        self.what = (function, arguments)

    def __reduce__(self) -> Any:
        return self.what


@pytest.mark.parametrize("place", ["args", "model", "bare"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, place, zipped):
    mark = tmp_path / "sprung"
    bomb = Call(eval, f"open({str(mark)!r}, 'w').close()")
    tree: Any = {"model": {**drawn(TINY), "x": bomb}} if place == "model" else {"model": drawn(TINY), "args": bomb}
    if place == "bare":
        (tmp_path / "a").write_bytes(pickle.dumps(bomb))
    else:
        torch.save(tree, tmp_path / "a", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"refused.*eval.*foreign code"):
        load(str(tmp_path / "a"), heads=2)
    assert not mark.exists()


def test_settings_are_inert_whatever_they_are_called(tmp_path):
    args = argparse.Namespace(model="vit_base", num_heads=2, out=SimpleNamespace)
    torch.save({"model": drawn(TINY), "args": args}, tmp_path / "a")
    with pytest.raises(ValueError, match=r"types\.SimpleNamespace"):
        load(str(tmp_path / "a"))
    args.out, args.loss = tmp_path, np.float64(0.5)
    torch.save({"model": drawn(TINY), "args": args}, tmp_path / "b")
    assert load(str(tmp_path / "b")).vit.heads == 2


def test_an_array_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **{"embedding/kernel": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="Python objects"):
        load(str(tmp_path / "a.npz"))


def test_sizes_that_are_claimed_only_allocate_nothing(tmp_path):
    huge = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    huge += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("cls.npy", huge)
    with pytest.raises(ValueError, match="claims"):
        load(str(tmp_path / "a.npz"))

    torch.save({"model": {"cls_token": torch.zeros(1).expand(1 << 20, 1 << 22)}}, tmp_path / "b")  # one number
    with pytest.raises(ValueError, match="in a storage of 1"):
        load(str(tmp_path / "b"))

    with zipfile.ZipFile(tmp_path / "c", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 20))
    with pytest.raises(ValueError, match="claims more bytes than it has"):
        load(str(tmp_path / "c"))

    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (tmp_path / "d").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="no whole safetensors"):
        load(str(tmp_path / "d"))

    wrote = Loaded("huge", replace(TINY, width=1 << 30, heads=1), {"cls_token": torch.zeros(1, 1, 4)})
    unmask.write(wrote, tmp_path)
    with pytest.raises(ValueError, match="far smaller"):
        load(str(tmp_path))


# --- both ways --------------------------------------------------------------------------------------------

SHAPES = st.fixed_dictionaries(
    {
        "depth": st.integers(1, 3),
        "image_size": st.sampled_from([16, 24]),
        "patch": st.sampled_from([4, 8]),
        "channels": st.integers(1, 4),
        "layer_scale": st.sampled_from([None, 0.1]),
        "classes": st.sampled_from([0, 3]),
    }
)


@settings(max_examples=10, deadline=None)
@given(SHAPES, st.integers(0, 2), st.sampled_from(["full", "none"]))
def test_a_vit_goes_to_timm_and_back_to_the_bit(shape, registers, bias):
    state = drawn(ViTConfig(**shape, width=8, heads=2, registers=registers, qkv_bias=bias))
    assert same(timm.from_timm(timm.to_timm(state), (shape["image_size"] // shape["patch"],) * 2), state)


@settings(max_examples=10, deadline=None)
@given(SHAPES, st.sampled_from(["shared", "per-block", "none"]), st.sampled_from(["learned", "none"]))
def test_a_beit_goes_to_its_official_names_and_to_timm_and_back_to_the_bit(shape, rel_pos, pos):
    config = ViTConfig(**shape, width=8, heads=2, rel_pos=rel_pos, pos_embed=pos, qkv_bias="qv", mask_token=True)
    state = drawn(config)
    assert same(beit.from_official(beit.to_official(state, config.grid, prefix=""), prefix=""), state)
    del state["mask_token"]  # timm has none
    assert same(timm.from_timm(timm.to_timm(state)), state)


@settings(max_examples=10, deadline=None)
@given(SHAPES, st.booleans())
def test_a_backbone_goes_to_ibot_and_back_to_the_bit(shape, mask_token):
    state = drawn(ViTConfig(**shape, width=8, heads=2, mask_token=mask_token))
    assert same(ibot.vit_from_official(ibot.vit_to_official(state)), state)


def test_an_mae_goes_to_its_official_names_and_back_to_the_bit():
    state = full_mae()
    assert same(mae.from_official(mae.to_official(state)), state)


@pytest.mark.parametrize(
    ("case", "group", "wrapper", "heads", "looks"),
    [
        ("mae_forward", "model", "model", "num_heads", "an MAE encoder with its decoder"),
        ("beit_pretrain_shared_rel", "model", "model", None, "a BEiT, pre-trained, with its lm_head"),
        ("beit_pretrain_nonsquare", "model", "model", None, "a BEiT, pre-trained, with its lm_head"),
        ("beit_pretrain_abs_perblock_rel", "model", "module", None, "a BEiT, pre-trained, with its lm_head"),
        ("ibot_backbone", "backbone", "state_dict", "num_heads", "an iBOT or DINO backbone"),
        ("ibot_trajectory", "", "", "num_heads", "an iBOT training checkpoint, its teacher"),
    ],
)
def test_the_goldens_load_by_their_official_names(case, group, wrapper, heads, looks, tmp_path):
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_file(GOLDENS / f"{case}.safetensors").items():
        if name.startswith("weights/"):
            _, part, official = name.split("/", 2)
            groups.setdefault(part, {})[official] = value
    torch.save({wrapper: groups[group]} if group else groups, tmp_path / "a")
    found = load(str(tmp_path / "a"), heads=4 if heads else None)
    assert found.looks == looks
    found.build()


@pytest.mark.parametrize(
    "case",
    ["mae_forward", "beit_pretrain_shared_rel", "beit_pretrain_nonsquare", "beit_pretrain_abs_perblock_rel",
     "ibot_backbone", "ibot_trajectory"],
)  # fmt: skip
def test_the_goldens_weights_go_to_ours_and_back_to_the_bit(case):
    flat = {n: v for n, v in load_file(GOLDENS / f"{case}.safetensors").items() if n.startswith("weights/")}
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in flat.items():
        _, part, official = name.split("/", 2)
        groups.setdefault(part, {})[official] = value
    if case == "ibot_trajectory":
        back = ibot.to_official(ibot.from_official(groups))
        assert {part: {n.removeprefix("module.") for n in back[part]} for part in ("student", "teacher")} == {
            part: {n.removeprefix("module.") for n in groups[part]} for part in ("student", "teacher")
        }
        for part in groups:
            have = {n.removeprefix("module."): v for n, v in back[part].items()}
            assert all(torch.equal(have[n.removeprefix("module.")], v) for n, v in groups[part].items())
        return
    state = groups["backbone" if case == "ibot_backbone" else "model"]
    if case.startswith("mae"):
        assert same(mae.to_official(mae.from_official(state)), state)
    elif case.startswith("ibot"):
        assert same(ibot.vit_to_official(ibot.vit_from_official(state)), state)
    else:
        index = next((v for n, v in state.items() if n.endswith("relative_position_index")), None)
        grid = None if index is None else beit.grid_of_index(index)
        assert same(beit.to_official(beit.from_official(state), grid), state)
