"""One report of the main job: a page that is right with the network off, its numbers and directions beside it."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from em_interp import figures
from em_interp.behaviour.measures import BehaviourKey
from em_interp.checks import door
from em_interp.directions.comparison import clearest
from em_interp.figures import interval, number, short
from em_interp.files import write_atomically
from em_interp.report import elasticity as elasticity_section
from em_interp.report import organism as organism_section
from em_interp.report.results import Results, as_json, shown_layer
from em_interp.report.words import capitalised, effect_findings

_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]}


@door
def write_report(folder: str | Path, results: Results) -> Path:
    """Write `report.html`, `results.json`, both directions and the headline figure, and return the page's path.

    The page holds everything it shows, Plotly included, and forbids itself to fetch anything. The figure is Plotly's
    JSON, to be drawn again in another size.
    """
    folder = Path(folder)
    headline = figures.cosine_by_layer(results.comparison, model=short(results.model))
    write_atomically(folder / "cosine-by-layer.json", str(headline.to_json()))
    files = [f"{i + 1}-{_slug(direction.name)}.safetensors" for i, direction in enumerate(results.directions)]
    for direction, name in zip(results.directions, files, strict=True):
        direction.save(folder / name)
    record = as_json(results) | {"files": files}
    write_atomically(folder / "results.json", json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return write_atomically(folder / "report.html", _page(results, record))


def _page(results: Results, record: Mapping[str, Any]) -> str:
    r, c = results, results.comparison
    layer = shown_layer(c)
    drawn = {"cosines": figures.cosine_by_layer(c)}
    if r.standardised is not None:
        drawn["metrics"] = figures.cosine_by_metric(c, r.standardised)
    if r.cosine_map is not None:
        a, b = r.directions
        drawn["map"] = figures.cosine_map(r.cosine_map, a=a.name, b=b.name, layers_a=a.layers, layers_b=b.layers)
    drawn["norms"] = figures.norms_and_separability(r.directions, r.separabilities)
    projected = [s for s in r.separabilities if layer in s.layers and s.estimator == "difference_of_means"]
    drawn |= {f"projections{i}": figures.projections(s, layer) for i, s in enumerate(projected)}
    if r.effects:
        drawn["effects"] = figures.cross_effects(r.effects)
    if r.answers:
        rates = r.answers.labelled(r.answers.refusals)
        drawn["refusals"] = figures.question_rates(rates, what="refuse a harmful request")
        if r.answers.misaligned:
            rates = r.answers.labelled(r.answers.misaligned)
            drawn["misaligned"] = figures.question_rates(rates, what="the judge finds misaligned")
    names = (_readable(c.a), _readable(c.b))
    dissected, tokens = None, ""
    if r.dissection:
        own = organism_section.layer_of(r.dissection, layer)
        drawn |= organism_section.drawn(r.dissection, names, own)
        dissected = organism_section.findings(r.dissection, names, own)
        tokens = organism_section.tokens(r.dissection.adapter) if r.dissection.adapter else ""
    elasticity = elasticity_section.sections(r.elasticity)
    drawn |= elasticity_section.drawn(elasticity)
    environment = Environment(
        loader=PackageLoader("em_interp.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _cell, "interval": interval, "readable": _readable, "sentence": capitalised}
    return environment.get_template("report.html.j2").render(
        results=r,
        record=record,
        found=clearest(c) is not None,
        layer=layer,
        projected=projected,
        model=short(r.model),
        figures={name: _embedded(figure, name) for name, figure in drawn.items()},
        corrected_p=r.effects.corrected_p() if r.effects else {},
        effect_findings=r.effects and effect_findings(r.effects),
        conclusions=record["cross_effects"] and record["cross_effects"]["conclusions"],
        judged_effects=bool(r.effects and BehaviourKey.JUDGED_MISALIGNMENT in r.effects.baseline),
        dissected=dissected,
        elasticity=elasticity,
        tokens=Markup(tokens),
        said=Markup(figures.side_by_side(r.answers.labelled(r.answers.answers)).html) if r.answers else "",
        plotly=Markup(get_plotlyjs()),
    )


def _embedded(figure: go.Figure, name: str) -> Markup:
    """The figure as HTML that needs Plotly on the page; its JSON can't end the script it is in (`<` is escaped)."""
    html = figures.untitled(figure).to_html(config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=name)
    return Markup(html)


def _cell(value: float | None) -> str:
    return number(math.nan if value is None else value)


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:60] or "direction"
