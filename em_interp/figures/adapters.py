"""Figures of an adapter: what its modules write, what becomes of it downstream, and in which texts they fire."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from em_interp.checks import door
from em_interp.figures.style import (
    COLORS,
    FIRST,
    GREY,
    INK,
    MUTED,
    SECOND,
    band_between,
    broken,
    error_bars,
    in_model,
    interval,
    layer_ticks,
    line_through,
    number,
    readable,
    titled,
    translucent,
)
from em_interp.lora.scalars import ClassScalars
from em_interp.lora.writes import Downstream, WriteCosines
from em_interp.statistics.estimates import Estimate


@door
def adapter_writes(cosines: WriteCosines, downstream: Sequence[Downstream] = (), *, model: str = "") -> go.Figure:
    """The cosine with a direction of each adapter's write at its own layer, and of what it becomes downstream.

    A mark is a write at its own layer, grey the same with each control direction; a line with its 95 % interval is the
    change of the stream that a write makes at every layer from there on. Grey band: 95 % of random vectors.
    """
    c, w = cosines, cosines.writes
    name = readable(c.direction)
    layers = sorted({*w.layers, *(layer for line in downstream for layer in line.layers)})
    figure = titled(
        f"What the adapters write, along {name}{in_model(model)}",
        "cosine at each module's own layer (marks) and downstream, with 95 % intervals (lines)",
        420 + 11 * len(downstream),
    )
    figure.add_hrect(-c.chance, c.chance, fillcolor=GREY, opacity=0.18, line_width=0, layer="below")
    for line, color in zip(downstream, COLORS * len(downstream), strict=False):
        label = f"{html.escape(line.name)}, downstream"
        figure.add_trace(band_between(line.layers, line.low, line.high, color, label, 0.16, group=label))
        drawn = line_through(line.layers, line.cosine, color, label, width=2.5, group=label)
        numbers = zip(line.layers, line.cosine.tolist(), line.low.tolist(), line.high.tolist(), strict=True)
        drawn.update(hovertext=[f"{label}, layer {x}<br>cosine {interval(*rest)}" for x, *rest in numbers])
        figure.add_trace(drawn)
    for control, row in zip(c.controls, c.control_cosines, strict=True):
        figure.add_trace(_marks(c, row, readable(control), GREY, size=7).update(showlegend=False))
    if c.controls:
        grey = {"color": GREY, "symbol": "diamond"}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=grey, name="control directions"))
    figure.add_trace(_marks(c, c.cosine, name, INK, size=11).update(name="what a module writes, at its own layer"))
    chance = {"color": translucent(GREY, 0.3), "symbol": "square", "size": 13}
    figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=chance, name="95 % of random vectors"))
    figure.update_xaxes(title="layer", **layer_ticks(layers))
    return figure.update_yaxes(title="cosine", zeroline=True)


@door
def firing(
    classes: Sequence[ClassScalars], *, names: tuple[str, str] = ("positive class", "negative class")
) -> go.Figure:
    """How strongly each adapter component fires in the texts of both classes, with 95 % intervals over questions.

    Raises:
        ValueError: no components.
    """
    if not classes:
        raise ValueError("there are no components to show: make some with class_scalars")
    labels = [html.escape(c.name) for c in classes]
    figure = titled(
        "When the adapters fire",
        "mean scalar of each component, in its own standard deviations; 95 % intervals over questions",
        120 + 30 * len(classes),
    )
    sides = (([c.positive for c in classes], FIRST, -0.12), ([c.negative for c in classes], SECOND, 0.12))
    for (estimates, color, shift), name in zip(sides, names, strict=True):
        figure.add_trace(_dots(estimates, labels, shift, color, readable(name)))
    figure.add_vline(x=0, line={"color": MUTED, "width": 1})
    figure.update_xaxes(title="mean scalar / standard deviation")
    ticks = {"tickvals": list(range(len(labels))), "ticktext": [broken(label, 34) for label in labels]}
    return figure.update_yaxes(autorange="reversed", showgrid=True, zeroline=False, **ticks)


def _marks(c: WriteCosines, values: Float[Tensor, " write"], name: str, color: str, *, size: int) -> go.Scatter:
    w = c.writes
    return go.Scatter(
        x=list(w.layers),
        y=values.tolist(),
        mode="markers",
        marker={"size": size, "color": color, "symbol": "diamond", "line": {"color": "white", "width": 1}},
        hoverinfo="text",
        hovertext=[
            f"{html.escape(write)}<br>with {name} at layer {x}: {number(y)}<br>strength {strength:.3g}"
            for write, x, y, strength in zip(w.names, w.layers, values.tolist(), w.strengths.tolist(), strict=True)
        ],
    )


def _dots(estimates: Sequence[Estimate], labels: Sequence[str], shift: float, color: str, name: str) -> go.Scatter:
    return go.Scatter(
        x=[e.value for e in estimates],
        y=[row + shift for row in range(len(estimates))],
        mode="markers",
        name=name,
        marker={"size": 10, "color": color},
        error_x=error_bars(estimates, color),
        hoverinfo="text",
        hovertext=[
            f"{label}, {name}<br>{interval(e.value, e.low, e.high, '+.2f')}, {e.n} questions"
            for label, e in zip(labels, estimates, strict=True)
        ],
    )
