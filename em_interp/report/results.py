"""What the main job found, and the same as plain numbers for a file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import ContrastActivations
from em_interp.behaviour.conclusions import standard_conclusions
from em_interp.behaviour.conditions import Spoken
from em_interp.behaviour.effects import PREFERENCE, REFUSES_HARMFUL, CrossEffects
from em_interp.directions.comparison import Comparison, clearest
from em_interp.directions.direction import Direction
from em_interp.directions.separability import Separability
from em_interp.files import versions
from em_interp.organisms.dissection import Dissection
from em_interp.report.organism import record as organism_record
from em_interp.report.words import findings

_FORMAT = "em_interp.results/1"
_LIBRARIES = ("torch", "transformers", "transformer-lens", "peft", "safetensors", "scikit-learn", "scipy", "plotly")


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

    @property
    def conclusions(self) -> tuple[str, ...]:
        """Whether the two directions do each other's work, where they are of misalignment and of refusal."""
        if self.effects is None or not {PREFERENCE, REFUSES_HARMFUL} <= set(self.effects.baseline):
            return ()
        if [d.name for d in self.directions] != ["misalignment", "refusal"]:
            return ()
        return standard_conclusions(self.effects, *(d.name for d in self.directions))

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
                "what_follows": r.conclusions,
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
            "dissection": r.dissection and organism_record(r.dissection, shown_layer(c)),
        }
    )


def shown_layer(c: Comparison) -> int:
    """The layer that the page shows: where the cosine is clearest, or the middle one."""
    row = clearest(c)
    return c.layers[len(c.layers) // 2 if row is None else row]


def _plain(value: Any) -> Any:
    """Tensors as lists, tuples as lists, NaN and infinity as None: what JSON can hold."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
