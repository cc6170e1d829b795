"""What the main job found, and the same as plain numbers for a file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import ContrastActivations
from em_interp.behaviour.conditions import AnswersByCondition
from em_interp.behaviour.dissociation import conclusions, standard_conclusions
from em_interp.behaviour.effects import CrossEffects
from em_interp.behaviour.measures import BehaviourKey
from em_interp.checks import door
from em_interp.directions.comparison import Comparison, clearest
from em_interp.directions.direction import Direction
from em_interp.directions.separation import Separability
from em_interp.elasticity import ExperimentResult
from em_interp.files import versions
from em_interp.organisms.dissection import Dissection
from em_interp.report import elasticity as elasticity_section
from em_interp.report import organism as organism_section
from em_interp.report.words import findings

_FORMAT = "em_interp.results/2"
_STANDARD = (BehaviourKey.MISALIGNED_PREFERENCE, BehaviourKey.HARMFUL_REFUSAL)
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
        standardised: the same with every dimension in units of its deviation within the classes.
        directions: the two directions, in the order of the comparison.
        sources: the texts of both and of the controls.
        cosine_map: plug-in cosines, layers of the first direction × layers of the second.
        separabilities: how well held-out conversations of each contrast are told apart, by one estimator or several.
        effects: what removing and adding each direction does.
        answers: what the model says in each condition.
        dissection: the organism taken apart, where the model is one.
        elasticity: the results of experiments on elasticity that lie beside the report, see `elasticity.results_in`.
        seconds: wall time of the job.
        judge: who judged what the model says, if anybody did.
        own: each direction's name with the key of the behaviour that is its own, where both are known.
        notes: statements that the report makes before its answer, such as that the model hardly refuses, so that its
            second direction is called by another name than its contrast.
    """

    comparison: Comparison
    directions: tuple[Direction, Direction]
    sources: tuple[Source, ...] = ()
    cosine_map: Float[Tensor, "layer_a layer_b"] | None = None
    separabilities: tuple[Separability, ...] = ()
    standardised: Comparison | None = None
    effects: CrossEffects | None = None
    answers: AnswersByCondition | None = None
    dissection: Dissection | None = None
    elasticity: tuple[ExperimentResult, ...] = ()
    seconds: float | None = None
    judge: str = ""
    own: Mapping[str, str] = field(default_factory=dict)
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
        """Whether the two directions do each other's work, where it is known which work is whose."""
        if self.effects is None or len(self.own) != 2 or not set(self.own.values()) <= set(self.effects.baseline):
            return ()
        by_key = {key: name for name, key in self.own.items()}
        if by_key.keys() == set(_STANDARD):
            return standard_conclusions(self.effects, *(by_key[key] for key in _STANDARD))
        return conclusions(self.effects, self.own)


@door
def as_json(results: Results) -> dict[str, Any]:
    """The finished numbers and where they come from, as plain values; what is not a number is None."""
    r, c = results, results.comparison
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
            "answer": findings(c, r.standardised),
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
                    "dominance": d.dominance,
                    "residual_norm": d.residual_norm,
                }
                for d in r.directions
            ],
            "comparison": _comparison(c),
            "comparison_standardised": r.standardised and _comparison(r.standardised),
            "cosine_map": r.cosine_map,
            "separability": [
                {
                    "name": s.name,
                    "estimator": s.estimator,
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
                "n_null": r.effects.n_null,
                "seed": r.effects.seed,
                "model": r.effects.model,
                "conclusions": r.conclusions,
                "baseline": {key: vars(estimate) for key, estimate in r.effects.baseline.items()},
                "effects": r.effects.table(),
            },
            "answers": r.answers
            and {
                "seed": r.answers.seed,
                "conditions": {c.key: c.label for c in r.answers.conditions},
                "refusals": {key: asdict(rate) for key, rate in r.answers.refusals.items()},
                "judge": r.judge,
                "misaligned": {key: asdict(rate) for key, rate in r.answers.misaligned.items()},
                "answers": {key: [a.as_row() for a in said] for key, said in r.answers.answers.items()},
            },
            "dissection": r.dissection
            and organism_section.record(r.dissection, organism_section.layer_of(r.dissection, shown_layer(c))),
            "elasticity": [elasticity_section.record(result) for result in r.elasticity],
        }
    )


def _comparison(c: Comparison) -> dict[str, Any]:
    return {
        "a": c.a,
        "b": c.b,
        "metric": c.metric,
        "n_questions_a": c.n_questions_a,
        "n_questions_b": c.n_questions_b,
        "p_anywhere_a": c.p_anywhere_a,
        "p_anywhere_b": c.p_anywhere_b,
        "controls": c.controls,
        "layers": c.table(),
    }


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
