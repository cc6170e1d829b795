"""Finished numbers → Plotly figures: nothing here computes a statistic, shows a figure or saves one."""

import html
import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from em_interp.behaviour import CrossEffects, Effect
from em_interp.comparison import Comparison, Separability
from em_interp.directions import Direction

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


def cosine_by_layer(comparison: Comparison, *, model: str = "") -> go.Figure:
    """The cosine of two directions at every layer, with all that a reader needs to judge its size.

    The noise-corrected cosine is a line with its 95 % interval as a band, and breaks off where one side has no
    direction. Beside it stand, thinner, the plug-in cosine, what it becomes under permuted labels (grey), what two
    equal directions with this much noise would show (ceiling), and the cosine of either side with each control.
    """
    c, layers = comparison, comparison.layers
    a, b = _label(c.a), _label(c.b)
    height = 450 + 20 * max(8, len(c.controls)) if c.controls else 500
    figure = _figure(f"{a} and {b}{_in_model(model)}", "cosine of their directions, layer by layer", height)
    nulls = [
        _band(layers, null[0], null[1], GREY, _broken(f"null: labels of {name} permuted", 30), 0.25).update(
            legendrank=5
        )
        for null, name in ((c.null_a, a), (c.null_b, b))
    ]
    ceiling = _line(layers, c.ceiling, CEILING, "plug-in ceiling", dash="dash", width=1.5).update(legendrank=4)
    plug_in = _line(layers, c.cosine, FOUND, "plug-in cosine", dash="dot", width=1.5).update(legendrank=3)
    band = _band(layers, c.low, c.high, FOUND, "its 95 % interval", 0.22).update(legendrank=2)
    corrected = _line(layers, c.corrected, FOUND, "noise-corrected cosine", width=3.0).update(legendrank=1)
    corrected.update(mode="lines+markers", marker_size=7)
    pair = [*nulls, ceiling, plug_in, band, corrected]
    for trace in pair if c.controls else ():
        trace.update(legendgroup="pair", legendgrouptitle_text=_broken(f"{a} × {b}", 30))
    for line in (ceiling, plug_in, corrected):
        line.update(hovertext=_cells(c))
    controls = [
        *_control_lines(layers, c.controls, c.controls_a, a, FIRST),
        *_control_lines(layers, c.controls, c.controls_b, b, SECOND),
    ]
    figure.add_traces([*nulls, *controls, *pair[2:]])
    found = (c.found_a & c.found_b & c.corrected.isfinite()).tolist()
    for first, last in _runs([not here for here in found]):
        _mark_missing(figure, layers, first, last)
    _name_largest_control(figure, c)
    _name_ceiling(figure, c)
    _name_peak(figure, c)
    figure.update_xaxes(title="layer", **_layer_ticks(layers))
    figure.update_yaxes(title="cosine", zeroline=True)
    return figure.update_layout(legend={"tracegroupgap": 24, "groupclick": "toggleitem"})


