"""Attentive and published probes, few labels, pairs: on features made by hand and on striped pictures."""

import numpy as np
import pytest
import torch
from test_evaluate import models, sets

from unmask.evaluate import assess, table
from unmask.evaluate.attentive import AttentivePool, AttentiveProbe
from unmask.evaluate.crops import RandomCut, single_draw_box
from unmask.evaluate.heads import EpochCosine, Plan, Rows, fit
from unmask.evaluate.metrics import top1
from unmask.evaluate.published import IBOT_RATES, Bank, Inputs, probe
from unmask.evaluate.shots import Shots
from unmask.evaluate.store import weights_hash
from unmask.evaluate.tables import neighbors
from unmask.randomness import key
from unmask.schedules import Constant, Progress
from unmask.vit import ViT, ViTConfig


def clouds(count: int, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes about three points, labels 2, 5 and 7."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    return (rng.normal(size=(count, width)) + 4 * np.eye(3, width)[y]).astype(np.float32), np.array([2, 5, 7])[y]


def test_attention_in_the_cheap_order_is_plain_cross_attention():
    torch.manual_seed(0)
    pool, x = AttentivePool(12, 3, 5), torch.randn(2, 7, 12)
    heads = []
    for h in range(3):
        keys, values = x @ pool.key[h].T, x @ pool.value[h].T  # [B N d]
        weight = (keys @ pool.query[h] / 4**0.5).softmax(1)
        heads.append((weight[..., None] * values).sum(1))
    torch.testing.assert_close(pool(x), pool.head(torch.cat(heads, 1)))


def test_the_attentive_probe_finds_a_patch_that_the_mean_hides():
    rng = np.random.default_rng(0)
    y = np.arange(240) % 2
    x = rng.normal(size=(240, 9, 16)).astype(np.float16)
    where = rng.integers(0, 9, 240)
    x[np.arange(240), where, 0] = 6  # one marked patch, whose second feature is the class
    x[np.arange(240), where, 1] = 3 * (2 * y - 1)
    fitted = AttentiveProbe(2, epochs=12, rates=(1e-5, 1e-2)).fit(Rows([x], np.arange(160)), y[:160])
    assert fitted.rate == 1e-2  # chosen on held-out training images
    assert top1(fitted.predict(Rows([x], np.arange(160, 240))), y[160:]) > 0.9


def vit(width: int = 8) -> ViT:
    return ViT(ViTConfig(image_size=16, patch=4, width=width, depth=2, heads=2)).eval()


def inputs(vit: ViT, train: np.ndarray, test: np.ndarray) -> Inputs:
    """Block 2 knows the classes, block 1 knows nothing."""

    def rows(x: np.ndarray):
        noise = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
        values = {"cls": x, "mean": x, "1/cls": noise, "1/mean": noise, "2/cls": x, "2/mean": x}
        return lambda names: Rows([values[name] for name in names], np.arange(len(x)))

    return Inputs([rows(train)], rows(test))


@pytest.mark.parametrize(("form", "layer"), [("mae", "last"), ("beit", 2), ("ibot", "last-2")])
def test_published_probes_learn_and_choose_on_training_images(form, layer):
    (x, y), (x_test, y_test) = clouds(63), clouds(60, seed=1)
    network = vit()
    before = weights_hash(network)
    (found,) = probe(form, network, inputs(network, x, x_test), y)
    assert found.layer == layer
    assert top1(found.predicted, y_test) > 0.9
    assert set(found.predicted) <= {2, 5, 7}
    assert weights_hash(network) == before
    assert found.settings["batch"] == 8 and found.settings["epochs"] in (90, 100)


def test_beits_probe_reports_every_block_when_asked():
    (x, y), (x_test, y_test) = clouds(90), clouds(60, seed=1)
    one, two = probe("beit", vit(), inputs(vit(), x, x_test), y, every_layer=True)
    assert (one.layer, two.layer) == (1, 2)
    assert top1(one.predicted, y_test) < 0.6 < top1(two.predicted, y_test)


def test_a_bank_of_rates_takes_the_steps_of_separate_optimizers():
    x, y = clouds(64)
    y, rates = (y == 5).astype(np.int64), (0.5, 0.01)
    torch.manual_seed(0)
    bank = Bank(2, 8, 2)
    alone = [torch.nn.Linear(8, 2) for _ in rates]
    for i, each in enumerate(alone):
        with torch.no_grad():
            each.weight.copy_(bank.weight[i])
            each.bias.copy_(bank.bias[i])
    factor, plan, rows = torch.tensor(rates), Plan(3, 16, Constant(1.0)), [Rows([x], np.arange(64))]
    optimizer = torch.optim.SGD(bank.parameters(), lr=0.0, momentum=0.9)
    fit(bank, lambda a, b: (factor * bank.losses(a, b)).sum(), optimizer, rows, y, plan, "cpu")
    for i, each in enumerate(alone):
        own = torch.optim.SGD(each.parameters(), lr=0.0, momentum=0.9)
        loss = lambda a, b, each=each: torch.nn.functional.cross_entropy(each(a), b)  # noqa: E731
        fit(each, loss, own, rows, y, Plan(3, 16, Constant(rates[i])), "cpu")
        torch.testing.assert_close(bank.weight[i], each.weight, rtol=1e-4, atol=1e-6)


def test_the_45_rates_and_the_epoch_cosine_are_ibots():
    assert len(IBOT_RATES) == 45 and (min(IBOT_RATES), max(IBOT_RATES)) == (1e-4, 9.0)
    cosine = EpochCosine(2.0)
    assert [cosine(Progress(step, 40, 10)) for step in (0, 9, 10, 20)] == pytest.approx([2, 2, 1.707107, 1], abs=1e-6)


def test_maes_box_is_drawn_once_and_clipped_to_the_image():
    boxes = [single_draw_box((30, 40), key(i, "box")) for i in range(300)]
    assert all(t >= 0 and left >= 0 and t + h <= 30 and left + w <= 40 for t, left, h, w in boxes)
    assert any(h == 30 for _, _, h, _ in boxes) and min(h * w for _, _, h, w in boxes) < 200
    image = torch.arange(30 * 40).reshape(1, 30, 40).to(torch.uint8).repeat(3, 1, 1)
    cut = RandomCut((16, 16), 3, "bicubic", True)
    assert torch.equal(cut(image, 5), cut(image, 5))
    assert not torch.equal(cut(image, 5), cut(image, 6))


@pytest.mark.parametrize(("text", "counts"), [("10%", [10, 3, 1]), ("1%", [1, 1, 1]), ("3", [3, 3, 3])])
def test_shots_are_stratified_and_nested(text, counts):
    labels = np.repeat([0, 1, 4], [100, 30, 8])
    chosen = Shots.parse(text).draw(labels, seed=2)
    assert np.unique(labels[chosen], return_counts=True)[1].tolist() == counts
    assert set(Shots.parse("2").draw(labels, 2)) <= set(Shots.parse("3").draw(labels, 2))
    assert set(Shots.parse("3").draw(labels, 2)) != set(Shots.parse("3").draw(labels, 3))


def test_more_shots_than_images_of_a_class_are_refused():
    with pytest.raises(ValueError, match="class 4 has 8 training images; give at most 8"):
        Shots.parse("9").draw(np.repeat([0, 4], [100, 8]), 0)


def test_low_shot_rows_hold_the_mean_and_the_deviation_over_draws():
    found = assess(models(), ["knn", "linear"], *sets(90, 60), shots=("3", "20%"), seeds=3, pools=("mean",), ks=(1, 5))
    rows = [row for row in found.rows if row["model"] == "run"]
    kinds, sizes = (("knn", 1), ("knn", 5), ("linear", None)), (("3", 9), ("20%", 18))
    expected = [(shots, *kind, n) for shots, n in sizes for kind in kinds]
    assert [(row["shots"], row["protocol"], row["k"], row["n_train"]) for row in rows] == expected
    for row, answer in zip(found.rows, found.answers, strict=True):
        scores = [top1(each, answer.labels) for each in answer.predicted]
        assert row["seeds"] == [0, 1, 2] and len(scores) == 3
        assert row["top1"] == pytest.approx(np.mean(scores))
        assert row["deviation"] == pytest.approx(np.std(scores, ddof=1))


def test_all_labels_stand_beside_few_in_one_call():
    how = {"pools": ("mean",), "ks": (5,)}
    both = assess(models(), ["knn"], *sets(90, 60), shots=("all", "20%"), seeds=2, **how).rows
    alone = assess(models(), ["knn"], *sets(90, 60), **how).rows
    assert [row for row in both if "shots" not in row] == alone
    assert {row.get("shots") for row in both} == {None, "20%"}


def test_k_falls_for_the_few_labels_alone_and_the_table_says_so():
    notes, how = [], {"shots": ("all", "20%"), "seeds": 2, "pools": ("mean",)}
    rows = assess(models()[:1], ["knn"], *sets(60, 30), ks=(20,), note=notes.append, **how).rows
    assert [(row.get("shots"), row["k"], row["n_train"]) for row in rows] == [(None, 20, 60), ("20%", 12, 12)]
    assert notes == ["k-NN on 20% of the labels: k = 12 in place of 20, there are 12 training images only"]
    assert neighbors(rows) == "k-NN: k 20 on all labels; k 12 on 20% of the labels"
    assert "k 12 on 20% of the labels" in " ".join(str(table(rows).caption).split())
    alone = assess(models()[:1], ["knn"], *sets(60, 30), ks=(20,), pools=("mean",)).rows
    assert rows[0]["top1"] == alone[0]["top1"] and neighbors(alone) == ""
    with pytest.raises(ValueError, match="--k 20 with 12 training images"):
        assess(models()[:1], ["knn"], *sets(60, 30), ks=(20,), shots=("20%",))


def test_every_frozen_protocol_leaves_the_backbone_as_it_was():
    (model, *_), (train, test) = models(), sets(24, 12)
    before, state = weights_hash(model.backbone), torch.get_rng_state()
    for form in ("common", "mae", "beit", "ibot"):
        protocols = ["knn", "linear", "attentive"] if form == "common" else ["linear"]
        augment = 2 if form == "mae" else 0
        rows = assess([model], protocols, train, test, probe=form, augment=augment, pools=("cls",), ks=(5,)).rows
        assert all(0 <= row["top1"] <= 1 for row in rows)
        assert rows[-1].get("probe", "common") == form
    assert weights_hash(model.backbone) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_layers_all_reports_each_block_and_best_chooses_one_of_them():
    (model, *_), (train, test) = models(), sets()
    how = {"pools": ("cls+mean",), "ks": (5,)}
    every = assess([model], ["knn", "linear"], train, test, layers="all", **how).rows
    assert {row["layer"] for row in every} == {1, "last"}
    best = assess([model], ["knn", "linear"], train, test, layers="best", **how).rows
    assert len(best) == 2
    for row in best:
        same = [r for r in every if all(r[name] == row[name] for name in ("protocol", "features", "layer"))]
        assert same == [row]


def test_a_models_own_pooling_and_layer_are_the_default():
    (model, *_), (train, test) = models(), sets()
    own = model._replace(pools=("mean",), layers="best", probe="mae")
    rows = assess([own], ["knn"], train, test, ks=(5,)).rows
    assert [row["features"] for row in rows] == ["mean"]
    (row,) = assess([own], ["linear"], train, test, probe="own").rows
    assert (row["probe"], row["layer"], row["features"]) == ("mae", "last", "cls")


def test_attentive_reads_the_last_layer_of_a_network_and_says_so():
    (network, pixels), (train, test), notes = models(), sets(24, 12), []
    with pytest.raises(ValueError, match=r"pixels have no patch tokens .* give knn or linear, not attentive"):
        assess([pixels], ["attentive"], train, test)
    with pytest.raises(ValueError, match="attentive reads the patches of the last layer: leave --layers all out"):
        assess([network], ["attentive"], train, test, layers="all")
    rows = assess([network], ["knn", "attentive"], train, test, layers="all", ks=(5,), note=notes.append).rows
    assert {row["layer"] for row in rows if row["protocol"] == "attentive"} == {"last"}
    assert "attentive reads the patches of the last layer: --layers all is for knn" in notes


def test_differences_are_paired_against_the_first_and_the_untrained():
    run, pixels = models()
    train, test = sets()
    untrained = run._replace(name="untrained:x")
    found = assess([run, pixels, untrained], ["knn"], train, test, ks=(5,), pools=("cls",))
    pairs = {(row["model"], row["to"]): row for row in found.differences}
    assert set(pairs) == {("pixels", "run"), ("pixels", "untrained:x"), ("untrained:x", "run")}
    same = pairs["untrained:x", "run"]
    assert (same["difference"], same["ci_low"], same["ci_high"]) == (0, 0, 0)
    scores = {row["model"]: row["top1"] for row in found.rows}
    assert pairs["pixels", "run"]["difference"] == pytest.approx(scores["pixels"] - scores["run"])
    assert pairs["pixels", "run"]["ci_low"] <= pairs["pixels", "run"]["difference"] <= pairs["pixels", "run"]["ci_high"]


def test_images_in_both_sets_are_counted_by_content():
    train, test = sets()
    test.pictures[:4] = train.pictures[10:14]
    notes = []
    found = assess(models()[1:], ["knn"], train, test, ks=(1,), note=notes.append)
    assert found.facts["overlap"] == 4
    assert "4 of 45 test images are training images too" in notes[0]
