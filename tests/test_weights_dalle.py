"""DALL-E's dialect, and a reader of its pickles that executes nothing."""

import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unmask.methods.codec import CodecConfig, build_codec
from unmask.tokenizers import fingerprint, load
from unmask.weights import dalle, pickles

GOLDEN = Path(__file__).parent / "golden" / "dalle_dvae.safetensors"
CODEC = CodecConfig(vocab=64, stride=8, width=16, groups=4, blocks=1, code_width=16)


def official():
    weights = load_file(GOLDEN)
    return [
        {k.removeprefix(f"weights/{part}/"): v for k, v in weights.items() if k.startswith(f"weights/{part}/")}
        for part in ("encoder", "decoder")
    ]


@pytest.fixture
def foreign():
    """A `dall_e` package that exists only while files are written."""
    module = types.ModuleType("dall_e.encoder")

    class Encoder(nn.Module):
        pass

    Encoder.__module__, Encoder.__qualname__ = "dall_e.encoder", "Encoder"
    module.Encoder = Encoder
    package = types.ModuleType("dall_e")
    package.encoder = module
    sys.modules |= {"dall_e": package, "dall_e.encoder": module}
    yield Encoder
    del sys.modules["dall_e"], sys.modules["dall_e.encoder"]


def tree(state, cls):
    """A module of modules with these parameters, as attrs classes would hold them."""
    root = cls()
    root.device, root.requires_grad, root.n_hid = torch.device("cpu"), False, 16
    for name, value in state.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, cls() if part.startswith("block") else nn.Sequential())
            node = node._modules[part]
        node.register_parameter(last, nn.Parameter(value, requires_grad=False))
    root.blocks.add_module("relu", nn.ReLU())
    root.blocks.add_module("pool", nn.MaxPool2d(2))
    root.blocks.add_module("up", nn.Upsample(scale_factor=2, mode="nearest"))
    return root


def write(folder, cls, zipped):
    states = official()
    for name, state in zip(("encoder", "decoder"), states, strict=True):
        torch.save(tree(state, cls), folder / f"{name}.pkl", _use_new_zipfile_serialization=zipped)
    return states


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # torch, of classes made here
def test_whole_modules_are_read_without_their_classes(zipped, foreign, tmp_path, monkeypatch):
    states = write(tmp_path, foreign, zipped)
    monkeypatch.delitem(sys.modules, "dall_e.encoder")
    monkeypatch.setattr(pickle, "loads", None)
    for name, state in zip(("encoder", "decoder"), states, strict=True):
        found = pickles.read_module(tmp_path / f"{name}.pkl")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[k], v) for k, v in state.items())
    assert "dall_e.encoder" not in sys.modules
    sys.modules["dall_e.encoder"] = types.ModuleType("dall_e.encoder")


def test_both_files_together_are_a_tokenizer(foreign, tmp_path):
    states = write(tmp_path, foreign, zipped=True)
    for place in (tmp_path, tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"):
        codec = load(place)
        assert codec.config == CODEC
        assert fingerprint(codec) == fingerprint(load(tmp_path))
    assert torch.equal(codec.encoder.input.weight, states[0]["blocks.input.w"])
    (tmp_path / "decoder.pkl").unlink()
    with pytest.raises(ValueError, match="side by side"):
        load(tmp_path / "encoder.pkl")


def test_views_into_a_storage_and_other_types_are_read(foreign, tmp_path):
    module = foreign()
    base = torch.arange(12, dtype=torch.float16).reshape(3, 4)
    module.register_parameter("w", nn.Parameter(base.t()[1:]))
    module.register_buffer("count", torch.tensor([7]))
    torch.save(module, tmp_path / "m.pkl")
    found = pickles.read_module(tmp_path / "m.pkl")
    assert torch.equal(found["w"], base.t()[1:])
    assert found["count"].tolist() == [7]


class Call:
    def __init__(self, function, *arguments):
        self.what = (function, arguments)

    def __reduce__(self):
        return self.what


ATTACKS = {
    "os.system": lambda mark: Call(os.system, f"touch {mark}"),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w').close()"),
    "getattr": lambda mark: Call(getattr, "text", "upper"),
    "torch.load": lambda mark: Call(torch.load, str(mark)),
    "import": lambda mark: Call(__import__, "os"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("layout", ["zip", "legacy", "bare"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_anything_but_modules_and_tensors_is_refused_and_not_run(attack, layout, foreign, tmp_path):
    mark, file = tmp_path / "sprung", tmp_path / "encoder.pkl"
    module = foreign()
    module.w = nn.Parameter(torch.zeros(2))
    module.extra = ATTACKS[attack](mark)
    if layout == "bare":
        file.write_bytes(pickle.dumps(module.extra))
    else:
        torch.save(module, file, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(ValueError, match="refused"):
        pickles.read_module(file)
    assert not mark.exists()


def test_a_plain_object_in_a_modules_place_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "encoder.pkl")
    with pytest.raises(ValueError, match="no module"):
        pickles.read_module(tmp_path / "encoder.pkl")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_half_a_file_is_refused(part, zipped, foreign, tmp_path):
    write(tmp_path, foreign, zipped)
    file = tmp_path / "encoder.pkl"
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"encoder\.pkl"):
        pickles.read_module(file)


def test_a_tensor_that_reaches_beyond_its_bytes_is_refused():
    note = pickles._Slice(pickles._Storage("0", torch.float32), 0, (4, 4), (4, 1))
    with pytest.raises(RuntimeError, match="storage"):
        pickles._tensor(note, lambda key: bytes(16))


def test_names_go_both_ways_bit_by_bit():
    encoder, decoder = official()
    ours = dalle.from_official(encoder, decoder)
    assert ours.keys() == build_codec(CODEC).state_dict().keys()
    back = dalle.to_official(ours)
    for state, again in zip((encoder, decoder), back, strict=True):
        assert state.keys() == again.keys()
        assert all(torch.equal(v, again[k]) for k, v in state.items())
    build_codec(CODEC).load_state_dict(ours)


def test_sizes_are_told_from_the_weights():
    assert CodecConfig(**dalle.sizes(*official())) == CODEC
    deeper = build_codec(CodecConfig(vocab=40, stride=4, channels=1, width=8, groups=3, code_width=12))
    found = CodecConfig(**dalle.sizes(*dalle.to_official(deeper.state_dict())))
    assert found == deeper.config


def test_foreign_weights_are_refused():
    with pytest.raises(ValueError, match="no weight of DALL-E"):
        dalle.from_official({"blocks.input.weight": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="no weights of DALL-E"):
        dalle.sizes({}, {})
