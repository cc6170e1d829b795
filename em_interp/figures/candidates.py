"""What every candidate for a refusal direction does, with the chosen one marked."""

import html

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from em_interp.behaviour.selection import CHOSEN, KEPT, Selection
from em_interp.checks import door
from em_interp.figures.style import INK, MUTED, dress, layer_ticks, number, short

_GRIDS = {
    "bypass": "bypass: refusal of harmful requests, taken out",
    "induce": "induce: refusal of harmless requests, added",
    "kl": "KL: change of harmless requests, taken out",
}


@door
def selection(chosen: Selection) -> go.Figure:
    """Three maps, a token a row and a block input a column: what taking out and adding each candidate does.

    A ring marks the chosen candidate, crosses those that a filter took; what was not scored is empty.
    """
    scores, candidates = chosen.scores, chosen.scores.candidates
    rows = [f"{p}  {_shown(token)}" for p, token in zip(candidates.positions, candidates.tokens, strict=True)]
    figure = make_subplots(
        rows=len(_GRIDS), cols=1, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=list(_GRIDS.values())
    )
    taken = [
        (candidates.layers[column], rows[row])
        for row, reasons in enumerate(chosen.reasons)
        for column, reason in enumerate(reasons)
        if reason not in (CHOSEN, KEPT) and scores.bypass[row, column].isfinite()
    ]
    for place, name in enumerate(_GRIDS, 1):
        grid = getattr(scores, name)
        around_zero = name != "kl"
        extent = float(grid[grid.isfinite()].abs().max()) if grid.isfinite().any() else 1.0
        figure.add_heatmap(
            z=[[None if z != z else z for z in row] for row in grid.tolist()],
            x=list(candidates.layers),
            y=rows,
            zmin=-extent if around_zero else 0,
            zmax=extent,
            colorscale="RdBu_r" if around_zero else "Purples",
            colorbar={"thickness": 12, "outlinewidth": 0, "len": 0.27, "y": 1 - (place - 0.5) / 3},
            hoverinfo="text",
            hovertext=[
                [
                    f"token {html.escape(label)}, input of block {layer}<br>{name} {number(z)}<br>{reason}"
                    for layer, z, reason in zip(candidates.layers, values, reasons, strict=True)
                ]
                for label, values, reasons in zip(rows, grid.tolist(), chosen.reasons, strict=True)
            ],
            row=place,
            col=1,
        )
        marks: dict[str, object] = {"mode": "markers", "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(
            x=[x for x, _ in taken],
            y=[y for _, y in taken],
            marker={"symbol": "x-thin", "size": 7, "line": {"color": MUTED, "width": 1}},
            **marks,
            row=place,
            col=1,
        )
        figure.add_scatter(
            x=[chosen.layer],
            y=[rows[candidates.positions.index(chosen.position)]],
            marker={"symbol": "circle-open", "size": 17, "color": INK, "line": {"width": 3}},
            **marks,
            row=place,
            col=1,
        )
    figure.update_xaxes(showgrid=False, **layer_ticks(candidates.layers))
    figure.update_xaxes(title="block at whose input it was read", row=len(_GRIDS), col=1)
    figure.update_yaxes(showgrid=False, type="category")
    said = (
        f"{scores.n_harmful} harmful requests at {number(scores.harmful)} and {scores.n_harmless} harmless ones at "
        f"{number(scores.harmless)} log-odds of refusing, as the model is; ring: chosen, cross: taken by a filter"
    )
    return dress(figure, f"Which direction is refusal's in {short(candidates.model)}?", said, 620, above=24)


def _shown(token: str) -> str:
    """A token in one line, with its blanks and line breaks to be seen."""
    return html.escape(token.replace("\n", "⏎").replace(" ", "␣"))
