"""From an analysis' numbers to its charts on the page, one function an analysis."""

from collections.abc import Callable
from typing import Any

from .charts import Dot, Panel, Series, curves, dots, heat
from .comparison import GRAYS, Comparison, Look
from .readings import Found, shown, uniform

STUDENT, TEACHER = "#a3a9b4", "#2f5d9b"
"""of the two networks of one run"""


def by_block(found: Found, about: Comparison, *, y: str, scaled: bool = False) -> list[Panel]:
    """A1 and A2: mean over heads by block, with the heads as dots."""
    series = []
    units = {name: uniform(about, name) for name in found} if scaled else {}
    relative = scaled and all(units.values())
    for name, each, look in _looks(found, about):
        factor = 1 / (units[name] or 1.0) if relative else 1.0
        line = {
            part: [None if v is None else factor * v for v in each["layers"][part]] for part in ("value", "low", "high")
        }
        cloud = [[factor * v for v in heads if v is not None] for heads in each["heads"]["value"]]
        series.append(_series(look, range(1, len(cloud) + 1), line, cloud=cloud))
    level = (1.0, "uniform attention") if relative else None
    label = "distance / that of uniform attention" if relative else y
    top = 1.08 * max((v for each in series for heads in each.cloud for v in heads if v is not None), default=1.0)
    span = None if relative else (0.0, top)
    return [curves("", series, x="block", y=label, whole=True, level=level, height=340, y_range=span)]


def attention_distance(found: Found, about: Comparison) -> list[Panel]:
    """A1."""
    return by_block(found, about, y="mean attention distance, px", scaled=True)


def attention_nmi(found: Found, about: Comparison) -> list[Panel]:
    """A2."""
    return by_block(found, about, y="NMI of queries and keys")


def amplitude(found: Found, about: Comparison) -> list[Panel]:
    """A3: the last block's profile, and the drop by block."""
    profiles, drops = [], []
    for _, each, look in _looks(found, about):
        last = {part: each["blocks"][part][-1] for part in ("value", "low", "high")}
        profiles.append(_series(look, each["frequency"], last))
        drops.append(_series(look, range(1, len(each["drop"]["value"]) + 1), each["drop"]))
    return [
        curves("Last block: log-amplitude by frequency", profiles, x="frequency, units of pi", y="relative to 0"),
        curves("Highest frequency minus 0, by block", drops, x="block", whole=True),
    ]


def bands(found: Found, about: Comparison) -> list[Panel]:
    """A4."""
    drawn = {
        part: [_series(look, each[x], each["relative"][part]) for _, each, look in _looks(found, about)]
        for part, x in (("low", "cuts"), ("high", "cuts"), ("noise", "bands"))
    }
    cuts = sorted({cut for each in found.values() for cut in each["cuts"]})
    top = max((v for lines in drawn.values() for line in lines for v in line.high if v is not None), default=1.0)
    how: dict[str, Any] = {"percent": True, "y_range": (0, 1.05 * top)}
    cut: dict[str, Any] = {**how, "log_x": True, "ticks": cuts}
    return [
        curves("Low-pass: only frequencies below", drawn["low"], x="cycles an image", y="accuracy kept", **cut),
        curves("High-pass: only frequencies above", drawn["high"], x="cycles an image", **cut),
        curves("Noise in a band", drawn["noise"], x="frequency, units of pi a pixel", **how),
    ]


def error_spectrum(found: Found, about: Comparison) -> list[Panel]:
    """A5: error over image, and which share of the loss lies above a frequency in the two kinds of pixels."""
    ratios, shares = [], []
    for name, each, look in _looks(found, about):
        n = shown(about, name, len(each["pixels"]["loss_share"]["value"]))
        for kind, dash in (("pixels", "solid"), ("normalized", "dash")):
            spectrum = {p: each[kind]["error_over_image"][p][:n] for p in ("value", "low", "high")}
            share = {p: each[kind]["loss_share"][p][:n] for p in ("value", "low", "high")}
            words = look._replace(label=f"{look.label}, {'normalized ' if kind == 'normalized' else ''}pixels")
            x = range(len(share["value"]))
            if kind == "pixels":
                ratios.append(_series(words, x, spectrum, symbol=""))
            shares.append(_series(words, x, share, symbol="", dash=dash))
    top = min(2.0, 1.1 * max([1.0, *(v for line in ratios for v in line.y if v is not None)]))
    return [
        curves(
            "Energy of the error / of the image", ratios, x="cycles an image", y_range=(0, top),
            level=(1.0, "predicting the mean"),
        ),
        curves("Share of the squared error above", shares, x="cycles an image", percent=True, y_range=(0, 1.02)),
    ]  # fmt: skip


