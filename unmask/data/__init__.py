"""Images in: sources of records, decoding, and the stream of batches that training iterates over."""

from .decode import decode
from .record import BadImage, Record, Source, Subset
from .sources import holdout_split, measure_mean_std, open_source
from .stream import HostBatch, Stream

__all__ = [
    "BadImage",
    "HostBatch",
    "Record",
    "Source",
    "Stream",
    "Subset",
    "decode",
    "holdout_split",
    "measure_mean_std",
    "open_source",
]
