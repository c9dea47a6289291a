"""The command line: names, exit codes, one JSON object, one clear line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_toys import SHORT, pictures, unmask

import unmask as package
from unmask import __version__
from unmask.cli import main
from unmask.recipes import RECIPES
from unmask.verbs import VERBS, about

ROOT = Path(__file__).parent.parent
RESULT = {"model", "protocol", "features", "layer", "k", "top1", "balanced", "ci_low", "ci_high", "n_train", "n_test"}


def python(*words, **env):
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "photos", 30, classes="abc")


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert unmask("pretrain", "mae-nano", photos, "--out", out, *SHORT).code == 0
    return out


def test_help_lists_every_verb_and_needs_no_torch():
    program = (
        "import sys; from unmask.cli import main; main(['--help']); assert 'torch' not in sys.modules; "
        "assert 'numpy' not in sys.modules"
    )
    began = time.perf_counter()
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 3  # 0.1 s on a machine that does nothing else
    assert all(verb in done.stdout for verb in VERBS)
    assert all(about(verb) in done.stdout for verb in VERBS)


def test_help_and_version_succeed_and_nothing_is_usage(capsys):
    for words in (["-h"], ["help"], ["--version"], ["-V"]):
        assert main(words) == 0
    assert f"unmask {__version__}" in capsys.readouterr().out
    assert main([]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_verb_helps(verb, option, capsys):
    assert main([verb, option]) == 0
    said = capsys.readouterr().out
    assert f"usage: unmask {verb}" in said
    assert "--json" in said and "--debug" in said
    assert "None" not in said  # an option that is left out goes without saying


def test_the_help_of_a_recipe_has_the_verbs_options_and_every_field(capsys):
    assert main(["pretrain", "mae-nano", "--help"]) == 0
    said = capsys.readouterr().out
    for option in (
        "--out",
        "--budget",
        "--from",
        "--dry-run",
        "--eval-every",
        "--method.vit.width",
        "--optim.base-lr",
        "--method.views.0.size",
        "--method.masks.0.ratio",
        "--data.bad-limit",
        "RECIPE",
        "DATA",
    ):
        assert option in said, option


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["pretrian"], "did you mean pretrain?"),
        (["pretrain", "mae-nona", "x"], "did you mean mae-nano?"),
        (["pretrain", "mae-nona", "--help"], "did you mean mae-nano?"),
        (["pretrain", "mae-nano", "x", "--stesp", "4"], "did you mean --steps?"),
        (["pretrain", "mae-nano", "x", "--form", "y"], "did you mean --from?"),
        (["pretrain", "mae-nano", "x", "--dry-rnu"], "did you mean --dry-run?"),
        (["pretrain", "mae-nano", "x", "--method.vit.widht", "4"], "did you mean --method.vit.width?"),
        (["evaluate", "x", "kn", "--train", "a", "--test", "b"], "did you mean knn?"),
        (["evaluate", "x", "knn", "linaer", "--train", "a", "--test", "b"], "did you mean linear?"),
        (["evaluate", "x", "knn", "--tran", "a"], "did you mean --train?"),
        (["show", "x", "reconstrction"], "did you mean reconstruction?"),
        (["demo", "--step", "3"], "did you mean --steps?"),
        (["evaluate", "kn", "x", "--train", "a", "--test", "b"], "did you mean knn?"),
        (["evaluate", "x", "knn", "LINEAR", "--train", "a", "--test", "b"], "did you mean linear?"),
        (["evaluate", "x", "knn", "--train", "a", "--test", "b", "--pool", "cls,maen"], "did you mean mean?"),
        (["evaluate", "x", "knn", "--train", "a", "--test", "b", "--probe", "mea"], "did you mean mae?"),
        (["export", "x", "--format", "onx", "--out", "y"], "did you mean onnx?"),
        (["compare", "demo", "--methods", "mae", "--budget", "1m", "--skip", "amplitud"], "did you mean amplitude?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_misspelt_name_gets_the_nearest(words, near):
    said = unmask(*words)
    assert said.code == 2
    assert near in said.line


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["pretrian"], "There are: demo, pretrain, evaluate, "),
        (["pretrain", "mea", "x"], "There are: mae, mae-nano, "),
        (["evaluate", "x", "kn", "--train", "a", "--test", "b"], "There are: knn, linear, attentive, finetune"),
        (["show", "x", "pixles"], "no picture 'pixles'; there are: reconstruction, tokens, "),
        (["show", "x", "atention"], "There are: reconstruction, tokens, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_unknown_word_gets_the_list_of_what_is_known(words, known):
    said = unmask(*words)
    assert said.code == 2
    assert known in said.line


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["evaluate", "untraned:mae", "knn"], "untrained:mae"), (["evaluate", "pixel", "knn"], "pixels"),
        (["evaluate", "timn:vit_tiny_patch16_224", "knn"], "timm:vit_tiny_patch16_224"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_a_misspelt_model_gets_the_nearest_and_so_does_a_part_of_a_run(words, near, tmp_path):
    said = unmask(*words, "--train", "demo", "--test", "demo:test")
    assert said.code == 1 and f"no model {words[1]!r}; did you mean {near}?" in said.line
    said = unmask("evaluate", f"{tmp_path}:techer", "knn", "--train", "demo", "--test", "demo:test")
    assert f"did you mean {tmp_path}:teacher?" in said.line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain"], "needs RECIPE and DATA"),
        (["pretrain", "mae-nano"], "needs RECIPE and DATA"),
        (["pretrain", "--method.vit.width", "48", "mae-nano", "x"], "before dotted names"),
        (["pretrain", "mae-nano", "x", "more"], "more"),
        (["pretrain", "mae-nano", "x", "--steps", "four"], "--steps"),
        (["pretrain", "mae-nano", "x", "--steps"], "Missing value for argument '--steps'"),
        (["evaluate", "x", "knn"], "needs --train DATA and --test DATA"),
        (["evaluate", "knn", "--train", "a", "--test", "b"], "give models, then protocols"),
        (["evaluate", "x", "knn", "--train", "a", "--test", "b", "--k", "ten"], "--k ten: give numbers"),
        (["evaluate", "x", "knn", "--train", "a", "--test", "b", "--pool", "max"], "there are: cls, mean"),
        (["evaluate", "x", "knn", "--train", "a", "--test", "b", "--shots", "0.5"], "give a part of the labels"),
        (["evaluate", "x", "linear", "--train", "a", "--test", "b", "--augment", "2"], "--augment is for a paper's"),
        (["evaluate", "x", "knn", "--train", "a", "--test", "b", "--out", "."], "is a folder"),
        (["show", "x"], "needs MODEL and WHAT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_exits_2_with_one_line(words, message):
    said = unmask(*words)
    assert said.code == 2
    assert message in said.line


def test_a_failure_shows_a_traceback_only_with_debug(capsys):
    assert main(["show", "nowhere", "curves"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["show", "nowhere", "curves", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_only_the_first_process_of_torchrun_prints_json(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["show", "nowhere", "curves", "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "no model 'nowhere'" in said.err


def test_the_console_script_speaks_json_on_its_last_line_and_to_people_on_standard_error():
    done = python("-W", "ignore", "-m", "unmask", "recipes", "--json", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["verb"] == "recipes"
    assert "mae-vit-b16-in1k" in done.stderr  # whole, in a terminal of 80 columns
    assert max(map(len, done.stderr.splitlines())) <= 80
    assert len(done.stderr.splitlines()) <= 3 * len(RECIPES)


def test_a_recipe_s_card_is_told_by_its_name():
    said = unmask("recipes", "mae_vit_b16_in1k", "dino")
    assert [card["recipe"] for card in said.json["recipes"]] == ["mae-vit-b16-in1k", "dino"]
    assert "He et al. 2021, Table 8" in said.err and "H200 hours" in said.err
    assert "did you mean dino?" in unmask("recipes", "dinno").line


def test_the_seed_of_what_was_drawn_is_told(run, photos, tmp_path):
    missing = ("evaluate", tmp_path / "nowhere", "knn", "--train", photos, "--test", photos)
    assert unmask(*missing, "--seed", "7").json["seed"] == 7
    assert unmask(*missing, "--seed=7").json["seed"] == 7
    assert unmask(*missing).json["seed"] is None
    out = tmp_path / "out"
    assert unmask("export", run, "--format", "safetensors", "--out", out).json["seed"] is None
    assert (
        unmask("export", "untrained:mae-nano", "--format", "safetensors", "--out", out, "--overwrite").json["seed"] == 0
    )
    assert unmask("show", run, "curves", "--out", tmp_path / "c.png").json["seed"] == 0


def test_evaluate_compares_models_on_the_same_images(run, photos, tmp_path):
    file = tmp_path / "new" / "results.json"
    said = unmask(
        "evaluate",
        run,
        "pixels",
        "untrained:mae-nano",
        "knn",
        "linear",
        "--train",
        photos,
        "--test",
        photos,
        "--k",
        "3,5",
        "--out",
        file,
        "--device",
        "cpu",
        "--workers",
        "0",
    )
    assert said.code == 0
    rows = said.json["results"]
    assert all(row.keys() == RESULT for row in rows)
    assert all(0 <= row[name] <= 1 for row in rows for name in ("top1", "balanced", "ci_low", "ci_high"))
    found = {(row["model"], row["features"], row["protocol"], row["k"]) for row in rows}
    kinds = (("knn", 3), ("knn", 5), ("linear", None))
    networks = [(str(run), pool) for pool in ("cls", "mean")] + [("untrained:mae-nano", p) for p in ("cls", "mean")]
    assert len({(row["model"], row["to"]) for row in said.json["differences"]}) == 3
    assert found == {(*model, *kind) for model in [*networks, ("pixels", "pixels")] for kind in kinds}
    assert {(row["n_train"], row["n_test"]) for row in rows} == {(30, 30)}
    written = json.loads(file.read_text())
    assert written["results"] == rows
    assert written["versions"]["torch"] and written["overlap"] == 30
    assert written["data"]["train"]["hash"] == written["data"]["test"]["hash"]
    assert [len(model["weights"] or "") for model in written["models"]] == [32, 0, 32]
    assert "30 of 30 test images are training images too" in said.err
    assert written["settings"]["train"] == str(photos) and written["settings"]["what"][0] == str(run)
    assert "k-NN, k 3" in said.err and "linear" in said.err


def test_one_pooling_can_be_chosen(run, photos):
    said = unmask("evaluate", f"{run}@3", "knn", "--train", photos, "--test", photos, "--pool", "mean", "--k", "1")
    assert [row["features"] for row in said.json["results"]] == ["mean"]
    assert said.json["results"][0]["top1"] == 1.0  # each image is its own neighbor


def test_show_draws_and_names_the_file(run, photos, tmp_path):
    said = unmask("show", run, "reconstruction", photos, "--count", "3")
    assert said.json["file"] == str(run / "figures" / "reconstruction.png")
    for what in ("augmentations", "curves"):
        file = tmp_path / f"{what}.png"
        assert unmask("show", run, what, "--out", file).code == 0
        assert file.stat().st_size > 1000


def test_the_package_is_light_and_its_names_are_functions_and_modules():
    program = (
        "import sys, unmask\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "from unmask.evaluate import KNN\n"
        "from unmask.pretrain import Options\n"
        "import unmask.evaluate as e\n"
        "assert e is unmask.evaluate and e.KNN is KNN and callable(e) and callable(unmask.pretrain)\n"
        "assert unmask.recipes.find('mae') and unmask.show and unmask.Run and unmask.load\n"
        "assert set(dir(unmask)) >= {'pretrain', 'evaluate', 'load', 'show', 'recipes', 'Run'}\n"
    )
    done = python("-W", "ignore", "-c", program)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        _ = package.pretrian


def test_python_has_the_same_verbs(run, photos):
    again = package.pretrain("mae-nano", str(photos), out=run)
    assert isinstance(again, package.Run) and again.latest() == 3
    assert package.load(str(run)).config.width == 96
    rows = package.evaluate([str(run)], ["knn"], str(photos), str(photos), ks=(1,), pools=("cls",))
    assert rows[0]["top1"] == 1.0
    with pytest.raises(ValueError, match="has no network to load"):
        package.load("pixels")
