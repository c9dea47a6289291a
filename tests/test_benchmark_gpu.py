"""The benchmark for a GPU runs where there is none, and finds no wait."""

import json

import pytest

from benchmarks import gpu


@pytest.mark.parametrize("name", ["mae-nano", "ibot-nano", "dvae-nano"])
def test_a_row_has_time_share_and_waits(name, capsys):
    (row,) = gpu.main([name, "--device", "cpu", "--batch", "2", "--rounds", "1", "--peak-tflops", "0.1"])
    assert row["share"] == pytest.approx(row["tflops"] / 0.1)
    assert row["tflops"] == pytest.approx(row["gflop_an_image"] * 2 / row["ms"], rel=1e-6)
    assert row["waits_a_step"] == 0
    said = capsys.readouterr().out
    assert said.startswith("no GPU: ")
    assert json.loads(said.splitlines()[-1])["recipe"] == name


@pytest.mark.slow
def test_every_nano_recipe_has_a_row():
    rows = gpu.main(["--device", "cpu", "--batch", "2", "--rounds", "1"])
    assert [row["recipe"] for row in rows] == list(gpu.NANO)
    assert {row["waits_a_step"] for row in rows} == {0}