def dependence(found: Found, about: Comparison) -> list[Panel]:
    """A6."""
    series = []
    for _, each, look in _looks(found, about):
        words = look._replace(label=f"{look.label}: {each['target']}")
        series.append(_series(words, each["radii"], each["gain"]))
    return [
        curves(
            "", series, x="radius of what is seen, patches", y="part of what all visible patches give",
            percent=True, whole=True, y_range=(-0.05, 1.15), height=340,
        )
    ]  # fmt: skip


def targets(found: Found, about: Comparison) -> list[Panel]:
    """A7."""
    names = (
        ("r2_color", "Mean color explained, R^2"),
        ("r2_gradient_energy", "Gradient energy explained, R^2"),
        ("flips_low_pass", "Tokens changed by a low-pass"),
        ("flips_hue", "Tokens changed by a turn of the hue"),
    )
    panels = []
    for key, title in names:
        rows = [_dot(look, each[key]) for _, each, look in _looks(found, about) if each[key]["value"] is not None]
        panels += [dots(title, rows, percent=True)] if rows else []
    rows = [
        Dot(look.label, look.color, each["nmi"] - each["nmi_by_chance"], symbol=look.symbol)
        for _, each, look in _looks(found, about)
    ]
    return [dots("NMI with the class, beyond chance", rows), *panels]


def cka(found: Found, about: Comparison) -> list[Panel]:
    """A8."""
    models = [block.rpartition("/")[0] for block in found["blocks"]]
    ends = [(about.label(name), models.count(name)) for name in dict.fromkeys(models)]
    return [heat("", found["cka"], ends)]


def teacher_student(found: Found, about: Comparison) -> list[Panel]:
    """B1: both networks over training, a panel a run, and the gap."""
    panels, gaps = [], []
    for _, each, look in _looks(found, about):
        if "steps" in each:
            pair = [
                _series(look._replace(label=who, color=ink, symbol=mark), each["steps"], each[who])
                for who, ink, mark in (("teacher", look.color, "circle"), ("student", STUDENT, "square"))
            ]
            gaps.append(_series(look, each["steps"], each["gap"]))
            panels.append(curves(f"{look.label}: k-NN accuracy", pair, x="step", percent=True))
            continue
        for title, logged in each.items():
            pair = [
                Series(who, ink, logged["steps"], logged[who], symbol=mark)
                for who, ink, mark in (("teacher", look.color, "circle"), ("student", STUDENT, "square"))
            ]
            panels.append(curves(f"{look.label}: {title}", pair, x="step", percent=True))
    if gaps:
        level = (0.0, "no gap")
        panels.append(curves("Teacher minus student", gaps, x="step", percent=True, level=level))
    return panels


def averaging(found: Found, about: Comparison) -> list[Panel]:
    """B2: accuracy of the averages, and the variance that they leave."""
    panels = []
    for _, each, look in _looks(found, about):
        rows = [
            Dot(name, TEACHER if name == "run's teacher" else STUDENT if name == "student" else look.color,
                float(value["value"]), value["low"], value["high"])
            for name, value in each["accuracy"].items()
        ]  # fmt: skip
        panels.append(dots(f"{look.label}: k-NN accuracy", rows, percent=True))
        kept = {1 - float(m): v for m, v in each["kept_variance"].items() if v is not None}
        lines = [
            Series("measured", look.color, [*kept], [*kept.values()], symbol=look.symbol),
            Series("independent noise", GRAYS[0], [1 - float(m) for m in each["predicted"]],
                   [*each["predicted"].values()], dash="dash", symbol="x-thin-open"),
        ]  # fmt: skip
        ticks = sorted(kept)
        panels.append(
            curves(f"{look.label}: variance that is left", lines, x="1 - momentum", log_x=True, log_y=True, ticks=ticks)
        )
    return panels


