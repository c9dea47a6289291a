"""The options that every training verb takes, and how they change a recipe's configuration."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .config import RunConfig, parse_interval
from .evaluate.shots import Shots
from .forecast import read_budget
from .stages import with_tokenizer


@dataclass(frozen=True)
class Options:
    """What every training verb takes; None leaves the recipe's value."""

    out: Path | None = None
    """run directory; the same one again continues the run (default: runs/RECIPE-DATE-TIME)"""
    seed: int | None = None
    """names every random draw"""
    epochs: float | None = None
    """passes over the data; beit without a tokenizer: of each of its two stages"""
    steps: int | None = None
    """optimizer steps, instead of epochs; beit without a tokenizer: of each of its two stages"""
    budget: str | None = None
    """length by cost: 20m or 2h (measured once, then fixed), '500000 images', '1e6 gflop'; beit's stages: half each"""
    batch: int | None = None
    """images an optimizer step, over all devices"""
    device_batch: int | None = None
    """images a forward pass on one device (default: found by measuring one)"""
    from_: str | None = None
    """weights to start from: a RUN, a checkpoint file, timm:NAME, hf:NAME (--from)"""
    heads: int | None = None
    """attention heads of a file that --from names, where it does not tell them"""
    tokenizer: str | None = None
    """BEiT: the tokenizer to predict, a finished dvae run or DALL-E's encoder.pkl (default: trained first)"""
    test: str | None = None
    """labelled images for --eval-every"""
    shots: str | None = None
    """train on few labelled images, those that evaluate draws by this seed: 1%, 10% or 5 (a class)"""
    labels: Literal["auto", "folder", "none"] | None = None
    """where labels come from"""
    channels: int | None = None
    """image channels; other than 3 reads multi-band TIFF"""
    range: tuple[float, float] | None = None
    """values of 16-bit or float images that become black and white (default: each file's own extremes)"""
    save_every: str | None = None
    """checkpoint interval: 500 (steps) or 20m"""
    eval_every: str | None = None
    """interval of k-NN and linear evaluation: 500 (steps) or 20m"""
    workers: int | None = None
    """loader processes a device"""
    device: str | None = None
    """auto, cpu, cuda or cuda:1"""
    precision: Literal["auto", "bf16", "fp32"] | None = None
    """bf16 where the hardware has it, or fp32"""
    compile: Literal["auto", "on", "off"] | None = None
    """on: torch.compile; auto: that on a GPU, kernels of our own on a CPU; off: neither"""
    recompute: Literal["on", "off"] | None = None
    """keep one activation a block and make the rest again: less memory, a third more time"""


def apply(options: Options, config: RunConfig) -> RunConfig:
    """Put what was asked for in place of the recipe's values."""
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    given = {name: value for name, value in given.items() if value is not None}
    lengths = [name for name in ("epochs", "steps", "budget") if name in given]
    if len(lengths) > 1:
        raise ValueError(f"--{lengths[0]} and --{lengths[1]} both say how long to train; give one")
    data = {name: given.pop(name) for name in ("test", "labels", "channels", "range", "shots") if name in given}
    if "from_" in given:
        given["init_from"] = given.pop("from_")
    if "tokenizer" in given:
        config = dataclasses.replace(config, method=with_tokenizer(config.method, given.pop("tokenizer")))
    given.pop("out", None)
    given.pop("heads", None)
    if lengths == ["budget"]:
        settled = config.steps if config.budget == given["budget"] else None
        given |= {"epochs": None, "steps": settled}
    elif lengths:
        given |= {"epochs": None, "steps": None, "budget": None} | {lengths[0]: given[lengths[0]]}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data), **given)


def check(config: RunConfig) -> None:
    """Refuse numbers that cannot be meant, before the first of many seconds is spent.

    Raises:
        ValueError: names the option, its value and what it may be.
    """
    counts = {
        "--epochs": config.epochs,
        "--steps": config.steps,
        "--batch": config.batch,
        "--device-batch": config.device_batch,
        "--log-every": config.log_every,
        "--keep": config.keep,
        "--channels": config.data.channels,
    }
    for name, value in counts.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} {value}: give a positive number")
    if config.data.range is not None and not config.data.range[0] < config.data.range[1]:
        low, high = config.data.range
        raise ValueError(f"--range {low:g} {high:g}: give the lower value first, as in --range 0 4095")
    if not 0 <= config.data.bad_limit <= 1:
        raise ValueError(f"--data.bad-limit {config.data.bad_limit}: give a fraction in [0, 1]")
    for name, interval in (("--save-every", config.save_every), ("--eval-every", config.eval_every)):
        try:
            parse_interval(interval or "1")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if config.data.shots is not None:
        Shots.parse(config.data.shots)
    if config.budget:
        read_budget(config.budget)
