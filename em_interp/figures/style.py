"""What the figures share: colours, the template, titles, lines, bands, and how a name or a number is written."""

import html
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from em_interp.statistics.estimates import Estimate

# Okabe and Ito's colours, which readers with any colour vision can tell apart.
FIRST, SECOND, FOUND, CEILING = "#D55E00", "#0072B2", "#5B2A86", "#009E73"
COLORS = (FIRST, SECOND, CEILING, "#CC79A7", "#E69F00", "#56B4E9")
INK, MUTED, GREY, GRID = "#1F2933", "#52606D", "#9AA5B1", "#E8ECF0"

TEMPLATE = go.layout.Template(
    layout=go.Layout(
        font={
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
            "size": 14,
            "color": INK,
        },
        title={
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 20, "t": 34},
            "font": {"size": 19},
        },
        paper_bgcolor="white",
        plot_bgcolor="white",
        colorway=COLORS,
        margin={"l": 72, "r": 44, "t": 96, "b": 64},
        xaxis={
            "gridcolor": GRID,
            "zeroline": False,
            "title": {"standoff": 12, "font": {"size": 14}},
            "automargin": True,
        },
        yaxis={
            "gridcolor": GRID,
            "zerolinecolor": GREY,
            "zerolinewidth": 1,
            "title": {"standoff": 12, "font": {"size": 14}},
            "automargin": True,
        },
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "font": {"size": 13},
            "grouptitlefont": {"size": 13, "color": MUTED},
        },
        modebar={"orientation": "v", "bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": INK},
        hoverlabel={"bgcolor": "white", "bordercolor": GREY, "font": {"size": 13, "color": INK}, "align": "left"},
    )
)


def titled(title: str, subtitle: str, height: int) -> go.Figure:
    """An empty figure with a title and a subtitle above `height` pixels of plot."""
    return dress(go.Figure(), title, subtitle, height)


def dress(figure: go.Figure, title: str, subtitle: str, height: int, *, above: int = 0) -> go.Figure:
    """Title and subtitle above `height` pixels of plot, with room for their lines and for `above` pixels more."""
    lines, sublines = wrapped(title, 66), wrapped(subtitle, 92)
    text = f"{'<br>'.join(lines)}<br><span style='font-size:14px;color:{MUTED}'>{'<br>'.join(sublines)}</span>"
    title_height = 10 + 26 * len(lines) + 19 * len(sublines)
    figure.update_layout(template=TEMPLATE, title_text=text, meta={"title_height": title_height})
    return figure.update_layout(margin_t=title_height + 24 + above, height=title_height + 24 + above + height)


def line_through(  # noqa: PLR0913 - what is drawn and how
    layers: Sequence[int],
    values: Float[Tensor, " layer"],
    color: str,
    name: str,
    *,
    width: float,
    dash: str = "solid",
    group: str | None = None,
) -> go.Scatter:
    """A line that breaks off where a value is NaN."""
    return go.Scatter(
        x=list(layers),
        y=values.tolist(),
        mode="lines" if len(layers) > 1 else "markers",
        name=name,
        legendgroup=group,
        line={"color": color, "width": width, "dash": dash},
        connectgaps=False,
        hoverinfo="text",
    )


def band_between(  # noqa: PLR0913 - what is drawn and how
    layers: Sequence[int],
    low: Float[Tensor, " layer"],
    high: Float[Tensor, " layer"],
    color: str,
    name: str,
    opacity: float,
    *,
    group: str | None = None,
) -> go.Scatter:
    """One closed outline for each run of layers without NaN; a run of one layer becomes a narrow box."""
    x: list[float | None] = []
    y: list[float | None] = []
    for first, last in runs((low.isfinite() & high.isfinite()).tolist()):
        run = [float(layer) for layer in layers[first : last + 1]]
        upper, lower = high[first : last + 1].tolist(), low[first : last + 1].tolist()
        if first == last:
            run, upper, lower = [run[0] - 0.15, run[0] + 0.15], upper * 2, lower * 2
        x += [*run, *run[::-1], None]
        y += [*upper, *lower[::-1], None]
    return go.Scatter(
        x=x[:-1],
        y=y[:-1],
        fill="toself",
        mode="lines",
        line={"width": 0, "color": color},
        fillcolor=translucent(color, opacity),
        name=name,
        legendgroup=group,
        showlegend=group is None,
        hoverinfo="skip",
    )


