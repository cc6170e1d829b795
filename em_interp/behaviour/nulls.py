"""What stands in for a direction where its labels mean nothing: the same done with directions of permuted labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from em_interp.activations.reading import ContrastActivations
from em_interp.behaviour.conditions import REMOVALS, Condition, ConditionKind, added, removed, subtracted
from em_interp.behaviour.measures import Behaviour, BehaviourKey
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import difference_of_means, parts_apart, permuted_directions
from em_interp.models.hooked import HookedModel

# All at one layer, so that no pass has to run the blocks below it again.
NULL_OF: tuple[ConditionKind, ...] = ("one_layer", "set_negative", "added")
NULL_BEHAVIOURS: tuple[str, ...] = (BehaviourKey.MISALIGNED_PREFERENCE, BehaviourKey.HARMFUL_REFUSAL)


@dataclass(frozen=True, eq=False)
class PermutedTwins:
    """The permuted directions of each contrast, and what is done with them beside what is done with the true ones.

    Attributes:
        directions: the true ones, by name.
        permuted: those of the same contrast under permuted labels, by the name of the true one; as many of each.
        kinds: the kinds of conditions that have a null.
        behaviours: what is measured under it, each by its own measure.
    """

    directions: dict[str, Direction]
    permuted: dict[str, tuple[Direction, ...]]
    kinds: tuple[ConditionKind, ...]
    behaviours: tuple[Behaviour, ...]

    @classmethod
    def of(  # noqa: PLR0913 - what cross_effects was told of its null
        cls,
        directions: Sequence[Direction],
        contrasts: Sequence[ContrastActivations],
        n: int,
        seed: int,
        kinds: Sequence[ConditionKind],
        behaviours: Sequence[Behaviour],
    ) -> "PermutedTwins":
        """Permute the labels of each contrast n times, by a seed of its own; of none, where n is 0.

        Raises:
            ValueError: a kind of condition that does not exist; as many contrasts as directions are wanted, under names
                of their own; or a direction is not the difference of means of its contrast.
        """
        names = [d.name for d in directions]
        unknown = [kind for kind in kinds if kind not in (*REMOVALS, "added")]
        if unknown:
            raise ValueError(f"null_of has {unknown[0]!r}: choose from {', '.join(REMOVALS)}, added")
        if not n:
            return cls({}, {}, (), ())
        if len(contrasts) != len(directions) or len(set(names)) < len(names):
            raise ValueError(
                f"{len(contrasts)} contrasts came with the directions {', '.join(names)}: give each direction a name "
                f"of its own, and the activations that it is the difference of means of, in the same order"
            )
        permuted = {}
        for i, (direction, contrast) in enumerate(zip(directions, contrasts, strict=True)):
            pooling = "token" if direction.pooling == "token" else "conversation"
            _check_is_of(direction, difference_of_means(contrast, pooling=pooling), contrast.name)
            permuted[direction.name] = permuted_directions(contrast, n, seed=seed + i, pooling=pooling)
        alone = tuple(replace(b, measure=b.alone or b.measure) for b in behaviours)
        return cls(dict(zip(names, directions, strict=True)), permuted, tuple(kinds), alone)

    def conditions(self, hooked: HookedModel, condition: Condition, layer: int) -> tuple[Condition, ...]:
        """The same done with each permuted direction; nothing where conditions of this kind have no null."""
        if condition.random or condition.kind not in self.kinds or not self.behaviours:
            return ()
        return tuple(
            self._twin(hooked, condition, direction, layer) for direction in self.permuted[condition.direction]
        )

    def _twin(self, hooked: HookedModel, condition: Condition, direction: Direction, layer: int) -> Condition:
        if condition.without:
            true, other = (self.directions[name] for name in (condition.direction, condition.without))
            direction = _as_long_as(parts_apart(true, other)[0], parts_apart(direction, other)[0])
        kind: Any = condition.kind
        if kind == "added":
            return added(hooked, direction, layer, condition.strength or 0.0)
        if kind == "set_negative":  # permuted classes have the same mean: there is none to set it to
            return subtracted(hooked, direction, layer)
        return removed(hooked, direction, kind, layer)


def _as_long_as(like: Direction, direction: Direction) -> Direction:
    return replace(direction, vectors=torch.nn.functional.normalize(direction.vectors, dim=-1) * like.norm[:, None])


def _check_is_of(direction: Direction, own: Direction, contrast: str) -> None:
    def close(a: Tensor, b: Tensor) -> bool:
        return bool(((a - b).norm(dim=-1) <= 1e-3 * b.norm(dim=-1)).all())

    if direction.layers != own.layers or not close(direction.vectors, own.vectors):
        raise ValueError(
            f"direction {direction.name!r} is not the difference of means of the contrast {contrast!r} that came with "
            f"it, so permuting that one's labels is no null of it: give contrasts in the order of the directions, or "
            f"none"
        )
