"""The model card that goes with every export: README.md, as model hubs show it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import RunConfig
from ..framing import margin
from ..methods.codec import Codec
from ..recipes import card as recipe_card
from ..recipes import find
from ..run import Run
from ..train import total_steps
from ..weights.loaded import Loaded
from .subject import Subject, Written

FILE = "README.md"
_LIBRARY = {"hf": "transformers", "timm": "timm", "onnx": "onnx", "torch": "pytorch", "safetensors": "unmask"}


def write_card(subject: Subject, format: str, written: Written, folder: Path, license: str) -> None:  # noqa: A002
    """Write README.md: data, recipe, evaluation, preparation, license, and how to load in three lines."""
    (folder / FILE).write_text(card(subject, format, written, license), encoding="utf-8")


def card(subject: Subject, format: str, written: Written, license: str) -> str:  # noqa: A002
    """The text of the card; FOLDER in the loading lines stands for wherever the folder is."""
    head = {
        "license": license,
        "library_name": _LIBRARY[format],
        "pipeline_tag": "image-classification" if has_head(subject) else "image-feature-extraction",
        "tags": ["unmask", "discrete-vae" if isinstance(subject.weights, Codec) else "vision-transformer"],
    }
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    parts = [
        f"---\n{front}\n---\n\n# {Path(subject.name).name}\n\n{_what(subject)}",
        f"## Load\n\n```python\n{written.loading.strip()}\n```",
        "## Prepare images\n\n" + preparation(subject.weights),
        "## Training\n\n" + _training(subject),
        "## Evaluation\n\n" + _evaluation(subject.run),
        f"## License\n\n{_license(license)}",
    ]
    if isinstance(subject.weights, Loaded) and subject.weights.classes:
        listed = ", ".join(f"{i} {name}" for i, name in enumerate(subject.weights.classes))
        parts.insert(2, f"## Classes\n\n{listed}")
    if written.notes:
        parts.insert(2, "## Notes\n\n" + "\n".join(f"- {note}" for note in written.notes))
    return "\n\n".join(parts) + "\n"


def has_head(subject: Subject) -> bool:
    """Whether the network classifies."""
    return isinstance(subject.weights, Loaded) and subject.weights.vit.classes > 0


def preparation(weights: Loaded | Codec) -> str:
    """How an image becomes the network's input, in words and numbers."""
    if isinstance(weights, Codec):
        return "The encoder reads images in [0, 1]; DALL-E's kind maps them to [0.1, 0.9] first."
    h, w = weights.vit.image_hw
    scale, how = margin((h, w), weights.frame), f"({weights.frame.interpolation}, antialiased)"
    covered = f"cover {round(scale * h)} x {round(scale * w)} pixels {how}, cut the center {h} x {w}"
    mean, std = (", ".join(f"{v:.6g}" for v in values) for values in (weights.mean, weights.std))
    lines = [
        f"- Size: {covered}.",
        f"- Values: x / 255, minus ({mean}), divided by ({std}); {weights.vit.channels} channels.",
    ]
    if weights.range is not None:
        low, high = weights.range
        lines.append(f"- 16-bit and float images: {low:g} becomes 0 and {high:g} becomes 255.")
    return "\n".join(lines)


def _what(subject: Subject) -> str:
    weights = subject.weights
    if isinstance(weights, Codec):
        codec = weights.config
        return (
            f"A discrete VAE ({codec.kind}; {codec.vocab} ids, cells of {codec.stride} px), "
            f"written by unmask {__version__}."
        )
    config = weights.vit
    (h, w), (ph, pw) = config.image_hw, config.patch_hw
    sizes = f"{h} x {w} px, patches of {ph} x {pw}, width {config.width}, depth {config.depth}, {config.heads} heads"
    parts = [f"positions: {config.pos_embed}"]
    parts += [f"relative positions: {config.rel_pos}"] if config.rel_pos != "none" else []
    parts += [f"{config.registers} registers"] if config.registers else []
    parts += [f"{config.classes} classes, pooling {config.pool}"] if config.classes else []
    return f"A Vision Transformer ({sizes}; {'; '.join(parts)}), written by unmask {__version__}."


def _training(subject: Subject) -> str:
    if subject.run is None:
        return f"Not known: the weights came from `{Path(subject.name).name}`, which has no log."
    config = subject.run.config
    held = "a tenth" if config.data.holdout_by == "content" else "some"
    lines = [
        f"- Recipe: `{config.recipe}`{_paper(config)}.",
        f"- Data: `{Path(config.data.train).name or config.data.train}`, {config.data.images:,} images"
        + (f", {held} of them held out." if config.data.holdout else "."),
        f"- Length: step {subject.step:,}{_of(config)}, {config.batch:,} images a step, seed {config.seed}.",
    ]
    if config.init_from:
        lines.append(f"- Began with the weights of `{Path(config.init_from).name}`.")
    if config.data.labels != "none" and has_head(subject):
        lines.append("- Trained with labels.")
    return "\n".join(lines)


def _of(config: RunConfig) -> str:
    steps = config.steps or (total_steps(config, config.data.images) if config.data.images else None)
    return f" of {steps:,}" if steps else ""


def _paper(config: RunConfig) -> str:
    try:
        paper = recipe_card(find(config.recipe)).get("paper", "")
    except ValueError:  # a recipe of another package
        return ""
    return f" ({paper})" if paper else ""


def _evaluation(run: Run | None) -> str:
    events = [event for event in run.metrics() if any(name.startswith("eval/") for name in event)] if run else []
    if not events:
        return "None in the log. `unmask evaluate` measures; `--eval-every` does so while training."
    last = events[-1]
    rows = [(name.removeprefix("eval/"), value) for name, value in last.items() if name.startswith("eval/")]
    return f"Top-1 on held-out labelled images at step {last['step']:,}, from the run's own log:\n\n" + table(rows)


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """A Markdown table of measures and fractions."""
    lines = [f"| {name} | {100 * value:.2f} % |" for name, value in rows]
    return "\n".join(["| protocol/features | top-1 |", "|---|---|", *lines])


def _license(license: str) -> str:  # noqa: A002
    if license != "unknown":
        return f"`{license}`, as stated by whoever exported this folder."
    return "Not stated. It depends on the images and on the weights that training began with: say it with `--license`."
