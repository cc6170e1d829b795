"""Figures of directions: cosines, norms, how well classes are told apart."""

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from em_interp.checks import door
from em_interp.directions.comparison import Comparison, clearest
from em_interp.directions.direction import Direction
from em_interp.directions.separation import Separability
from em_interp.figures.style import (
    CEILING,
    COLORS,
    FIRST,
    FOUND,
    GREY,
    INK,
    MUTED,
    SECOND,
    band_between,
    broken,
    dress,
    in_model,
    interval,
    layer_ticks,
    line_through,
    number,
    points,
    readable,
    runs,
    titled,
    translucent,
)


@door
def cosine_by_layer(comparison: Comparison, *, model: str = "") -> go.Figure:
    """The cosine of two directions at every layer, with all that a reader needs to judge its size.

    The noise-corrected cosine is a line with its 95 % interval as a band, and breaks off where one side has no
    direction; its marks are hollow where three dimensions dominate either direction. Beside it stand, thinner, the
    plug-in cosine, what it becomes under permuted labels (grey), what two equal directions with this much noise would
    show (ceiling), and the cosine of either side with each control.
    """
    c, layers = comparison, comparison.layers
    a, b = readable(c.a), readable(c.b)
    height = 450 + 20 * max(8, len(c.controls)) if c.controls else 500
    figure = titled(f"{a} and {b}{in_model(model)}", "cosine of their directions, layer by layer", height)
    nulls = [
        band_between(layers, null[0], null[1], GREY, broken(f"null: labels of {name} permuted", 30), 0.25).update(
            legendrank=5
        )
        for null, name in ((c.null_a, a), (c.null_b, b))
    ]
    ceiling = line_through(layers, c.ceiling, CEILING, "plug-in ceiling", dash="dash", width=1.5).update(legendrank=4)
    plug_in = line_through(layers, c.cosine, FOUND, "plug-in cosine", dash="dot", width=1.5).update(legendrank=3)
    band = band_between(layers, c.low, c.high, FOUND, "its 95 % interval", 0.22).update(legendrank=2)
    corrected = line_through(layers, c.corrected, FOUND, "noise-corrected cosine", width=3.0).update(legendrank=1)
    markers = ["circle-open" if ruled else "circle" for ruled in c.dominated.tolist()]
    corrected.update(mode="lines+markers", marker_size=7, marker_symbol=markers)
    pair = [*nulls, ceiling, plug_in, band, corrected]
    for trace in pair if c.controls else ():
        trace.update(legendgroup="pair", legendgrouptitle_text=broken(f"{a} × {b}", 30))
    for line in (ceiling, plug_in, corrected):
        line.update(hovertext=_cells(c))
    controls = [
        *_control_lines(layers, c.controls, c.controls_a, a, FIRST),
        *_control_lines(layers, c.controls, c.controls_b, b, SECOND),
    ]
    figure.add_traces([*nulls, *controls, *pair[2:]])
    found = (c.found_a & c.found_b & c.corrected.isfinite()).tolist()
    for first, last in runs([not here for here in found]):
        _mark_missing(figure, layers, first, last)
    _name_largest_control(figure, c)
    _name_ceiling(figure, c)
    _name_peak(figure, c)
    figure.update_xaxes(title="layer", **layer_ticks(layers))
    figure.update_yaxes(title="cosine", zeroline=True)
    return figure.update_layout(legend={"tracegroupgap": 24, "groupclick": "toggleitem"})


@door
def cosine_by_metric(plain: Comparison, standardised: Comparison, *, model: str = "") -> go.Figure:
    """The noise-corrected cosine in both metrics, and how much of each direction lies in three dimensions.

    Above, the cosine in the stream as it is and with every dimension in units of its within-class deviation, with 95 %
    intervals. Below, the share of each plain direction's squared length in its three largest dimensions; layers above
    the dotted line are never the headline.

    Raises:
        ValueError: the two are not one pair of contrasts at the same layers, in these metrics.
    """
    pairs = [(c.a, c.b, c.layers) for c in (plain, standardised)]
    if pairs[0] != pairs[1] or (plain.metric, standardised.metric) != ("plain", "standardised"):
        raise ValueError(
            f"{plain!r} and {standardised!r} are not the same in two metrics: give compare(a, b) first, and "
            f'compare(a, b, metric="standardised")'
        )
    a, b, layers = readable(plain.a), readable(plain.b), plain.layers
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    dress(figure, f"{a} and {b} in both metrics{in_model(model)}", "noise-corrected cosine with 95 % intervals", 560)
    for c, color, name in ((plain, FOUND, "the stream as it is"), (standardised, CEILING, "standardised dimensions")):
        figure.add_trace(band_between(layers, c.low, c.high, color, name, 0.18, group=name), row=1, col=1)
        hover = [
            f"{name}, layer {layer}<br>{interval(*numbers)}"
            for layer, *numbers in zip(layers, c.corrected.tolist(), c.low.tolist(), c.high.tolist(), strict=True)
        ]
        line = line_through(layers, c.corrected, color, name, width=2.5, group=name)
        figure.add_trace(line.update(mode="lines+markers", marker_size=6, hovertext=hover), row=1, col=1)
    for share, color, name in ((plain.dominance_a, FIRST, a), (plain.dominance_b, SECOND, b)):
        hover = [f"{name}, layer {x}<br>{y:.0%} in three dimensions" for x, y in points(layers, share)]
        line = line_through(layers, share, color, f"{name}: share in three dimensions", width=2.5)
        figure.add_trace(line.update(mode="lines+markers", marker_size=6, hovertext=hover), row=2, col=1)
    figure.add_hline(y=0.5, line={"color": GREY, "width": 1, "dash": "dot"}, row=2, col=1)  # pyright: ignore[reportArgumentType]
    figure.update_yaxes(title="cosine", zeroline=True, row=1, col=1)
    figure.update_yaxes(title="in three dimensions", range=[0, 1], tickformat=".0%", row=2, col=1)
    figure.update_xaxes(**layer_ticks(layers))
    return figure.update_xaxes(title="layer", row=2, col=1)


