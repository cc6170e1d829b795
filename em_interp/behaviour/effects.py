"""Each direction removed and added, against each behaviour, beside what permuted labels do: who does whose work."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from em_interp.activations.forward import keeping
from em_interp.activations.reading import ContrastActivations
from em_interp.behaviour.conditions import (
    REMOVALS,
    Condition,
    ConditionKind,
    Removal,
    added,
    removed,
    subtracted,
)
from em_interp.behaviour.measures import Behaviour, measured, standard_behaviours
from em_interp.behaviour.nulls import NULL_BEHAVIOURS, NULL_OF, PermutedTwins
from em_interp.checks import door
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import parts_apart, random_like
from em_interp.models.hooked import HookedModel, TransformerLensModel
from em_interp.progress import bar
from em_interp.statistics.estimates import Estimate
from em_interp.statistics.permutation import permutation_p, step_down_p

LEVEL = 0.05  # what the p of a cell that moves is at most


@dataclass(frozen=True, repr=False)
class Effect:
    """What one condition does to one behaviour: where the model then stands, and the change, paired by question.

    Attributes:
        null: the changes under each permuted direction of the same contrast, NaN where one could not be measured; empty
            where there is no null.
    """

    condition: Condition
    behaviour: str
    after: Estimate
    change: Estimate
    null: tuple[float, ...] = ()

    @property
    def p(self) -> float:
        """The permutation p-value of this cell alone, two-sided; NaN where there is no null."""
        return permutation_p(self.change.value, self.null)

    def __repr__(self) -> str:
        """One line."""
        p = "no null" if math.isnan(self.p) else f"p = {self.p:.2g} of {len(self.null)} permuted directions"
        return f"Effect({self.condition.label} on {self.behaviour}: {self.change}, {p})"


def together(cells: Sequence[Effect]) -> tuple[float, ...]:
    """The p-values of cells that one conclusion rests on, corrected for their number by `step_down_p`.

    The draws of all cells must be joint: those of one `cross_effects`, or of two with the same seed. NaN for all where
    a cell has no null.
    """
    if any(math.isnan(cell.p) for cell in cells):
        return (math.nan,) * len(cells)
    null = torch.tensor([cell.null for cell in cells], dtype=torch.float64).mT
    return tuple(step_down_p(torch.tensor([c.change.value for c in cells], dtype=torch.float64), null).tolist())


@dataclass(frozen=True)
class CrossEffects:
    """Conditions × behaviours.

    Attributes:
        behaviours: what was measured.
        baseline: each behaviour of the model as it is, by its key.
        effects: what each condition changes in each behaviour.
        layer: where directions were added, and whose vector was removed where one was.
        scales: how much was added, in mean residual norms of that layer.
        n_random: how many random directions stand beside the others.
        seed: of the first of them; each next one has the next.
        model: the model measured.
        n_null: how many permuted directions of each contrast were measured; 0 for no null.
    """

    behaviours: tuple[Behaviour, ...]
    baseline: dict[str, Estimate]
    effects: tuple[Effect, ...]
    layer: int
    scales: tuple[float, ...]
    n_random: int
    seed: int
    model: str
    n_null: int = 0

    def __repr__(self) -> str:
        """One line."""
        size = f"{len(self.conditions)} conditions × {len(self.behaviours)} behaviours"
        null = f"{self.n_null} permuted directions of each contrast, " if self.n_null else ""
        return f"CrossEffects({size}, {null}added at layer {self.layer}, {self.model})"

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What was done, each once, in order."""
        return tuple({e.condition.key: e.condition for e in self.effects}.values())

    def of(self, behaviour: str) -> tuple[Effect, ...]:
        """The effects on one behaviour, by its key."""
        return tuple(e for e in self.effects if e.behaviour == behaviour)

    def change(
        self, direction: str, kind: str, behaviour: str, *, strength: int | float | None = None, without: str = ""
    ) -> Estimate:
        """One cell, such as `effects.change("misalignment", "added", BehaviourKey.TEXT_BITS, strength=0.2)`.

        `strength` can be left out where only one was added; `without` names the part that is orthogonal to another
        direction.

        Raises:
            ValueError: nothing of the kind was measured, or several strengths were.
        """
        found = [
            e.change
            for e in self.of(behaviour)
            if (e.condition.direction, e.condition.kind, e.condition.without) == (direction, kind, without)
            and strength in (None, e.condition.strength)
        ]
        if len(found) != 1:
            what = f"{direction} {kind} on {behaviour}" + ("" if strength is None else f" at strength {strength:g}")
            told = "was measured at several strengths: say which" if found else "was not measured"
            raise ValueError(f"{what} {told}; .table() lists what was")
        return found[0]

    def corrected_p(self) -> dict[tuple[str, str], float]:
        """The p-value of each cell that has a null, by its condition's key and its behaviour's.

        Corrected (`together`) for the number of cells in which the same was done: all directions, or all parts that
        stand apart, and every behaviour that was measured under the null.
        """
        alike: dict[Any, list[Effect]] = {}
        for e in self.effects:
            if not math.isnan(e.p):
                c = e.condition
                alike.setdefault((c.kind, c.strength, bool(c.without)), []).append(e)
        return {
            (cell.condition.key, cell.behaviour): p
            for cells in alike.values()
            for cell, p in zip(cells, together(cells), strict=True)
        }

    def moving(self) -> frozenset[tuple[str, str]]:
        """The cells, by both keys, whose interval excludes zero and whose `corrected_p` is at most .05."""
        corrected = self.corrected_p()
        return frozenset(
            key
            for e in self.effects
            if corrected.get(key := (e.condition.key, e.behaviour), math.nan) <= LEVEL and e.change.excludes_zero
        )

    def beside(self, other: "CrossEffects") -> "CrossEffects":
        """The same conditions with the behaviours of both, those of the other one last.

        Raises:
            ValueError: the other one had other conditions, another model, or a null of another size.
        """
        done = [([k.key for k in c.conditions], c.layer, c.scales, c.seed, c.model) for c in (self, other)]
        if done[0] != done[1] or len({self.n_null, other.n_null} - {0}) > 1:
            raise ValueError(
                f"{self} and {other} did not do the same: give both the same model, directions, layer, scales, "
                f"removals, n_random, n_null and seed"
            )
        return replace(
            self,
            n_null=max(self.n_null, other.n_null),
            behaviours=self.behaviours + other.behaviours,
            baseline={**self.baseline, **other.baseline},
            effects=self.effects + other.effects,
        )

    def table(self) -> list[dict[str, Any]]:
        """One row a condition and behaviour, ready for JSON or a data frame; None where nothing was scored."""
        of, corrected = {b.key: b for b in self.behaviours}, self.corrected_p()
        return [
            {
                "direction": e.condition.direction,
                "without": e.condition.without,
                "kind": e.condition.kind,
                "layer": e.condition.layer,
                "strength": e.condition.strength,
                "random": e.condition.random,
                "condition": e.condition.label,
                "behaviour": e.behaviour,
                "label": of[e.behaviour].title,
                "before": _or_none(self.baseline[e.behaviour].value),
                "after": _or_none(e.after.value),
                "change": _or_none(e.change.value),
                "low": _or_none(e.change.low),
                "high": _or_none(e.change.high),
                "n": e.change.n,
                "null": [_or_none(value) for value in e.null],
                "p": _or_none(e.p),
                "corrected_p": _or_none(corrected.get((e.condition.key, e.behaviour), math.nan)),
            }
            for e in self.effects
        ]


