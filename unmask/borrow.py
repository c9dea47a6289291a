"""A run that begins with weights from elsewhere: sized by them, filled with them, and told what lacked."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from . import checkpoint
from .config import DataConfig, MethodConfig, OptimConfig, RunConfig
from .methods.base import Method
from .methods.beit import BEiT, BEiTConfig
from .methods.classify import Classify, ClassifyConfig
from .methods.dvae import DVAE, DVAEConfig
from .methods.ibot import IBOT, IBOTConfig
from .methods.mae import MAE, MAEConfig
from .models import exists, names_run, parse_run, read_weights, vit_of
from .positions import pair
from .run import CLASSES, Run
from .tokenizers import load as load_tokenizer
from .views import View
from .vit import ViT, ViTConfig
from .weights.adapt import fit
from .weights.load import describe
from .weights.loaded import Loaded, State


def start_from(spec: str, method: Method, heads: int | None = None) -> tuple[str, list[str]]:
    """Give a method the weights of a MODEL: all that fit, the rest freshly made and said so.

    Args:
        spec: a run (of the same method: every tensor must fit), or any file, folder or name of weights.
        method: is filled in place.
        heads: attention heads, where a file does not tell them.
    Returns:
        what the weights were, RUN@STEP for a run; and what to say.
    Raises:
        ValueError, FileNotFoundError: there is no such model, or it is of another size.
    """
    if not names_run(spec):
        loaded = read_weights(spec, heads)
        return spec, [*describe(loaded), *fill(method, loaded)]
    run, step, part = parse_run(spec)
    at = run.latest() if step is None else step
    if at is None or at not in run.steps():
        raise ValueError(f"--from {spec}: no such checkpoint; there are {', '.join(map(str, run.steps())) or 'none'}")
    name = f"{run.path}@{at}"
    if type(run.config.method) is not type(method.config):
        return name, fill(method, of_run(run, at, part))
    if part:
        raise ValueError(f"--from {spec}: all weights are taken, student's and teacher's; leave :{part} out")
    if isinstance(method, BEiT):
        lender = run.config.method
        assert isinstance(lender, BEiTConfig)
        if method.config.tokenizer_hash != lender.tokenizer_hash:
            bare = replace(of_run(run, at), beside={})
            return name, [
                *fill(method, bare)[:-1],
                "lm_head: freshly made, as it names the tokens of another tokenizer",
            ]
        method.verified = not method.config.tokenizer_hash  # what comes with the weights is checked again
    try:
        checkpoint.load(run.path, at, method, single=True)
    except ValueError as error:
        if "another architecture" not in str(error):
            raise
        if _sizes(run.config) == _sizes(method):  # another image size, or other channels
            return name, fill(method, of_run(run, at))
        raise ValueError(
            f"--from {spec}: {error}; give the recipe ({run.config.recipe}), sizes and --channels of that run"
        ) from error
    return name, []


def of_run(run: Run, step: int, part: str = "") -> Loaded:
    """The weights of one of our runs, as if from a file."""
    method, data = run.method(step), run.config.data
    vit = vit_of(method, part)
    elsewhere = ("encoder.", "vit.", "averaged.", "tokenizer.")
    beside = {n: v for n, v in method.state_dict().items() if not n.startswith(elsewhere)}
    heads = method.config.decoder_heads if isinstance(method, MAE) else 16
    looks = f"{run.path}, a {type(method).__name__}"
    file = run.path / CLASSES
    named = isinstance(method, Classify) and file.is_file()
    names = tuple(json.loads(file.read_text(encoding="utf-8"))) if named else ()
    normed = method.config.norm_pixels if isinstance(method, MAE) else None
    return Loaded(looks, vit.config, vit.state_dict(), beside, data.mean, data.std, data.range, heads, names, normed)


def shaped(config: RunConfig, loaded: Loaded) -> RunConfig:
    """Size a recipe that sizes itself by the weights that it begins with, and normalize its input as they expect.

    Args:
        config: of a recipe, for these data.
        loaded: the weights.
    Returns:
        the configuration. A method that sees some patches only (MAE) or crops of several
        sizes (iBOT) has no relative positions, and keeps its own absolute ones where the weights have none.
    """
    method, theirs = config.method, loaded.vit
    ours: ViTConfig = method.vit  # type: ignore[attr-defined]
    whole = not isinstance(method, MAEConfig | IBOTConfig)
    positions = {"pos_embed": theirs.pos_embed} if whole or theirs.pos_embed != "none" else {}
    if isinstance(method, ClassifyConfig) and theirs.pos_embed == "sincos":
        positions = {"pos_embed": "learned"}  # trained from here on (MAE's fine-tuning)
    taken = ("image_size", "patch", "width", "depth", "heads", "mlp_ratio", "pos_resize", "qkv_bias", "layer_scale")
    vit = replace(
        ours,
        **{name: getattr(theirs, name) for name in (*taken, "norm_eps", "gelu", "registers")},
        **positions,
        rel_pos=theirs.rel_pos if whole else "none",
    )
    changes = {"vit": vit, "views": tuple(_resized(view, ours, vit) for view in method.views)}
    if isinstance(method, BEiTConfig):
        changes["views"] = tuple(replace(v, twin=vit.grid[0] * method.tokenizer.stride) for v in changes["views"])
    if isinstance(method, MAEConfig) and "decoder.embed.weight" in loaded.beside:
        depth = len({name.split(".")[2] for name in loaded.beside if name.startswith("decoder.blocks.")})
        width = len(loaded.beside["decoder.embed.weight"])
        changes |= {"decoder_width": width, "decoder_depth": depth}
        changes |= {"decoder_heads": loaded.decoder_heads} if loaded.decoder_heads else {}
    data = config.data
    if len(loaded.mean) == data.channels:
        data = replace(data, mean=loaded.mean, std=loaded.std)
    return replace(config, method=replace(method, **changes), data=data)


class Backbone(Method):
    """A bare ViT in a method's place: it has pictures and features, and nothing to train with."""

    def __init__(self, vit: ViT):
        super().__init__()
        self.vit = vit

    def backbone(self) -> ViT:
        return self.vit


