"""Features in a file: streamed, resumable, whole or not at all."""

import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cli_toys import pictures, unmask
from toys import run as train

import unmask as package
from unmask import embed as module
from unmask.data.sources import open_source
from unmask.evaluate.features import extract
from unmask.models import load

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return str(train(tmp_path_factory.mktemp("runs") / "run", steps=1).path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "photos", 20, classes="ab")


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 1)  # a part is a batch


def read(file):
    """A file of features as a dictionary of arrays."""
    if file.suffix == ".npz":
        with np.load(file) as archive:
            return dict(archive)
    table = pq.read_table(file)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_file_has_the_features_keys_and_labels_of_the_data(run, photos, tmp_path, suffix):
    made = package.embed(run, str(photos), tmp_path / f"f{suffix}", batch=7)
    found, source = read(made.file), open_source(str(photos))
    truth = extract(load(run), source, size=(16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert list(found) == ["key", "label", "cls", "mean"]
    assert found["key"].tolist() == truth.keys and found["label"].tolist() == truth.labels.tolist()
    np.testing.assert_allclose(found["cls"], truth.values["cls"], atol=1e-5)
    np.testing.assert_allclose(found["mean"], truth.values["mean"], atol=1e-5)
    assert (made.n, made.dim, made.bad) == (20, 32, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"f{suffix}"]


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_types_are_the_documented_ones_and_patches_come_on_request(run, photos, tmp_path, small_parts, suffix):
    file = package.embed(run, str(photos), tmp_path / f"f{suffix}", patches=True, labels="none", batch=8).file
    found = read(file)
    assert found["patches"].shape == (20, 16, 32)
    np.testing.assert_allclose(found["patches"].mean(1), found["mean"], atol=1e-6)
    assert found["label"].tolist() == [-1] * 20
    if suffix == ".npz":
        assert [found[name].dtype for name in ("cls", "mean", "patches", "label")] == [np.float32] * 3 + [np.int64]
        assert found["key"].dtype.kind == "U"
    else:
        kinds = {field.name: str(field.type) for field in pq.read_schema(file)}
        assert kinds["key"] == "string" and kinds["label"] == "int64"
        assert kinds["cls"] == "fixed_size_list<element: float>[32]"


class Killed(Exception):
    pass


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_killed_run_goes_on_after_its_last_part_and_ends_the_same(run, photos, tmp_path, small_parts, suffix):
    whole = package.embed(run, str(photos), tmp_path / f"whole{suffix}", batch=4).file

    def kill(done, total):
        if done == 12:
            raise Killed

    out, seen, said = tmp_path / f"f{suffix}", [], []
    with pytest.raises(Killed):
        package.embed(run, str(photos), out, batch=4, progress=kill)
    assert not out.exists()
    made = package.embed(
        run, str(photos), out, batch=4, progress=lambda done, total: seen.append(done), say=said.append
    )
    assert seen == [16, 20]
    assert said == ["continuing: 12 of 20 images are done"]
    again, once = read(made.file), read(whole)
    assert all(np.array_equal(again[name], once[name]) for name in once)


def test_a_part_that_was_cut_short_by_a_kill_is_computed_again(run, photos, tmp_path, small_parts, monkeypatch):
    def die(*_):
        raise Killed

    monkeypatch.setattr(module, "join", die)
    with pytest.raises(Killed):
        package.embed(run, str(photos), tmp_path / "f.npz", batch=8)
    folder = tmp_path / ".f.npz.parts"
    first, middle, _ = sorted(folder.glob("part-*"))
    middle.rename(folder / f".{middle.name}.tmp")
    assert [part.file for part in module.whole_parts(folder)] == [first]


def test_a_finished_file_is_not_computed_again(run, photos, tmp_path):
    out, said = tmp_path / "f.parquet", []
    made = package.embed(run, str(photos), out)
    written = out.stat().st_mtime_ns
    assert package.embed(run, str(photos), out, say=said.append) == made
    assert out.stat().st_mtime_ns == written and "is there already" in said[0]


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_file_of_other_settings_is_refused_and_replaced_when_asked(run, photos, tmp_path, suffix):
    out = tmp_path / f"f{suffix}"
    package.embed(run, str(photos), out)
    with pytest.raises(ValueError, match="differs in patches; choose another --out, or --overwrite"):
        package.embed(run, str(photos), out, patches=True)
    assert "patches" in read(package.embed(run, str(photos), out, patches=True, overwrite=True).file)


def test_other_heads_are_another_network_although_the_tensors_are_the_same(run, photos, tmp_path):
    state = {"model": load(run).state_dict()}
    torch.save(state, tmp_path / "a.pth")
    words = (str(tmp_path / "a.pth"), str(photos), tmp_path / "f.npz")
    two = read(package.embed(*words, heads=2).file)
    with pytest.raises(ValueError, match="differs in architecture; choose another --out, or --overwrite"):
        package.embed(*words, heads=4)
    four = read(package.embed(*words, heads=4, overwrite=True).file)
    assert abs(two["cls"] - four["cls"]).max() > 1e-4


def test_images_that_were_replaced_or_renamed_are_other_data(run, tmp_path):
    folder = pictures(tmp_path / "photos", 4)
    package.embed(run, str(folder), tmp_path / "f.npz")
    first, second = folder / "000.png", folder / "001.png"
    bytes_of_first = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match="differs in content; choose another --out, or --overwrite"):
        package.embed(run, str(folder), tmp_path / "f.npz")
    first.write_bytes(bytes_of_first)
    assert package.embed(run, str(folder), tmp_path / "f.npz").n == 4  # there already
    first.rename(folder / "0000.png")
    with pytest.raises(ValueError, match="differs in content"):
        package.embed(run, str(folder), tmp_path / "f.npz")


def test_a_foreign_file_is_not_replaced(run, photos, tmp_path):
    np.savez(tmp_path / "f.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="unmask embed did not write it"):
        package.embed(run, str(photos), tmp_path / "f.npz")


def test_parts_of_other_settings_are_refused(run, photos, tmp_path, small_parts):
    def kill(done, total):
        raise Killed

    with pytest.raises(Killed):
        package.embed(run, str(photos), tmp_path / "f.npz", progress=kill, batch=8)
    with pytest.raises(ValueError, match="was begun with other labels, classes, patches; begin anew with --overwrite"):
        package.embed(run, str(photos), tmp_path / "f.npz", patches=True, labels="none")


def test_bad_images_are_left_out_counted_and_listed(run, tmp_path):
    folder = pictures(tmp_path / "photos", 6)
    (folder / "003.png").write_bytes(b"no image")
    said = unmask("embed", run, folder, "--out", tmp_path / "f.parquet", "--device", "cpu")
    assert said.code == 0 and said.json["n"] == 5 and said.json["bad"] == 1
    assert said.json["dim"] == 32 and said.json["file"] == str(tmp_path / "f.parquet")
    assert read(tmp_path / "f.parquet")["key"].tolist() == [f"00{i}.png" for i in (0, 1, 2, 4, 5)]
    assert "1 of 6 images could not be read" in said.err and "003.png" in said.err
    assert (tmp_path / "f.parquet.bad-files.txt").read_text().startswith("003.png: ")


def test_data_without_a_readable_image_is_refused(run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    said = unmask("embed", run, tmp_path, "--out", tmp_path / "f.npz", "--device", "cpu")
    assert said.code == 1 and "none of 1 images could be read, the first: a.png" in said.line
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "embed needs MODEL, DATA and --out"),
        (["RUN", "DATA", "--out", "f.csv"], "FILE.parquet or FILE.npz"),
        (["RUN", "DATA", "--out", "f.npz", "--batch", "0"], "--batch 0: give a positive number"),
        (["RUN", "DATA", "--ouf", "f.npz"], "did you mean --out?"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(words, message, run, photos):
    said = unmask("embed", *[{"RUN": run, "DATA": photos}.get(word, word) for word in words])
    assert said.code == 2 and message in said.line


def test_pixels_have_no_features_to_embed(photos, tmp_path):
    with pytest.raises(ValueError, match="pixels has no network"):
        package.embed("pixels", str(photos), tmp_path / "f.npz")


def test_weights_that_diverged_are_told_before_anything_is_kept(run, photos, tmp_path, monkeypatch):
    opened = module.open_models([run], open_source(str(photos)))
    with torch.no_grad():
        opened[0].backbone.cls_token.fill_(torch.nan)
    monkeypatch.setattr(module, "open_models", lambda *_, **__: opened)
    with pytest.raises(ValueError, match="cls features of 20 of 20 images are NaN"):
        package.embed(run, str(photos), tmp_path / "f.npz")
    assert not module.whole_parts(tmp_path / ".f.npz.parts")


def test_the_example_finds_each_image_as_its_own_nearest(run, photos, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "retrieval.py"))["main"]
    main(run, str(photos), str(photos), str(tmp_path / "gallery.parquet"))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 20
    assert all(row["nearest"][0] == {"key": row["query"], "similarity": 1.0} for row in rows)
    assert all(len(row["nearest"]) == 5 for row in rows)
