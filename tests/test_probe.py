import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score

from unmask.evaluate.metrics import balanced, bootstrap, top1
from unmask.evaluate.probe import LinearProbe, _held_out


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    data, order = load_digits(), np.random.default_rng(0).permutation(1797)
    x, y = data.data[order].astype(np.float32), data.target[order].astype(np.int64)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def test_handwritten_digits_are_read_from_pixels(digits):
    x, y, x_test, y_test = digits
    assert top1(LinearProbe().fit(x, y).predict(x_test), y_test) > 0.96


def test_the_same_images_give_the_same_probe_bit_for_bit(digits):
    x, y, *_ = digits
    a, b = LinearProbe().fit(x, y), LinearProbe().fit(x, y)
    assert torch.equal(a.weight, b.weight)
    assert a.strength == b.strength


def test_shifted_and_stretched_features_are_read_as_well(digits):
    x, y, x_test, y_test = digits
    stretch = np.linspace(0.01, 100, x.shape[1], dtype=np.float32)
    fitted = LinearProbe().fit(x * stretch + 5, y)
    assert top1(fitted.predict(x_test * stretch + 5), y_test) > 0.96


def test_the_penalty_is_chosen_without_looking_at_test_images_and_is_strong_for_noise():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 40)).astype(np.float32), np.arange(600) % 3
    assert LinearProbe().fit(x, y).strength <= 0.1
    x[:, :3] += 6 * np.eye(3, dtype=np.float32)[y]
    assert top1(LinearProbe().fit(x, y).predict(x), y) > 0.98


def test_the_loss_of_held_out_images_tells_better_features_from_worse(digits):
    x, y, *_ = digits
    assert LinearProbe().fit(x, y).loss < LinearProbe().fit(x[:, ::2], y).loss < np.log(10)
    assert LinearProbe().fit(x[:3], np.arange(3)).loss is None  # nothing can be held out


@pytest.mark.parametrize("classes", [(4, 9), (0, 3, 7)])
def test_labels_need_not_be_dense(classes):
    rng = np.random.default_rng(1)
    y = np.asarray(classes)[np.arange(90) % len(classes)]
    x = rng.normal(size=(90, 4)).astype(np.float32) + 3 * y[:, None].astype(np.float32)
    fitted = LinearProbe().fit(x, y)
    assert fitted.classes.tolist() == list(classes)
    assert fitted.logits(x).shape == (90, len(classes))
    assert top1(fitted.predict(x), y) > 0.95


def test_a_handful_of_images_and_a_constant_feature_still_make_a_probe():
    x = np.array([[0, 1, 5], [1, 0, 5], [0, 2, 5], [2, 0, 5]], dtype=np.float32)
    fitted = LinearProbe().fit(x, np.array([0, 1, 0, 1]))
    assert fitted.predict(x).tolist() == [0, 1, 0, 1]
    assert fitted.weight.isfinite().all()


def test_one_class_is_refused_by_name():
    with pytest.raises(ValueError, match="all 5 training images have class 2"):
        LinearProbe().fit(np.zeros((5, 3), np.float32), np.full(5, 2))


def test_the_held_out_tenth_leaves_every_class_an_image():
    labels = np.repeat(np.arange(20), np.arange(1, 21))
    held = _held_out(labels, seed=0)
    assert held.sum() == sum(count // 10 for count in range(1, 21))
    assert set(labels[~held]) == set(range(20))


def test_balanced_accuracy_is_scikit_learns_and_silent_about_foreign_predictions():
    rng = np.random.default_rng(0)
    truth = rng.choice(4, 200, p=[0.7, 0.1, 0.1, 0.1])
    predicted = np.where(rng.random(200) < 0.6, truth, rng.choice(4, 200))
    assert balanced(predicted, truth) == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert balanced(np.array([9, 1]), np.array([0, 1])) == 0.5


def test_the_bootstrap_interval_has_the_width_that_theory_gives():
    right = np.arange(4000) < 3000
    low, high = bootstrap(right)
    assert 0.75 - low == pytest.approx(1.96 * (0.75 * 0.25 / 4000) ** 0.5, rel=0.1)
    assert high - 0.75 == pytest.approx(0.75 - low, rel=0.1)
    assert bootstrap(right) == (low, high)
    assert bootstrap(right, resamples=100) != bootstrap(right, resamples=100, seed=1)


def test_the_bootstrap_takes_paired_differences():
    low, high = bootstrap(np.array([1] * 60 + [0] * 920 + [-1] * 20))
    assert 0.02 < low < 0.04 < high < 0.06


def test_the_bootstrap_of_no_image_is_refused():
    with pytest.raises(ValueError, match="no test image"):
        bootstrap(np.array([], dtype=bool))
