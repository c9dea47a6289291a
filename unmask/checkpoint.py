"""Save and load the whole state of a run: weights, optimizer, step. Nothing else is state.

    checkpoints/step-0012500/   DCP shards, .metadata, and state.json {step, schema}, written last
    checkpoints/latest          text: the newest complete step, for people and scripts

A checkpoint is written under a temporary name by all ranks, flushed, and renamed when it is whole:
whatever dies, and whenever, the newest complete one stays. DCP reshards: save on N ranks, load on M.
Files are read as tensors only; nothing in them is executed.
"""

import contextlib
import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.optim import Optimizer

from .parallel import World

SCHEMA = 1


class SaveFailed(OSError):
    """A checkpoint could not be written; the last complete one is intact."""


def save(run: Path, step: int, method: nn.Module, optimizer: Optimizer, world: World, keep: int = 3) -> Path:
    """Write checkpoint `step` and remove all but the newest `keep`.

    Raises:
        SaveFailed: full or unwritable disk; names the place and the checkpoint that is still good.
    """
    folder = run / "checkpoints"
    final, temporary = folder / f"step-{step:07d}", folder / f".step-{step:07d}.tmp"
    if world.agree(world.first and (final / "state.json").exists())[0]:
        return final

    def prepare() -> None:
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(".step-*.tmp"):
                shutil.rmtree(stale)

    def write() -> None:
        state = {"method": method.state_dict(), "optimizer": optimizer_state(optimizer)}
        with _quiet():
            dcp.save(state, storage_writer=FileSystemWriter(temporary), no_dist=world.size == 1)

    def publish() -> None:
        if world.first:
            write_atomically(temporary / "state.json", json.dumps({"step": step, "schema": SCHEMA}))
            if final.exists():  # without its state.json: no checkpoint
                remove(run, step)
            os.rename(temporary, final)
            _flush_folder(folder)
            write_atomically(folder / "latest", f"{step}\n")
            for old in steps(run)[:-keep] if keep > 0 else []:
                remove(run, old)

    for stage in (prepare, write, publish):  # ranks go on together or stop together: none waits for a dead one
        problem = _attempt(stage)
        (failed,) = world.agree(bool(problem))
        if failed:
            if world.first:
                shutil.rmtree(temporary, ignore_errors=True)
            good = latest(run)
            raise SaveFailed(
                f"checkpoint step {step} could not be written to {folder}: {problem or 'another rank failed'}; "
                + (f"step {good} is intact, " if good is not None else "")
                + "make room (or fix the permissions) and run the same command again"
            )
    return final


def load(run: Path, step: int, method: nn.Module, optimizer: Optimizer | None = None, single: bool = False) -> None:
    """Read checkpoint `step` into a method, in place, and into its optimizer if one is given.

    Args:
        single: read in this process alone, whatever the process group.
    Raises:
        ValueError: the checkpoint does not fit the method (names what differs), or is damaged.
    """
    path = run / "checkpoints" / f"step-{step:07d}"
    reader = _SafeReader(path)
    try:
        saved = reader.read_metadata().state_dict_metadata
    except Exception as error:  # whatever a damaged pickle raises
        raise _damaged(run, step, error) from error
    tensors = {name: tuple(entry.size) for name, entry in saved.items() if isinstance(entry, TensorStorageMetadata)}
    if tensors.keys() != saved.keys():  # DCP would unpickle it
        foreign = sorted(saved.keys() - tensors.keys())
        raise _damaged(run, step, ValueError(f"{foreign[0]} is not a tensor"))
    state: dict[str, Any] = {"method": method.state_dict()}
    here = {f"method.{name}": tuple(value.shape) for name, value in state["method"].items()}
    there = {name: size for name, size in tensors.items() if name.startswith("method.")}
    differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if differing:
        listed = [f"{n} {there.get(n, 'absent')} there and {here.get(n, 'absent')} here" for n in differing[:3]]
        raise ValueError(f"{path} is of another architecture: {len(differing)} tensors differ: {'; '.join(listed)}")
    if optimizer is not None:
        state["optimizer"] = _empty_optimizer_state(optimizer, set(tensors))
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized() and not single
    try:
        with _quiet():
            dcp.load(state, storage_reader=reader, no_dist=not distributed)
    except (Exception, CheckpointException) as error:  # cut short, a flipped bit, unreadable
        raise _damaged(run, step, error) from error
    if optimizer is not None:
        for name, parameter in _named(optimizer):
            if name in state["optimizer"]:
                optimizer.state[parameter] = state["optimizer"][name]


def remove(run: Path, step: int) -> None:
    """Delete a checkpoint; from the first moment on it counts as none."""
    path = run / "checkpoints" / f"step-{step:07d}"
    gone = path.with_name(f".{path.name}.old.tmp")
    os.rename(path, gone)
    shutil.rmtree(gone)


def steps(run: Path) -> list[int]:
    """The steps of all complete checkpoints, oldest first."""
    found = (run / "checkpoints").glob("step-*/state.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def latest(run: Path) -> int | None:
    """The step of the newest complete checkpoint, or None."""
    return max(steps(run), default=None)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that readers see the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def optimizer_state(optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimizer's tensors by parameter name; groups are rebuilt from the config, not saved."""
    return {name: dict(optimizer.state[p]) for name, p in _named(optimizer) if p in optimizer.state}


def _empty_optimizer_state(optimizer: Optimizer, saved: set[str]) -> dict[str, dict[str, Tensor]]:
    """Zeros to read into, for just those slots that the checkpoint has.

    A parameter whose gradient was None so far (iBOT's frozen last layer) has no slots, and gets none.
    """
    fused = bool(optimizer.defaults.get("fused"))
    state: dict[str, dict[str, Tensor]] = {}
    for name, parameter in _named(optimizer):
        for slot in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
            if f"optimizer.{name}.{slot}" in saved:
                counter = torch.zeros((), device=parameter.device if fused else "cpu")
                empty = counter if slot == "step" else torch.zeros_like(parameter)
                state.setdefault(name, {})[slot] = empty
    return state


def _named(optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [pair for g in optimizer.param_groups for pair in zip(g["names"], g["params"], strict=True)]


def _attempt(stage: Callable[[], None]) -> str:
    """Run a stage; say why it failed, or nothing."""
    try:
        stage()
    except (Exception, CheckpointException) as error:  # DCP wraps all errors in this, which is no Exception
        return _reason(error)
    return ""


def _damaged(run: Path, step: int, error: BaseException) -> ValueError:
    older = [s for s in steps(run) if s < step]
    cure = f"remove that folder to go on from step {older[-1]}" if older else "no older checkpoint is left"
    return ValueError(f"{run / 'checkpoints' / f'step-{step:07d}'} cannot be read: {_reason(error)}; {cure}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its warning that there is no process group: `no_dist` has just said so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        yield


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    inner = getattr(error, "failures", None)
    if inner:
        error = next(iter(inner.values()))[0]
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[-1] if isinstance(error, OSError) else f"{type(error).__name__}: {text[-1]}"


class _SafeReader(FileSystemReader):
    """DCP's reader, but its pickled table of contents may name nothing except DCP's own records."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    RECORDS = ("torch.distributed.checkpoint.metadata",)
    PLAIN = (
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
    )

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module in (*self.RECORDS, *dict(self.PLAIN)) else None
        record = isinstance(found, type) and found.__module__ == module and module in self.RECORDS
        if record or (module, name) in self.PLAIN or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"checkpoint metadata names {module}.{name}: refused, it is not a DCP record")
