"""One report of the main job: a page that is right with the network off, its numbers and directions beside it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from torch import Tensor

from em_interp import figures
from em_interp.activations.reading import ContrastActivations
from em_interp.behaviour import CrossEffects, Spoken, is_random, standard_conclusions
from em_interp.behaviour.effects import JUDGED, PREFERENCE, REFUSES_HARMFUL
from em_interp.directions.comparison import Comparison, Separability
from em_interp.directions.direction import Direction
from em_interp.figures import interval, number, short
from em_interp.files import versions, write_atomically
from em_interp.organisms.dissection import Dissection
from em_interp.report import organism as organism_section

_FORMAT = "em_interp.results/1"
_LIBRARIES = ("torch", "transformers", "transformer-lens", "peft", "safetensors", "scikit-learn", "scipy", "plotly")
_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]}


@dataclass(frozen=True)
class Source:
    """The texts that a contrast was read from, in numbers."""

    name: str
    span: str
    n_positive: int
    n_negative: int
    n_questions: int
    contrast_hash: str

    @classmethod
    def of(cls, activations: ContrastActivations) -> "Source":
        """What a report says of activations whose texts it does not hold."""
        a = activations
        return cls(a.name, a.span, len(a.positive), len(a.negative), len(a.groups), a.contrast_hash)


@dataclass(frozen=True, eq=False)
class Results:
    """What the main job found. Parts that are None or empty are left out of the report.

    Attributes:
        comparison: the two directions against each other.
        directions: the two directions, in the order of the comparison.
        sources: the texts of both and of the controls.
        cosine_map: plug-in cosines, layers of the first direction × layers of the second.
        separabilities: how well held-out conversations of each contrast are told apart.
        effects: what removing and adding each direction does.
        spoken: what the model says in each condition.
        dissection: the organism taken apart, where the model is one.
        seconds: wall time of the job.
        judge: who judged what the model says, if anybody did.
        second_name: what the second direction is in this model, where its contrast's name would promise too much: a
            model that does not refuse has a direction of harmful against harmless requests.
        notes: statements that the report makes before its answer, such as the reason for `second_name`.
    """

    comparison: Comparison
    directions: tuple[Direction, Direction]
    sources: tuple[Source, ...] = ()
    cosine_map: Float[Tensor, "layer_a layer_b"] | None = None
    separabilities: tuple[Separability, ...] = ()
    effects: CrossEffects | None = None
    spoken: Spoken | None = None
    dissection: Dissection | None = None
    seconds: float | None = None
    judge: str = ""
    second_name: str = ""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line."""
        return f"Results({self.comparison!r}, {self.model})"

    @property
    def model(self) -> str:
        """The model that was read, or both where the directions are of two."""
        return " and ".join(dict.fromkeys(direction.model for direction in self.directions))

    def renamed(self) -> "Results":
        """The same results with the second direction called `second_name` everywhere."""
        new, old = self.second_name, self.directions[1].name
        if not new:
            return self
        effects = self.effects and replace(
            self.effects,
            effects=tuple(replace(e, direction=e.direction.replace(old, new)) for e in self.effects.effects),
        )
        spoken = self.spoken and replace(
            self.spoken,
            **{
                part: {name.replace(old, new): value for name, value in getattr(self.spoken, part).items()}
                for part in ("answers", "refusals", "misaligned")
            },
        )
        return replace(
            self,
            comparison=replace(self.comparison, b=new),
            directions=(self.directions[0], replace(self.directions[1], name=new)),
            separabilities=tuple(replace(s, name=new) if s.name == old else s for s in self.separabilities),
            effects=effects,
            spoken=spoken,
        )


