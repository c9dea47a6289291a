"""Under `torchrun --max-restarts`, workers that are killed come back, and the run ends as if none had been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_toys import SHORT, pictures, unmask
from test_resume import state
from toys import same

from unmask import checkpoint
from unmask.run import Run

ROOT = Path(__file__).parent.parent
STEPS = 8
KILLING = """
import os, signal, sys, time
from pathlib import Path
from unmask import checkpoint, train
from unmask.cli import main

attempt, rank, run = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"]), Path(sys.argv[-1])
if attempt and rank == 0:
    time.sleep(4)  # rank 1 is first at torchrun's store, where the addresses of the last start lie
update, save = train.update, checkpoint.dcp.save

def updating(*args):
    if (attempt, rank, args[3].step) == (0, 1, 3):  # rank 0 waits for its gradients
        os.kill(os.getpid(), signal.SIGKILL)
    return update(*args)

def saving(*args, **how):
    save(*args, **how)
    if (attempt, rank, checkpoint.latest(run)) == (1, 0, 4):  # step 6 is written and not yet published
        os.kill(os.getpid(), signal.SIGKILL)

if "--kill" in sys.argv:
    sys.argv.remove("--kill")
    train.update, checkpoint.dcp.save = updating, saving
sys.exit(main(sys.argv[1:]))
"""


def torchrun(script, data, out, *more):
    """Start a run of two processes."""
    words = ["pretrain", "mae-nano", data, "--steps", STEPS, "--batch", 8, "--save-every", 2, "--workers", 1,
             "--device", "cpu", "--precision", "fp32", *more, "--out", out]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2",
         "--monitor-interval=0.1", str(script), *map(str, words)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "killing.py"
    path.write_text(KILLING)
    return path


@pytest.mark.slow
def test_a_worker_killed_in_a_step_and_one_killed_in_a_save_change_nothing(script, tmp_path):
    data = pictures(tmp_path / "photos")
    runs = {"killed": tmp_path / "killed", "calm": tmp_path / "calm"}
    processes = [torchrun(script, data, runs["killed"], "--kill"), torchrun(script, data, runs["calm"])]
    for process in processes:
        _, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
    starts = {name: json.loads((run / "environment.json").read_text()) for name, run in runs.items()}
    assert {name: len(each) for name, each in starts.items()} == {"killed": 3, "calm": 1}
    assert same(state(runs["killed"], STEPS), state(runs["calm"], STEPS))
    assert [event["step"] for event in Run(runs["killed"]).metrics()] == [STEPS]
    assert checkpoint.steps(runs["killed"]) == [4, 6, 8]
    assert not list((runs["killed"] / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_terminated_torchrun_leaves_a_checkpoint_of_that_moment(script, tmp_path):
    data, out = pictures(tmp_path / "photos"), tmp_path / "run"
    process = torchrun(script, data, out, "--steps", 100_000, "--save-every", 100_000, "--log-every", 1)
    end = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() or len(Run(out).metrics()) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "too slow"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on and waits half a minute
    process.communicate(timeout=100)
    assert process.returncode != 0
    assert checkpoint.latest(out) == Run(out).metrics()[-1]["step"] > 2


def test_restarts_need_a_place_to_come_back_to(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    said = unmask("pretrain", "mae-nano", pictures(tmp_path / "photos"), *SHORT)
    assert said.code == 1
    assert said.line.endswith("would begin another run; give --out RUN")
