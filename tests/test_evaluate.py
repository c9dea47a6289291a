import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from unmask.data.record import Record
from unmask.evaluate import EvalModel, Online, assess, evaluate, table
from unmask.vit import ViT, ViTConfig

KEYS = [
    "model",
    "protocol",
    "features",
    "layer",
    "k",
    "top1",
    "balanced",
    "ci_low",
    "ci_high",
    "n_train",
    "n_test",
]
MEAN, STD = (0.5,) * 3, (0.25,) * 3


class Stripes:
    """Striped pictures: the class is the direction (and the period) of the stripes, under noise."""

    name = "stripes"

    def __init__(self, count: int, seed: int, classes: list[str] | None, labels: np.ndarray | None = None):
        rng = np.random.default_rng(seed)
        self.labels = np.arange(count, dtype=np.int64) % 3 if labels is None else labels
        waves = np.sin(np.arange(16) * np.array([[2.2], [1.1], [0.6]]))
        self.pictures = np.stack([self.draw(waves[kind % 3], kind % 2, rng) for kind in self.labels])
        self.classes = classes

    @staticmethod
    def draw(wave: np.ndarray, turn: int, rng: np.random.Generator) -> np.ndarray:
        wave = np.roll(wave, rng.integers(2))
        picture = np.broadcast_to(wave[:, None] if turn else wave, (16, 16))[..., None]
        return (128 + 60 * picture + 25 * rng.normal(size=(16, 16, 3))).clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.labels if self.labels is not None else self.pictures)

    def __getitem__(self, i: int) -> Record:
        return Record(self.pictures[i], -1 if self.labels is None else int(self.labels[i]), f"stripes#{i}")


def sets(train: int = 60, test: int = 45, names: list[str] | None = None) -> tuple[Stripes, Stripes]:
    names = names or ["across", "down", "wide"]
    return Stripes(train, 0, names), Stripes(test, 1, names)


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(image_size=16, patch=4, width=24, depth=1, heads=3))


def models() -> list[EvalModel]:
    return [EvalModel("run", vit(), (16, 16), MEAN, STD), EvalModel("pixels", None, (16, 16), MEAN, STD)]


