"""The demo: the main job on real photographs, repeatable bit for bit, in one folder."""

import pytest
import torch
from cli_toys import unmask

from unmask import demo as module
from unmask.data.sources import open_source
from unmask.run import Run


class Few:
    """Every n-th record of the demonstration data: an evaluation of a second."""

    def __init__(self, source, every=30):
        self.source, self.every, self.name, self.classes = source, every, source.name, source.classes
        self.labels = source.labels[::every]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.source[i * self.every]


@pytest.fixture
def _few(monkeypatch):
    monkeypatch.setattr(module, "open_source", lambda spec: Few(open_source(spec)))


@pytest.mark.usefixtures("_few")
def test_two_demos_are_equal_bit_for_bit_and_the_same_out_goes_on(tmp_path):
    first, second = (unmask("demo", "--out", tmp_path / name, "--steps", "2") for name in "ab")
    assert first.code == second.code == 0
    assert first.json["table"] == second.json["table"]
    a, b = (Run(tmp_path / name / "run").method().state_dict() for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    assert [row["model"] for row in first.json["table"] if row["protocol"] == "knn"] == [
        "raw pixels", "untrained ViT", "untrained ViT", "pre-trained ViT", "pre-trained ViT",
    ]  # fmt: skip
    assert "chance is 5.6 %" in first.err and "raw pixels" in first.err
    assert {entry.name for entry in (tmp_path / "a").iterdir()} == {"run"}
    names = {name.rpartition("/")[2] for name in first.json["figures"]}
    assert names == {"augmentations-000000.png", "curves.png", "reconstruction.png"}
    assert (first.json["step"], first.json["steps"], first.json["resumed_from"]) == (2, 2, None)

    again = unmask("demo", "--out", tmp_path / "a", "--steps", "2")
    assert (again.code, again.json["resumed_from"]) == (0, 2)
    assert again.json["table"] == first.json["table"]
    other = unmask("demo", "--out", tmp_path / "a", "--steps", "4")
    assert other.code == 1
    assert "steps: 2 -> 4" in other.line
