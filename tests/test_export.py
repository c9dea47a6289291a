"""The export folder: whole or not there, described by a card, read back to the bit."""

import dataclasses
import json

import ibot_toys
import pytest
import torch
from cli_toys import SHORT, pictures, unmask
from export_toys import BEIT, mae, weights
from safetensors.torch import load_file
from toys import run as train

import unmask as package
from unmask.borrow import start_from
from unmask.evaluate.features import evaluating
from unmask.export import safetensors
from unmask.export.card import card
from unmask.export.fit import with_key_bias, without_key_bias
from unmask.export.subject import Subject, Written, open_subject
from unmask.methods.codec import CodecConfig, build_codec
from unmask.models import load, read_weights
from unmask.run import Run
from unmask.tokenizers import load as load_tokenizer
from unmask.vit import ViT
from unmask.weights import dalle
from unmask.weights import unmask as ours


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "run", steps=2)


def test_ours_holds_the_bits_of_the_run_with_its_decoder(run, tmp_path):
    made = package.export(str(run.path), format="safetensors", out=tmp_path / "out")
    state, method = load_file(tmp_path / "out" / "model.safetensors"), run.method().state_dict()
    renamed = {name if name.startswith("decoder.") else f"encoder.{name}": value for name, value in state.items()}
    assert renamed.keys() == method.keys()
    assert all(torch.equal(renamed[name], method[name]) for name in method)
    assert [file.name for file in made.files] == ["README.md", "model.safetensors"]


def test_self_distillation_goes_on_from_its_export_with_student_heads_and_centers(tmp_path):
    run = train(tmp_path / "run", steps=2, method=ibot_toys.SMALL)
    package.export(str(run.path), "safetensors", tmp_path / "out")
    truth, other = run.method().state_dict(), ibot_toys.made(seed=1)
    _, notes = start_from(str(tmp_path / "out"), other)
    back = other.state_dict()
    assert all(torch.equal(back[name], truth[name]) for name in truth)
    assert any(name.startswith("student.head.") for name in truth) and truth["center"].any()
    assert not any("freshly made" in note or "begin at 0" in note for note in notes)


@pytest.mark.parametrize(
    "config",
    [
        {"registers": 1, "layer_scale": 0.1, "gelu": "tanh"},
        {**BEIT, "rel_pos": "per-block", "image_size": (32, 48)},
        {"classes": 3, "pool": "mean", "channels": 2},
    ],
)
def test_ours_comes_back_to_the_bit_with_everything_that_is_known(config, tmp_path):
    wrote = weights(**config)
    safetensors.write(wrote, tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / ours.FILE, framework="pt") as file:
        header = file.metadata()[ours.KEY]
    back = ours.from_file(load_file(tmp_path / ours.FILE), header)
    assert (back.vit, back.mean, back.std, back.classes) == (wrote.vit, wrote.mean, wrote.std, wrote.classes)
    assert all(torch.equal(back.state[name], wrote.state[name]) for name in wrote.state)


@pytest.mark.parametrize("form", ["safetensors", "timm", "hf"])
def test_an_exported_folder_is_a_model_again(form, run, tmp_path):
    package.export(str(run.path), form, tmp_path / "out")
    back, truth = load(str(tmp_path / "out"), heads=2).state_dict(), run.backbone().state_dict()
    assert back.keys() == truth.keys() and all(torch.equal(back[name], truth[name]) for name in truth)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    place = tmp_path_factory.mktemp("supervised")
    photos = pictures(place / "photos", 24, classes="abc")
    assert unmask("pretrain", "supervised-nano", photos, "--out", place / "run", *SHORT).code == 0
    return place / "run"


@pytest.mark.parametrize("form", ["safetensors", "timm", "hf"])
def test_the_names_of_a_runs_classes_go_into_every_folder(form, classifier, tmp_path):
    out = tmp_path / "out"
    assert unmask("export", classifier, "--format", form, "--out", out).code == 0
    assert "## Classes\n\n0 a, 1 b, 2 c" in (out / "README.md").read_text()
    if form == "hf":
        assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "a", "1": "b", "2": "c"}
    elif form == "timm":
        assert json.loads((out / "config.json").read_text())["pretrained_cfg"]["label_names"] == ["a", "b", "c"]
    else:
        assert read_weights(str(out)).classes == ("a", "b", "c")


