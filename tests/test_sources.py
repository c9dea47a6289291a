"""DATA of every kind: what is found, what it is labelled, and what is said when it is broken."""

import io
import json
import os
import tarfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unmask.data import BadImage, Record, Source, decode, holdout_split, measure_mean_std, open_source
from unmask.data.demo import CUT, GAP, PHOTOGRAPHS, Demo, part_of, photograph
from unmask.data.folder import Folder
from unmask.data.index import Writer
from unmask.data.record import Names, Subset, readable
from unmask.data.sources import holdout_places, holdout_way


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("UNMASK_CACHE", str(folder))
    return folder


def picture(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 10, 20)).save(out, "PNG")
    return out.getvalue()


def write(root, *names):
    for level, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(level))
    return root


def write_tar(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def image_cells(levels, paths=None):
    return [{"bytes": picture(n), "path": None if paths is None else paths[i]} for i, n in enumerate(levels)]


# --- folders ---


def test_a_folder_of_class_folders_has_labels_in_sorted_order(tmp_path):
    source = open_source(str(write(tmp_path, "cat/b.png", "ant/z.PNG", "cat/a.png")))
    assert isinstance(source, Source)
    assert [source[i].key for i in range(3)] == ["ant/z.PNG", "cat/a.png", "cat/b.png"]
    assert source.classes == ["ant", "cat"]
    assert source.labels.tolist() == [0, 1, 1]
    assert source[1] == Record(picture(2), 1, "cat/a.png")


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "b.png"),
        ("one/a.png", "one/b.png"),
        ("x/1/a.png", "y/1/b.png"),
        ("x/a.png", "y/b.png", "c.png"),
    ],
)
def test_a_flat_nested_or_mixed_folder_has_no_labels(tmp_path, names):
    source = open_source(str(write(tmp_path, *names)))
    assert len(source) == len(names)
    assert source.labels is None
    assert source.classes is None
    assert source[0].label == -1


def test_labels_folder_insists_and_none_ignores(tmp_path):
    root = str(write(tmp_path / "deep", "x/1/a.png", "y/2/3/b.png"))
    assert open_source(root, labels="folder").labels.tolist() == [0, 1]
    assert open_source(str(write(tmp_path / "two", "x/a.png", "y/b.png")), labels="none").labels is None
    with pytest.raises(ValueError, match=r"c.png lies in none"):
        open_source(str(write(tmp_path / "mixed", "x/a.png", "c.png")), labels="folder")
    with pytest.raises(ValueError, match=r"has no labels"):
        open_source(str(write(tmp_path / "flat", "x.png") / "x.png"), labels="folder")


