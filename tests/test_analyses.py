"""Analyses from the command line: what is opened, written and refused."""

import json

import analyze_toys
import numpy as np
import pytest
from cli_toys import pictures, unmask

from unmask.analyze import ANALYSES
from unmask.analyze.intervals import Estimate, mean_of, plain, ratio_of
from unmask.analyze.subject import halves


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return analyze_toys.run(tmp_path_factory.mktemp("analyses") / "run", "mae", steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("images"), classes="ab")


def test_a_figure_and_its_numbers_are_written(run, folder):
    said = unmask("show", run.path, "attention-distance", folder, "--count", 8, "--device", "cpu")
    assert said.code == 0
    file = run.figures / "attention-distance.png"
    assert said.json["file"] == str(file)
    assert file.stat().st_size > 5000
    written = json.loads(file.with_suffix(".json").read_text())
    assert written["analysis"] == "attention-distance"
    assert written["settings"]["count"] == 8
    (found,) = written["found"].values()
    assert len(found["layers"]["value"]) == 2


def test_models_are_compared_with_commas_between(run, folder, tmp_path):
    out = tmp_path / "cka.png"
    said = unmask("show", f"{run.path},untrained:mae-nano", "cka", folder, "--out", out, "--device", "cpu")
    assert said.code == 0, said.err
    written = json.loads(out.with_suffix(".json").read_text())
    assert list(written["models"]) == [str(run.path), "untrained:mae-nano"]


def test_an_option_of_analyses_is_refused_for_pictures(run, folder):
    said = unmask("show", run.path, "reconstruction", folder, "--steps", 5)
    assert said.code == 2
    assert "--steps is for analyses" in said.line
    said = unmask("show", run.path, "cka", folder, "--size", 16)
    assert said.code == 2
    assert "--size 16: cka is drawn at the run's own size" in said.line


def test_a_misspelt_analysis_is_answered_with_the_nearest(run):
    said = unmask("show", run.path, "attention-distanse")
    assert said.code == 2
    assert "did you mean attention-distance?" in said.line


def test_images_are_asked_for(run):
    said = unmask("show", run.path, "cka", "--device", "cpu")
    assert said.code == 1
    assert "cka needs DATA" in said.line


def test_pixels_have_nothing_to_look_into(folder):
    said = unmask("show", "pixels", "cka", folder, "--device", "cpu")
    assert said.code == 1
    assert "pixels have no network" in said.line


def test_every_analysis_of_the_surface_is_there():
    wanted = "attention-distance attention-nmi amplitude bands error-spectrum range targets cka"
    wanted += " teacher-student averaging target-noise flatness collapse"
    assert list(ANALYSES) == wanted.split()


def test_an_interval_shrinks_with_the_images_and_holds_the_mean():
    values = np.random.default_rng(0).standard_normal((400, 3))
    few, many = mean_of(values[:50]), mean_of(values)
    assert (many.low < values.mean(0)).all() and (values.mean(0) < many.high).all()
    assert ((many.high - many.low) < 0.6 * (few.high - few.low)).all()
    assert (many.high - many.low)[0] == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_the_interval_of_a_ratio_is_paired():
    below = np.random.default_rng(0).uniform(1, 9, 200)
    found = ratio_of(2 * below, below)
    assert found.value == pytest.approx(2) and found.low == pytest.approx(2) and found.high == pytest.approx(2)


def test_numbers_become_json_and_nan_becomes_null():
    found = plain({"a": np.float32(0.1), "b": Estimate(np.array([1.0, np.nan]), np.zeros(2), np.ones(2)), 3: (1, "x")})
    assert found == {"a": 0.1, "b": {"value": [1.0, None], "low": [0.0, 0.0], "high": [1.0, 1.0]}, "3": [1, "x"]}
    json.dumps(found, allow_nan=False)


def test_data_is_parted_within_every_class():
    source = analyze_toys.Labelled(21)
    train, test = halves(source, analyze_toys.asked(), "bands")
    assert sorted([*train.index, *test.index]) == list(range(21))
    assert np.bincount(source.labels[train.index]).tolist() == [6, 5]
    other = analyze_toys.Labelled(4)
    assert halves(source, analyze_toys.asked(train=other), "bands") == (other, source)
