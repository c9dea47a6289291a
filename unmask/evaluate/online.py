"""Evaluation while pre-training goes on: few images, the same protocols, a dictionary for the log."""

from collections.abc import Sequence

import torch

from ..data.record import Source
from .crops import sample
from .labels import match_labels
from .run import judge
from .take import EvalModel, Pooling


class Online:
    """k-NN and the linear probe on a fixed sample of labelled images.

    Args:
        train: labelled images for the classifiers.
        test: labelled images to judge by.
        ks: neighbors; the first is logged as `eval/knn/...`, others as `eval/knn-K/...`. Those beyond
            the training images become all training images.
        linear: whether the linear probe runs too; some seconds a time.
        max_images: at most so many training and so many test images, chosen by the seed.
        seed: names the sample.
    Raises:
        ValueError: at once, before hours of training: no labels, one class, different classes.
    """

    def __init__(
        self,
        train: Source,
        test: Source,
        ks: Sequence[int] = (20,),
        *,
        linear: bool = True,
        max_images: int = 5000,
        seed: int = 0,
    ):
        self.train, self.test = sample(train, max_images, seed), sample(test, max_images, seed)
        self.seed, self.linear = seed, linear
        self.truth = match_labels(self.train, self.test, lambda text: None)
        images = int((self.truth[0] >= 0).sum())
        self.ks = tuple(dict.fromkeys(min(k, images) for k in ks))

    def __call__(
        self,
        model: EvalModel,
        *,
        pools: Sequence[Pooling] = ("cls", "mean"),
        device: torch.device | str = "cpu",
    ) -> dict[str, float]:
        """Judge a model as it is now; its backbone leaves in the modes it came with.

        Returns:
            top-1 in [0, 1] by `eval/knn/cls`, `eval/knn/mean`, `eval/linear/cls`, `eval/linear/mean`.
        """
        protocols = ("knn", "linear") if self.linear else ("knn",)
        rows = judge(
            model, protocols, (self.train, self.test), self.truth, pools=pools, ks=self.ks, seed=self.seed,
            device=device,
        )  # fmt: skip
        return {self._name(row): row["top1"] for row in rows}

    def _name(self, row: dict) -> str:
        protocol = row["protocol"] if row["k"] in (None, self.ks[0]) else f"knn-{row['k']}"
        return f"eval/{protocol}/{row['features']}"