def test_results_have_exactly_the_promised_keys_and_can_be_written_as_json():
    train, test = sets()
    rows = evaluate(models(), ["knn", "linear"], train, test, ks=(1, 10))
    assert all(list(row) == KEYS for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    asked = [(row["model"], row["protocol"], row["features"], row["k"]) for row in rows]
    protocols = [("knn", 1), ("knn", 10), ("linear", None)]
    expected = [("run", "cls"), ("run", "mean"), ("pixels", "pixels")]
    assert asked == [(model, protocol, pool, k) for model, pool in expected for protocol, k in protocols]
    for row in rows:
        assert 0 <= row["ci_low"] <= row["top1"] <= row["ci_high"] <= 1
        assert (row["layer"], row["n_train"], row["n_test"]) == ("last", 60, 45)
    assert max(row["top1"] for row in rows) > 0.9


def test_the_same_call_gives_the_same_rows():
    train, test = sets()
    first, second = (evaluate(models(), ["knn", "linear"], train, test, ks=(5,)) for _ in range(2))
    assert first == second


def test_classes_are_matched_by_name_whatever_their_numbers():
    train, test = sets()
    expected = evaluate(models(), ["knn", "linear"], train, test, ks=(5,))
    turned = Stripes(45, 1, ["across", "down", "wide"])
    turned.labels, turned.classes = (turned.labels + 1) % 3, ["wide", "across", "down"]
    assert evaluate(models(), ["knn", "linear"], train, turned, ks=(5,)) == expected


def test_different_classes_are_refused_with_their_names():
    train, test = sets()
    test.classes = ["across", "down", "checks"]
    with pytest.raises(ValueError, match="only in --train: wide; only in --test: checks"):
        evaluate(models(), ["knn"], train, test)


def test_missing_labels_are_refused_with_the_cure():
    train, test = sets()
    test.labels = None
    with pytest.raises(ValueError, match="test images have no labels; put them in one folder a class"):
        evaluate(models(), ["knn"], train, test)


def test_one_class_only_is_refused_by_name():
    train, test = sets()
    train.labels = np.ones(60, np.int64)
    with pytest.raises(ValueError, match="all 60 training images have one class, down"):
        evaluate(models(), ["linear"], train, test)


def test_images_without_a_label_are_left_out_and_said_so():
    (train, test), notes = sets(), []
    train.labels[:9], test.labels[:3] = -1, -1
    rows = evaluate(models(), ["knn", "linear"], train, test, ks=(5,), note=notes.append)
    assert {(row["n_train"], row["n_test"]) for row in rows} == {(51, 42)}
    assert notes == [
        "training: 9 of 60 images have no label and are left out",
        "test: 3 of 45 images have no label and are left out",
    ]


def test_a_k_beyond_the_images_is_dropped_with_a_note_unless_it_was_asked_for():
    (train, test), notes = sets(), []
    rows = evaluate(models(), ["knn"], train, test, note=notes.append)
    assert {row["k"] for row in rows} == {10, 20}
    assert notes == ["k-NN: k = 100, 200 left out, there are 60 training images only"]
    with pytest.raises(ValueError, match="--k 100 with 60 training images"):
        evaluate(models(), ["knn"], train, test, ks=(100,))


def test_numbered_classes_without_training_images_are_noted():
    train, test, notes = Stripes(60, 0, None), Stripes(45, 1, None), []
    test.labels = np.where(np.arange(45) < 5, 7, test.labels)
    rows = evaluate(models(), ["knn"], train, test, ks=(5,), note=notes.append)
    assert notes == ["test classes without a training image can only be missed: 7"]
    assert rows[0]["balanced"] < rows[0]["top1"]


def test_a_comparison_of_nothing_is_refused():
    train, test = sets()
    with pytest.raises(ValueError, match="at least one model"):
        evaluate([], ["knn"], train, test)


def test_the_table_holds_every_model_and_the_best_pooling():
    train, test = sets()
    rows = evaluate(models(), ["knn", "linear"], train, test, ks=(5,))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(rows, title="stripes"))
    text = " ".join(console.export_text().split())
    for row in rows:
        assert f"{100 * row['top1']:.1f} [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]" in text
    assert "60 to learn from, 45 to test" in text
    assert "k-NN, k 5" in text


def test_the_commonest_class_is_named_beside_the_numbers():
    train, test = sets()
    train.labels, test.labels = np.repeat([2, 0, 1], [30, 20, 10]), np.repeat([2, 0, 1], [9, 18, 18])
    found = assess(models()[1:], ["knn"], train, test, ks=(5,))
    assert found.facts["majority"] == {"class": "wide", "top1": 0.2, "balanced": pytest.approx(1 / 3)}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(found.rows, majority=found.facts["majority"]))
    assert "always guessing wide: 20.0 %" in " ".join(console.export_text().split())


def test_online_evaluation_logs_both_poolings_and_leaves_the_backbone_in_training():
    train, test = sets(90, 60)
    online, backbone = Online(train, test, ks=(5, 500), max_images=50), vit().train()
    model = EvalModel("run", backbone, (16, 16), MEAN, STD)
    scores = online(model)
    pools = ("cls", "mean")
    assert set(scores) == {f"eval/{name}/{pool}" for name in ("knn", "knn-50", "linear") for pool in pools}
    assert all(0 <= value <= 1 for value in scores.values())
    assert backbone.training
    assert scores == online(model)


def test_online_evaluation_fails_before_training_not_after():
    train, test = sets()
    train.labels = None
    with pytest.raises(ValueError, match="no labels"):
        Online(train, test)
