"""Effect against strength: how far one can steer before the model stops making sense."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_interp.behaviour.dissociation import DAMAGE
from em_interp.behaviour.effects import CrossEffects, cross_effects
from em_interp.behaviour.measures import Behaviour, BehaviourKey, standard_behaviours
from em_interp.checks import door
from em_interp.directions.direction import Direction
from em_interp.models.hooked import TransformerLensModel
from em_interp.statistics.estimates import Estimate


@dataclass(frozen=True, repr=False)
class SteeringCurve:
    """What adding a direction does to every behaviour, by strength.

    Attributes:
        direction: its name.
        scales: how much was added, in mean residual norms of the layer, in ascending order.
        effects: everything measured, the random directions of the same length included.
        window: the scales around 0 at which plain prose costs at most `damage` more bits a token; None where even the
            smallest costs more.
        damage: bits a token.
    """

    direction: str
    scales: tuple[float, ...]
    effects: CrossEffects
    window: tuple[float, float] | None
    damage: float

    def __repr__(self) -> str:
        """One line."""
        window = (
            "no coherent window" if self.window is None else f"coherent from {self.window[0]:g} to {self.window[1]:g}"
        )
        at = f"layer {self.effects.layer} of {self.effects.model}"
        return f"SteeringCurve({self.direction} at {len(self.scales)} strengths, {window}, {at})"

    def of(self, behaviour: str, direction: str | None = None) -> tuple[Estimate, ...]:
        """The change in one behaviour at each of the scales, by the direction or by another one that was measured."""
        name = direction or self.direction
        return tuple(self.effects.change(name, "added", behaviour, strength=scale) for scale in self.scales)

    def table(self) -> list[dict[str, Any]]:
        """One row a direction, strength and behaviour, ready for JSON or a data frame."""
        return self.effects.table()


@door
def steering_curve(  # noqa: PLR0913 - what is added where, what is measured
    model: TransformerLensModel,
    direction: Direction,
    *,
    layer: int | None = None,
    scales: Sequence[int | float] = (-0.6, -0.4, -0.2, -0.1, 0.1, 0.2, 0.4, 0.6),
    behaviours: Sequence[Behaviour] | None = None,
    n_random: int = 1,
    damage: int | float = DAMAGE,
    seed: int = 0,
) -> SteeringCurve:
    """Add a direction at several strengths and see what each does, with the window in which the model stays coherent.

    Args:
        model: a `HookedModel` or a bridge.
        direction: what is added.
        layer: where, at all positions; the middle layer by default.
        scales: strengths in mean residual norms of that layer; 0 needs no measuring and is left out.
        behaviours: as for `cross_effects`; without neutral text there is no window.
        n_random: random directions of the same length.
        damage: how many more bits a token of plain prose may cost inside the window.
        seed: of the random directions.

    Raises:
        ValueError: no strength but 0.
    """
    strengths = sorted({float(s) for s in scales} - {0.0})
    if not strengths:
        raise ValueError(f"scales are {list(scales)}: give strengths other than 0")
    behaviours = standard_behaviours() if behaviours is None else behaviours
    effects = cross_effects(
        model, [direction], layer=layer, scales=strengths, removals=(), n_random=n_random, behaviours=behaviours,
        seed=seed,
    )  # fmt: skip
    window = _window(effects, direction.name, strengths, damage) if BehaviourKey.TEXT_BITS in effects.baseline else None
    return SteeringCurve(direction.name, tuple(strengths), effects, window, float(damage))


def _window(
    effects: CrossEffects, direction: str, scales: Sequence[float], damage: int | float
) -> tuple[float, float] | None:
    """The unbroken run of harmless scales around 0."""
    costs = {s: effects.change(direction, "added", BehaviourKey.TEXT_BITS, strength=s).value for s in scales}
    ends = [0.0, 0.0]
    for end, side in enumerate(([s for s in reversed(scales) if s < 0], [s for s in scales if s > 0])):
        for scale in side:
            if costs[scale] > damage:
                break
            ends[end] = scale
    return (ends[0], ends[1]) if ends != [0.0, 0.0] else None
