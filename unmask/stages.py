"""BEiT's two stages behind one command: the tokenizer first, then the ViT that predicts its tokens.

`first_stage` says which discrete VAE to train under RUN/tokenizer where a BEiT recipe has none, and
`second_stage` what follows; `with_tokenizer` puts a tokenizer into a BEiT configuration. `keep_tokenizer` is
what a finished dVAE leaves behind, `tokenizer_record` what a BEiT run says of the tokenizer it predicts.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .checkpoint import write_atomically
from .config import MethodConfig, RunConfig, differences
from .data.decode import decode
from .data.sources import BadImage, Source
from .forecast import read_budget
from .framing import center
from .methods.base import Progress
from .methods.beit import BEiT, BEiTConfig
from .methods.codec import Codec, CodecConfig
from .methods.codec_health import diagnose, health
from .methods.dvae import DVAE
from .models import names_run, parse_run
from .positions import pair
from .run import Run
from .tokenizers import FILE, fingerprint, load, save

RECORD = "tokenizer.json"
"""what a BEiT run calls the record of its tokenizer"""
EXAMINED = 256
"""images that a tokenizer is examined on"""


def tokenizer_recipe(recipe: str) -> str | None:
    """The dVAE recipe that makes a BEiT recipe's tokenizer; None where the paper's own is meant."""
    return {"beit": "dvae", "beit-nano": "dvae-nano"}.get(recipe)


def first_stage(recipe: str, given: dict[str, Any], out: Path) -> dict[str, Any] | None:
    """What to train first, for a BEiT recipe without a tokenizer.

    Args:
        recipe: of the second stage.
        given: its options, by the names of `pretrain.Options`; those that are None left out.
        out: its run directory.
    Returns:
        recipe and options of the first stage, or None where there is nothing to do: another method, a
        tokenizer given, by itself or with a BEiT run to start from, or a run that has its own already. A
        given number of steps or epochs is for each stage; a budget is for both, half and half.
    Raises:
        ValueError: a published recipe without the tokenizer that it is about.
    """
    if not recipe.startswith("beit") or brings_tokenizer(given) or (out / "config.json").exists():
        return None
    first = tokenizer_recipe(recipe)
    if first is None:
        raise ValueError(
            f"{recipe} predicts the tokens of DALL-E's dVAE; give --tokenizer encoder.pkl (decoder.pkl beside it), "
            f"or a dvae run of your own"
        )
    passed = ("seed", "epochs", "steps", "channels", "range", "workers", "device", "precision", "save_every")
    passed += ("test", "eval_every", "compile", "shots")
    options = {name: given[name] for name in passed if name in given}
    if "budget" in given:
        options["budget"] = halved(given["budget"])
    labels = given.get("labels", "auto") if "shots" in given else "none"  # a draw of each class needs them
    return {"recipe": first, "out": out / "tokenizer", "labels": labels, **options}


def length_of_each(given: dict[str, Any]) -> list[str]:
    """A line for a person: what the length that was given means for two stages; nothing where none was given."""
    if "budget" in given:
        return [f"--budget {given['budget']}: {halved(given['budget'])} for each stage"]
    said = [f"--{name} {given[name]}" for name in ("steps", "epochs") if name in given]
    cure = "the tokenizer too; for another length train it apart (unmask pretrain dvae DATA), then give --tokenizer RUN"
    return [f"{length} for each stage, {cure}" for length in said]


def brings_tokenizer(given: dict[str, Any]) -> bool:
    """Whether options say which tokenizer to predict: by itself, or with a BEiT run to start from."""
    return "tokenizer" in given or beit_run(given.get("from_")) is not None


def beit_run(spec: str | None) -> Run | None:
    """The BEiT run that --from names; None where it names something else."""
    run = parse_run(spec)[0] if spec and names_run(spec) else None
    return run if run is not None and isinstance(run.config.method, BEiTConfig) else None


def with_borrowed_tokenizer(config: RunConfig) -> Callable[[], BEiT] | None:
    """How to build a BEiT around the tokenizer in the checkpoint that it starts from, whose file may be gone.

    Returns:
        what `prepare` takes; None where the run starts from something else, or predicts another tokenizer.
    """
    method, spec = config.method, config.init_from or ""
    run = beit_run(spec)
    lent = run.config.method if run is not None else None
    if run is None or not isinstance(method, BEiTConfig) or not isinstance(lent, BEiTConfig):
        return None
    if lent.tokenizer_hash != method.tokenizer_hash:
        return None
    lender = run.method(parse_run(spec)[1])
    assert isinstance(lender, BEiT)
    return partial(method.build, lender.tokenizer)


def second_stage(recipe: str, given: dict[str, Any], out: Path) -> dict[str, Any]:
    """What the first stage changes in the options of the second: the tokenizer that it left, half of a budget.

    Args:
        recipe: of the second stage.
        given: its options, as for `first_stage`.
        out: its run directory.
    """
    first, begun = out / "tokenizer", (out / "config.json").exists()
    if tokenizer_recipe(recipe) is None or brings_tokenizer(given) or (begun and not first.exists()):
        return {}
    changed: dict[str, Any] = {"budget": halved(given["budget"])} if "budget" in given else {}
    return changed | ({"tokenizer": str(first)} if not begun and (first / FILE).exists() else {})


def halved(budget: str) -> str:
    """Half of a budget.

    Example:
        >>> halved("20m"), halved("500000 images")
        ('10m', '250000 images')

    Raises:
        ValueError: it is no budget.
    """
    read_budget(budget)
    number = budget.strip().rstrip("abcdefghijklmnopqrstuvwxyz ")
    return f"{float(number) / 2:g}{budget.strip()[len(number) :]}"


def with_tokenizer(method: MethodConfig, path: str) -> BEiTConfig:
    """Let a BEiT configuration predict the tokens of the tokenizer at `path`.

    Raises:
        ValueError: the method is not BEiT, or there is no tokenizer at `path`.
    """
    if not isinstance(method, BEiTConfig):
        raise ValueError(f"--tokenizer {path}: only BEiT predicts tokens; leave it out")
    codec = load(path)
    return _predicting(method, codec.config, str(path), fingerprint(codec))


def with_tokenizer_of(method: MethodConfig, spec: str) -> MethodConfig:
    """Let a BEiT predict the tokens of the BEiT run that --from names; anything else stays as it is."""
    run = beit_run(spec)
    if run is None or not isinstance(method, BEiTConfig):
        return method
    theirs = run.config.method
    assert isinstance(theirs, BEiTConfig)
    return _predicting(method, theirs.tokenizer, theirs.tokenizer_from, theirs.tokenizer_hash)


def predicted(method: MethodConfig) -> list[str]:
    """A line for a person: which tokenizer a BEiT predicts."""
    if not isinstance(method, BEiTConfig) or not method.tokenizer_hash:
        return []
    return [f"predicts the {method.tokenizer.vocab} tokens of {method.tokenizer_from} ({method.tokenizer_hash})"]


def _predicting(method: BEiTConfig, codec: CodecConfig, path: str, name: str) -> BEiTConfig:
    (gh, _), (view,) = method.vit.grid, method.views
    views = (dataclasses.replace(view, twin=gh * codec.stride),)
    return dataclasses.replace(method, tokenizer=codec, tokenizer_from=path, tokenizer_hash=name, views=views)


def check_tokenizer(settled: MethodConfig, wanted: MethodConfig) -> None:
    """Refuse to change the architecture of a tokenizer that exists, or that the first stage will make.

    Args:
        settled: a configuration whose tokenizer is settled.
        wanted: what other options made of it.
    Raises:
        ValueError: they differ; lists the fields.
    """
    if not isinstance(settled, BEiTConfig) or not isinstance(wanted, BEiTConfig):
        return
    changed = "; ".join(differences(settled.tokenizer, wanted.tokenizer, "method.tokenizer."))
    if changed:
        place = f"tokenizer {settled.tokenizer_from}" if settled.tokenizer_from else "tokenizer that is trained first"
        raise ValueError(
            f"the {place} cannot be changed by options of BEiT ({changed}); leave them out, or give another with "
            f"--tokenizer PATH (unmask pretrain dvae DATA --method.codec.* makes one)"
        )


def examine(codec: torch.nn.Module, images: torch.Tensor, temperature: float) -> dict[str, float]:
    """Health of a tokenizer on held-out images, under the names of the log.

    Args:
        codec: the averaged weights, as they are now.
        images: in [0, 1], on the codec's device.
        temperature: where the run's will end.
    """
    assert isinstance(codec, Codec)
    report = health(codec, images, temperature=temperature)
    return {f"health/{name}": value for name, value in report.items() if name != "temperature"}


def held_out_images(source: Source, config: RunConfig) -> torch.Tensor:
    """The first images of a source as a tokenizer reads them: center crops in [0, 1], [B C t t]."""
    view = config.method.views[0]
    size = pair(view.twin or view.size)
    taken = []
    for i in range(len(source)):
        try:
            image = decode(source[i], channels=config.data.channels, value_range=config.data.range)
        except BadImage:
            continue
        taken.append(center(image, size))
        if len(taken) == EXAMINED:
            break
    if not taken:
        raise ValueError(f"{source.name}: none of its images can be read")
    return torch.stack(taken).float() / 255


def keep_tokenizer(run: Run, source: Source) -> list[str]:
    """Write a finished dVAE's tokenizer and its health into the run; returns warnings in words."""
    method = run.method()
    assert isinstance(method, DVAE)
    codec, steps = method.tokenizer(), run.latest() or 1
    name = save(codec, run.path)
    end = method.config.temperature(Progress(steps - 1, steps, 1.0))
    report = health(codec, held_out_images(source, run.config), temperature=end)
    _write(run.path / "health.json", {"fingerprint": name, **report})
    return diagnose(report, codec.vocab)


