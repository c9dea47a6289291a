"""Bad input gets one clear line - value, place, cure - and loses nothing."""

import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli_toys import SHORT, pictures, unmask

from unmask import checkpoint
from unmask.checkpoint import latest
from unmask.optim import build_optimizer
from unmask.parallel import World
from unmask.run import Run

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "photos", 30)


def nano(data, out, *words):
    return unmask("pretrain", "mae-nano", data, "--out", out, *SHORT, *words)


def bomb() -> bytes:
    """A PNG of a kilobyte that says it is 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder; give a folder of images"),
        ("phots", "did you mean"),
        ("empty", "no images; looked for bmp, jpeg, jpg, png, tif, tiff, webp at any depth"),
        ("junk", "none of 5 images can be read; the first: "),
        ("cut.tar", "damaged or cut short"),
        ("none.parquet", "no image column, of type struct<bytes, path>; its columns are x (int64), text (string)"),
    ],
)
def test_data_that_cannot_be_used(name, message, tmp_path):
    pictures(tmp_path / "photos", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    for i in range(5):
        (tmp_path / "junk" / f"{i}.jpg").write_bytes(b"junk" * i)
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "000.png", "a.png")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:900])
    pq.write_table(pa.table({"x": [1, 2], "text": ["a", "b"]}), tmp_path / "none.parquet")
    said = nano(tmp_path / name, tmp_path / "run")
    assert said.code == 1
    assert message in said.line and name in said.line
    assert not (tmp_path / "run").exists()


def test_a_tar_with_links_and_odd_names_is_read_without_unpacking(photos, tmp_path):
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for i, name in enumerate(("../../up.png", "/root.png", "a b\n\xe9.png", "plain.png")):
            tar.add(photos / f"{i:03d}.png", name)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert nano(tmp_path / "odd.tar", tmp_path / "run").code == 0
    assert Run(tmp_path / "run").config.data.images == 4
    assert {entry.name for entry in tmp_path.iterdir()} == {"odd.tar", "run", "cache"}


@pytest.mark.parametrize("bad", [b"", b"\x89PNG\r\n\x1a\n cut", bomb()], ids=["empty", "cut", "bomb"])
def test_one_bad_file_among_many_is_skipped_counted_and_listed(bad, tmp_path):
    data = pictures(tmp_path / "many", 100, side=20)
    (data / "050.png").write_bytes(bad)
    said = nano(data, tmp_path / "run", "--steps", "13")  # an epoch meets every image
    assert said.code == 0
    ((name, why),) = Run(tmp_path / "run").bad_images().items()
    assert name == "050.png" and why


def test_more_bad_files_than_the_limit_stop_the_run_and_the_limit_moves(tmp_path):
    data = pictures(tmp_path / "many", 40, side=20)
    for name in ("003.png", "017.png"):
        (data / name).write_bytes((data / name).read_bytes()[:60])
    said = nano(data, tmp_path / "run", "--steps", "6")
    assert said.code == 1
    assert "over the limit of 1.0%" in said.line and "bad-files.txt" in said.line and "--data.bad-limit" in said.line
    said = nano(data, tmp_path / "other", "--steps", "6", "--data.bad-limit", "0.1")
    assert said.code == 0
    assert Run(tmp_path / "other").bad_images().keys() == {"003.png", "017.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method.views.0.size", "30", "--method.vit.image-size", "30"], "30x30 does not divide into 4x4-px patches"),
        (["--method.views.0.size", "64"], "give both --method.views.0.size and --method.vit.image-size"),
        (["--method.vit.image-size", "2", "--method.views.0.size", "2"], "patches"),
        (["--method.vit.heads", "5"], "width 96 does not divide into 5 heads"),
        (["--method.masks.0.ratio", "0.999"], "mask ratio 0.999"),
        (["--steps", "0"], "--steps 0: give a positive number"),
        (["--batch", "-8"], "--batch -8: give a positive number"),
        (["--device-batch", "0"], "--device-batch 0: give a positive number"),
        (["--device-batch", "3"], "batch 8 is not a multiple of device batch 3"),
        (["--log-every", "0"], "--log-every 0: give a positive number"),
        (["--range", "5", "1"], "--range 5 1: give the lower value first"),
        (["--save-every", "soon"], "--save-every: interval 'soon': give steps (500) or a time"),
        (["--eval-every", "-1"], "--eval-every: interval '-1'"),
        (["--epochs", "2"], "--epochs and --steps both say how long to train"),
        (["--labels", "folder"], "use --labels none"),
        (["--channels", "5"], "5 channels are read from TIFF only"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings_that_cannot_be_meant(words, message, photos, tmp_path):
    said = nano(photos, tmp_path / "run", *words)
    assert said.code == 1
    assert message in said.line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", ["10x", "m", "-3m", "0 images", "inf s", "1 image"])
def test_a_budget_that_is_none(budget, photos, tmp_path):
    said = unmask("pretrain", "mae-nano", photos, "--out", tmp_path / "run", f"--budget={budget}", "--workers", "0")
    assert said.code == 1
    assert f"--budget {budget!r}" in said.line


def test_an_out_that_is_no_run_is_left_alone(photos, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    said = nano(photos, tmp_path)
    assert said.code == 1
    assert "exists and is not a run; choose another --out" in said.line
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    said = nano(photos, tmp_path / "thesis.tex" / "run")
    assert said.code == 1
    assert "Not a directory" in said.line and "choose another place" in said.line


def test_data_that_changed_is_refused_on_resume(tmp_path):
    data = pictures(tmp_path / "data", 24)
    assert nano(data, tmp_path / "run").code == 0
    (data / "000.png").unlink()
    said = nano(data, tmp_path / "run")
    assert said.code == 1
    assert "has 23 images and had 24" in said.line


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_loss_that_is_not_finite_names_step_and_cure_and_is_not_saved(photos, tmp_path):
    said = nano(photos, tmp_path / "run", "--optim.base-lr", "1e30", "--save-every", "1")
    assert said.code == 1
    assert "not finite at step" in said.line and "--optim.base-lr" in said.line
    good = latest(tmp_path / "run")
    assert good is not None and f"checkpoint step {good} is from before" in said.line
    Run(tmp_path / "run").method()


@pytest.mark.parametrize(
    ("train", "test", "words", "message"),
    [
        ("flat", "flat", [], "have no labels"),
        ("abc", "ab", [], "different classes; only in --train: c"),
        ("a", "a", ["--labels", "folder"], "have one class"),
        ("abc", "abc", ["--k", "99"], "--k 99 with 12 training images; choose k between 1 and 12"),
        ("abc", "nowhere", [], "no such file or folder"),
    ],
)
def test_evaluation_of_what_cannot_be_judged(train, test, words, message, tmp_path):
    for name in {train, test} - {"nowhere"}:
        pictures(tmp_path / name, 12, classes="" if name == "flat" else name)
    said = unmask("evaluate", "pixels", "knn", "--train", tmp_path / train, "--test", tmp_path / test, *words)
    assert said.code == 1
    assert message in said.line


def test_features_that_are_not_numbers_are_refused_with_the_cure(photos, tmp_path):
    assert nano(photos, tmp_path / "run").code == 0
    run = Run(tmp_path / "run")
    method = run.method()
    torch.nn.init.constant_(method.backbone().norm.bias, float("nan"))
    optimizer = build_optimizer(method.parameter_groups(), run.config.optim)
    checkpoint.save(run.path, 4, method, optimizer, World(0, 1, torch.device("cpu")))
    data = pictures(tmp_path / "data", 12, classes="ab")
    said = unmask("evaluate", run.path, "knn", "--train", data, "--test", data, "--k", "1")
    assert said.code == 1
    assert "cls features of 12 of 12 images are NaN or infinite" in said.line
    assert "use an earlier checkpoint (RUN@STEP)" in said.line
    assert unmask("evaluate", f"{run.path}@3", "knn", "--train", data, "--test", data, "--k", "1").code == 0


def test_test_images_among_the_training_images_are_counted(tmp_path):
    data = pictures(tmp_path / "data", 12, classes="ab")
    said = unmask("evaluate", "pixels", "knn", "--train", data, "--test", data, "--k", "1")
    assert said.code == 0
    assert "warning: 12 of 12 test images are training images too" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nowhere", "curves"], "no model 'nowhere'; give a run directory"),
        (["show", "{run}", "reconstruction"], "needs IMAGES"),
        (["show", "{run}@2", "reconstruction", "demo:test"], "no checkpoint 2; it has: 3"),
        (["evaluate", "{run}:teacher", "knn", "--train", "demo", "--test", "demo"], "leave :teacher out"),
        (["evaluate", "{run}x", "knn", "--train", "demo", "--test", "demo"], "did you mean {run}?"),
        (["evaluate", "{data}", "knn", "--train", "demo", "--test", "demo"], "is not a run: it has no config.json"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_models_that_are_none(words, message, photos, tmp_path):
    run = tmp_path / "run"
    assert nano(photos, run).code == 0
    said = unmask(*(word.format(run=run, data=photos) for word in words))
    assert said.code == 1
    assert message.format(run=run) in said.line


def child(photos, out, *words, before=""):
    """`unmask pretrain` in a process of its own, a tenth of a second a step."""
    given = ["pretrain", "mae-nano", str(photos), "--out", str(out), *SHORT, *words, "--json"]
    program = (
        "import sys, time; from unmask import train; from unmask.cli import main; update = train.update\n"
        f"def slowly(*a):\n    time.sleep(0.1); return update(*a)\n{before}\ntrain.update = slowly\n"
        f"sys.exit(main({given!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_a_checkpoint(process, out):
    end = time.monotonic() + 60
    while latest(out) is None:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_once_saves_and_twice_leaves(presses, photos, tmp_path):
    process = child(photos, tmp_path / "run", "--steps", "400", "--save-every", "2")
    wait_for_a_checkpoint(process, tmp_path / "run")
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.03)
    out, err = process.communicate(timeout=60)
    assert process.returncode == {1: 75, 2: 130}[presses], err
    assert '"ok": false' in out.splitlines()[-1]
    assert "Traceback" not in err
    Run(tmp_path / "run").method()  # the last complete checkpoint is intact


def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_run_goes_on(photos, tmp_path):
    full = (
        "import resource, signal; from unmask import checkpoint; save = checkpoint.save\n"
        "def save_until_full(run, step, *a):\n"
        "    if step == 4:\n        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "    return save(run, step, *a)\n"
        "checkpoint.save = save_until_full"
    )
    out = tmp_path / "run"
    process = child(photos, out, "--steps", "6", "--save-every", "2", before=full)
    said, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "could not be written" in err and "step 2 is intact" in err and "make room" in err
    assert '"ok": false' in said.splitlines()[-1]
    assert latest(out) == 2
    Run(out).method()
    answer = nano(photos, out, "--steps", "6", "--save-every", "2")
    assert (answer.json["resumed_from"], answer.json["step"]) == (2, 6)
