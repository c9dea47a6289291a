"""The discrete VAE against fidelity.md section 2, items 20 to 25, and its golden cases."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from unmask.config import DataConfig, OptimConfig, RunConfig, from_json, to_json
from unmask.methods import logits as logits_module
from unmask.methods.base import Batch, Progress
from unmask.methods.codec import CodecConfig, build_codec
from unmask.methods.codec_dalle import DalleCodec, GainBlock
from unmask.methods.dvae import Anneal, DVAEConfig
from unmask.methods.pixels import logit_laplace, map_pixels, unmap_pixels
from unmask.methods.relaxation import categorical_kl, gaussian_kl, gumbel, relax, sample
from unmask.optim import build_optimizer
from unmask.parallel import World
from unmask.testing.goldens import CASES, ratio, read
from unmask.train import update
from unmask.views import View

GOLDEN = Path(__file__).parent / "golden"
START = Progress(0, 100, 10.0)
DALLE = CodecConfig(vocab=32, stride=4, width=8, groups=3, blocks=1, code_width=8)
BEIT = CodecConfig(kind="beit", vocab=24, stride=4, width=8, code_width=8, likelihood="mse")
TINY = DVAEConfig(codec=DALLE, views=(View(16, twin=16),))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def batch(count=2, side=16, channels=3):
    return Batch(views=(torch.rand(count, channels, side, side),))


@pytest.mark.parametrize("name", ["dalle_dvae", "beit_discrete_vae"])
def test_golden_discrete_vae(name):
    kind, case = read(GOLDEN / f"{name}.safetensors")
    produced = CASES[kind](case)
    for output, golden in case.outputs.items():
        assert ratio(produced[output], golden, case.tolerances[f"outputs/{output}"]) <= 1, output


# --- section 9 -------------------------------------------------------------------------------------


def test_categorical_kl_has_its_known_values():
    one_hot = torch.zeros(1024, 8192)
    one_hot[:, 0] = 1e4
    assert categorical_kl(one_hot)[0].item() == pytest.approx(9.010913, abs=1e-6)
    assert categorical_kl(one_hot).sum().item() == pytest.approx(9227.175, abs=1e-2)
    assert categorical_kl(torch.zeros(3, 8192)).abs().max() < 1e-5
    assert categorical_kl(torch.tensor([1.0, 2, 3, 4])).item() == pytest.approx(0.438757, abs=1e-6)


def test_gaussian_kl_has_its_known_value():
    kl = gaussian_kl(torch.tensor(1.0), torch.tensor(2.0).log())
    assert kl.item() == pytest.approx(0.653426, abs=1e-6)
    assert gaussian_kl(torch.zeros(2), torch.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("pixel", "mean", "log_scale", "nll"),
    [(0.5, 0.0, 0.0, -0.693147), (1.0, 0.0, 0.0, 0.482426), (1.0, math.log(9), -1.0, -2.714798)],
)
def test_logit_laplace_has_its_known_values(pixel, mean, log_scale, nll):
    x = map_pixels(torch.tensor(pixel, dtype=torch.float64))
    found = logit_laplace(x, torch.tensor(mean).double(), torch.tensor(log_scale).double())
    assert found.item() == pytest.approx(nll, abs=1e-6)


def test_logit_laplace_is_a_density():
    x = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)
    density = (-logit_laplace(x, torch.full_like(x, 0.7), torch.full_like(x, -0.5))).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-3)


# --- items 20 to 25 --------------------------------------------------------------------------------


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=9))
def test_kl_lies_between_zero_and_log_k(logits):
    kl = categorical_kl(torch.tensor(logits)).item()
    assert -1e-5 <= kl <= math.log(len(logits)) + 1e-5


def test_kl_knows_neither_temperature_nor_noise():
    method, x = TINY.build(), map_pixels(torch.rand(2, 3, 16, 16))
    first = method.score(x, 1.0, 1.0, torch.zeros(2, 16, 32))
    second = method.score(x, 0.1, 1.0, torch.randn(2, 16, 32))
    assert torch.equal(first.metrics["kl"], second.metrics["kl"])
    torch.testing.assert_close(first.metrics["kl"], categorical_kl(method.codec.logits(x)).mean())


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize(("stride", "divisor"), [(8, 192), (4, 48), (2, 12), (1, 3)])
def test_beta_is_divided_by_the_pixels_and_channels_of_a_cell(side, stride, divisor):
    codec = dataclasses.replace(DALLE, stride=stride, groups=4)
    method, x = dataclasses.replace(TINY, codec=codec).build(), map_pixels(torch.rand(2, 3, side, side))
    noise = torch.zeros(2, (side // stride) ** 2, 32)
    without, with_kl = method.score(x, 1.0, 0.0, noise), method.score(x, 1.0, 6.6, noise)
    expected = 6.6 / divisor * with_kl.metrics["kl"]
    assert (with_kl.loss - without.loss).item() == pytest.approx(expected.item(), rel=1e-3)
    assert torch.equal(without.loss, without.metrics["nll"])


def test_beits_kl_grows_with_the_batch_and_ours_does_not():
    x = map_pixels(torch.rand(1, 3, 16, 16))
    twice = torch.cat([x, x])
    for kl_over, factor in (("pixels", 1.0), ("sum", 2.0)):
        method = dataclasses.replace(TINY, kl_over=kl_over).build()
        penalties = []
        for given_x in (x, twice):
            noise = torch.zeros(len(given_x), 16, 32)
            out = method.score(given_x, 1.0, 1.0, noise)
            penalties.append((out.loss - out.metrics["nll"]).item())
        assert penalties[1] == pytest.approx(factor * penalties[0], rel=1e-4)


def test_relaxed_codes_are_soft_by_default_and_follow_the_temperature():
    logits = torch.randn(2, 5, 7)
    noise = torch.randn(2, 5, 7)
    torch.testing.assert_close(relax(logits, 0.5, noise), ((logits + noise) / 0.5).softmax(-1))
    assert relax(logits, 1.0, noise).max() < 0.999
    assert relax(logits, 1e-3, noise).max(-1).values.min() > 0.999
    assert DVAEConfig().straight_through is False


@pytest.mark.parametrize("cells", [1, 3, 40])
def test_one_pass_over_the_logits_gives_what_four_would(cells, monkeypatch):
    monkeypatch.setattr(logits_module, "AT_A_TIME", 4 * 11)  # four cells at a time
    logits, noise = (
        torch.randn(2, cells, 11, dtype=torch.double, requires_grad=True),
        torch.randn(2, cells, 11).double(),
    )
    weight, of_kl = torch.randn(11).double(), torch.randn(2, cells).double()
    seen, soft = sample(logits, 0.3, noise), ((logits + noise) / 0.3).softmax(-1)
    log_q = logits.log_softmax(-1)
    kl = (log_q.exp() * log_q).sum(-1) + math.log(11)
    torch.testing.assert_close(seen.codes, soft)
    torch.testing.assert_close(seen.kl, kl)
    torch.testing.assert_close(seen.mean, logits.softmax(-1).mean((0, 1)))
    assert torch.equal(seen.ids, logits.argmax(-1))
    (found,) = torch.autograd.grad((seen.codes * weight).sum() + (seen.kl * of_kl).sum(), logits)
    (wanted,) = torch.autograd.grad((soft * weight).sum() + (kl * of_kl).sum(), logits)
    torch.testing.assert_close(found, wanted)


def test_bf16_logits_are_sampled_and_measured_in_fp32():
    logits, noise = torch.randn(2, 5, 64).bfloat16(), torch.randn(2, 5, 64)
    seen, exact = sample(logits, 0.5, noise), sample(logits.float(), 0.5, noise)
    torch.testing.assert_close(seen.kl, exact.kl, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.mean, exact.mean, atol=1e-8, rtol=1e-5)
    torch.testing.assert_close(seen.codes.float(), exact.codes, atol=1e-7, rtol=2**-7)


def test_the_gradient_of_bf16_logits_is_that_of_fp32_ones_to_two_hundredths():
    logits, noise, weight = (
        torch.randn(50, 512),
        torch.randn(50, 512),
        torch.randn(512) + 5,
    )  # a common offset has no part
    found, wanted = [], []
    for dtype, into in ((torch.bfloat16, found), (torch.float32, wanted)):
        x = logits.bfloat16().to(dtype).requires_grad_()
        seen = sample(x, 1 / 16, noise)
        into += torch.autograd.grad((seen.codes.float() * weight).sum() + seen.kl.sum(), x)
    off = (found[0].float() - wanted[0]).norm() / wanted[0].norm()
    assert off < 0.02, off


def test_what_is_only_looked_at_has_no_gradient():
    seen = sample(torch.randn(2, 3, 8, requires_grad=True), 1.0)
    assert (seen.ids.requires_grad, seen.mean.requires_grad) == (False, False)


def test_noise_can_be_drawn_in_inference_mode():
    with torch.inference_mode():
        assert gumbel(torch.empty(1 << 19)).isfinite().all()


def test_numbers_too_small_to_be_normal_are_zero_in_codes_and_gradients():
    logits = (5 * torch.randn(50, 64)).requires_grad_()
    noise = torch.randn(50, 64)
    codes = relax(logits, 1 / 16, noise)
    exact = ((logits.detach().double() + noise) * 16).softmax(-1)
    tiny = torch.finfo(torch.float32).tiny
    assert ((exact > 1e-45) & (exact < tiny)).any()
    torch.testing.assert_close(codes.detach(), exact.float(), atol=2 * tiny, rtol=1e-4)
    codes.backward(torch.randn(50, 64))
    for found in (codes.detach(), logits.grad):
        assert ((found == 0) | (found.abs() >= tiny)).all()


def test_straight_through_codes_are_one_hot_with_the_soft_gradient():
    logits, noise, weight = torch.randn(2, 5, 7, requires_grad=True), torch.randn(2, 5, 7), torch.randn(7)
    hard = relax(logits, 0.5, noise, hard=True)
    torch.testing.assert_close(hard.detach(), F.one_hot((logits + noise).argmax(-1), 7).float())
    (gradient,) = torch.autograd.grad((hard * weight).sum(), logits)
    (soft,) = torch.autograd.grad((relax(logits, 0.5, noise) * weight).sum(), logits)
    torch.testing.assert_close(gradient, soft)


def test_relaxed_samples_have_the_softmaxs_distribution():
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    drawn = relax(logits.expand(1, 40_000, 4), 1.0).argmax(-1).flatten()
    found = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(found, logits.softmax(0), atol=0.01, rtol=0)


def test_anneal_is_a_cosine_that_ends_where_it_is_told():
    temperature = Anneal(1.0, 1 / 16, 0.5)
    values = [temperature(Progress(step, 100, 1.0)) for step in (0, 25, 50, 99)]
    assert values == pytest.approx([1.0, (1 + 1 / 16) / 2, 1 / 16, 1 / 16])
    eighth = temperature(Progress(12, 96, 1.0))  # a quarter of the way: above the straight line
    assert eighth == pytest.approx(1 - 15 / 16 * 0.5 * (1 - math.cos(math.pi / 4)))


@pytest.mark.parametrize("steps", [3_000_000, 60_000])
def test_a_shorter_run_keeps_the_order_of_the_schedules(steps):
    config = DVAEConfig()
    ramp, anneal = (round(s.part * steps) for s in (config.beta, config.temperature))
    assert (ramp / steps, anneal / steps) == pytest.approx((1 / 600, 1 / 20), rel=0.01)
    assert config.beta(Progress(ramp, steps, 1.0)) == pytest.approx(6.6)
    assert config.temperature(Progress(anneal // 2, steps, 1.0)) == pytest.approx(0.53125, rel=1e-3)
    assert config.temperature(Progress(anneal, steps, 1.0)) == pytest.approx(1 / 16)


def test_the_published_codec_has_the_published_size_gain_and_kernels():
    with torch.device("meta"):
        codec = build_codec(CodecConfig())
    assert isinstance(codec, DalleCodec)
    assert sum(p.numel() for p in codec.encoder.parameters()) == 53_786_240
    assert sum(p.numel() for p in codec.decoder.parameters()) == 43_829_766
    blocks = [b for b in codec.modules() if isinstance(b, GainBlock)]
    assert len(blocks) == 16
    assert {b.gain for b in blocks} == {1 / 64}
    kernels = [[conv.kernel_size[0] for conv in b.convs] for b in blocks]
    assert kernels == [[3, 3, 3, 1]] * 8 + [[1, 3, 3, 3]] * 8
    assert codec.encoder.output.kernel_size == codec.decoder.input.kernel_size == (1, 1)
    assert codec.encoder.input.kernel_size == (7, 7)


def test_fresh_convolutions_have_deviation_one_over_root_fan_in():
    codec = build_codec(dataclasses.replace(DALLE, width=64, vocab=64))
    assert isinstance(codec, DalleCodec)
    weight = codec.encoder.groups[1][0].convs[0].weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(64 * 9), rel=0.05)
    assert all(p.abs().max() == 0 for n, p in codec.named_parameters() if n.endswith("bias"))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 4])
def test_every_stride_and_number_of_channels_comes_back_to_the_image(stride, channels):
    codec = build_codec(dataclasses.replace(DALLE, stride=stride, groups=4, channels=channels))
    x = torch.rand(2, channels, 16, 24)
    grid = codec.grid(x)
    assert grid == (16 // stride, 24 // stride)
    logits = codec.logits(codec.map(x))
    assert logits.shape == (2, grid[0] * grid[1], 32)
    assert codec.paint(logits.softmax(-1), grid).shape == (2, 2 * channels, 16, 24)


def test_ids_and_their_one_hot_codes_decode_alike():
    for config in (DALLE, BEIT):
        codec, ids = build_codec(config), torch.randint(0, 24, (2, 16))
        one_hot = F.one_hot(ids, config.vocab).float()
        torch.testing.assert_close(codec.paint(ids, (4, 4)), codec.paint(one_hot, (4, 4)))


def test_pixels_are_the_unmapped_means_and_know_no_scale():
    codec, painted = build_codec(DALLE), torch.randn(2, 6, 8, 8)
    assert torch.equal(codec.pixels(painted), unmap_pixels(painted[:, :3].sigmoid()))
    painted[:, 3:] += 5
    assert torch.equal(codec.pixels(painted), unmap_pixels(painted[:, :3].sigmoid()))


def test_the_pixel_map_keeps_a_tenth_from_both_ends():
    pixels = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(map_pixels(pixels), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(unmap_pixels(map_pixels(pixels)), pixels)
    assert unmap_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]


# --- the method ------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["laplace", "mse", "smooth_l1"])
def test_every_likelihood_gives_every_parameter_a_finite_gradient(likelihood):
    codecs = [dataclasses.replace(DALLE, likelihood=likelihood)]
    codecs += [dataclasses.replace(BEIT, likelihood=likelihood)] if likelihood != "laplace" else []
    for codec in codecs:
        method = dataclasses.replace(TINY, codec=codec).build()
        out = method(batch(), Progress(50, 100, 10.0))
        out.loss.backward()
        assert out.loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.codec.parameters())
        assert all(p.grad is None for p in method.average.parameters())
        assert all(not v.requires_grad and v.isfinite() for v in out.metrics.values())


def test_squared_and_smooth_errors_are_of_the_mean_that_the_decoder_paints():
    x, painted = map_pixels(torch.rand(2, 3, 8, 8)), torch.randn(2, 6, 8, 8)
    off = painted[:, :3].sigmoid() - x
    mse = build_codec(dataclasses.replace(DALLE, likelihood="mse")).error(painted, x)
    torch.testing.assert_close(mse, off.square())
    smooth = build_codec(dataclasses.replace(DALLE, likelihood="smooth_l1")).error(painted, x)
    torch.testing.assert_close(smooth, torch.where(off.abs() < 1, 0.5 * off.square(), off.abs() - 0.5))
    beit = build_codec(dataclasses.replace(BEIT, likelihood="smooth_l1"))
    torch.testing.assert_close(beit.error(x + 3, x), torch.full_like(x, 2.5))  # normalized pixels, beyond 1 linear


@pytest.mark.parametrize("likelihood", ["mse", "smooth_l1"])
def test_the_discrete_vae_of_the_other_design_trains_with_its_own_errors(likelihood):
    config = dataclasses.replace(TINY, codec=dataclasses.replace(BEIT, likelihood=likelihood))
    method, x = config.build(), torch.randn(2, 3, 16, 16)
    noise = torch.zeros(2, 16, 24)
    painted = method.codec.paint(relax(method.codec.logits(x), 1.0, noise), (4, 4))
    of = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[likelihood]
    torch.testing.assert_close(method.score(x, 1.0, 0.0, noise).loss, of(painted, x))


def test_noise_comes_from_torchs_generator():
    method, given_batch = TINY.build(), batch()
    torch.manual_seed(5)
    first = method(given_batch, START).loss
    torch.manual_seed(5)
    assert torch.equal(first, method(given_batch, START).loss)
    assert not torch.equal(first, method(given_batch, START).loss)


def test_twins_are_read_before_views():
    method, image = TINY.build(), torch.rand(2, 3, 16, 16)
    torch.manual_seed(1)
    expected = method(Batch(views=(image,)), START).loss
    torch.manual_seed(1)
    assert torch.equal(method(Batch(views=(image * 3,), twins=(image,)), START).loss, expected)


def test_the_average_moves_after_the_step_alone_and_is_the_tokenizer():
    method = TINY.build()
    before = copy.deepcopy(method.average.state_dict())
    with torch.no_grad():
        for parameter in method.codec.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[k], v) for k, v in method.average.state_dict().items())
    method.after_step(START, {})
    kept = method.momentum(START)
    for name, value in method.average.state_dict().items():
        torch.testing.assert_close(value, before[name] + (1 - kept))
    assert method.tokenizer() is method.average is method.backbone()


def test_the_average_looks_back_over_a_tenth_of_a_short_run():
    method = TINY.build()
    found = [method.momentum(Progress(0, steps, 1.0)) for steps in (5, 100, 10_000, 3_000_000)]
    assert found == pytest.approx([0.0, 0.9, 0.999, 0.999])


def test_the_floor_of_the_scales_is_logged():
    method = TINY.build()
    with torch.no_grad():
        method.codec.decoder.output.bias[3:] = -100.0
    assert method(batch(), START).metrics["floored"] == 1


def test_training_lowers_the_loss_and_the_frozen_average_follows():
    config = dataclasses.replace(TINY, beta=Anneal(0.0, 0.1, 0.5), temperature=Anneal(1.0, 1 / 16, 0.5))
    method = config.build()
    optim = OptimConfig(base_lr=3e-3, base_batch=None, schedule="constant", weight_decay=1e-4)
    run = RunConfig(recipe="t", method=config, data=DataConfig(), optim=optim, batch=8, precision="fp32")
    optimizer = build_optimizer(method.parameter_groups(), optim)
    smooth = F.interpolate(torch.rand(8, 3, 2, 2), size=16, mode="bilinear")
    given_batch = Batch(views=(smooth,))
    losses = []
    for step in range(30):
        result = update(
            method, optimizer, [given_batch], Progress(step, 30, 1.0), run, World(0, 1, torch.device("cpu"))
        )
        losses.append(result.loss.item())
    assert losses[-1] < losses[0] - 0.1
    names = {n for g in method.parameter_groups() for n in g.names}
    assert names == {f"codec.{n}" for n, _ in method.codec.named_parameters()}


def test_collapse_is_said_while_it_trains_but_not_before_the_temperature_is_half_way_down():
    method = dataclasses.replace(TINY, codec=dataclasses.replace(DALLE, vocab=512)).build()
    well, collapsed = {"usage": 0.5, "kl": 3.0, "temperature": 0.1}, {"usage": 0.002, "kl": 3.0, "temperature": 0.1}
    assert method.warning([well] * 5) is None
    assert method.warning([collapsed] * 2) is None
    assert "collapsed: 0.20% of 512 codes" in method.warning([well, *[collapsed] * 3])
    assert "next to nothing" in method.warning([well | {"kl": 0.01}] * 3)
    assert method.warning([collapsed | {"temperature": 0.9}] * 3) is None
    method.cells = 4  # a micro-batch that can use few codes only
    assert method.warning([collapsed | {"usage": 4 / 512}] * 3) is None


def test_blocks_are_those_of_the_codec_and_of_its_average():
    method = TINY.build()
    assert len(method.blocks()) == 2 * len(method.codec.blocks()) == 12


def test_a_config_survives_json():
    config = dataclasses.replace(TINY, beta=Anneal(0.0, 1.0, 0.25))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("fields", "cure"),
    [
        ({"stride": 3}, "use 1, 2, 4 or 8"),
        ({"stride": 8, "groups": 3}, "at least 4 groups"),
        ({"width": 6}, "multiple of 4"),
        ({"kind": "beit"}, "mse or smooth_l1"),
        ({"kind": "beit", "likelihood": "mse", "stride": 1}, "stride 2, 4 or 8"),
    ],
)
def test_an_impossible_codec_is_refused_with_the_cure(fields, cure):
    with pytest.raises(ValueError, match=cure):
        CodecConfig(**fields)


def test_images_that_do_not_fit_are_refused_with_the_cure():
    with pytest.raises(ValueError, match="use 20"):
        dataclasses.replace(TINY, views=(View(16, twin=18),)).build()
    codec = build_codec(DALLE)
    with pytest.raises(ValueError, match="use 16 or 20"):
        codec.encode(torch.rand(1, 3, 18, 18))
    with pytest.raises(ValueError, match="wants 3"):
        codec.encode(torch.rand(1, 1, 16, 16))
