"""Which images are drawn, and what a picture is refused for."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import toys

from unmask.data.record import BadImage, Record
from unmask.pictures import PICTURES, draw_reconstruction, picture
from unmask.show import reconstruction


@dataclass
class Sorted:
    """Images in the order of their classes, ten each."""

    n: int = 60
    bad: tuple[int, ...] = ()
    name, classes, labels = "sorted", None, None
    read: list[int] = field(default_factory=list)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read.append(i)
        if i in self.bad:
            raise BadImage(str(i), "cut short")
        return Record(np.full((20, 24, 3), i, np.uint8), -1, f"class-{i // 10}/{i}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toys.run(tmp_path_factory.mktemp("run"), steps=1)


@pytest.fixture
def drawn(monkeypatch):
    """The labels of the picture that is drawn."""
    labels = []
    draw = reconstruction.draw

    def keep(panels, out, **how):
        labels[:] = how["labels"]
        return draw(panels, out, **how)

    monkeypatch.setattr(reconstruction, "draw", keep)
    return labels


@pytest.mark.parametrize(
    ("source", "places"),
    [
        (Sorted(), [5, 15, 25, 35, 45, 55]),
        (Sorted(bad=(15, 16, 45)), [5, 17, 25, 35, 46, 55]),
        (Sorted(bad=tuple(range(25, 35))), [5, 15, 35, 45, 55]),
        (Sorted(3), [0, 1, 2]),
    ],
    ids=["spread", "bad ones give way", "a bad stretch", "few"],
)
def test_images_are_spread_evenly_over_the_source(source, places, run, drawn, tmp_path):
    file = draw_reconstruction(run, None, source, tmp_path / "r.png", count=6)
    assert drawn == [f"{i}.png" for i in places]
    assert len(source.read) <= len(places) + len(source.bad)
    assert file.stat().st_size > 1000


def test_a_source_of_bad_images_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="none of its images can be read"):
        draw_reconstruction(run, None, Sorted(4, bad=(0, 1, 2, 3)), tmp_path / "r.png")


def test_a_count_must_be_positive(run):
    with pytest.raises(ValueError, match="--count 0: give a positive number"):
        picture(str(run.path), "reconstruction", "demo:test", count=0)


def test_the_default_file_lies_in_the_run(run):
    assert picture(str(run.path), "curves") == run.figures / "curves.png"
    assert set(PICTURES) >= {"reconstruction", "augmentations", "curves"}
