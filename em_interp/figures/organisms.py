"""Figures of organisms: what fine-tunes changed, and whether they converge."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from em_interp.checks import door
from em_interp.directions.comparison import Comparison
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
    error_bars,
    interval,
    layer_ticks,
    line_through,
    number,
    points,
    readable,
    titled,
)
from em_interp.organisms.effects import OrganismEffects
from em_interp.organisms.relatives import Convergence
from em_interp.organisms.seeds import without_seed
from em_interp.statistics import Estimate


@door
def organism_effects(organisms: Mapping[str, OrganismEffects]) -> go.Figure:
    """What each organism's fine-tune changed in each behaviour, one panel a behaviour, with intervals over questions.

    A filled mark has an interval that excludes zero.
    """
    behaviours = {c.behaviour: c.label for effects in organisms.values() for c in effects.changes}
    n_columns = min(2, len(behaviours))
    n_rows = math.ceil(len(behaviours) / n_columns)
    titles = [f"<b>{broken(readable(label), 38)}</b>" for label in behaviours.values()]
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        shared_yaxes=True,
        horizontal_spacing=0.06,
        vertical_spacing=0.36 / n_rows,
        subplot_titles=titles,
    )
    height = n_rows * (124 + 30 * len(organisms))
    dress(
        figure,
        "What each fine-tune changed",
        "trained minus base, paired by question; filled where the interval excludes zero",
        height,
        above=48,
    )
    for i, behaviour in enumerate(behaviours):
        at: dict[str, Any] = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        for (name, effects), color in zip(organisms.items(), COLORS * len(organisms), strict=False):
            change = effects[behaviour].change if behaviour in effects else None
            figure.add_trace(_mark(readable(name), change, color), **at)
        figure.add_vline(x=0, line={"color": MUTED, "width": 1}, **at)
    order = [readable(name) for name in organisms][::-1]
    figure.update_yaxes(categoryorder="array", categoryarray=order, showgrid=True)
    return figure.update_annotations(font_size=13)


@door
def convergence_map(convergence: Convergence, layer: int, *, over_seeds: bool = False) -> go.Figure:
    """Every organism with every other at one layer: on the same texts above the diagonal, what was added below it.

    On the diagonal stands each organism with its own base. Every cell has its 95 % interval.

    Args:
        convergence: of the organisms.
        layer: one that was read.
        over_seeds: one row an organism in place of one a seed, with means over seeds, whose intervals are over seeds
            and questions. A last column says how alike those directions are that its own seeds added.
    """
    cells = _cells_over_seeds(convergence, layer) if over_seeds else _cells(convergence, layer)
    rows, columns = (list(dict.fromkeys(pair[side] for pair in cells)) for side in (0, 1))
    figure = titled(
        f"Organism against organism at layer {layer}",
        "noise-corrected cosine: same texts above the diagonal, what the fine-tunes added below it, own base on it"
        + ", what its seeds added at the right" * over_seeds,
        110 + 84 * len(rows),
    )
    labels = {name: broken(readable(name), 16) for name in (*rows, *columns)}
    figure.add_heatmap(
        z=[[cells[a, b][0] for b in columns] for a in rows],
        x=[labels[b] for b in columns],
        y=[labels[a] for a in rows],
        zmin=-1,
        zmax=1,
        zmid=0,
        colorscale="RdBu_r",
        colorbar={"title": {"text": "cosine", "font": {"size": 14}}, "thickness": 14, "outlinewidth": 0},
        hoverinfo="skip",
    )
    for (a, b), (value, low, high) in cells.items():
        text = (
            f"<b>{number(value)}</b><br>[{number(low)}, {number(high)}]" if math.isfinite(value) else "no<br>direction"
        )
        font = {"size": 13, "color": "white" if math.isfinite(value) and abs(value) > 0.6 else INK}
        figure.add_annotation(x=labels[b], y=labels[a], text=text, showarrow=False, font=font)
    figure.update_xaxes(showgrid=False, side="bottom")
    return figure.update_yaxes(showgrid=False, autorange="reversed")


_Cells = dict[tuple[str, str], tuple[float, float, float]]  # cosine and interval by row and column


def _cells(c: Convergence, layer: int) -> _Cells:
    at = c.layers.index(layer)
    compared = {(name, name): comparison for name, comparison in c.with_base.items()}
    for a, b in c.same_texts:
        compared |= {(a, b): c.same_texts[a, b], (b, a): c.added[a, b]}

    def cell(comparison: Comparison) -> tuple[float, float, float]:
        return float(comparison.corrected[at]), float(comparison.low[at]), float(comparison.high[at])

    return {(a, b): cell(compared[a, b]) for a in c.names for b in c.names}


def _cells_over_seeds(c: Convergence, layer: int) -> _Cells:
    found = {(row["texts"], row["a"], row["b"]): row for row in c.summary(layer)}
    names = list(dict.fromkeys(map(without_seed, c.names)))
    cells: _Cells = {}
    for i, a in enumerate(names):
        keys = [("added", b, a) if j < i else ("same texts", a, b) for j, b in enumerate(names)]
        keys[i] = ("with its base", a, "base")
        for b, key in zip((*names, "its own seeds"), (*keys, ("added", a, a)), strict=True):
            row = found.get(key, {})
            cells[a, b] = (row.get("mean", math.nan), row.get("low", math.nan), row.get("high", math.nan))
    return cells


@door
def models_by_layer(comparisons: Mapping[str, Comparison]) -> go.Figure:
    """The cosine of two directions at every layer, in several models: base, aligned, misaligned.

    Raises:
        ValueError: there are none.
    """
    if not comparisons:
        raise ValueError("there are no comparisons to draw: give one a model, by its name")
    title, subtitle = "The same two directions, model by model", "noise-corrected cosine with its 95 % interval"
    figure = titled(title, subtitle, 440 + 22 * len(comparisons))
    return _add_lines(figure, comparisons, (GREY, SECOND, FIRST, FOUND, CEILING))


@door
def added_by_layer(
    same_texts: Comparison, added: Comparison, explained: Float[Tensor, " layer"], *, names: tuple[str, str]
) -> go.Figure:
    """An organism's direction with its base's on the same texts, and what the fine-tune added with a second direction.

    The dotted line is the share of the direction's squared length that lies along its base's, at most 1.
    """
    figure = titled(
        "What the texts explain, and what the fine-tune added",
        "noise-corrected cosine with its 95 % interval; dotted: share of the squared length",
        480,
    )
    first, second = map(readable, names)
    lines = {f"{first}: organism × its base": same_texts, f"{first}, what was added × {second} of the base": added}
    _add_lines(figure, lines, (SECOND, FIRST))
    share = line_through(same_texts.layers, explained, SECOND, "share that the base explains", width=1.5, dash="dot")
    share.update(hovertext=[f"layer {x}<br>share {number(y)}" for x, y in points(same_texts.layers, explained)])
    return figure.add_trace(share)


def _add_lines(figure: go.Figure, comparisons: Mapping[str, Comparison], colors: Sequence[str]) -> go.Figure:
    layers: tuple[int, ...] = ()
    for (name, c), color in zip(comparisons.items(), colors, strict=False):
        layers = c.layers
        group = readable(name)
        line = line_through(c.layers, c.corrected, color, group, width=2.5, group=group)
        line.update(hovertext=_told(group, f"{readable(c.a)} × {readable(c.b)}", c))
        figure.add_traces([band_between(c.layers, c.low, c.high, color, group, 0.18, group=group), line])
    figure.update_xaxes(title="layer", **layer_ticks(layers))
    return figure.update_yaxes(title="cosine", zeroline=True)


def _told(name: str, kind: str, c: Comparison) -> list[str]:
    return [
        f"{name}, {kind}, layer {layer}<br>"
        + interval(float(c.corrected[row]), float(c.low[row]), float(c.high[row]))
        + f"<br>ceiling {number(float(c.ceiling[row]))}"
        for row, layer in enumerate(c.layers)
    ]


def _mark(label: str, change: Estimate | None, color: str) -> go.Scatter:
    if change is None:
        return go.Scatter(x=[None], y=[label], mode="markers", showlegend=False, hoverinfo="skip")
    return go.Scatter(
        x=[change.value],
        y=[label],
        mode="markers",
        marker={"size": 11, "color": color if change.excludes_zero else "white", "line": {"color": color, "width": 2}},
        error_x=error_bars([change], color),
        hoverinfo="text",
        hovertext=f"{label}<br>{interval(change.value, change.low, change.high, '+.2f')}, {change.n} questions",
        showlegend=False,
    )
