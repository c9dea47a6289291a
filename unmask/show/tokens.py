"""What a tokenizer makes of images, and what BEiT makes of the tokens.

Of a discrete VAE: the image, its tokens as a map, what they decode to, and the codes it used most. Of
BEiT: the image, what was hidden, the predicted tokens decoded, and the true ones beside them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor

from ..evaluate.features import evaluating
from ..methods.beit import BEiT
from ..methods.codec import Codec
from ..methods.codec_health import frequencies, psnr
from .grid import grid, save
from .picture import enlarge, hide, to_pictures

CODEC_COLUMNS = ("original", "tokens", "decoded", "most used")
BEIT_COLUMNS = ("image", "hidden", "predicted", "true tokens")
MOSAIC = 4
"""codes in a row and in a column of the mosaic"""
STEPS = (0.8191725134, 0.6710436067, 0.5497004779)
"""powers of 1 / 1.2207...: multiples of these, modulo 1, fill a cube evenly (Roberts 2018, the R3 sequence)"""


class CodecPanels(NamedTuple):
    """The pictures of every image, all of one size."""

    original: UInt8[np.ndarray, "B h w 3"]
    tokens: UInt8[np.ndarray, "B h w 3"]
    """a color for each id"""
    decoded: UInt8[np.ndarray, "B h w 3"]
    """the argmax ids, decoded"""
    codes: UInt8[np.ndarray, "B h w 3"]
    """the codes that the image uses most, each alone, framed in its color"""
    note: str
    """how many codes are in these images, and how well they decode"""


class Guesses(NamedTuple):
    """The four pictures of every image, and how many hidden tokens were right."""

    original: UInt8[np.ndarray, "B h w 3"]
    masked: UInt8[np.ndarray, "B h w 3"]
    """hidden patches gray"""
    predicted: UInt8[np.ndarray, "B h w 3"]
    """true tokens where the patch was visible, the most likely ones where it was hidden, decoded"""
    true: UInt8[np.ndarray, "B h w 3"]
    """all true tokens, decoded: the best that a prediction could look like"""
    accuracy: Float64[np.ndarray, "B"]
    """of the hidden tokens; nan where nothing is hidden"""
    note: str
    """the accuracy over all images, beside that of a constant guess"""


def palette(vocab: int) -> UInt8[np.ndarray, "K 3"]:
    """A color for each id: the same in every picture, and neighboring ids far apart.

    Differs from a random palette: the first colors of a larger vocabulary are those of a smaller one.
    """
    hue, saturation, value = (np.arange(1, vocab + 1)[:, None] * STEPS % 1).T
    saturation, value = 0.35 + 0.6 * saturation, 0.45 + 0.55 * value
    # HSV to RGB: each channel falls from `value` by its distance on the circle
    turn = (hue[:, None] * 6 + np.array([5.0, 3.0, 1.0])) % 6
    fall = np.clip(np.minimum(turn, 4 - turn), 0, 1)
    return np.rint(255 * value[:, None] * (1 - saturation[:, None] * fall)).astype(np.uint8)


@torch.no_grad()
def tokenize(codec: Codec, images: Float[Tensor, "B C H W"]) -> CodecPanels:
    """Encode images and decode their tokens.

    Args:
        codec: a tokenizer.
        images: in [0, 1], sides divisible by the codec's stride.
    Returns:
        four stacks of pictures, and the note.
    """
    shape = codec.grid(images)
    ids = codec.encode(images)  # [B N]
    decoded = codec.decode(ids, shape)
    original = enlarge(_pictures(images))
    colors = palette(codec.vocab)
    maps = colors[ids.cpu().numpy()].reshape(len(ids), *shape, 3)
    size = original.shape[1], original.shape[2]
    mosaics = np.stack([_mosaic(codec, row, colors, size) for row in ids])
    used = len(ids.unique())
    note = (
        f"{used} of {codec.vocab} codes in these images; decoded from the most likely code of each "
        f"{codec.stride} x {codec.stride} px at {psnr(images, decoded):.1f} dB; a code has the "
        "same color everywhere. Most used: an image's commonest codes, each decoded amid its like"
    )
    return CodecPanels(original, _fit(maps, size), enlarge(_pictures(decoded)), mosaics, note)


@torch.no_grad()
def predict(
    method: BEiT,
    images: Float[Tensor, "B C h w"],
    twins: Float[Tensor, "B C t t"],
    mask: Bool[Tensor, "B N"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Guesses:
    """Let a BEiT say which tokens stand at the hidden patches, and decode its answer.

    Args:
        method: used in evaluation mode and left as it was.
        images: normalized, on the method's device.
        twins: the same crops in [0, 1], at the tokenizer's size.
        mask: True = hidden.
        mean: of the images' normalization.
        std: likewise.
    Returns:
        four stacks of pictures, the accuracy of every image, and the note.
    """
    tokenizer, shape = method.tokenizer, method.config.grids()[0]
    assert isinstance(tokenizer, Codec)
    with evaluating(method):
        true = tokenizer.encode(twins)
        guess = method.guess(images, mask)
    mixed = torch.where(mask, guess, true)
    original = enlarge(to_pictures(images, mean, std))
    size = original.shape[1], original.shape[2]
    predicted, ideal = (_fit(_pictures(tokenizer.decode(ids, shape)), size) for ids in (mixed, true))
    right, count = ((guess == true) & mask).sum(1).double(), mask.sum(1).double()
    note = "nothing is hidden"
    if mask.any():
        constant = float(frequencies(true[mask], tokenizer.vocab).max())
        note = (
            f"{float(right.sum() / count.sum()):.1%} of {int(count.sum())} hidden tokens are right; guessing their "
            f"most frequent token everywhere would get {constant:.1%}. The last two are tokens, decoded; "
            "visible patches keep their true ones"
        )
    accuracy = (right / count).cpu().numpy()
    return Guesses(original, hide(original, mask, shape), predicted, ideal, accuracy, note)


def draw(panels: CodecPanels | Guesses, path: str | Path, *, labels: Sequence[str] = (), title: str = "") -> Path:
    """Save one row an image.

    Args:
        panels: from `tokenize` or `predict`.
        path: of the picture; the suffix chooses the format.
        labels: a name for each image; for BEiT its accuracy is written below.
        title: one line on top.
    Returns:
        the path.
    """
    rows, columns = [list(row) for row in zip(*panels[:4], strict=True)], CODEC_COLUMNS
    if isinstance(panels, Guesses):
        names = list(labels) or [""] * len(rows)
        shares = ["" if np.isnan(share) else f"{share:.0%} right" for share in panels.accuracy]
        labels = [f"{name}\n{share}".strip() for name, share in zip(names, shares, strict=True)]
        columns = BEIT_COLUMNS
    return save(grid(rows, rows=labels, columns=columns, title=title, note=panels.note), path)


def _pictures(images: Float[Tensor, "B C h w"]) -> UInt8[np.ndarray, "B h w 3"]:
    """Pictures of images in [0, 1]."""
    return to_pictures(images, (0.0,) * images.shape[1], (1.0,) * images.shape[1])


def _fit(pictures: UInt8[np.ndarray, "B _ _ 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "B h w 3"]:
    """Bring pictures to a size by repeating pixels."""
    moved = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return F.interpolate(moved, size, mode="nearest-exact").permute(0, 2, 3, 1).numpy()


def _mosaic(
    codec: Codec, ids: Int[Tensor, "N"], colors: UInt8[np.ndarray, "K 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """The codes that an image uses most, each decoded amid its like and framed in its color; white where none is."""
    (h, w), stride = size, codec.stride
    found, counts = ids.unique(return_counts=True)
    most = found[counts.argsort(dim=0, descending=True, stable=True)][: MOSAIC**2]
    fields = codec.decode(most[:, None].expand(-1, 9), (3, 3))  # a cell's looks depend on its neighbors
    cells = _pictures(fields[:, :, stride : 2 * stride, stride : 2 * stride])
    picture = np.full((h, w, 3), 255, np.uint8)
    th, tw = h // MOSAIC, w // MOSAIC
    frame, gap = max(1, th // 10), max(1, th // 20)
    for i, cell in enumerate(cells):
        top, left = i // MOSAIC * th, i % MOSAIC * tw
        picture[top + gap : top + th - gap, left + gap : left + tw - gap] = colors[int(most[i])]
        edge = gap + frame
        inner = picture[top + edge : top + th - edge, left + edge : left + tw - edge]
        inner[:] = _fit(cell[None], (inner.shape[0], inner.shape[1]))[0]
    return picture
