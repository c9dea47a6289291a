"""Official iBOT and DINO checkpoints, both ways."""

import dataclasses

import pytest
import torch
from ibot_toys import DINO, SMALL, made, stepped

from unmask.weights.ibot import from_official, to_official, vit_from_official, vit_to_official


@pytest.mark.parametrize("shared", [True, False])
def test_official_names_round_trip(shared):
    method = made(dataclasses.replace(SMALL, shared_head=shared, norm_last_layer=True))
    stepped(method, method.config, 2)
    state = method.state_dict()
    official = to_official(state)
    assert official["student"]["module.backbone.masked_embed"].shape == (1, 16)
    assert {"head.last_layer.weight_g", "head.last_layer2.weight_v"} < official["teacher"].keys()
    assert (official["ibot_loss"]["center"].shape, official["ibot_loss"]["center2"].shape) == ((1, 24), (1, 1, 24))
    back = from_official(official)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    plain = {n.removeprefix("module.backbone."): v for n, v in official["student"].items() if ".backbone." in n}
    assert vit_to_official(vit_from_official(plain)).keys() == plain.keys()


def test_dino_checkpoints_have_one_last_layer_and_one_center():
    method = made(DINO)
    official = to_official(method.state_dict())
    for role in ("student", "teacher"):
        official[role] = {k: v for k, v in official[role].items() if "last_layer2" not in k}
    official["dino_loss"] = {"center": official.pop("ibot_loss")["center"]}
    back = from_official(official)
    assert back.keys() == method.state_dict().keys() - {"patch_center"}


def test_foreign_keys_are_named():
    with pytest.raises(ValueError, match=r"student key 'fc\.weight'"):
        from_official({"student": {"module.fc.weight": torch.zeros(1)}, "teacher": {}})
