"""Our own exports: what is written is what is read."""

import pytest
import torch
from safetensors import safe_open

from unmask.vit import ViT, ViTConfig
from unmask.weights import unmask
from unmask.weights.loaded import Loaded

VIT = ViTConfig(image_size=(16, 24), patch=8, channels=2, width=8, depth=1, heads=2, layer_scale=0.1, gelu="tanh")


def tiny() -> Loaded:
    torch.manual_seed(0)
    beside = {"decoder.mask_token": torch.randn(1, 1, 4)}
    return Loaded("an MAE", VIT, ViT(VIT).state_dict(), beside, (0.1, 0.2), (0.3, 0.4), (0.0, 4095.0), 2)


def read(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - not a dict


def test_an_export_comes_back_whole(tmp_path):
    wrote = tiny()
    state, header = read(unmask.write(wrote, tmp_path))
    back = unmask.from_file(state, header[unmask.KEY])
    assert (back.vit, back.mean, back.std, back.range, back.decoder_heads) == (
        VIT,
        (0.1, 0.2),
        (0.3, 0.4),
        (0, 4095),
        2,
    )
    for ours, theirs in ((back.state, wrote.state), (back.beside, wrote.beside)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_same_weights_give_the_same_bytes(tmp_path):
    (tmp_path / "again").mkdir()
    first, second = unmask.write(tiny(), tmp_path), unmask.write(tiny(), tmp_path / "again")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("header", ["", "[]", "{}", '{"vit": {"class": "os:path"}}'])
def test_a_foreign_header_is_refused(header):
    with pytest.raises(ValueError, match="export it again"):
        unmask.from_file({}, header)
