"""`unmask pretrain`: what it reports, how it goes on, and what it measures."""

import json
import shutil

import numpy as np
import pytest
import toys
from cli_toys import SHORT, pictures, unmask

from unmask.analyses import own_images
from unmask.data.record import Record, label_of
from unmask.data.sources import holdout_places, measure_mean_std, open_source
from unmask.evaluate.shots import Shots
from unmask.models import assess
from unmask.options import Options
from unmask.parallel import World
from unmask.pretrain import _held, carry_out, planned
from unmask.run import Run

KEYS = {"verb", "ok", "version", "seed", "seconds", "run", "step", "steps", "resumed_from", "loss", "figures"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "photos", 60, classes="abc")


MEASURES = ("rankme", "effective-rank", "lidar", "alignment", "uniformity")


def nano(photos, out, *words):
    return unmask("pretrain", "mae-nano", photos, "--out", out, *words)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, nano(photos, out, *SHORT)


def test_a_run_reports_what_it_made(finished):
    out, said = finished
    assert said.json.keys() == KEYS
    assert (said.json["run"], said.json["step"], said.json["steps"]) == (str(out), 3, 3)
    assert said.json["resumed_from"] is None and said.json["seed"] == 0
    assert said.json["loss"] == Run(out).metrics()[-1]["loss"]
    assert {f"{out}/figures/augmentations-000000.png", f"{out}/figures/curves.png"} <= set(said.json["figures"])
    for line in (
        "60 images of",
        "batch 8 x 1 devices x 1 micro-batches = 8, lr 0.001 x 8 / 256",
        "3 steps, 0.4 epochs",
    ):
        assert line in said.err


def test_a_finished_run_says_so(photos, finished):
    out, _ = finished
    said = nano(photos, f"{out}/", *SHORT)
    assert said.code == 0
    assert (said.json["step"], said.json["resumed_from"]) == (3, 3)
    assert f"{out} is finished: 3 steps are done; train longer with --from {out}" in said.err


def test_the_same_out_continues_whatever_only_changes_speed(photos, tmp_path, monkeypatch):
    from unmask import train
    from unmask.signals import Stopped

    step, calls = train.update, []

    def stop_after_two(*args):
        calls.append(0)
        if len(calls) > 2:
            raise Stopped("stopped here")
        return step(*args)

    monkeypatch.setattr(train, "update", stop_after_two)
    said = nano(photos, tmp_path / "a", *SHORT, "--save-every", "1")
    assert said.code == 75
    assert said.line == "stopped: stopped here"
    monkeypatch.setattr(train, "update", step)
    # the recipe by its Python name, the data by another path, other workers, device batch and interval
    said = unmask(
        "pretrain",
        "mae_nano",
        f"{photos}/",
        "--out",
        tmp_path / "a",
        "--workers",
        "1",
        "--device-batch",
        "4",
        "--save-every",
        "2",
        "--precision",
        "auto",
    )
    assert said.code == 0
    assert (said.json["resumed_from"], said.json["step"], said.json["steps"]) == (2, 3, 3)
    assert "at step 2 of 3" in said.err


def test_the_steps_of_some_epochs_are_reported(photos, tmp_path):
    said = nano(photos, tmp_path, "--epochs", "1", "--batch", "20", "--workers", "0")
    assert (said.json["step"], said.json["steps"]) == (3, 3)


def test_what_may_not_differ_is_listed(photos, finished):
    out, _ = finished
    said = nano(photos, out, "--seed", "7", "--batch", "16", "--optim.base-lr", "0.5", "--method.masks.0.ratio", "0.5")
    assert said.code == 1
    for field in ("seed: 0 -> 7", "batch: 8 -> 16", "optim.base_lr: 0.001 -> 0.5", "method.masks.0.ratio: 0.75 -> 0.5"):
        assert field in said.line
    assert "choose another --out" in said.line


@pytest.mark.parametrize("longer", [("--steps", "9"), ("--epochs", "3"), ("--budget", "999 images")], ids=str)
def test_longer_training_is_refused_with_the_cure(longer, photos, finished):
    out, _ = finished
    said = nano(photos, out, *longer)
    assert said.code == 1
    assert f"train on with --from {out} and a new --out" in said.line


