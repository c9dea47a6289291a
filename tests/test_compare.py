"""`unmask compare`: methods under one budget, judged alike, in one folder that goes on where it was stopped."""

import dataclasses
import json
import re
import shlex
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_toys import pictures, unmask

import unmask as package
from unmask.analyze import ANALYSES
from unmask.compare import kinds, looks
from unmask.compare.answer import sentence, winners
from unmask.compare.entries import POINTS, Entry, check_images, curve, described, open_entries
from unmask.compare.images import part
from unmask.compare.pieces import Pieces, stamp
from unmask.compare.settings import Settings, settled
from unmask.compare.training import KEPT as KEPT_CHECKPOINTS
from unmask.compare.training import spread
from unmask.config import DataConfig
from unmask.data.sources import holdout_places, open_source
from unmask.evaluate.rows import scored
from unmask.evaluate.shots import Shots
from unmask.pictures import PICTURES
from unmask.recipes import Facts, find
from unmask.run import Run
from unmask.signals import Stopped

PAGE = (Path(__file__).parent.parent / "docs" / "compare.md").read_text()
KEPT = {"attention-distance", "error-spectrum", "collapse", "reconstruction", "curves"}
SKIP = ("--skip", *sorted({*ANALYSES, *PICTURES} - KEPT))
QUICK = ("--count", "8", "--workers", "0", "--device", "cpu")
TWO = ("--methods", "mae-nano", "dino-nano", "--budget", "128 images", *QUICK, *SKIP)


@pytest.fixture(autouse=True)
def _page(monkeypatch):
    """Stand in for the page, which has tests of its own."""

    def write(folder: Path) -> Path:
        said = json.loads((folder / "compare.json").read_text())
        (folder / "report.html").write_text(said["answer"]["sentence"])
        return folder / "report.html"

    page = types.ModuleType("unmask.report")
    page.write = write
    monkeypatch.setitem(sys.modules, "unmask.report", page)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "photos", 120, classes="abc")


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """Two methods, trained and compared once."""
    out = tmp_path_factory.mktemp("compared") / "c"
    with pytest.MonkeyPatch.context() as patch:
        page = types.ModuleType("unmask.report")
        page.write = lambda folder: folder / "report.html"
        patch.setitem(sys.modules, "unmask.report", page)
        said = unmask("compare", photos, *TWO, "--out", out)
    assert said.code == 0, said.err
    return out, said


def content(out: Path) -> dict:
    return json.loads((out / "compare.json").read_text())


def times(out: Path) -> dict[str, int]:
    """When each file of a comparison was written, but for those that are always written anew."""
    last = {"compare.json", "report.html"}
    return {str(file): file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file() and file.name not in last}


def test_each_method_gets_the_same_budget_and_compare_json_says_what_it_was(trained):
    out, said = trained
    found = content(out)
    assert (found["format"], found["budget"], found["seed"], found["classes"]) == (1, "128 images", 0, 3)
    assert [method["name"] for method in found["methods"]] == ["mae-nano", "dino-nano"]
    for method, kind in zip(found["methods"], ("mae", "dino"), strict=True):
        assert (method["kind"], method["run"]) == (kind, f"runs/{method['name']}")
        assert method["images_seen"] == 128 and method["step"] == Run(out / method["run"]).latest()
        assert method["seconds"] > 0 and method["images_per_second"] > 0 and method["gflop"] > 0
        assert method["epochs"] == pytest.approx(128 / found["images"])
        assert method["vit"].keys() == {"width", "depth", "heads", "patch", "image_size"}
    assert found["images"] + found["test_images"] == 120 and found["test_images"] > 0
    assert said.json["methods"] == found["methods"] and said.json["results"] == found["rows"]
    assert said.json["answer"] == found["answer"] and said.json["dir"] == str(out)


def test_all_models_are_judged_by_the_same_protocols_beside_pixels_and_untrained_networks(trained):
    rows = content(trained[0])["rows"]
    models = {row["model"] for row in rows}
    assert models == {"mae-nano", "dino-nano", "untrained:mae-nano", "untrained:dino-nano", "pixels"}
    asked = {(row["protocol"], row["features"], row.get("shots")) for row in rows if row["model"] == "dino-nano"}
    assert asked == {(p, f, s) for p in ("knn", "linear") for f in ("cls", "mean") for s in (None, "10%")}
    assert len({(row["n_test"], row["layer"]) for row in rows}) == 1


