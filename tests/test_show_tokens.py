"""Tokens as pictures: of a discrete VAE, and of a BEiT that guesses them."""

import numpy as np
import pytest
import torch
from cli_toys import SHORT, pictures, unmask
from test_show import MEAN, STD, photographs, size_of

from unmask.framing import center
from unmask.masks import BlockMask
from unmask.methods.beit import BEiT, BEiTConfig
from unmask.methods.codec import CodecConfig, build_codec
from unmask.pictures import _central
from unmask.show import tokens
from unmask.show.picture import GRAY
from unmask.views import View, crop, twin
from unmask.vit import ViTConfig

CODEC = CodecConfig(vocab=24, stride=4, width=8, groups=3, blocks=1, code_width=8)
VIT = ViTConfig(image_size=32, patch=8, width=16, depth=1, heads=2, pos_embed="none", rel_pos="shared", mask_token=True)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def tiny_beit() -> BEiT:
    return BEiTConfig(vit=VIT, views=(View(32, twin=16),), masks=(BlockMask(smallest=1),), tokenizer=CODEC).build()


def mask(count: int = 4) -> torch.Tensor:
    hidden = torch.zeros(count, 4, 4, dtype=torch.bool)
    hidden[:, 1:3, 1:4] = True
    return hidden.flatten(1)


def unit(size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    mean, std = (torch.tensor((v * 3)[:channels]).view(-1, 1, 1) for v in (MEAN, STD))
    return (photographs(size, channels) * std + mean).clamp(0, 1)


def test_a_color_belongs_to_an_id_and_neighbors_differ():
    colors = tokens.palette(8192)
    assert (tokens.palette(64) == colors[:64]).all()
    assert len(np.unique(colors, axis=0)) > 8000
    assert np.abs(colors[1:].astype(int) - colors[:-1]).sum(1).min() > 60


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_equal_ids_have_equal_colors_for_any_channels_and_rectangles(channels, tmp_path):
    codec, images = build_codec(CodecConfig(**{**vars(CODEC), "channels": channels})), unit((32, 48), channels)
    panels = tokens.tokenize(codec, images)
    assert {p.shape for p in panels[:4]} == {(4, 128, 192, 3)}
    ids = codec.encode(images).view(4, 8, 12).numpy()
    assert (panels.tokens[:, ::16, ::16] == tokens.palette(24)[ids]).all()
    assert f"{len(np.unique(ids))} of 24 codes" in panels.note
    assert size_of(tokens.draw(panels, tmp_path / "t.png", labels=list("abcd")))[0] > 4 * 192


def test_the_mosaic_holds_the_most_used_codes_in_their_colors():
    codec, ids = build_codec(CODEC), torch.tensor([3] * 9 + [7] * 5 + [1] * 2)
    colors = tokens.palette(24)
    picture = tokens._mosaic(codec, ids, colors, (160, 160))
    framed = [tuple(picture[20, 2 + 40 * i]) for i in range(3)]  # just inside the gap of each cell
    assert framed == [tuple(colors[i]) for i in (3, 7, 1)]
    assert (picture[40:] == 255).all()


def test_visible_patches_keep_their_true_tokens_and_hidden_ones_are_counted(monkeypatch, tmp_path):
    method, hidden = tiny_beit().train(), mask()
    twins = unit((16, 16))
    true = method.tokenizer.encode(twins)
    guess = torch.where(torch.arange(16) % 2 == 0, true, (true + 1) % 24)  # every other one is wrong
    monkeypatch.setattr(method, "guess", lambda image, mask: guess)
    decoded = []
    decode = method.tokenizer.decode
    monkeypatch.setattr(method.tokenizer, "decode", lambda ids, grid: decoded.append(ids) or decode(ids, grid))
    found = tokens.predict(method, photographs((32, 32)), twins, hidden, MEAN, STD)
    mixed, ideal = decoded
    assert torch.equal(ideal, true)
    assert torch.equal(mixed[~hidden], true[~hidden])
    assert torch.equal(mixed[hidden], guess[hidden])
    assert found.accuracy == pytest.approx([1 / 3] * 4)  # of columns 1, 2 and 3 the second
    assert "33.3% of 24 hidden tokens" in found.note
    assert (found.masked[:, 50:60, 50:60] == GRAY).all()
    assert (found.masked[:, :40] == found.original[:, :40]).all()
    assert method.vit.training
    assert size_of(tokens.draw(found, tmp_path / "t.png", labels=list("abcd")))[0] > 4 * 160


def test_an_image_without_hidden_patches_has_no_accuracy(tmp_path):
    found = tokens.predict(tiny_beit(), photographs((32, 32)), unit((16, 16)), ~mask() & mask(), MEAN, STD)
    assert np.isnan(found.accuracy).all()
    assert found.note == "nothing is hidden"
    assert (found.predicted == found.true).all()
    tokens.draw(found, tmp_path / "t.png")


@pytest.mark.parametrize("shape", [(90, 120), (130, 70), (33, 32), (5, 400)])
@pytest.mark.parametrize("size", [(32, 32), (112, 96), (384, 384)])
def test_the_central_box_is_the_evaluation_crop(shape, size):
    row, column = torch.meshgrid(torch.linspace(0, 255, shape[0]), torch.linspace(0, 255, shape[1]), indexing="ij")
    image = torch.stack([row, column, row]).to(torch.uint8)
    plan = _central(image, size, 16)
    assert twin(image, plan).shape == (3, 16, 16)
    if min(shape) > 5:
        assert (crop(image, plan).int() - center(image, size).int()).abs().max() <= 8  # rounded differently


def test_show_tokens_of_a_tokenizer_and_of_its_beit(tmp_path):
    photos, run = pictures(tmp_path / "photos"), tmp_path / "run"
    assert unmask("pretrain", "beit-nano", photos, "--out", run, *SHORT).code == 0
    said = unmask("show", run, "tokens", photos, "--count", 3)
    assert said.code == 0, said.err
    assert said.json["file"] == str(run / "figures" / "tokens.png")
    for more in ((), ("--size", "64")):
        said = unmask("show", run / "tokenizer", "tokens", photos, "--count", 2, *more)
        assert said.code == 0, said.err
    assert "only BEiT" not in said.err
    assert "BEiT's tokens are those of its own images" in unmask("show", run, "tokens", photos, "--size", 64).line
    assert "does not divide into 4x4" in unmask("show", run / "tokenizer", "tokens", photos, "--size", 63).line
    assert "draw its tokens" in unmask("show", run / "tokenizer", "attention", photos).line
    assert "tokens needs IMAGES" in unmask("show", run, "tokens").line