def test_from_gives_a_new_run_the_weights_of_another(photos, finished, tmp_path):
    out, _ = finished
    still = (*SHORT, "--optim.base-lr", "0", "--optim.weight-decay", "0")
    said = nano(photos, tmp_path / "new", *still, "--from", f"{out}@3", "--seed", "5")
    assert said.code == 0 and said.json["resumed_from"] is None
    assert f"weights from {out}@3" in said.err
    old, new = Run(out).method(), Run(tmp_path / "new").method()
    assert toys.same(dict(old.state_dict()), dict(new.state_dict()))
    Run(tmp_path / "new")  # to go on, the run it came from is not needed
    said = nano(photos, tmp_path / "new", *still, "--from", f"{out}@3", "--seed", "5")
    assert said.code == 0 and "weights from" not in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "{run}", "--method.vit.width", "48"], "another architecture"),
        (["--from", "{run}", "--method.vit.width", "48"], "give the recipe (mae-nano), sizes and --channels of that"),
        (["--from", "{run}@2"], "no such checkpoint; there are 3"),
        (["--from", "{run}:teacher"], "leave :teacher out"),
        (["--from", "nowhere"], "no model 'nowhere'; give a run directory"),
    ],
    ids=lambda value: str(value),
)
def test_from_what_does_not_fit_gets_one_line(words, message, photos, finished, tmp_path):
    words = [word.format(run=finished[0]) for word in words]
    said = nano(photos, tmp_path / "new", *SHORT, *words)
    assert said.code == 1
    assert message in said.line
    assert not (tmp_path / "new").exists()


def test_evaluation_while_training_holds_a_tenth_out_and_says_so(photos, tmp_path):
    said = nano(photos, tmp_path / "a", *SHORT, "--eval-every", "2")
    assert said.code == 0
    assert "one tenth of the images, chosen by content, is held out" in said.err
    scores = [event for event in Run(tmp_path / "a").metrics() if "eval/knn/mean" in event]
    assert [event["step"] for event in scores] == [2, 3]
    assert all(0 <= event[name] <= 1 for event in scores for name in event if name.startswith("eval/"))
    assert Run(tmp_path / "a").config.data.holdout


def test_evaluation_while_training_by_other_images_holds_none_out(photos, tmp_path):
    test = pictures(tmp_path / "test", 12, classes="abc")
    said = nano(photos, tmp_path / "a", *SHORT, "--eval-every", "3", "--test", test)
    assert said.code == 0
    assert not Run(tmp_path / "a").config.data.holdout
    assert "eval/linear/cls" in Run(tmp_path / "a").metrics()[-1]


def test_evaluation_without_labels_logs_what_needs_none(photos, tmp_path):
    said = nano(photos, tmp_path / "a", *SHORT, "--labels", "none", "--eval-every", "2")
    assert said.code == 0
    assert "no labels: --eval-every logs what needs none" in said.err
    names = {f"labelfree/{what}/{pool}" for what in MEASURES for pool in ("cls", "mean")}
    logged = [event for event in Run(tmp_path / "a").metrics() if "labelfree/rankme/cls" in event]
    assert [event["step"] for event in logged] == [2, 3]
    assert all(names <= event.keys() and not any(n.startswith("eval/") for n in event) for event in logged)


class Many:
    """A quarter of a million small images of ten classes, in no file; it counts which are read."""

    name, classes = "many", None

    def __init__(self):
        self.labels, self.read = np.arange(len(self)) % 10, []

    def __len__(self):
        return 250_000

    def __getitem__(self, i):
        self.read.append(i)
        return Record(np.full((8, 8, 3), i % 251, np.uint8), label_of(self.labels, i), str(i))


@pytest.mark.parametrize(
    ("recipe", "asked"), [("dvae-nano", None), ("beit-nano", "1"), ("mae-nano", "1"), ("supervised-nano", "1")]
)
def test_a_fresh_run_on_many_images_reads_few_of_them_before_its_first_step(recipe, asked, tmp_path, monkeypatch):
    source = Many()
    monkeypatch.setattr("unmask.pretrain.open_source", lambda *given: source)
    settings = {"steps": 1, "batch": 8, "device_batch": 8, "workers": 0, "device": "cpu"}
    options = Options(out=tmp_path / "run", eval_every=asked, **settings)
    with planned(recipe, "many", options) as plans:
        first = next(plans)
    assert len(source.read) < 6000  # 2,000 of them for mean and deviation, of each stage
    assert (len(first.held), len(first.source)) == (10_000, 240_000)
    assert first.config.data.holdout_by == "place"
    (line,) = [line for line in first.notes if "held out" in line]
    assert line.startswith("10,000 of 250,000 images, drawn by place, are held out of training")


