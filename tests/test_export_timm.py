"""timm loads what we export, in a process without us, and gives the same features."""

import importlib.util

import numpy as np
import pytest
from export_toys import BEIT, elsewhere, expected, weights

from unmask.export import timm

CASES = {
    "plain": {},
    "sincos": {"pos_embed": "sincos"},
    "classifier": {"classes": 3},
    "mean-pooled": {"classes": 3, "pool": "mean"},
    "registers, layer scale": {"registers": 2, "layer_scale": 0.1},
    "no bias, tanh, no positions": {"qkv_bias": "none", "gelu": "tanh", "pos_embed": "none"},
    "two biases, mask token": {"qkv_bias": "qv", "mask_token": True},
    "other proportions": {"image_size": (32, 48), "patch": (8, 16), "mlp_ratio": 2.5, "heads": 4, "channels": 2},
    "beit": {**BEIT, "rel_pos": "shared", "mask_token": True},
    "beit not square": {**BEIT, "rel_pos": "shared", "image_size": (32, 48), "pos_embed": "learned"},
    "beit per block": {**BEIT, "rel_pos": "per-block", "classes": 3, "pool": "mean", "layer_scale": None},
    "beit with keys' bias": {**BEIT, "rel_pos": "per-block", "classes": 3, "qkv_bias": "full"},
}

PROGRAM = """
import numpy, pathlib, timm, torch
result = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    truth = numpy.load(folder / "expected.npz")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        image = torch.from_numpy(truth["image"])
        found = {"tokens": model.forward_features(image)} | ({"logits": model(image)} if "logits" in truth else {})
    result[folder.name] = {name: float(abs(value.numpy() - truth[name]).max()) for name, value in found.items()}
    config = timm.data.resolve_model_data_config(model)
    result[folder.name]["config"] = [config["mean"][0], config["std"][0], config["crop_pct"], config["interpolation"]]
"""


@pytest.fixture(scope="module")
def worst(tmp_path_factory):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install 'unmask[hub]'")
    place = tmp_path_factory.mktemp("timm")
    for name, config in CASES.items():
        (place / name).mkdir()
        loaded = weights(**config)
        timm.write(loaded, place / name)
        np.savez(place / name / "expected.npz", **expected(loaded))
    return elsewhere(PROGRAM, place)


@pytest.mark.parametrize("case", CASES)
def test_timm_gives_the_same_tokens_and_scores(worst, case):
    assert worst[case]["tokens"] < 1e-5
    assert worst[case].get("logits", 0) < 1e-5
    assert ("logits" in worst[case]) == ("classes" in CASES[case])


def test_timm_prepares_images_as_we_do(worst):
    assert worst["plain"]["config"] == [0.5, 0.25, 1.0, "bicubic"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"norm_eps": 1e-5}, "LayerNorm epsilon 1e-05: timm's configuration knows 1e-06 only; use --format hf"),
        ({**BEIT, "rel_pos": "shared", "gelu": "tanh"}, "timm's Beit has no tanh GELU; use --format onnx or torch"),
        ({"classes": 3, "pool": "mean", "head_norm": "before"}, "its head has the final norm before the mean"),
    ],
)
def test_what_timm_cannot_say_is_refused(config, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        timm.write(weights(**config), tmp_path)
    assert not list(tmp_path.iterdir())