def test_every_listed_file_is_there_and_only_what_applies_was_made(trained):
    out, found = trained[0], content(trained[0])
    assert [(each["what"], each["models"]) for each in found["analyses"]] == [
        ("attention-distance", ["mae-nano", "dino-nano"]), ("error-spectrum", ["mae-nano"]),
        ("collapse", ["dino-nano"]),
    ]  # fmt: skip
    drawn = [(each["method"], each["what"]) for each in found["pictures"]]
    assert drawn == [("mae-nano", "reconstruction"), ("mae-nano", "curves"), ("dino-nano", "curves")]
    files = [each[part] for each in found["analyses"] for part in ("numbers", "figure")]
    for file in [*files, *(each["file"] for each in found["pictures"])]:
        assert (out / file).stat().st_size > 100, file
    numbers = json.loads((out / "analyses/attention-distance.json").read_text())
    assert numbers["models"].keys() == numbers["found"].keys() & {"mae-nano", "dino-nano"}


def test_the_command_in_compare_json_repeats_it_and_makes_nothing_again(trained):
    out, before = trained[0], times(trained[0])
    command = content(out)["command"]
    assert command.startswith("unmask compare ") and "--budget '128 images'" in command
    said = unmask(*shlex.split(command)[1:])
    assert said.code == 0, said.err
    assert times(out) == before
    assert (out / "report.html").read_text() == content(out)["answer"]["sentence"]


def test_a_comparison_that_was_stopped_goes_on_with_the_next_method(photos, tmp_path, monkeypatch):
    from unmask.compare import training

    carry_out, begun = training.carry_out, []

    def stop_at_the_second(plan):
        begun.append(plan.config.recipe)
        if len(begun) == 2:
            raise Stopped("stopped here")
        return carry_out(plan)

    names = ("mae-nano", "supervised-nano")
    settings = settled(Settings(names, budget="64 images", out=tmp_path / "c", workers=0, device="cpu"))
    source, said = open_source(str(photos)), []
    monkeypatch.setattr(training, "carry_out", stop_at_the_second)
    with pytest.raises(Stopped):
        training.train_all(str(photos), source, settings, said.append)
    first = times(tmp_path / "c" / "runs" / "mae-nano")
    runs = training.train_all(str(photos), source, settings, said.append)
    assert runs == [tmp_path / "c" / "runs" / name for name in names]
    assert begun == ["mae-nano", "supervised-nano", "supervised-nano"]
    assert times(tmp_path / "c" / "runs" / "mae-nano") == first
    assert said[-2:] == [
        f"mae-nano: {runs[0]} is finished", "supervised-nano: 2 of 2 methods, 64 images each",
    ]  # fmt: skip


@pytest.mark.parametrize(("steps", "every", "kept"), [(1000, "100", 10), (1001, "101", 10), (19, "2", 10), (3, "1", 3)])
def test_a_run_with_a_teacher_keeps_checkpoints_spread_over_all_its_steps(steps, every, kept):
    settled = dataclasses.replace(find("dino-nano")(Facts()), epochs=None, steps=steps)
    config = spread(settled)
    assert (config.save_every, config.keep) == (every, KEPT_CHECKPOINTS)
    assert len({*range(int(every), steps + 1, int(every)), steps}) == kept
    alone = dataclasses.replace(find("mae-nano")(Facts()), epochs=None, steps=steps)
    assert spread(alone) == alone


def test_another_budget_in_the_same_folder_is_refused(photos, trained):
    said = unmask("compare", photos, *TWO, "--budget", "256 images", "--out", trained[0])
    assert said.code == 1
    assert "budget: '128 images' -> '256 images'" in said.line and "choose another --out" in said.line