def cosine_map(  # noqa: PLR0913 - a matrix and the names of its two axes
    matrix: Float[Tensor, "layer_a layer_b"],
    *,
    a: str = "first direction",
    b: str = "second direction",
    layers_a: Sequence[int] | None = None,
    layers_b: Sequence[int] | None = None,
    model: str = "",
) -> go.Figure:
    """The plug-in cosine of every layer of one direction with every layer of another.

    Colours are the same on both sides of zero. The dotted line joins equal layers.
    """
    rows = list(range(matrix.shape[0]) if layers_a is None else layers_a)
    columns = list(range(matrix.shape[1]) if layers_b is None else layers_b)
    extent = max(float(matrix.abs().max()), 0.05)
    a, b = _label(a), _label(b)
    figure = _figure(
        f"{a} × {b}{_in_model(model)}", "plug-in cosine, layer by layer; it has no interval, and noise shrinks it", 570
    )
    figure.add_heatmap(
        z=matrix.tolist(),
        x=columns,
        y=rows,
        zmin=-extent,
        zmax=extent,
        zmid=0,
        colorscale="RdBu_r",
        colorbar={"title": {"text": "cosine", "font": {"size": 14}}, "thickness": 14, "outlinewidth": 0, "len": 0.9},
        hoverinfo="text",
        hovertext=[
            [f"{a}, layer {y}<br>{b}, layer {x}<br>cosine {number(z)}" for x, z in zip(columns, row, strict=True)]
            for y, row in zip(rows, matrix.tolist(), strict=True)
        ],
    )
    shared = [layer for layer in columns if layer in rows]
    figure.add_scatter(
        x=shared,
        y=shared,
        mode="lines",
        line={"color": INK, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_xaxes(title=f"layer of {b}", showgrid=False, constrain="domain", **_layer_ticks(columns))
    figure.update_yaxes(title=f"layer of {a}", showgrid=False, constrain="domain", **_layer_ticks(rows))
    return figure.update_yaxes(scaleanchor="x")


def norms_and_separability(
    directions: Sequence[Direction], separabilities: Sequence[Separability] = (), *, model: str = ""
) -> go.Figure:
    """How long each direction is for the stream it lies in, and how well it tells held-out conversations apart.

    Above, the distance between the class means over the mean norm of a token's residual stream. Below, the area under
    the ROC curve on questions that the direction was not computed from, with its 95 % interval; 0.5 is chance.
    """
    n_panels = 2 if separabilities else 1
    figure = make_subplots(rows=n_panels, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    title = "How far apart, and how well told apart" if separabilities else "How far apart the classes lie"
    _dress(figure, f"{title}{_in_model(model)}", "by layer, with 95 % intervals of the AUC", 300 + 240 * (n_panels - 1))
    for direction, color in zip(directions, COLORS, strict=False):
        relative = direction.norm / direction.residual_norm
        line = _line(direction.layers, relative, color, _label(direction.name), width=2.5, group=_label(direction.name))
        hover = [
            f"{_label(direction.name)}, layer {x}<br>relative norm {y:.3f}"
            for x, y in _points(direction.layers, relative)
        ]
        figure.add_trace(line.update(mode="lines+markers", marker_size=6, hovertext=hover), row=1, col=1)
    for found, color in zip(separabilities, COLORS, strict=False):
        name = _label(found.name)
        figure.add_trace(_band(found.layers, found.low, found.high, color, name, 0.16, group=name), row=2, col=1)
        line = _line(found.layers, found.auc, color, name, width=2.5, group=name).update(showlegend=not directions)
        hover = [
            f"{name}, layer {x}<br>held-out AUC {interval(*numbers)}"
            for x, *numbers in zip(
                found.layers, found.auc.tolist(), found.low.tolist(), found.high.tolist(), strict=True
            )
        ]
        figure.add_trace(line.update(mode="lines+markers", marker_size=6, hovertext=hover), row=2, col=1)
    figure.update_yaxes(title="norm / residual norm", rangemode="tozero", row=1, col=1)
    if separabilities:
        chance = {"annotation_text": "chance", "annotation_position": "top right", "annotation_font_color": MUTED}
        figure.add_hline(y=0.5, line={"color": GREY, "width": 1}, row=2, col=1, **chance)  # pyright: ignore[reportArgumentType]
        figure.update_yaxes(title="held-out AUC", row=2, col=1)
    layers = directions[0].layers if directions else separabilities[0].layers
    figure.update_xaxes(**_layer_ticks(layers))
    return figure.update_xaxes(title="layer", row=n_panels, col=1)


def projections(separability: Separability, layer: int, *, model: str = "") -> go.Figure:
    """Where held-out conversations of both classes lie along the direction of one layer, each a point.

    Raises:
        ValueError: the layer was not read.
    """
    s = separability
    if layer not in s.layers:
        raise ValueError(
            f"layer {layer} is not among those of {s.name!r}: choose one of {', '.join(map(str, s.layers))}"
        )
    row = s.layers.index(layer)
    auc = interval(float(s.auc[row]), float(s.low[row]), float(s.high[row]))
    name = _label(s.name)
    figure = _figure(
        f"{name} at layer {layer}{_in_model(model)}", f"held-out AUC {auc}; each point is one conversation", 300
    )
    for values, color, label in (
        (s.negative[:, row], SECOND, "negative class"),
        (s.positive[:, row], FIRST, "positive class"),
    ):
        figure.add_violin(
            x=values.tolist(),
            name=label,
            orientation="h",
            side="positive",
            width=1.5,
            points="all",
            pointpos=-0.28,
            jitter=0.35,
            marker={"size": 4, "color": color, "opacity": 0.55},
            line={"color": color, "width": 2},
            fillcolor=_translucent(color, 0.22),
            meanline={"visible": True},
            spanmode="soft",
            hoveron="points",
            hoverinfo="text",
            hovertext=[f"{label}<br>projection {number(value)}" for value in values.tolist()],
            showlegend=False,
        )
    figure.update_xaxes(title="projection on the direction of the other questions", zeroline=False)
    return figure


def cross_effects(effects: CrossEffects) -> go.Figure:
    """What removing and adding each direction changes in each behaviour, with intervals over the questions.

    One panel a behaviour, in its own units. Random directions of the same length are grey; a filled mark has an
    interval that excludes zero.
    """
    behaviours = list(effects.baseline)
    n_columns = min(2, len(behaviours))
    n_rows = math.ceil(len(behaviours) / n_columns)
    labels = list(dict.fromkeys(_intervention(effect) for effect in effects.effects))
    names = list(dict.fromkeys(e.direction for e in effects.effects if not is_random(e.direction)))
    colors = dict(zip(names, COLORS, strict=False))
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        shared_yaxes=True,
        horizontal_spacing=0.06,
        vertical_spacing=0.3 / n_rows,
        subplot_titles=[
            f"<b>{_label(name)}</b><br>as it is: {interval(e.value, e.low, e.high)}"
            for name, e in effects.baseline.items()
        ],
    )
    subtitle = (
        f"change against the model as it is; removed at every layer, added at layer {effects.layer} "
        f"with {effects.scale:g} of the residual norm; filled where the interval excludes zero"
    )
    height = 30 + n_rows * (110 + 16 * sum(2 + label.count("<br>") for label in labels))
    _dress(figure, f"What each direction does{_in_model(effects.model)}", subtitle, height, above=48)
    for i, behaviour in enumerate(behaviours):
        at: dict[str, Any] = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        for direction, shown in _by_direction(effects.effects, behaviour):
            figure.add_trace(_dots(shown, colors.get(direction, GREY)), **at)
        figure.add_vline(x=0, line={"color": MUTED, "width": 1}, **at)
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], showgrid=True)
    return figure.update_annotations(font_size=14)


