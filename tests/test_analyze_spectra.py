"""A3, A4 and A5: spatial frequencies of tokens, of images, and of errors."""

import math

import analyze_toys
import numpy as np
import pytest
import torch

from unmask.analyze import amplitude, bands, error_spectrum, spectra
from unmask.methods.mae import patchify
from unmask.randomness import key


def noise(*shape):
    return torch.from_numpy(key(0, "test").standard_normal(shape, np.float32))


def wave(size, cycles):
    """A wave along the rows, of so many cycles an image."""
    return torch.cos(2 * math.pi * cycles * torch.arange(size) / size).expand(1, 1, size, size).clone()


# --- A3 ----------------------------------------------------------------------------------------------


def test_white_noise_is_flat_but_for_the_real_frequency_0():
    found = amplitude.log_amplitude(noise(40, 14, 14, 64)).mean(0)
    assert found[0] == 0
    assert found.shape == (7,)
    assert torch.allclose(found[1:], torch.full((6,), math.log(2) / 2), atol=0.03)


def test_smooth_tokens_have_little_amplitude_at_high_frequencies():
    smooth = torch.nn.functional.avg_pool2d(noise(8, 32, 18, 18), 5, 1).permute(0, 2, 3, 1)
    found = amplitude.log_amplitude(smooth).mean(0)
    assert found[-1] < -1.5


def test_amplitude_scales_away_and_follows_a_diagonal_wave():
    tokens = noise(2, 8, 8, 16)
    assert torch.allclose(amplitude.log_amplitude(tokens), amplitude.log_amplitude(7 * tokens), atol=1e-4)
    place = torch.arange(8)
    diagonal = torch.cos(2 * math.pi * 2 * (place[:, None] + place[None]) / 8)[None, :, :, None] + 1
    found = amplitude.log_amplitude(diagonal)[0]
    assert found.argmax() in (0, 2)
    assert found[2] == pytest.approx(math.log(0.5), abs=1e-3)


def test_every_block_is_measured():
    subject = analyze_toys.fresh("mae")
    (found,) = analyze_toys.drawn(amplitude.run([subject], analyze_toys.asked())).values()
    assert found["blocks"].value.shape == (2, 2)
    assert np.allclose(found["blocks"].value[:, -1], found["drop"].value)


# --- A4 ----------------------------------------------------------------------------------------------


def test_low_and_high_pass_part_an_image():
    images = noise(2, 3, 16, 24)
    assert torch.allclose(spectra.low_pass(images, 1e9), images, atol=1e-5)
    assert torch.allclose(spectra.high_pass(images, 0), images, atol=1e-5)
    both = spectra.low_pass(images, 3.9) + spectra.high_pass(images, 3.9)  # no frequency is at 3.9
    assert torch.allclose(both, images, atol=1e-5)


def test_a_wave_passes_by_its_cycles_an_image():
    image = wave(32, 5)
    assert torch.allclose(spectra.low_pass(image, 5), image, atol=1e-5)
    assert spectra.low_pass(image, 4).abs().max() < 1e-5
    assert torch.allclose(spectra.high_pass(image, 5), image, atol=1e-5)
    assert spectra.high_pass(image, 6).abs().max() < 1e-5


def test_band_noise_has_its_norm_and_its_band():
    found = spectra.band_noise((3, 2, 32, 32), (0.4, 0.6), 0.5, key(0, "test"))
    assert torch.allclose(found.square().mean((1, 2, 3)).sqrt(), torch.full((3,), 0.5), atol=1e-5)
    energy = spectra.energy(found).mean(0)
    inside = energy[round(0.4 * 16) : round(0.6 * 16) + 1].sum() / energy.sum()
    assert inside > 0.999


def test_energy_of_all_radii_is_that_of_the_pixels():
    images = noise(2, 3, 12, 20)
    assert torch.allclose(spectra.energy(images).sum(1), images.double().square().sum((1, 2, 3)) * 240, rtol=1e-6)
    assert spectra.energy(wave(32, 5))[0].argmax() == 5


