"""What a person sees while a run goes on."""

from unmask import console
from unmask.console import Console


def test_without_a_terminal_a_line_tells_the_progress_now_and_then(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with Console().bar("mae", 100, 40) as bar:
        for done in range(41, 71):
            now += 10.0
            bar.at(done, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mae: 46 of 100  loss 0.5  9 minutes left"
    assert [line.split()[1] for line in lines if line] == ["46", "52", "58", "64", "70"]


def test_a_short_run_without_a_terminal_tells_nothing_of_its_way(capsys):
    with Console().bar("mae", 3) as bar:
        for done in (1, 2, 3):
            bar.at(done)
    assert not capsys.readouterr().err.strip()
