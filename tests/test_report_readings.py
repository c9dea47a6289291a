"""Readings follow the numbers: each finding is said in both directions, and not said where intervals overlap."""

import dataclasses
import json

import analyze_toys
import numpy as np
import pytest
from report_toys import about, estimate, found

from unmask.analyze import ANALYSES, analyze
from unmask.report import readings, teacher_readings
from unmask.report.panels import PANELS
from unmask.report.readings import Value, contrast

OURS, THEIRS = ("mae", "beit"), ("ibot", "dino")
METHODS = about("mae", "beit", "ibot", "dino")


def layers(value):
    return {"layers": estimate([value, value])}


MADE = {
    "attention-distance": (layers, "supports", "against"),
    "attention-nmi": (layers, "against", "supports"),
    "amplitude": (lambda value: {"drop": estimate([0, value])}, "against", "supports"),
    "bands": (lambda value: {"relative": {"high": estimate([value]), "low": estimate([1])}}, "against", "supports"),
    "range": (lambda value: {"gain": estimate([0, value, 1]), "R_50": 1.0}, "against", "supports"),
    "targets": (lambda value: {"r2_color": estimate(value), "nmi": 0.2, "nmi_by_chance": 0.1}, "against", "supports"),
}
"""analysis -> numbers of a model from one value; the verdict where reconstruction is lower, and where it is higher"""


@pytest.mark.parametrize("what", MADE)
@pytest.mark.parametrize(("ours", "theirs"), [(0.2, 0.6), (0.6, 0.2)])
def test_a_claim_is_judged_by_the_side_on_which_reconstruction_lies(what, ours, theirs):
    make, lower, higher = MADE[what]
    numbers = {name: make(ours) for name in OURS} | {name: make(theirs) for name in THEIRS}
    said = readings.READINGS[what](numbers, METHODS)
    assert said.verdict == (lower if ours < theirs else higher)
    assert "Here reconstruction (mae, beit)" in said.text


@pytest.mark.parametrize("what", MADE)
def test_nothing_is_claimed_where_intervals_or_models_overlap(what):
    make = MADE[what][0]
    for ours in ((0.401, 0.401), (0.2, 0.6)):
        numbers = dict(zip(OURS, map(make, ours), strict=True)) | {name: make(0.4) for name in THEIRS}
        said = readings.READINGS[what](numbers, METHODS)
        assert said.verdict == "open"
        assert "not told apart" in said.text


@pytest.mark.parametrize("what", MADE)
def test_one_group_alone_puts_no_claim_to_the_test(what):
    said = readings.READINGS[what]({name: MADE[what][0](0.4) for name in OURS}, METHODS)
    assert said.verdict == ""
    assert "No model that agrees with a teacher" in said.text


def nothing(numbers):
    """The same, with every estimate unknown."""
    if isinstance(numbers, dict) and "value" in numbers:
        return {part: np.full(np.shape(values), None).tolist() for part, values in numbers.items()}
    return {key: nothing(value) for key, value in numbers.items()} if isinstance(numbers, dict) else numbers


@pytest.mark.parametrize("what", ["attention-distance", "attention-nmi", "bands", "error-spectrum", "range", "targets",
                                  "target-noise"])  # fmt: skip
def test_what_is_not_known_is_left_out_of_readings_and_charts(what):
    numbers = nothing(found()[what])
    said = (readings.READINGS | teacher_readings.READINGS)[what](numbers, METHODS)
    assert said.verdict == ""
    assert "None" not in said.text.replace("None of the models", "")
    assert PANELS[what](numbers, METHODS)


def test_a_share_of_nothing_makes_no_mean_and_the_others_are_still_listed():
    numbers = found()["bands"]
    numbers["mae"] = nothing(numbers["mae"])
    assert readings.average(numbers["mae"]["relative"]["high"]) == dict.fromkeys(("value", "low", "high"))
    said = readings.bands(numbers, METHODS)
    assert "beit 50\u00a0%" in said.text
    assert "mae" not in said.text


def test_the_radius_of_half_is_said_only_where_it_is_known():
    numbers = found()["range"]
    assert "half is reached at a radius of mae 0.9, beit 0.9, ibot 0.9 patches." in readings.dependence(
        numbers, METHODS
    ).text  # fmt: skip
    for each in numbers.values():
        each["R_50"] = None
    assert "half" not in readings.dependence(numbers, METHODS).text


def test_untrained_and_supervised_models_take_no_part_in_a_verdict():
    values = [Value("mae", "mae", 1, 1, 1), Value("ibot", "ibot", 2, 2, 2), Value("untrained:mae", "", 9, 9, 9)]
    assert contrast(values, higher=False, more="m", less="l").verdict == "supports"


def test_distances_are_parts_of_what_uniform_attention_has():
    near = readings.uniform(METHODS, "mae")
    grid = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(-1, 2) * 4.0
    assert near == pytest.approx(np.mean([[np.hypot(*(a - b)) for a in grid] for b in grid]))
    said = readings.attention_distance({"mae": layers(near / 2)}, METHODS)
    assert "mae 50\u00a0%" in said.text


@pytest.mark.parametrize(
    ("raw", "norm", "verdict"), [(0.3, 0.6, "supports"), (0.6, 0.3, "against"), (0.5, 0.5, "open")]
)
def test_normalized_patches_move_the_loss_where_the_numbers_say(raw, norm, verdict):
    kinds = {}
    for kind, share in (("pixels", raw), ("normalized", norm)):
        kinds[kind] = {"error_over_image": estimate([0.1, 0.4, 0.7, 1.1]), "loss_share": estimate([1, share, 0.1, 0])}
        kinds[kind]["share"] = {"above 1 cycles": share}
    said = readings.error_spectrum({"mae": kinds}, METHODS)
    assert said.verdict == verdict
    assert "up to 1 cycles an image" in said.text
    assert "from 3 cycles an image on" in said.text


