"""Figures of elasticity: forward against inverse training, and what a second training takes back of a first."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from em_interp.checks import door
from em_interp.elasticity.law_results import THEOREM, LawResult
from em_interp.elasticity.realign_results import DIRECTIONS, RealignResult
from em_interp.elasticity.rebound_results import ReboundResult
from em_interp.elasticity.resistance_results import MEASURES, PAIRS, ResistanceResult
from em_interp.elasticity.watch import WATCHED
from em_interp.figures.style import (
    COLORS,
    FIRST,
    FOUND,
    GREY,
    INK,
    MUTED,
    SECOND,
    dress,
    interval,
    means_through,
    readable,
)


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


@door
def rebound(
    result: ReboundResult,
    measures: Sequence[str] = ("in_domain_preference", "bits_neutral", "along_misalignment", "along_refusal"),
) -> go.Figure:
    """What is watched along the second training, a line for each amount that was learned first.

    Means over seeds with 95 % intervals, drawn a little aside of each other; a dashed line is the start.

    Args:
        result: the finished sizes and seeds.
        measures: which are drawn, a panel each; see `elasticity.watch.WATCHED`.

    Raises:
        ValueError: an unknown measure, none, or fewer than two seeds.
    """
    if not measures:
        raise ValueError(f"measures is empty: choose from {', '.join(WATCHED)}")
    n_rows = -(-len(measures) // 2)
    figure = make_subplots(
        rows=n_rows,
        cols=min(len(measures), 2),
        shared_xaxes=True,
        horizontal_spacing=0.1,
        vertical_spacing=0.22 / n_rows,
        subplot_titles=[readable(measure) for measure in measures],
    )
    for panel, measure in enumerate(measures):
        place: dict[str, Any] = {"row": panel // 2 + 1, "col": panel % 2 + 1}
        for size, color in zip(result.sizes, COLORS * len(result.sizes), strict=False):
            curve, name = result.curve(measure, size), f"{size} learned first"
            told = [
                f"{name}, after {n} of the opposite: {interval(e.value, e.low, e.high, '+.3f')}"
                for n, e in zip(result.samples, curve, strict=True)
            ]
            aside = 0.01 * result.samples[-1] * (result.sizes.index(size) - (len(result.sizes) - 1) / 2)
            line = means_through([n + aside for n in result.samples], curve, color, name, told)
            figure.add_trace(line.update(legendgroup=name, showlegend=panel == 0), **place)
        starts = [row["start"][measure] for row in result.rows]
        figure.add_hline(y=sum(starts) / len(starts), line={"color": MUTED, "width": 1, "dash": "dash"}, **place)
        figure.update_yaxes(title=WATCHED[measure].rpartition(", ")[2], **place)
    figure.update_xaxes(tickvals=result.samples)
    figure.update_xaxes(title="conversations of the second training", row=n_rows)
    said = (
        f"Means of {len(result.seeds)} seeds with 95 % intervals over seeds; dashed: the start, before both trainings"
    )
    return dress(figure, "What a second training takes back of the first", said, 300 * n_rows, above=24)


@door
def realign(result: RealignResult, measure: str = "in_domain_preference") -> go.Figure:
    """The exposures side by side, and how alike what is left, what returned and what was added is to the first time.

    On the left means over seeds with 95 % intervals; a dashed line is the start. On the right each seed's corrected
    cosine with its interval over questions, above the null of permuted labels in grey.

    Args:
        result: the finished seeds.
        measure: what is drawn along the exposures, see `elasticity.watch.WATCHED`.

    Raises:
        ValueError: an unknown measure, or fewer than two seeds.
    """
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12, column_widths=[0.52, 0.48])
    names = {"first": "first exposure", "second": "second exposure", "twin": "the twin's first"}
    for number, ((exposure, name), color) in enumerate(zip(names.items(), COLORS, strict=False)):
        curve = result.curve(measure, exposure)
        at = [n + 0.01 * result.samples[-1] * (number - 1) for n in result.samples]
        told = [
            f"{name}, after {n}: {interval(e.value, e.low, e.high, '+.3f')}"
            for n, e in zip(result.samples, curve, strict=True)
        ]
        figure.add_trace(means_through(at, curve, color, name, told), row=1, col=1)
    start = result.rows[0]["start"][measure]
    left: dict[str, Any] = {"row": 1, "col": 1}
    figure.add_hline(y=start, line={"color": MUTED, "width": 1, "dash": "dash"}, **left)
    for place, which in enumerate(DIRECTIONS):
        for number, row in enumerate(result.rows):
            _cosine(figure, row["directions"][which], place + 0.16 * (number - (len(result.rows) - 1) / 2), row["seed"])
    figure.update_xaxes(title="conversations of the exposure", tickvals=result.samples, col=1)
    figure.update_yaxes(title=WATCHED[measure].rpartition(", ")[2], col=1)
    labels, shown = [which.replace(" ", "<br>") for which in DIRECTIONS], [-0.5, len(DIRECTIONS) - 0.5]
    figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels, tickangle=0, range=shown, col=2)
    figure.update_yaxes(title="cosine with the first", range=[-1.05, 1.05], col=2)
    said = (
        f"Left: {readable(measure)}, {len(result.rows)} seeds, dashed the start. Right: each seed's cosine with the "
        f"direction that the first exposure added, grey what permuted labels give; 95 % intervals"
    )
    return dress(figure, "Bad, good, and bad again", said, 400)


def _cosine(figure: go.Figure, direction: dict[str, Any], x: float, seed: int) -> None:
    """One seed's cosine with its interval and its null; nothing where there is no direction."""
    place: dict[str, Any] = {"row": 1, "col": 2}
    null = [direction["null_b_low"], direction["null_b_high"]]
    figure.add_scatter(
        x=[x, x], y=null, mode="lines", line={"color": GREY, "width": 9}, opacity=0.5, hoverinfo="skip",
        showlegend=False, **place,
    )  # fmt: skip
    value, low, high = (direction[key] for key in ("corrected", "low", "high"))
    if value is None:
        return
    figure.add_scatter(
        x=[x],
        y=[value],
        mode="markers",
        marker={"size": 9, "color": FOUND},
        error_y={"array": [high - value], "arrayminus": [value - low], "color": FOUND, "thickness": 1.5, "width": 3},
        hoverinfo="text",
        hovertext=f"seed {seed}: {interval(value, low, high, '.2f')}, {direction['share']:.2f} as long",
        showlegend=False,
        **place,
    )


