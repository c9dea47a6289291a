"""`unmask evaluate MODEL... PROTOCOL... --train DATA --test DATA`."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..arguments import parse
from ..config import UsageError, to_json
from ..nearest import nearest, unknown
from .common import Common, Result, progress_line, words

PROTOCOLS = ("knn", "linear", "attentive", "finetune")
"""of `unmask evaluate`"""

ABOUT = "MODEL... PROTOCOL... --train DATA --test DATA: what the features are worth"


def run(arguments: list[str]) -> Result:
    """Judge models by labelled images and print one table."""
    import tyro

    from .. import parallel
    from ..checkpoint import write_atomically
    from ..console import Console
    from ..evaluate import difference_table, table
    from ..evaluate.shots import ALL, Shots
    from ..models import assess

    @dataclass(frozen=True)
    class Arguments(Common):
        what: tyro.conf.Positional[tuple[str, ...]] = ()
        """MODEL... PROTOCOL...: runs, files, timm:NAME, hf:NAME, untrained:RECIPE, pixels; then protocols"""
        train: str = ""
        """labelled images that the classifiers learn from"""
        test: str = ""
        """labelled images that they are judged by"""
        pool: str = ""
        """features: cls (the class token), mean (of the patches), cls+mean, or several (default: the method's own)"""
        layers: Literal["last", "best", "all", "own"] = "own"
        """last: after the final norm; best: of all blocks, chosen on held-out training images; own: the method's"""
        k: str = ""
        """neighbors of k-NN (default: 10,20,100,200)"""
        shots: str = ""
        """learn from few labels: 1%, 10% or a number a class, or all; several with commas between"""
        seeds: int = 5
        """draws of these labels; the mean and the deviation over them are reported"""
        probe: Literal["common", "mae", "beit", "ibot", "own"] = "common"
        """linear: common (one form for all methods, to compare by), a paper's form, or own (each method's)"""
        augment: int = 0
        """random crops of an image, for a paper's form (the paper: one an epoch, 90 or more); 0: the center"""
        labels: Literal["auto", "folder", "none"] = "auto"
        """where labels come from"""
        heads: int | None = None
        """attention heads of a checkpoint file that does not tell them"""
        seed: int = 0
        """of the bootstrap and the probe"""
        device: str = "auto"
        """auto, cpu, cuda or cuda:1"""
        workers: int = -1
        """decoding processes (default: up to four)"""
        masks_train: str = ""
        """folder of masks (PNG of class numbers) of the --train images: knn and linear judge segmentation"""
        masks_test: str = ""
        """folder of masks of the --test images"""
        no_cache: bool = False
        """keep no features in the cache folder"""
        epochs: float | None = None
        """of fine-tuning (default: the published setting of the method and size, or a short one of ours)"""
        lr: float | None = None
        """peak learning rate of fine-tuning (default: as epochs)"""
        save: Path | None = None
        """keep the classifier (of linear or finetune) for `unmask predict`; fine-tuning goes on from there"""
        figures: Path | None = None
        """folder for a confusion matrix of each model and protocol"""
        out: Path | None = None
        """write the results as JSON, with everything needed to repeat them"""

    given = parse(Arguments, arguments, "evaluate", ABOUT)
    models, asked = _divide(given.what)
    if not given.train or not given.test:
        raise UsageError("evaluate needs --train DATA and --test DATA, both labelled")
    pools = words(given.pool, ("cls", "mean", "cls+mean"), "--pool") if given.pool else None
    shots = tuple(given.shots.split(",")) if given.shots else ()
    for text in shots:
        if text != ALL:
            Shots.parse(text)
    if given.seeds < 1 or given.augment < 0:
        raise UsageError(
            f"--seeds {given.seeds} --augment {given.augment}: give at least one seed and no less than 0 crops"
        )
    if bool(given.masks_train) != bool(given.masks_test):
        raise UsageError("segmentation needs --masks-train FOLDER and --masks-test FOLDER, both")
    masks = (given.masks_train, given.masks_test) if given.masks_train else None
    if masks and given.figures:
        raise UsageError("--figures draws classes of images, not of pixels; leave it out with --masks-train")
    if given.augment and given.probe == "common":
        raise UsageError("--augment is for a paper's linear probe; give --probe mae, beit, ibot or own")
    try:
        ks = tuple(int(k) for k in given.k.split(",")) if given.k else None
    except ValueError:
        raise UsageError(f"--k {given.k}: give numbers, as in --k 10,20") from None
    if given.out is not None:  # told now, not after an hour
        if given.out.is_dir():
            raise UsageError(f"--out {given.out} is a folder; give a file, as in --out {given.out / 'results.json'}")
        given.out.parent.mkdir(parents=True, exist_ok=True)
    for name, value in (("--epochs", given.epochs), ("--lr", given.lr)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name} {value}: give a positive number")
    world = parallel.start(given.device)
    console = Console(world.first)
    with progress_line(console) as progress:
        found = assess(
            models, asked, given.train, given.test, labels=given.labels, pools=pools, ks=ks, seed=given.seed,
            layers=None if given.layers == "own" else given.layers, shots=shots, seeds=given.seeds, probe=given.probe,
            augment=given.augment, cache=not given.no_cache,
            masks=masks, device=world.device, heads=given.heads, workers=given.workers,
            epochs=given.epochs, lr=given.lr, save=given.save, note=console.say, progress=progress,
        )  # fmt: skip
    console.rich.print(table(found.rows, majority=found.facts["majority"]))
    if found.differences:
        console.rich.print(difference_table(found.differences))
    result: Result = {"seed": given.seed, "results": found.rows, "differences": found.differences}
    if given.figures is not None:
        from ..show import confusion

        result["figures"] = [str(path) for path in confusion.draw_all(found, given.figures)]
    if given.out is not None:
        content = {"version": __version__, "settings": to_json(dataclasses.asdict(given)), **result, **found.facts}
        write_atomically(given.out, json.dumps(content, indent=1) + "\n")
    return result


def _divide(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Split MODEL... PROTOCOL...: the first word that is a protocol ends the models."""
    first = next((i for i, word in enumerate(words) if word in PROTOCOLS), len(words))
    models, asked = tuple(words[:first]), tuple(dict.fromkeys(words[first:]))
    wrong = [word for word in asked if word not in PROTOCOLS]
    if models and not asked:  # perhaps one is a protocol, misspelt
        wrong = [word for word in models if nearest(word, PROTOCOLS) and not Path(word).exists()]
    if wrong:
        raise UsageError(f"{unknown('protocol', wrong[0], PROTOCOLS)}; models come first")
    if not models or not asked:
        raise UsageError(f"give models, then protocols ({', '.join(PROTOCOLS)}): unmask evaluate RUN knn linear ...")
    return models, asked