@pytest.mark.parametrize(
    ("within", "between", "verdict"), [(0.9, 0.2, "supports"), (0.2, 0.9, "against"), (0.5, 0.52, "open")]
)
def test_cka_compares_last_blocks_within_and_between_kinds(within, between, verdict):
    names = [*OURS, *THEIRS]
    blocks = [f"{name}/{i}" for name in names for i in (1, 2)]
    matrix = np.zeros((8, 8))
    for i in range(4):
        for j in range(4):
            matrix[2 * i + 1, 2 * j + 1] = 1 if i == j else within if i // 2 == j // 2 else between
    assert readings.cka({"blocks": blocks, "cka": matrix.tolist()}, METHODS).verdict == verdict


@pytest.mark.parametrize(("gap", "verdict"), [(0.05, "supports"), (-0.05, "against"), (0.005, "open")])
def test_the_better_network_is_the_one_that_the_gap_names(gap, verdict):
    numbers = {"ibot": {"steps": [1, 2], "gap": estimate([0, gap]), "not_told_apart": [1]}}
    said = teacher_readings.teacher_student(numbers, METHODS)
    assert said.verdict == verdict
    who = {"supports": "the teacher is the better", "against": "the student is the better", "open": "neither is shown"}
    assert who[verdict] in said.text


def test_a_log_without_intervals_gives_no_verdict():
    numbers = {"ibot": {"knn/cls": {"steps": [1, 2], "student": [0.2, 0.3], "teacher": [0.1, 0.4], "gap": [-0.1, 0.1]}}}
    said = teacher_readings.teacher_student(numbers, METHODS)
    assert said.verdict == ""
    assert "ahead at 1 of 2 evaluations, and by +10.0 points" in said.text


@pytest.mark.parametrize(("average", "verdict"), [(0.3, "supports"), (0.1, "against"), (0.205, "open")])
def test_averaging_is_enough_only_where_the_average_beats_the_student(average, verdict):
    numbers = found()["averaging"]
    numbers["ibot"]["accuracy"] |= {"EMA 0.9": estimate(average), "mean of all": estimate(average - 0.01)}
    said = teacher_readings.averaging(numbers, METHODS)
    assert said.verdict == verdict
    assert "momentum 0.99 leaves 10\u00a0%, where independent noise would leave 0.5\u00a0%" in said.text


@pytest.mark.parametrize(("ratio", "verdict"), [(0.2, "supports"), (1.5, "against"), (1.005, "open")])
def test_a_steadier_teacher_is_one_whose_targets_vary_less(ratio, verdict):
    numbers = found()["target-noise"]
    numbers["ibot"]["ratio"]["target_variance"] = estimate([ratio, 1])
    assert teacher_readings.target_noise(numbers, METHODS).verdict == verdict


@pytest.mark.parametrize(("teacher", "verdict"), [(0.1, "supports"), (0.5, "against"), (0.305, "open")])
def test_a_flatter_teacher_is_one_around_which_the_loss_rises_less(teacher, verdict):
    sides = {"student": 0.3, "teacher": teacher}
    sides = {
        who: {"sharpness": {"0.05": estimate(rise)}, "hessian_trace": estimate(1.0)} for who, rise in sides.items()
    }
    assert teacher_readings.flatness({"ibot": sides}, METHODS).verdict == verdict
    assert teacher_readings.flatness({"mae": {"network": {}}}, METHODS).verdict == ""


@pytest.mark.parametrize(
    ("entropy", "kl_uniform", "said"),
    [(0.01, 4.4, "collapsed to a point"), (4.4, 0.05, "lack of sharpening"), (2.0, 2.3, "close to collapse"),
     (1.0, 0.5, "has not collapsed")],
)  # fmt: skip
def test_collapse_is_named_by_its_kind(entropy, kl_uniform, said):
    numbers = found()["collapse"]["ibot"] | {"entropy": estimate(entropy), "kl_uniform": kl_uniform}
    numbers["information"] = numbers["ln_K"] - kl_uniform - entropy
    assert said in teacher_readings.collapse({"ibot": numbers}, METHODS).text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: analyze_toys.run(folder / name, name, save_every="2") for name in ("mae", "beit", "ibot")}


@pytest.mark.slow
@pytest.mark.parametrize("what", ANALYSES)
def test_files_of_real_analyses_have_a_reading_and_charts(what, runs, tmp_path):
    names = {"error-spectrum": ["mae"], "targets": ["beit", "ibot"]}.get(what, [*runs])
    names = ["ibot"] if what in teacher_readings.READINGS else names
    subjects = [analyze_toys.subject(runs[name], "@2" if ANALYSES[what].train else "") for name in names]
    subjects = [each._replace(name=name) for each, name in zip(subjects, names, strict=True)]
    ask = dataclasses.replace(analyze_toys.asked(), train=analyze_toys.Labelled(), steps=60)
    figure = analyze(what, subjects, ask, tmp_path / f"{what}.png")
    numbers = json.loads(figure.with_suffix(".json").read_text())["found"]
    said = (readings.READINGS | teacher_readings.READINGS)[what](numbers, METHODS)
    assert said.text
    assert "nan" not in said.text
    assert PANELS[what](numbers, METHODS)