def test_hidden_files_foreign_files_and_loops_of_links_are_passed_over(tmp_path):
    write(tmp_path, "x/a.png", "x/.b.png", ".hidden/c.png", "y/d.png")
    (tmp_path / "x" / "notes.txt").write_text("no image")
    (tmp_path / "y" / "up").symlink_to(tmp_path)
    (tmp_path / "y" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert len(open_source(str(tmp_path))) == 2


def test_any_file_name_can_be_read_and_printed(tmp_path):
    write(tmp_path, "with space.png", "uml\u00e4ut.png")
    (tmp_path / os.fsdecode(b"bad\xff.png")).write_bytes(picture(7))
    source = open_source(str(tmp_path))
    assert {source[i].key for i in range(3)} == {"with space.png", "uml\u00e4ut.png", "bad\\xff.png"}
    assert all(source[i].data.startswith(b"\x89PNG") for i in range(3))


def test_a_name_of_several_lines_is_listed_on_one():
    assert readable(b"a\nb\t\x1b[0m\xc3\xa9.png") == "a\\nb\\t\\x1b[0m\u00e9.png"


def test_a_tar_member_of_negative_size_is_damage_and_no_endless_loop(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.png": bytes(512), "b.png": bytes(512)})
    data = bytearray(path.read_bytes())
    head = bytearray(data[1024:1536])  # the second header
    head[124:136], head[148:156] = b"\xff" + (-1024).to_bytes(11, "big", signed=True), b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    data[1024:1536] = head
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged or cut short"):
        open_source(str(path))


def test_a_file_that_vanishes_is_a_bad_image(tmp_path):
    source = open_source(str(write(tmp_path, "a.png")))
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadImage, match=r"a.png: cannot be read"):
        source[0]


def test_missing_and_empty_data_say_what_was_looked_for(tmp_path):
    write(tmp_path, "photos/a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"did you mean .*photos"):
        open_source(str(tmp_path / "photo"))
    with pytest.raises(ValueError, match=r"no images; looked for bmp, jpeg, jpg"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"give a folder"):
        open_source("")
    write_tar(tmp_path / "empty" / "a.tar", {"a.png": picture(0)})
    with pytest.raises(ValueError, match=r"write '.*empty/\*.tar'"):
        open_source(str(tmp_path / "empty"))
    (tmp_path / "list.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"csv is no kind of data"):
        open_source(str(tmp_path / "list.csv"))


def test_image_files_are_data_too(tmp_path):
    write(tmp_path, "a.png", "b.png", "c.bmp")
    assert len(open_source(str(tmp_path / "a.png"))) == 1
    assert [r.key.rpartition("/")[2] for r in open_source(str(tmp_path / "*.png"))] == ["a.png", "b.png"]


def test_an_index_of_names_is_two_arrays():
    names = Names.of(b"%d" % i for i in range(1000))
    assert (names[0], names[999], len(names)) == (b"0", b"999", 1000)
    assert isinstance(names.blob, np.ndarray)
    assert isinstance(names.ends, np.ndarray)


# --- tar ---


def test_tar_shards_are_read_by_webdataset_names(tmp_path):
    write_tar(tmp_path / "s-0.tar", {"k0.png": picture(0), "k0.cls": b"3\n", "dir/k1.PNG": picture(1)})
    write_tar(
        tmp_path / "s-1.tar",
        {"k2.cls": b"0", "k2.png": picture(2), "k2.seg.png": picture(9), "k2.json": b"{}"},
    )
    source = open_source(str(tmp_path / "s-*.tar"))
    assert [source[i] for i in range(3)] == [
        Record(picture(0), 3, "k0"),
        Record(picture(1), -1, "dir/k1"),
        Record(picture(2), 0, "k2"),
    ]
    assert source.labels.tolist() == [3, -1, 0]
    assert source.classes is None


def test_class_words_and_a_classes_file_name_the_labels(tmp_path):
    words = write_tar(tmp_path / "w.tar", {"a.png": picture(0), "a.cls": b"dog", "b.png": picture(1), "b.cls": b"cat"})
    assert open_source(str(words)).classes == ["cat", "dog"]
    assert open_source(str(words)).labels.tolist() == [1, 0]
    (tmp_path / "n").mkdir()
    numbers = write_tar(tmp_path / "n" / "n.tar", {"a.png": picture(0), "a.cls": b"1"})
    (tmp_path / "n" / "classes.json").write_text(json.dumps(["zero", "one"]))
    assert open_source(str(numbers)).classes == ["zero", "one"]
    assert open_source(str(numbers), labels="none")[0].label == -1


def test_links_folders_and_odd_names_in_a_tar_are_harmless(tmp_path):
    with tarfile.open(tmp_path / "odd.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        kinds = [
            ("d.png", tarfile.DIRTYPE),
            ("l.png", tarfile.SYMTYPE),
            ("h.png", tarfile.LNKTYPE),
            ("f.png", tarfile.FIFOTYPE),
        ]
        for name, kind in kinds:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in (
            "../../up.png",
            "/abs.png",
            "._mac.png",
            ".png",
            "noend",
            "n" * 300 + ".png",
            "\udcff.png",
        ):
            info = tarfile.TarInfo(name)
            info.size = len(picture(1))
            tar.addfile(info, io.BytesIO(picture(1)))
    source = open_source(str(tmp_path / "odd.tar"))
    assert [source[i].key for i in range(len(source))] == ["../../up", "abs", "n" * 300, "\\xff"]
    assert all(source[i].data == picture(1) for i in range(len(source)))


@pytest.mark.parametrize("part", [0.3, 0.5, 0.77])
def test_a_tar_cut_short_is_one_clear_error_wherever_it_is_cut(tmp_path, part):
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": picture(i) * 40 for i in range(5)})
    whole = path.read_bytes().rstrip(b"\0")
    for kept in (int(len(whole) * part), int(len(whole) * part) // 512 * 512):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"damaged or cut short .* copy the shard again"):
            open_source(str(path))


def test_compressed_empty_and_foreign_tars_are_explained(tmp_path):
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.add(write(tmp_path, "a.png") / "a.png", "a.png")
    with pytest.raises(ValueError, match=r"compressed; unpack"):
        open_source(str(tmp_path / "z.tar"))
    (tmp_path / "z.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"compressed; unpack"):
        open_source(str(tmp_path / "z.tar.gz"))
    for junk in (b"", b"junk" * 1000):
        (tmp_path / "junk.tar").write_bytes(junk)
        with pytest.raises(ValueError, match=r"damaged or cut short"):
            open_source(str(tmp_path / "junk.tar"))
    with pytest.raises(ValueError, match=r"no images in 1 tar shards; looked for members key.bmp"):
        open_source(str(write_tar(tmp_path / "none.tar", {"a.txt": b"text"})))


def test_the_tar_index_is_built_once_and_again_when_the_shard_changes(tmp_path, own_cache):
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(0)})
    open_source(str(path))
    kept = {entry.name for entry in own_cache.iterdir()}
    open_source(str(path))
    assert {entry.name for entry in own_cache.iterdir()} == kept
    write_tar(path, {"a.png": picture(0), "b.png": picture(1)})
    os.utime(path, ns=(0, time.time_ns() + 10**9))
    assert len(open_source(str(path))) == 2


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(OSError, match=r"set UNMASK_CACHE"):
        open_source(str(write_tar(tmp_path / "a.tar", {"a.png": picture(0)})))


# --- parquet and Hugging Face ---


def test_parquet_finds_the_image_column_by_its_type_and_names_by_metadata(tmp_path):
    table = pa.table({"note": ["x", "y", "z"], "label": [1, 0, 1], "img": image_cells([5, 6, 7])})
    info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "a-0.parquet")
    pq.write_table(pa.table({"img": image_cells([8], ["eight.png"]), "label": [0]}), tmp_path / "a-1.parquet")
    source = open_source(str(tmp_path / "a-*.parquet"))
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, 0, 1, 0]
    assert source[2] == Record(picture(7), 1, "a-0.parquet#2")
    assert source[3] == Record(picture(8), 0, "eight.png")


def test_parquet_labels_may_be_absent_null_or_words(tmp_path):
    pq.write_table(pa.table({"image": image_cells([1])}), tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet")).labels is None
    pq.write_table(pa.table({"image": image_cells([1, 2]), "label": ["dog", None]}), tmp_path / "b.parquet")
    source = open_source(str(tmp_path / "b.parquet"))
    assert source.classes == ["dog"]
    assert source.labels.tolist() == [0, -1]


def test_parquet_rows_may_point_to_files_or_hold_nothing(tmp_path):
    write(tmp_path, "img/a.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": None, "path": "img/a.png"}, None], kind)
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert source[0].data == picture(0)
    with pytest.raises(BadImage, match=r"a.parquet#1: an empty file"):
        decode(source[1])


