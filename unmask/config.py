"""What a run is, as nested frozen dataclasses, and their way to JSON and back.

Nothing here needs torch. A recipe is a function that returns a RunConfig; the command line
overrides any field by its dotted name; config.json in the run directory holds every field.
"""

import contextlib
import dataclasses
import importlib
import math
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from .schedules import Constant, Progress, Schedule, StepCosine, WarmupCosine


class UsageError(ValueError):
    """Something was asked for that does not exist; the message says what does (exit code 2)."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The settings of one method; a subclass adds its fields, narrows these, and has a `build()`."""

    views: tuple[Any, ...] = ()
    """the augmentation policy: a View each"""
    masks: tuple[Any, ...] = ()
    """a MaskPolicy for each of the first views that are masked"""

    pools: ClassVar[tuple[str, ...]] = ("cls", "mean")
    """frozen features that the method is judged by when nobody says: cls, mean or cls+mean"""
    layers: ClassVar[Literal["last", "best"]] = "last"
    """and from where: the last block after the final norm, or the best of all, chosen on training images"""
    probe: ClassVar[Literal["common", "mae", "beit", "ibot"]] = "common"
    """its published linear probe: `evaluate --probe own`"""

    def build(self) -> Any:
        """Make the networks, freshly initialized from torch's current generator."""
        raise TypeError(f"{type(self).__name__} has no build(): a method's config makes its Method")

    def grids(self) -> tuple[tuple[int, int], ...]:
        """The patch grid (gh, gw) of each masked view, in the order of `masks`."""
        raise TypeError(f"{type(self).__name__} has no grids(): say the patch grid of each masked view")

    def traps(self, epochs: float) -> list[str]:
        """What a person should know of these settings before a run of so many epochs. Default: nothing."""
        return []


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they become numbers."""

    train: str = ""
    """images to train on: folder, tar or parquet (or a glob), hf:NAME, demo:train"""
    images: int = 0
    """how many there were when the run began, held-out ones included; they must still be there"""
    shots: str | None = None
    """train on few of them, as evaluate --shots draws them: 1%, 10% or 5 (a class); None: on all"""
    drawn_from: int = 0
    """with shots: how many images there were to draw from; they must still be there"""
    test: str | None = None
    """images for --eval-every; None: some of the labelled training images are held out"""
    holdout: bool = False
    """keep some images of `train` out of training, for evaluation"""
    holdout_by: Literal["content", "place"] = "content"
    """content: the tenth whose bytes hash to 0 (mod 10), all of which are read; place: a tenth, but 10,000 at most,
    drawn from their numbers, where there are more than 100,000 images or 16 GiB to read"""
    labels: Literal["auto", "folder", "none"] = "auto"
    """where labels come from: auto uses what the source has, folder insists, none ignores"""
    channels: int = 3
    """image channels; other than 3 reads multi-band TIFF as it is"""
    range: tuple[float, float] | None = None
    """values of 16-bit or float images that become 0 and 255; None: the file's own type or extremes"""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """subtracted from images in [0, 1]; published recipes: ImageNet's"""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """then divided by this"""
    bad_limit: float = 0.01
    """fraction of unreadable files that is skipped and listed before the run stops"""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedules."""

    name: Literal["adamw", "lars", "sgd"] = "adamw"
    """update rule"""
    base_lr: float = 1.5e-4
    """learning rate for `base_batch` images; lr = base_lr * batch / base_batch"""
    base_batch: int | None = 256
    """images that base_lr is meant for; None: base_lr is absolute (BEiT)"""
    min_lr: float = 0.0
    """where the cosine ends"""
    warmup_epochs: float = 40.0
    """epochs of linear warm-up"""
    warmup_fraction: float | None = None
    """warm-up as a part of the run instead, so that it fits any length; self-sizing recipes 0.05"""
    schedule: Literal["epoch", "step", "constant"] = "epoch"
    """epoch: MAE's fractional epochs; step: the DINO/iBOT/BEiT table; constant: neither warm-up nor decay"""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's averages; MAE pre-training (0.9, 0.95), all else (0.9, 0.999)"""
    eps: float = 1e-8
    """Adam's epsilon"""
    momentum: float = 0.9
    """of SGD and LARS"""
    weight_decay: float = 0.05
    """decoupled (AdamW); only for groups that decay"""
    weight_decay_end: float | None = None
    """cosine to this value (iBOT 0.4); None: constant"""
    clip: float | None = None
    """largest gradient norm; None: no clipping (MAE)"""
    clip_by: Literal["global", "tensor"] = "global"
    """global: one norm over all parameters (BEiT); tensor: each its own (iBOT)"""

    def lr(self, batch: int) -> float:
        """The peak learning rate for a global batch, in the papers' linear rule."""
        return self.base_lr if self.base_batch is None else self.base_lr * batch / self.base_batch

    def lr_schedule(self, batch: int) -> Schedule:
        if self.schedule == "constant":
            return Constant(self.lr(batch))
        kind = WarmupCosine if self.schedule == "epoch" else StepCosine
        return kind(self.lr(batch), self.warmup_epochs, self.min_lr, warmup_fraction=self.warmup_fraction)

    def warm(self, at: Progress) -> bool:
        """Whether the warm-up lies behind."""
        part = self.warmup_fraction
        return at.epoch >= (self.warmup_epochs if part is None else part * at.epochs)

    def weight_decay_schedule(self) -> Schedule:
        if self.weight_decay_end is None:
            return Constant(self.weight_decay)
        return StepCosine(self.weight_decay, 0.0, self.weight_decay_end)


