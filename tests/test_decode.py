"""Every odd kind of image that a folder may hold."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from unmask.data import decode as decode_function
from unmask.data.record import BadImage, Record

decode_module = __import__("unmask.data.decode", fromlist=["decode"])
RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8).astype(np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(20)[:, None] * 12, np.arange(30) * 8, 100), -1).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(values: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, **options)
    return out.getvalue()


def pixels(data: bytes, **options) -> np.ndarray:
    """Decode to [H W C]."""
    tensor = decode_function(Record(data, -1, "odd.img"), **options)
    assert tensor.dtype == torch.uint8
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_come_back_exactly(kind, options):
    assert np.array_equal(pixels(saved(Image.fromarray(RGB), kind, **options)), RGB)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_the_same_by_the_fast_path_and_by_pillow(mode, monkeypatch):
    data = saved(Image.fromarray(SMOOTH).convert(mode), "JPEG", quality=90)
    pillow = np.array(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(pixels(data).astype(int) - pillow).max() <= 2
    monkeypatch.setattr(decode_module, "simplejpeg", None)  # without the extra: torchvision
    assert np.abs(pixels(data).astype(int) - pillow).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_rotation_is_applied(orientation, kind):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(SMOOTH), kind, exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    assert np.abs(pixels(data).astype(int) - upright).max() <= 2


def test_gray_bilevel_and_palette_become_rgb():
    gray = Image.fromarray(RGB[..., 0])
    assert np.array_equal(pixels(saved(gray, "PNG")), np.repeat(RGB[..., :1], 3, 2))
    assert set(np.unique(pixels(saved(gray.convert("1"), "PNG")))) <= {0, 255}
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(pixels(saved(palette, "PNG")), np.array(palette.convert("RGB")))


def test_transparent_pixels_are_white():
    rgba = np.dstack([RGB, np.full((20, 30), 255, np.uint8)])
    rgba[:5, :, 3] = 0
    done = pixels(saved(Image.fromarray(rgba), "PNG"))
    assert (done[:5] == 255).all()
    assert np.array_equal(done[5:], RGB[5:])
    gray = np.dstack([RGB[..., 0], rgba[..., 3]])
    assert (pixels(saved(Image.fromarray(gray), "PNG"))[:5] == 255).all()
    palette = Image.fromarray((np.arange(600).reshape(20, 30) % 4).astype(np.uint8)).convert("P")
    done = pixels(saved(palette, "PNG", transparency=2))
    assert (done.reshape(-1, 3)[2::4] == 255).all()
    assert (done.reshape(-1, 3)[1::4] == 1).all()


def test_cmyk_becomes_rgb():
    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    done = pixels(saved(cmyk, "JPEG", quality=95)).astype(int)
    assert np.abs(done - SMOOTH).mean() < 6


def test_sixteen_bits_are_scaled_by_the_files_extremes_or_by_the_range_given():
    values = np.linspace(1000, 5000, 600).reshape(20, 30).astype(np.uint16)
    for data in (saved(Image.fromarray(values), "PNG"), saved(Image.fromarray(values), "TIFF"), tiff(values)):
        done = pixels(data)
        assert done.min() == 0
        assert done.max() == 255
        assert done.shape == (20, 30, 3)
        ranged = pixels(data, value_range=(0, 65535))
        assert np.abs(ranged[..., 0] - values / 257).max() <= 0.5001


def test_sixteen_bit_color_keeps_its_sixteen_bits():
    values = (np.arange(600 * 3).reshape(20, 30, 3) + 1000).astype(np.uint16)  # under 8 high bytes
    for data in (png16(values), tiff(values, photometric="rgb")):
        assert len(np.unique(pixels(data))) > 200


def test_alpha_does_not_count_among_the_extremes_of_a_file():
    color = (np.arange(600 * 3).reshape(20, 30, 3) + 1000).astype(np.uint16)
    opaque = np.dstack([color, np.full((20, 30), 65535, np.uint16)])
    for data in (png16(opaque, kind=6), tiff(opaque, photometric="rgb", extrasamples=["unassalpha"])):
        assert np.array_equal(pixels(data), pixels(png16(color)))


def test_damaged_exif_leaves_the_pixels_as_they_are():
    data = saved(Image.fromarray(SMOOTH), "JPEG", exif=b"Exif\0\0GARBAGE!")
    assert pixels(data).shape == SMOOTH.shape


def png16(values: np.ndarray, kind: int = 2) -> bytes:
    """Write 16-bit RGB (kind 2) or RGBA (6) PNG, which Pillow cannot."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_float_images_are_scaled_and_nan_is_black():
    values = np.linspace(-1, 1, 600).reshape(20, 30).astype(np.float32)
    values[3, 4] = np.nan
    done = pixels(tiff(values))
    assert done.max() == 255
    assert (done[3, 4] == 0).all()
    assert pixels(tiff(np.full((20, 30), 7.0, np.float32))).max() == 0  # constant
    color = np.linspace(0, 1, 1800).reshape(20, 30, 3).astype(np.float32)
    assert pixels(tiff(color, photometric="rgb")).shape == (20, 30, 3)


