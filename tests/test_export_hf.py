"""transformers loads what we export, in a process without us, and gives the same features."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from export_toys import BASE, BEIT, elsewhere, expected, image, mae, noise, weights
from PIL import Image
from skimage import data

from unmask.export import hf
from unmask.export.processor import write_processor
from unmask.framing import center

CASES = {
    "plain": {},
    "sincos": {"pos_embed": "sincos", "norm_eps": 1e-5},
    "classifier": {"classes": 3},
    "mean-pooled": {"classes": 3, "pool": "mean"},
    "no bias, tanh, no positions": {"qkv_bias": "none", "gelu": "tanh", "pos_embed": "none"},
    "two biases, mask token": {"qkv_bias": "qv", "mask_token": True},
    "other proportions": {"image_size": (32, 48), "patch": (8, 16), "mlp_ratio": 2.5, "heads": 4, "channels": 2},
    "layer scale": {"layer_scale": 0.1, "qkv_bias": "none", "mask_token": True},
    "beit": {**BEIT, "rel_pos": "shared", "mask_token": True},
    "beit per block": {**BEIT, "rel_pos": "per-block", "classes": 3, "pool": "mean", "layer_scale": None},
    "beit with keys' bias": {**BEIT, "rel_pos": "per-block", "classes": 3, "qkv_bias": "full", "pos_embed": "learned"},
}
CLASSIFIERS = [name for name, config in CASES.items() if config.get("classes")]

PROGRAM = """
import logging, numpy, pathlib, torch, transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import BeitForMaskedImageModeling, ViTMAEForPreTraining
logging.disable(logging.CRITICAL)
result, place = {}, pathlib.Path(sys.argv[1])

def far(value, truth):
    return float(abs(value.detach().numpy() - truth).max())

for folder in sorted((place / "cases").iterdir()):
    truth = numpy.load(folder / "expected.npz")
    image, report = torch.from_numpy(truth["image"]), {}
    config = transformers.AutoConfig.from_pretrained(folder)
    if "logits" in truth:
        kind = AutoModelForImageClassification
        model, loading = kind.from_pretrained(folder, output_loading_info=True)
        report["logits"] = far(model.eval()(image).logits, truth["logits"])
        report["names"] = [model.config.id2label[i] for i in range(3)]
    else:
        pooling = {"add_pooling_layer": False}
        model, loading = AutoModel.from_pretrained(folder, output_loading_info=True, **pooling)
        report["tokens"] = far(model.eval()(image).last_hidden_state, truth["tokens"])
    report["amiss"] = sorted(key for keys in loading.values() for key in keys)
    result[folder.name] = report

truth = numpy.load(place / "mae.npz")
image, order = torch.from_numpy(truth["image"]), torch.from_numpy(truth["noise"])
encoder = AutoModel.from_pretrained(place / "mae", add_pooling_layer=False).eval()
model, loading = ViTMAEForPreTraining.from_pretrained(place / "mae", output_loading_info=True)
painted = model.eval()(image, noise=order)
result["mae"] = {
    "amiss": sorted(key for keys in loading.values() for key in keys), "loss": far(painted.loss, truth["loss"]),
    "pixels": far(painted.logits, truth["pixels"]), "tokens": far(encoder(image).last_hidden_state, truth["tokens"]),
}
truth = numpy.load(place / "beit.npz")
image, mask = torch.from_numpy(truth["image"]), torch.from_numpy(truth["mask"])
model, loading = BeitForMaskedImageModeling.from_pretrained(place / "beit", output_loading_info=True)
tokens = AutoModel.from_pretrained(place / "beit" / "backbone").eval()(image).last_hidden_state
result["beit"] = {
    "amiss": sorted(key for keys in loading.values() for key in keys),
    "logits": far(model.eval()(image, bool_masked_pos=mask).logits, truth["logits"]),
    "tokens": far(tokens, truth["tokens"]),
}
for side in (32, 224):
    processor = AutoImageProcessor.from_pretrained(place / f"processor-{side}")
    picture = Image.open(place / "picture.png")
    numpy.save(place / f"processed-{side}.npy", processor(picture, return_tensors="pt").pixel_values.numpy())
    result[f"processor-{side}"] = type(processor).__name__
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def found(place):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed: pip install 'unmask[hub]'")
    for name, config in CASES.items():
        folder = place / "cases" / name
        folder.mkdir(parents=True)
        loaded = weights(**config)
        hf.write(loaded, folder)
        np.savez(folder / "expected.npz", **expected(loaded))
    write_mae(place)
    write_beit(place)
    Image.fromarray(data.chelsea()).save(place / "picture.png")
    for side in (32, 224):
        (place / f"processor-{side}").mkdir()
        assert not write_processor(weights(image_size=side), place / f"processor-{side}")
    return elsewhere(PROGRAM, place)