@door
def law(result: LawResult, samples: int | None = None) -> go.Figure:
    """The ratio of the two rates' changes against that of the sets' sizes, a line a seed, in logarithms.

    A dashed line has the slope that the theorem says, through the mean of the points.

    Args:
        result: the finished ratios and seeds.
        samples: of the perturbation, by default the first at which the rates were measured.

    Raises:
        ValueError: a number of samples that was not measured, or fewer than two seeds or ratios.
    """
    samples = result.samples[0] if samples is None else samples
    found = result.exponent(samples)
    changes = {
        ratio: [
            abs(large / small)
            for large, small in zip(
                *(result.rate_changes(which, ratio, samples) for which in ("large", "small")), strict=True
            )
        ]
        for ratio in result.ratios
    }
    said = (
        f"After {samples} texts of a third language: exponent {interval(found.value, found.low, found.high, '+.2f')}, "
        f"{len(result.seeds)} seeds, 95 % interval over seeds; dashed: the theorem's −1"
    )
    figure = dress(go.Figure(), "How much faster the small set's code changes than the large one's", said, 400)
    for number, (seed, color) in enumerate(zip(result.seeds, COLORS * len(result.seeds), strict=False)):
        figure.add_scatter(
            x=result.ratios,
            y=[values[number] for values in changes.values()],
            mode="lines+markers",
            name=f"seed {seed}",
            line={"color": color, "width": 1.5},
            marker={"size": 9},
            hovertemplate="k = %{x}: %{y:.3f}<extra>seed " + str(seed) + "</extra>",
        )
    logs = [(math.log(ratio), math.log(value)) for ratio, values in changes.items() for value in values]
    middle = [sum(log[i] for log in logs) / len(logs) for i in (0, 1)]
    figure.add_scatter(
        x=result.ratios,
        y=[math.exp(middle[1] + THEOREM * (math.log(ratio) - middle[0])) for ratio in result.ratios],
        mode="lines",
        name="slope −1",
        line={"color": INK, "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
    )
    ticks = list(result.ratios)
    figure.update_xaxes(title="k, size of the large set over that of the small one", type="log", tickvals=ticks)
    return figure.update_yaxes(title="|dγ large / dγ small|", type="log")