def write_report(folder: str | Path, results: Results) -> Path:
    """Write `report.html`, `results.json`, both directions and the headline figure, and return the page's path.

    The page holds everything it shows, Plotly included, and forbids itself to fetch anything. The figure is Plotly's
    JSON, to be drawn again in another size.
    """
    folder = Path(folder)
    headline = figures.cosine_by_layer(results.renamed().comparison, model=short(results.model))
    write_atomically(folder / "cosine-by-layer.json", str(headline.to_json()))
    files = [f"{i + 1}-{_slug(direction.name)}.safetensors" for i, direction in enumerate(results.directions)]
    for direction, name in zip(results.directions, files, strict=True):
        direction.save(folder / name)
    record = as_json(results) | {"files": files}
    write_atomically(folder / "results.json", json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return write_atomically(folder / "report.html", _page(results.renamed(), record))


def as_json(results: Results) -> dict[str, Any]:
    """The finished numbers and where they come from, as plain values; what is not a number is None."""
    r = results.renamed()
    c = r.comparison
    return _plain(
        {
            "format": _FORMAT,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": r.seconds,
            "model": r.model,
            "versions": versions(*_LIBRARIES),
            "seed": c.seed,
            "n_resamples": c.n_resamples,
            "notes": r.notes,
            "answer": findings(c),
            "sources": [vars(source) for source in r.sources],
            "directions": [
                {
                    "name": d.name,
                    "contrast_hash": d.contrast_hash,
                    "model": d.model,
                    "site": d.site,
                    "span": d.span,
                    "pooling": d.pooling,
                    "n_positive": d.n_positive,
                    "n_negative": d.n_negative,
                    "layers": d.layers,
                    "norm": d.norm,
                    "residual_norm": d.residual_norm,
                }
                for d in r.directions
            ],
            "comparison": {
                "a": c.a,
                "b": c.b,
                "n_questions_a": c.n_questions_a,
                "n_questions_b": c.n_questions_b,
                "p_anywhere_a": c.p_anywhere_a,
                "p_anywhere_b": c.p_anywhere_b,
                "controls": c.controls,
                "layers": c.table(),
            },
            "cosine_map": r.cosine_map,
            "separability": [
                {
                    "name": s.name,
                    "n_questions": s.n_questions,
                    "n_folds": s.n_folds,
                    "seed": s.seed,
                    "layers": s.table(),
                }
                for s in r.separabilities
            ],
            "cross_effects": r.effects
            and {
                "layer": r.effects.layer,
                "scales": r.effects.scales,
                "n_random": r.effects.n_random,
                "seed": r.effects.seed,
                "model": r.effects.model,
                "what_follows": conclusions(results),
                "baseline": {name: vars(estimate) for name, estimate in r.effects.baseline.items()},
                "effects": r.effects.table(),
            },
            "spoken": r.spoken
            and {
                "seed": r.spoken.seed,
                "refusals": {name: asdict(rate) for name, rate in r.spoken.refusals.items()},
                "judge": r.judge,
                "misaligned": {name: asdict(rate) for name, rate in r.spoken.misaligned.items()},
                "answers": {name: [a.as_row() for a in said] for name, said in r.spoken.answers.items()},
            },
            "dissection": r.dissection and organism_section.record(r.dissection, _layer(c)),
        }
    )


def findings(comparison: Comparison) -> tuple[str, ...]:
    """What the numbers say, in two to four sentences: how alike, against which null, beside which controls."""
    c, n = comparison, len(comparison.layers)
    row = figures.clearest(c)
    if row is None:
        return (
            f"At none of the {n} layers do both contrasts have a direction that stands out from permuted labels "
            f"({c.a}: {int(c.found_a.sum())} layers; {c.b}: {int(c.found_b.sum())} layers), so there is no cosine to "
            f"report.",
            "That is no evidence that the two are unrelated: more questions may show a direction.",
        )
    value, low, high = (float(x[row]) for x in (c.corrected, c.low, c.high))
    here = f"{interval(value, low, high)} at layer {c.layers[row]}"
    n_apart = int(((c.low > 0) | (c.high < 0)).sum())
    if not n_apart:
        return (
            f"Both contrasts have a direction at {int(c.corrected.isfinite().sum())} of {n} layers, but at none of "
            f"them does the interval of the corrected cosine exclude zero; the largest is {here}.",
            f"The data fit directions that have nothing to do with each other, and there they leave room for cosines "
            f"from {number(low)} to {number(high)}.",
        )
    return (
        f"At {n_apart} of {n} layers the corrected cosine's interval excludes zero; it stays farthest "
        f"from zero with {here}.",
        _against_null(c, row),
        _against_controls(c, row),
    )


def _against_null(c: Comparison, row: int) -> str:
    low, high = min(c.null_a[0, row], c.null_b[0, row]), max(c.null_a[1, row], c.null_b[1, row])
    p = max(c.p_anywhere_a, c.p_anywhere_b)
    reached = f"{100 * p:.1f} % of permutations reach the data's largest plug-in cosine at some layer or other"
    return (
        f"With permuted labels the plug-in cosine there lies between {number(float(low))} and {number(float(high))} "
        f"(95 %), with the true ones it is {number(float(c.cosine[row]))}; {reached}"
        + ("." if p <= 0.05 else ", so chance is not excluded.")
    )


def _against_controls(c: Comparison, row: int) -> str:
    """The yardstick is what a control shows in a's place, against b; which control a resembles is said beside it."""
    if not c.controls:
        return "No control contrasts were read, so it is open how large the cosines of unrelated contrasts are here."
    in_place, nearest = (_largest(c.controls, cosines[:, row]) for cosines in (c.controls_b, c.controls_a))
    if in_place is None or nearest is None:
        return "None of the control contrasts has a direction at that layer to compare with."
    size, name = in_place
    text = f"Put in the place of {c.a}, the control contrasts reach {number(size)} ({name}) with {c.b}"
    if abs(size) >= abs(float(c.corrected[row])):
        text += f": as much as {c.a} does, so the cosine says little about {c.a} in particular."
    elif abs(size) >= min(abs(float(c.low[row])), abs(float(c.high[row]))):
        text += ": smaller, but as large as the interval allows this one to be."
    else:
        text += ", smaller than anything in the interval."
    return f"{text} {_sentence(c.a)} itself lies closest to {nearest[1]} ({number(nearest[0])})."


def _largest(names: Sequence[str], cosines: Tensor) -> tuple[float, str] | None:
    if not cosines.isfinite().any():
        return None
    row = int(cosines.abs().nan_to_num(-1).argmax())
    return float(cosines[row]), names[row].replace("_", " ")


def effect_findings(effects: CrossEffects) -> str:
    """How many changes have an interval that excludes zero, beside how many of the random directions do."""
    random = [e.change.excludes_zero for e in effects.effects if is_random(e.direction)]
    ours = [e.change.excludes_zero for e in effects.effects if not is_random(e.direction)]
    text = f"Of {len(ours)} changes that the directions make, {sum(ours)} have an interval that excludes zero"
    if not random:
        return f"{text}; no random direction was tried beside them."
    return f"{text}; of {len(random)} that random directions of the same length make, {sum(random)}."


def conclusions(results: Results) -> tuple[str, ...]:
    """Whether the two directions do each other's work, where they are of misalignment and of refusal."""
    r = results.renamed()
    if r.effects is None or not {PREFERENCE, REFUSES_HARMFUL} <= set(r.effects.baseline):
        return ()
    if [d.name for d in results.directions] != ["misalignment", "refusal"]:
        return ()
    return standard_conclusions(r.effects, *(d.name for d in r.directions))


def _page(results: Results, record: Mapping[str, Any]) -> str:
    r, c = results, results.comparison
    layer = _layer(c)
    drawn = {"cosines": figures.cosine_by_layer(c)}
    if r.cosine_map is not None:
        a, b = r.directions
        drawn["map"] = figures.cosine_map(r.cosine_map, a=a.name, b=b.name, layers_a=a.layers, layers_b=b.layers)
    drawn["norms"] = figures.norms_and_separability(r.directions, r.separabilities)
    projected = [s for s in r.separabilities if layer in s.layers]
    drawn |= {f"projections{i}": figures.projections(s, layer) for i, s in enumerate(projected)}
    if r.effects:
        drawn["effects"] = figures.cross_effects(r.effects)
    if r.spoken:
        drawn["refusals"] = figures.question_rates(r.spoken.refusals, what="refuse a harmful request")
        if r.spoken.misaligned:
            drawn["misaligned"] = figures.question_rates(r.spoken.misaligned, what="the judge finds misaligned")
    names = (_readable(c.a), _readable(c.b))
    dissected, tokens = None, ""
    if r.dissection:
        drawn |= organism_section.drawn(r.dissection, names, layer)
        dissected = organism_section.findings(r.dissection, names, layer)
        tokens = organism_section.tokens(r.dissection.adapter) if r.dissection.adapter else ""
    environment = Environment(
        loader=PackageLoader("em_interp.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _cell, "interval": interval, "readable": _readable, "sentence": _sentence}
    return environment.get_template("report.html.j2").render(
        results=r,
        record=record,
        found=figures.clearest(c) is not None,
        layer=layer,
        projected=projected,
        model=short(r.model),
        figures={name: _embedded(figure, name) for name, figure in drawn.items()},
        effect_findings=r.effects and effect_findings(r.effects),
        conclusions=record["cross_effects"] and record["cross_effects"]["what_follows"],
        judged_effects=bool(r.effects and JUDGED in r.effects.baseline),
        dissected=dissected,
        tokens=Markup(tokens),
        said=Markup(figures.side_by_side(r.spoken.answers).html) if r.spoken else "",
        plotly=Markup(get_plotlyjs()),
    )


def _layer(c: Comparison) -> int:
    """The layer that the page shows: where the cosine is clearest, or the middle one."""
    row = figures.clearest(c)
    return c.layers[len(c.layers) // 2 if row is None else row]


def _embedded(figure: go.Figure, name: str) -> Markup:
    """The figure as HTML that needs Plotly on the page; its JSON can't end the script it is in (`<` is escaped)."""
    html = figures.untitled(figure).to_html(config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=name)
    return Markup(html)


def _plain(value: Any) -> Any:
    """Tensors as lists, tuples as lists, NaN and infinity as None: what JSON can hold."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: float | None) -> str:
    return number(math.nan if value is None else value)


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:60] or "direction"
