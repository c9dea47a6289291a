"""The page's charts, by plotly: curves with bands, dots with intervals, maps. All are read without a pointer."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from ..show.grid import FAINT, INK

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
NAME = 22
"""letters of a name that fit beside a chart on a phone"""
RULE, AXIS = "#e7e9ee", "#b9bfca"


class Series(NamedTuple):
    """A curve of one model."""

    label: str
    color: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    symbol: str = ""
    """no markers without one"""
    dash: str = "solid"
    width: float = 2
    cloud: Sequence[Sequence[float]] = ()
    """single values behind each point: heads behind their mean"""


class Dot(NamedTuple):
    """A value with its interval, in a row of its own."""

    label: str
    color: str
    value: float
    low: float | None = None
    high: float | None = None
    symbol: str = "circle"


class Panel(NamedTuple):
    """A chart with its title; the page lays several side by side."""

    title: str
    figure: go.Figure
    key: tuple[tuple[str, str, str], ...] = ()
    """(label, color, dash) of what is drawn, for the legend above"""


def curves(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str = "",
    percent: bool = False,
    log_x: bool = False,
    log_y: bool = False,
    whole: bool = False,
    y_range: tuple[float | None, float | None] | None = None,
    level: tuple[float, str] | None = None,
    ticks: Sequence[float] = (),
    height: int = 300,
) -> Panel:
    """Draw curves with their intervals as bands.

    Args:
        title: of the panel.
        series: the curves.
        x, y: names of the axes, with units.
        percent: y is a fraction.
        log_x, log_y: logarithmic axes.
        whole: ticks of x at whole numbers: blocks.
        y_range: of the vertical axis; None where plotly chooses.
        level: a dashed line to compare with, and its name.
        ticks: places of x that are named.
        height: px.
    """
    figure, places_seen = _empty(height), {place for each in series for place in each.x}
    alone = len(places_seen) == 1  # a line of no length: points with bars for their intervals
    for each in series:
        name, places = escape(each.label), list(each.x)
        if len(each.low) and len(each.high):
            points = [
                (place, low, high)
                for place, low, high in zip(places, each.low, each.high, strict=True)
                if low is not None and high is not None
            ]
            around = [place for place, _, _ in points] + [place for place, _, _ in reversed(points)]
            edge = [high for _, _, high in points] + [low for _, low, _ in reversed(points)]
            figure.add_scatter(
                x=around, y=edge, fill="toself", fillcolor=faint(each.color),
                line={"width": 2 if alone else 0, "color": faint(each.color, 0.5)},
                mode="lines", hoverinfo="skip", showlegend=False,
            )  # fmt: skip
        if len(each.cloud):
            flat = [(place, value) for place, values in zip(places, each.cloud, strict=True) for value in values]
            figure.add_scatter(
                x=[place for place, _ in flat], y=[value for _, value in flat], mode="markers", hoverinfo="skip",
                marker={"color": each.color, "size": 4.5, "opacity": 0.4}, showlegend=False,
            )  # fmt: skip
        figure.add_scatter(
            x=places, y=list(each.y), name=name, mode="lines+markers" if each.symbol or alone else "lines",
            line={"color": each.color, "width": each.width, "dash": each.dash},
            marker={"color": each.color, "size": 7, "symbol": each.symbol or "circle"},
            hovertemplate=f"{name}: %{{y{':.1%' if percent else ':.4g'}}}<extra></extra>",
        )  # fmt: skip
    if level is not None:
        figure.add_hline(y=level[0], line={"color": FAINT, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=1, xref="paper", y=level[0], text=level[1], showarrow=False, xanchor="right", yanchor="bottom",
            font={"size": 12, "color": FAINT},
        )  # fmt: skip
    figure.update_xaxes(title={"text": x, "standoff": 6}, type="log" if log_x else "linear")
    figure.update_yaxes(title={"text": y, "standoff": 6}, type="log" if log_y else "linear")
    if whole:
        figure.update_xaxes(dtick=1 if max((len(each.x) for each in series), default=0) <= 13 else 2)
    if percent:
        figure.update_yaxes(tickformat=".0%")
    if len(ticks):
        figure.update_xaxes(tickmode="array", tickvals=list(ticks), ticktext=[f"{tick:g}" for tick in ticks])
    if alone and not (log_x or log_y):  # plotly would let the axes run far to both sides of a point
        (place,) = places_seen
        figure.update_xaxes(range=sorted((0, 2 * place)) if place else [-1, 1], tickmode="array", tickvals=[place])
        y_range = y_range or _around_zero(series)
    if y_range is not None:
        figure.update_yaxes(range=list(y_range))
    key = tuple(dict.fromkeys((each.label, each.color, each.dash) for each in series if each.label))
    return Panel(title, figure, key)


def dots(
    title: str,
    rows: Sequence[Dot],
    *,
    x: str = "",
    percent: bool = False,
    digits: int = 3,
    level: tuple[float, str] | None = None,
    zero: bool = True,
) -> Panel:
    """Draw values as dots with intervals, a row each, named at the left and written at the right.

    Args:
        title: of the panel.
        rows: from top to bottom.
        x: name of the axis.
        percent: values are fractions.
        digits: significant, where they are not.
        level: a dashed line to compare with, and its name.
        zero: the axis begins at 0.
    """
    figure = _empty(62 + 34 * len(rows) + (18 if level else 0))
    places = list(range(len(rows)))
    lows: list[float] = [row.value if row.low is None else row.low for row in rows]
    highs: list[float] = [row.value if row.high is None else row.high for row in rows]
    marks = [*lows, *highs] + ([level[0]] if level else [])
    low, high = min(marks), max(marks)
    start = 0.0 if zero and low >= 0 else low - 0.06 * (high - low or 1)
    room = high - start or 1.0
    for place, row in enumerate(rows):
        figure.add_scatter(
            x=[lows[place], highs[place]], y=[place, place], mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": row.color, "width": 3},
        )  # fmt: skip
        text = f"{100 * row.value:.1f}" if percent else f"{row.value:.{digits}g}"
        interval = "" if row.low is None or row.high is None else (
            f" [{100 * row.low:.1f}, {100 * row.high:.1f}]" if percent else f" [{row.low:.3g}, {row.high:.3g}]"
        )  # fmt: skip
        figure.add_scatter(
            x=[row.value], y=[place], mode="markers", showlegend=False, name=escape(row.label),
            marker={"color": row.color, "size": 11, "symbol": row.symbol, "line": {"color": "white", "width": 1}},
            hovertemplate=f"{escape(row.label)}: {text}{interval}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(
            x=highs[place], y=place, text=f"<b>{text}</b>", showarrow=False, xanchor="left", xshift=7,
            font={"size": 13, "color": INK},
        )  # fmt: skip
    if level is not None:
        figure.add_vline(x=level[0], line={"color": FAINT, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=level[0], y=1, yref="paper", text=level[1], showarrow=False, xanchor="left", yanchor="bottom",
            font={"size": 12, "color": FAINT},
        )  # fmt: skip
    figure.update_yaxes(
        tickmode="array", tickvals=places, ticktext=[escape(row.label) for row in rows], showgrid=False,
        range=[len(rows) - 0.5, -0.5], tickfont={"size": 13, "color": INK}, ticklabelstandoff=4,
    )  # fmt: skip
    figure.update_xaxes(
        range=[start, high + 0.22 * room], tickformat=".0%" if percent else None, nticks=5, showgrid=True,
        title={"text": x, "standoff": 4}, zeroline=not zero, zerolinecolor=AXIS,
    )  # fmt: skip
    figure.update_layout(margin={"t": 22 if level else 6, "r": 34})  # room for the numbers
    return Panel(title, figure)


def heat(title: str, values: Sequence[Sequence[float]], ends: Sequence[tuple[str, int]]) -> Panel:
    """Draw a symmetric map in [0, 1] of the blocks of several models.

    Args:
        title: of the panel.
        values: rows of the map.
        ends: name of each model and number of its blocks, in order.
    """
    figure = _empty(460)
    bar = {"thickness": 10, "outlinewidth": 0, "len": 0.6, "tickfont": {"size": 12}}
    bar |= {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.03, "yanchor": "top"}
    figure.add_heatmap(
        z=[list(row) for row in values], zmin=0, zmax=1, colorscale="Cividis", xgap=1, ygap=1,
        colorbar=bar,
        hovertemplate="%{z:.2f}<extra></extra>",
    )  # fmt: skip
    start, middles, gap = 0, [], {"color": "white", "width": 4}
    for name, count in ends:
        middles.append((escape(name), start + (count - 1) / 2))
        start += count
        if start < len(values):
            figure.add_vline(x=start - 0.5, line=gap)
            figure.add_hline(y=start - 0.5, line=gap)
    how = {
        "tickmode": "array", "tickvals": [place for _, place in middles], "ticktext": [name for name, _ in middles],
        "showgrid": False, "ticklen": 0, "linewidth": 0, "tickfont": {"size": 13, "color": INK},
    }  # fmt: skip
    figure.update_xaxes(**how, showticklabels=False)  # the same names, and no room for them on a phone
    figure.update_yaxes(**how, autorange="reversed")
    return Panel(title, figure)


def escape(text: str) -> str:
    """Make a name from a file safe for plotly, which reads a part of HTML, and short enough for an axis."""
    return html.escape(
        text if len(text) <= NAME else text[: NAME // 2 - 2] + "..." + text[1 - NAME // 2 :], quote=False
    )


def faint(color: str, part: float = 0.16) -> str:
    """A color as a band: `#rrggbb` to rgba."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{part})"


