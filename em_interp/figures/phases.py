"""Figures of training: where an adapter's direction turns, its path, and when the behaviour follows."""

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from em_interp.checks import door
from em_interp.figures.style import (
    CEILING,
    COLORS,
    FIRST,
    FOUND,
    GREY,
    INK,
    SECOND,
    band_between,
    dress,
    line_through,
    number,
    readable,
)
from em_interp.organisms.phase_change import EffectPath, Phases
from em_interp.organisms.turning_points import ChangePoint

_EARLY_TO_LATE = "Viridis"
_ABOVE = 14  # pixels for the name of the turn


@door
def phase_change(phases: Phases) -> go.Figure:
    """Everything that a phase change shows in, over the optimizer steps, with the turn where one was found.

    Length and cosine with the final vector; the local cosine of each window, with the band that a straight path with
    this noise would lie in; gradient norm and loss where the training recorded them.
    """
    p, panels = phases, ["norm", "cosine", "local", *(["grad", "loss"] if phases.grad_norm is not None else [])]
    heights = [1.9 if panel == "local" else 1.0 for panel in panels]
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.035,
        row_heights=[h / sum(heights) for h in heights],
    )
    dress(
        figure,
        f"{_name(p)} over training",
        f"{_verdict(p.change_point)}; shaded: a straight path with this noise",
        90 + int(125 * sum(heights)),
        above=_ABOVE,
    )
    curves: list[tuple[str, str, Tensor | None, str]] = [
        ("norm", "norm", p.norm, SECOND),
        ("cosine", "cosine to<br>the final", p.cosine_to_final, FOUND),
        ("grad", "gradient<br>norm", p.grad_norm, FIRST),
        ("loss", "loss", p.loss, CEILING),
    ]
    for panel, title, values, color in curves:
        if values is not None:
            row = panels.index(panel) + 1
            figure.add_trace(_curve(p.steps, values, color, title.replace("<br>", " ")), row=row, col=1)
            figure.update_yaxes(title=title, row=row, col=1)
    row = panels.index("local") + 1
    _add_local_cosines(figure, p, row)
    figure.update_yaxes(title="local cosine", row=row, col=1)
    _mark_turn(figure, p.change_point, rows=len(panels))
    figure.update_xaxes(range=_room(p.steps))
    return figure.update_xaxes(title="optimizer step", row=len(panels), col=1)


@door
def training_path(phases: Phases) -> go.Figure:
    """The path of the adapter in its first two principal components, coloured by step, with start, end and turn."""
    p = phases
    shares = [f"{100 * share:.0f} %" for share in p.explained.tolist()]
    figure = dress(
        go.Figure(), f"{_name(p)} in its principal plane", f"{_verdict(p.change_point)}; both axes have one scale", 460
    )
    second = p.pca[:, 1] if p.pca.shape[1] > 1 else p.pca[:, 0] * 0
    x, y, steps = p.pca[:, 0].tolist(), second.tolist(), p.steps.tolist()
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"color": GREY, "width": 1},
        marker={
            "size": 9,
            "color": steps,
            "colorscale": _EARLY_TO_LATE,
            "colorbar": {
                "title": {"text": "step", "font": {"size": 14}},
                "thickness": 14,
                "outlinewidth": 0,
                "len": 0.9,
            },
        },
        hoverinfo="text",
        hovertext=[f"step {step}<br>norm {norm:.3g}" for step, norm in zip(steps, p.norm.tolist(), strict=True)],
        showlegend=False,
    )
    marked = {"start": 0, "end": len(steps) - 1}
    if p.change_point.found:
        marked[f"<b>turn, step {p.change_point.step}</b>"] = steps.index(p.change_point.step)
    for text, at in marked.items():
        _name_point(figure, x, y, at, text)
    figure.update_xaxes(title=f"first component ({shares[0]} of the variance)", zeroline=False)
    figure.update_yaxes(title=f"second component ({shares[1] if len(shares) > 1 else '0 %'})", zeroline=False)
    figure.update_yaxes(scaleanchor="x", constrain="domain").update_xaxes(constrain="domain")
    return figure.update_layout(margin_r=110)


