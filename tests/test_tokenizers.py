"""Tokenizers: what BEiT may rely on, their files, their health."""

import copy
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unmask import tokenizers
from unmask.methods.codec import CodecConfig, build_codec
from unmask.methods.codec_health import (
    batch_health,
    diagnose,
    frequencies,
    health,
    perplexity,
    psnr,
    ssim,
    usage,
)
from unmask.methods.dvae import DVAEConfig
from unmask.methods.relaxation import sample
from unmask.testing.beit_cases import GivenTokens
from unmask.tokenizers import FILE, Tokenizer, fingerprint, freeze, load, save
from unmask.views import View
from unmask.weights import dalle

DALLE = CodecConfig(vocab=32, stride=4, width=8, groups=3, blocks=1, code_width=8)
BEIT = CodecConfig(kind="beit", vocab=24, stride=4, width=8, code_width=8, likelihood="mse")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[DALLE, BEIT], ids=["dalle", "beit"])
def codec(request):
    return build_codec(request.param)


def test_codecs_and_stand_ins_are_tokenizers(codec):
    assert isinstance(codec, Tokenizer)
    assert isinstance(GivenTokens(8, 3), Tokenizer)
    assert not isinstance(torch.nn.Linear(1, 1), Tokenizer)


def test_encode_gives_an_id_per_cell_in_raster_order_and_decode_an_image(codec):
    image = torch.rand(2, 3, 16, 24)
    ids = codec.encode(image)
    assert ids.shape == (2, 24)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, codec.logits(codec.map(image)).argmax(-1))
    decoded = codec.decode(ids, (4, 6))
    assert decoded.shape == image.shape
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_tokens_stay_in_their_place():
    codec = build_codec(DALLE)
    image = torch.rand(1, 3, 64, 64)
    corner = codec.logits(codec.map(image)).unflatten(1, (16, 16))
    image[:, :, :4, -4:] = 0  # the last cell of the first row
    changed = (codec.logits(codec.map(image)).unflatten(1, (16, 16)) - corner).abs().sum(-1)[0]
    assert changed.argmax() == 15