@dataclass(frozen=True)
class RunConfig:
    """One training run, whole."""

    # --- what changes results ---
    recipe: str
    """the recipe's name"""
    method: MethodConfig
    """the method and its networks, views and masks"""
    data: DataConfig
    """the images"""
    optim: OptimConfig
    """the optimizer"""
    batch: int = 4096
    """images an optimizer step, over all devices; accumulation is derived"""
    epochs: float | None = 800.0
    """passes over the data; exactly one of epochs and steps is given"""
    steps: int | None = None
    """optimizer steps"""
    budget: str | None = None
    """what `steps` was made from: 20m, 2h, '500000 images', '1e6 gflop'; measured once, at the first start"""
    seed: int = 0
    """names every random draw of the run"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: autocast over fp32 weights; auto: bf16 where the hardware multiplies it, else fp32"""
    init_from: str | None = None
    """weights to start from (--from): RUN or RUN@STEP"""

    # --- what only changes speed, or what is kept: may differ on resume ---
    device_batch: int | None = None
    """images a forward pass on one device; None: the largest divisor that fits, found by trial"""
    workers: int = -1
    """loader processes per device; -1: from the number of processors"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """how several processes share the work: ddp copies the weights, fsdp (FSDP2) shards them"""
    compile: Literal["auto", "on", "off"] = "auto"
    """on: torch.compile; auto: that on a GPU, for runs long enough to repay it, and on a CPU kernels of our
    own in bf16; off: neither"""
    recompute: Literal["on", "off"] = "off"
    """make a block's activations again in the backward pass: less memory, a third more time, the same bits"""
    save_every: str = "20m"
    """checkpoint interval: steps (500) or minutes (20m); always at the end and on a signal"""
    eval_every: str | None = None
    """interval of k-NN and linear evaluation on labelled data; None: never while training"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    keep: int = 3
    """newest checkpoints that stay on disk"""
    out: str = ""
    """run directory"""


SPEED_FIELDS = frozenset(
    {
        "device_batch",
        "workers",
        "device",
        "parallel",
        "compile",
        "recompute",
        "save_every",
        "eval_every",
        "log_every",
        "keep",
        "out",
        "data.test",
    }
)
"""RunConfig fields that may differ when a run is continued."""


def parse_interval(text: str) -> tuple[Literal["steps", "seconds"], float]:
    """Read `500` (steps), `20m`, `2h` or `30s`.

    Raises:
        ValueError: the text is none of these, or not positive.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf or (not unit and value != int(value)):
        raise ValueError(f"interval {text!r}: give steps (500) or a time (30s, 20m, 2h)")
    return ("seconds", value * units[unit]) if unit else ("steps", value)


def to_json(value: Any) -> Any:
    """Turn nested dataclasses into plain JSON; each object carries its class as `module:Class`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": f"{cls.__module__}:{cls.__qualname__}", **fields}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def from_json(value: Any, hint: Any = Any) -> Any:
    """Rebuild what `to_json` wrote, tuples included.

    Safe by default: a class is looked up in this package, or in a module that the program has
    already imported; nothing else is imported because a file says so.

    Raises:
        ValueError: the class is unknown here, or a field is missing from or foreign to it.
    """
    if isinstance(value, dict) and "class" in value:
        cls = _find_class(value["class"])
        hints = typing.get_type_hints(cls)
        given = {k: v for k, v in value.items() if k != "class"}
        foreign = given.keys() - {f.name for f in dataclasses.fields(cls)}
        if foreign:
            raise ValueError(f"config: {cls.__name__} has no field {', '.join(sorted(foreign))}")
        missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in given]
        if missing:
            raise ValueError(f"config: {cls.__name__} needs a value for {', '.join(missing)}")
        return cls(**{k: from_json(v, hints[k]) for k, v in given.items()})
    if isinstance(value, list):
        return tuple(from_json(v, h) for v, h in zip(value, _item_hints(hint, len(value)), strict=True))
    return value


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _find_class(name: str) -> type:
    module, _, qualname = name.partition(":")
    package = __name__.partition(".")[0]
    if module == package or module.startswith(package + "."):
        with contextlib.suppress(ModuleNotFoundError):  # a class of another version: refused below
            importlib.import_module(module)
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"config: {name!r} is no config class of an imported module; import {module} first")
    return found


def _item_hints(hint: Any, length: int) -> list[Any]:
    """The annotation of each item of a tuple, looking through unions."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is tuple:
            args = typing.get_args(option)
            return [args[0]] * length if args[-1] is Ellipsis else list(args)
    return [Any] * length


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """List the dotted names of fields in which two configs differ, with both values."""
    if type(a) is type(b) and dataclasses.is_dataclass(a):
        return [
            line
            for f in dataclasses.fields(a)
            for line in differences(getattr(a, f.name), getattr(b, f.name), f"{prefix}{f.name}.")
        ]
    tuples = isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b)
    if tuples and any(map(dataclasses.is_dataclass, a)):
        pairs = enumerate(zip(a, b, strict=True))
        return [line for i, (x, y) in pairs for line in differences(x, y, f"{prefix}{i}.")]
    return [] if a == b else [f"{prefix.rstrip('.')}: {a!r} -> {b!r}"]
