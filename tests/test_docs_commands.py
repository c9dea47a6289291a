"""Every command of the documents is one that exists, and is carried out here unless its line says what it needs.

docs/compare.md, docs/distributed.md and docs/export.md have tests of their own; the commands of docs/results.md are
records of what was measured, on data that is not in the repository, and those of CONTRIBUTING.md are the checks
themselves.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_toys import SHORT, pictures, unmask

from unmask import demo, export, models, predict, pretrain, verbs
from unmask import pictures as drawing
from unmask.analyze import ANALYSES
from unmask.compare import conduct
from unmask.data import sources
from unmask.recipes import RECIPES, name_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"docs/compare.md", "docs/distributed.md", "docs/export.md", "docs/results.md"}
SHELL = re.compile(r"^```(?:sh|bash)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPES_HERE = {"mae", "beit", "ibot", "dino", "supervised"}
"""that `compare` is asked for"""
STARTS = {"unmask", "make", "python", "torchrun"}


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]
    needs: str
    """what the line, or the first line of its block, says that it needs"""

    def __str__(self):
        return f"{self.page}: {' '.join(self.words)}"


def commands_of(page: Path) -> list[Command]:
    """The commands of a page's shell blocks, without their environment."""
    found = []
    for block in SHELL.findall(page.read_text()):
        whole = re.match(r"# needs: (.+)", block)
        for line in block.replace("\\\n", " ").splitlines():
            text, _, comment = line.partition("  # ")
            words = shlex.split(text, comments=True)
            while words and (re.fullmatch(r"\w+=\S+", words[0]) or words[0] in ("srun", "export")):
                words = words[1:]
            if words and words[0] in STARTS:
                needs = whole or re.match(r"needs (.+)", comment.strip(" #"))
                found.append(Command(str(page.relative_to(ROOT)), tuple(words), needs.group(1) if needs else ""))
    return found


COMMANDS = [command for page in PAGES for command in commands_of(page)]
HERE = [c for c in COMMANDS if c.page not in ELSEWHERE and c.words[0] == "unmask" and not c.needs]


class ParsedError(Exception):
    """The verb has understood its arguments and would begin to work."""


@pytest.fixture
def dry(monkeypatch, tmp_path):
    """Let verbs end where their work begins."""

    def begin(*args, **how):
        raise ParsedError

    places = [(demo, "demo"), (export, "export"), (models, "assess"), (drawing, "picture"), (predict, "predict"),
              (pretrain, "planned"), (sources, "open_source"), (conduct, "open_source")]  # fmt: skip
    for module, name in places:
        monkeypatch.setattr(module, name, begin)
    monkeypatch.chdir(tmp_path)


def test_commands_are_found():
    assert len(COMMANDS) > 50
    assert {c.words[0] for c in COMMANDS} == STARTS
    assert {c.words[1] for c in COMMANDS if c.words[0] == "unmask"} >= set(verbs.VERBS) - {"demo"}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_option_of_a_command_exists(command, dry):
    name, *words = command.words
    if name == "make":
        targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(words) <= targets
        return
    if name == "python" and words[0] != "-m":
        source = (ROOT / words[0]).read_text()
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))
        return
    if name in ("python", "torchrun"):
        words = words[words.index("-m") + 1 :]
        assert words.pop(0) == "unmask"
    if words == ["recipes"]:
        return
    with pytest.raises(ParsedError):
        verbs.run(words[0], list(words[1:]))


@pytest.fixture(scope="module")
def toys_of(tmp_path_factory):
    """What stands for the capital words of the documents: photographs, and a short run of each recipe."""
    place = tmp_path_factory.mktemp("documents")
    photos = pictures(place / "photos", 24, classes="ab")
    words = {word: str(photos) for word in ("FOLDER", "LABELLED", "TEST", "IMAGES", "DATA")}
    runs = {}
    for recipe in ("mae", "beit", "ibot"):
        runs[recipe] = str(place / recipe)
        said = unmask(
            "pretrain", f"{recipe}-nano", photos, "--out", runs[recipe], *SHORT, "--log-every", 1, "--save-every", 2
        )
        assert said.code == 0, said.err
    return words, runs


def toy(command: Command, words: dict[str, str], runs: dict[str, str]) -> list[str]:
    """The command with toys in the places of data and runs, nano recipes, and three steps instead of a budget."""
    method = Path(command.page).stem if Path(command.page).stem in runs else "mae"
    method = "ibot" if {"attention", "averaging"} & set(command.words) else method
    run = runs[method]
    tokenizer = f"{runs['beit']}/tokenizer"
    known = {**words, "RUN": run, "RUN:student": f"{run}:student", "RUN@STEP": f"{run}@2", "TOKENIZER": tokenizer,
             "RUN_A,RUN_B,untrained:mae": f"{run},{runs['beit']},untrained:mae-nano",
             "untrained:mae": "untrained:mae-nano", "480": "48", "1250": "60"}  # fmt: skip
    given = [known.get(word, word) for word in command.words[1:]]
    if given[0] == "pretrain":
        given[1] += "-nano"
        if given[1].startswith("dvae"):
            given[-1] = "tokenizer"
        if "--budget" in given:
            at = given.index("--budget")
            del given[at : at + 2]
        given += [*SHORT, *([] if "--out" in given else ["--out", "made"])]
    if given[0] == "evaluate":
        given += ["--k", "1", "--workers", "0"] + (["--epochs", "1"] if "finetune" in given else [])
    if given[0] == "compare":
        given = [f"{word}-nano" if word in RECIPES_HERE else "128 images" if word == "20m" else word for word in given]
        given += ["--test", words["TEST"], "--out", "made", "--count", "8", "--workers", "0", "--device", "cpu"]
        given += ["--skip", *sorted({*ANALYSES, *drawing.PICTURES} - {"cka", "curves"})]
    return given


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({c.page for c in HERE}))
def test_the_commands_of_a_page_work_in_their_order(page, toys_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, command in enumerate(c for c in HERE if c.page == page):
        given = toy(command, *toys_of)
        given = [f"{word}-{i}" if word == "made" else word for word in given]
        said = unmask(*given)
        assert said.code == 0, f"{command}\n{' '.join(given)}\n{said.err}"


def test_a_published_recipe_says_what_it_needs():
    small = {name_of(recipe) for recipe in RECIPES if "-in" not in name_of(recipe)}
    for command in COMMANDS:
        if command.page != "docs/results.md" and "pretrain" in command.words:
            recipe = command.words[command.words.index("pretrain") + 1]
            assert recipe in small or command.needs, command
