"""Figures of elasticity: forward against inverse training."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from em_interp.checks import door
from em_interp.elasticity.resistance_results import MEASURES, PAIRS, ResistanceResult
from em_interp.figures.style import COLORS, FIRST, INK, SECOND, dress, interval


@door
def resistance(result: ResistanceResult, measure: str = "excess") -> go.Figure:
    """A measure after forward and after inverse training, a line a seed, for each pair of models.

    Resistance in the sense of the paper is lines that fall.

    Args:
        result: the finished seeds.
        measure: `loss`, `after`, `excess` or `gained`, see `elasticity.resistance_results.MEASURES`.

    Raises:
        ValueError: an unknown measure, or no seeds.
    """
    if not result.rows:
        raise ValueError("no seed is finished, so there is nothing to draw: run the experiment first")
    figure = make_subplots(rows=1, cols=len(PAIRS), shared_yaxes=True, horizontal_spacing=0.04)
    for column, pair in enumerate(PAIRS, 1):
        forward, inverse = (result.values(measure, pair, inverse=i) for i in (False, True))
        at = [f"forward<br>{pair[0]}→{pair[1]}", f"inverse<br>{pair[1]}→{pair[0]}"]
        for seed, values, color in zip(result.seeds, zip(forward, inverse, strict=True), COLORS * 9, strict=False):
            figure.add_scatter(
                x=at,
                y=list(values),
                mode="lines+markers",
                name=f"seed {seed}",
                legendgroup=f"seed {seed}",
                showlegend=column == 1,
                line={"color": color, "width": 1.5},
                marker={"size": 8},
                hovertemplate="seed " + str(seed) + ", %{x}: %{y:.3f}<extra></extra>",
                row=1,
                col=column,
            )
        means = [sum(values) / len(values) for values in (forward, inverse)]
        figure.add_scatter(
            x=at,
            y=means,
            mode="markers",
            name="mean",
            legendgroup="mean",
            showlegend=column == 1,
            marker={"size": 13, "symbol": "diamond", "color": [SECOND, FIRST], "line": {"color": INK, "width": 1.5}},
            hovertemplate="mean, %{x}: %{y:.3f}<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(range=[-0.4, 1.4])
    figure.update_yaxes(title=MEASURES[measure].rpartition(", ")[2], col=1)
    said = f"{MEASURES[measure]}; {len(result.rows)} seed{'s' * (len(result.rows) != 1)}"
    if len(result.rows) > 1:
        d = result.difference(measure)
        said += f"; inverse − forward (95 % interval over seeds) {interval(d.value, d.low, d.high, '+.3f')}"
    return dress(figure, "Is it easier to go back than on?", said, 380)
