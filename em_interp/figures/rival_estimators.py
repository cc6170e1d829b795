"""Figure of estimators: how alike they are, how well they tell classes apart, and what they do."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from em_interp.behaviour.rival_estimators import EstimatorsCompared
from em_interp.checks import door
from em_interp.figures.style import COLORS, GREY, MUTED, broken, dress, error_bars, in_model, interval, number, readable
from em_interp.statistics.estimates import Estimate


@door
def estimators(compared: EstimatorsCompared) -> go.Figure:
    """Estimators of one direction at one layer: plug-in cosines, held-out AUC, and what each does to a behaviour.

    Bars are 95 % intervals over questions. AUC of 0.5 is chance; a change is against the model as it is, where the
    direction is projected out at the layer and where it is added there.
    """
    c, names = compared, [readable(name) for name in compared.estimators]
    row = c.directions[0].row(c.layer)
    behaviours = c.effects.behaviours if c.effects else ()
    titles = ["cosines", "held-out AUC", *(broken(readable(b.title), 26) for b in behaviours)]
    figure = make_subplots(
        rows=1,
        cols=len(titles),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        column_widths=[1.5] + [1.0] * (len(titles) - 1),
        subplot_titles=[f"<b>{title}</b>" for title in titles],
    )
    model = c.directions[0].model
    subtitle = f"at layer {c.layer}" + ("; a change is against the model as it is" if behaviours else "")
    dress(figure, f"Estimators of {readable(c.contrast)}{in_model(model)}", subtitle, 200 + 56 * len(names), above=24)
    cosines = c.cosines[row].tolist()
    figure.add_heatmap(
        z=cosines,
        x=names,
        y=names,
        zmin=-1,
        zmax=1,
        colorscale="RdBu_r",
        showscale=False,
        text=[[number(value) for value in line] for line in cosines],
        texttemplate="%{text}",
        hoverinfo="skip",
        row=1,
        col=1,
    )
    aucs = [Estimate(float(s.auc[row]), float(s.low[row]), float(s.high[row]), s.n_questions) for s in c.separabilities]
    figure.add_trace(_dots(names, aucs, COLORS[0], "held-out AUC"), row=1, col=2)
    figure.add_vline(x=0.5, line={"color": GREY, "width": 1}, row=1, col=2)  # pyright: ignore[reportArgumentType]
    for column, behaviour in enumerate(behaviours, 3):
        by_kind: dict[str, list[Estimate]] = {}
        for effect in c.effects.of(behaviour.key) if c.effects else ():
            by_kind.setdefault(effect.condition.done, []).append(effect.change)
        for (done, changes), color in zip(by_kind.items(), COLORS[1:], strict=False):
            trace = _dots(names, changes, color, readable(done))
            figure.add_trace(trace.update(showlegend=column == 3, legendgroup=done), row=1, col=column)
        figure.add_vline(x=0, line={"color": MUTED, "width": 1}, row=1, col=column)  # pyright: ignore[reportArgumentType]
    figure.update_yaxes(autorange="reversed")
    return figure.update_annotations(font_size=14)


def _dots(names: list[str], estimates: list[Estimate], color: str, what: str) -> go.Scatter:
    bars: dict[str, Any] = error_bars(estimates, color)
    return go.Scatter(
        x=[e.value for e in estimates],
        y=names,
        mode="markers",
        name=what,
        marker={"size": 9, "color": color},
        error_x=bars,
        showlegend=False,
        hoverinfo="text",
        hovertext=[
            f"{name}<br>{what}: {interval(e.value, e.low, e.high)}" for name, e in zip(names, estimates, strict=True)
        ],
    )
