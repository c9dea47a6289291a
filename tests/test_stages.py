"""BEiT's two stages behind one command."""

import json
from pathlib import Path

import pytest
import torch
from cli_toys import pictures, unmask

from unmask import stages, tokenizers
from unmask.methods.beit import BEiT
from unmask.run import Run

SHORT = ("--steps", "2", "--batch", "8", "--workers", "0", "--json")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"), 24)


def test_a_given_length_is_for_each_stage_and_a_budget_for_both():
    steps = stages.first_stage("beit", {"steps": 7, "seed": 3}, Path("nowhere"))
    assert steps == {"recipe": "dvae", "out": Path("nowhere/tokenizer"), "labels": "none", "steps": 7, "seed": 3}
    budget = stages.first_stage("beit-nano", {"budget": "20m"}, Path("nowhere"))
    assert budget is not None
    assert (budget["recipe"], budget["budget"]) == ("dvae-nano", "10m")


@pytest.mark.parametrize(("recipe", "given"), [("mae", {}), ("beit", {"tokenizer": "there"}), ("dvae", {})])
def test_there_is_no_first_stage_for(recipe, given):
    assert stages.first_stage(recipe, given, Path("nowhere")) is None


def test_a_published_recipe_wants_the_tokenizer_it_is_about():
    with pytest.raises(ValueError, match=r"DALL-E.*--tokenizer encoder\.pkl"):
        stages.first_stage("beit-vit-b16-in1k", {}, Path("nowhere"))


def test_one_command_trains_the_tokenizer_and_then_beit_and_goes_on(photos, tmp_path):
    out = tmp_path / "run"
    said = unmask("pretrain", "beit-nano", photos, "--out", out, *SHORT)
    assert said.code == 0, said.err
    assert said.json["step"] == 2
    health = json.loads((out / "tokenizer" / "health.json").read_text())
    assert {"usage", "perplexity", "elbo_hard", "elbo_relaxed", "psnr", "ssim", "cell_entropy"} <= health.keys()
    run = Run(out)
    assert run.config.method.tokenizer_hash == health["fingerprint"]
    method = run.method()
    assert isinstance(method, BEiT)
    stored = tokenizers.load(out / "tokenizer").state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in method.tokenizer.state_dict().items())
    again = unmask("pretrain", "beit-nano", photos, "--out", out, *SHORT)
    assert again.code == 0
    assert "is finished" in again.err


def test_a_tokenizer_of_ones_own_is_taken(photos, tmp_path):
    assert unmask("pretrain", "dvae-nano", photos, "--out", tmp_path / "dvae", *SHORT).code == 0
    out = tmp_path / "beit"
    said = unmask("pretrain", "beit-nano", photos, "--out", out, "--tokenizer", tmp_path / "dvae", *SHORT)
    assert said.code == 0, said.err
    assert Run(out).config.method.tokenizer_from == str(tmp_path / "dvae")
    assert not (out / "tokenizer").exists()


def test_a_tokenizer_is_examined_while_it_trains(photos, tmp_path):
    out = tmp_path / "dvae"
    said = unmask("pretrain", "dvae-nano", photos, "--out", out, "--eval-every", "1", *SHORT)
    assert said.code == 0, said.err
    assert any("health/usage" in event for event in Run(out).metrics())


def test_a_tokenizer_for_another_method_is_refused(photos, tmp_path):
    said = unmask("pretrain", "mae-nano", photos, "--out", tmp_path / "a", "--tokenizer", "x", *SHORT)
    assert said.code == 1
    assert "only BEiT predicts tokens" in said.err
