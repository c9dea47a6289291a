"""What is exported: the weights of a MODEL, and what is known of their making."""

from typing import NamedTuple

from torch import Tensor, nn

from ..methods.base import Method
from ..methods.beit import BEiT
from ..methods.codec import Codec
from ..methods.dvae import DVAE
from ..methods.mae import MAE
from ..models import open_model, parse_run, vit_of
from ..recipes import Facts
from ..run import Run
from ..weights.loaded import Loaded


class Subject(NamedTuple):
    """A MODEL, opened to be written for other programs."""

    name: str
    """as it was asked for"""
    weights: Loaded | Codec
    """a ViT with what was trained beside it, or the tokenizer of a dVAE run"""
    run: Run | None = None
    step: int | None = None


class Written(NamedTuple):
    """What a format says of what it wrote."""

    loading: str
    """how to load it, in Python"""
    notes: tuple[str, ...] = ()
    """what the reader must know: what was left out, and why"""


def open_subject(model: str) -> Subject:
    """Open a MODEL for export.

    Raises:
        ValueError, FileNotFoundError: there is no such model, or it has no network.
    """
    if not is_run(model):
        opened = open_model(model, Facts())
        if opened.backbone is None:
            raise ValueError(f"{model} has no network to export; give a run, a checkpoint or untrained:RECIPE")
        vit = opened.backbone
        about = {"mean": opened.mean, "std": opened.std, "range": opened.value_range}
        return Subject(model, Loaded("a ViT", vit.config, tensors(vit), **about))
    run, step, part = parse_run(model)
    step = run.latest() if step is None else step
    method = run.method(step)
    if isinstance(method, DVAE):
        return Subject(model, method.tokenizer(), run, step)
    return Subject(model, from_method(method, run, part), run, step)


def is_run(model: str) -> bool:
    """Whether a MODEL is written like a run and one lies there."""
    try:
        parse_run(model)
    except (ValueError, OSError):
        return False
    return True


def from_method(method: Method, run: Run, part: str = "") -> Loaded:
    """The weights of a run: its ViT, and the decoder (MAE) or head (BEiT) that it trained beside."""
    vit, data = vit_of(method, part), run.config.data
    beside, looks, heads = {}, f"the backbone of a {type(method).__name__} run", 16
    if isinstance(method, MAE):
        beside = {f"decoder.{name}": value for name, value in tensors(method.decoder).items()}
        looks, heads = "an MAE run with its decoder", method.config.decoder_heads
    elif isinstance(method, BEiT):
        beside = {f"lm_head.{name}": value for name, value in tensors(method.lm_head).items()}
        looks = "a BEiT run with its head over tokens"
    return Loaded(looks, vit.config, tensors(vit), beside, data.mean, data.std, data.range, heads)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's state as files want it: on the CPU, contiguous, each name with its own memory."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}