SHOWN = 112
"""pixels of the images that a tokenizer without a run is shown: DALL-E's for BEiT"""


class Borrowed(Run):
    """Weights from elsewhere in a run's place, for pictures."""

    def __init__(self, spec: str, config: RunConfig, made: Method):
        self.path, self.config, self.made = Path(spec), config, made

    @property
    def figures(self) -> Path:
        return Path()

    def method(self, step: int | None = None) -> Method:
        return self.made


def pictured(spec: str, what: str, heads: int | None = None) -> tuple[Run, int | None, str]:
    """A MODEL as the run that a picture is drawn of: RUN[@STEP][:part], or weights from elsewhere.

    Raises:
        ValueError: weights that this picture cannot be drawn of.
    """
    if names_run(spec) or not exists(spec):
        return parse_run(spec)
    if what == "tokens":
        return Borrowed(spec, *_tokenizer(spec)), None, ""
    loaded = read_weights(spec, heads)
    painting = what == "reconstruction"
    if painting and "decoder.embed.weight" not in loaded.beside:
        raise ValueError(
            f"{spec} is {loaded.looks}: it has no decoder to paint pixels with; train one, "
            f"unmask pretrain mae DATA --from {spec}, or load a file that has one (mae_visualize_vit_*.pth)"
        )
    if painting or what in ("attention", "patches"):
        data = DataConfig(channels=loaded.vit.channels, range=loaded.range, mean=loaded.mean, std=loaded.std)
        config, said = RunConfig("", MethodConfig(), data, OptimConfig()), describe(loaded)
        if painting:
            config, made, more = _painter(spec, loaded, config)
            said += more
        else:
            made = Backbone(loaded.build())
        for line in said:
            print(line, file=sys.stderr)
        return Borrowed(spec, config, made), None, ""
    raise ValueError(
        f"{spec} is {loaded.looks}: of weights without a run, attention, patches and an MAE's reconstruction are "
        f"drawn; for {what} make a run of them, unmask pretrain RECIPE DATA --from {spec}"
    )


def _tokenizer(spec: str) -> tuple[RunConfig, DVAE]:
    """The tokenizer of a file (tokenizers.load) as the dVAE that it was trained in, and its configuration."""
    codec = load_tokenizer(spec)
    side = SHOWN // codec.stride * codec.stride
    method = DVAEConfig(codec=codec.config, views=(View(side, twin=side),))
    made = method.build()
    made.codec, made.average = codec, codec
    data = DataConfig(channels=codec.channels)
    return RunConfig("", method, data, OptimConfig()), made


def _painter(spec: str, loaded: Loaded, config: RunConfig) -> tuple[RunConfig, MAE, list[str]]:
    """The MAE that a file's encoder and decoder make, its configuration, and what was taken for granted."""
    if not loaded.decoder_heads:
        raise ValueError(
            f"{spec}: nothing tells the attention heads of its decoder, and without them it paints wrongly; "
            f"go on with a run that says them, unmask pretrain mae DATA --from {spec} --method.decoder-heads N"
        )
    vit = ViTConfig(pos_embed="sincos", init="mae", channels=loaded.vit.channels)
    recipe = replace(config, method=MAEConfig(vit=vit, norm_pixels=bool(loaded.norm_pixels)))
    config = shaped(recipe, loaded)
    made = config.method.build()
    assert isinstance(made, MAE)
    notes = fill(made, loaded)
    if "decoder: from the weights" not in notes:
        raise ValueError(f"{spec}: its decoder cannot be used: {notes[-1]}")
    if loaded.norm_pixels is None:
        notes.append("it is taken to paint plain pixels, as mae_visualize_vit_*.pth does: nothing in the file tells")
    return config, made.eval(), notes


