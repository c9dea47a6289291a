"""B1 and B6: teacher against student, and collapse."""

import math

import analyze_toys
import numpy as np
import pytest
import torch

from unmask.analyze import collapse, teacher_student
from unmask.analyze.intervals import Estimate


def test_a_uniform_output_has_all_entropy_and_says_nothing():
    found = collapse.diagnose(torch.full((6, 32), 1 / 32))
    assert found.entropy == pytest.approx(math.log(32))
    assert found.kl_uniform == pytest.approx(0, abs=1e-9)
    assert found.information == pytest.approx(0, abs=1e-9)


def test_one_prototype_for_all_has_no_entropy_and_says_nothing():
    outputs = torch.zeros(6, 32)
    outputs[:, 3] = 1
    found = collapse.diagnose(outputs)
    assert found.entropy.max() == 0
    assert found.kl_uniform == pytest.approx(math.log(32))
    assert found.information == pytest.approx(0, abs=1e-9)
    assert found.usage == 1 / 32


def test_a_prototype_an_image_says_all():
    found = collapse.diagnose(torch.eye(8))
    assert found.information == pytest.approx(math.log(8))
    assert found.usage == 1


def test_both_spellings_of_logged_pairs_are_found():
    lines = [{"step": s, "eval/knn/cls": 0.5, "eval/knn/cls/student": 0.4, "loss": 1.0} for s in (10, 20)]
    lines += [{"step": 20, "eval/teacher/linear/cls": 0.7, "eval/student/linear/cls": 0.6}]
    found = {pair.name: pair for pair in teacher_student.logged_pairs(lines)}
    assert found["knn/cls"].steps.tolist() == [10, 20]
    assert found["knn/cls"].teacher.tolist() == [0.5, 0.5]
    assert found["knn/cls"].student.tolist() == [0.4, 0.4]
    assert found["linear/cls"].teacher.tolist() == [0.7]


def test_the_gap_vanishes_where_its_interval_holds_0():
    gap = Estimate(np.array([0.1, 0.0, 0.02]), np.array([0.05, -0.1, 0.0]), np.array([0.2, 0.1, 0.1]))
    assert teacher_student.vanishes([1, 2, 3], gap) == [2, 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return analyze_toys.run(tmp_path_factory.mktemp("teacher") / "run", "ibot", steps=4, save_every="2")


def test_all_checkpoints_are_judged_in_pairs(run):
    (found,) = analyze_toys.drawn(teacher_student.run([analyze_toys.subject(run)], analyze_toys.asked())).values()
    assert found["steps"] == [2, 4]
    assert found["learned_from"] == found["images"] == 12
    assert np.allclose(found["gap"].value, found["teacher"].value - found["student"].value)


def test_without_data_the_log_is_drawn_or_missed(run):
    subject = analyze_toys.subject(run)
    with pytest.raises(ValueError, match="has logged no eval/ of student and teacher; give labelled DATA"):
        teacher_student.run([subject], analyze_toys.asked(data=None))
    run.log(step=4, **{"eval/knn/cls": 0.5, "eval/knn/cls/student": 0.25})
    (found,) = analyze_toys.drawn(teacher_student.run([subject], analyze_toys.asked(data=None))).values()
    assert found["knn/cls"]["gap"].tolist() == [0.25]


def test_a_teacher_is_diagnosed_from_its_log_and_on_images(run):
    subject = analyze_toys.subject(run)
    (found,) = analyze_toys.drawn(collapse.run([subject], analyze_toys.asked())).values()
    assert set(found["logged"]) == set(collapse.LOGGED)
    assert 0 <= found["entropy"].value <= found["ln_K"] == pytest.approx(math.log(24))
    assert found["information"] >= -1e-9
    (logged,) = analyze_toys.drawn(collapse.run([subject], analyze_toys.asked(data=None))).values()
    assert "entropy" not in logged


def test_an_mae_has_no_teacher():
    subject = analyze_toys.fresh("mae")
    with pytest.raises(ValueError, match="is a MAE; collapse is measured on IBOT"):
        collapse.run([subject], analyze_toys.asked())