def test_encoding_ignores_autocast_and_keeps_no_gradient(codec):
    image = torch.rand(2, 3, 16, 16)
    plain = codec.logits(codec.map(image)).argmax(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ids = codec.encode(image)
        decoded = codec.decode(ids, (4, 4))
    assert torch.equal(ids, plain)
    assert decoded.dtype == torch.float32
    assert not decoded.requires_grad
    assert torch.equal(decoded, codec.decode(ids, (4, 4)))


def test_the_products_with_the_codes_are_fp32_under_autocast(codec):
    image = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert codec.logits(codec.map(image)).dtype == torch.float32


def test_freezing_copies():
    method = DVAEConfig(codec=DALLE, views=(View(16),)).build()
    frozen = freeze(method.tokenizer())
    before = fingerprint(frozen)
    with torch.no_grad():
        method.average.encoder.input.weight.add_(1.0)
    assert fingerprint(frozen) == before != fingerprint(method.tokenizer())
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_fingerprint_is_of_names_and_weights(codec):
    twin = copy.deepcopy(codec)
    assert fingerprint(twin) == fingerprint(codec)
    with torch.no_grad():
        next(twin.parameters()).flatten()[0] += 1e-6
    assert fingerprint(twin) != fingerprint(codec)


# --- files -----------------------------------------------------------------------------------------


def test_a_saved_tokenizer_comes_back_whole_and_frozen(codec, tmp_path):
    name = save(codec, tmp_path)
    for place in (tmp_path, tmp_path / FILE):
        back = load(place)
        assert back.config == codec.config
        assert fingerprint(back) == name
        assert not any(p.requires_grad for p in back.parameters())
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(back.encode(image), codec.encode(image))
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_a_run_folder_is_searched_for_its_tokenizer(codec, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    save(codec, tmp_path / "tokenizer")
    assert fingerprint(load(tmp_path)) == fingerprint(codec)


def test_beits_discrete_vae_is_read(tmp_path):
    codec = build_codec(BEIT)
    torch.save({"weights": codec.state_dict(), "hparams": {"num_layers": 2}}, tmp_path / "pytorch_model.bin")
    back = load(tmp_path)
    assert back.config == BEIT
    assert fingerprint(back) == fingerprint(codec)


def test_a_dictionary_that_is_no_discrete_vae_is_refused(tmp_path):
    for weights in ({}, {"codebook.weight": torch.zeros(4, 2)}):
        torch.save({"weights": weights}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"no tokenizer that tells|no weights of BEiT.s DiscreteVAE"):
            load(tmp_path)


def test_dall_e_is_read_from_safetensors_and_a_vae_from_any_name(tmp_path):
    codec = build_codec(DALLE)
    for part, state in zip(("encoder", "decoder"), dalle.to_official(codec.state_dict()), strict=True):
        save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / f"{part}.safetensors")
    assert fingerprint(load(tmp_path)) == fingerprint(codec)
    both = {f"{p}.{n}": v for p in ("encoder", "decoder") for n, v in load_file(tmp_path / f"{p}.safetensors").items()}
    save_file(both, tmp_path / "both")
    assert fingerprint(load(tmp_path / "both")) == fingerprint(codec)
    (tmp_path / "decoder.safetensors").unlink()
    with pytest.raises(ValueError, match="side by side"):
        load(tmp_path / "encoder.safetensors")
    torch.save({"hparams": {}, "weights": build_codec(BEIT).state_dict()}, tmp_path / "anything")
    assert load(tmp_path / "anything").config == BEIT


def test_a_discrete_vae_file_that_would_execute_something_is_refused(tmp_path):
    torch.save({"weights": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="refused"):
        load(tmp_path)
    assert not (tmp_path / "sprung").exists()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize("damage", ["weights", "header", "other", "half", "none"])
def test_a_file_that_is_no_tokenizer_is_refused_with_the_cure(damage, tmp_path):
    file = tmp_path / FILE
    if damage != "none":
        save(build_codec(DALLE), file)
    state = load_file(file) if damage != "none" else {}
    if damage == "weights":
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata()
        state["encoder.input.bias"] += 1
        save_file(state, file, metadata=header)
    elif damage == "header":
        save_file(state, file)
    elif damage == "other":
        save_file(state, file, metadata={"unmask.codec": '{"class": "unmask.views:View"}'})
    elif damage == "half":
        file.write_bytes(file.read_bytes()[:1000])
    cure = {
        "weights": "fingerprint",
        "header": "tokenizers.save",
        "other": "not a codec",
        "half": "no whole safetensors",
        "none": "give a finished dvae run",
    }[damage]
    with pytest.raises(ValueError, match=cure):
        load(file)


def test_weights_of_another_architecture_are_refused():
    state = build_codec(BEIT).state_dict()
    with pytest.raises(ValueError, match="no dalle tokenizer"):
        tokenizers.from_state(DALLE, state)


# --- health ----------------------------------------------------------------------------------------


def test_usage_and_perplexity_have_their_known_values():
    every, one = torch.arange(10), torch.zeros(10, dtype=torch.int64)
    assert usage(every, 10) == 1
    assert usage(one, 10).item() == pytest.approx(0.1)
    assert perplexity(frequencies(every, 10)).item() == pytest.approx(10)
    assert perplexity(frequencies(one, 10)).item() == pytest.approx(1)
    assert perplexity(torch.tensor([0.5, 0.25, 0.25, 0.0])).item() == pytest.approx(2**1.5)


def test_the_health_of_a_batch_tells_indecision_from_collapse():
    undecided = batch_health(sample(torch.zeros(2, 4, 8), 1.0))
    assert undecided["cell_entropy"].item() == pytest.approx(math.log(8))
    assert undecided["perplexity"].item() == pytest.approx(8)
    collapsed = torch.zeros(2, 4, 8)
    collapsed[..., 3] = 100
    found = batch_health(sample(collapsed, 1.0))
    assert found["cell_entropy"].item() == pytest.approx(0, abs=1e-5)
    assert found["perplexity"].item() == pytest.approx(1)
    assert found["usage"].item() == pytest.approx(1 / 8)


def test_psnr_and_ssim_have_their_known_values():
    image = torch.rand(2, 3, 16, 16) * 0.5
    assert psnr(image, image) == 100
    assert psnr(image, image + 0.1) == pytest.approx(20, abs=1e-3)
    assert ssim(image, image) == pytest.approx(1)
    assert ssim(image, torch.rand(2, 3, 16, 16)) < 0.5
    assert ssim(image[:, :, :4, :4], image[:, :, :4, :4]) == pytest.approx(1)


def test_health_does_not_depend_on_the_chunk_and_is_repeatable(codec):
    images = torch.rand(7, 3, 16, 16)
    whole = health(codec, images)
    assert whole == health(codec, images)
    parts = health(codec, images, chunk=3)
    for name in (
        "usage",
        "token_perplexity",
        "perplexity",
        "cell_entropy",
        "kl",
        "psnr",
        "ssim",
        "elbo_hard",
    ):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4), name
    assert all(math.isfinite(value) for value in whole.values())
    assert whole["cell_entropy"] + whole["kl"] == pytest.approx(math.log(codec.vocab), abs=1e-5)


def test_hard_and_relaxed_bounds_meet_where_cells_are_certain():
    codec, images = build_codec(DALLE), torch.rand(4, 3, 16, 16)
    apart = health(codec, images, temperature=1.0)
    assert abs(apart["elbo_hard"] - apart["elbo_relaxed"]) > 1e-5
    with torch.no_grad():
        codec.encoder.output.weight.mul_(1e4)
    report = health(codec, images, temperature=1 / 16)
    assert report["elbo_hard"] == pytest.approx(report["elbo_relaxed"], rel=1e-3)


def test_the_bounds_have_their_known_values():
    codec = build_codec(DALLE)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.zero_()
    gray = torch.full((2, 3, 16, 16), 0.5)
    certain_of_nothing = health(codec, gray)  # uniform cells, means of 0 and log scales of 0: fidelity.md section 9
    assert certain_of_nothing["elbo_hard"] == pytest.approx(0.693147, abs=1e-6)
    assert certain_of_nothing["elbo_relaxed"] == pytest.approx(0.693147, abs=1e-6)
    assert certain_of_nothing["kl"] == pytest.approx(0, abs=1e-6)
    assert certain_of_nothing["cell_entropy"] == pytest.approx(math.log(32), abs=1e-6)
    assert certain_of_nothing["usage"] == pytest.approx(1 / 32)
    assert certain_of_nothing["psnr"] == 100
    with torch.no_grad():
        codec.encoder.output.bias[3] = 1e4
    certain = health(codec, gray)
    assert certain["kl"] == pytest.approx(math.log(32))
    assert certain["elbo_hard"] == pytest.approx(0.693147 - math.log(32) / (3 * 4 * 4), abs=1e-6)
    assert certain["perplexity"] == certain["token_perplexity"] == pytest.approx(1)


def test_what_is_wrong_is_said_in_words():
    good = {"usage": 0.8, "kl": 5.0, "temperature": 1 / 16}
    assert diagnose(good, 512) == []
    assert "collapsed: 0.20% of 512" in diagnose(good | {"usage": 0.002}, 512)[0]
    assert "KL 0.001 of 6.24 nats" in diagnose(good | {"kl": 0.001}, 512)[0]
    assert "still 0.900" in diagnose(good | {"temperature": 0.9}, 512)[0]
    assert len(diagnose({"usage": 0.0, "kl": 0.0, "temperature": 1.0}, 512)) == 3


def test_collapse_is_told_of_few_codes_and_of_few_cells():
    good = {"kl": 4.0, "temperature": 1 / 16}
    assert "1.56% of 64" in diagnose(good | {"usage": 1 / 64}, 64)[0]
    assert diagnose(good | {"usage": 2 / 64}, 64) == []
    assert "collapsed" in diagnose(good | {"usage": 0.5, "token_perplexity": 1.2}, 64)[0]
    assert diagnose(good | {"usage": 60 / 8192}, 8192, cells=64) == []
    assert "collapsed" in diagnose(good | {"usage": 1 / 8192}, 8192, cells=64)[0]
    assert "collapsed" in diagnose(good | {"usage": 60 / 8192}, 8192)[0]


def test_a_misspelt_tokenizer_gets_the_nearest_name(codec, tmp_path):
    tokenizers.save(codec, tmp_path / "visual.safetensors")
    with pytest.raises(
        ValueError, match=r"no tokenizer at .*visul\.safetensors: did you mean .*/visual\.safetensors\?"
    ):
        tokenizers.load(tmp_path / "visul.safetensors")