def test_no_cut_off_gives_the_whole_accuracy():
    whole = np.array([1.0, 0.0, 1.0, 1.0])
    found = bands.relative(np.stack([whole, 0 * whole], 1), whole)
    assert found.value.tolist() == [1, 0]
    assert found.low[0] == found.high[0] == 1
    assert bands.area((4, 8, 16), np.ones(3)) == pytest.approx(1)
    assert bands.area((4, 8, 16), np.array([0.0, 0.5, 1.0])) == pytest.approx(0.5)


def test_bands_are_measured_against_unfiltered_features(monkeypatch):
    monkeypatch.setattr(bands, "CUTS", (4, 1000))
    monkeypatch.setattr(bands, "cuts_of", lambda size: (4.0, 1000.0))
    subject = analyze_toys.fresh("mae")
    (found,) = analyze_toys.drawn(bands.run([subject], analyze_toys.asked())).values()
    assert found["learned_from"] == 12
    assert found["relative"]["low"].value[1] == 1  # no cut-off
    assert found["relative"]["high"].value.shape == (2,)
    assert found["relative"]["noise"].value.shape == (5,)


def test_bands_need_labels():
    subject = analyze_toys.fresh("mae")
    source = analyze_toys.Labelled()
    source.labels = None
    with pytest.raises(ValueError, match="DATA has no labels"):
        bands.run([subject], analyze_toys.asked(data=source))


# --- A5 ----------------------------------------------------------------------------------------------


def test_predicting_zero_leaves_all_of_the_image_at_every_frequency():
    true, mask = patchify(noise(3, 3, 16, 16), (4, 4)), torch.rand(3, 16) < 0.6
    found = error_spectrum.spectra(torch.zeros_like(true), true, mask, (4, 4), (4, 4))
    assert np.allclose(found.error, found.truth)


def test_a_perfect_prediction_leaves_nothing_and_visible_patches_do_not_count():
    true, mask = patchify(noise(3, 3, 16, 16), (4, 4)), torch.rand(3, 16) < 0.6
    predicted = torch.where(mask[..., None], true, torch.full_like(true, 9.0))
    found = error_spectrum.spectra(predicted, true, mask, (4, 4), (4, 4))
    assert found.error.max() == 0


def test_the_loss_share_falls_from_all_to_nothing():
    share = error_spectrum.loss_share(np.array([[1.0, 2.0, 1.0]]))
    assert share.tolist() == [[0.75, 0.25, 0.0]]


@pytest.mark.parametrize("method", ["mae", "dvae"])
def test_reconstructions_are_measured_in_both_kinds_of_pixels(method):
    subject = analyze_toys.fresh(method)
    (found,) = analyze_toys.drawn(error_spectrum.run([subject], analyze_toys.asked())).values()
    for kind in ("pixels", "normalized"):
        assert (found[kind]["error_over_image"].value >= 0).all()
        assert found[kind]["loss_share"].value[-1] == pytest.approx(0, abs=1e-9)


def test_the_normalized_error_of_an_mae_is_its_loss():
    subject = analyze_toys.fresh("mae")
    ask = analyze_toys.asked()
    pictures = error_spectrum.look(subject, ask.data, ask)
    found = error_spectrum.measure(subject, pictures, 0)["normalized"]
    mask, images = error_spectrum.draw_masks(subject, 12, 0), error_spectrum.normalized(subject, pictures.images)
    with torch.no_grad():
        loss = subject.method.loss(images, subject.method.reconstruct(images, mask), mask)
    pixels = 48 * int(mask.sum())
    assert found.error.sum() / 256 / pixels == pytest.approx(float(loss), rel=1e-4)


def test_a_model_without_pixels_is_refused():
    subject = analyze_toys.fresh("ibot")
    with pytest.raises(ValueError, match="is a IBOT; error-spectrum is measured on MAE or DVAE"):
        error_spectrum.run([subject], analyze_toys.asked())
