"""BEiT's two stages behind one command."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toys
from cli_toys import pictures, unmask
from stage_toys import STAGES
from toys import same

from unmask import forecast, stages, tokenizers
from unmask.checkpoint import latest
from unmask.config import DataConfig
from unmask.methods.beit import BEiT
from unmask.methods.codec import CodecConfig, build_codec
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


def test_a_budget_is_halved_for_the_second_stage_too_and_again_when_it_goes_on(tmp_path):
    given = {"budget": "20m"}
    assert stages.second_stage("beit", given, tmp_path) == {"budget": "10m"}  # nothing there yet: a dry run
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / tokenizers.FILE).touch()
    assert stages.second_stage("beit", given, tmp_path) == {"budget": "10m", "tokenizer": str(tmp_path / "tokenizer")}
    (tmp_path / "config.json").touch()
    assert stages.second_stage("beit", given, tmp_path) == {"budget": "10m"}
    (tmp_path / "config.json").rename(tmp_path / "tokenizer" / "config.json")
    assert stages.second_stage("beit", given | {"tokenizer": "mine"}, tmp_path) == {}
    assert stages.second_stage("mae", given, tmp_path) == {}


def test_a_budget_that_is_none_is_told_as_such():
    with pytest.raises(ValueError, match=r"--budget '1h30m': give a time"):
        stages.halved("1h30m")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"steps": 30}, "--steps 30 for each stage, the tokenizer too; for another length train it apart"),
        ({"epochs": 2.5}, "--epochs 2.5 for each stage, the tokenizer too; for another length train it apart"),
        ({"budget": "20m"}, "--budget 20m: 10m for each stage"),
    ],
)
def test_what_a_length_means_for_two_stages_is_told(given, line):
    (said,) = stages.length_of_each(given)
    assert said.startswith(line)
    assert stages.length_of_each({"seed": 3}) == []


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
    assert said.err.count("--steps 2 for each stage, the tokenizer too") == 1
    assert said.json["step"] == 2
    health = json.loads((out / "tokenizer" / "health.json").read_text())
    assert {"usage", "perplexity", "elbo_hard", "elbo_relaxed", "psnr", "ssim", "cell_entropy"} <= health.keys()
    run = Run(out)
    assert run.config.method.tokenizer_hash == health["fingerprint"]
    method = run.method()
    assert isinstance(method, BEiT)
    stored = tokenizers.load(out / "tokenizer").state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in method.tokenizer.state_dict().items())
    record = json.loads((out / "tokenizer.json").read_text())
    assert record == {
        "from": str(out / "tokenizer"),
        "fingerprint": health.pop("fingerprint"),
        "stride": 4,
        "vocab": 64,
        "health": health,
    }
    for stage in (out / "tokenizer", out):
        assert {"curves.png", "tokens.png"} <= {file.name for file in (stage / "figures").iterdir()}
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


def test_a_tokenizer_without_a_health_of_its_own_is_examined(photos, tmp_path):
    (tmp_path / "dvae").mkdir()
    torch.manual_seed(0)
    codec = build_codec(CodecConfig(vocab=600, stride=4, width=8, groups=3, blocks=1))
    torch.nn.init.zeros_(codec.encoder.output.weight)
    tokenizers.save(codec, tmp_path / "dvae")
    out = tmp_path / "beit"
    said = unmask("pretrain", "beit-nano", photos, "--out", out, "--tokenizer", tmp_path / "dvae", *SHORT)
    assert said.code == 0, said.err
    record = json.loads((out / "tokenizer.json").read_text())
    assert record["vocab"] == 600
    assert {"usage", "psnr", "elbo_hard"} <= record["health"].keys()
    for warning in ("the codebook has collapsed: 0.17% of 600 codes", "next to nothing about the image: KL 0.000"):
        assert warning in said.err
        assert warning in (out / "log.txt").read_text()


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["--channels", "1"], "pretrain dvae DATA --channels 1"),
        (["--method.views.0.twin", "64"], "stride 8 cuts the 64-px twin into 8x8 cells"),
        (["--method.tokenizer.vocab", "99"], "(method.tokenizer.vocab: 16 -> 99); leave them out"),
    ],
    ids=["channels", "stride", "vocabulary"],
)
def test_a_tokenizer_that_cannot_fit_is_refused_with_the_cure(words, cure, photos, tmp_path):
    (tmp_path / "dvae").mkdir()
    tokenizers.save(build_codec(CodecConfig(vocab=16, width=8, blocks=1, code_width=8)), tmp_path / "dvae")
    given = ["--out", tmp_path / "beit", "--tokenizer", tmp_path / "dvae", "--method.vit.image-size", "64"]
    given += ["--method.views.0.size", "64"]
    said = unmask("pretrain", "beit-nano", photos, *given, *SHORT, *words)
    assert said.code == 1
    assert cure in said.line
    assert not (tmp_path / "beit").exists()


def test_what_the_second_stage_cannot_be_is_told_before_the_first(photos, tmp_path):
    said = unmask("pretrain", "beit-nano", photos, "--out", tmp_path / "run", *SHORT, "--method.vit.heads", "5")
    assert said.code == 1
    assert "does not divide into 5 heads" in said.line
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_the_first_stage_would_not_make_is_refused_before_it(photos, tmp_path):
    said = unmask("pretrain", "beit-nano", photos, "--out", tmp_path / "run", *SHORT, "--method.tokenizer.vocab", "99")
    assert said.code == 1
    assert "trained first" in said.line and "vocab: 64 -> 99" in said.line and "--tokenizer PATH" in said.line
    assert not (tmp_path / "run").exists()


def test_a_beit_run_to_start_from_brings_its_tokenizer_and_another_one_a_fresh_head(photos, tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    said = unmask("pretrain", "beit-nano", photos, "--out", first, *SHORT)
    assert f"stage 1 of 2, under {first}/tokenizer" in said.err
    assert f"predicts the 64 tokens of {first}/tokenizer" in said.err
    (first / "tokenizer").rename(tmp_path / "moved")  # the checkpoint has it
    said = unmask("pretrain", "beit-nano", photos, "--out", second, "--from", first, "--seed", "1", *SHORT)
    assert said.code == 0, said.err
    assert not (second / "tokenizer").exists()
    old, new = Run(first).method(), Run(second).method()
    assert same(old.tokenizer.state_dict(), new.tokenizer.state_dict())
    assert new.config.tokenizer_hash == old.config.tokenizer_hash
    torch.manual_seed(5)
    tokenizers.save(build_codec(old.config.tokenizer), tmp_path / "moved")
    given = ["--from", first, "--tokenizer", tmp_path / "moved", *SHORT]
    said = unmask("pretrain", "beit-nano", photos, "--out", third, *given)
    assert said.code == 0, said.err
    assert "lm_head: freshly made, as it names the tokens of another tokenizer" in said.err
    assert tokenizers.fingerprint(Run(third).method().tokenizer) == Run(third).config.method.tokenizer_hash


def test_a_dry_run_tells_the_cost_of_both_stages_and_writes_nothing(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "measure", lambda *args: 1.5)
    said = unmask("pretrain", "beit-nano", photos, "--out", tmp_path / "run", *SHORT, "--dry-run")
    assert said.code == 0, said.err
    cost = said.json["dry_run"]
    assert (cost["steps"], cost["first_stage"]["steps"]) == (2, 2)
    assert cost["hours"] == pytest.approx(2 * cost["first_stage"]["hours"]) == pytest.approx(4 * 1.5 / 3600)
    assert "dvae-nano: " in said.err and "beit-nano: " in said.err and "both stages: " in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_bad_images_are_skipped_listed_and_limited_in_each_stage(stage, tmp_path):
    bad = {"source": toys.Images(24, bad=(3,)), "method": STAGES[stage], "steps": 3}
    run = toys.run(tmp_path / "a", data=DataConfig(train="toys", bad_limit=0.1), **bad)
    assert run.bad_images() == {"image-3": "cut short"}
    with pytest.raises(ValueError, match=r"over the limit of 1\.0%"):
        toys.run(tmp_path / "b", data=DataConfig(train="toys", bad_limit=0.01), **bad)


# --- a kill at any point ---------------------------------------------------------------------------

BOTH = ("--steps", "12", "--batch", "8", "--workers", "0", "--device", "cpu", "--save-every", "2")


def child(photos: Path, out: Path) -> subprocess.Popen:
    """The one command in a process of its own, a tenth of a second longer a step."""
    given = ["pretrain", "beit-nano", str(photos), "--out", str(out), *BOTH]
    program = (
        "import sys, time; from unmask import train; from unmask.cli import main; update = train.update\n"
        "def slowly(*a):\n    time.sleep(0.1); return update(*a)\n"
        f"train.update = slowly; sys.exit(main({given!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], cwd=Path(__file__).parent.parent, stderr=subprocess.DEVNULL
    )


def weights(out: Path) -> dict[str, torch.Tensor]:
    return Run(out).method().state_dict()


@pytest.mark.slow
def test_a_kill_in_either_stage_goes_on_to_the_same_bits(photos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert unmask("pretrain", "beit-nano", photos, "--out", whole, *BOTH).code == 0
    for stage in (parts / "tokenizer", parts):
        process = child(photos, parts)
        while (latest(stage) or 0) < 4:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert latest(stage) < 12
    assert unmask("pretrain", "beit-nano", photos, "--out", parts, *BOTH).code == 0
    assert same(weights(whole / "tokenizer"), weights(parts / "tokenizer"))
    assert same(weights(whole), weights(parts))


@pytest.mark.parametrize("place", ["keep_tokenizer", pytest.param("train", marks=pytest.mark.slow)])
def test_what_stops_between_the_stages_is_made_up_for(place, photos, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ("--out", parts, *SHORT)
    done = {"calls": 0}
    module = importlib.import_module("unmask.pretrain")
    real = getattr(module, place)

    def stops(*args, **kwargs):
        done["calls"] += 1
        if place == "keep_tokenizer" or done["calls"] == 2:  # in the first stage, or as the second begins
            raise ValueError("stopped here")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, place, stops)
    assert "stopped here" in unmask("pretrain", "beit-nano", photos, *words).line
    monkeypatch.setattr(module, place, real)
    assert not (parts / "config.json").exists()
    assert unmask("pretrain", "beit-nano", photos, *words).code == 0
    assert unmask("pretrain", "beit-nano", photos, "--out", whole, *SHORT).code == 0
    assert same(weights(whole), weights(parts))


@pytest.mark.slow
def test_torchrun_takes_both_stages_with_one_command(photos, tmp_path):
    words = ["pretrain", "beit-nano", str(photos), "--out", str(tmp_path / "run"), "--steps", "2", "--batch", "8"]
    words += ["--workers", "0", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "unmask"]
    done = subprocess.run(
        [*launch, *words], cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").latest() == Run(tmp_path / "run" / "tokenizer").latest() == 2
    assert "batch 4 x 2 devices" in done.stderr


def test_a_tokenizer_is_examined_while_it_trains(photos, tmp_path):
    out = tmp_path / "dvae"
    said = unmask("pretrain", "dvae-nano", photos, "--out", out, "--eval-every", "1", *SHORT)
    assert said.code == 0, said.err
    assert any("health/usage" in event for event in Run(out).metrics())


def test_a_tokenizers_health_is_logged_unasked_on_held_out_images_where_there_are_many(photos, tmp_path, monkeypatch):
    for name, enough in (("few", 100), ("many", 24)):
        monkeypatch.setattr("unmask.pretrain.ENOUGH", enough)
        assert unmask("pretrain", "dvae-nano", photos, "--out", tmp_path / name, *SHORT).code == 0
        run = Run(tmp_path / name)
        assert run.config.eval_every == "50"
        assert run.config.data.holdout == (name == "many")
        assert "health/usage" in run.metrics()[-1]


def test_a_tokenizer_for_another_method_is_refused(photos, tmp_path):
    said = unmask("pretrain", "mae-nano", photos, "--out", tmp_path / "a", "--tokenizer", "x", *SHORT)
    assert said.code == 1
    assert "only BEiT predicts tokens" in said.err
