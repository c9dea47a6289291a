"""Segmentation from frozen patches: which class is at each pixel, by k-NN or a linear map of patch features.

Every training patch has the class that most of its pixels have. A test image's patches are scored, the
scores enlarged bilinearly to the crop, and each pixel takes the best class: the linear reading of
"linear segmentation" on frozen features, and k-NN retrieval of patches (Balazevic et al. 2023,
arXiv:2306.01667, with a majority class in place of soft ones). No other crop, scale or flip is averaged.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Num, UInt8
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch.nn.functional import interpolate

from ..data.folder import Folder
from ..data.record import Source
from ..framing import Frame, center
from ..randomness import key
from .features import Report
from .knn import KNN
from .labels import Note
from .probe import LinearProbe
from .rows import COLUMNS
from .store import Store
from .take import EvalModel, Settings, take

IGNORED = 255
"""pixels of no class"""
PATCHES = 20_000
"""training patches at most, drawn from all images by the seed"""
RESAMPLES = 2000


class Counts(NamedTuple):
    """Pixels of each test image by class."""

    right: Int[np.ndarray, "Q C"]
    """of the class and predicted so: the intersection"""
    true: Int[np.ndarray, "Q C"]
    said: Int[np.ndarray, "Q C"]

    def scores(self, weight: Num[np.ndarray, "R Q"]) -> Float[np.ndarray, "3 R"]:
        """Pixel accuracy, mean class accuracy and mean IoU, for weights of images; absent classes count in none."""
        right, true, said = (weight @ each for each in self)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall, iou = right / true, right / (true + said - right)
        iou = np.where(true > 0, iou, np.nan)  # a class that no pixel has is no class to find
        return np.stack([right.sum(1) / true.sum(1), np.nanmean(recall, 1), np.nanmean(iou, 1)])


def segment(
    models: Sequence[EvalModel],
    protocols: Sequence[str],
    sources: tuple[Source, Source],
    masks: tuple[str, str],
    how: Settings,
    *,
    store: Store | None,
    data: tuple[str, str],
    note: Note,
    progress: Callable[[str], Report] | None = None,
) -> list[dict[str, Any]]:
    """Judge frozen patches by masks.

    Args:
        models: compared on the same images.
        protocols: knn, linear.
        sources: folders of training and test images.
        masks: folders of PNG masks of the same stems: palette or gray, a pixel's value is its class, 255 none.
        how: ks, seed, device, precision, batch, workers.
        store: keeps features.
        data: hashes of the images.
        note: told what a reader must know.
        progress: as for `assess`.
    Returns:
        rows as of `evaluate`, where top1 is the part of pixels that is right and balanced the mean over
        classes, with miou, miou_low, miou_high (bootstrap over images) and task = segmentation.
    Raises:
        ValueError: no folder, a mask is missing, of another size or of another kind, or one class only.
    """
    if set(protocols) - {"knn", "linear"}:
        raise ValueError("masks turn knn and linear into segmentation; leave other protocols out")
    paths = [_paths(source, Path(folder)) for source, folder in zip(sources, masks, strict=True)]
    rows = []
    for model in models:
        if model.backbone is None:
            note("pixels have no patch tokens: left out of segmentation")
            continue
        how_taken: dict[str, Any] = {"store": store, "note": note, "progress": progress}
        parts = []
        for part, source, files, digest in zip(("train", "test"), sources, paths, data, strict=True):
            nothing = np.zeros(len(source), np.int64)
            taken = take(model, source, nothing, ["patches"], (), how, data=digest, part=part, **how_taken)
            parts.append((taken, [read_mask(files[i][0], files[i][1], model.size) for i in taken.places]))
        (train, known), (test, asked) = parts
        x, y = _patches(train.values["patches"], known, model.backbone.config.grid, how.seed)
        if len(np.unique(y)) < 2:
            raise ValueError(f"all training patches have one class, {y[0]}; give --masks-train of at least two classes")
        classes = 1 + max(int(y.max()), *(int(mask[mask != IGNORED].max(initial=0)) for mask in asked))
        for protocol in protocols:
            for k, score in _scorers(protocol, x, y, classes, how).items():
                counts = _count(test.values["patches"], asked, model.backbone.config.grid, classes, score)
                sizes = (len(known), len(asked))
                rows.append(_row(model.name, protocol, k, counts, sizes, how.seed))
    return rows


def read_mask(image: str, mask: str, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Read a mask and cut the evaluation crop out of it, by nearest pixels.

    Args:
        image: file that it belongs to.
        mask: PNG of mode P, L, 1 or I.
        size: (h, w) of the crop.
    Raises:
        ValueError: it is of another size than the image, or in color.
    """
    with Image.open(image) as picture, Image.open(mask) as drawn:
        if picture.size != drawn.size:
            raise ValueError(f"{mask}: {drawn.size} pixels, its image {picture.size}; give masks of the images' size")
        if drawn.mode not in ("P", "L", "1", "I", "I;16"):
            raise ValueError(f"{mask}: mode {drawn.mode}; save class numbers as a palette or gray PNG")
        values = np.array(drawn).astype(np.int64)
    if values.min() < 0 or values.max() > IGNORED:
        raise ValueError(f"{mask}: values {values.min()} to {values.max()}; classes are 0 to 254, and 255 for none")
    return center(torch.from_numpy(values.astype(np.uint8))[None], size, Frame("nearest"))[0].numpy()


