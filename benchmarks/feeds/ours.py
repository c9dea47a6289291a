"""Our input: `Stream` and `color`, called as the training loop calls them, and decoding alone."""

from common import Took, Turn
from torch.utils.data import DataLoader, Dataset

from unmask.allocator import keep_memory
from unmask.data import Record, Source, Stream, decode, open_source
from unmask.views import color

from .work import MEAN, STD, Gate, Work, pin


class Gated:
    """A source whose readers start together."""

    def __init__(self, data: str, gate: Gate):
        self.source, self.gate = open_source(data, "none"), gate
        self.name, self.classes, self.labels = self.source.name, None, None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Record:
        self.gate.enter()
        return self.source[i]


def make(data: str, work: Work, colored: bool) -> Turn:
    """Batches of a folder, a tar or a parquet file.

    Args:
        data: as `unmask pretrain` takes it.
        work: to be done.
        colored: render the colors here too, on the CPU; otherwise uint8 batches are what is wanted.
    """
    pin(work.workers)
    keep_memory()
    gate = Gate(work.workers)
    stream = Stream(
        Gated(data, gate),
        views=work.views,
        seed=0,
        batch=work.batch,
        device_batch=work.batch,
        steps=work.images // work.batch,
        workers=work.workers,
    )

    def turn() -> Took:
        for (host,) in stream:
            if colored:
                for crops, plans in zip(host.crops, host.plans, strict=True):
                    color(crops, plans, MEAN, STD)
        return gate.since()

    return turn


class _Decoded(Dataset):
    def __init__(self, source: Source, images: int):
        self.source, self.images = source, images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, i: int) -> int:
        return decode(self.source[i % len(self.source)]).shape[1]


def decoding(data: str, work: Work) -> Turn:
    """What cannot be left out as long as whole images are decoded."""
    pin(work.workers)
    keep_memory()
    gate = Gate(work.workers)
    decoded = _Decoded(Gated(data, gate), work.images)

    def turn() -> Took:
        loader = DataLoader(decoded, work.batch, num_workers=work.workers, multiprocessing_context="fork")
        for _ in loader:
            pass
        return gate.since()

    return turn
