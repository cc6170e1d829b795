"""Figures of effects: what an intervention changes in what the model does."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from em_interp.behaviour import CrossEffects, Effect
from em_interp.figures.style import COLORS, GREY, MUTED, broken, dress, error_bars, in_model, interval, readable


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
            f"<b>{readable(name)}</b><br>as it is: {interval(e.value, e.low, e.high)}"
            for name, e in effects.baseline.items()
        ],
    )
    subtitle = (
        f"change against the model as it is; removed at every layer, added at layer {effects.layer} "
        f"with {effects.scale:g} of the residual norm; filled where the interval excludes zero"
    )
    height = 30 + n_rows * (110 + 16 * sum(2 + label.count("<br>") for label in labels))
    dress(figure, f"What each direction does{in_model(effects.model)}", subtitle, height, above=48)
    for i, behaviour in enumerate(behaviours):
        at: dict[str, Any] = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        for direction, shown in _by_direction(effects.effects, behaviour):
            figure.add_trace(_dots(shown, colors.get(direction, GREY)), **at)
        figure.add_vline(x=0, line={"color": MUTED, "width": 1}, **at)
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], showgrid=True)
    return figure.update_annotations(font_size=14)


def is_random(direction: str) -> bool:
    """Whether a direction of `cross_effects` is a random one."""
    return direction.split(" ")[0] == "random"


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
        error_x=error_bars(changes, color),
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


def _intervention(effect: Effect) -> str:
    return broken(f"{readable(effect.direction)} {readable(effect.intervention)}", 26)