def fill(method: Method, loaded: Loaded) -> list[str]:
    """Put weights into a method; returns what was changed, left out or freshly made."""
    if isinstance(method, IBOT):
        return _fill_pair(method, loaded)
    backbone = method.vit if isinstance(method, Classify) else method.backbone()
    assert isinstance(backbone, ViT)
    state, notes = fit(loaded, backbone.config)
    _put(backbone, state)
    if isinstance(method, Classify) and method.averaged is not None:
        method.averaged.load_state_dict(backbone.state_dict())  # the average begins where the network does
    used: tuple[str, ...] = ()
    if isinstance(method, MAE):
        used = ("decoder.",)
        notes.append(_fill_part(method.decoder, _under(loaded.beside, "decoder."), "decoder", free=("pos_embed",)))
        here, there = method.config.decoder_heads, loaded.decoder_heads
        if here != there and notes[-1].endswith("from the weights"):
            notes[-1] += f", read with {here} heads; it was trained with {there or 'an unknown number'}"
    elif isinstance(method, BEiT):
        used = ("lm_head.",)
        notes.append(_fill_part(method.lm_head, _under(loaded.beside, "lm_head."), "lm_head"))
        if notes[-1].endswith("from the weights"):
            notes[-1] += "; it names the ids of the tokenizer that they were trained with"
    left = sorted({name.partition(".")[0] for name in loaded.beside if not name.startswith(used or ("\0",))})
    if left:
        notes.append(f"left out: {', '.join(left)}")
    return notes


def _fill_pair(method: IBOT, loaded: Loaded) -> list[str]:
    """Student and teacher, each from its own where the file has both."""
    notes: list[str] = []
    for role, network in (("student", method.student), ("teacher", method.teacher)):
        own = _under(loaded.beside, f"{role}.vit.")
        source = loaded
        if own:
            source = replace(loaded, state=own, vit=replace(loaded.vit, mask_token="mask_token" in own))
        state, said = fit(source, network.vit.config)
        _put(network.vit, state)
        notes += [f"{role}: {line}" for line in said] + ([] if own else [f"{role}: a copy of the backbone"])
        notes.append(_fill_part(network.head, _under(loaded.beside, f"{role}.head."), f"{role}'s head"))
    centers = {name: loaded.beside[name] for name in ("center", "patch_center") if name in loaded.beside}
    fits = {name: value for name, value in centers.items() if value.shape == getattr(method, name).shape}
    _put(method, fits)
    if len(fits) < 2:
        notes.append(f"centers: {', '.join(fits) or 'none'} from the file, the others begin at 0")
    return notes


def _fill_part(module: nn.Module, state: State, name: str, free: tuple[str, ...] = ()) -> str:
    """Put a head or decoder where it belongs, whole or not at all; says which.

    Args:
        free: tensors that follow from the grid, and keep their own values where the shape differs.
    """
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    have = {key: tuple(value.shape) for key, value in state.items()}
    if not have:
        return f"{name}: the weights have none, freshly made"
    state = {key: value for key, value in state.items() if key not in free or have[key] == own.get(key)}
    differing = sorted(key for key in own.keys() | have.keys() if key not in free and own.get(key) != have.get(key))
    if differing:
        key = differing[0]
        return f"{name}: freshly made, {key} is {have.get(key, 'absent')} there and {own.get(key, 'absent')} here"
    _put(module, state)
    return f"{name}: from the weights"


def _put(module: nn.Module, state: State) -> None:
    """Replace some tensors of a module; the others stay as they are."""
    module.load_state_dict(module.state_dict() | state)


def _under(state: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _sizes(of: RunConfig | Method) -> tuple[object, ...]:
    """What a change of image size or channels leaves alone."""
    method = of.method if isinstance(of, RunConfig) else of.config
    vit = getattr(method, "vit", None)
    if not isinstance(vit, ViTConfig):
        return (method,)
    return vit.width, vit.depth, vit.heads, vit.patch_hw, vit.mlp_ratio


def _resized(view: View, before: ViTConfig, after: ViTConfig) -> View:
    """A view of the whole image at its new size; a smaller crop by the same factor, in whole patches."""
    if pair(view.size) == before.image_hw:
        return replace(view, size=after.image_size)
    patch = after.patch_hw[0]
    size = round(pair(view.size)[0] * after.image_hw[0] / before.image_hw[0] / patch) * patch
    return replace(view, size=max(size, patch))
