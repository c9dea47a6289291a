"""Bytes to uint8 pixels, with one rule for every odd kind of image.

- JPEG, PNG, WebP, TIFF and BMP; of several frames or pages, the first. Nothing else is tried.
- The header is read first: a picture of more than 178,956,970 pixels is refused before any is decoded.
- EXIF orientation is applied: pixels come upright.
- Transparency (RGBA, gray with alpha, palette with a transparent color) is composited on white.
- Gray, bilevel, palette and CMYK become RGB by Pillow's conversion; with channels=1 all become gray
  (ITU-R 601 luma).
- 16-bit, 32-bit and float values become 0...255 linearly: from `value_range` where it is given, else
  from the file's own smallest and largest finite value, over all its channels but alpha, which has its
  type's range. NaN becomes 0. 8-bit values stay as they are.
- channels other than 1 and 3 read multi-band TIFF by tifffile: interleaved or planar samples, or one
  page a band; the count must be `channels`.
- Whatever is broken (empty, cut short, not an image) is a BadImage that says why; no warning escapes.

RGB and gray JPEG take a fast path: simplejpeg where it is installed, else torchvision. Both are
libjpeg-turbo, as Pillow is; a file they refuse gets a second hearing by Pillow. With simplejpeg a JPEG that will be
made smaller anyway can be decoded at a half, a quarter or an eighth of its size: the low frequencies of its blocks.
"""

import io
import logging
import warnings
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from .record import MAX_BYTES, BadImage, Record

try:
    import simplejpeg
except ImportError:  # the extra [fast]
    simplejpeg = None