@door
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
    a, b = readable(a), readable(b)
    figure = titled(
        f"{a} × {b}{in_model(model)}", "plug-in cosine, layer by layer; it has no interval, and noise shrinks it", 570
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
    figure.update_xaxes(title=f"layer of {b}", showgrid=False, constrain="domain", **layer_ticks(columns))
    figure.update_yaxes(title=f"layer of {a}", showgrid=False, constrain="domain", **layer_ticks(rows))
    return figure.update_yaxes(scaleanchor="x")


@door
def norms_and_separability(
    directions: Sequence[Direction], separabilities: Sequence[Separability] = (), *, model: str = ""
) -> go.Figure:
    """How long each direction is for the stream it lies in, and how well it tells held-out conversations apart.

    Above, the distance between the class means over the mean norm of a token's residual stream. Below, the area under
    the ROC curve on questions that the direction was not computed from, with its 95 % interval; 0.5 is chance. Other
    estimators than the difference of means are dotted.
    """
    n_panels = 2 if separabilities else 1
    figure = make_subplots(rows=n_panels, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    title = "How far apart, and how well told apart" if separabilities else "How far apart the classes lie"
    dress(figure, f"{title}{in_model(model)}", "by layer, with 95 % intervals of the AUC", 300 + 240 * (n_panels - 1))
    for direction, color in zip(directions, COLORS, strict=False):
        relative = direction.norm / direction.residual_norm
        line = line_through(
            direction.layers, relative, color, readable(direction.name), width=2.5, group=readable(direction.name)
        )
        hover = [
            f"{readable(direction.name)}, layer {x}<br>relative norm {y:.3f}"
            for x, y in points(direction.layers, relative)
        ]
        figure.add_trace(line.update(mode="lines+markers", marker_size=6, hovertext=hover), row=1, col=1)
    color_of = dict(zip(dict.fromkeys(s.name for s in separabilities), COLORS, strict=False))
    for found in separabilities:
        plain, color = found.estimator == "difference_of_means", color_of[found.name]
        name = readable(found.name) + f", {readable(found.estimator)}" * (not plain)
        figure.add_trace(band_between(found.layers, found.low, found.high, color, name, 0.16, group=name), row=2, col=1)
        dash = "solid" if plain else "dot"
        line = line_through(found.layers, found.auc, color, name, width=2.5, group=name, dash=dash).update(
            showlegend=not (directions and plain)
        )
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
    figure.update_xaxes(**layer_ticks(layers))
    return figure.update_xaxes(title="layer", row=n_panels, col=1)


@door
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
    name = readable(s.name)
    figure = titled(
        f"{name} at layer {layer}{in_model(model)}", f"held-out AUC {auc}; each point is one conversation", 300
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
            fillcolor=translucent(color, 0.22),
            meanline={"visible": True},
            spanmode="soft",
            hoveron="points",
            hoverinfo="text",
            hovertext=[f"{label}<br>projection {number(value)}" for value in values.tolist()],
            showlegend=False,
        )
    figure.update_xaxes(title="projection on the direction of the other questions", zeroline=False)
    return figure


def _control_lines(
    layers: Sequence[int], controls: Sequence[str], values: Float[Tensor, "control layer"], side: str, color: str
) -> Iterator[go.Scatter]:
    for control, row in zip(controls, values, strict=True):
        title = f"{readable(control)} × {side}"
        hover = [f"layer {x}<br>{title}: corrected cosine {number(y)}" for x, y in points(layers, row)]
        line = line_through(layers, row, color, readable(control), width=1.0, group=f"controls {color}")
        yield line.update(
            opacity=0.5, hovertext=hover, legendgrouptitle_text=broken(f"controls × {side}", 26), legendrank=2000
        )


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
            text=readable(c.controls[control]),
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
    a, b = readable(c.a), readable(c.b)
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
            + f"<br>in three dimensions: {a} {c.dominance_a[row]:.0%}, {b} {c.dominance_b[row]:.0%}"
        )
    return cells
