"""Figures of effects: what an intervention changes in what the model does."""

import math
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from em_interp.behaviour.conditions import Condition
from em_interp.behaviour.effects import CrossEffects, Effect
from em_interp.behaviour.steering import SteeringCurve
from em_interp.checks import door
from em_interp.figures.style import (
    CEILING,
    COLORS,
    FIRST,
    GREY,
    MUTED,
    broken,
    dress,
    error_bars,
    in_model,
    interval,
    readable,
)


@door
def cross_effects(effects: CrossEffects) -> go.Figure:
    """What removing and adding each direction changes in each behaviour, with intervals over the questions.

    One panel a behaviour, in its own units. Random directions of the same length are grey and share a row, a mark a
    draw; a filled mark has an interval that excludes zero. Where there is a null, a grey band reaches as far as the
    largest change under permuted labels, and a diamond marks what moves its behaviour (`CrossEffects.moving`).
    """
    behaviours = effects.behaviours
    n_columns = min(2, len(behaviours))
    n_rows = math.ceil(len(behaviours) / n_columns)
    labels = list(dict.fromkeys(_row(condition) for condition in effects.conditions))
    names = list(dict.fromkeys(c.subject for c in effects.conditions if not c.random))
    colors = dict(zip(names, COLORS, strict=False))
    n_lines = max((1 + label.count("<br>") for label in labels), default=1)  # all labels have the same room
    per_row = 24 + (8 + 16 * n_lines) * len(labels)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        shared_yaxes=True,
        horizontal_spacing=0.06,
        vertical_spacing=min(92 / (n_rows * (per_row + 92)), 0.9 / max(1, n_rows - 1)),
        subplot_titles=[
            f"<b>{broken(readable(b.title), 34)}</b><br>as it is: {interval(e.value, e.low, e.high)}"
            for b in behaviours
            for e in [effects.baseline[b.key]]
        ],
    )
    at = f"layer {effects.layer}"
    subtitle = (
        f"change against the model as it is; removed at the output of every block unless it says otherwise; added at "
        f"{at}, in mean residual norms; filled where the interval excludes zero"
    )
    if effects.n_null:
        subtitle += f"; grey bands: {effects.n_null} directions of permuted labels; diamonds: moves its behaviour"
    dress(figure, f"What each direction does{in_model(effects.model)}", subtitle, n_rows * (per_row + 92), above=72)
    moving = effects.moving()
    for i, behaviour in enumerate(behaviours):
        place: dict[str, Any] = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        for subject, shown in groupby(effects.of(behaviour.key), key=lambda effect: effect.condition.subject):
            dots = list(shown)
            if any(effect.null for effect in dots):
                figure.add_trace(_null(dots), **place)
            figure.add_trace(_dots(dots, colors.get(subject, GREY), moving), **place)
        figure.add_vline(x=0, line={"color": MUTED, "width": 1}, **place)
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], showgrid=True, tickfont_size=12)
    return figure.update_annotations(font_size=14)


