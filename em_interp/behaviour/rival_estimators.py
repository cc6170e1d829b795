"""Estimators of one direction side by side: how alike, how well they tell held-out questions apart, what they do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import ContrastActivations
from em_interp.behaviour.effects import CrossEffects, cross_effects
from em_interp.behaviour.measures import Behaviour, BehaviourKey, standard_behaviours
from em_interp.checks import door
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import ESTIMATORS, EstimatorName, estimator_of
from em_interp.directions.separation import Separability, separability
from em_interp.models.hooked import TransformerLensModel
from em_interp.progress import bar

_OF_PAIRS: tuple[EstimatorName, ...] = ("paired", "principal")


@dataclass(frozen=True, eq=False)
class EstimatorsCompared:
    """Estimators of one contrast's direction, in the order given.

    Attributes:
        directions: what each of them finds from all questions, under its name.
        cosines: plug-in cosines of each with each, at every layer.
        separabilities: how well each tells held-out questions apart, at every layer.
        layer: where directions were taken out and added.
        effects: what that does, if a model was given; there is no null beside it.
    """

    contrast: str
    directions: tuple[Direction, ...]
    cosines: Float[Tensor, "layer estimator estimator"]
    separabilities: tuple[Separability, ...]
    layer: int
    effects: CrossEffects | None = None

    @property
    def estimators(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(d.name for d in self.directions)

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        row = self.directions[0].row(self.layer)
        told = ", ".join(f"{s.estimator} {s.auc[row]:.2f}" for s in self.separabilities)
        return f"EstimatorsCompared({self.contrast!r}, AUC at layer {self.layer}: {told})"

    def table(self) -> list[dict[str, Any]]:
        """One dict an estimator, at `layer`, of plain numbers, ready for JSON or a data frame.

        `cosine` is that with the first estimator. A change is that of a behaviour under one condition, such as
        `misaligned_preference: added × 0.2`, with its 95 % interval.
        """
        row, rows = self.directions[0].row(self.layer), []
        for i, (direction, s) in enumerate(zip(self.directions, self.separabilities, strict=True)):
            told: dict[str, Any] = {"estimator": direction.name, "layer": self.layer}
            told |= {"auc": float(s.auc[row]), "auc_low": float(s.low[row]), "auc_high": float(s.high[row])}
            told |= {"cosine": float(self.cosines[row, 0, i]), "dominance": float(direction.dominance[row])}
            for e in self.effects.effects if self.effects else ():
                if e.condition.direction == direction.name:
                    what = f"{e.behaviour}: {e.condition.done}"
                    told |= {what: e.change.value, f"{what}, low": e.change.low, f"{what}, high": e.change.high}
            rows.append(told)
        return rows


@door
def estimators_compared(  # noqa: PLR0913 - which estimators, and what is done with each, all keyword-only
    contrast: ContrastActivations,
    model: "TransformerLensModel | None" = None,
    *,
    estimators: Sequence[EstimatorName] | None = None,
    layer: int | None = None,
    scale: int | float = 0.2,
    behaviours: Sequence[Behaviour] | None = None,
    n_folds: int = 5,
    seed: int = 0,
) -> EstimatorsCompared:
    """Put the estimators of a direction beside each other: cosines, AUC on held-out questions, and causal effects.

    An estimator that tells classes apart need not be the direction that the model uses: `standardised`, `lda` and
    `logistic` look for what is read best, the differences of means for where the classes lie. What is taken out or
    added tells which of them the model itself goes by (compare Marks and Tegmark 2023, arXiv 2310.06824).

    Args:
        contrast: activations of both classes.
        model: the model they were read from. Given, each direction is projected out at `layer` and added there.
        estimators: names among `ESTIMATORS`, the first one the yardstick of the cosines. All by default; those of
            differences within questions where every question has both classes.
        layer: where; the middle one of those read by default.
        scale: how much is added, in mean residual norms of the layer.
        behaviours: what is measured; by default misaligned preference on 24 held-out questions, and bits a token of
            plain prose for what it costs.
        n_folds: of the held-out questions.
        seed: of the folds.

    Raises:
        ValueError: no such estimator, one that this contrast does not allow, or a layer that was not read.
    """
    paired = set(contrast.positive.groups) == set(contrast.negative.groups)
    names = estimators or [name for name in ESTIMATORS if paired or name not in _OF_PAIRS]
    at = contrast.layers[len(contrast.layers) // 2] if layer is None else layer
    directions = tuple(replace(estimator_of(name)(contrast), name=name) for name in names)
    directions[0].row(at)
    separabilities = tuple(
        separability(contrast, estimator=name, n_folds=n_folds, seed=seed)
        for name in bar(iterable=names, desc="estimators", unit="estimator")
    )
    units = torch.stack([d.unit for d in directions], 1)
    effects = None
    if model is not None:
        keys = (BehaviourKey.MISALIGNED_PREFERENCE, BehaviourKey.TEXT_BITS)
        effects = cross_effects(
            model,
            directions,
            layer=at,
            scales=(scale,),
            removals=("one_layer",),
            apart=False,
            n_random=0,
            behaviours=standard_behaviours(24, keys=keys) if behaviours is None else behaviours,
        )
    return EstimatorsCompared(contrast.name, directions, units @ units.mT, separabilities, at, effects)
