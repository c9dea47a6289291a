import os

import numpy as np
import pytest
import torch
from test_features import PREPARED, Photos, small_vit

from unmask.evaluate.features import extract
from unmask.evaluate.store import Store, stamp_of, weights_hash
from unmask.evaluate.take import EvalModel, Settings, take

LABELS = np.arange(12, dtype=np.int64) % 2


def model() -> EvalModel:
    return EvalModel("vit", small_vit(), (32, 32), PREPARED["mean"], PREPARED["std"])


def taken(store, names=("cls", "mean"), layers=(), vit=None, data="d", seen=None):
    seen = [] if seen is None else seen

    def progress(what):
        seen.append(what)
        return lambda done, total: None

    chosen = model() if vit is None else model()._replace(backbone=vit)
    return take(chosen, Photos(), LABELS, names, layers, Settings(), store=store, data=data, progress=progress), seen


def test_one_pass_gives_every_layer_and_its_end_is_the_plain_forward(tmp_path):
    part, seen = taken(Store(tmp_path), ("cls", "mean", "patches"), (1, 2))
    assert set(part.values) == {"cls", "mean", "patches", "1/cls", "1/mean", "2/cls", "2/mean"}
    assert len(seen) == 1
    plain = extract(small_vit(), Photos(), size=(32, 32), **PREPARED)
    np.testing.assert_allclose(part.values["cls"], plain.values["cls"], atol=1e-6)
    vit = small_vit()
    normed = vit.norm(torch.from_numpy(np.array(part.values["2/cls"]))).detach()
    np.testing.assert_allclose(part.values["cls"], normed, atol=1e-5)
    np.testing.assert_allclose(part.values["patches"].astype(np.float32).mean(1), part.values["mean"], atol=2e-3)
    assert part.values["patches"].shape == (12, 16, 24) and part.values["patches"].dtype == np.float16


def test_what_is_there_is_read_and_only_what_is_missing_is_made(tmp_path):
    first, seen = taken(Store(tmp_path))
    again, _ = taken(Store(tmp_path), seen=seen)
    assert len(seen) == 1
    np.testing.assert_array_equal(first.values["cls"], again.values["cls"])
    more, _ = taken(Store(tmp_path), layers=(1,), seen=seen)
    assert len(seen) == 2
    assert "1/mean" in more.values


@pytest.mark.parametrize("change", ["weight", "data", "mean"])
def test_another_weight_other_images_or_another_preparation_are_made_anew(change, tmp_path):
    taken(Store(tmp_path))
    vit = small_vit()
    if change == "weight":
        with torch.no_grad():
            vit.blocks[0].mlp.fc1.bias[3] += 1e-6
    other = model()._replace(backbone=vit, mean=(0.4,) * 3 if change == "mean" else PREPARED["mean"])
    data = "other" if change == "data" else "d"
    take(other, Photos(), LABELS, ["cls"], (), Settings(), store=Store(tmp_path), data=data)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_cache_is_bounded_and_the_least_recently_used_goes(tmp_path):
    sizes = []
    for i, data in enumerate("abc"):
        store = Store(tmp_path, limit=sum(sizes[:1]) * 2 + 10 if sizes else 1 << 30)
        taken(store, data=data)
        newest = max(tmp_path.iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        sizes.append(sum(file.stat().st_size for file in newest.iterdir()))
        os.utime(newest, (i + 1, i + 1))
    assert len(list(tmp_path.iterdir())) == 2
    _, seen = taken(Store(tmp_path), data="c")
    assert not seen
    _, seen = taken(Store(tmp_path), data="a")
    assert len(seen) == 1


def test_features_beyond_the_limit_are_refused_with_the_cure(tmp_path):
    with pytest.raises(OSError, match=r"cls features need .* set UNMASK_CACHE"):
        taken(Store(tmp_path, limit=100))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".building")]


def test_a_damaged_file_is_named_and_a_pickle_is_never_read(tmp_path):
    taken(Store(tmp_path))
    (folder,) = tmp_path.iterdir()
    np.save(folder / "cls.npy", np.array([{"a": 1}] * 12), allow_pickle=True)
    with pytest.raises(ValueError, match=r"damaged .*; remove that folder"):
        taken(Store(tmp_path))


def test_a_temporary_store_leaves_nothing():
    store = Store(None)
    part, _ = taken(store)
    assert part.values["cls"].shape == (12, 24)
    root = store.root
    store.close()
    assert not root.exists()


def test_the_hash_of_weights_knows_names_shapes_and_bits():
    a, b = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    b.load_state_dict(a.state_dict())
    assert weights_hash(a) == weights_hash(b)
    with torch.no_grad():
        b.bias[0] += 1
    assert weights_hash(a) != weights_hash(b)
    assert stamp_of("w", "d", size=(1, 2)) != stamp_of("w", "d", size=(2, 1))