def patch_classes(mask: UInt8[np.ndarray, "h w"], grid: tuple[int, int]) -> Int[np.ndarray, "N"]:
    """The class that most pixels of each patch have, in raster order; 255 where most have none."""
    (gh, gw), (h, w) = grid, mask.shape
    pixels = mask.reshape(gh, h // gh, gw, w // gw).swapaxes(1, 2).reshape(gh * gw, -1)
    present = np.unique(pixels)
    return present[np.stack([(pixels == each).sum(1) for each in present]).argmax(0)].astype(np.int64)


def _paths(source: Source, masks: Path) -> list[tuple[str, str]]:
    if not isinstance(source, Folder):
        raise ValueError(f"{source.name}: masks belong to a folder of images; give --train FOLDER and --test FOLDER")
    if not masks.is_dir():
        raise ValueError(f"{masks}: no folder of masks; give one with a PNG for each image of {source.name}")
    files = [os.fsdecode(os.path.join(source.root, source.names[i])) for i in range(len(source))]
    drawn = [str(masks / Path(os.fsdecode(source.names[i])).with_suffix(".png")) for i in range(len(source))]
    missing = [path for path in drawn if not Path(path).is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(drawn)} images have no mask, first {missing[0]}; add them to {masks}")
    return list(zip(files, drawn, strict=True))


def _patches(
    features: np.ndarray, masks: Sequence[np.ndarray], grid: tuple[int, int], seed: int
) -> tuple[Float[np.ndarray, "M D"], Int[np.ndarray, "M"]]:
    """Labelled patches of all training images, a sample where they are many."""
    classes = np.stack([patch_classes(mask, grid) for mask in masks])  # [S N]
    image, patch = np.nonzero(classes != IGNORED)
    if not len(image):
        raise ValueError("no training patch has a class: the masks hold 255 alone; give masks of class numbers")
    if len(image) > PATCHES:
        chosen = np.sort(key(seed, "dense").choice(len(image), PATCHES, replace=False))
        image, patch = image[chosen], patch[chosen]
    return features[image, patch].astype(np.float32), classes[image, patch]


def _scorers(protocol: str, x, y, classes: int, how: Settings) -> dict[int | None, Callable[[np.ndarray], np.ndarray]]:
    """For each k, or under None: from patches [N D] to scores [N C]."""
    if protocol == "linear":
        fitted = LinearProbe(seed=how.seed).fit(x, y)

        def linear(patches: np.ndarray) -> np.ndarray:
            scores = np.full((len(patches), classes), -np.inf, np.float32)
            scores[:, fitted.classes.numpy()] = fitted.logits(patches).log_softmax(1).numpy()
            return scores.clip(-100)

        return {None: linear}
    ks = tuple(k for k in how.ks if k <= len(x)) or (len(x),)
    bank = KNN(k=max(ks)).fit(torch.from_numpy(x).to(how.device), y, classes)
    return {k: lambda patches, k=k: bank.votes_for(patches, (k,))[k].cpu().numpy() for k in ks}


def _count(features: np.ndarray, masks, grid: tuple[int, int], classes: int, score) -> Counts:
    found = []
    for patches, mask in zip(features, masks, strict=True):
        scores = torch.from_numpy(score(patches.astype(np.float32))).T.reshape(1, classes, *grid)
        said = interpolate(scores, mask.shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        valid = mask != IGNORED
        if not valid.any():
            found.append(np.zeros((3, classes), np.int64))
            continue
        matrix = confusion_matrix(mask[valid], said[valid], labels=np.arange(classes))
        found.append(np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)]))
    return Counts(*np.stack(found, axis=1))


def _row(name: str, protocol: str, k: int | None, counts: Counts, sizes: tuple[int, int], seed: int) -> dict[str, Any]:
    n = len(counts.true)
    if not counts.true.any():
        raise ValueError("no test pixel has a class: the masks hold 255 alone; give masks of class numbers")
    top1, fair, miou = (float(value[0]) for value in counts.scores(np.ones((1, n))))
    draws = key(seed, "bootstrap", "dense").multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    draws = draws[(draws @ counts.true.sum(1)) > 0]
    accuracy, _, between = np.quantile(counts.scores(draws), (0.025, 0.975), axis=1).T
    row = dict(
        zip(COLUMNS, (name, protocol, "patches", "last", k, top1, fair, *map(float, accuracy), *sizes), strict=True)
    )
    return row | {"task": "segmentation", "miou": miou, "miou_low": float(between[0]), "miou_high": float(between[1])}
