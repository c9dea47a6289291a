"""The run directory: complete, exclusive, and clear about what it refuses."""

import dataclasses
import json
import multiprocessing

import numpy as np
import pytest
import toys
from toys import ALONE, config

from unmask.run import Run, held_in, keep_held


def opened(path, **changes):
    run = Run.open(config(path, **changes), ALONE)
    run.release()
    return run


def test_a_new_run_holds_its_configuration_and_environment(tmp_path):
    run = opened(tmp_path / "a" / "run")
    assert Run(run.path).config == run.config
    (start,) = json.loads((run.path / "environment.json").read_text())
    assert {"unmask", "commit", "torch", "world_size", "host", "time"} <= start.keys()
    assert run.figures.is_dir()
    assert run.latest() is None


def test_every_start_adds_its_environment(tmp_path):
    for _ in range(3):
        opened(tmp_path)
    assert len(json.loads((tmp_path / "environment.json").read_text())) == 3


def test_another_configuration_is_refused_with_the_fields_that_differ(tmp_path):
    opened(tmp_path)
    with pytest.raises(ValueError, match="another configuration") as caught:
        opened(tmp_path, seed=1, base_lr=0.5, method=dataclasses.replace(toys.TINY, norm_pixels=False))
    message = str(caught.value)
    for line in ("seed: 0 -> 1", "optim.base_lr: 0.01 -> 0.5", "method.norm_pixels: True -> False"):
        assert line in message
    assert "choose another --out" in message


def test_a_longer_run_is_refused_with_the_cure(tmp_path):
    opened(tmp_path)
    with pytest.raises(ValueError, match=r"steps: 4 -> 8; train on with --from .* and a new --out"):
        opened(tmp_path, steps=8)


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 3},
        {"device_batch": 4},
        {"parallel": "fsdp"},
        {"compile": "on"},
        {"recompute": "on"},
        {"save_every": "9"},
        {"keep": 7},
    ],
    ids=str,
)
def test_what_only_changes_speed_may_differ(changes, tmp_path):
    opened(tmp_path)
    opened(tmp_path, **changes)
    assert [getattr(Run(tmp_path).config, name) for name in changes] == list(changes.values())


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="exists and is not a run"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not a run: it has no config\.json"):
        Run(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_run_that_was_killed_while_it_began_can_begin_again(tmp_path):
    for left in (".lock", ".config.json.tmp"):
        (tmp_path / left).write_text("")
    opened(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("3", "holds no RunConfig")])
def test_a_config_that_is_none_is_refused(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Run(tmp_path)


def hold(path, ready, done):
    run = Run.open(config(path), ALONE)
    ready.set()
    done.wait(60)
    run.release()


def test_a_run_that_another_process_trains_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, done))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RuntimeError, match="is being trained by another process"):
            opened(tmp_path)
        Run(tmp_path)  # to read it is allowed
    finally:
        done.set()
        process.join(60)
    opened(tmp_path)


def test_metrics_are_cut_back_to_a_step(tmp_path):
    run = opened(tmp_path)
    for step in range(1, 5):
        run.log(step=step, loss=1.0 / step)
    run.rewind(2)
    assert [event["step"] for event in run.metrics()] == [1, 2]
    run.log(step=3, loss=0.0)
    assert len(run.metrics()) == 3


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    run = opened(tmp_path)
    run.log(step=1, loss=1.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert [event["step"] for event in run.metrics()] == [1]
    run.rewind(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'


def test_bad_images_are_listed_and_read_back(tmp_path):
    run = opened(tmp_path)
    assert run.bad_images() == {}
    bad = {"b.jpg": "zero bytes", "a.jpg": "cut short: 3 of 9"}
    run.report_bad(bad)
    assert run.bad_images() == bad


def test_a_missing_checkpoint_names_those_there_are(tmp_path):
    run = opened(tmp_path)
    with pytest.raises(ValueError, match="it has: none yet"):
        run.method()
    run = toys.run(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint 3; it has: 4"):
        run.method(3)


def test_the_backbone_of_a_run_is_the_trained_encoder(tmp_path):
    run = toys.run(tmp_path)
    backbone = run.backbone()
    assert not backbone.training
    state = run.method().state_dict()
    assert toys.same(dict(backbone.state_dict()), {k.removeprefix("encoder."): v for k, v in state.items()
                                                   if k.startswith("encoder.")})  # fmt: skip


def test_held_out_places_are_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    assert held_in(tmp_path) is None
    keep_held(tmp_path, np.arange(5))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        keep_held(tmp_path, np.arange(5000))
    assert held_in(tmp_path).tolist() == [0, 1, 2, 3, 4]
