"""The benchmarks of input and of whole runs: the files they make, the pipelines, the sums; never a speed."""

import io
import json
import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import race
from benchmarks.race import Contender, Took
from benchmarks.tables import Row
from unmask.data import open_source

ROOT = Path(__file__).parent.parent
DEPRECATED = "ignore:The image decoding:DeprecationWarning"  # torchvision's, from 0.29 on
SHAPES = [(3, 224, 224)] * 2 + [(3, 96, 96)] * 8


def run_script(name, *arguments):
    found = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.fixture
def feeds(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import end_to_end
    from feeds import loop, peers, photographs, work

    for module in (peers, work):
        monkeypatch.setattr(module, "pin", lambda workers: None)  # the tests keep their cores
    return SimpleNamespace(end_to_end=end_to_end, loop=loop, peers=peers, photographs=photographs, work=work)


@pytest.fixture
def folder(tmp_path):
    """Three noisy JPEGs of different sizes."""
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(120, 160), (120, 160), (100, 90)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
    return tmp_path


def seconds_of_its_own():
    return lambda: Took(42.0)


def _nothing():
    pass


def having_a_child():
    def turn():
        child = multiprocessing.get_context("fork").Process(target=_nothing)
        child.start()
        child.join()
        return Took(child.exitcode)

    return turn


def test_a_turn_may_say_which_seconds_count_and_have_children():
    contenders = [Contender("own", seconds_of_its_own), Contender("parent", having_a_child)]
    timings, _ = race.race(contenders, rounds=1, threads=1, preload=())
    assert [t.seconds for t in timings] == [[42.0], [0.0]]


def test_photographs_are_made_in_their_size_and_the_same_each_time(feeds):
    made = feeds.photographs.make("small", 3)
    assert made == feeds.photographs.make("small", 3)
    for data in made:
        image = Image.open(io.BytesIO(data))
        assert image.format == "JPEG" and image.size == feeds.photographs.KINDS["small"]


def test_folder_tar_and_parquet_hold_the_same_bytes(feeds, folder, tmp_path):
    given = feeds.photographs.own(folder)
    photos = feeds.photographs.write(given, tmp_path / "three")
    for data in (photos.folder, photos.tar, photos.parquet):
        source = open_source(data, "none")
        assert [source[i].data for i in range(len(source))] == given
    assert photos.about.startswith("3 JPEGs, 137 x 113 and ")


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize("pipeline", ["pillow", "tensors"])
def test_torchvision_makes_ten_normalized_views(feeds, folder, monkeypatch, pipeline):
    monkeypatch.setattr(feeds.peers, "loading", lambda files, work: files)
    files = getattr(feeds.peers, pipeline)(str(folder), feeds.work.Work("views", 4, 2, 1))
    views = files[3]  # the first image again
    assert [tuple(view.shape) for view in views] == SHAPES
    assert all(
        view.dtype == torch.float32 and -2.2 < view.min() < view.max() < 4 for view in views
    )  # its bicubic overshoots


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize("pipeline", ["pillow", "tensors"])
def test_torchvision_makes_one_uint8_crop(feeds, folder, monkeypatch, pipeline):
    monkeypatch.setattr(feeds.peers, "loading", lambda files, work: files)
    (crop,) = getattr(feeds.peers, pipeline)(str(folder), feeds.work.Work("crop", 4, 2, 1))[0]
    assert crop.dtype == torch.uint8 and crop.shape == (3, 224, 224)


@pytest.mark.slow
@pytest.mark.filterwarnings(DEPRECATED)
def test_kornia_makes_ten_normalized_views_of_a_batch(feeds, folder, monkeypatch):
    pytest.importorskip("kornia")
    monkeypatch.setattr(feeds.peers, "loading", lambda files, work, after: (files, after))
    files, after = feeds.peers.kornia(str(folder), feeds.work.Work("views", 4, 2, 1))
    views = after([torch.stack([files[0][0], files[2][0]])])
    assert [tuple(view.shape[1:]) for view in views] == SHAPES
    assert all(torch.isfinite(view).all() and view.max() < 4 for view in views)  # its bicubic overshoots


def test_a_stopwatch_counts_calls_and_leaves_what_it_timed_as_it_was(feeds):
    owner = SimpleNamespace(double=lambda x: 2 * x)
    before, watch = owner.double, feeds.loop.Stopwatch()
    with watch.around("doubling", owner, "double"):
        assert [owner.double(3), owner.double(4)] == [6, 8]
    assert owner.double is before and watch.calls == {"doubling": 2} and watch.seconds["doubling"] > 0


def test_the_split_is_told_as_shares_of_the_loop(feeds):
    split = dict.fromkeys(feeds.loop.PARTS, 0.0) | {"loop": 10.0, "steps": 9.0, "checkpoints": 0.5, "rest": 0.5}
    split |= {
        "calls": {"checkpoints": 2},
        "start": 3.0,
        "picture": 0.2,
        "log": [{"data_wait": 0.01, "outside_step": 0.02}],
    }
    bare = Row("bare", 1, 1, 1, 0.8, 0.8, 0.8, 1.0, 1, 1, [8.0])
    said = feeds.end_to_end.describe([split], [bare, bare])
    assert "steps: 90.0% (90.0% - 90.0%) of the loop" in said
    assert "each of 2 checkpoints: 0.25 (0.25 - 0.25) s" in said and not any("evaluations:" in s for s in said[7:])
    assert any("1.12 (1.12 - 1.12) times the bare one" in s for s in said)
    assert "metrics.jsonl: outside_step 2.0% (2.0% - 2.0%) of the time of a log line" in said


@pytest.mark.slow
def test_input_races_all_pipelines_on_ones_own_files(folder, tmp_path):
    file = tmp_path / "lines.json"
    run_script("input.py", "--quick", "--data", folder, "--json", file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    crop, views = ([line["contender"] for line in lines if line["case"] == case] for case in ("crop-own", "views-own"))
    assert crop[:3] == ["unmask, folder", "unmask, tar", "unmask, parquet"]
    assert views[:2] == ["unmask", "unmask, colors left to a GPU"]
    for names in (crop, views):
        assert {"torchvision v1", "torchvision v2", "decoding alone"} <= set(names)
    assert all(line["images_s"] > 0 and line["workers"] == 2 for line in lines)


@pytest.mark.slow
def test_end_to_end_splits_all_of_the_loops_time(tmp_path):
    file = tmp_path / "lines.json"
    said = run_script("end_to_end.py", "--quick", "--json", file)
    whole, bare, split = (json.loads(line) for line in file.read_text().splitlines())
    assert (whole["contender"], bare["contender"]) == ("unmask pretrain", "the bare step")
    (parts,) = split["split"]
    assert parts["calls"]["steps"] == 4 and parts["calls"]["checkpoints"] == parts["calls"]["evaluations"] == 2
    measured = [parts[name] for name in ("steps", "waiting for data", "upload and color", "logging", "checkpoints",
                                         "evaluations", "rest")]  # fmt: skip
    assert math.isclose(sum(measured), parts["loop"]) and min(measured) >= 0
    assert whole["seconds"] == [parts["loop"]] and "of the loop" in said
