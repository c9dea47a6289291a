"""The page of a real comparison: all that `unmask compare` made is on it."""

import json
import re
from html.parser import HTMLParser

import pytest
from cli_toys import pictures

import unmask
from unmask.report import words

pytestmark = pytest.mark.slow
METHODS = ["mae-nano", "beit-nano", "ibot-nano", "dino-nano", "supervised-nano"]


class Seen(HTMLParser):
    """What stands where on the page: headings, and of every section and study its words, charts and pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.headings: list[str] = []
        self.places: dict[str, dict] = {}
        self.within: list[str] = []
        self.inside: str = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.inside = tag if tag in ("h2", "h3", "script", "style") else "reading" if "reading" in (
            given.get("class") or "") else self.inside  # fmt: skip
        if tag in ("section", "article"):
            self.within.append(given.get("id") or "")
            self.places.setdefault(self.within[-1], {"charts": 0, "pictures": 0, "reading": ""})
        for place in self.within:
            self.places[place]["pictures"] += tag == "img"
            self.places[place]["charts"] += tag == "div" and given.get("class") == "plot"

    def handle_endtag(self, tag):
        if tag in ("section", "article"):
            self.within.pop()
        self.inside = ""

    def handle_data(self, data):
        if self.inside in ("h2", "h3"):
            self.headings.append(data)
        elif self.inside == "reading" and self.within:
            self.places[self.within[-1]]["reading"] += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    photos = pictures(folder / "photos", 120, classes="abc")
    how = {"budget": "256 images", "going_on": 100, "count": 8, "workers": 0, "device": "cpu"}
    return unmask.compare(str(photos), METHODS, out=folder / "c", note=lambda line: None, **how)


@pytest.fixture(scope="module")
def seen(made):
    return Seen(made.report.read_text())


def test_all_sections_and_every_analysis_have_their_headings(made, seen):
    about = {each["what"] for each in made.content["analyses"]}
    assert {"All results", "What it costs", "Over time", "What the models see", "How to repeat it"} <= {*seen.headings}
    assert "Why does reconstruction favor high frequencies and short range?" in seen.headings
    assert "Why can an EMA teacher be better than its student?" in seen.headings
    for what in about:
        assert any(heading.startswith(words.ANALYSES[what].title) for heading in seen.headings), what
    assert len(about) >= 10


def test_every_analysis_is_read_and_shown(made, seen):
    count: dict[str, int] = {}
    for each in made.content["analyses"]:
        count[each["what"]] = i = count.get(each["what"], 0) + 1
        study = seen.places[each["what"] if i == 1 else f"{each['what']}-{i}"]
        assert len(study["reading"]) > 30 and not re.search(r"\bnan\b", study["reading"].lower()), each
        assert study["charts"] + study["pictures"] > 0, each


def test_every_picture_is_on_the_page(made, seen):
    drawn = [each["what"] for each in made.content["pictures"]]
    assert seen.places["pictures"]["pictures"] == sum(what in words.SIGHTS for what in drawn)
    assert drawn.count("curves") == len(METHODS)


def test_the_settings_name_what_was_run(made):
    text = made.report.read_text()
    for name in METHODS:
        assert f"Settings of {name}" in text
    assert json.dumps(made.content["environment"]["torch"]).strip('"') in text
