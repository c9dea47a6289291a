"""Benchmarks run, name their rows and add up; how fast anything is, no test says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import race, tables
from benchmarks.race import Absent, Contender, Timing
from unmask import passes

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "step.py"


def sleeping(seconds):
    return lambda: time.sleep(seconds)


def missing():
    raise Absent("install it")


def failing():
    raise KeyError("no such weight")


def run_script(*arguments):
    found = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from steps import cases, floor, ours

    return cases, floor, ours


def test_ratios_are_taken_within_a_round_and_then_their_median():
    ours, other = Timing("ours", [1.0, 2.0, 4.0], 500), Timing("other", [3.0, 4.0, 4.0], 1000)
    rows = tables.compare([ours, other, Timing("floor", [0.5, 1.0, 3.0], 10)], "ours", 8, "floor")
    assert (rows[1].ratio, rows[1].ratio_min, rows[1].ratio_max) == (2.0, 1.0, 3.0)
    assert rows[0].floor_share == 0.5 and rows[0].images_s == 4.0 and rows[1].memory_ratio == 0.5


def test_a_contender_that_is_not_there_is_refused():
    tables.check_rows(["floor"], ["ours", "floor"])
    with pytest.raises(ValueError, match="--rows 'flor': choose from 'ours', 'floor'"):
        tables.check_rows(["flor"], ["ours", "floor", "floor"])


def test_contenders_take_turns_and_who_is_absent_says_why():
    contenders = [
        Contender("quick", sleeping, (0.0,)),
        Contender("gone", missing),
        Contender("slow", sleeping, (0.05,)),
    ]
    timings, left_out = race.race(contenders, rounds=2, threads=1, preload=())
    assert [t.name for t in timings] == ["quick", "slow"] and left_out == {"gone": "install it"}
    assert all(len(t.seconds) == 2 and t.peak > 1e6 for t in timings)
    assert min(timings[1].seconds) >= 0.05


def test_a_contender_that_fails_is_named():
    with pytest.raises(RuntimeError, match=r"broken failed:(.|\n)*no such weight"):
        race.race([Contender("broken", failing)], rounds=1, threads=1, preload=())


def test_results_of_a_machine_are_added_to_its_file(tmp_path):
    rows = tables.compare([Timing("ours", [1.0], 1)], "ours", 8)
    about = {"date": "2026-01-01 00:00", "commit": "abc", "machine": "cpu-2-cores", "rounds": 1}
    for title in ("first", "second"):
        with tables.Results(tmp_path, title, about) as results:
            results.add("a-case", rows)
    text = results.file.read_text()
    assert results.file.name == "cpu-2-cores.md" and text.count("| a-case | ours | 8 |") == 2
    assert text.index("2026-01-01 00:00: first") < text.index("2026-01-01 00:00: second")


def test_the_name_of_a_machine_is_a_file_name_without_its_host():
    name = tables.machine()
    assert name.endswith(f"-{os.cpu_count()}-cores") and os.uname().nodename not in name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_wider_floor_goes_once_over_each_blocks_activations_and_over_each_weight(steps):
    cases, floor, ours = steps
    case = cases.case("mae-nano")
    step = ours.make(case, "bf16", "torch")
    weights = {tuple(p.shape) for group in step.optimizer.param_groups for p in group["params"] if p.ndim == 2}
    passes = floor.written_down(step, weights).passes

    def count(name: str) -> int:
        return sum(kind.startswith(f"aten.{name}.") for kind in passes)

    blocks = case.method.vit.depth + case.method.decoder_depth
    both = [count(name) for name in ("gelu", "gelu_backward", "_softmax", "_softmax_backward_data")]
    assert both == [blocks] * 4
    assert count("native_layer_norm") == 2 * blocks + 2 + 1  # final norms, and the normalized pixels
    assert count("native_layer_norm_backward") == 2 * blocks + 2
    # of each block four matrices, the decoder's first and last, all cast and their gradients cast back; the kernel that
    # projects patches is no matrix
    assert count("_to_copy") == 2 * (4 * blocks + 2)


def test_the_floor_of_mae_is_the_products_of_its_formula(steps):
    cases, floor, ours = steps
    case = cases.case("mae-nano")
    vit, d = case.method.vit, case.method.decoder_width
    n, kept, pixels = 64, 16, 3 * 8 * 8
    blocks = 12 * (1 + kept) * vit.width**2 + 2 * (1 + kept) ** 2 * vit.width
    decoder = 12 * (1 + n) * d**2 + 2 * (1 + n) ** 2 * d
    ends = 2 * kept * pixels * vit.width + 3 * (1 + kept) * vit.width * d  # no gradient of pixels
    decoder -= 9 * (1 + kept) * d**2  # the last block's projection and MLP are for hidden patches alone
    scored = 3 * (n - kept) * d * pixels
    macs = 3 * (vit.depth * blocks + decoder) + ends + scored
    assert floor.flops(floor.written_down(ours.make(case, "bf16"))) == 2 * macs * case.images


@pytest.mark.parametrize("name", ["beit-nano", "ibot-nano-2-locals"])
def test_the_floor_leaves_out_what_our_step_does_in_the_same_turn(name, steps):
    cases, floor, ours = steps
    case = cases.case(name)
    one, other, whole = ours.make(case, "bf16"), ours.make(case, "bf16"), ours.make(case, "bf16", "torch")
    all_samples = floor.flops(floor.written_down(whole))
    passes.switch(True)
    counts = [floor.flops(floor.written_down(one)) for _ in range(4)]
    assert counts == [floor.flops(floor.written_down(other)) for _ in range(4)]
    if passes.ready():
        assert len(set(counts)) > 1 and max(counts) <= all_samples and min(counts) > 0.8 * all_samples


def test_step_writes_a_line_for_each_row(tmp_path):
    file = tmp_path / "lines.json"
    run_script("--device", "cpu", "--cases", "mae-nano", "--rounds", 1, "--json", file, "--results", tmp_path,
               "--rows", "unmask bf16", "unmask fp32", "official fp32", "floor")  # fmt: skip
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["contender"] for line in lines] == ["unmask bf16", "unmask fp32", "floor"]
    for line in lines:
        assert (
            line["benchmark"] == "step" and line["case"] == "mae-nano" and len(line["seconds"]) == line["rounds"] == 1
        )
        assert {"images_s", "ratio", "floor_share", "peak_mb", "date", "commit", "machine", "torch", "threads"} <= set(
            line
        )
        assert line["images_s"] > 0 and line["peak_mb"] > 100
    assert 1.0 in (lines[0]["ratio"], lines[1]["ratio"]) and lines[2]["floor_share"] == 1.0
    (results,) = tmp_path.glob("*.md")
    assert "| mae-nano | unmask bf16 |" in results.read_text()


@pytest.mark.slow
def test_quick_takes_every_step_and_says_what_is_left_out(tmp_path):
    file = tmp_path / "lines.json"
    said = run_script("--device", "cpu", "--quick", "--rounds", 1, "--json", file)
    names = {json.loads(line)["case"] for line in file.read_text().splitlines()}
    assert names == {"mae-nano", "beit-nano", "beit-nano-dalle", "ibot-nano-2-locals", "dvae-32"}
    assert "left out: official fp32: give --official DIR" in said


def test_where_a_steps_time_goes_is_told_by_kinds():
    found = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "where.py", "mae-nano", "--steps", "1", "--threads", "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.startswith("mae-nano, ") and "products" in found.stdout and "AdamW" in found.stdout