def test_runs_that_exist_are_compared_as_trained_ones_are(photos, trained, tmp_path):
    runs = [trained[0] / "runs" / name for name in ("mae-nano", "dino-nano")]
    before = times(trained[0] / "runs")
    made = package.compare(str(photos), runs=runs, out=tmp_path / "c", count=8, device="cpu", skip=SKIP[1:])
    assert made.content["rows"] == content(trained[0])["rows"]
    assert made.content["answer"]["best"] == content(trained[0])["answer"]["best"]
    assert [method["run"] for method in made.content["methods"]] == [str(run.resolve()) for run in runs]
    assert made.report == tmp_path / "c" / "report.html"
    assert times(trained[0] / "runs") == before  # nothing was written into them


def test_an_unfinished_run_is_compared_at_its_last_checkpoint_and_said_to_be(trained, tmp_path):
    run = shutil.copytree(trained[0] / "runs" / "mae-nano", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"steps": 99}))
    (entry,) = open_entries([str(run)])
    assert entry.notes == (f"{run}: compared at step 2 of 99",)
    with pytest.raises(ValueError, match=r"no checkpoint 7; it has: 2"):
        open_entries([f"{run}@7"])


def test_names_are_recipes_or_folders_where_two_share_one(trained, tmp_path):
    run = trained[0] / "runs" / "mae-nano"
    twin = shutil.copytree(run, tmp_path / "longer")
    assert [entry.name for entry in open_entries([str(run), str(twin)])] == ["mae-nano", "longer"]
    assert [entry.name for entry in open_entries([str(run), f"{run}@2"])] == ["mae-nano-1", "mae-nano-2"]


def test_the_same_images_in_another_place_are_said_and_others_are_refused(photos, trained, tmp_path):
    entries = open_entries([str(trained[0] / "runs" / "mae-nano")])
    copy = shutil.copytree(photos, tmp_path / "copy")
    (note,) = check_images(entries, str(copy), open_source(str(copy)))
    assert "the same images in another place" in note
    other = pictures(tmp_path / "other", 120, classes="abc", side=40)
    with pytest.raises(ValueError, match=r"was trained on .*photos .*other.*: their bytes differ"):
        check_images(entries, str(other), open_source(str(other)))
    few = pictures(tmp_path / "few", 20, classes="ab")
    with pytest.raises(ValueError, match=r"\(120 images\) and DATA is .*few \(20\): other images"):
        check_images(entries, str(few), open_source(str(few)))


