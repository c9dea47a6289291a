"""The benchmark that looks for waits runs where there is no GPU, finds none in a step, and sees one that is there."""

import json

import pytest

from benchmarks import waits


@pytest.mark.parametrize("name", ["mae-nano", "ibot-nano", "dvae-nano"])
def test_a_step_never_waits(name, capsys):
    (row,) = waits.main([name, "--device", "cpu", "--batch", "2"])
    assert row["recipe"] == name and row["waits_a_step"] == 0 and row["waits"] == {}
    said = capsys.readouterr().out
    assert said.startswith("no GPU: ")
    assert json.loads(said.splitlines()[-1]) == row


def test_a_read_of_a_value_is_seen(monkeypatch):
    def reading(*given):
        update(*given).loss.item()

    update = waits.update
    monkeypatch.setattr(waits, "update", reading)
    (row,) = waits.main(["mae-nano", "--device", "cpu", "--batch", "2"])
    assert row["waits_a_step"] == 1 and row["waits"] == {"aten::_local_scalar_dense": 3}


@pytest.mark.slow
def test_no_nano_recipe_waits():
    rows = waits.main(["--device", "cpu", "--batch", "2"])
    assert [row["recipe"] for row in rows] == list(waits.NANO)
    assert {row["waits_a_step"] for row in rows} == {0}
