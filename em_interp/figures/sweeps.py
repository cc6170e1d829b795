"""Figures of searches over recipes: effects against a setting, and which recipes turn."""

import html
import math
from collections.abc import Sequence

import plotly.graph_objects as go

from em_interp.checks import door
from em_interp.figures.style import (
    COLORS,
    FIRST,
    GREY,
    INK,
    MUTED,
    SECOND,
    broken,
    dress,
    interval,
    means_through,
    number,
    readable,
    titled,
)
from em_interp.organisms.sweep_results import FEWEST_SEEDS, Frontier, PointTurn
from em_interp.organisms.sweep_rows import in_words

_LEAST = 1e-3  # p-values below are drawn there


@door
def frontier(frontier: Frontier) -> go.Figure:
    """Each effect against the setting that was varied, with 95 % intervals over seeds and questions.

    Values that lie a factor of ten apart or more stand at their logarithm, and 0 to the left of them, behind a line.
    """
    f = frontier
    n = sorted(set(f.n_seeds))
    seeds = f"means of {n[0]}{f' to {n[-1]}' if len(n) > 1 else ''} seeds, 95 % intervals over seeds and questions"
    one = "one seed, 95 % intervals over questions"
    figure = titled(f"What changes with {readable(f.setting)}", one if n == [1] else seeds, 440)
    at = _places(f.values)
    for (key, effects), color in zip(f.effects.items(), COLORS * len(f.effects), strict=False):
        name = readable(f.labels[key])
        told = [
            f"{name}<br>{readable(f.setting)} = {value:g}: {interval(e.value, e.low, e.high, '+.2f')}, "
            f"{n} seed{'s' * (n != 1)}"
            for value, e, n in zip(f.values, effects, f.n_seeds, strict=True)
        ]
        figure.add_trace(means_through(at, effects, color, name, told))
    figure.update_xaxes(title=readable(f.setting), tickvals=at, ticktext=[f"{value:g}" for value in f.values])
    if at != list(f.values) and f.values[0] == 0 and len(at) > 1:
        figure.add_vline(x=(at[0] + at[1]) / 2, line={"color": GREY, "width": 1, "dash": "dot"})
    return figure.update_yaxes(title="change by the fine-tune", zeroline=True)


@door
def turn_map(turns: Sequence[PointTurn]) -> go.Figure:
    """The p-value of every seed of every recipe in a search, one row a recipe, sorted; filled where the recipe turns.

    A line marks p = .05 of one seed alone. What failed is not drawn, and said.

    Raises:
        ValueError: there are none.
    """
    if not turns:
        raise ValueError("there are no recipes to draw: give those of SweepResult.turns()")
    order = sorted(turns, key=lambda turn: turn.corrected, reverse=True)
    rows = [_row(turn) for turn in order]
    found = sum(turn.turns for turn in turns)
    said = f"{found} of {len(turns)} turn after correction for the search" if found else "none turns after correction"
    figure = dress(
        go.Figure(),
        "Which recipes turn in the midst of their training",
        f"p of each seed (circles) and of the recipe, corrected for the search (diamond); {said}",
        max(90 + (26 + 18 * max(row.count("<br>") for row in rows)) * len(rows), 240),
    )
    for turn, row in zip(order, rows, strict=True):
        color = FIRST if turn.turns else SECOND
        drawn = {seed: p for seed, p in turn.p_values.items() if not math.isnan(p)}
        failed = len(turn.p_values) - len(drawn)
        figure.add_scatter(
            x=[max(p, _LEAST) for p in drawn.values()],
            y=[row] * len(drawn),
            mode="markers",
            marker={"size": 10, "color": color if turn.turns else "white", "line": {"color": color, "width": 2}},
            hoverinfo="text",
            hovertext=[f"{row}<br>seed {seed}: p = {number(p, '.3f')}" for seed, p in drawn.items()],
            showlegend=False,
        )
        few = f", of fewer than {FEWEST_SEEDS} seeds" if len(turn.p_values) < FEWEST_SEEDS else ""
        figure.add_scatter(
            x=[max(turn.corrected, _LEAST)],
            y=[row],
            mode="markers",
            marker={
                "size": 12,
                "symbol": "diamond",
                "color": color if turn.turns else "white",
                "line": {"color": INK, "width": 2},
            },
            hoverinfo="text",
            hovertext=f"{row}<br>corrected p = {turn.corrected:.3g}{few}" + (f"<br>{failed} failed" if failed else ""),
            showlegend=False,
        )
    figure.add_vline(x=0.05, line={"color": MUTED, "width": 1, "dash": "dash"})
    figure.update_xaxes(
        title="p",
        type="log",
        range=[math.log10(_LEAST) - 0.1, 0.1],
        tickvals=[0.001, 0.01, 0.05, 0.1, 1],
        ticktext=["≤ .001", ".01", ".05", ".1", "1"],
    )
    return figure.update_yaxes(categoryorder="array", categoryarray=rows, showgrid=True)


def _row(turn: PointTurn) -> str:
    """What a recipe sets, broken between settings and never within one, and never cut, so that each has its own row."""
    settings = [in_words({name: value}) for name, value in turn.point.items()] or [in_words(turn.point)]
    told = ", ".join(setting.replace("_", " ").replace(" ", "\u00a0") for setting in settings)
    return broken(html.escape(told, quote=False), 44)


def _places(values: Sequence[float]) -> list[float]:
    """Where each value stands: at its logarithm where they are far apart, with 0 one step to the left of the others."""
    positive = [value for value in values if value > 0]
    if values[0] < 0 or len(positive) < 2 or positive[-1] / positive[0] < 10:
        return list(values)
    logs = [math.log10(value) for value in positive]
    return [logs[0] - (logs[-1] - logs[0]) / 4, *logs] if values[0] == 0 else logs