def test_images_that_moved_are_known_by_number_mean_and_deviation(photos, trained, tmp_path):
    run = shutil.copytree(trained[0] / "runs" / "mae-nano", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["train"] = "gone/away"
    (run / "config.json").write_text(json.dumps(config))
    (note,) = check_images(open_entries([str(run)]), str(photos), open_source(str(photos)))
    assert "gone/away, not to be found from here; DATA has the same number, mean and deviation" in note
    dark = pictures(tmp_path / "dark", 120)
    with pytest.raises(ValueError, match="mean or deviation differ by 0"):
        check_images(open_entries([str(run)]), str(dark), open_source(str(dark)))


def test_a_run_of_few_of_the_images_is_compared_and_said_to_be_one(photos, trained, tmp_path):
    run = shutil.copytree(trained[0] / "runs" / "mae-nano", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"shots": "10%", "drawn_from": 120, "images": 12}
    (run / "config.json").write_text(json.dumps(config))
    (entry,) = open_entries([str(run)])
    (note,) = check_images([entry], str(photos), open_source(str(photos)))
    assert note.endswith("was trained on few of the images: --shots 10%, 12 of 120")
    assert described(entry, tmp_path, 120)["epochs"] == entry.images_seen / 12


def test_runs_that_held_nothing_out_need_test_images(photos, tmp_path):
    unmask("pretrain", "mae-nano", photos, "--out", tmp_path / "r", "--steps", "1", "--batch", "8", "--workers", "0")
    said = unmask("compare", photos, "--runs", tmp_path / "r", "--out", tmp_path / "c", *QUICK, *SKIP)
    assert said.code == 1
    assert "held nothing of" in said.line and "give --test DATA" in said.line


def test_without_labels_the_measures_that_need_none_are_taken_and_nothing_is_called_best(tmp_path):
    flat = pictures(tmp_path / "flat", 40)
    words = ("--methods", "mae-nano", "--budget", "64 images", *QUICK, *SKIP, "--out", tmp_path / "c")
    said = unmask("compare", flat, *words)
    assert said.code == 0, said.err
    found = content(tmp_path / "c")
    assert (found["rows"], found["answer"]["best"], found["classes"], found["test_images"]) == ([], {}, None, 0)
    assert found["answer"]["sentence"].startswith("No labels, no answer")
    assert any(note.startswith("no labels") for note in found["notes"])
    (row, *_), models = found["labelfree"], {row["model"] for row in found["labelfree"]}
    assert models == {"mae-nano", "untrained:mae-nano"}
    assert {"rankme", "effective-rank", "lidar", "alignment", "uniformity"} < row.keys()
    refused = unmask("compare", flat, "--methods", "mae-nano", "supervised-nano", *words[2:])
    assert "no labels, and a classifier learns from them" in refused.line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs methods to train or runs that exist"),
        (("--methods", "mae", "--runs", "r", "--budget", "1m"), "and not both"),
        (("--methods", "mae"), "--methods needs --budget"),
        (("--methods", "mae", "--budget", "soon"), "give a time"),
        (("--methods", "mae", "mae", "--budget", "1m"), "--methods mae twice"),
        (("--methods", "mea", "--budget", "1m"), "did you mean mae?"),
        (("--methods", "dvae", "--budget", "1m"), "a tokenizer has no ViT to judge"),
        (
            ("--methods", "mae", "beit", "--budget", "100 images"),
            "half of it for its tokenizer, steps are of 64 images; give '128 images'",
        ),
        (("--methods", "mae", "--budget", "63 images"), "'63 images' is less than mae needs: steps are of 64 images"),
        (("--methods", "beit-vit-b16-in1k", "--budget", "1m"), "give --tokenizer"),
        (("--runs", "r", "--budget", "1m"), "leave it out"),
        (("--runs", "r", "--skip", "atention"), "--skip atention"),
        (("--runs", "r", "--going-on", "5"), "--skip averaging target-noise"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_trained(words, said, photos, tmp_path):
    answer = unmask("compare", photos, *words, "--out", tmp_path / "c")
    assert answer.code in (1, 2) and said in answer.line
    assert not (tmp_path / "c").exists()


def test_it_is_known_of_every_analysis_and_picture_to_what_it_applies():
    assert kinds.ANALYSES.keys() == ANALYSES.keys() and kinds.PICTURES.keys() == PICTURES.keys()
    assert all(kinds.ANALYSES[what].moving == ANALYSES[what].train for what in ANALYSES)


def answer_of(model: str, right: int, protocol: str = "linear", features: str = "cls", shots: str | None = None):
    """A model that is right about the first `right` of 200 images."""
    truth = np.zeros(200, np.int64)
    few = None if shots is None else Shots.parse(shots)
    names = (model, protocol, features, "last", None)
    return scored(names, [np.arange(200) // right], truth, np.arange(200), 400, seed=0, shots=few, seeds=(0,))


METHODS = [
    {"name": "mae", "kind": "mae", "seconds": 1200.0, "tokenizer": None},
    {"name": "beit", "kind": "beit", "seconds": 600.0, "tokenizer": {"seconds": 600.0}},
    {"name": "supervised", "kind": "supervised", "seconds": 60.0, "tokenizer": None},
]


def test_the_best_method_is_compared_with_every_other_model_by_its_better_features():
    answers = [
        answer_of("mae", 110), answer_of("mae", 120, features="mean"), answer_of("beit", 100),
        answer_of("pixels", 130, features="pixels"), answer_of("untrained:mae", 60),
        answer_of("beit", 90, "knn"), answer_of("mae", 80, "knn"), answer_of("mae", 70, shots="10%"),
    ]  # fmt: skip
    found = winners(answers, ["mae", "beit"], seed=0)
    assert {column: row["model"] for column, row in found["best"].items()} == {
        "linear": "mae", "knn": "beit", "few": "mae"
    }  # fmt: skip
    assert (found["best"]["linear"]["features"], found["best"]["linear"]["top1"]) == ("mean", 0.6)
    differences = {row["to"]: row["difference"] for row in found["beats"] if row["column"] == "linear"}
    assert differences == pytest.approx({"pixels": -0.05, "beit": 0.1, "untrained:mae": 0.3})
    texts = {row["to"]: row["text"] for row in found["beats"] if row["column"] == "linear"}
    assert texts["beit"].startswith("mae beats beit by 10.0 points [") and texts["beit"].endswith("by a linear probe")
    assert texts["pixels"].startswith("mae loses to pixels by 5.0 points [")


def test_the_sentence_says_what_to_use_by_how_much_and_what_it_costs():
    answers = [answer_of("mae", 120), answer_of("beit", 90), answer_of("pixels", 40), answer_of("untrained:mae", 60)]
    said = sentence(winners(answers, ["mae", "beit"], seed=0), METHODS)
    assert said.startswith("On these images use mae: 60.0 % [")
    assert "of 200 test images right with a linear probe on its cls features, after 20 minutes of training." in said
    assert re.search(r"That is \+15\.0 points \[\+\d+\.\d, \+\d+\.\d\] over beit, the second; ", said)
    assert "+40.0 points" in said and "over raw pixels" in said
    assert "+30.0 points" in said and "over the network of mae untrained." in said


def test_the_sentence_admits_a_tie_a_loss_to_pixels_and_a_tokenizers_cost():
    answers = [answer_of("mae", 100), answer_of("beit", 101), answer_of("pixels", 120), answer_of("mae", 99, "knn")]
    said = sentence(winners(answers, ["mae", "beit"], seed=0), METHODS)
    assert said.startswith("No method is surely better than raw pixels here; beit comes first")
    assert "20 minutes, 10 of them for the tokenizer, of training" in said
    assert "over mae, the second (the two are not told apart)" in said
    assert said.endswith("Others come first by k-NN, mae.")


def test_the_sentence_begins_with_all_that_are_not_told_apart():
    answers = [answer_of("mae", 100), answer_of("beit", 101), answer_of("supervised", 60), answer_of("pixels", 20)]
    said = sentence(winners(answers, ["mae", "beit", "supervised"], seed=0), METHODS)
    assert said.startswith("On these images use beit or mae, not told apart: beit has 50.5 % [")


def test_methods_with_as_many_images_right_are_said_to_tie():
    names = ["mae", "beit", "supervised"]
    answers = [answer_of("mae", 100), answer_of("beit", 100), answer_of("supervised", 60), answer_of("pixels", 20)]
    answers += [answer_of("mae", 40, "knn"), answer_of("supervised", 90, "knn"), answer_of("beit", 90, "knn")]
    found = winners(answers, names, seed=0)
    said = sentence(found, METHODS)
    assert found["best"]["linear"]["ties"] == ["beit"] and found["best"]["knn"]["ties"] == ["beit"]
    assert said.startswith(
        "On these images use mae or beit: mae and beit tie at 50.0 % of 200 test images right with a linear probe, "
        "mae on its cls features after 20 minutes of training and beit on its cls features after "
        "20 minutes, 10 of them for the tokenizer, of training. That is +20.0 points ["
    )
    assert "over supervised, the next; " in said
    assert "First come by k-NN, supervised and beit, which tie." in said
    assert found["beats"][0]["text"].startswith("mae ties with beit [")


def test_a_tie_beside_a_third_that_is_near_and_below_pixels_is_told_as_such():
    names = ["mae", "beit", "supervised"]
    answers = [answer_of("mae", 100), answer_of("beit", 100), answer_of("supervised", 99), answer_of("pixels", 20)]
    said = sentence(winners(answers, names, seed=0), METHODS)
    assert said.startswith("On these images use mae or beit or supervised, not told apart: mae and beit tie at 50.0 %")
    low = sentence(winners([*answers[:2], answer_of("pixels", 120)], names, seed=0), METHODS)
    assert low.startswith("No method is surely better than raw pixels here; mae and beit tie at 50.0 %")
    assert "the second" not in low


def test_the_sentence_names_winners_by_every_protocol_and_who_saw_all_labels():
    names = ["mae", "beit", "supervised"]
    answers = [
        answer_of("mae", 120), answer_of("beit", 60), answer_of("supervised", 60, "linear", shots="10%"),
        answer_of("mae", 40, shots="10%"), answer_of("beit", 90, "attentive"), answer_of("mae", 50, "finetune"),
        answer_of("beit", 110, "finetune"),
    ]  # fmt: skip
    said = sentence(winners(answers, names, seed=0), METHODS)
    assert said.startswith("On these images use mae: ")
    assert said.endswith(
        "Others come first by a linear probe on 10% of the labels, supervised and by an attentive probe, beit "
        "and by fine-tuning, beit. supervised has seen all the labels."
    )
    won = sentence(winners([answer_of("supervised", 120), answer_of("mae", 60)], names, seed=0), METHODS)
    assert won.startswith("On these images use supervised: 60.0 % [")
    assert won.endswith("supervised has seen all the labels.")


def test_a_curve_is_thinned_and_keeps_what_was_judged(trained, tmp_path):
    run = Run(shutil.copytree(trained[0] / "runs" / "mae-nano", tmp_path / "run"))
    lines = [{"step": s, "loss": 1 / s, "img/s": 64.0} for s in range(1, 2001)]
    lines[999:999] = [{"step": 999, "eval/knn/cls": 0.5}]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = Entry("mae", str(run.path), run, 1500, "mae", None)
    points = curve(entry)
    assert len(points) <= POINTS and points[0]["step"] == 1
    assert points[-1] == {"step": 1500, "images": 1500 * 64, "seconds": 1500.0, "loss": 1 / 1500}
    (judged,) = [point for point in points if "eval/knn/cls" in point]
    assert (judged["step"], judged["loss"], judged["seconds"]) == (999, 1 / 999, 999.0)
    assert described(entry._replace(step=2), tmp_path, 100)["seconds"] == 2.0


def test_a_tokenizers_time_and_work_come_before_and_into_those_of_its_run(trained, tmp_path):
    run = Run(shutil.copytree(trained[0] / "runs" / "mae-nano", tmp_path / "run"))
    first = Run(shutil.copytree(run.path, tmp_path / "first"))  # any run has a time and work
    for each, rate in ((run, 64.0), (first, 16.0)):
        lines = [{"step": s, "loss": 1.0, "img/s": rate} for s in (1, 2)]
        (each.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    alone = Entry("beit", str(run.path), run, 2, "beit", None)
    both = alone._replace(tokenizer=first)
    assert [point["seconds"] for point in curve(alone)] == [1.0, 2.0]
    assert [point["seconds"] for point in curve(both)] == [9.0, 10.0]
    before, after = described(alone, tmp_path, 100), described(both, tmp_path, 100)
    assert after["tokenizer"]["seconds"] == 8.0 and after["seconds"] == 2.0
    assert after["tokenizer"]["gflop"] == before["gflop"] > 0 and after["gflop"] == 2 * before["gflop"]


def test_a_piece_is_made_once_and_anew_when_it_depends_on_something_else(tmp_path):
    calls = []

    def build(file):
        calls.append(file)
        file.write_text("made")

    for asked in ({"models": (1, 2)}, {"models": [1, 2]}, {"models": [1, 3]}):
        Pieces(tmp_path).make("a/b.json", asked, build)
    assert calls == [tmp_path / "a/b.json"] * 2
    (tmp_path / "a/b.json").unlink()
    Pieces(tmp_path).make("a/b.json", {"models": [1, 3]}, build)
    assert len(calls) == 3


def test_an_analysis_or_a_picture_that_fails_is_named_and_the_others_are_made(trained, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such luck\nat all")

    monkeypatch.setattr(looks, "analyze", fail)
    monkeypatch.setattr(looks.curves, "draw", fail)
    entries = open_entries([str(trained[0] / "runs" / "mae-nano")])
    settings, said = Settings(skip=tuple(set(SKIP[1:])), count=8, device="cpu"), []
    images = part(open_source(content(trained[0])["data"]), None, entries)
    pieces = Pieces(tmp_path)
    made, left = looks.study_all(entries, images, settings, torch.device("cpu"), pieces, said.append)
    assert made == [] and left == ["attention-distance: no such luck", "error-spectrum: no such luck"]
    drawn, undrawn = looks.draw_all(entries, images, settings, pieces, said.append)
    assert [each["what"] for each in drawn] == ["reconstruction"] and undrawn == ["curves of mae-nano: no such luck"]


def test_images_that_were_held_out_by_place_are_judged_where_the_runs_had_them(photos, tmp_path):
    def entry(name, way):
        data = DataConfig(train=str(photos), images=120, holdout=True, holdout_by=way)
        run = types.SimpleNamespace(config=types.SimpleNamespace(data=data))
        return Entry(name, name, run, 1, "mae", None)

    source = open_source(str(photos))
    images = part(source, None, [entry("a", "place"), entry("b", "place")])
    assert np.array_equal(images.test.index, holdout_places(source, "place"))
    with pytest.raises(ValueError, match="out by content and place; give --test DATA"):
        part(source, None, [entry("a", "place"), entry("b", "content")])
    copy = open_source(str(shutil.copytree(photos, tmp_path / "copy")))
    assert len(part(copy, None, [entry("a", "content")]).test) > 0
    with pytest.raises(ValueError, match="out by place, and a where they lie elsewhere; give --test DATA"):
        part(copy, None, [entry("a", "place")])


def test_other_weights_or_other_test_images_of_the_same_names_are_other_pieces(trained, photos, tmp_path):
    run = Run(shutil.copytree(trained[0] / "runs" / "mae-nano", tmp_path / "run"))
    first = stamp(run, 2)
    assert stamp(run, 2) == first
    state = run.path / "checkpoints" / "step-0000002" / "state.json"
    state.write_text(state.read_text())  # written again
    assert stamp(run, 2) != first
    source, entries = open_source(str(photos)), open_entries([str(run.path)])
    test = shutil.copytree(photos, tmp_path / "test")
    before = part(source, str(test), entries).content
    shutil.copy(test / "a" / "000.png", test / "a" / "003.png")
    assert part(source, str(test), entries).content != before


@pytest.mark.slow
def test_the_commands_of_the_page_do_what_they_say(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, tmp_path / "DATA")
    commands = re.findall(
        r"^unmask compare .+$", "".join(re.findall(r"```sh\n(.+?)```", PAGE, re.DOTALL)), re.MULTILINE
    )
    assert len(commands) == 2
    for command in commands:
        small = re.sub(r"\b(mae|beit|ibot|dino|supervised)\b", r"\1-nano", command).replace("20m", "256images")
        said = unmask(*small.split()[1:], *QUICK, *SKIP)
        assert said.code == 0, said.err
        assert Path(said.json["report"]).is_file()


@pytest.mark.slow
def test_all_methods_and_all_that_applies_to_them(photos, tmp_path):
    names = ["mae-nano", "beit-nano", "ibot-nano", "dino-nano", "supervised-nano"]
    words = ("--budget", "256 images", "--going-on", "100", "--out", tmp_path / "c")
    said = unmask("compare", photos, "--methods", *names, *words, *QUICK)
    assert said.code == 0, said.err
    found = content(tmp_path / "c")
    beit = found["methods"][1]
    assert beit["tokenizer"]["run"] == "runs/beit-nano/tokenizer"
    assert beit["images_seen"] == beit["tokenizer"]["images_seen"] == 128
    assert beit["notes"] == ["the budget is for both stages: 128 images for the tokenizer, 128 images for the ViT"]
    made = {(each["what"], *each["models"]) for each in found["analyses"]}
    assert ("error-spectrum", "mae-nano", "beit-nano-tokenizer") in made
    assert ("range", "mae-nano", "beit-nano", "ibot-nano") in made
    assert {("teacher-student", name) for name in ("ibot-nano", "dino-nano")} <= made
    left = {note.partition(":")[0] for note in found["notes"] if "where the rate is 0" in note}
    assert {what for what, *_ in made} | left == set(ANALYSES)
    drawn = {(each["method"], each["what"]) for each in found["pictures"]}
    assert {("beit-nano", "tokens"), ("mae-nano", "reconstruction"), ("supervised-nano", "attention")} <= drawn
