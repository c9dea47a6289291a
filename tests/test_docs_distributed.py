"""The commands of docs/distributed.md: those for one machine are executed, the others are at least well formed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.recipes import RECIPES, name_of

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "distributed.md").read_text()
BLOCKS = re.findall(r"^```(bash|yaml)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
HERE = [text for kind, text in BLOCKS if kind == "bash" and not text.startswith("# needs:")]
ELSEWHERE = [text for _, text in BLOCKS if text.startswith("# needs:")]


def words(text: str) -> list[list[str]]:
    """The words of each command."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip() and not line.startswith("#")]


def run(text: str, folder: Path) -> str:
    """Execute a block as a person would, in a folder of its own."""
    tools = Path(sys.executable).parent
    environment = {
        **os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    text = text.replace("torchrun", f"{sys.executable} -m torch.distributed.run")
    text = re.sub(r"^unmask ", f"{sys.executable} -m unmask ", text, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"
    return done.stderr


@pytest.mark.slow
def test_the_commands_for_one_machine_work_in_their_order(tmp_path):
    said = [run(text, tmp_path) for text in HERE]
    assert len(said) >= 5
    for text in HERE:
        for command in words(text):
            out = tmp_path / command[command.index("--out") + 1]
            steps = int(command[command.index("--steps") + 1])
            assert (out / "checkpoints" / f"step-{steps:07d}" / "state.json").exists()
    assert "is finished" in said[2]


def test_every_command_trains_a_known_recipe_into_a_named_run():
    for text in HERE:
        for command in words(text):
            recipe = command[command.index("pretrain") + 1]
            assert recipe in map(name_of, RECIPES)
            assert command[0] in ("torchrun", "unmask")
            assert "--out" in command
    recipes = [re.search(r"pretrain\W+(?:- )?([\w-]+)", text).group(1) for text in ELSEWHERE]
    assert len(recipes) == 3
    assert set(recipes) <= set(map(name_of, RECIPES))


def test_shell_blocks_for_elsewhere_are_shell(tmp_path):
    for kind, text in BLOCKS:
        if kind == "bash":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_the_jobset_is_yaml():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which the extra [docs] brings")
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    job = yaml.safe_load(text)
    assert job["kind"] == "JobSet"
    container = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["torchrun"]
    assert "--out=/shared/runs/mae-l" in container["args"]
