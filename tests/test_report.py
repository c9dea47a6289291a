"""The report: a page that needs nothing else, harmless whatever names are in it, and good in a browser."""

import base64
import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from report_toys import method, row, write_folder

from unmask.report import write
from unmask.report.charts import Series, curves
from unmask.report.comparison import Comparison
from unmask.report.sections import over_time
from unmask.report.shot import browser, opened, shoot
from unmask.report.tables import results

EVIL = "<script>window.hit = 1</script>\"'><img src=x onerror='window.hit = 1'>{{ 7 * 7 }}"
ASKED = {
    "hit": "window.hit",
    "drawn": "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('path, rect.nsewdrag').length)",
    "pictures": "[...document.images].map(image => image.naturalWidth)",
    "widths": "[document.documentElement.scrollWidth, innerWidth]",
    "beyond": "[...document.querySelectorAll('.plot, .scroll, p, pre, h1, h2, figure')]"
    ".filter(each => each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 80))",
    "type": "getComputedStyle(document.querySelector('p.reading')).fontSize",
}
"""what is asked of the page in the browser, in JavaScript"""
HEADINGS = re.compile(r"<h[23][^>]*>(.*?)</h[23]>")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write(write_folder(tmp_path_factory.mktemp("report")))


@pytest.fixture(scope="module")
def page(report):
    """Without plotly.js, which is 4.5 MB of one line."""
    return "\n".join(line for line in report.read_text().splitlines() if len(line) < 500_000)


def needs_browser():
    if browser() is None:
        pytest.skip("no chromium in PATH (Debian: apt-get install chromium)")
    pytest.importorskip("playwright")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return write(write_folder(folder, first=EVIL, data=EVIL, command=EVIL, notes=[EVIL], budget=EVIL))


@pytest.fixture(scope="module", params=[("report", 1280), ("hostile", 390)], ids=["laptop", "phone"])
def screen(request):
    """What a browser makes of the page; on the phone, of the one with the longest and worst names."""
    needs_browser()
    with opened(request.getfixturevalue(request.param[0]), request.param[1]) as (page, errors):
        seen = {name: page.evaluate(ask) for name, ask in ASKED.items()}
        seen["picture"] = Image.open(io.BytesIO(page.locator(".pictures img").first.screenshot()))
        return seen | {"errors": errors}


