"""Threads keep looking for work where cores are free, and sleep where others need them."""

import os

import pytest

from unmask import waiting


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes a machine of four cores on which so many processes run, this one included."""

    def make(running: str) -> None:
        (tmp_path / "stat").write_text(f"cpu  1 2 3\nctxt 5\n{running}\nprocs_blocked 9\n")
        monkeypatch.setattr(waiting, "RUNNABLE", tmp_path / "stat")
        monkeypatch.setattr(waiting, "EVERY", 0.0)
        monkeypatch.setattr(waiting, "_cores", lambda: 4)

    return make


def settled(**environ: str) -> dict[str, str]:
    waiting.settle(environ)
    return environ


def test_threads_look_for_work_where_nothing_else_runs(machine):
    machine("procs_running 1")
    assert settled() == {"GOMP_SPINCOUNT": "3000"}


def test_threads_sleep_beside_another_process(machine):
    machine("procs_running 2")
    assert settled() == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_fewer_threads_leave_cores_to_others(machine):
    machine("procs_running 3")
    assert "GOMP_SPINCOUNT" in settled(OMP_NUM_THREADS="2")
    assert "OMP_WAIT_POLICY" in settled(OMP_NUM_THREADS="3,2")


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_has_set_stays(machine, name):
    machine("procs_running 1")
    assert settled(**{name: "ACTIVE"}) == {name: "ACTIVE"}


def test_threads_sleep_where_the_system_does_not_tell(machine, monkeypatch, tmp_path):
    machine("processes 7")
    assert settled() == {"OMP_WAIT_POLICY": "PASSIVE"}
    monkeypatch.setattr(waiting, "RUNNABLE", tmp_path / "missing")
    assert settled() == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_cores_that_are_not_ours_do_not_count():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system binds no process to cores")
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        assert waiting._cores() == 1
    finally:
        os.sched_setaffinity(0, everywhere)