def error_bars(estimates: Sequence[Estimate], color: str) -> dict[str, Any]:
    """The 95 % intervals of estimates, as Plotly's `error_x` or `error_y` takes them."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.value for e in estimates],
        "arrayminus": [e.value - e.low for e in estimates],
        "color": color,
        "thickness": 2,
        "width": 0,
    }


def means_through(
    at: Sequence[int] | Sequence[float],
    estimates: Sequence[Estimate],
    color: str,
    name: str,
    hovertext: Sequence[str],
) -> go.Scatter:
    """Estimates joined by a line, each with its 95 % interval."""
    return go.Scatter(
        x=list(at),
        y=[e.value for e in estimates],
        mode="lines+markers",
        name=name,
        line={"color": color, "width": 2.5},
        marker={"size": 9},
        error_y=error_bars(estimates, color) | {"thickness": 1.5, "width": 4},
        hoverinfo="text",
        hovertext=list(hovertext),
    )


def untitled(figure: go.Figure) -> go.Figure:
    """The same figure without its title, for a page that says it in words."""
    layout: Any = figure["layout"]
    taken = layout["meta"]["title_height"]
    bare = go.Figure(figure)
    return bare.update_layout(title_text="", margin_t=layout["margin"]["t"] - taken, height=layout["height"] - taken)


def number(value: float, form: str = ".2f") -> str:
    """Two decimals and a true minus sign; a dash where there is no number."""
    return "–" if math.isnan(value) else format(value, form).replace("-", "−")


def interval(value: float, low: float, high: float, form: str = ".2f") -> str:
    """`0.34 [0.25, 0.43]`: a number with its 95 % interval."""
    return f"{number(value, form)} [{number(low, form)}, {number(high, form)}]"


def points(layers: Sequence[int], values: Float[Tensor, " layer"]) -> Iterator[tuple[int, float]]:
    """Each layer with its value."""
    return zip(layers, values.tolist(), strict=True)


def layer_ticks(layers: Sequence[int]) -> dict[str, Any]:
    """Whole layer numbers, at most sixteen of them, and half a layer of room at both ends."""
    extent = layers[-1] - layers[0]
    step = next((step for step in (1, 2, 5, 10, 20) if extent / step < 16), 50)
    return {"dtick": step, "tick0": 0, "range": [layers[0] - 0.5, layers[-1] + 0.5]}


def readable(name: str) -> str:
    """A name as Plotly may show it: Plotly reads tags in every text, so what looks like one is escaped."""
    text = name.replace("_", " ")
    return html.escape(text if len(text) <= 60 else f"{text[:59]}…", quote=False)


def in_model(model: str) -> str:
    """` in tiny-model` for `some/tiny-model@3f2a`, nothing for no name."""
    return f" in {readable(short(model))}" if model else ""


def short(model: str) -> str:
    """A model's identity without folders, commits and hashes."""
    return re.sub(r"[@#][0-9a-f]+", "", model).split("/")[-1]


def runs(wanted: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last index of every unbroken run of True."""
    found = [list(run) for value, run in groupby(range(len(wanted)), key=lambda i: wanted[i]) if value]
    return [(run[0], run[-1]) for run in found]


def translucent(color: str, opacity: float) -> str:
    """A `#rrggbb` colour with an opacity from 0 to 1."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, none cut inside a word or at a hyphen."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [text]


def broken(text: str, width: int) -> str:
    """A text with HTML line breaks."""
    return "<br>".join(wrapped(text, width))