def test_nothing_is_loaded_from_elsewhere(page):
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](?!data:)""", page)
    assert not re.findall(r"@import|url\(", page[page.index("<style>") : page.index("</style>")])


def test_the_answer_comes_first(page):
    assert page.index("Use supervised: 36 % [34, 38].") < page.index("All results") < page.index("What it costs")
    assert page.index("Over time") < page.index("What the models see") < page.index("Why does reconstruction")


def test_all_sections_of_a_whole_comparison_are_there(page):
    titles = HEADINGS.findall(page)
    assert {"All results", "Accuracy", "Loss", "Reconstructions", "Attention of the class token"} <= set(titles)
    assert {"How far does attention reach?", "Is the teacher better?", "How to repeat it"} <= set(titles)
    assert "unmask compare photos --budget 2m --out DIR" in page


def test_a_section_without_data_is_left_out(tmp_path):
    empty = {"rows": [], "differences": [], "analyses": [], "pictures": [], "curves": {}}
    titles = HEADINGS.findall(write(write_folder(tmp_path, **empty)).read_text())
    assert titles == ["What it costs", "How to repeat it"]


def test_runs_that_were_evaluated_once_have_no_curve_and_the_page_says_why(tmp_path):
    """Of k-NN each run has one number, of the linear probe one run has two."""
    ends = {name: [{"step": 9, "images": 576, "seconds": 18.0, "eval/knn/cls": 0.3, "eval/linear/cls": 0.3}]
            for name in ("mae", "beit")}  # fmt: skip
    more = ends | {"mae": [{"step": 4, "images": 256, "seconds": 8.0, "eval/linear/cls": 0.2}, *ends["mae"]]}
    for logs, drawn in ((ends, 0), (more, 2)):
        (part,) = over_time(Comparison(tmp_path, {"methods": [method("mae"), method("beit")], "curves": logs}))
        assert (part["title"], len(part["panels"])) == ("Accuracy", drawn)
        which = "k-NN" if drawn else "k-NN and linear probe"
        assert f"No curve by {which}: each run was evaluated once while it trained." in part["caption"]
    page = write(write_folder(tmp_path, curves=ends)).read_text()
    assert "No curve by k-NN and linear probe: " in page and "Accuracy" in HEADINGS.findall(page)


def test_a_curve_of_one_point_has_axes_from_zero_and_a_mark():
    """As of teacher and student where one checkpoint was kept."""
    lines = [
        Series(who, "#2f5d9b", [500], [value], [value - 0.1], [value + 0.1]) for who, value in (("a", 0.4), ("b", 0.6))
    ]
    figure = curves("", lines, x="step", percent=True).figure
    assert figure.layout.xaxis.range == (0, 1000) and figure.layout.xaxis.tickvals == (500,)
    low, high = figure.layout.yaxis.range
    assert low == 0 and 0.7 < high < 1
    assert sum("markers" in trace.mode for trace in figure.data) == 2
    below = curves("", [Series("gap", "#2f5d9b", [0], [-0.1])], x="step").figure
    assert below.layout.xaxis.range == (-1, 1) and below.layout.yaxis.range[1] == 0 > below.layout.yaxis.range[0]


def test_the_highest_of_each_column_is_bold(page):
    table = page[page.index("<thead>") : page.index("</table>")]
    assert re.findall(r"<b>(.*?)</b>", table) == ["20.0", "36.0", "36.0"]


def test_the_table_says_which_k_voted_with_few_labels(tmp_path, page):
    few = [row("mae", "knn", 0.3), row("mae", "knn", 0.2, k=12, shots="10%")]
    caption = results(Comparison(tmp_path, {"methods": [method("mae")], "rows": few}))["caption"]
    assert caption.endswith("k-NN: k 20 on all labels; k 12 on 10% of the labels.")
    assert "k-NN: k" not in page


def test_a_tokenizers_time_is_shown_beside_its_methods(page):
    assert "120 s" not in page
    assert "2 min + 30 s" in page
    assert "which saw 640 images" in page


def test_a_method_has_one_color_in_tables_charts_and_pictures(page, report):
    color = Comparison.read(report.parent).look("ibot").color
    assert len(set(re.findall(r'background: (#\w+)"></span>ibot', page))) == 1
    assert f'background: {color}"></span>ibot' in page
    assert f'border-color: {color}"></i>ibot' in page
    assert f'"color":"{color}"' in page


def test_pictures_are_inside_and_whole(page):
    found = re.findall(r'<img src="data:image/(png|webp);base64,([^"]+)"', page)
    assert len(found) == 3
    assert Image.open(io.BytesIO(base64.b64decode(found[0][1]))).size == (60, 40)


def test_names_from_files_cannot_become_markup(hostile):
    text = hostile.read_text()
    assert "<script>window.hit" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;window.hit" in text
    assert "{{ 7 * 7 }}" in text


def test_a_missing_extra_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"^the report needs plotly and jinja2 .*: pip install 'unmask\[report\]'$"):
        write(write_folder(tmp_path))


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no compare\.json; give a folder that"):
        write(tmp_path)
    (tmp_path / "compare.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="has format 2, and this version reads format 1"):
        write(tmp_path)


def test_a_model_is_named_and_colored_by_its_method(tmp_path):
    about = Comparison.read(write_folder(tmp_path))
    assert about.label("runs/mae") == about.label("runs/mae@40") == about.label("/elsewhere/mae") == "mae"
    assert about.label("runs/ibot:student") == "ibot:student"
    assert about.look("runs/ibot").kind == "ibot"
    assert about.look("untrained:mae").kind == about.look("pixels").kind == ""
    assert about.vit("untrained:mae") == about.vit("mae")


def test_a_tokenizer_is_drawn_in_its_methods_color_and_takes_no_part_in_verdicts(tmp_path):
    about = Comparison.read(write_folder(tmp_path))
    look = about.look("beit-tokenizer")
    assert (look.label, look.color, look.kind) == ("beit-tokenizer", about.look("beit").color, "")
    assert about.vit("beit-tokenizer") is None


def test_a_long_answer_begins_large_and_its_comparisons_are_folded_away(tmp_path):
    beats = [{"text": f"mae beats model {i}", "column": "linear"} for i in range(9)]
    sentence = "On these images use mae: 48.1 % [45.4, 50.8]. That is +9.5 points over beit. Others come first."
    text = write(write_folder(tmp_path, answer={"best": {}, "beats": beats, "sentence": sentence})).read_text()
    assert '<p class="answer">On these images use mae: 48.1 % [45.4, 50.8].</p>' in text
    assert '<p class="rest">That is +9.5 points over beit. Others come first.</p>' in text
    assert text.index("<h2>All results") < text.index("mae beats model 8") < text.index("<h2>What it costs")


def test_without_labels_the_page_shows_what_needs_none(tmp_path):
    rows = [{"model": "mae", "features": "cls", "n": 9, "rankme": 12.3456}]
    text = write(write_folder(tmp_path, rows=[], differences=[], labelfree=rows)).read_text()
    assert "Measured without labels" in text
    assert '<td class="n">12.35</td>' in text


def test_an_analysis_of_two_runs_apart_is_shown_twice_with_their_names(tmp_path):
    folder = write_folder(tmp_path)
    said = json.loads((folder / "compare.json").read_text())
    (one,) = (each for each in said["analyses"] if each["what"] == "teacher-student")
    said["analyses"].append(one | {"models": ["beit"]})
    (folder / "compare.json").write_text(json.dumps(said))
    titles = HEADINGS.findall(write(folder).read_text())
    assert {"Is the teacher better? (ibot)", "Is the teacher better? (beit)"} <= set(titles)


def test_the_table_says_that_a_classifier_has_seen_all_labels_where_there_is_one(page, tmp_path):
    assert "supervised has seen all labels, also in the columns of few labels." in page
    methods = [method("mae"), method("ibot")]
    assert "supervised has seen" not in write(write_folder(tmp_path, methods=methods)).read_text()


def test_the_tokenizers_settings_are_shown(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "t").mkdir()
    (folder / "t" / "config.json").write_text('{"codes": 4321}')
    assert re.search(r"Settings of beit&#39;s tokenizer</summary><pre>.*4321", write(folder).read_text())


def test_guessing_is_always_the_commonest_class_and_an_overlap_is_said(page, tmp_path):
    facts = {"majority": {"class": "a", "top1": 0.375, "balanced": 0.1}, "overlap": 3}
    folder = write_folder(tmp_path, facts=facts)
    assert '"x0":0.375' in write(folder).read_text()
    assert '"x0":0.1,' in page
    assert "3 of the images to judge by are among those to train on." in (folder / "report.html").read_text()
    assert "among those to train on" not in page


def test_balanced_accuracy_is_shown_where_it_differs(page, tmp_path):
    rows = [row("mae", "linear", 0.3, balanced=0.22), row("ibot", "linear", 0.3, balanced=0.304)]
    text = write(write_folder(tmp_path, rows=rows)).read_text()
    assert re.findall(r"<br>balanced (\S+)</span>", text) == ["22.0"]
    assert "<br>balanced" not in page


def test_drawn_curves_and_the_figure_of_a_collapse_are_folded_away(tmp_path):
    folder = write_folder(tmp_path)
    said = json.loads((folder / "compare.json").read_text())
    said["pictures"].append({"method": "ibot", "what": "curves", "file": "pictures/0.png"})
    (one,) = (each for each in said["analyses"] if each["what"] == "collapse")
    one["figure"] = "pictures/1.png"
    (folder / "compare.json").write_text(json.dumps(said))
    text = write(folder).read_text()
    assert "All that ibot logged</summary>" in text
    assert "While training</summary>" in text[text.index('id="collapse"') :]


def test_the_browser_reports_no_error_and_asks_for_nothing(screen):
    assert screen["errors"] == []


def test_names_from_files_do_not_run(screen):
    assert screen["hit"] is None


def test_every_chart_is_drawn(screen):
    assert len(screen["drawn"]) > 25
    assert min(screen["drawn"]) > 3


def test_every_picture_is_shown_and_not_blank(screen):
    assert screen["pictures"] == [60, 60, 60]
    assert np.asarray(screen["picture"].convert("L")).std() > 20


def test_the_page_is_no_wider_than_the_screen(screen):
    whole, visible = screen["widths"]
    assert whole <= visible
    assert screen["beyond"] == []


def test_type_is_readable(screen):
    assert screen["type"] == "16px"


@pytest.mark.slow
def test_the_readmes_picture_shows_the_top_alone(report, tmp_path):
    needs_browser()
    picture = Image.open(shoot(report, tmp_path / "top.png", width=1200, scale=1))
    assert picture.width == 1200
    assert 600 < picture.height < 2500
    assert np.asarray(picture.convert("L")).std() > 10