def test_parquet_without_images_lists_its_columns(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no image column.*text \(string\), label \(int64\)"):
        open_source(str(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"not a whole parquet file"):
        open_source(str(tmp_path / "b.parquet"))


def test_parquet_is_copied_without_holding_a_row_group(tmp_path, monkeypatch):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": bytes(20_000), "path": None}] * 2000, kind)})
    plain = {"use_dictionary": False, "compression": None, "write_batch_size": 64}
    pq.write_table(table, tmp_path / "a.parquet", **plain)
    held, add, before = [], Writer.add, pa.total_allocated_bytes()

    def watch(*given):
        held.append(pa.total_allocated_bytes() - before)
        add(*given)

    monkeypatch.setattr(Writer, "add", watch)
    source = open_source(str(tmp_path / "a.parquet"))
    assert (len(source), len(source[1999].data)) == (2000, 20_000)
    assert max(held) < 20 << 20  # of 40 MB; 256 images at a time are 5


def test_a_saved_hugging_face_folder_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra [hub]")
    features = datasets.Features({"pic": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = datasets.Dataset.from_dict({"pic": image_cells([1, 2, 3]), "label": [1, 0, 1]}, features=features)
    table.save_to_disk(tmp_path / "one")
    source = open_source(f"hf:{tmp_path / 'one'}")
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, 0, 1]
    assert source[1].data == picture(2)
    assert source[1].label == 0
    with pytest.raises(ValueError, match=r"write hf:"):
        open_source(str(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"drop the hf:"):
        open_source(f"hf:{write(tmp_path / 'plain', 'a.png')}")


def test_hf_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'unmask\[hub\]'"):
        open_source("hf:cifar10")


# --- the demonstration ---


def test_the_demo_is_fast_labelled_and_always_the_same():
    began = time.perf_counter()
    train, test = open_source("demo"), open_source("demo:test")
    assert time.perf_counter() - began < 10  # about 1 s on a quiet processor
    assert (len(train), len(test)) == (7560, 1800)
    assert train.classes == list(PHOTOGRAPHS) == sorted(PHOTOGRAPHS)
    assert np.bincount(train.labels).tolist() == [420] * 18
    assert train[421].label == 1 == train.labels[421]
    assert train[421].key == "train/brick-0001"
    assert decode(train[0]).shape == (3, 32, 32)
    assert np.array_equal(Demo("train").pixels[::500], train.pixels[::500])
    assert open_source("demo:train", labels="none")[5].label == -1


def test_the_demos_two_parts_share_no_pixel():
    for name in PHOTOGRAPHS:
        photo = photograph(name)
        left, right = part_of(photo, "train"), part_of(photo, "test")
        assert left.width == round(CUT * photo.width)
        assert left.width + GAP + right.width == photo.width
        assert min(right.size) >= 96  # the larger window fits


# --- what is asked of any source ---


def test_the_held_out_tenth_is_chosen_by_content():
    train, held = holdout_split(open_source("demo:test"))
    assert len(train) + len(held) == 1800
    assert 130 < len(held) < 230
    assert not set(train.index) & set(held.index)
    assert held.classes == train.classes
    assert held.labels[3] == held[3].label
    assert np.array_equal(holdout_split(open_source("demo:test"))[1].index, held.index)


def test_a_copy_of_a_picture_falls_on_the_same_side(tmp_path):
    for i in range(60):
        for name in ("a", "copy-of"):
            (tmp_path / f"{name}-{i:02d}.png").write_bytes(picture(i))
    train, held = holdout_split(open_source(str(tmp_path)))
    assert {r.data for r in train}.isdisjoint({r.data for r in held})


class Numbered:
    """Images that say which they are, of so many bytes; it counts how many are read."""

    name, classes, labels = "numbered", None, None

    def __init__(self, n, size=1):
        self.n, self.size, self.reads = n, size, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        if i % 2:
            raise BadImage(str(i), "broken on purpose")
        return Record(bytes(self.size), -1, str(i))


def test_what_would_take_long_to_read_is_held_out_by_place(monkeypatch):
    assert holdout_way(Numbered(100_000)) == "content"
    assert holdout_way(Numbered(100_001)) == "place"
    monkeypatch.setattr("unmask.data.sources.READ_BYTES", 3000)
    assert [holdout_way(Numbered(1000, size)) for size in (3, 4)] == ["content", "place"]


def test_by_place_a_tenth_but_ten_thousand_at_most_is_held_out_and_nothing_read():
    source = Numbered(2_000_000)
    train, held = holdout_split(source, way="place")
    assert (len(train), len(held), source.reads) == (1_990_000, 10_000, 0)
    assert not np.isin(held.index, train.index).any()
    assert np.array_equal(holdout_places(source, "place"), held.index)
    assert abs(held.index.mean() / 1_000_000 - 1) < 0.05  # from everywhere
    assert len(holdout_places(Numbered(1009), "place")) == 100


@pytest.mark.parametrize("n", [1000, 200_000, 1_000_000])
def test_who_trains_on_few_images_trains_on_none_that_are_held_out_of_all(n):
    whole, few = Numbered(n), np.arange(3, n, 5)
    train, held = holdout_split(Subset(whole, few), way="place")
    assert np.isin(few[train.index], holdout_places(whole, "place")).sum() == 0
    assert len(few) / 15 < len(held) < len(few) / 8 or len(held) == 10_000


def test_a_split_with_an_empty_side_asks_for_test_data(tmp_path):
    with pytest.raises(ValueError, match=r"give --test DATA"):
        holdout_split(open_source(str(write(tmp_path, "a.png"))))


def test_mean_and_deviation_are_those_of_the_pixels_and_bad_files_are_passed_over(tmp_path):
    write(tmp_path, *[f"{i:03d}.png" for i in range(100)])
    (tmp_path / "bad.png").write_bytes(b"junk")
    mean, std = measure_mean_std(open_source(str(tmp_path)), seed=0, channels=3)
    assert np.allclose(mean, [49.5 / 255, 10 / 255, 20 / 255], atol=1e-6)
    assert np.allclose(std, [np.arange(100).std() / 255, 1 / 255, 1 / 255], atol=1e-6)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "bad.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"none of 1 images can be read; the first: bad.png"):
        measure_mean_std(open_source(str(tmp_path / "only")), seed=0, channels=3)


def test_a_folder_needs_no_names_when_its_files_are_given(tmp_path):
    write(tmp_path, "a.png")
    assert Folder("these", files=[str(tmp_path / "a.png")])[0].data == picture(0)