@door
def cross_effects(  # noqa: PLR0913 - what is done, what is measured, all keyword-only
    model: TransformerLensModel,
    directions: Sequence[Direction],
    *,
    contrasts: Sequence[ContrastActivations] | None = None,
    layer: int | None = None,
    scales: Sequence[int | float] = (0.2, 0.5),
    removals: Sequence[Removal] = REMOVALS,
    apart: bool = True,
    n_random: int = 5,
    n_null: int = 19,
    null_of: Sequence[ConditionKind] = NULL_OF,
    null_behaviours: Sequence[str] = NULL_BEHAVIOURS,
    behaviours: Sequence[Behaviour] | None = None,
    seed: int = 0,
) -> CrossEffects:
    """Remove and add each direction, and see what that does to every behaviour, beside what permuted labels do.

    Directional ablation, activation addition and affine concept editing on one page. What conditions have in common is
    computed once: with everything at the middle layer, the blocks below it run once.

    Args:
        model: a `HookedModel` or a bridge.
        directions: those that are compared, such as misalignment and refusal.
        contrasts: the activations that they are the differences of means of, in the same order. They make the null:
            directions of permuted labels (`permuted_directions`), with which the same is done. Without them, effects
            have intervals but no p-values, and `conclusions` draws none.
        layer: where directions are added, at all positions; the middle layer by default.
        scales: how much is added, in mean residual norms there; negative numbers steer away.
        removals: `all_layers_own`: each layer's own vector is projected out at the output of every block; `one_layer`:
            that of `layer` there; `all_layers_same`: that of `layer` at every block; `set_negative`: the projection on
            that of `layer` is set there to the mean of the negative class. Where both classes lie on one side of zero,
            to project out is to push past one of them, and only the last takes the property away (affine concept
            editing, Marshall et al. 2024, arXiv 2411.09003).
        apart: of two directions, also the part of each that is orthogonal to the other.
        n_random: isotropic random directions, as long as the first, removed at every layer and added; beside
            `set_negative`, which moves the positive class by the direction's length, subtracted once. They show what
            any disturbance of that size does, and are not a null: they lie mostly where activations hardly vary.
        n_null: permuted directions of each contrast. With 19, p can reach .05, corrected for several cells or not.
        null_of: the kinds of conditions that have a null, by default those at one layer; one at every layer costs whole
            passes, 2 · `n_null` of them a kind. A permuted direction is added or projected out as the true one is,
            subtracted once at the direction's length beside `set_negative`; of a part that stands apart it is the
            part orthogonal to the other direction, as long as the true part.
        null_behaviours: the keys of what is measured under the null, where it is among `behaviours`.
        behaviours: what is measured; `standard_behaviours()` by default. Scores may be NaN where there is none, such as
            a judge's: a pair with one is left out, and a cell with fewer than two questions left is NaN.
        seed: of the random and of the permuted directions.

    Raises:
        ValueError: a removal that does not exist, no directions, or two behaviours with one key; a direction that is
            not the difference of means of its contrast.
    """
    hooked = HookedModel.of(model)
    unknown = [r for r in removals if r not in REMOVALS]
    if unknown or not directions:
        what = f"removal {unknown[0]!r} is unknown" if unknown else "there are no directions"
        raise ValueError(f"{what}: give directions, and removals from {', '.join(REMOVALS)}")
    behaviours = tuple(standard_behaviours() if behaviours is None else behaviours)
    keys = [b.key for b in behaviours]
    if len(set(keys)) < len(keys):
        raise ValueError(f"two behaviours have the key {max(keys, key=keys.count)!r}: give each a key of its own")
    at = hooked.n_layers // 2 if layer is None else layer
    n_null = n_null if contrasts is not None else 0
    under_null = [b for b in behaviours if b.key in null_behaviours]
    twins = PermutedTwins.of(directions, contrasts or (), n_null, seed, null_of, under_null)
    conditions = [
        *(c for d in directions for c in _conditions(hooked, d, at, removals, scales)),
        *(_parts(hooked, directions, at, removals, scales) if apart and len(directions) == 2 else ()),
        *(c for i in range(n_random) for c in _random(hooked, directions[0], at, removals, scales, (i, seed))),
    ]
    null = {c.key: twins.conditions(hooked, c, at) for c in conditions}
    kept = keeping(hooked, at + 1, hooked.n_layers)
    before, before_null, effects = measured(behaviours, kept), measured(twins.behaviours, kept), []
    with bar(total=sum(1 + len(n) for n in null.values()), desc="cross effects", unit="condition") as progress:
        for condition in conditions:
            after = measured(behaviours, kept, condition.hooks)
            progress.update()
            draws: dict[str, list[float]] = {b.key: [] for b in behaviours}
            for twin in null[condition.key]:
                under = measured(twins.behaviours, kept, twin.hooks)
                for b in twins.behaviours:
                    draws[b.key].append(b.change(before_null[b.key][0], *under[b.key]).value)
                progress.update()
            for b in behaviours:
                scores, groups = after[b.key]
                change = b.change(before[b.key][0], scores, groups)
                effects.append(Effect(condition, b.key, b.estimate(scores, groups), change, tuple(draws[b.key])))
    baseline = {b.key: b.estimate(*before[b.key]) for b in behaviours}
    scales = tuple(float(s) for s in scales)
    return CrossEffects(behaviours, baseline, tuple(effects), at, scales, n_random, seed, hooked.identity, n_null)


