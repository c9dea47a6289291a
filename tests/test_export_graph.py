"""The graph of any image size, as torch.export and ONNX programs in processes without us."""

import importlib.util

import numpy as np
import pytest
import torch
from export_toys import BEIT, elsewhere, expected, image, weights

from unmask.export import onnx
from unmask.export import torch as torch_export
from unmask.export.graph import Graph, difference, size_varies

POSITIONS = {
    "learned": {},
    "factor": {"pos_resize": "factor", "registers": 2},
    "sincos": {"pos_embed": "sincos", "layer_scale": 0.1},
    "none": {"pos_embed": "none", "qkv_bias": "qv"},
    "head": {"classes": 3, "pool": "mean", "patch": (8, 4)},
}


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (16, 32)])
@pytest.mark.parametrize("case", POSITIONS)
def test_the_graph_is_the_network_at_every_size(case, size):
    loaded = weights(**POSITIONS[case])
    truth = expected(loaded, size=size)
    with torch.no_grad():
        found = Graph(loaded.build())(image(loaded, size=size))
    registers = loaded.vit.registers
    np.testing.assert_allclose(found[0], truth["tokens"][:, 0], atol=1e-5)
    np.testing.assert_allclose(found[1], truth["tokens"][:, 1 + registers :], atol=1e-5)
    if "logits" in truth:
        np.testing.assert_allclose(found[2], truth["logits"], atol=1e-5)


def test_relative_and_filtered_positions_have_one_size():
    assert not size_varies(weights(**BEIT, rel_pos="shared").vit)
    assert not size_varies(weights(pos_resize="antialias").vit)
    assert size_varies(weights(pos_resize="antialias", pos_embed="sincos").vit)


def test_a_difference_at_another_size_is_found():
    graph = Graph(weights().build())
    assert difference(graph, graph) == 0
    frozen = lambda x: graph(x) if x.shape[2] == 32 else [y + 1 for y in graph(x)]  # noqa: E731
    assert difference(graph, frozen) > 0.01
    assert difference(graph, lambda x: [y * torch.nan for y in graph(x)]) == torch.inf


def test_an_opset_that_is_too_old_is_refused_with_the_oldest():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'unmask[onnx]'")
    with pytest.raises(ValueError, match="--opset 13 is too old: torch's exporter writes 18 or newer; give --opset 18"):
        onnx.check(13)


def test_an_opset_that_is_too_new_is_refused_with_the_newest():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'unmask[onnx]'")
    onnx.check(25)
    with pytest.raises(ValueError, match="--opset 26 is too new: torch's exporter writes 25 at most; give --opset 25"):
        onnx.check(26)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'unmask\[onnx\]'"):
        onnx.check(18)


PROGRAM = """
import numpy, pathlib
result = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    if (folder / "model.onnx").exists():
        import onnxruntime
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        result.setdefault("names", {})[folder.name] = [output.name for output in session.get_outputs()]
        run = lambda image: session.run(None, {"image": image})
    else:
        import torch
        model = torch.export.load(folder / "model.pt2").module()
        run = lambda image: [value.detach().numpy() for value in model(torch.from_numpy(image))]
    for file in sorted(folder.glob("*.npz")):
        truth = numpy.load(file)
        cls, patches, *rest = run(truth["image"])
        tokens = truth["tokens"]
        worst = [abs(cls - tokens[:, 0]).max(), abs(patches - tokens[:, -patches.shape[1]:]).max()]
        worst += [abs(rest[0] - truth["logits"]).max()] if "logits" in truth else []
        result[f"{folder.name} {file.stem}"] = float(max(worst))
"""
SIZES = {"one": {"batch": 1}, "five": {"batch": 5}, "wide": {"batch": 2, "size": (32, 64)}, "small": {"size": (16, 24)}}


def write(form, folder, **config):
    """A written program, with inputs of several batches and sizes beside it."""
    loaded = weights(**config)
    folder.mkdir(parents=True)
    form.write(loaded, folder)
    for name, at in SIZES.items():
        if "size" not in at or size_varies(loaded.vit):
            np.savez(folder / f"{name}.npz", **expected(loaded, **at))


@pytest.mark.slow  # test_export.py writes and checks one by the command line
def test_a_torch_program_runs_without_us_at_any_batch_and_size(tmp_path):
    write(torch_export, tmp_path / "torch", pos_resize="factor", registers=1)
    worst = elsewhere(PROGRAM, tmp_path)
    assert worst.keys() == {f"torch {name}" for name in SIZES}
    assert max(worst.values()) < 1e-5


def test_onnxruntime_runs_our_program_at_any_batch_and_size(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'unmask[onnx]'")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'unmask[onnx]'")
    write(onnx, tmp_path / "onnx", classes=3, depth=1)  # time goes with the nodes; the slow test has two blocks
    result = elsewhere(PROGRAM, tmp_path)
    assert result.pop("names") == {"onnx": ["cls", "patches", "logits"]}
    assert result.keys() == {f"onnx {name}" for name in SIZES}
    assert max(result.values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("form", [torch_export, onnx], ids=["torch", "onnx"])
def test_every_kind_of_positions_can_be_exported(form, tmp_path):
    if form is onnx:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'unmask[onnx]'")
    kinds = POSITIONS | {"shared": {**BEIT, "rel_pos": "shared"}, "per block": {**BEIT, "rel_pos": "per-block"}}
    for name, config in (kinds | {"antialias": {"pos_resize": "antialias"}}).items():
        write(form, tmp_path / name, **config)
    result = elsewhere(PROGRAM, tmp_path)
    result.pop("names", None)
    assert len(result) == 5 * 4 + 3 * 2
    assert max(result.values()) < 1e-4