def test_the_command_line_names_the_folder_and_every_file(run, tmp_path):
    said = unmask("export", run.path, "--format", "timm", "--out", tmp_path / "out", "--license", "cc-by-4.0")
    assert said.code == 0
    assert said.json["dir"] == str(tmp_path / "out")
    names = ["README.md", "config.json", "model.safetensors"]
    assert said.json["files"] == [str(tmp_path / "out" / name) for name in names]
    assert 'license: "cc-by-4.0"' in (tmp_path / "out" / "README.md").read_text()


def test_an_untrained_recipe_and_a_step_can_be_exported(run, tmp_path):
    assert unmask("export", "untrained:mae-nano", "--format", "hf", "--out", tmp_path / "a").code == 0
    assert unmask("export", f"{run.path}@2", "--format", "hf", "--out", tmp_path / "b").code == 0
    said = unmask("export", f"{run.path}@7", "--format", "hf", "--out", tmp_path / "c")
    assert said.code == 1 and "has no checkpoint 7; it has: 2" in said.line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "export needs MODEL, --format and --out"),
        (["RUN", "--out", "o"], 2, "export needs MODEL, --format and --out"),
        (["RUN", "--format", "keras", "--out", "o"], 2, "keras"),
        (["RUN", "--format", "hf", "--out", "o", "--opset", "18"], 2, "--opset 18 is for --format onnx; leave it out"),
        (["pixels", "--format", "hf", "--out", "o"], 1, "pixels has no network to export"),
        (["nowhere", "--format", "hf", "--out", "o"], 1, "no model 'nowhere'"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_one_line(words, code, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = unmask("export", *[str(run.path) if word == "RUN" else word for word in words])
    assert said.code == code and message in said.line
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_is_refused_unless_it_is_empty_or_to_be_replaced(run, tmp_path):
    out, words = tmp_path / "out", ("export", run.path, "--format", "timm", "--out", tmp_path / "out")
    out.mkdir()
    assert unmask(*words).code == 0
    said = unmask(*words)
    assert (
        said.code == 1 and "exists and is not empty; choose another folder, or replace it with --overwrite" in said.line
    )
    (out / "config.json").write_text("{}")
    assert unmask(*words, "--overwrite").code == 0
    assert (out / "config.json").read_text() != "{}"
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_is_never_overwritten_by_its_export(run):
    said = unmask("export", run.path, "--format", "timm", "--out", run.path, "--overwrite")
    assert said.code == 1 and "which --overwrite would delete: it replaces earlier exports only" in said.line
    assert Run(run.path).latest() == 2


@pytest.mark.parametrize("name", ["thesis.tex", "backbone/thesis.tex", "model.safetensors"])
def test_a_folder_that_no_export_made_is_not_overwritten(name, tmp_path):
    """Nor one whose only file has the name of ours: without our card it is somebody else's model."""
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    if name != "model.safetensors":
        (tmp_path / "out" / "README.md").write_text('tags: ["unmask", "vision-transformer"]')
    said = unmask("export", "untrained:mae-nano", "--format", "timm", "--out", tmp_path / "out", "--overwrite")
    assert said.code == 1 and f"has {name}, which --overwrite would delete" in said.line
    assert file.read_text() == "mine"


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text('tags: ["unmask", "vision-transformer"]')

    def die(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unmask.export.card.write_card", die)
    with pytest.raises(OSError, match="No space"):
        package.export("untrained:mae-nano", "timm", tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["README.md"]


def test_a_tokenizer_run_has_the_names_of_dall_e(tmp_path):
    photos = pictures(tmp_path / "photos", 8)
    short = ("--steps", "1", "--batch", "8", "--workers", "0", "--device", "cpu")
    assert unmask("pretrain", "dvae-nano", photos, "--out", tmp_path / "run", *short).code == 0
    refused = unmask("export", tmp_path / "run", "--format", "hf", "--out", tmp_path / "no")
    assert refused.code == 1 and "is a tokenizer, which is written as safetensors only" in refused.line
    assert unmask("export", tmp_path / "run", "--format", "safetensors", "--out", tmp_path / "out").code == 0
    codec = Run(tmp_path / "run").method().backbone()
    back, truth = load_tokenizer(tmp_path / "out").state_dict(), codec.state_dict()
    assert all(torch.equal(back[name], truth[name]) for name in truth)
    assert "DALL-E" in (tmp_path / "out" / "README.md").read_text()
    # a tokenizer without its run: drawn and exported again
    file = tmp_path / "out" / "encoder.safetensors"
    assert unmask("show", file, "tokens", photos, "--count", 2, "--out", tmp_path / "t.png").code == 0
    assert unmask("export", file, "--format", "safetensors", "--out", tmp_path / "again").code == 0
    again = load_tokenizer(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], truth[name]) for name in truth)


def test_dall_es_names_lead_back_to_the_same_codec(tmp_path):
    codec = build_codec(CodecConfig(vocab=16, width=8, groups=2, stride=2, blocks=1, code_width=8))
    safetensors.write_tokenizer(codec, tmp_path)
    parts = [load_file(tmp_path / f"{part}.safetensors") for part in ("encoder", "decoder")]
    assert "blocks.group_1.block_1.res_path.conv_1.w" in parts[0] and "blocks.input.b" in parts[1]
    back, state = dalle.from_official(*parts), codec.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    beit = build_codec(CodecConfig(kind="beit", vocab=16, width=8, stride=4, code_width=8, likelihood="mse"))
    written = safetensors.write_tokenizer(beit, tmp_path)
    assert load_file(tmp_path / "discrete_vae.safetensors").keys() == beit.state_dict().keys()
    assert "DiscreteVAE" in written.notes[0]


def test_a_key_bias_changes_nothing_and_can_be_left_out():
    vit = weights(qkv_bias="full").build()
    config = dataclasses.replace(vit.config, qkv_bias="qv")
    other = ViT(config).eval()
    other.load_state_dict(without_key_bias(vit.state_dict(), vit.config))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), evaluating(other):
        torch.testing.assert_close(vit(x).patches, other(x).patches, atol=1e-5, rtol=1e-5)
        vit.load_state_dict(with_key_bias(other.state_dict(), config))
        torch.testing.assert_close(vit(x).patches, other(x).patches, atol=1e-5, rtol=1e-5)


def test_the_card_tells_data_recipe_evaluation_preparation_and_license(run):
    run.log(step=2, epoch=1.0, images=16, **{"eval/knn/cls": 0.25, "eval/linear/mean": 0.5})
    text = card(open_subject(str(run.path)), "timm", Written("import timm", ("Something is left out.",)), "unknown")
    assert text.startswith('---\nlicense: "unknown"\nlibrary_name: "timm"\npipeline_tag: "image-feature-extraction"\n')
    for line in (
        "# run",
        "A Vision Transformer (16 x 16 px, patches of 4 x 4, width 32, depth 2, 2 heads; positions: sincos)",
        "```python\nimport timm\n```",
        "- Something is left out.",
        "- Size: cover 16 x 16 pixels (bicubic, antialiased), cut the center 16 x 16.",
        "- Values: x / 255, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225); 3 channels.",
        "- Recipe: `toy`.",
        "- Data: `toys`",
        "- Length: step 2 of 2, 8 images a step, seed 0.",
        "| knn/cls | 25.00 % |",
        "| linear/mean | 50.00 % |",
        "say it with `--license`",
    ):
        assert line in text, line


def test_the_card_of_a_classifier_lists_its_classes_and_of_unknown_weights_says_so():
    loaded = dataclasses.replace(weights(classes=3, image_size=224), range=(0.0, 4095.0))
    text = card(Subject("weights/cats.pth", loaded), "hf", Written("x"), "apache-2.0")
    assert "## Classes\n\n0 cat, 1 dog, 2 eel" in text and 'pipeline_tag: "image-classification"' in text
    assert "Not known: the weights came from `cats.pth`" in text and "None in the log" in text
    assert "cover 256 x 256 pixels (bicubic, antialiased), cut the center 224 x 224" in text
    assert "0 becomes 0 and 4095 becomes 255" in text and "`apache-2.0`, as stated" in text


def test_a_run_is_opened_with_what_it_trained_beside_the_backbone(run):
    subject = open_subject(f"{run.path}@2")
    assert subject.step == 2 and subject.weights.decoder_heads == 2
    assert {name.split(".")[0] for name in subject.weights.beside} == {"decoder"}
    _, loaded = mae()
    assert subject.weights.beside.keys() == loaded.beside.keys()
    backbone = load(str(run.path))
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in subject.weights.state.items())


def test_json_is_the_last_line_also_of_formats_that_like_to_talk(run, tmp_path):
    said = unmask("export", run.path, "--format", "torch", "--out", tmp_path / "out")
    assert said.code == 0 and json.dumps(said.json)
    assert "Any batch; any image whose height divides by 4 and width by 4" in said.err