@pytest.mark.parametrize("planar", ["contig", "separate", None])
def test_multi_band_tiff_is_read_as_it_is_and_its_bands_are_counted(planar):
    bands = np.random.default_rng(1).integers(0, 256, (5, 20, 30)).astype(np.uint8)
    given = bands.transpose(1, 2, 0) if planar == "contig" else bands
    options = {} if planar is None else {"photometric": "minisblack", "planarconfig": planar}
    data = tiff(given, **options)  # None: one page a band
    assert np.array_equal(pixels(data, channels=5), bands.transpose(1, 2, 0))
    with pytest.raises(BadImage, match=r"odd.img: 5 bands, where 4 channels are asked for"):
        pixels(data, channels=4)


def test_other_channel_counts_need_a_tiff():
    with pytest.raises(BadImage, match=r"5 channels are read from TIFF only"):
        pixels(saved(Image.fromarray(RGB), "PNG"), channels=5)


def test_one_channel_is_luma():
    done = pixels(saved(Image.fromarray(RGB), "PNG"), channels=1)
    assert np.array_equal(done[..., 0], np.array(Image.fromarray(RGB).convert("L")))
    assert pixels(saved(Image.fromarray(SMOOTH), "JPEG"), channels=1).shape == (20, 30, 1)


def test_a_decompression_bomb_is_refused_by_its_header():
    head = png16(np.zeros((1, 1, 3), np.uint16))
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = head[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + head[33:]
    with pytest.raises(BadImage, match=r"pixels"):
        pixels(bomb)
    data = saved(Image.fromarray(RGB), "PNG")
    with pytest.raises(BadImage, match=r"30 x 20 pixels, more than the limit of 100"):
        pixels(data, max_pixels=100)
    with pytest.raises(BadImage, match=r"more than the limit"):
        pixels(tiff(np.zeros((5, 20, 30), np.uint8)), channels=5, max_pixels=100)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_a_bad_image_and_no_warning_escapes(kind):
    data = saved(Image.fromarray(RGB), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kept in (0, 1, 10, len(data) // 2):
            with pytest.raises(BadImage, match=r"odd.img: "):
                pixels(data[:kept])


def test_what_is_no_image_is_a_bad_image():
    for data in (b"hello " * 100, b"\0" * 5000, b"II*\0" + b"\xff" * 100, b"\xff\xd8\xff" + b"\0" * 50):
        with pytest.raises(BadImage):
            pixels(data)
    with pytest.raises(BadImage, match=r"an empty file"):
        pixels(b"")


def test_ready_pixels_pass_through():
    done = decode_function(Record(RGB.copy(), 0, "demo"))
    assert torch.equal(done, torch.from_numpy(RGB).permute(2, 0, 1))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"a photograph"}, {"dpi": (300, 300)}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_header_of_a_plain_jpeg_tells_its_size(mode, options):
    data = saved(Image.fromarray(SMOOTH).convert(mode).crop((0, 0, 31, 17)), "JPEG", **options)
    assert decode_module.plain_size(data) == (17, 31)


@pytest.mark.parametrize("kind", ["Exif", "XMP", "CMYK", "PNG", "cut", "empty"])
def test_what_is_no_plain_jpeg_is_left_to_pillow(kind):
    image, exif = Image.fromarray(SMOOTH), Image.Exif()
    exif[0x0112] = 6
    data = {
        "Exif": lambda: saved(image, "JPEG", exif=exif),
        "XMP": lambda: saved(image, "JPEG", xmp=b"<x:xmpmeta xmlns:tiff='' tiff:Orientation='6'/>"),
        "CMYK": lambda: saved(image.convert("CMYK"), "JPEG"),
        "PNG": lambda: saved(image, "PNG"),
        "cut": lambda: saved(image, "JPEG")[:30],
        "empty": bytes,
    }[kind]()
    assert decode_module.plain_size(data) is None


def test_segments_without_end_are_not_followed_to_it():
    endless = b"\xff\xd8" + b"\xff\xe0\x00\x02" * (1 << 18)
    size = b"\xff\xc0\x00\x11\x08\x00\x10\x00\x20\x03" + bytes(9)
    assert decode_module.plain_size(endless[:1002] + size) == (16, 32)
    assert decode_module.plain_size(endless + size) is None
