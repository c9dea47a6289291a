"""What a first look at the data tells of it."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from unmask.data.record import BadImage, Record
from unmask.data.survey import Kinds, kinds


class Files:
    """Bytes as a source; None cannot be had."""

    name, classes, labels = "files", None, None

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        if self.files[i] is None:
            raise BadImage(f"file-{i}", "gone")
        return Record(self.files[i], -1, f"file-{i}")


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(out, "JPEG")
    return out.getvalue()


def png(bits: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), 7, np.uint16 if bits == 16 else np.uint8)).save(out, "PNG")
    return out.getvalue()


def tiff(kind: str, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, np.zeros((8, 8, 3), kind), photometric="rgb", **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        ([jpeg()], Kinds(jpeg=True, deep=False)),
        ([png(8)], Kinds(jpeg=False, deep=False)),
        ([png(8), png(16), jpeg()], Kinds(jpeg=True, deep=True)),
        ([tiff("uint8")], Kinds(jpeg=False, deep=False)),
        ([tiff("uint16")], Kinds(jpeg=False, deep=True)),
        ([tiff("float32", byteorder=">")], Kinds(jpeg=False, deep=True)),
        ([np.zeros((4, 4, 3), np.uint8)], Kinds(jpeg=False, deep=False)),
        ([None, b"", b"II*\0", b"\x89PNG", jpeg()], Kinds(jpeg=True, deep=False)),
    ],
)
def test_kinds_are_told_from_headers_whatever_is_broken(files, seen):
    assert kinds(Files(files), seed=0) == seen


def test_no_more_images_are_looked_at_than_asked():
    class Counting(Files):
        looked = 0

        def __getitem__(self, i):
            self.looked += 1
            return super().__getitem__(i)

    source = Counting([png(8)] * 100)
    kinds(source, seed=0, n=10)
    assert source.looked == 10
