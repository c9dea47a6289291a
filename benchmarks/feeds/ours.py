"""Our input: `Stream` and `color`, called as the training loop calls them; decoding alone, and cropping alone."""

import torch
from race import Took, Turn
from torch.utils.data import DataLoader, Dataset

from unmask import photometry_cpu
from unmask.allocator import keep_memory
from unmask.data import Record, Source, Stream, decode, open_source
from unmask.data.stream import Samples
from unmask.views import color, crop

from .work import MEAN, STD, Gate, Work, pin


class Gated:
    """A source whose readers start together."""

    def __init__(self, data: str, gate: Gate, decoded: bool = False):
        self.source, self.gate = open_source(data, "none"), gate
        self.name, self.classes, self.labels = self.source.name, None, None
        self.ready = [self._decoded(i) for i in range(len(self.source))] if decoded else []

    def _decoded(self, i: int) -> Record:
        record = self.source[i]
        return record._replace(data=decode(record).permute(1, 2, 0).numpy())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Record:
        self.gate.enter()
        return self.ready[i] if self.ready else self.source[i]


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
        Gated(data, gate, work.decoded),
        views=work.views,
        seed=0,
        batch=work.batch,
        device_batch=work.batch,
        steps=work.images // work.batch,
        workers=work.workers,
        render=colored and photometry_cpu.does(3, torch.device("cpu")),
    )

    def turn() -> Took:
        took = Took(0)
        for (host,) in stream:
            if colored:
                for crops, plans in zip(host.crops, host.plans, strict=True):
                    color(crops, plans, MEAN, STD)
            took = gate.since()
        return took

    return turn


def make_by_torch(data: str, work: Work) -> Turn:
    """The same where OpenCV is missing."""
    photometry_cpu.cv2 = None
    return make(data, work, True)


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
    return _going_through(_Decoded(Gated(data, gate), work.images), work, gate)


class _Cropped(Dataset):
    def __init__(self, source: Source, work: Work):
        self.samples = Samples(source, work.views, (), (), 0, 3, None, False)
        self.images = work.images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, i: int) -> int:
        image, plans, _, _ = self.samples.image(i)
        return sum(crop(image, plan).shape[1] for plan in plans)


def cropping(data: str, work: Work) -> Turn:
    """What cannot be left out of views: decoding at the size they need, every crop, resized; none is kept."""
    pin(work.workers)
    keep_memory()
    gate = Gate(work.workers)
    return _going_through(_Cropped(Gated(data, gate, work.decoded), work), work, gate)


def _going_through(dataset: Dataset, work: Work, gate: Gate) -> Turn:
    def turn() -> Took:
        loader = DataLoader(dataset, work.batch, num_workers=work.workers, multiprocessing_context="fork")
        took = Took(0)
        for _ in loader:
            took = gate.since()
        return took

    return turn