def tokenizer_record(method: BEiT, source: Source, config: RunConfig) -> dict[str, Any] | None:
    """What a BEiT run writes down of its tokenizer: where it is from, fingerprint, sizes and health.

    Args:
        method: what is about to be trained.
        source: images to examine a tokenizer on that has no `health.json` of its own.
        config: of the run.
    Returns:
        what `write_record` takes; None for a Tokenizer from Python that is no codec, which has no logits
        to examine.
    """
    codec, path = method.tokenizer, method.config.tokenizer_from
    if not isinstance(codec, Codec):
        return None
    name, file = fingerprint(codec), Path(path) / "health.json"
    report = json.loads(file.read_text(encoding="utf-8")) if path and file.is_file() else {}
    if report.pop("fingerprint", None) != name:
        device = next(codec.parameters()).device
        report = health(codec, held_out_images(source, config).to(device))
    return {"from": path, "fingerprint": name, "stride": codec.stride, "vocab": codec.vocab, "health": report}


def write_record(run: Run, record: dict[str, Any]) -> list[str]:
    """Keep a `tokenizer_record` with its run; returns what is wrong with the tokenizer, in words."""
    _write(run.path / RECORD, record)
    return diagnose(record["health"], record["vocab"])


def _write(file: Path, content: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(content, indent=1) + "\n")
