"""Saved classifiers and `unmask predict`: what is kept, what is written, and what has no classifier."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cli_toys import SHORT, pictures, unmask
from test_evaluate import MEAN, STD, sets, vit

from unmask.data.sources import open_source
from unmask.evaluate import EvalModel, LinearProbe, evaluate, extract
from unmask.evaluate.classifier import Classifier, linear_classifier, read_classifier, write_classifier
from unmask.evaluate.finetune import Relabelled
from unmask.export.processor import processor
from unmask.export.subject import of_classifier
from unmask.framing import Frame
from unmask.predict import open_classifier, predict
from unmask.vit import ViT, ViTConfig
from unmask.weights.unmask import write

NAMES = ["across", "down", "wide"]


def model(**fields):
    torch.manual_seed(0)
    backbone = ViT(ViTConfig(image_size=16, patch=4, width=24, depth=1, heads=3, **fields)).eval()
    torch.nn.init.normal_(backbone.norm.weight) if hasattr(backbone.norm, "weight") else None
    return EvalModel("run", backbone, (16, 16), MEAN, STD)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("classes", [0, 7])
def test_a_kept_linear_probe_says_what_the_probe_said(pool, classes, tmp_path):
    """Also on a network with a head of another class count, which normalizes after pooling."""
    given, (train, _) = model(classes=classes, pool="mean"), sets()
    features = extract(given.backbone, train, size=given.size, mean=MEAN, std=STD, workers=0).values[pool]
    fitted = LinearProbe().fit(features, train.labels)
    write_classifier(tmp_path, linear_classifier(given, fitted, pool, NAMES))
    kept = read_classifier(tmp_path)
    said = predict(kept, train, workers=0)
    expected = fitted.logits(features).softmax(1)
    assert kept.classes == NAMES
    assert kept.vit.config.pool == pool
    assert [row[0] for row in said.classes] == [NAMES[i] for i in fitted.predict(features)]
    np.testing.assert_allclose([row[0] for row in said.probabilities], expected.max(1).values, atol=1e-4)


def test_a_class_that_the_probe_never_saw_is_never_answered():
    given, (train, _) = model(), sets()
    features = extract(given.backbone, train, size=given.size, mean=MEAN, std=STD, workers=0).values["cls"]
    fitted = LinearProbe().fit(features, np.where(train.labels == 1, 2, train.labels))
    kept = linear_classifier(given, fitted, "cls", NAMES)
    assert {row[0] for row in predict(kept, train, workers=0).classes} <= {"across", "wide"}


def test_writing_again_leaves_one_classifier_and_no_scrap(tmp_path):
    for classes in (["a", "b"], ["a", "b", "c"]):
        network = ViT(ViTConfig(image_size=16, patch=4, width=24, depth=1, heads=3, classes=len(classes)))
        write_classifier(tmp_path, Classifier(network, classes, MEAN, STD, (0.0, 4095.0), {"top1": 0.5}))
    kept = read_classifier(tmp_path)
    assert (kept.classes, kept.mean, kept.value_range, kept.about) == (
        ["a", "b", "c"],
        MEAN,
        (0.0, 4095.0),
        {"top1": 0.5},
    )
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["not json", "{}", "weights", "names"])
def test_a_damaged_classifier_is_said_to_be(damage, tmp_path):
    network = ViT(ViTConfig(image_size=16, patch=4, width=24, depth=1, heads=3, classes=2))
    file = write_classifier(tmp_path, Classifier(network, ["a", "b"], MEAN, STD))
    if damage == "weights":
        next(tmp_path.glob("*.safetensors")).write_bytes(b"short")
    elif damage == "names":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"classes": ["a"]}))
    else:
        file.write_text(damage)
    with pytest.raises(ValueError, match=r"make it again"):
        read_classifier(tmp_path)


def test_save_keeps_one_classifier_only(tmp_path):
    train, test = sets(12, 6)
    pixels = EvalModel("pixels", None, (16, 16), MEAN, STD)
    for models, protocols in (
        ([model(), model()], ["linear"]),
        ([model()], ["linear", "finetune"]),
        ([pixels], ["linear"]),
    ):
        with pytest.raises(ValueError, match="keeps one classifier"):
            evaluate(models, protocols, train, test, save=tmp_path)
    for how in ({"probe": "mae"}, {"pools": ("cls+mean",)}, {"layers": "all"}):
        with pytest.raises(ValueError, match=r"keeps the common linear probe|last block's cls or mean"):
            evaluate([model()], ["linear"], train, test, save=tmp_path, **how)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flattered", ["cls", "mean"])
def test_the_kept_pooling_is_chosen_without_the_test_images(flattered, tmp_path):
    """Test labels are made such that one pooling, then the other, is right about every test image."""
    given, (train, asked) = model(), sets(120, 60)
    train.labels[::4] = (train.labels[::4] + 1) % 3  # wrong, so that the two poolings learn different things
    known, seen = (
        extract(given.backbone, s, size=given.size, mean=MEAN, std=STD, workers=0).values for s in (train, asked)
    )
    fitted = {pool: LinearProbe().fit(known[pool], train.labels) for pool in ("cls", "mean")}
    test = Relabelled(asked, fitted[flattered].predict(seen[flattered]).numpy(), NAMES)
    rows = {row["features"]: row for row in evaluate([given], ["linear"], train, test, save=tmp_path)}
    assert rows[flattered]["top1"] == 1 > rows["mean" if flattered == "cls" else "cls"]["top1"]
    kept = min(fitted, key=lambda pool: fitted[pool].loss)
    about = read_classifier(tmp_path).about
    assert about["features"] == kept
    assert about["top1"] == rows[kept]["top1"]


def test_a_choice_among_poolings_needs_training_images_to_hold_out(tmp_path):
    train, test = sets(4, 6)  # one class has two images, the others one
    with pytest.raises(ValueError, match="a class has one image only: give --pool cls"):
        evaluate([model()], ["linear"], train, test, save=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    evaluate([model()], ["linear"], train, test, pools=("cls",), save=tmp_path / "kept")
    assert read_classifier(tmp_path / "kept").about["features"] == "cls"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "photos", 24, classes="abc")


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert unmask("pretrain", "supervised-nano", photos, "--out", out, *SHORT).code == 0
    return out


def test_a_run_with_labels_predicts_and_lists_what_it_cannot_read(run, tmp_path):
    folder = pictures(tmp_path / "new", 4)
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    said = unmask("predict", run, folder, "--out", tmp_path / "out" / "p.csv", "--workers", "0")
    assert said.code == 0
    assert (said.json["n"], said.json["skipped"]) == (4, 1)
    rows = list(csv.DictReader((tmp_path / "out" / "p.csv").read_text().splitlines()))
    assert list(rows[0]) == ["key", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert [row["key"] for row in rows] == ["000.png", "001.png", "002.png", "003.png"]
    for row in rows:
        chances = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) == pytest.approx(1, abs=1e-5)
        assert {row["class"], row["class_2"], row["class_3"]} == {"a", "b", "c"}
    bad = (tmp_path / "out" / "p.csv.bad.txt").read_text()
    assert bad.startswith("broken.png\t")
    assert "skipped broken.png" in said.err


def test_the_ending_of_out_says_how_the_table_is_written(run, photos, tmp_path):
    tables = {}
    for ending in ("csv", "parquet", "jsonl"):
        file = tmp_path / f"p.{ending}"
        assert unmask("predict", run, photos, "--out", file, "--workers", "0", "--top", "2").code == 0
        tables[ending] = file
    rows = pq.read_table(tables["parquet"]).to_pylist()
    assert list(rows[0]) == ["key", "class", "probability", "class_2", "probability_2"]
    assert [json.loads(line) for line in tables["jsonl"].read_text().splitlines()] == rows
    shown = [{n: f"{v:.6f}" if isinstance(v, float) else v for n, v in row.items()} for row in rows]
    assert list(csv.DictReader(tables["csv"].read_text().splitlines())) == shown


@pytest.mark.parametrize(("name", "why"), [("p.xlsx", "ends with .xlsx"), ("p", "has no ending"), ("", "is a folder")])
def test_a_file_that_is_no_table_is_refused_before_the_model_is_opened(name, why, tmp_path):
    out = tmp_path / name
    said = unmask("predict", tmp_path / "no-model", tmp_path / "no-images", "--out", out)
    assert said.code == 2
    assert f"--out {out} {why}" in said.line and ".csv" in said.line
    assert not list(tmp_path.iterdir())


def test_evaluate_saves_a_probe_that_predict_and_evaluate_use(run, photos, tmp_path):
    kept = tmp_path / "kept"
    words = ("--train", photos, "--test", photos, "--workers", "0")
    said = unmask("evaluate", run, "linear", *words, "--save", kept)
    assert said.code == 0
    assert unmask("predict", kept, photos, "--out", tmp_path / "p.csv", "--top", "1", "--workers", "0").code == 0
    rows = list(csv.reader((tmp_path / "p.csv").read_text().splitlines()))
    assert rows[0] == ["key", "class", "probability"]
    right = np.mean([key.split("/")[0] == name for key, name, _ in rows[1:]])
    about = read_classifier(kept).about
    (row,) = [row for row in said.json["results"] if row["features"] == about["features"]]
    assert right == pytest.approx(row["top1"])  # tested on the images that it learned from
    assert about["top1"] == row["top1"]
    assert "chosen on held-out training images (log-loss: cls " in said.err
    assert unmask("evaluate", kept, "knn", *words, "--k", "3").code == 0
    assert unmask("export", kept, "--format", "safetensors", "--out", tmp_path / "out").code == 0
    truth, said = (
        predict(str(place), open_source(str(photos), "none"), workers=0) for place in (kept, tmp_path / "out")
    )
    np.testing.assert_allclose(said.probabilities, truth.probabilities, atol=1e-5)
    assert said.classes == truth.classes and truth.classes[0][0] in "abc"


@pytest.mark.parametrize("form", ["safetensors", "timm", "hf"])
def test_an_exported_classifier_answers_as_its_run_does(form, run, photos, tmp_path):
    assert unmask("export", run, "--format", form, "--out", tmp_path / "out").code == 0
    source, heads = open_source(str(photos), "none"), None if form != "timm" else 3
    truth = predict(str(run), source, workers=0, top=3)
    said = predict(str(tmp_path / "out"), source, workers=0, top=3, heads=heads)
    np.testing.assert_allclose(said.probabilities, truth.probabilities, atol=1e-5)
    if form == "safetensors":
        assert said.classes == truth.classes


def test_weights_without_a_head_are_said_to_have_none(photos, tmp_path):
    assert unmask("export", "untrained:mae-nano", "--format", "safetensors", "--out", tmp_path / "out").code == 0
    said = unmask("predict", tmp_path / "out", photos, "--out", tmp_path / "p.csv")
    assert said.code == 1 and "is an untrained ViT, without a head that tells classes; make one: unmask" in said.line


def test_a_model_without_a_classifier_is_told_how_to_get_one(tmp_path, photos):
    for spec in ("pixels", "untrained:mae-nano"):
        said = unmask("predict", spec, photos, "--out", tmp_path / "p.csv")
        assert said.code == 1
        assert f"{spec} has no classifier; make one: unmask evaluate {spec} linear" in said.line
    with pytest.raises(FileNotFoundError, match="no model"):
        open_classifier(str(tmp_path / "absent"))


def test_supervised_needs_labels_and_two_classes(tmp_path):
    flat = pictures(tmp_path / "flat", 8)
    said = unmask("pretrain", "supervised-nano", flat, "--out", tmp_path / "run", *SHORT)
    assert said.code == 1 and "have no labels" in said.line
    one = pictures(tmp_path / "one", 8, classes="a")
    said = unmask("pretrain", "supervised-nano", one, "--out", tmp_path / "run", "--labels", "folder", *SHORT)
    assert said.code == 1 and "have one class, a" in said.line


def test_an_odd_batch_and_a_head_of_another_size_are_refused(photos, tmp_path):
    shape = ("--steps", "1", "--workers", "0", "--device", "cpu")
    said = unmask("pretrain", "supervised-nano", photos, "--out", tmp_path / "odd", *shape, "--batch", "5")
    assert said.code == 1 and "is odd" in said.line
    said = unmask("pretrain", "supervised-nano", photos, "--out", tmp_path / "k", *SHORT, "--method.vit.classes", "9")
    assert said.code == 1 and "has 3 classes and the head 9" in said.line


def test_test_classes_that_were_not_learned_are_named(photos, tmp_path):
    other = pictures(tmp_path / "other", 6, classes="ax")
    words = ("--out", tmp_path / "run", *SHORT, "--test", other, "--eval-every", "3")
    said = unmask("pretrain", "supervised-nano", photos, *words)
    assert said.code == 1 and "does not know x" in said.line
    assert not (tmp_path / "run").exists()  # told before the first step


def test_labels_of_a_source_without_labels_are_no_obstacle(run, photos):
    source = open_source(str(photos), "none")
    assert len(predict(str(run), source, workers=0).keys) == 24
    assert vit().config.classes == 0


def test_a_classifier_keeps_the_crop_that_it_was_judged_by(tmp_path):
    network = ViT(ViTConfig(image_size=16, patch=4, width=24, depth=1, heads=3, classes=3))
    made = Classifier(network, NAMES, MEAN, STD, frame=Frame("bilinear", 225))
    write_classifier(tmp_path, made)
    assert read_classifier(tmp_path).frame == Frame("bilinear", 225)
    loaded = of_classifier(read_classifier(tmp_path))
    assert loaded.frame == Frame("bilinear", 225) and processor(loaded)["resample"] == 2
    (tmp_path / "out").mkdir()
    write(loaded, tmp_path / "out")
    assert open_classifier(str(tmp_path / "out")).frame == Frame("bilinear", 225)