def target_noise(found: Found, about: Comparison) -> list[Panel]:
    """B3: teacher over student, of features and of targets."""
    panels = []
    for _, each, look in _looks(found, about):
        d, other = each["distances"], look._replace(label="targets", color=STUDENT, symbol="square")
        lines = [
            _series(look._replace(label="features"), d, each["ratio"]["jitter"]),
            _series(other, d, each["ratio"]["target_variance"]),
            Series("independent noise", GRAYS[0], d, each["predicted_ratio"], dash="dash"),
        ]  # fmt: skip
        title = f"{look.label}: movement of the teacher / of the student"
        panels.append(curves(title, lines, x="steps apart", log_x=True, log_y=True, ticks=d, level=(1.0, "")))
    return panels


def flatness(found: Found, about: Comparison) -> list[Panel]:
    """B4: the line, the rise and the trace; a row of panels for each run with a teacher."""
    panels = []
    for _, each, look in _looks(found, about):
        if "teacher" not in each:
            continue
        line = each["line"]
        panels.append(
            curves(f"{look.label}: loss from student (0) to teacher (1)",
                   [Series("", look.color, line["alpha"], line["loss"])], x="alpha")
        )  # fmt: skip
        pair, traces = [], []
        for who, ink, mark in (("teacher", look.color, "circle"), ("student", STUDENT, "square")):
            rise = each[who]["sharpness"]
            stacked = {part: [float(v[part]) for v in rise.values()] for part in ("value", "low", "high")}
            pair.append(_series(look._replace(label=who, color=ink, symbol=mark), [*map(float, rise)], stacked))
            traces.append(_dot(look._replace(label=who, color=ink, symbol=mark), each[who]["hessian_trace"]))
        panels.append(curves(f"{look.label}: rise after a random step", pair, x="step, part of each filter's norm"))
        panels.append(dots(f"{look.label}: trace of the Hessian", traces))
    return panels


def collapse(found: Found, about: Comparison) -> list[Panel]:
    """B6: information and use of the prototypes."""
    whole = [(look, each) for _, each, look in _looks(found, about) if "information" in each]
    if not whole:
        return []
    parts = [
        Dot(look.label, look.color, each["information"] / each["ln_K"], symbol=look.symbol) for look, each in whole
    ]
    used = [Dot(look.label, look.color, each["usage"], symbol=look.symbol) for look, each in whole]
    agree = [_dot(look, each["agreement"]) for look, each in whole]
    return [
        dots("Information on the image, part of ln K", parts, percent=True),
        dots("Prototypes in use", used, percent=True),
        dots("Agreement of student and teacher", agree, percent=True),
    ]


PANELS: dict[str, Callable[[Found, Comparison], list[Panel]]] = {
    "attention-distance": attention_distance, "attention-nmi": attention_nmi, "amplitude": amplitude, "bands": bands,
    "error-spectrum": error_spectrum, "range": dependence, "targets": targets, "cka": cka,
    "teacher-student": teacher_student, "averaging": averaging, "target-noise": target_noise, "flatness": flatness,
    "collapse": collapse,
}  # fmt: skip


def _looks(found: Found, about: Comparison) -> list[tuple[str, Found, Look]]:
    """Models with their looks; those that are no method share the grays."""
    rows, others = [], 0
    for name, each in found.items():
        look = about.look(name, others)
        others += not look.kind
        rows.append((name, each, look))
    return rows


def _series(look: Look, x: Any, line: Found, **how: Any) -> Series:
    style: dict[str, Any] = {
        "symbol": look.symbol,
        "dash": "solid" if look.kind or look.symbol != "circle-open" else "dot",
    } | how
    return Series(look.label, look.color, [*x], line["value"], line["low"], line["high"], **style)


def _dot(look: Look, estimate: Found) -> Dot:
    return Dot(look.label, look.color, estimate["value"], estimate["low"], estimate["high"], look.symbol)
