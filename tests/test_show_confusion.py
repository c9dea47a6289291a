"""The confusion matrix and the accuracy of each class: what is drawn, and a file for every model and protocol."""

import numpy as np
import pytest
from test_evaluate import models, sets

from unmask.evaluate import assess
from unmask.show import confusion


def test_rows_are_fractions_of_the_true_class_and_bars_their_diagonal(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(confusion, "save", lambda figure, path: figures.append(figure) or path)
    truth, said = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 2, 2, 0])
    confusion.draw(truth, said, tmp_path / "x.png", names=["cat", "dog", "eel"], title="who")
    matrix, bars = figures[0].axes
    np.testing.assert_allclose(matrix.images[0].get_array(), [[0.75, 0.25], [0.5, 0.5]])
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0.75, 0.5])
    assert [text.get_text() for text in matrix.get_yticklabels()] == ["cat", "eel"]


def test_models_of_the_same_last_name_have_pictures_of_their_own(tmp_path):
    network = models()[0]
    both = [network._replace(name="a/run"), network._replace(name="b/run")]
    found = assess(both, ["knn"], *sets(24, 12), ks=(3,))
    paths = confusion.draw_all(found, tmp_path)
    assert [path.name for path in paths] == ["a-run-knn.png", "b-run-knn.png"]
    assert all(path.stat().st_size > 5000 for path in paths)
