"""The index of shards: ten million records in few bytes, shared, checked, and built by several processes."""

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sources import image_cells, own_cache, picture, write_tar  # noqa: F401 - own_cache is a fixture

from unmask.data import open_source, shards
from unmask.data.cache import cached
from unmask.data.index import RECORD, Index, Part, Writer, is_sound
from unmask.data.record import LabelRows, Names, Subset
from unmask.data.sources import holdout_split, holdout_way
from unmask.data.stream import Stream
from unmask.views import View


def part(first: int, count: int, size: int, shard: int) -> Part:
    """Headers of a shard whose members all lie at the same place, named `train/0007-000123`."""
    names = np.tile(np.frombuffer(b"train/0000-000000", np.uint8), (count, 1))
    for digits, number in ((range(9, 5, -1), np.full(count, shard)), (range(16, 10, -1), np.arange(count))):
        for column in digits:
            names[:, column] += (number % 10).astype(np.uint8)
            number = number // 10
    ends = np.arange(count + 1, dtype=np.int64) * names.shape[1]
    words = [b"%d" % i for i in range(1000)]
    place = np.full(count, 512, np.int64)
    return Part(place, place * 0 + size, Names(names.reshape(-1), ends), words, (first + np.arange(count)) % 1000)


def anonymous() -> int:
    """Bytes of this process that no file backs: what it cannot share by mapping."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def read_at_random(source, answers):
    begin, rng = anonymous(), np.random.default_rng(0)
    found = [source[int(i)] for i in rng.integers(0, len(source), 500)]
    answers.put((anonymous() - begin, {record.data for record in found}, found[0].key))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork of a threaded process, as the loader does it
@pytest.mark.parametrize("each", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_thousand_shards_take_few_bytes_a_record_that_workers_share(each, tmp_path):
    data, count = picture(7), 1000
    write_tar(tmp_path / "0000.tar", {"a.png": data})
    for number in range(1, count):
        os.link(tmp_path / "0000.tar", tmp_path / f"{number:04d}.tar")
    files = sorted(tmp_path.glob("*.tar"))

    def synthesize(folder):
        with Writer(folder) as writer:
            for number in range(count):
                writer.add(number, part(number * each, each, len(data), number))
            writer.finish()

    before, begin = anonymous(), time.perf_counter()
    folder = cached("tar", files, synthesize, is_sound)
    assert anonymous() - before < 64 << 20  # one shard at a time
    written = sum(file.stat().st_size for file in folder.iterdir())
    assert written < 64 * count * each

    before, begin = anonymous(), time.perf_counter()
    source = open_source(str(tmp_path / "*.tar"))
    stream = Stream(source, views=(View(8),), seed=0, batch=16, device_batch=16, steps=100, workers=0)
    batches = iter(stream)
    first = next(batches)[0]
    assert time.perf_counter() - begin < 20  # 2 s for ten million on a quiet machine
    batches.close()
    assert holdout_way(source) == "place"
    assert len(source) == count * each
    assert anonymous() - before < 24 << 20
    assert not first.bad
    assert (first.label < 1000).all() and (first.label >= 0).all()
    assert source[12 * each + 34].key == "train/0012-000034"
    assert source[12 * each + 34].label == (12 * each + 34) % 1000

    before = anonymous()
    train, held = holdout_split(source, way="place")
    assert (len(train), len(held)) == (count * each - 10_000, 10_000)
    assert anonymous() - before < (8 << 20) + 40 * count * each  # 16: place and label; and what the allocator kept

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    worker = context.Process(target=read_at_random, args=(source, answers))
    worker.start()
    grown, seen, name = answers.get()
    worker.join()
    assert seen == {data}
    assert name.startswith("train/")
    assert grown < 8 << 20


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
def test_lists_of_labels_take_bytes_a_label_and_not_a_table_of_all_classes(tmp_path):
    each, shards_, data = 20_000, 20, picture(7)
    path = write_tar(tmp_path / "0.tar", {"a.png": data})
    rows = LabelRows.of([[999, i % 1000] for i in range(each)])

    def synthesize(folder):
        with Writer(folder) as writer:
            for number in range(shards_):
                headers = part(0, each, len(data), 0)
                writer.add(0, headers._replace(words=[], word=np.full(each, -1)), rows if number else None)
            writer.finish()

    before = anonymous()
    folder = cached("tar", [path], synthesize, is_sound)
    source = open_source(str(path))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 80 * len(source)
    assert anonymous() - before < 24 << 20  # a table would be 400 MB
    assert source.label_rows.classes == 1000
    some = Subset(source, np.array([5, each + 7, 20 * each - 1])).label_rows.dense()
    assert [np.flatnonzero(row).tolist() for row in some] == [[], [7, 999], [999]]


def test_headers_are_read_a_few_shards_ahead_in_order(tmp_path, monkeypatch):
    files = [write_tar(tmp_path / f"{i:02d}.tar", {f"{i}.png": picture(i)}) for i in range(40)]
    asked = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, context):
            super().__init__(workers)

        def submit(self, function, file):
            asked.append(file)
            return super().submit(function, file)

    monkeypatch.setattr(shards, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for taken, found in enumerate(shards._read_tars(files)):
        assert len(asked) <= taken + 2 * shards.AHEAD
        assert found.keys[0] == b"%d" % taken
    assert asked == files
    asked.clear()
    assert len(list(zip(range(3), shards._read_tars(files), strict=False))) == 3
    assert len(asked) < 3 + 2 * shards.AHEAD + 1


def test_a_record_is_32_bytes():
    assert RECORD.itemsize == 32


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "harm"),
    [("records.bin", truncate), ("records.bin", flip), ("keys.bin", flip), ("index.json", truncate),
     ("index.json", Path.unlink), ("keys.bin", Path.unlink)],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_a_damaged_index_is_built_again_under_the_feet_of_whoever_uses_it(name, harm, tmp_path, own_cache):  # noqa: F811
    path = str(write_tar(tmp_path / "s.tar", {f"{i}.png": picture(i) for i in range(5)} | {"2.cls": b"7"}))
    used = open_source(path)
    whole = [used[i] for i in range(5)]
    (folder,) = own_cache.glob("tar-*")
    copy = {file.name: file.read_bytes() for file in folder.iterdir()}
    if name == "index.json":  # of a mapped file a reader would see the harm
        harm(folder / name)
    else:
        (folder / name).rename(folder / "mapped")
        (folder / name).write_bytes(copy[name])
        (folder / "mapped").unlink()
        harm(folder / name)
    again = open_source(path)
    assert [again[i] for i in range(5)] == [used[i] for i in range(5)] == whole
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == copy


def test_parquet_bytes_cut_short_are_copied_again(tmp_path, own_cache):  # noqa: F811
    pq.write_table(pa.table({"image": image_cells([1, 2])}), tmp_path / "a.parquet")
    open_source(str(tmp_path / "a.parquet"))
    (images,) = own_cache.glob("parquet-*/images.bin")
    truncate(images)
    source = open_source(str(tmp_path / "a.parquet"))
    assert [source[i].data for i in range(2)] == [picture(1), picture(2)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_many_shards_are_read_by_several_processes_to_the_same_index(tmp_path, monkeypatch):
    for shard in range(4):
        members = {f"{shard}-{i}.png": picture(i) for i in range(3)} | {f"{shard}-1.cls": b"word%d" % (3 - shard)}
        write_tar(tmp_path / f"{shard}.tar", members)
    alone, forked = tmp_path / "alone", tmp_path / "forked"
    files = sorted(tmp_path.glob("*.tar"))
    for folder in (alone, forked):
        folder.mkdir()
        shards._index_tars(files, folder)
        monkeypatch.setattr(shards, "SHARDS_A_PROCESS", 2)
        monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert {f.name: f.read_bytes() for f in alone.iterdir()} == {f.name: f.read_bytes() for f in forked.iterdir()}
    index = Index(forked)
    assert index.classes == ["word0", "word1", "word2", "word3"]
    assert index.labels.tolist() == [-1, 3, -1, -1, 2, -1, -1, 1, -1, -1, 0, -1]
    truncate(files[3])
    os.truncate(files[3], 700)
    with pytest.raises(ValueError, match=r"3.tar: damaged or cut short"):
        shards._index_tars(files, forked)
