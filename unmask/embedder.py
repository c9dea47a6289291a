"""`unmask.Embedder`: images to features as a scikit-learn transformer.

make_pipeline(Embedder("runs/mine"), StandardScaler(), LogisticRegression()).fit(paths, labels)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from .data.folder import Folder
from .data.record import Record, Source
from .evaluate.features import Pool, extract
from .models import open_models

Images = Sequence[Any] | np.ndarray
"""paths, or uint8 images: [S H W C], [S H W], or a sequence of [H W C] of any sizes"""


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features of a frozen ViT: the crop and preparation of its training, no masks, the final norm.

    Nothing is learned from the images; `fit` opens the model. (`untrained:RECIPE` is sized by them.)

    Args:
        model: MODEL: a run, a checkpoint, an exported folder. The default is a small network that nobody
            trained: it needs no file, and any trained one is better.
        pool: cls (the class token), mean (of the patches), or both, one after the other.
        batch: images a forward pass.
        workers: decoding processes; -1: up to four, none for small sets.
        device: where to compute.
        heads: attention heads, where the weights do not tell them; what was taken for granted is said on
            standard error.
    """

    def __init__(self, model="untrained:mae-nano", *, pool="cls", batch=256, workers=-1, device="cpu", heads=None):
        # without types: scikit-learn wants nothing judged before `fit`
        self.model = model
        self.pool = pool
        self.batch = batch
        self.workers = workers
        self.device = device
        self.heads = heads

    def fit(self, X: Images, y: Any = None) -> "Embedder":
        """Open the model.

        Raises:
            ValueError, FileNotFoundError: there is no such model, pooling or kind of images.
        """
        pools = self._pools()
        (opened,) = open_models([self.model], as_source(X), device=self.device, heads=self.heads)
        if opened.backbone is None:
            raise ValueError(f"{self.model} has no network; give a run, a checkpoint or untrained:RECIPE")
        self.opened_, self.backbone_ = opened, opened.backbone
        self._n_features_out = len(pools) * opened.backbone.config.width
        return self

    def transform(self, X: Images) -> Float[np.ndarray, "S _"]:
        """Encode images, fp32 [S D], or [S 2D] of both poolings.

        Raises:
            NotFittedError: `fit` comes first.
            ValueError: an image cannot be read: every image has its row, none is left out.
        """
        check_is_fitted(self)
        source, model, pools = as_source(X), self.opened_, self._pools()
        found = extract(
            self.backbone_, source, size=model.size, mean=model.mean, std=model.std, channels=model.channels,
            value_range=model.value_range, pools=pools, device=self.device, batch=self.batch, workers=self.workers,
        )  # fmt: skip
        if found.skipped:
            raise ValueError(
                f"{len(found.skipped)} of {len(source)} images cannot be read, the first: {found.skipped[0]}; "
                f"leave them out"
            )
        return np.concatenate([found.values[name] for name in pools], axis=1)

    def _pools(self) -> tuple[Pool, ...]:
        known: dict[str, tuple[Pool, ...]] = {"cls": ("cls",), "mean": ("mean",), "both": ("cls", "mean")}
        if self.pool not in known:
            raise ValueError(f"pool={self.pool!r}: give cls, mean or both")
        return known[self.pool]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


class Arrays:
    """Ready pixels as a source."""

    name: str = "arrays"
    classes: list[str] | None = None
    labels: np.ndarray | None = None

    def __init__(self, images: Sequence[np.ndarray]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Record:
        image = np.require(self.images[i], requirements="W")  # torch warns of memory that it must not write
        return Record(image[..., None] if image.ndim == 2 else image, -1, f"#{i}")


def as_source(X: Images) -> Source:
    """Read paths or uint8 images as a source, in their order.

    Raises:
        ValueError: they are something else; says what they may be.
    """
    wanted = "give paths of images, or uint8 images [S H W C]"
    if isinstance(X, (str, Path)):
        raise ValueError(f"{X} is one path; {wanted}: [{str(X)!r}]")
    if len(X) == 0:
        raise ValueError(f"no images; {wanted}")
    if all(isinstance(each, (str, Path)) for each in X):
        return Folder("paths", files=[str(path) for path in X])
    if isinstance(X, np.ndarray) and X.dtype == np.uint8 and X.ndim in (3, 4):
        return Arrays(list(X))
    arrays = isinstance(X, np.ndarray) is False and all(isinstance(each, np.ndarray) for each in X)
    if arrays and all(each.dtype == np.uint8 and each.ndim in (2, 3) for each in X):
        return Arrays(list(X))
    what = f"{X.dtype} {list(X.shape)}" if isinstance(X, np.ndarray) else f"{len(X)} x {type(X[0]).__name__}"
    raise ValueError(f"X is {what}; {wanted}")
