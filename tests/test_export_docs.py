"""The commands of docs/export.md, carried out."""

import importlib.util
import re
from pathlib import Path

import pytest
from cli_toys import pictures, unmask
from toys import run as train

PAGE = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
(BLOCK,) = re.findall(r"```sh\n(.+?)```", PAGE, flags=re.DOTALL)
COMMANDS = BLOCK.splitlines()
(EXAMPLE,) = re.findall(r"```python\n(.+?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "run", steps=1).path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "photos", 8, classes="ab")


@pytest.mark.parametrize("command", [c for c in COMMANDS if "onnx" not in c and "torch" not in c])
def test_a_command_of_the_page_does_what_it_says(command, run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *words = command.split()
    assert name == "unmask"
    said = unmask(*[{"MODEL": run, "DATA": photos}.get(word, word) for word in words])
    assert said.code == 0, said.err
    made = said.json["files"] if words[0] == "export" else [said.json["file"]]
    assert all(Path(file).exists() for file in made)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if "onnx" in c or "torch" in c])
def test_a_command_that_traces_does_what_it_says(command, run, tmp_path, monkeypatch):
    if "onnx" in command and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed: pip install 'unmask[onnx]'")
    monkeypatch.chdir(tmp_path)
    said = unmask(*[run if word == "MODEL" else word for word in command.split()[1:]])
    assert said.code == 0, said.err


def test_the_pipeline_of_the_page_learns(run, photos):
    paths = sorted(photos.rglob("*.png"))
    known = {"paths": paths, "labels": [path.parent.name for path in paths]}
    exec(EXAMPLE.replace('"MODEL"', repr(str(run))), known)  # noqa: S102 - the page's own lines
    assert known["classifier"].score(paths, known["labels"]) >= 0.5