def _around_zero(series: Sequence[Series]) -> tuple[float, float]:
    """Ends of an axis that begins at 0 and holds all values with their intervals."""
    values = [v for each in series for line in (each.y, each.low, each.high) for v in line if v is not None]
    low, high = min([0.0, *values]), max([0.0, *values])
    room = 0.15 * (high - low or 1.0)
    return (low - room if low < 0 else 0.0), (high + room if high > 0 or low == 0 else 0.0)


def _empty(height: int) -> go.Figure:
    axis: dict[str, Any] = {
        "gridcolor": RULE, "linecolor": AXIS, "linewidth": 1, "ticks": "outside", "ticklen": 4, "tickcolor": AXIS,
        "zeroline": False, "automargin": True, "tickfont": {"size": 12}, "title": {"font": {"size": 13}},
        "fixedrange": True, "tickangle": 0,
    }  # fmt: skip
    return go.Figure(
        layout={
            "height": height, "margin": {"l": 8, "r": 10, "t": 8, "b": 8}, "showlegend": False, "autosize": True,
            "font": {"family": FONT, "size": 13, "color": INK}, "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)", "xaxis": {**axis, "showgrid": False}, "yaxis": axis, "dragmode": False,
            "hovermode": "closest", "template": {},
        }
    )  # fmt: skip