def write_mae(place):
    (place / "mae").mkdir()
    method, loaded = mae()
    hf.write(loaded, place / "mae")
    x = image(loaded)
    order = torch.linspace(0, 1, 16).flip(0).repeat(2, 1)  # the last four patches stay
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[:, 12:] = False
    with torch.no_grad():
        pixels = method.reconstruct(x, mask)
        method.norm_pixels = False  # what ViTMAE takes for granted when no run says otherwise
        truth = {"noise": order, "pixels": pixels, "loss": method.loss(x, pixels, mask)}
    np.savez(place / "mae.npz", **expected(loaded), **{k: v.numpy() for k, v in truth.items()})


def write_beit(place):
    from dataclasses import replace

    (place / "beit").mkdir()
    loaded = weights(**BEIT, rel_pos="shared", mask_token=True)
    draw = torch.Generator().manual_seed(2)
    head = {"lm_head.weight": noise(torch.empty(11, 32), draw), "lm_head.bias": noise(torch.empty(11), draw)}
    hf.write(replace(loaded, beside=head), place / "beit")
    mask = torch.arange(32).reshape(2, 16) % 3 == 0
    with torch.no_grad():
        patches = loaded.build()(image(loaded), hidden=mask).patches
        logits = torch.nn.functional.linear(patches, head["lm_head.weight"], head["lm_head.bias"])
    np.savez(place / "beit.npz", **expected(loaded), mask=mask.numpy(), logits=logits.numpy())


@pytest.mark.parametrize("case", CASES)
def test_auto_models_give_the_same_tokens_or_scores_and_miss_nothing(found, case):
    assert found[case]["logits" if case in CLASSIFIERS else "tokens"] < 1e-5
    assert found[case]["amiss"] == []


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_the_names_of_classes_come_along(found, case):
    assert found[case]["names"] == ["cat", "dog", "eel"]


def test_one_mae_folder_gives_the_encoder_with_all_patches_and_the_decoder(found):
    assert found["mae"]["tokens"] < 1e-5
    assert found["mae"]["pixels"] < 1e-5 and found["mae"]["loss"] < 1e-5
    assert found["mae"]["amiss"] == []


def test_a_beit_run_is_its_own_pre_training_model_and_a_backbone(found):
    assert found["beit"]["logits"] < 1e-5 and found["beit"]["tokens"] < 1e-5
    assert found["beit"]["amiss"] == []


@pytest.mark.parametrize("side", [32, 224])
def test_their_processor_makes_our_inputs(found, place, side):
    """The same kernel on the same sizes: a level of 255 at most, where a sum rounds to the other side."""
    assert found[f"processor-{side}"].startswith("BitImageProcessor")
    theirs = np.load(place / f"processed-{side}.npy")
    ours = center(torch.from_numpy(data.chelsea()).permute(2, 0, 1), side)
    ours = (ours.float() / 255 - 0.5) / 0.25
    assert theirs.shape == (1, 3, side, side)
    assert abs(theirs[0] - ours.numpy()).max() <= 1.01 / 255 / 0.25


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"registers": 2}, "have no registers, this network has 2; use --format timm"),
        ({**BEIT, "rel_pos": "shared", "image_size": (32, 48)}, "squares only, this network has a 4x6 grid"),
        ({**BEIT, "rel_pos": "per-block", "patch": (8, 4), "image_size": (32, 16)}, "8x4-px patches"),
        ({"classes": 3, "pool": "mean", "head_norm": "before"}, "its head has the final norm before the mean"),
        ({"classes": 3, "head_norm": "none"}, "its head has no final norm"),
    ],
)
def test_what_transformers_cannot_say_is_refused(config, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        hf.write(weights(**config), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "reason"),
    [({"image_size": (32, 48)}, "does not fit a 32 x 48 crop"), ({"channels": 2}, "this network 2 channels")],
)
def test_a_crop_that_no_processor_makes_is_said(config, reason, tmp_path):
    written = hf.write(weights(**config), tmp_path)
    assert any(reason in note for note in written.notes)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("config", [{"classes": 3, "channels": 2}, {**BEIT, "rel_pos": "shared"}])
def test_the_configuration_says_how_images_are_prepared_with_or_without_a_processor(config, tmp_path):
    from dataclasses import replace

    loaded = replace(weights(**config), range=(0.0, 4095.0))
    hf.write(loaded, tmp_path)
    said, channels = json.loads((tmp_path / "config.json").read_text())["unmask"], loaded.vit.channels
    names = list(loaded.classes)
    assert said == {"mean": [0.5] * channels, "std": [0.25] * channels, "range": [0.0, 4095.0], "classes": names}


def test_a_decoder_that_vit_mae_cannot_have_is_left_out_and_said(tmp_path):
    from dataclasses import replace

    _, loaded = mae()
    wide = replace(weights(image_size=(32, 48), pos_embed="sincos"), beside=loaded.beside)
    written = hf.write(wide, tmp_path)
    assert any("The decoder is left out: ViTMAE takes square images" in note for note in written.notes)
    assert "decoder_hidden_size" not in json.loads((tmp_path / "config.json").read_text())
    assert BASE["width"] == json.loads((tmp_path / "config.json").read_text())["hidden_size"]
