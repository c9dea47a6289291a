import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from unmask.data.record import Record
from unmask.evaluate.crops import crops, sample
from unmask.evaluate.features import evaluating, extract, pixels
from unmask.vit import ViT, ViTConfig

PREPARED = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.25, 0.3)}


class Photos:
    """Crops of scikit-image's photographs as PNG records: two classes, some of them broken."""

    name, classes = "photos", ["astronaut", "cat"]

    def __init__(self, count: int = 12, side: int = 32, broken: tuple[int, ...] = (), mode: str = "RGB"):
        self.labels = np.arange(count, dtype=np.int64) % 2
        self.side, self.broken, self.mode = side, broken, mode

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Record:
        photo = (data.astronaut(), data.chelsea())[i % 2]
        part = photo[8 * (i // 2) :, 100 + 3 * i :][: self.side, : self.side]
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(part)).convert(self.mode).save(file, "PNG")
        return Record(file.getvalue()[:60] if i in self.broken else file.getvalue(), int(self.labels[i]), f"{i}.png")


def small_vit(size: int | tuple[int, int] = 32, channels: int = 3, **how) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(image_size=size, patch=8, width=24, depth=2, heads=3, channels=channels, **how)).train()


def test_features_are_the_pooled_tokens_of_the_plain_forward():
    source, vit = Photos(), small_vit(drop_path=0.5, registers=2)
    taken = extract(vit, source, size=(32, 32), **PREPARED, batch=5)
    crops = [Image.open(io.BytesIO(source[i].data)) for i in range(12)]
    images = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(PREPARED[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        tokens = vit.eval()((images - mean) / std)
    np.testing.assert_allclose(taken.values["cls"], tokens.prefix[:, 0], atol=1e-5)
    np.testing.assert_allclose(taken.values["mean"], tokens.patches.mean(1), atol=1e-5)
    assert taken.labels.tolist() == source.labels.tolist()
    assert taken.keys == [f"{i}.png" for i in range(12)]
    assert not taken.skipped


def test_neither_batches_nor_workers_change_features_or_their_order():
    source, vit = Photos(20), small_vit()
    one = extract(vit, source, size=(32, 32), **PREPARED, batch=20, workers=0)
    two = extract(vit, source, size=(32, 32), **PREPARED, batch=3, workers=2)
    np.testing.assert_allclose(one.values["cls"], two.values["cls"], atol=1e-5)
    assert one.keys == two.keys


def test_workers_are_forked_whatever_pythons_own_way_to_start_processes_is():
    assert crops(Photos(), (32, 32), workers=2).multiprocessing_context.get_start_method() == "fork"


def test_broken_files_are_skipped_listed_and_leave_the_rest_aligned():
    whole = extract(small_vit(), Photos(), size=(32, 32), **PREPARED)
    seen = []
    source = Photos(broken=(0, 1, 2, 3, 7))
    taken = extract(small_vit(), source, size=(32, 32), **PREPARED, batch=4, progress=lambda *at: seen.append(at))
    good = [4, 5, 6, 8, 9, 10, 11]
    assert taken.rows.tolist() == good
    assert [text.partition(":")[0] for text in taken.skipped] == ["0.png", "1.png", "2.png", "3.png", "7.png"]
    np.testing.assert_allclose(taken.values["mean"], whole.values["mean"][good], atol=1e-5)
    assert seen == [(4, 12), (8, 12), (12, 12)]


def test_a_source_without_a_readable_image_is_refused():
    with pytest.raises(ValueError, match=r"none of 3 images could be read, the first: 0\.png"):
        extract(small_vit(), Photos(3, broken=(0, 1, 2)), size=(32, 32), **PREPARED)


def test_features_that_are_not_finite_are_refused_by_name():
    vit = small_vit()
    torch.nn.init.constant_(vit.norm.weight, float("nan"))
    with pytest.raises(ValueError, match=r"cls features of 12 of 12 images are NaN .* 0\.png"):
        extract(vit, Photos(), size=(32, 32), **PREPARED)


def test_extracting_leaves_weights_modes_and_randomness_as_they_were():
    vit = small_vit(drop_path=0.2)
    vit.blocks[0].eval()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    modes, state = [part.training for part in vit.modules()], torch.get_rng_state()
    extract(vit, Photos(), size=(32, 32), **PREPARED)
    assert [part.training for part in vit.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_modes_come_back_after_an_error_too():
    vit = small_vit()
    seen = []
    with pytest.raises(ZeroDivisionError), evaluating(vit):
        seen.append(vit.training or 1 / 0)
    assert not seen
    assert all(part.training for part in vit.modules())


def test_bf16_features_are_close_and_stored_as_fp32():
    exact, rough = (
        extract(small_vit(), Photos(), size=(32, 32), **PREPARED, precision=precision) for precision in ("fp32", "bf16")
    )
    assert rough.values["mean"].dtype == np.float32
    np.testing.assert_allclose(rough.values["mean"], exact.values["mean"], atol=0.1)


def test_one_channel_and_rectangles_work():
    vit = small_vit((32, 16), channels=1)
    taken = extract(vit, Photos(mode="L"), size=(32, 16), mean=(0.5,), std=(0.2,), channels=1)
    assert taken.values["cls"].shape == (12, 24)


@pytest.mark.parametrize(
    ("size", "channels", "numbers"),
    [((32, 32), 3, 768), ((64, 64), 3, 768), ((16, 16), 3, 768), ((8, 16), 3, 384), ((32, 32), 1, 729)],
)
def test_pixel_features_are_at_most_768_numbers(size, channels, numbers):
    source = Photos(side=64, mode="RGB" if channels == 3 else "L")
    taken = pixels(source, size=size, mean=(0.5,) * channels, std=(0.25,) * channels, channels=channels)
    assert taken.values["pixels"].shape == (12, numbers)
    assert abs(taken.values["pixels"]).max() <= 2


def test_a_sample_of_a_source_is_fixed_by_its_seed():
    source = Photos(50)
    chosen, again, other = (sample(source, 10, seed) for seed in (0, 0, 1))
    keys = [record.key for record in (chosen[i] for i in range(10))]
    assert keys == [again[i].key for i in range(10)] != [other[i].key for i in range(10)]
    assert chosen.labels.tolist() == [chosen[i].label for i in range(10)]
    assert sample(source, 50, 0) is source
