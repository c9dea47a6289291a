"""What a run costs: budgets as they are written, and steps that are measured but not kept."""

from dataclasses import replace

import pytest
import toys
from test_survey import Files, jpeg, png
from toys import ALONE, Images, config

from unmask import forecast, photometry_cpu
from unmask.config import DataConfig
from unmask.forecast import cost_of, describe, measure, read_budget, steps_for
from unmask.train import prepare
from unmask.views import Blur, View


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("30s", (30, "seconds")),
        ("20m", (1200, "seconds")),
        (" 1.5 h ", (5400, "seconds")),
        ("500000 images", (5e5, "images")),
        ("1image", (1, "images")),
        ("1e6 gflop", (1e6, "gflop")),
        ("2 gflops", (2, "gflop")),
    ],
)
def test_budgets_are_read(text, meaning):
    assert read_budget(text) == meaning


@pytest.mark.parametrize("text", ["", "20", "m", "0s", "-1m", "1e m", "1 day", "inf s", "1e999s"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="give a time"):
        read_budget(text)


def test_work_becomes_steps(tmp_path):
    settled, method = prepare(config(tmp_path), ALONE)
    assert steps_for("80 images", settled, Images(), method, ALONE) == 10
    few, many = (steps_for(f"{n} gflop", settled, Images(), method, ALONE) for n in (1, 10))
    assert 9 * few <= many <= 11 * few + 10
    with pytest.raises(ValueError, match="less than one step of 8 images"):
        steps_for("7 images", settled, Images(), method, ALONE)


def test_a_measured_step_takes_time_and_a_run_after_it_is_the_same(tmp_path):
    settled, method = prepare(config(tmp_path), ALONE)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert 0 < measure(settled, Images(), method, ALONE, seconds=0.1) < 5
    assert not toys.same(before, dict(method.state_dict()))
    assert toys.same(before, dict(prepare(settled, ALONE)[1].state_dict()))


def test_colors_without_opencv_are_told_where_they_would_be_used(tmp_path, monkeypatch):
    def told(settled, method):
        return [line for line in describe(settled, Images(), method, ALONE) if "unmask[fast]" in line]

    settled, method = prepare(config(tmp_path), ALONE)
    view = View(settled.method.views[0].size, blur=Blur())
    colored = replace(settled, method=replace(settled.method, views=(view,)))
    assert told(colored, method) == []
    monkeypatch.setattr(photometry_cpu, "cv2", None)
    assert len(told(colored, method)) == 1
    assert told(settled, method) == []


def test_missing_simplejpeg_is_told_where_there_are_jpegs(tmp_path, monkeypatch):
    def told(files):
        return [line for line in describe(settled, Files(files), method, ALONE) if "unmask[fast]" in line]

    settled, method = prepare(config(tmp_path), ALONE)
    monkeypatch.setattr(forecast, "simplejpeg", None)
    assert told([png(8), jpeg()]) == [
        "JPEGs are decoded by torchvision, which simplejpeg does faster: pip install 'unmask[fast]'"
    ]
    assert told([png(8)]) == []
    monkeypatch.setattr(forecast, "simplejpeg", object())
    assert told([jpeg()]) == []


def test_how_deep_values_are_scaled_is_told_where_there_are_some_or_a_range_was_given(tmp_path):
    def told(files, **how):
        data = DataConfig(train="toys", **how)
        lines = describe(replace(settled, data=data), Files(files), method, ALONE)
        return [line for line in lines if "8 bits" in line or "channels" in line]

    settled, method = prepare(config(tmp_path), ALONE)
    assert told([png(8), jpeg()]) == []
    assert told([png(8), png(16)]) == ["values of more than 8 bits are scaled by each file's own extremes"]
    assert told([png(8)], range=(0, 4095)) == ["values of more than 8 bits are scaled by --range 0 4095"]


def test_a_cost_lists_bad_images(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "measure", lambda *args: 0.5)
    settled, method = prepare(config(tmp_path), ALONE)
    cost = cost_of(settled, Images(24, bad=(3,)), method, ALONE)
    assert (cost.steps, cost.looked, cost.bad) == (4, 24, ["image-3: cut short"])
    assert cost.hours == pytest.approx(4 * 0.5 / 3600)
    assert "1 of 24 images looked at cannot be read, first image-3: cut short" in cost.lines()[-1]
