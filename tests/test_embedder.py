"""The scikit-learn transformer: its own contract, and scikit-learn's checks where they apply."""

import pickle

import numpy as np
import pytest
import torch
from cli_toys import pictures
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from toys import run as train

import unmask
from unmask import Embedder
from unmask.data.sources import open_source
from unmask.evaluate.features import extract
from unmask.models import load

VECTORS = "it feeds rows of numbers, where this transformer takes images"
EXPECTED = dict.fromkeys(
    (
        "check_fit_score_takes_y",
        "check_estimators_overwrite_params",
        "check_dont_overwrite_parameters",
        "check_estimators_fit_returns_self",
        "check_readonly_memmap_input",
        "check_n_features_in_after_fitting",
        "check_positive_only_tag_during_fit",
        "check_estimators_dtypes",
        "check_complex_data",
        "check_dtype_object",
        "check_estimators_empty_data_messages",
        "check_pipeline_consistency",
        "check_estimators_nan_inf",
        "check_estimator_sparse_array",
        "check_estimator_sparse_matrix",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_transformer_data_not_an_array",
        "check_transformer_general",
        "check_transformer_preserve_dtypes",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_fit2d_1sample",
        "check_fit2d_1feature",
        "check_dict_unchanged",
        "check_fit_idempotent",
        "check_fit_check_is_fitted",
        "check_n_features_in",
        "check_fit2d_predict1d",
    ),
    VECTORS,
)
"""those of scikit-learn's checks that cannot pass"""


class Offered(Embedder):
    """The transformer, offered to the checks as if it took rows of numbers: else they would all be skipped."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


@parametrize_with_checks([Offered()], expected_failed_checks=lambda estimator: EXPECTED)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(train(tmp_path_factory.mktemp("runs") / "run", steps=1).path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "photos", 12, classes="ab")


@pytest.fixture(scope="module")
def paths(photos):
    return sorted(photos.rglob("*.png"))


def test_paths_become_the_features_of_evaluation(model, photos, paths):
    truth = extract(
        load(model), open_source(str(photos)), size=(16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    both = Embedder(model, pool="both").fit_transform(paths)
    np.testing.assert_allclose(both, np.hstack([truth.values["cls"], truth.values["mean"]]), atol=1e-6)
    np.testing.assert_array_equal(Embedder(model).fit_transform([str(path) for path in paths]), both[:, :32])
    assert both.dtype == np.float32


def test_arrays_are_the_same_images_as_their_files(model, paths):
    images = [np.asarray(Image.open(path)) for path in paths]
    from_paths = Embedder(model, pool="mean").fit_transform(paths)
    for given in (images, np.stack(images)):
        np.testing.assert_allclose(Embedder(model, pool="mean").fit_transform(given), from_paths, atol=1e-6)


def test_sizes_may_differ_and_gray_images_become_rgb(model):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in ((20, 30, 3), (16, 16), (40, 17, 1))]
    assert Embedder(model).fit_transform(images).shape == (3, 32)


def test_the_default_needs_no_file_and_is_the_same_every_time(paths):
    first, second = (unmask.Embedder().fit_transform(paths) for _ in range(2))
    assert first.shape == (12, 96)
    np.testing.assert_array_equal(first, second)


def test_each_image_has_its_own_features_whatever_stands_beside_it(model, paths):
    embedder = Embedder(model, batch=5).fit(paths)
    whole = embedder.transform(paths)
    np.testing.assert_allclose(embedder.transform(paths[::-1]), whole[::-1], atol=1e-5)
    np.testing.assert_allclose(embedder.transform(paths[3:4]), whole[3:4], atol=1e-5)


def test_it_clones_pickles_and_names_its_features(model, paths):
    embedder = Embedder(model, pool="mean").fit(paths)
    assert clone(embedder).get_params() == embedder.get_params()
    again = pickle.loads(pickle.dumps(embedder))  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(again.transform(paths), embedder.transform(paths))
    names = embedder.get_feature_names_out()
    assert len(names) == 32 and names[:2].tolist() == ["embedder0", "embedder1"]


def test_it_works_in_a_pipeline(model, paths):
    labels = [path.parent.name for path in paths]
    fitted = make_pipeline(Embedder(model), LogisticRegression(C=1e3, max_iter=1000)).fit(paths, labels)
    assert fitted.score(paths, labels) == 1.0  # a class has its brightness


def test_heads_that_the_weights_do_not_tell_are_given_and_guesses_are_said(model, paths, tmp_path, capsys):
    torch.save({"model": load(model).state_dict()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="give --heads N"):
        Embedder(str(tmp_path / "a.pth")).fit(paths)
    fitted = Embedder(str(tmp_path / "a.pth"), heads=2).fit(paths)
    assert "width 32, depth 2, 2 heads" in capsys.readouterr().err
    np.testing.assert_allclose(fitted.transform(paths), Embedder(model).fit_transform(paths), atol=1e-6)


def test_transform_before_fit_is_refused(model, paths):
    with pytest.raises(NotFittedError):
        Embedder(model).transform(paths)


def test_an_unreadable_image_is_an_error_and_not_a_missing_row(model, paths, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 of 14 images cannot be read, the first: .*bad\.png"):
        Embedder(model).fit_transform([*paths, tmp_path / "bad.png", tmp_path / "gone.png"])


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (np.zeros((4, 3)), r"float64 \[4, 3\]; give paths of images, or uint8 images"),
        (np.zeros((4, 8, 8, 3)), r"float64 \[4, 8, 8, 3\]"),
        ([1, 2], "2 x int"),
        ([], "no images"),
        ("photo.png", r"photo.png is one path; .*\['photo.png'\]"),
    ],
)
def test_other_inputs_are_refused_with_what_may_be_given(model, given, what):
    with pytest.raises(ValueError, match=what):
        Embedder(model).fit(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"model": "pixels"}, "pixels has no network"), ({"pool": "max"}, "pool='max': give cls, mean or both")],
)
def test_a_model_or_pooling_that_is_none_is_refused(arguments, message, paths):
    with pytest.raises(ValueError, match=message):
        Embedder(**arguments).fit(paths)