@door
def effect_by_step(effect_path: EffectPath, phases: Phases | None = None) -> go.Figure:
    """What the model does at every checkpoint, a line for each factor the adapter is scaled with, and the turn."""
    e = effect_path
    subtitle = "with the adapter scaled, and 95 % intervals" + (f"; {_verdict(phases.change_point)}" if phases else "")
    figure = dress(go.Figure(), f"{readable(e.behaviour)} over training", subtitle, 400, above=_ABOVE)
    for i, scale in enumerate(e.scales):
        color, name = COLORS[i % len(COLORS)], f"adapter × {scale:g}"
        figure.add_trace(band_between(e.steps.tolist(), e.low[i], e.high[i], color, name, 0.14, group=name))
        numbers = zip(e.steps.tolist(), e.value[i].tolist(), e.low[i].tolist(), e.high[i].tolist(), strict=True)
        hover = [f"{name}, step {step}<br>{number(v)} [{number(lo)}, {number(hi)}]" for step, v, lo, hi in numbers]
        line = line_through(e.steps.tolist(), e.value[i], color, name, width=2.5, group=name)
        figure.add_trace(line.update(mode="lines+markers", marker_size=6, hovertext=hover))
    if phases is not None:
        _mark_turn(figure, phases.change_point, rows=1)
    figure.update_xaxes(title="optimizer step", range=_room(e.steps))
    return figure.update_yaxes(title=readable(e.behaviour))


def _curve(steps: Tensor, values: Tensor, color: str, name: str) -> go.Scatter:
    line = line_through(steps.tolist(), values, color, name, width=2.5).update(showlegend=False)
    hover = [f"step {x}<br>{name} {'–' if math.isnan(y) else f'{y:.3g}'}" for x, y in _pairs(steps, values)]
    return line.update(hovertext=hover)


def _add_local_cosines(figure: go.Figure, p: Phases, row: int) -> None:
    steps = p.steps.tolist()
    for i, window in enumerate(p.windows):
        color, name = COLORS[i % len(COLORS)], f"window of {window} checkpoint{'s' * (window != 1)}"
        low, high = p.floor[:, i]
        figure.add_trace(band_between(steps, low, high, color, name, 0.16, group=name), row=row, col=1)
        line = line_through(steps, p.local_cosine[i], color, name, width=2.5, group=name)
        hover = [
            f"step {x}, {name}<br>local cosine {number(y)}<br>a straight path: {number(lo)} … {number(hi)}"
            for x, y, lo, hi in zip(steps, p.local_cosine[i].tolist(), low.tolist(), high.tolist(), strict=True)
        ]
        figure.add_trace(line.update(hovertext=hover), row=row, col=1)


def _mark_turn(figure: go.Figure, turn: ChangePoint, rows: int) -> None:
    """A line at the turn and its interval shaded, through every panel; nothing where none was found."""
    if not turn.found:
        return
    for row in range(1, rows + 1):
        at: dict[str, Any] = {"row": row, "col": 1}
        if turn.high > turn.low:
            figure.add_vrect(x0=turn.low, x1=turn.high, fillcolor=GREY, opacity=0.2, line_width=0, layer="below", **at)
        figure.add_vline(x=turn.step, line={"color": INK, "width": 1.5, "dash": "dash"}, **at)
    figure.add_annotation(
        text=f"<b>turn, step {turn.step}</b>",
        x=turn.step,
        y=1,
        yref="y domain",
        yanchor="bottom",
        showarrow=False,
        font={"size": 13, "color": INK},
    )


def _name_point(figure: go.Figure, x: Sequence[float], y: Sequence[float], at: int, text: str) -> None:
    """A label away from the middle of the path, so that it lies on none of it."""
    above = y[at] >= (min(y) + max(y)) / 2
    figure.add_annotation(
        text=text,
        x=x[at],
        y=y[at],
        ax=0,
        ay=-32 if above else 32,
        arrowcolor=INK,
        arrowhead=0,
        font={"size": 14, "color": INK},
        bgcolor="rgba(255,255,255,0.8)",
    )


def _verdict(turn: ChangePoint) -> str:
    if not turn.found:
        return f"no change of direction found (p = {turn.p_value:.3f})"
    angle = "" if math.isnan(turn.angle) else f" by {turn.angle:.0f}°"
    return f"turns{angle} at step {turn.step} [{turn.low}, {turn.high}] (p = {turn.p_value:.3f})"


def _name(p: Phases) -> str:
    return html.escape(p.name, quote=False)  # module names keep their underscores


def _pairs(steps: Tensor, values: Tensor) -> list[tuple[int, float]]:
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def _room(steps: Tensor) -> list[float]:
    first, last = int(steps[0]), int(steps[-1])
    return [first - 0.02 * (last - first), last + 0.02 * (last - first)]
