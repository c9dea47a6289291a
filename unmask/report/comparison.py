"""What a comparison folder holds, and how the page names and colors it: a method has one color everywhere."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..show.grid import PALETTE

COLORS = (*PALETTE[:5], "#b0427a", "#2391a6", "#7a5c46")
"""of methods, in their order; told apart by the color-blind"""
GRAYS = ("#79808c", "#a3a9b4", "#555c68")
"""of what is no method: untrained networks and pixels"""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")
"""of methods, in their order: colors alone do not survive a gray printer"""
RECONSTRUCTION, DISTILLATION = ("mae", "beit"), ("ibot", "dino")
"""kinds of methods: those that fill in what is hidden, and those that agree with a teacher"""

TOKENIZER = "-tokenizer"
"""ends the name of a BEiT's tokenizer"""

Row = dict[str, Any]


class Look(NamedTuple):
    """How one model is drawn."""

    label: str
    color: str
    symbol: str
    kind: str
    """mae, beit, ibot, dino, supervised; empty for a baseline, a student or a tokenizer"""


class Board(NamedTuple):
    """A protocol with its settings: what models are ranked by."""

    protocol: str
    k: int | None
    shots: str | None

    @property
    def title(self) -> str:
        """For people."""
        name = {"knn": f"k-NN, k {self.k}", "linear": "linear probe", "attentive": "attentive probe"}.get(
            self.protocol, "fine-tuned" if self.protocol == "finetune" else self.protocol
        )
        part = "" if self.shots is None else self.shots if "%" in self.shots else f"{self.shots} a class"
        return f"{name}, {part} of the labels" if "%" in part else f"{name}, {part}" if part else name


@dataclass(frozen=True)
class Comparison:
    """compare.json, with the questions that a page has to ask of it."""

    folder: Path
    said: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "Comparison":
        """Open a folder that `unmask compare` wrote.

        Raises:
            FileNotFoundError: it holds no compare.json.
            ValueError: compare.json is of another format.
        """
        folder = Path(folder)
        file = folder / "compare.json"
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no compare.json; give a folder that `unmask compare` wrote")
        said = json.loads(file.read_text())
        if said.get("format") != 1:
            raise ValueError(f"{file} has format {said.get('format')!r}, and this version reads format 1")
        return cls(folder, said)

    @property
    def methods(self) -> list[dict[str, Any]]:
        """What was compared, in the order of the command."""
        return self.said["methods"]

    @property
    def rows(self) -> list[Row]:
        """Scored results of images (accuracies; no segmentations)."""
        return [row for row in self.said.get("rows", []) if row.get("top1") is not None]

    @property
    def boards(self) -> list[Board]:
        """Protocols in their order, all labels before few."""
        found = dict.fromkeys(board_of(row) for row in self.rows)
        return sorted(found, key=lambda board: board.shots is not None)

    def label(self, name: str) -> str:
        """A model by its method's name; others by the end of their path."""
        method, rest = self._method(name)
        if method is not None:
            return method["name"] + rest
        return name if name.startswith(("untrained:", "pixels")) else name.rstrip("/").rpartition("/")[2]

    def look(self, name: str, place: int = 0) -> Look:
        """Color, marker and kind of a model; `place` parts the grays of what is no method."""
        method, rest = self._method(name)
        if method is None or rest == ":student":
            return Look(self.label(name), GRAYS[place % len(GRAYS)], "circle-open", "")
        i = self.methods.index(method)
        if rest == TOKENIZER:
            return Look(method["name"] + rest, COLORS[i % len(COLORS)], SYMBOLS[i % len(SYMBOLS)] + "-open", "")
        return Look(method["name"] + rest, COLORS[i % len(COLORS)], SYMBOLS[i % len(SYMBOLS)], method["kind"])

    def vit(self, name: str) -> dict[str, Any] | None:
        """The network's sizes; those of an untrained one are its recipe's, where that was compared."""
        method, rest = self._method(name)
        if rest == TOKENIZER:
            return None
        if method is None and name.startswith("untrained:"):
            recipe = name.removeprefix("untrained:")
            method = next((each for each in self.methods if recipe in (each["recipe"], each["name"])), None)
        return method and method["vit"]

    def models(self) -> list[str]:
        """Models of the rows: methods by their order, then the baselines."""
        return sorted(dict.fromkeys(row["model"] for row in self.rows), key=self.place)

    def place(self, name: str) -> int:
        """Of a model in the order of the command; what is no method comes last."""
        method, _ = self._method(name)
        return len(self.methods) if method is None else self.methods.index(method)

    def best(self, model: str, board: Board) -> Row | None:
        """A model's best row by one protocol: of its features and layers, the better ones."""
        mine = [row for row in self.rows if row["model"] == model and board_of(row) == board]
        return max(mine, key=lambda row: row["top1"], default=None)

    def numbers(self, analysis: dict[str, Any]) -> dict[str, Any]:
        """The file that an analysis wrote."""
        return json.loads((self.folder / analysis["numbers"]).read_text())

    def _method(self, name: str) -> tuple[dict[str, Any] | None, str]:
        """The method that a model's name means, and what follows: a part such as `:student`."""
        ends = [end for end in (":student", ":teacher", TOKENIZER) if name.endswith(end)]
        tries = [(name, ""), *((name.removesuffix(end), end) for end in ends)]
        for wanted, rest in tries:
            for method in self.methods:
                run, plain = str(method.get("run", "")), wanted.partition("@")[0].rstrip("/")
                if plain and plain in (method["name"], run.rstrip("/")):
                    return method, rest
            for method in self.methods:
                if "/" in wanted and wanted.partition("@")[0].rstrip("/").endswith("/" + method["name"]):
                    return method, rest
        return None, ""


def board_of(row: Row) -> Board:
    """The protocol of a row."""
    return Board(row["protocol"], row.get("k"), row.get("shots"))