@door
def steering_curve(curve: SteeringCurve) -> go.Figure:
    """Effect against strength, one panel a behaviour, over one axis of strengths; the coherent window is shaded.

    The direction has its colour, random directions of the same length are grey; bars are 95 % intervals over questions.
    """
    behaviours = curve.effects.behaviours
    figure = make_subplots(
        rows=len(behaviours),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.34 / len(behaviours),
        subplot_titles=[f"<b>{readable(b.title)}</b>" for b in behaviours],
    )
    window = "; no strength keeps plain prose" if curve.window is None else "; shaded where plain prose"
    subtitle = (
        f"change against the model as it is, by how much is added at layer {curve.effects.layer}{window} "
        f"within {curve.damage:g} bits a token of what it was"
    )
    title = f"Steering with {readable(curve.direction)}{in_model(curve.effects.model)}"
    dress(figure, title, subtitle, 40 + 150 * len(behaviours), above=20)
    rivals = list(dict.fromkeys(c.direction for c in curve.effects.conditions if c.random))
    for row, behaviour in enumerate(behaviours, 1):
        place: dict[str, Any] = {"row": row, "col": 1}
        for rival in rivals:
            drawn = _curve(curve, behaviour.key, rival, GREY, name="random")
            figure.add_trace(drawn.update(showlegend=row == 1 and rival == rivals[0]), **place)
        drawn = _curve(curve, behaviour.key, curve.direction, FIRST, name=readable(curve.direction))
        figure.add_trace(drawn.update(showlegend=row == 1), **place)
        figure.add_hline(y=0, line={"color": MUTED, "width": 1}, **place)
        if curve.window is not None:
            low, high = curve.window
            figure.add_vrect(x0=low, x1=high, fillcolor=CEILING, opacity=0.1, line_width=0, **place)
    return figure.update_xaxes(
        title_text="added, in mean residual norms", row=len(behaviours), col=1
    ).update_annotations(font_size=14, x=0, xanchor="left")


def _curve(curve: SteeringCurve, behaviour: str, direction: str, color: str, *, name: str) -> go.Scatter:
    points = sorted([(0.0, None), *zip(curve.scales, curve.of(behaviour, direction), strict=True)], key=lambda p: p[0])
    told = [(x, 0.0, 0.0, 0.0) if e is None else (x, e.value, e.low, e.high) for x, e in points]
    return go.Scatter(
        x=[x for x, *_ in told],
        y=[value for _, value, _, _ in told],
        mode="lines+markers",
        name=name,
        legendgroup=name,
        line={"color": color, "width": 2},
        marker={"size": 7},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [high - value for _, value, _, high in told],
            "arrayminus": [value - low for _, value, low, _ in told],
            "color": color,
            "thickness": 1.5,
            "width": 0,
        },
        hoverinfo="text",
        hovertext=[f"{x:g}: {interval(value, low, high, '+.2f')}" for x, value, low, high in told],
    )


def _null(effects: Sequence[Effect]) -> go.Scatter:
    """Bands from minus to plus the largest change under permuted labels, one a row."""
    xs: list[float | None] = []
    ys: list[str | None] = []
    for effect in effects:
        sizes = [abs(value) for value in effect.null if not math.isnan(value)]
        if sizes:
            xs += [-max(sizes), max(sizes), None]
            ys += [_row(effect.condition)] * 2 + [None]
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        name="permuted labels",
        line={"color": GREY, "width": 14},
        opacity=0.3,
        hoverinfo="skip",
        showlegend=False,
    )


def _dots(effects: Sequence[Effect], color: str, moving: Collection[tuple[str, str]]) -> go.Scatter:
    changes = [effect.change for effect in effects]
    random = effects[0].condition.random
    return go.Scatter(
        x=[c.value for c in changes],
        y=[_row(effect.condition) for effect in effects],
        mode="markers",
        marker={
            "size": 7 if random else 11,
            "symbol": ["diamond" if (e.condition.key, e.behaviour) in moving else "circle" for e in effects],
            "opacity": 0.7 if random else 1,
            "color": [color if c.excludes_zero else "white" for c in changes],
            "line": {"color": color, "width": 2},
        },
        error_x={**error_bars(changes, color), **({"thickness": 1} if random else {})},
        hoverinfo="text",
        hovertext=[
            f"{readable(effect.condition.label)}<br>{interval(c.value, c.low, c.high, '+.2f')}, {c.n} questions"
            + (
                ""
                if math.isnan(effect.p)
                else f"<br>p = {effect.p:.3g} by {len(effect.null)} permuted labels, this cell alone"
            )
            for effect, c in zip(effects, changes, strict=True)
        ],
        showlegend=False,
    )


def _row(condition: Condition) -> str:
    return broken(f"{'random' if condition.random else readable(condition.subject)} {readable(condition.done)}", 38)