def test_a_run_on_many_images_goes_on_with_the_images_it_held_out(tmp_path, monkeypatch):
    source = Many()
    monkeypatch.setattr("unmask.pretrain.open_source", lambda *given: source)
    monkeypatch.setattr("unmask.analyses.open_source", lambda *given: source)
    for picture in ("augmentations.draw", "curves.draw", "draw_tokens"):  # they take seconds
        monkeypatch.setattr(f"unmask.pretrain.{picture}", lambda *given, **how: None)
    options = Options(out=tmp_path, steps=1, batch=8, device_batch=8, workers=0, device="cpu")
    with planned("dvae-nano", "many", options) as plans:
        (held,) = [carry_out(plan) and plan.held for plan in plans]
    assert np.array_equal(np.load(tmp_path / "holdout.npy"), held)
    monkeypatch.setattr("unmask.data.sources.MOST_HELD", 500)  # as another version may choose
    source.read.clear()
    with planned("dvae-nano", "many", options) as plans:
        assert np.array_equal(next(plans).held, held)
    assert len(source.read) < 100
    assert len(own_images(Run(tmp_path))) == 240_000


def test_one_process_chooses_what_is_held_out_and_the_others_hear(tmp_path):
    class Two(World):
        def gather(self, value):
            told.append(value)
            return [told[0], value]

    told = []
    source = open_source("demo:test")
    chosen = [
        _held(tmp_path, source if rank == 0 else Many(), "content", Two(rank, 2, toys.ALONE.device)) for rank in (0, 1)
    ]
    assert told[1] is None and np.array_equal(*chosen)
    assert np.array_equal(chosen[0], holdout_places(source))


def test_a_run_from_before_images_were_held_out_by_place_keeps_to_content(photos, tmp_path, monkeypatch):
    assert nano(photos, tmp_path, *SHORT, "--eval-every", "3").code == 0
    held, file = np.load(tmp_path / "holdout.npy"), tmp_path / "config.json"
    stored = json.loads(file.read_text())
    assert stored["data"].pop("holdout_by") == "content"
    file.write_text(json.dumps(stored))
    (tmp_path / "holdout.npy").unlink()
    monkeypatch.setattr("unmask.data.sources.READ_IMAGES", 10)
    with planned("mae-nano", str(photos), Options(out=tmp_path)) as plans:
        assert np.array_equal(next(plans).held, held)
    assert len(own_images(Run(tmp_path))) == 60 - len(held)


def test_evaluation_needs_a_test_set_where_none_was_held_out_from_the_start(photos, tmp_path):
    assert nano(photos, tmp_path / "a", *SHORT).code == 0
    said = nano(photos, tmp_path / "a", *SHORT, "--eval-every", "2")
    assert said.code == 1
    assert "--eval-every needs labelled images" in said.line and "--test DATA" in said.line


@pytest.mark.parametrize(("budget", "steps"), [("40 images", 5), ("40images", 5), ("1 gflop", 1)], ids=str)
def test_a_budget_of_work_becomes_steps(budget, steps, photos, tmp_path):
    said = nano(photos, tmp_path, "--budget", budget, "--batch", "8", "--workers", "0")
    assert said.json["steps"] == steps
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["budget"], config["steps"], config["epochs"]) == (budget, steps, None)


def test_shots_trains_on_the_images_that_evaluate_draws(photos, tmp_path):
    """60 images of three classes: 10% are two of each; for a method with labels and for one without."""
    whole = open_source(str(photos))
    drawn = Shots.parse("10%").draw(whole.labels, 3)
    for recipe in ("supervised-nano", "mae-nano"):
        words = (recipe, photos, "--out", tmp_path / recipe, *SHORT, "--seed", "3", "--shots", "10%")
        said = unmask("pretrain", *words)
        assert said.code == 0 and "--shots 10%: 6 of 60 images" in said.err
        run = Run(tmp_path / recipe)
        assert (run.config.data.images, run.config.data.drawn_from) == (6, 60)
        assert [own_images(run)[i].key for i in range(6)] == [whole[int(i)].key for i in drawn]
    rows = assess(["pixels"], ["knn"], str(photos), str(photos), shots=("10%",), seeds=1, seed=3, ks=(1,)).answers
    assert (rows[0].predicted[0] == rows[0].labels)[drawn].all()  # its neighbors are these six