MAX_PIXELS = 178_956_970
"""Pillow's own hard limit; a larger one would not be reached"""

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")  # nothing that runs a program, as EPS would
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 258
_TURNS = {  # EXIF orientation: [H W C] -> upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
_FRAMES = {0xC0, 0xC1, 0xC2}  # of JPEG: baseline, extended, progressive
_PLAIN_MARKERS = _FRAMES | {0xC4, 0xDB, 0xDD, 0xFE} | set(range(0xE0, 0xF0)) - {0xE1}  # in 0xE1 are Exif and XMP
_HEADER = 1 << 20  # bytes in which a plain file's size is found: a hostile one has segments without end
_LYING = {5, 6, 7, 8}  # orientations in which rows are stored as columns


def decode(
    record: Record,
    *,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
    divisor: Callable[[tuple[int, int]], int] | None = None,
) -> UInt8[Tensor, "C H W"]:
    """Decode one record by the rules above.

    Args:
        record: bytes of a file, or ready pixels uint8 [H W C].
        channels: C; 1 and 3 convert, any other number must be the file's own.
        value_range: values of 16-bit and float images that become 0 and 255; None: the file's extremes.
        max_pixels: largest H * W.
        divisor: asked, where the file can be decoded at a part of its size, with that size (H, W), upright:
            1, 2, 4 or 8.
    Returns:
        pixels, channels last in memory (what cropping and resizing want); H and W divided by `divisor`'s answer and
        rounded up, if it was asked and the file allows it.
    Raises:
        BadImage: the record cannot be decoded, is too large, or has another number of channels.
    """
    if isinstance(record.data, np.ndarray):
        pixels = record.data
        if pixels.shape[2] != channels:
            pixels = _convert_array(pixels, channels)
    else:
        try:
            pixels = _read_plain(record.data, channels, max_pixels, divisor)
            if pixels is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    pixels = _read(record.data, channels, value_range, max_pixels, divisor)
        except Exception as error:  # codecs raise a dozen kinds on broken bytes
            raise BadImage(record.key, str(error).partition("\n")[0] or type(error).__name__) from error
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _read_plain(data: bytes, channels: int, max_pixels: int, divisor) -> UInt8[np.ndarray, "H W C"] | None:
    """The short way for most photographs: JPEGs that are not to be turned. None: to be read by `_read`."""
    able = simplejpeg is not None and channels in (1, 3) and len(data) <= MAX_BYTES
    size = plain_size(data) if able else None
    if size is None:
        return None
    _check(size, max_pixels)
    return _read_jpeg(data, channels, size, divisor)


def plain_size(data: bytes) -> tuple[int, int] | None:
    """(H, W) of a JPEG of 8 bits, gray or of three components, in whose header nothing can stand about an orientation.

    None for all else. Pillow's reading of the same header takes ten times as long. Source: ITU-T T.81, annex B.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= min(len(data), _HEADER) and data[at] == 0xFF and (marker := data[at + 1]) in _PLAIN_MARKERS:
        if marker in _FRAMES:
            height, width = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
            return (height, width) if height * width and data[at + 4] == 8 and data[at + 9] in (1, 3) else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _check(size: tuple[int, int], max_pixels: int) -> None:
    height, width = size
    if height * width > max_pixels:
        raise ValueError(f"{width} x {height} pixels, more than the limit of {max_pixels}")


def _read(data: bytes, channels: int, value_range, max_pixels: int, divisor) -> UInt8[np.ndarray, "H W C"]:
    if not data:
        raise ValueError("an empty file (0 bytes)")
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes, more than the limit of {MAX_BYTES}")
    is_tiff = data[:4] in _TIFF
    if channels not in (1, 3):
        if not is_tiff:
            raise ValueError(f"{channels} channels are read from TIFF only, and this is none")
        return _bands(*_read_tiff(data, channels, max_pixels), channels, value_range)
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError:
        if is_tiff:  # float RGB and other kinds that Pillow does not know
            return _bands(*_read_tiff(data, channels, max_pixels), channels, value_range)
        raise ValueError("not an image that is known here (JPEG, PNG, WebP, TIFF, BMP)") from None
    _check((image.height, image.width), max_pixels)
    if is_tiff and max(_bits(image)) > 8 and image.mode in ("RGB", "RGBA", "RGBX"):
        return _bands(*_read_tiff(data, channels, max_pixels), channels, value_range)  # Pillow keeps 8 bits
    if is_tiff:
        image.load()  # turns it upright and forgets the orientation
    turn = _orientation(image)
    pixels = None
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        pixels = _read_jpeg(data, channels, (image.height, image.width), divisor, lying=turn in _LYING)
    elif image.format == "PNG" and data[24] == 16 and data[25] != 0:  # 16-bit color: Pillow keeps 8 bits
        pixels = _convert_array(_levels(_read_png16(data), channels, value_range), channels)
    elif image.mode[0] in "IF":
        pixels = _convert_array(to_uint8(np.asarray(image)[..., None], value_range), channels)
    if pixels is None:
        pixels = _convert(image, channels)
    return upright(pixels, turn)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1...8) of [H W C]; unknown values mean upright."""
    return _TURNS[orientation](pixels) if orientation in _TURNS else pixels


def to_uint8(values: np.ndarray, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Map values linearly to 0...255; 8-bit ones stay. A constant image becomes 0."""
    if values.dtype in (np.uint8, np.bool_):
        return values.astype(np.uint8) * (255 if values.dtype == np.bool_ else 1)
    low, high = value_range or _extremes(values)
    levels = np.zeros(values.shape, np.uint8)
    if high <= low:
        return levels
    for row, line in zip(levels, values, strict=True):  # by lines: a large image in float64 is eight times itself
        exact = np.nan_to_num(line.astype(np.float64), nan=low, posinf=high, neginf=low)
        row[...] = np.clip((exact - low) * (255.0 / (high - low)), 0, 255).round()
    return levels


def _extremes(values: np.ndarray) -> tuple[float, float]:
    """The smallest and largest finite value; (0, 0) where there is none."""
    if values.size == 0:
        return 0.0, 0.0
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0, 0.0
    return float(values.min(where=finite, initial=np.inf)), float(values.max(where=finite, initial=-np.inf))


def _levels(values: np.ndarray, channels: int, value_range: tuple[float, float] | None) -> np.ndarray:
    """To uint8; of what becomes RGB or gray, alpha (the last of 2 or 4) keeps its type's own range."""
    if channels not in (1, 3) or values.shape[2] not in (2, 4) or values.dtype == np.uint8:
        return to_uint8(values, value_range)
    opaque = float(np.iinfo(values.dtype).max) if values.dtype.kind in "iu" else 1.0
    parts = to_uint8(values[..., :-1], value_range), to_uint8(values[..., -1:], (0.0, opaque))
    return np.concatenate(parts, axis=2)


def _convert(image: Image.Image, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """To RGB or gray by Pillow, transparency on white."""
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise ValueError(f"{len(image.getbands())} channels, where {channels} are asked for")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert(mode))
    return pixels if channels == 3 else pixels[..., None]


def _read_jpeg(
    data: bytes, channels: int, size: tuple[int, int], divisor, lying: bool = False
) -> UInt8[np.ndarray, "H W C"] | None:
    """Decode RGB or gray JPEG of a stored size (H, W) quickly, with sides divided; None: refused, ask Pillow."""
    by = 1 if divisor is None or simplejpeg is None else divisor(size[::-1] if lying else size)
    try:
        if simplejpeg is not None:
            height, width = (-(-side // by) if by > 1 else 0 for side in size)  # 0: as it is
            mode = "RGB" if channels == 3 else "GRAY"
            return simplejpeg.decode_jpeg(data, mode, min_height=height, min_width=width, min_factor=by)
        from torchvision.io import ImageReadMode, decode_jpeg

        mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
        decoded = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=mode)
        assert isinstance(decoded, Tensor)  # one image in, one out
        return decoded.permute(1, 2, 0).numpy()
    except (ValueError, RuntimeError):
        return None


def _read_png16(data: bytes) -> np.ndarray:
    """Decode PNG at its own depth, uint16 [H W S]."""
    from torchvision.io import ImageReadMode, decode_png

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_png(encoded, mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where the EXIF is damaged: the pixels may be whole."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises SyntaxError, struct.error, ...
        return 1


def _bits(image: Image.Image) -> tuple[int, ...]:
    return tuple(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,)))


def _read_tiff(data: bytes, channels: int, max_pixels: int) -> tuple[np.ndarray, int]:
    """Read a TIFF's first image by tifffile: [H W S] of any type, and its orientation."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # a bad file is told once, as BadImage
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        extent = dict(zip(series.axes, series.shape, strict=True))
        if extent["Y"] * extent["X"] > max_pixels or series.nbytes > MAX_BYTES:
            raise ValueError(f"{extent['X']} x {extent['Y']} pixels, {series.nbytes} bytes: more than the limit")
        # samples, else channels; else pages are bands, for those who ask for several
        axes = [a for a in series.axes if a in "SC"] or [a for a in series.axes if a in "QIZT" and channels > 3]
        values = series.asarray(maxworkers=1)
        for axis in [a for a in series.axes if a not in ("Y", "X", *axes[:1])]:
            values = values.take(0, axis=series.axes.index(axis)) if extent[axis] else values
        kept = [a for a in series.axes if a in ("Y", "X", *axes[:1])]
        values = np.transpose(values, [kept.index(a) for a in ("Y", "X", *axes[:1])])
        tag = file.pages.first.tags.get(_ORIENTATION)
        return (values if axes else values[..., None]), int(tag.value) if tag else 1


def _bands(values: np.ndarray, orientation: int, channels: int, value_range) -> UInt8[np.ndarray, "H W C"]:
    pixels = _levels(values, channels, value_range)
    if channels in (1, 3) and pixels.shape[2] != channels:
        pixels = _convert_array(pixels, channels)
    if pixels.shape[2] != channels:
        raise ValueError(f"{pixels.shape[2]} bands, where {channels} channels are asked for")
    return upright(pixels, orientation)


def _convert_array(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Convert uint8 [H W S] with S = 1...4 (gray, gray and alpha, RGB, RGBA) like any other image."""
    if pixels.shape[2] > 4:
        raise ValueError(f"{pixels.shape[2]} bands, where {channels} channels are asked for")
    return _convert(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), channels)