def _conditions(
    hooked: HookedModel, direction: Direction, at: int, removals: Sequence[Removal], scales: Sequence[int | float]
) -> Iterator[Condition]:
    yield from (removed(hooked, direction, r, at) for r in REMOVALS if r in removals)
    yield from (added(hooked, direction, at, scale) for scale in scales)


def _parts(
    hooked: HookedModel,
    directions: Sequence[Direction],
    at: int,
    removals: Sequence[Removal],
    scales: Sequence[int | float],
) -> Iterator[Condition]:
    """The part of each of two directions that is orthogonal to the other; a part has no classes of its own."""
    first, second = directions
    projected: list[Removal] = [r for r in removals if r != "set_negative"]
    for part, of, other in zip(parts_apart(first, second), (first, second), (second, first), strict=True):
        for condition in _conditions(hooked, part, at, projected, scales):
            yield replace(condition, direction=of.name, without=other.name)


def _random(  # noqa: PLR0913 - what _conditions takes, and which draw it is
    hooked: HookedModel,
    like: Direction,
    at: int,
    removals: Sequence[Removal],
    scales: Sequence[int | float],
    draw: tuple[int, int],
) -> Iterator[Condition]:
    """What stands beside them: a random direction is the same at every layer, so all its projections are one."""
    number, seed = draw
    direction = random_like(like, seed + number, f"random {number + 1}")
    if set(removals) - {"set_negative"}:
        yield removed(hooked, direction, "all_layers_own", at, random=True)
    if "set_negative" in removals:
        yield subtracted(hooked, direction, at, random=True)
    yield from (added(hooked, direction, at, scale, random=True) for scale in scales)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