def test_a_run_with_shots_continues_with_the_same_images_only(photos, tmp_path):
    out, data = tmp_path / "run", shutil.copytree(photos, tmp_path / "data")
    words = ("pretrain", "mae-nano", data, "--out", out, *SHORT)
    assert unmask(*words, "--shots", "2").code == 0
    assert unmask(*words, "--shots", "2").json["resumed_from"] == 3
    assert unmask(*words).json["resumed_from"] == 3  # the run knows
    said = unmask(*words, "--shots", "3")
    assert said.code == 1 and "data.shots: '2' -> '3'" in said.line
    next(data.rglob("*.png")).unlink()
    said = unmask(*words, "--shots", "2")
    assert said.code == 1 and "has 59 images and had 60 when" in said.line


def test_shots_needs_labels_and_images_enough(photos, tmp_path):
    words = ("--out", tmp_path / "run", *SHORT)
    flat = pictures(tmp_path / "flat", 8)
    assert "has no labels; leave it out" in unmask("pretrain", "mae-nano", flat, *words, "--shots", "2").line
    assert "class 0 has 20 training images" in unmask("pretrain", "mae-nano", photos, *words, "--shots", "21").line
    said = unmask("pretrain", "mae-nano", photos, *words, "--shots", "few")
    assert said.code == 2 and "--shots few: give a part of the labels" in said.line
    assert not (tmp_path / "run").exists()


def test_a_budget_of_time_is_measured_once(photos, tmp_path, monkeypatch):
    from unmask import forecast

    monkeypatch.setattr(forecast, "measure", lambda *args: 0.4)
    words = ("--budget", "2s", "--batch", "8", "--workers", "0")
    assert nano(photos, tmp_path, *words).json["steps"] in (4, 5)
    monkeypatch.setattr(forecast, "measure", lambda *args: pytest.fail("measured again"))
    for again in (words, ("--workers", "0")):
        said = nano(photos, tmp_path, *again)
        assert said.code == 0 and said.json["resumed_from"] == said.json["steps"]


def test_a_dry_run_tells_the_cost_and_writes_nothing(photos, tmp_path):
    said = nano(photos, tmp_path / "a", *SHORT, "--dry-run")
    assert said.code == 0
    assert said.json.keys() == KEYS | {"dry_run"}
    cost = said.json["dry_run"]
    assert cost["steps"] == 3 and cost["looked"] == 60 and cost["bad"] == []
    assert cost["memory_gb"] > 0 and cost["disk_gb"] > 0 and cost["hours"] > 0
    for word in ("3 steps of", "memory a device", "disk for checkpoints", "nothing was written"):
        assert word in said.err
    assert list(tmp_path.iterdir()) == []


def test_gray_images_of_one_channel_take_the_whole_path(tmp_path):
    data = pictures(tmp_path / "gray", 24, classes="ab", mode="L")
    said = nano(data, tmp_path / "run", *SHORT, "--channels", "1", "--range", "0", "255", "--labels", "folder")
    assert said.code == 0
    config = Run(tmp_path / "run").config
    assert (config.data.channels, config.data.range, config.data.labels) == (1, (0.0, 255.0), "folder")
    assert len(config.data.mean) == 1
    rows = unmask(
        "evaluate", tmp_path / "run", "pixels", "untrained:mae-nano", "knn", "--train", data, "--test", data, "--k", "1"
    ).json["results"]
    assert {row["model"] for row in rows} == {str(tmp_path / "run"), "pixels", "untrained:mae-nano"}
    assert unmask("show", tmp_path / "run", "reconstruction", data, "--count", "2").code == 0


def test_a_self_sizing_recipe_measures_mean_and_deviation(photos, finished):
    data = Run(finished[0]).config.data
    mean, std = measure_mean_std(open_source(str(photos)), seed=0)
    assert data.mean == pytest.approx(mean, abs=1e-6)
    assert data.std == pytest.approx(std, abs=1e-6)