def _figure(title: str, subtitle: str, height: int) -> go.Figure:
    return _dress(go.Figure(), title, subtitle, height)


def _dress(figure: go.Figure, title: str, subtitle: str, height: int, *, above: int = 0) -> go.Figure:
    """Title and subtitle above `height` pixels of plot, with room for their lines and for `above` pixels more."""
    lines, sublines = _lines(title, 66), _lines(subtitle, 92)
    text = f"{'<br>'.join(lines)}<br><span style='font-size:14px;color:{MUTED}'>{'<br>'.join(sublines)}</span>"
    title_height = 10 + 26 * len(lines) + 19 * len(sublines)
    figure.update_layout(template=TEMPLATE, title_text=text, meta={"title_height": title_height})
    return figure.update_layout(margin_t=title_height + 24 + above, height=title_height + 24 + above + height)


def _line(  # noqa: PLR0913 - what is drawn and how
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


def _band(  # noqa: PLR0913 - what is drawn and how
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
    for first, last in _runs((low.isfinite() & high.isfinite()).tolist()):
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
        fillcolor=_translucent(color, opacity),
        name=name,
        legendgroup=group,
        showlegend=group is None,
        hoverinfo="skip",
    )


def _control_lines(
    layers: Sequence[int], controls: Sequence[str], values: Float[Tensor, "control layer"], side: str, color: str
) -> Iterator[go.Scatter]:
    for control, row in zip(controls, values, strict=True):
        title = f"{_label(control)} × {side}"
        hover = [f"layer {x}<br>{title}: corrected cosine {number(y)}" for x, y in _points(layers, row)]
        line = _line(layers, row, color, _label(control), width=1.0, group=f"controls {color}")
        yield line.update(
            opacity=0.5, hovertext=hover, legendgrouptitle_text=_broken(f"controls × {side}", 26), legendrank=2000
        )


def _dots(effects: Sequence[Effect], color: str) -> go.Scatter:
    changes = [effect.change for effect in effects]
    return go.Scatter(
        x=[c.value for c in changes],
        y=[_intervention(effect) for effect in effects],
        mode="markers",
        marker={
            "size": 11,
            "color": [color if c.excludes_zero else "white" for c in changes],
            "line": {"color": color, "width": 2},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [c.high - c.value for c in changes],
            "arrayminus": [c.value - c.low for c in changes],
            "color": color,
            "thickness": 2,
            "width": 0,
        },
        hoverinfo="text",
        hovertext=[
            f"{_intervention(effect)}<br>{interval(c.value, c.low, c.high, '+.2f')}, {c.n} questions"
            for effect, c in zip(effects, changes, strict=True)
        ],
        showlegend=False,
    )


def _by_direction(effects: Sequence[Effect], behaviour: str) -> Iterator[tuple[str, list[Effect]]]:
    shown = [effect for effect in effects if effect.behaviour == behaviour]
    for direction, run in groupby(shown, key=lambda effect: effect.direction):
        yield direction, list(run)


def _mark_missing(figure: go.Figure, layers: Sequence[int], first: int, last: int) -> None:
    """Shade a run of layers at which one side has no direction, and say so in words."""
    left = (layers[first - 1] + layers[first]) / 2 if first else layers[0] - 0.5
    right = (layers[last] + layers[last + 1]) / 2 if last + 1 < len(layers) else layers[-1] + 0.5
    everywhere = last - first + 1 == len(layers)
    narrow = (right - left) / (layers[-1] - layers[0] + 1) < 0.2
    figure.add_shape(
        type="rect",
        x0=left,
        x1=right,
        y0=0,
        y1=1,
        yref="y domain",
        fillcolor=GREY,
        opacity=0.12,
        line_width=0,
        layer="below",
    )
    figure.add_annotation(
        text="no direction here" + (", at any layer" if everywhere else ""),
        x=(left + right) / 2,
        y=0.7,  # between the cosines and the ceiling, where the plot is emptiest
        yref="y domain",
        textangle=-90 if narrow and not everywhere else 0,
        showarrow=False,
        font={"size": 13, "color": MUTED},
        bgcolor="rgba(245,246,248,0.8)",
    )


def _name_largest_control(figure: go.Figure, c: Comparison) -> None:
    """Write the name of the control line that goes farthest from zero on each side next to it."""
    peak = clearest(c)
    for values, color in ((c.controls_a, FIRST), (c.controls_b, SECOND)):
        sizes = values.abs().nan_to_num(-1)
        if not sizes.numel() or sizes.max() < 0:
            continue
        control, row = divmod(int(sizes.argmax()), len(c.layers))
        above = float(values[control, row]) > 0
        figure.add_annotation(
            text=_label(c.controls[control]),
            x=c.layers[row],
            y=float(values[control, row]),
            showarrow=False,
            xanchor=_anchor(row, len(c.layers), peak),
            yshift=10 if above else -10,
            font={"size": 13, "color": color},
        )


def _name_ceiling(figure: go.Figure, c: Comparison) -> None:
    rows = c.ceiling.isfinite().nonzero().flatten().tolist()
    if rows:
        figure.add_annotation(
            text="plug-in ceiling",
            x=c.layers[rows[-1]],
            y=float(c.ceiling[rows[-1]]),
            showarrow=False,
            xanchor=_anchor(rows[-1], len(c.layers)),
            yshift=-12,
            font={"size": 13, "color": CEILING},
        )


def _name_peak(figure: go.Figure, c: Comparison) -> None:
    row = clearest(c)
    if row is None:
        return
    value = float(c.corrected[row])
    figure.add_annotation(
        text=f"<b>{interval(value, float(c.low[row]), float(c.high[row]))}</b> at layer {c.layers[row]}",
        x=c.layers[row],
        y=float(c.high[row] if value > 0 else c.low[row]),
        ay=-34 if value > 0 else 34,
        ax=0,
        xanchor=_anchor(row, len(c.layers)),
        arrowcolor=FOUND,
        arrowhead=0,
        font={"size": 14, "color": FOUND},
        bgcolor="rgba(255,255,255,0.8)",
    )


def _anchor(row: int, n: int, peak: int | None = None) -> str:
    """Keep a label inside the plot, and off the label of the peak: it extends away from the edge, or from that."""
    place = (row + 0.5) / n
    if place < 0.25 or place > 0.75:
        return "left" if place < 0.25 else "right"
    return "center" if peak is None or peak == row else "left" if peak < row else "right"


def _cells(c: Comparison) -> list[str]:
    """What the pointer shows at each layer: every number of it, with its interval and its nulls."""
    a, b = _label(c.a), _label(c.b)
    cells = []
    for row, layer in enumerate(c.layers):
        missing = " and ".join(name for name, found in ((a, c.found_a[row]), (b, c.found_b[row])) if not found)
        found = interval(float(c.corrected[row]), float(c.low[row]), float(c.high[row]))
        (low_a, high_a), (low_b, high_b) = c.null_a[:, row].tolist(), c.null_b[:, row].tolist()
        cells.append(
            f"<b>layer {layer}</b><br>"
            + (f"no direction here: {missing}" if missing else f"noise-corrected {found}")
            + f"<br>plug-in {number(float(c.cosine[row]))}"
            + f"<br>labels of {a} permuted: {number(low_a)} … {number(high_a)}"
            + f"<br>labels of {b} permuted: {number(low_b)} … {number(high_b)}"
            + f"<br>ceiling {number(float(c.ceiling[row]))}"
        )
    return cells


def _runs(wanted: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last index of every unbroken run of True."""
    runs = [list(run) for value, run in groupby(range(len(wanted)), key=lambda i: wanted[i]) if value]
    return [(run[0], run[-1]) for run in runs]


def _points(layers: Sequence[int], values: Float[Tensor, " layer"]) -> Iterator[tuple[int, float]]:
    return zip(layers, values.tolist(), strict=True)


def _layer_ticks(layers: Sequence[int]) -> dict[str, Any]:
    """Whole layer numbers, at most sixteen of them, and half a layer of room at both ends."""
    extent = layers[-1] - layers[0]
    step = next((step for step in (1, 2, 5, 10, 20) if extent / step < 16), 50)
    return {"dtick": step, "tick0": 0, "range": [layers[0] - 0.5, layers[-1] + 0.5]}


def _intervention(effect: Effect) -> str:
    return _broken(f"{_label(effect.direction)} {_label(effect.intervention)}", 26)


def _label(name: str) -> str:
    """A name as Plotly may show it: Plotly reads tags in every text, so what looks like one is escaped."""
    readable = name.replace("_", " ")
    return html.escape(readable if len(readable) <= 60 else f"{readable[:59]}…", quote=False)


def _in_model(model: str) -> str:
    return f" in {_label(model.split('/')[-1])}" if model else ""


def clearest(comparison: Comparison) -> int | None:
    """The row whose interval stays farthest from zero, or the largest cosine where every interval includes zero."""
    c = comparison
    if not c.corrected.isfinite().any():
        return None
    margin = c.low.maximum(-c.high).nan_to_num(-2)
    return int(margin.argmax() if margin.max() > 0 else c.corrected.abs().nan_to_num(-1).argmax())


def is_random(direction: str) -> bool:
    """Whether a direction of `cross_effects` is a random one."""
    return direction.split(" ")[0] == "random"


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


def _translucent(color: str, opacity: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False) or [text]


def _broken(text: str, width: int) -> str:
    return "<br>".join(_lines(text, width))
