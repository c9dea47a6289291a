"""Checkpoints: whole or not at all, read as tensors only, and clear about what is wrong."""

import builtins
import multiprocessing
import os
import pickle
import resource
import signal

import pytest
import torch
from torch import nn
from toys import ALONE, same

from unmask import checkpoint
from unmask.checkpoint import SaveFailed
from unmask.config import OptimConfig
from unmask.methods.base import decay_groups
from unmask.optim import build_optimizer


def pair(width=4, name="adamw", seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    optimizer = build_optimizer(decay_groups(module), OptimConfig(name=name))
    return module, optimizer


def stepped(name="adamw", steps=2):
    module, optimizer = pair(name=name)
    for _ in range(steps):
        module(torch.randn(5, 3)).square().sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def saved(run, *steps, keep=3):
    module, optimizer = stepped()
    for step in steps:
        checkpoint.save(run, step, module, optimizer, ALONE, keep)
    return module, optimizer


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_what_is_loaded_is_what_was_saved(name, tmp_path):
    module, optimizer = stepped(name)
    path = checkpoint.save(tmp_path, 7, module, optimizer, ALONE)
    assert path == tmp_path / "checkpoints" / "step-0000007"
    other, other_optimizer = pair(name=name, seed=1)
    checkpoint.load(tmp_path, 7, other, other_optimizer)
    assert same(module.state_dict(), other.state_dict())
    state = checkpoint.optimizer_state(optimizer)
    assert state
    assert same(state, checkpoint.optimizer_state(other_optimizer))


def test_a_parameter_without_optimizer_state_gets_none(tmp_path):
    module, optimizer = pair()
    module[0](torch.randn(5, 3)).sum().backward()  # the second layer has no gradient yet
    optimizer.step()
    checkpoint.save(tmp_path, 1, module, optimizer, ALONE)
    other, other_optimizer = pair(seed=1)
    checkpoint.load(tmp_path, 1, other, other_optimizer)
    assert set(checkpoint.optimizer_state(other_optimizer)) == {"0.weight", "0.bias"}


def test_weights_load_without_an_optimizer(tmp_path):
    module, _ = saved(tmp_path, 3)
    other, _ = pair(seed=1)
    checkpoint.load(tmp_path, 3, other, single=True)
    assert same(module.state_dict(), other.state_dict())


def test_only_the_newest_are_kept_and_latest_names_the_last(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert checkpoint.steps(tmp_path) == [3, 4]
    assert checkpoint.latest(tmp_path) == 4
    assert (tmp_path / "checkpoints" / "latest").read_text() == "4\n"
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"latest", "step-0000003", "step-0000004"}


def test_a_run_without_checkpoints_has_no_latest(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.steps(tmp_path) == []


def test_a_folder_without_its_state_is_no_checkpoint_and_is_replaced(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "step-0000002" / "state.json").unlink()
    assert checkpoint.latest(tmp_path) == 1
    module, _ = saved(tmp_path, 2)
    other, _ = pair(seed=1)
    checkpoint.load(tmp_path, 2, other)
    assert same(module.state_dict(), other.state_dict())


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    stale = tmp_path / "checkpoints" / ".step-0000009.tmp"
    stale.mkdir(parents=True)
    (stale / "__0_0.distcp").write_bytes(b"half")
    saved(tmp_path, 1)
    assert not stale.exists()
    assert checkpoint.steps(tmp_path) == [1]


def test_the_same_step_is_not_written_twice(tmp_path):
    saved(tmp_path, 1)
    before = (tmp_path / "checkpoints" / "step-0000001" / "state.json").stat().st_mtime_ns
    saved(tmp_path, 1)
    assert (tmp_path / "checkpoints" / "step-0000001" / "state.json").stat().st_mtime_ns == before


# --- disks that refuse -----------------------------------------------------------------------------


def assert_intact(run, step):
    assert checkpoint.latest(run) == step
    other, other_optimizer = pair(seed=1)
    checkpoint.load(run, step, other, other_optimizer)
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert not any(name.endswith(".tmp") for name in names), names


def limit_file_size(run, queue):
    """In a process of its own: no file may grow over 2 KB, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
    module, optimizer = stepped()
    try:
        checkpoint.save(run, 2, module, optimizer, ALONE)
        queue.put("saved")
    except SaveFailed as error:
        queue.put(str(error))


def test_a_full_disk_leaves_the_last_checkpoint_loadable(tmp_path):
    saved(tmp_path, 1)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=limit_file_size, args=(tmp_path, queue), daemon=True)
    process.start()
    message = queue.get(timeout=60)
    process.kill()
    assert "checkpoint step 2 could not be written" in message
    assert "step 1 is intact" in message
    assert "\n" not in message
    assert_intact(tmp_path, 1)


@pytest.mark.parametrize("place", ["dcp", "state.json", "rename", "latest"])
def test_a_failing_write_anywhere_names_what_is_still_good(place, tmp_path, monkeypatch):
    saved(tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "dcp":
            patch.setattr(checkpoint.FileSystemWriter, "write_data", full)
        elif place == "rename":
            patch.setattr(os, "rename", full)
        else:
            original = builtins.open

            def some(file, mode="r", *args, **kwargs):
                if "w" in mode and str(file).endswith(f".{place}.tmp"):
                    full()
                return original(file, mode, *args, **kwargs)

            patch.setattr(builtins, "open", some)
        module, optimizer = stepped()
        with pytest.raises(SaveFailed, match="No space left on device") as caught:
            checkpoint.save(tmp_path, 2, module, optimizer, ALONE)
    message = str(caught.value)
    good = 2 if place == "latest" else 1  # then the checkpoint was in place already
    assert f"step {good} is intact" in message
    assert "make room" in message
    assert "\n" not in message
    assert_intact(tmp_path, good)


def test_a_folder_that_is_a_file_is_a_failed_save(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(SaveFailed, match="step 1 could not be written"):
        saved(tmp_path, 1)


# --- checkpoints that are not what they seem -------------------------------------------------------


def test_another_architecture_is_refused_with_what_differs(tmp_path):
    saved(tmp_path, 1)
    wide, _ = pair(width=5)
    with pytest.raises(ValueError, match=r"another architecture: 3 tensors differ: .*\(4,\) there and \(5,\) here"):
        checkpoint.load(tmp_path, 1, wide)
    deep = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"2 tensors differ: method\.2\.bias absent there"):
        checkpoint.load(tmp_path, 1, deep)


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_metadata_that_names_a_function_is_refused_and_not_run(tmp_path):
    saved(tmp_path, 1)
    mark = tmp_path / "executed"
    hostile = pickle.dumps(Hostile(mark))
    (tmp_path / "checkpoints" / "step-0000001" / ".metadata").write_bytes(hostile)
    with pytest.raises(ValueError, match=r"names posix.mkdir: refused"):
        checkpoint.load(tmp_path, 1, pair()[0])
    assert not mark.exists()


@pytest.mark.parametrize("name", ["os.system", "os\nsystem", "builtins.eval", "torch\nload", "torch\nos.system"])
def test_metadata_by_any_spelling_is_refused(name, tmp_path):
    saved(tmp_path, 1)
    module, _, attribute = name.partition("\n") if "\n" in name else name.rpartition(".")
    command = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    command += b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93\x8c\x04true\x85R."
    (tmp_path / "checkpoints" / "step-0000001" / ".metadata").write_bytes(command)
    with pytest.raises(ValueError, match="refused"):
        checkpoint.load(tmp_path, 1, pair()[0])


def test_an_object_in_the_place_of_a_tensor_is_refused_and_not_unpickled(tmp_path):
    import torch.distributed.checkpoint as dcp

    module, optimizer = saved(tmp_path, 1)
    mark, folder = tmp_path / "executed", tmp_path / "checkpoints" / "step-0000001"
    state = {"method": {**module.state_dict(), "0.bias": Hostile(mark)}}
    for file in (*folder.glob("*.distcp"), folder / ".metadata"):
        file.unlink()
    with checkpoint._quiet():
        dcp.save(state, checkpoint_id=str(folder), no_dist=True)
    with pytest.raises(ValueError, match=r"method\.0\.bias is not a tensor"):
        checkpoint.load(tmp_path, 1, module, optimizer)
    assert not mark.exists()


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata"])
def test_a_damaged_checkpoint_is_a_clear_error_and_never_garbage(file, how, tmp_path):
    saved(tmp_path, 1)
    damage(tmp_path / "checkpoints" / "step-0000001" / file, how)
    with pytest.raises(ValueError, match="step-0000001 cannot be read") as caught:
        checkpoint.load(tmp_path, 1, *pair(seed=1))
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_names_the_one_before_it(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "step-0000002" / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(ValueError, match="remove that folder to go on from step 1"):
        checkpoint.load(tmp_path, 2, *pair(seed=1))
