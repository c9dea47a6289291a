import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_toys import unmask
from test_evaluate import Stripes, models
from test_sources import image_cells, picture, write_tar

from unmask.data.record import LabelRows, Subset, label_rows
from unmask.data.sources import open_source
from unmask.evaluate import assess
from unmask.evaluate.multilabel import knn_scores, linear_scores, mean_precision


def test_a_parquet_column_of_lists_is_a_row_of_labels(tmp_path):
    label = pa.array([[0, 2], [], None, [1]], pa.list_(pa.int64()))
    table = pa.table({"image": image_cells([1, 2, 3, 4]), "label": label})
    info = {"info": {"features": {"label": {"feature": {"names": ["a", "b", "c", "d"]}, "_type": "Sequence"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert source.labels is None and source.classes == ["a", "b", "c", "d"]
    expected = [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert label_rows(source).dense().astype(int).tolist() == expected
    assert label_rows(Subset(source, np.array([3, 0]))).dense().astype(int).tolist() == [expected[3], expected[0]]


def test_lists_in_a_tar_are_rows_of_labels(tmp_path):
    members = {"a.png": picture(0), "a.cls": b"[0, 2]", "b.png": picture(1), "b.cls": b"[]", "c.png": picture(2)}
    (tmp_path / "classes.json").write_text(json.dumps(["x", "y", "z"]))
    source = open_source(str(write_tar(tmp_path / "l.tar", members)))
    assert source.labels is None and source.classes == ["x", "y", "z"]
    assert label_rows(source).dense().astype(int).tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_images_of_earlier_shards_without_labels_have_empty_rows(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": picture(0), "b.png": picture(1)})
    write_tar(tmp_path / "1.tar", {"c.png": picture(2), "c.cls": b"[3, 1]", "d.png": picture(3), "e.png": picture(4)})
    write_tar(tmp_path / "2.tar", {"f.png": picture(5), "g.png": picture(6), "g.cls": b"[0]"})
    rows = label_rows(open_source(str(tmp_path / "*.tar")))
    assert [np.flatnonzero(row).tolist() for row in rows.dense()] == [[], [], [1, 3], [], [], [], [0]]
    assert rows.dense(5).shape == (7, 5)


def test_rows_of_labels_are_chosen_as_rows_of_a_table_are():
    rng = np.random.default_rng(0)
    table = rng.random((50, 7)) < 0.2
    rows = LabelRows.of([np.flatnonzero(row).tolist() for row in table])
    for index in (np.array([3, 3, 49, 0]), np.array([], np.int64), np.arange(50)[::-1], np.array([-1, 7])):
        assert np.array_equal(rows[index].dense(7), table[index])


@pytest.mark.parametrize("row", [[-1], [1 << 31]])
def test_parquet_lists_that_are_no_labels_are_refused(row, tmp_path):
    label = pa.array([[0], row], pa.list_(pa.int64()))
    pq.write_table(pa.table({"image": image_cells([1, 2]), "label": label}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="`label` must be lists of numbers from 0 up"):
        open_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(("text", "message"), [(b"3", "not the same kind|others are not"), (b"[-1]", "numbers from 0")])
def test_lists_that_are_not_labels_are_refused(text, message, tmp_path):
    members = {"a.png": picture(0), "a.cls": b"[0, 2]", "b.png": picture(1), "b.cls": text}
    with pytest.raises(ValueError, match=message):
        open_source(str(write_tar(tmp_path / "l.tar", members)))


def test_scores_by_hand():
    known = np.array([[1, 0], [0, 1], [1, 0.1]], np.float32)
    labels = np.array([[1, 0], [0, 1], [1, 1]], bool)
    scores = knn_scores(known, labels, np.array([[1, 0.05]], np.float32), 2)
    np.testing.assert_allclose(scores, [[1.0, 0.5]], atol=0.01)
    truth = np.array([[1, 0], [0, 1], [1, 0]], bool)
    assert mean_precision(np.array([[3.0, 1], [2, 2], [1, 3]]), truth) == pytest.approx(((1 + 2 / 3) / 2 + 0.5) / 2)


def test_constant_classes_do_no_harm():
    rng = np.random.default_rng(0)
    labels = rng.random((80, 2)) < 0.5
    x = (rng.normal(size=(80, 4)) + 3 * np.pad(labels, ((0, 0), (0, 2)))).astype(np.float32)
    wide = np.concatenate([labels, np.ones((80, 1), bool), np.zeros((80, 1), bool)], axis=1)
    scores = linear_scores(x, wide, x, 0)
    assert scores.shape == (80, 4) and (scores[:, 2] == 1).all() and (scores[:, 3] == 0).all()
    assert mean_precision(scores[:, :2], labels) > 0.95


def test_rows_of_labels_are_judged_by_mean_average_precision(tmp_path):
    parts = []
    for count, seed in ((90, 0), (45, 1)):
        part = Stripes(count, seed, None)
        part.label_rows = LabelRows.of([[[0, 2], [1, 2], []][label] for label in part.labels])
        part.labels = None
        parts.append(part)
    rows = assess(models(), ["knn", "linear"], *parts, ks=(5,)).rows
    assert len(rows) == 6
    for row in rows:
        assert 0 <= row["map_low"] <= row["map"] <= row["map_high"] <= 1
        assert row["balanced"] is None and 0 <= row["top1"] <= 1
    assert max(row["map"] for row in rows) > 0.95
    parts[1].label_rows = None
    with pytest.raises(ValueError, match="the test images have no lists of labels"):
        assess(models(), ["knn"], *parts)
    with pytest.raises(ValueError, match="knn and linear of the last layer"):
        assess(models(), ["attentive"], parts[0], parts[0])
    with pytest.raises(ValueError, match="one class an image, not several labels"):
        assess(models()[:1], ["linear"], parts[0], parts[0], save=tmp_path / "kept")


def test_the_command_prints_mean_average_precision(tmp_path):
    labels = pa.array([[0, 1], [1], [0], [0, 1], [1], [0]] * 4, pa.list_(pa.int64()))
    pq.write_table(pa.table({"image": image_cells(list(range(24))), "label": labels}), tmp_path / "a.parquet")
    said = unmask(
        "evaluate", "pixels", "knn", "--train", tmp_path / "a.parquet", "--test", tmp_path / "a.parquet", "--k", "1"
    )
    assert said.code == 0, said.err
    (row,) = said.json["results"]
    assert 0 < row["map_low"] <= row["map"] <= row["map_high"] <= 1 and row["balanced"] is None
    assert "mean average precision in percent" in " ".join(said.err.split())
