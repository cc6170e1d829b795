"""The part of a report on elasticity: what experiments found whose results lie beside it."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from markdown_it import MarkdownIt
from markupsafe import Markup

from em_interp import figures
from em_interp.elasticity import ExperimentResult

_ASKED = {
    "resistance": "Is it easier to train the model back than on?",
    "rebound": "How fast is it taken back what was learned?",
    "realign": "Bad, good, and bad again: is it the model it was?",
    "law": "Does the smaller set give way first?",
}
_SHOWN = {
    "resistance": "How many bits a byte more than their author the trained model needs for texts that it has not seen, "
    "after training on and after training back: a line a seed, a diamond for the mean.",
    "rebound": "What is watched along the second training, a line for each amount that was learned first. Means over "
    "seeds with 95 % intervals; dashed is the start, before both trainings.",
    "realign": "Left: the preference for malicious answers along each exposure, dashed the start. Right: each seed's "
    "cosine with the direction that the first exposure added, with its 95 % interval over questions; grey is what "
    "permuted labels give.",
    "law": "How many times as fast the large set's code changes as the small one's, a line a seed; dashed is the slope "
    "that the theorem says.",
}


@dataclass(frozen=True, eq=False)
class Section:
    """One experiment on the page.

    Attributes:
        key: of its figure.
        asked: the heading.
        shown: what its figure shows.
        result: what it found.
        table: as HTML; empty where there are too few seeds for intervals.
    """

    key: str
    asked: str
    shown: str
    result: ExperimentResult
    table: Markup


def sections(results: tuple[ExperimentResult, ...]) -> list[Section]:
    """A section for each result, in their order."""
    return [Section(f"elasticity{i}", _ASKED[r.kind], _SHOWN[r.kind], r, _table(r)) for i, r in enumerate(results)]


def drawn(shown: list[Section]) -> dict[str, go.Figure]:
    """The figure of every result that has enough seeds for one, by its key."""
    return {s.key: getattr(figures, s.result.kind)(s.result) for s in shown if s.result.enough}


def record(result: ExperimentResult) -> dict[str, Any]:
    """The numbers behind a section; `report.as_json` makes them plain."""
    return {
        "experiment": result.kind,
        "name": result.name,
        "base": result.base,
        "settings": result.settings,
        "conclusion": result.conclusion(),
        "rows": result.rows,
    }


def _table(result: ExperimentResult) -> Markup:
    """The result's own tables and what is measured in them; its conclusion stands on the page already."""
    if not result.enough:
        return Markup("")
    text = "\n".join(line if line.startswith(("|", "*")) else "" for line in result.markdown().splitlines())
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
