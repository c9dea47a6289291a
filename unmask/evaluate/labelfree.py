"""What features are like, without a label: how many directions they use, and how they lie on the sphere.

For choosing a checkpoint or an augmentation where nobody labelled anything, and for seeing a collapse
before it is complete. They compare runs of one method on one data set; across methods they mislead.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..data.record import Source
from .crops import RandomCut, sample
from .features import extract
from .metrics import Array
from .take import EvalModel

EPSILON = 1e-7
"""of RankMe, beside normalized singular values"""


def rankme(features: Float[Array, "S D"]) -> float:
    """Count the directions that features use, smoothly: exp of the entropy of their singular values.

    RankMe, Garrido et al. 2023 (arXiv:2210.02885), equation 1, on the features as they are (not centered):
    p_k = sigma_k / sum sigma + 1e-7, rank = exp(-sum p_k log p_k). Between 1 and min(S, D).

    Example:
        >>> round(rankme(torch.eye(8).repeat(3, 1)), 3)
        8.0
    """
    sigma = torch.linalg.svdvals(_matrix(features))
    return _exp_entropy(sigma / sigma.sum().clamp_min(1e-30) + EPSILON)


def effective_rank(features: Float[Array, "S D"]) -> float:
    """Count the directions in which features vary: exp of the entropy of the covariance's spectrum.

    Effective rank, Roy and Vetterli 2007, of the covariance: p_k = lambda_k / sum lambda. Unlike RankMe,
    the mean counts for nothing and a direction by its variance. Equal features have 1.
    """
    x = _matrix(features)
    variance = torch.linalg.svdvals(x - x.mean(0)).square()
    if variance.sum() <= 1e-20 * x.square().sum():
        return 1.0
    return _exp_entropy(variance / variance.sum())


def lidar(views: Float[Array, "S Q D"], *, delta: float = 1e-4) -> float:
    """Count the directions in which images differ more than views of one image do.

    LiDAR, Thilak et al. 2023 (arXiv:2312.04000), section 3: exp of the entropy of the spectrum of
    W^-1/2 B W^-1/2, where B is the covariance of the images' mean features and W that of views about
    their image's mean, plus delta on the diagonal. At most S - 1.

    Args:
        views: features of Q >= 2 random views of each of S >= 2 images.
        delta: the paper's constant.
    """
    x = torch.as_tensor(views).double()
    means = x.mean(1)
    between = torch.cov(means.T, correction=1).reshape(x.shape[-1], -1)
    spread = (x - means[:, None]).flatten(0, 1)
    within = spread.T @ spread / (x.shape[0] * (x.shape[1] - 1)) + delta * torch.eye(x.shape[-1], dtype=x.dtype)
    values, vectors = torch.linalg.eigh(within)
    root = vectors / values.sqrt() @ vectors.T
    spectrum = torch.linalg.eigvalsh(root @ between @ root).clamp_min(0)
    return _exp_entropy(spectrum / spectrum.sum()) if spectrum.sum() > 0 else 1.0


def alignment(one: Float[Array, "S D"], two: Float[Array, "S D"]) -> float:
    """How far two views of an image lie apart: mean of |x - y|^2 on the unit sphere, 0 (together) to 4.

    Wang and Isola 2020 (arXiv:2005.10242), equation 2 with alpha = 2.
    """
    return float((_sphere(one) - _sphere(two)).square().sum(1).mean())


def uniformity(features: Float[Array, "S D"], *, t: float = 2.0) -> float:
    """How evenly images lie on the sphere: log of the mean of exp(-t |x - y|^2) over pairs; lower is more even.

    Wang and Isola 2020, equation 3; t = 2 is theirs. 0 when all are at one point; in high dimensions -2 t
    is what independent directions reach.
    """
    distances = torch.nn.functional.pdist(_sphere(features)).square()
    return float(torch.logsumexp(-t * distances, 0) - math.log(len(distances)))


class LabelFree:
    """These measures on a fixed sample, while pre-training goes on without labels.

    Args:
        source: images, labelled or not.
        max_images: chosen by the seed.
        views: random crops of each (area 0.08 to 1, mirrored): the same ones every time.
        seed: names the sample and the crops.
    """

    def __init__(self, source: Source, *, max_images: int = 1000, views: int = 2, seed: int = 0):
        self.source, self.views, self.seed = sample(source, max_images, seed), views, seed

    def __call__(
        self,
        model: EvalModel,
        *,
        pools: Sequence[Literal["cls", "mean"]] = ("cls", "mean"),
        device: torch.device | str = "cpu",
    ) -> dict[str, float]:
        """Measure a model as it is now; its backbone leaves in the modes it came with.

        Returns:
            `labelfree/rankme/cls`, and so for effective-rank, lidar, alignment, uniformity and each pooling.
        """
        assert model.backbone is not None
        how: dict[str, Any] = {
            "size": model.size, "mean": model.mean, "std": model.std, "channels": model.channels,
            "value_range": model.value_range, "pools": pools, "device": device,
        }  # fmt: skip
        center = extract(model.backbone, self.source, **how).values
        cuts = [RandomCut(model.size, number, "bicubic", seed=self.seed) for number in range(self.views)]
        crops = [extract(model.backbone, self.source, **how, cut=cut).values for cut in cuts]
        found = {}
        for name in pools:
            views = np.stack([crop[name] for crop in crops], axis=1)  # [S Q D]
            found |= {
                f"labelfree/rankme/{name}": rankme(center[name]),
                f"labelfree/effective-rank/{name}": effective_rank(center[name]),
                f"labelfree/lidar/{name}": lidar(views),
                f"labelfree/alignment/{name}": alignment(views[:, 0], views[:, 1]),
                f"labelfree/uniformity/{name}": uniformity(center[name]),
            }
        return found


def _matrix(features: Float[Array, "S D"]) -> Float[Tensor, "S D"]:
    return torch.as_tensor(features).double()


def _sphere(features: Float[Array, "S D"]) -> Float[Tensor, "S D"]:
    return normalize(_matrix(features), dim=1)


def _exp_entropy(p: Float[Tensor, "K"]) -> float:
    return float(torch.special.entr(p).sum().exp())
