import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from unmask.masks import RandomMask
from unmask.methods.mae import MAE, MAEConfig, patchify, unpatchify
from unmask.show import augmentations, curves, reconstruction
from unmask.show.grid import grid, save
from unmask.show.picture import GRAY, hide, to_pictures
from unmask.views import View
from unmask.vit import ViTConfig

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def photographs(size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    """Four parts of scikit-image's astronaut and cat, normalized."""
    pictures = []
    for photo in (data.astronaut(), data.chelsea()):
        for top in (20, 130):
            part = Image.fromarray(photo[top : top + 160, 60:280]).resize(size[::-1], Image.Resampling.BICUBIC)
            pictures.append(np.asarray(part))
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    images = images.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
    mean, std = (torch.tensor((v * 3)[:channels]).view(-1, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def tiny_mae(size: tuple[int, int], channels: int = 3, norm_pixels: bool = True) -> MAE:
    torch.manual_seed(0)
    vit = ViTConfig(image_size=size, patch=8, width=16, depth=1, heads=2, pos_embed="sincos", channels=channels)
    config = MAEConfig(vit=vit, views=(View(size),), decoder_width=16, decoder_depth=1, decoder_heads=2)
    return type(config)(**{**vars(config), "norm_pixels": norm_pixels}).build()


def masks(count: int, grid_: tuple[int, int], ratio: float = 0.75) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.stack([RandomMask(ratio)(grid_, rng).reshape(-1) for _ in range(count)]))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("norm_pixels", [True, False])
def test_reconstruction_panels_agree_with_the_mask_for_any_channels_and_rectangles(channels, norm_pixels, tmp_path):
    size, mask = (32, 48), masks(4, (4, 6))
    images, method = photographs(size, channels), tiny_mae(size, channels, norm_pixels)
    mean, std = (MEAN * 2)[:channels], (STD * 2)[:channels]
    panels = reconstruction.reconstruct(method, images, mask, mean, std)
    hidden = mask.view(4, 4, 6).repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()
    assert panels.original.shape == (4, 32, 48, 3)
    assert (panels.masked[hidden] == GRAY).all()
    assert (panels.masked[~hidden] == panels.original[~hidden]).all()
    assert (panels.pasted[hidden] == panels.reconstruction[hidden]).all()
    assert (panels.pasted[~hidden] == panels.original[~hidden]).all()
    assert bool(panels.note) == norm_pixels
    file = reconstruction.draw(panels, tmp_path / "new" / "r.png", labels=list("abcd"), title="MAE")
    assert size_of(file)[0] > 4 * 160


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_a_perfect_prediction_gives_back_the_picture(norm_pixels, monkeypatch):
    size, mask = (32, 32), masks(4, (4, 4))
    images, method = photographs(size), tiny_mae(size, norm_pixels=norm_pixels)
    monkeypatch.setattr(method, "reconstruct", lambda image, mask: method.target(image))
    panels = reconstruction.reconstruct(method, images, mask, MEAN, STD)
    assert np.abs(panels.reconstruction.astype(int) - panels.original).max() <= 1
    assert torch.equal(unpatchify(patchify(images, (8, 8)), (8, 8), (4, 4)), images)


def test_reconstruction_leaves_the_method_in_the_mode_it_came_in():
    method, images = tiny_mae((32, 32)).train(), photographs((32, 32))
    reconstruction.reconstruct(method, images, masks(4, (4, 4)), MEAN, STD)
    assert all(module.training for module in method.modules())


def test_masks_of_different_counts_are_refused():
    mask = masks(4, (4, 4))
    mask[0] = False
    with pytest.raises(ValueError, match="4 to 16 patches visible"):
        reconstruction.reconstruct(tiny_mae((32, 32)), photographs((32, 32)), mask, MEAN, STD)


def test_denormalized_pictures_are_the_pixels_that_went_in():
    pixels = torch.from_numpy(data.astronaut()[:40, :40].copy()).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    shown = to_pictures((pixels / 255 - mean) / std, MEAN, STD)
    assert (shown[0] == data.astronaut()[:40, :40]).all()


def test_a_mask_that_does_not_fit_the_picture_is_refused():
    with pytest.raises(ValueError, match="16 patches on a 5 x 5 grid"):
        hide(np.zeros((1, 32, 32, 3), np.uint8), torch.zeros(1, 16, dtype=torch.bool), (5, 5))


def test_small_pictures_are_enlarged_by_nearest_neighbor_to_at_least_96_dots(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with Image.open(save(grid([[picture]]), tmp_path / "a.png")) as saved:
        pixels = np.asarray(saved.convert("RGB"))
    inked = np.argwhere((pixels != 255).any(2))
    (top, left), (bottom, right) = inked.min(0), inked.max(0) + 1
    body = pixels[top:bottom, left:right]
    scale = body.shape[0] // 32
    assert scale * 32 >= 96
    assert (body == picture.repeat(scale, 0).repeat(scale, 1)).all()


def test_views_of_several_sizes_are_drawn_with_their_masks(tmp_path):
    large, small = photographs((64, 64)), photographs((32, 32))
    file = augmentations.draw(
        [large, small],
        tmp_path / "views.png",
        mean=MEAN,
        std=STD,
        masks=[masks(4, (8, 8))],
        grids=[(8, 8)],
        most=3,
    )
    assert size_of(file)[1] > 2 * 160 + 96


def log(tmp_path: Path, steps: int = 400) -> Path:
    rng = np.random.default_rng(0)
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(0, steps, 2):
            loss = 0.4 + 0.6 * np.exp(-step / 60) + 0.02 * rng.normal()
            line = {
                "step": step,
                "images": step * 64,
                "loss": loss,
                "lr": 1e-3 * min(step / 40, 1 - step / steps),
            }
            if step % 100 == 0 and step:
                line |= {"eval/knn/cls": 0.3 + step / 1000, "eval/linear/mean": 0.4 + step / 900}
            file.write(json.dumps(line) + "\n")
        file.write('{"step": 400, "lo')  # killed while it wrote
    return tmp_path


def test_curves_are_drawn_from_a_run_directory_whose_last_line_is_cut_short(tmp_path):
    file = curves.draw(log(tmp_path), tmp_path / "curves.png", title="mae-nano")
    assert min(size_of(file)) > 600
    assert len(curves.read_metrics(tmp_path)) == 200


def test_the_health_of_a_tokenizer_is_drawn_over_time_beside_that_of_the_batch(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save", lambda figure, path: drawn.append(figure) or path)
    lines = [{"step": i, "images": 8 * i, "loss": -1.0, "lr": 1e-3, "usage": 0.4, "elbo": 0.5} for i in range(1, 9)]
    health = {"usage": 0.3, "elbo_hard": -0.2, "elbo_relaxed": 0.1, "psnr": 17.0, "ssim": 0.4}
    lines += [{"step": i, "images": 8 * i} | {f"health/{k}": v for k, v in health.items()} for i in (4, 8)]
    curves.draw(lines, tmp_path / "c.png")
    panels = {axes.get_ylabel(): axes for axes in drawn[0].axes}
    assert list(panels) == ["loss", "learning rate", "bound, nats/dim", "codes in use", "PSNR, dB", "SSIM"]
    names = [line.get_label() for line in panels["bound, nats/dim"].lines]
    assert names == ["argmax tokens, held out", "relaxed, held out", "relaxed, batch"]
    assert panels["bound, nats/dim"].get_ylim()[0] < -0.2
    assert [list(line.get_ydata()) for line in panels["codes in use"].lines] == [[0.3] * 2, [0.4] * 8]


def test_masked_accuracy_is_drawn_beside_a_constant_guess(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save", lambda figure, path: drawn.append(figure) or path)
    curves.draw(
        [{"step": i, "loss": 1.0, "mlm_acc": 0.2, "constant_acc": 0.1} for i in range(1, 9)], tmp_path / "c.png"
    )
    (axes,) = [axes for axes in drawn[0].axes if axes.get_ylabel() == "hidden tokens right"]
    assert [line.get_label() for line in axes.lines] == ["predicted", "most frequent token everywhere"]


def test_a_log_without_curves_or_with_a_broken_line_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        curves.read_metrics(tmp_path)
    with pytest.raises(ValueError, match="train some steps"):
        curves.draw([], tmp_path / "c.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        curves.read_metrics(tmp_path)


def test_smoothing_keeps_a_constant_and_widens_with_the_step():
    places = np.arange(1000.0)
    assert np.allclose(curves.smooth(np.full(1000, 3.0), places), 3)
    noise = curves.smooth(np.random.default_rng(0).normal(size=1000), places)
    assert noise[-200:].std() < 0.3 * noise[:50].std()


def test_a_picture_that_cannot_be_written_leaves_no_half_file(tmp_path):
    figure = grid([[np.zeros((8, 8, 3), np.uint8)]])
    with pytest.raises(ValueError):
        save(figure, tmp_path / "picture.nosuchformat")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        grid([[None]])
