import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unmask.evaluate import knn
from unmask.evaluate.knn import KNN
from unmask.evaluate.metrics import top1

GOLDEN = Path(__file__).parent / "golden" / "ibot_knn"


@pytest.fixture
def golden() -> tuple[dict, dict]:
    return json.loads(GOLDEN.with_suffix(".json").read_text()), load_file(GOLDEN.with_suffix(".safetensors"))


def toy(count: int = 40, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % classes
    noise = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(labels, 5) * 2.0 + noise, labels


def top5(votes: torch.Tensor, labels: torch.Tensor, voted_only: bool) -> float:
    best = votes.topk(5, dim=1)
    hit = (best.indices == labels[:, None]) & ((best.values > 0) | (not voted_only))
    return 100 * hit.any(1).float().mean().item()


def test_votes_predictions_and_accuracies_are_those_of_ibots_knn_classifier(golden):
    card, tensors = golden
    ks, spec = card["config"]["ks"], card["tensors"]
    labels = tensors["inputs/test_labels"]
    fitted = KNN(k=max(ks), temperature=card["config"]["T"]).fit(
        tensors["inputs/train_features_raw"],
        tensors["inputs/train_labels"],
        classes=card["config"]["num_classes"],
    )
    atol = spec["outputs/train_features"]["suggested_atol"]
    torch.testing.assert_close(fitted.bank, tensors["outputs/train_features"], atol=atol, rtol=1e-5)
    for k, votes in fitted.votes_for(tensors["inputs/test_features_raw"], ks).items():
        bound = spec[f"outputs/votes_k{k}"]
        torch.testing.assert_close(
            votes, tensors[f"outputs/votes_k{k}"], atol=bound["suggested_atol"], rtol=bound["suggested_rtol"]
        )
        assert torch.equal(votes.argmax(1), tensors[f"outputs/predictions_k{k}"])
        official = card["outputs_json"][f"k{k}"]
        assert 100 * top1(votes.argmax(1), labels) == pytest.approx(official["top1"])
        lowest = official["top5_lower_bound(true class must have a vote)"]
        assert top5(votes, labels, voted_only=True) == pytest.approx(lowest)
        assert lowest - 1e-4 <= top5(votes, labels, voted_only=False) <= 100


def test_one_search_for_several_k_equals_one_search_each():
    features, labels = toy()
    together = KNN(k=7).fit(features, labels).votes_for(features, (3, 7, 1))
    for k, votes in together.items():
        torch.testing.assert_close(votes, KNN(k=k).fit(features, labels).votes(features))


@pytest.mark.parametrize("queries", [0, 1, 5, 99, 101])
def test_any_number_of_test_images_gives_one_row_each_however_chunked(queries, monkeypatch):
    (features, labels), (asked, _) = toy(), toy(queries, seed=1)
    whole = KNN(k=4).fit(features, labels).votes(asked)
    monkeypatch.setattr(knn, "CELLS", 7 * len(features))  # chunks of seven
    assert whole.shape == (queries, 3)
    torch.testing.assert_close(KNN(k=4).fit(features, labels).votes(asked), whole)


def test_the_scale_of_a_feature_vector_does_not_matter():
    features, labels = toy()
    scale = torch.linspace(0.1, 10, len(features))[:, None]
    a, b = KNN(k=5).fit(features, labels), KNN(k=5).fit(features * scale, labels)
    torch.testing.assert_close(a.votes(features), b.votes(features * 3), rtol=1e-4, atol=1e-2)


def test_arrays_of_numpy_are_as_good_as_tensors():
    features, labels = toy()
    expected = KNN(k=5).fit(features, labels).predict(features)
    assert torch.equal(KNN(k=5).fit(features.numpy(), labels.numpy()).predict(features.numpy()), expected)


def test_more_neighbors_than_images_names_both_numbers():
    features, labels = toy(12)
    with pytest.raises(ValueError, match=r"k = 20 .* has 12; choose k between 1 and 12"):
        KNN(k=20).fit(features, labels)
    with pytest.raises(ValueError, match="k = 13"):
        KNN(k=5).fit(features, labels).votes_for(features, (5, 13))
    with pytest.raises(ValueError, match="k = 0"):
        KNN(k=0).fit(features, labels)


def test_labels_and_temperatures_that_cannot_vote_are_refused():
    features, labels = toy()
    with pytest.raises(ValueError, match="-1"):
        KNN(k=1).fit(features, torch.where(labels == 0, -1, labels))
    with pytest.raises(ValueError, match=r"0\.001"):
        KNN(k=1, temperature=0.001).fit(features, labels)


def test_a_zero_vector_votes_without_nan():
    features, labels = toy()
    assert KNN(k=3).fit(features, labels).votes(np.zeros((1, 5), np.float32)).isfinite().all()
