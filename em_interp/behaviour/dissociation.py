"""In words: do two directions do each other's work?"""

import math
from collections.abc import Iterator, Mapping, Sequence

from em_interp.behaviour.conditions import Condition
from em_interp.behaviour.effects import LEVEL, CrossEffects, Effect, together
from em_interp.behaviour.measures import BehaviourKey
from em_interp.checks import door

# A condition that costs more bits a token of plain prose has broken the model: what it does is no evidence.
DAMAGE = 0.5
CAVEAT = (
    "Where a direction moves nothing, no effect was shown, and none was excluded: the interval says how large one may "
    "still be."
)


@door
def conclusions(effects: CrossEffects, own: Mapping[str, str], *, damage: int | float = DAMAGE) -> tuple[str, ...]:
    """In words, condition by condition: do two directions do each other's work?

    A direction *moves* a behaviour where the change's interval excludes zero and its p-value is at most .05: by the
    null of permuted labels of the direction's own contrast, and corrected for the four cells that the sentence rests on
    (`step_down_p`: two directions, two behaviours). Where both move their own and neither the other's, they are doubly
    dissociated; where one moves the other's, the sharing is one-way; where both do, it is mutual. A condition that
    costs more than `damage` bits a token of plain prose is left out: a broken model says nothing. Where there is no
    null, or one too small for .05, nothing is concluded: isotropic directions are too weak a null. Where the parts of
    both that are orthogonal to each other were measured, they are spoken of as well.

    Args:
        effects: what `cross_effects` found.
        own: the two directions' names, each with the key of the behaviour that is its own.
        damage: bits a token.

    Raises:
        ValueError: not two directions, or one of which nothing was measured.
    """
    if len(own) != 2:
        raise ValueError(f"{len(own)} directions came with their behaviours: give two")
    for name in own:
        if name not in {c.direction for c in effects.conditions}:
            raise ValueError(f"nothing was done with the direction {name!r}: see .conditions")
    first = next(iter(own))
    mine = [c for c in effects.conditions if c.direction == first]
    return (*(sentence for condition in mine for sentence in _followed(effects, own, condition, damage)), CAVEAT)


@door
def standard_conclusions(effects: CrossEffects, misalignment: str, refusal: str) -> tuple[str, ...]:
    """`conclusions` for the two directions by `standard_behaviours`: by a judge's scores first, and by preference.

    Args:
        effects: what `cross_effects` found.
        misalignment: the name of the one direction, whose own behaviours are the misaligned preference, and what a
            judge finds misaligned if there was one.
        refusal: that of the other one, whose own is the refusal score of harmful requests.
    """
    judged = BehaviourKey.JUDGED_MISALIGNMENT in effects.baseline
    ways = [("Misaligned by the judge's scores. ", BehaviourKey.JUDGED_MISALIGNMENT)] if judged else []
    ways.append(("Misaligned by preference. " if judged else "", BehaviourKey.MISALIGNED_PREFERENCE))
    found = [
        f"{how}{sentence}"
        for how, behaviour in ways
        for sentence in conclusions(effects, {misalignment: behaviour, refusal: BehaviourKey.HARMFUL_REFUSAL})[:-1]
    ]
    return (*found, CAVEAT)


def _followed(effects: CrossEffects, own: Mapping[str, str], like: Condition, damage: int | float) -> Iterator[str]:
    """What follows from doing this to both directions."""
    names = list(own)
    others = dict(zip(names, reversed(names), strict=True))
    pair = {name: _twin(effects, like, name, others[name] if like.without else "") for name in names}
    told = f"{like.done[:1].upper()}{like.done[1:]}" + (", the parts that stand apart" if like.without else "")
    changes = {(d, b): _effect(effects, c, b) for d, c in pair.items() for b in own.values()}
    costs = {d: _cost(effects, c) for d, c in pair.items()}
    broken = [f"{cost:.1f} ({d})" for d, cost in costs.items() if cost > damage]
    if broken:
        yield f"{told}: costs {' and '.join(broken)} bits a token of plain prose, which is damage, and no evidence."
        return
    labels = {b.key: b.label for b in effects.behaviours}
    unknown = [f"{d} on {labels[b]}" for (d, b), e in changes.items() if math.isnan(e.change.value)]
    if unknown:
        yield f"{told}: too few questions have a score to tell the effect of {' and '.join(unknown)}: nothing follows."
        return
    # Joint draws only: those that were measured in all four cells.
    n_null = sum(not any(map(math.isnan, draw)) for draw in zip(*(e.null for e in changes.values()), strict=False))
    if 1 / (1 + n_null) > LEVEL:
        least = f"only {n_null} permuted directions, and p cannot go below {1 / (1 + n_null):.3g}"
        yield f"{told}: {least if n_null else 'no null of permuted labels was measured'}, so nothing is concluded."
        return
    yield f"{told}: {_in_words(changes, own)}"


def _in_words(changes: Mapping[tuple[str, str], Effect], own: Mapping[str, str]) -> str:
    """What four cells say that have a null, by direction and behaviour."""
    p = dict(zip(changes, together(list(changes.values())), strict=True))

    def moves(cell: tuple[str, str]) -> bool:
        return p[cell] <= LEVEL and changes[cell].change.excludes_zero

    def told(cells: Sequence[tuple[str, str]]) -> str:
        wide = ["" if changes[cell].change.excludes_zero else " with zero in its interval" for cell in cells]
        return "p = " + " and ".join(f"{p[cell]:.3g}{how}" for cell, how in zip(cells, wide, strict=True))

    a, b = own
    mine, others = [(a, own[a]), (b, own[b])], [(a, own[b]), (b, own[a])]
    idle = [cell for cell in mine if not moves(cell)]
    if idle:
        who = f"{idle[0][0]} does not move" if len(idle) == 1 else f"neither {a} nor {b} moves"
        return f"{who} even its own behaviour ({told(idle)}), so nothing follows."
    across, still = [cell for cell in others if moves(cell)], [cell for cell in others if not moves(cell)]
    if not across:
        return (
            f"double dissociation. {a} and {b} each move their own behaviour ({told(mine)}), and neither the other's "
            f"({told(still)})."
        )
    if still:
        return (
            f"one-way. Both move their own behaviour ({told(mine)}), and {across[0][0]} moves the other's as well "
            f"({told(across)}), where {still[0][0]} does not ({told(still)})."
        )
    return f"shared. {a} and {b} each move both behaviours: their own ({told(mine)}) and the other's ({told(across)})."


def _twin(effects: CrossEffects, like: Condition, direction: str, without: str) -> Condition:
    """What was done with one direction, done with another."""
    for c in effects.conditions:
        if (c.direction, c.without, c.kind, c.strength) == (direction, without, like.kind, like.strength):
            return c
    raise ValueError(f"{direction} was not {like.done}, as {like.subject} was: do the same with both")


def _effect(effects: CrossEffects, condition: Condition, behaviour: str) -> Effect:
    for e in effects.of(behaviour):
        if e.condition.key == condition.key:
            return e
    raise ValueError(f"{behaviour} was not measured: there are {', '.join(effects.baseline)}")


def _cost(effects: CrossEffects, condition: Condition) -> float:
    if BehaviourKey.TEXT_BITS not in effects.baseline:
        return 0.0
    return _effect(effects, condition, BehaviourKey.TEXT_BITS).change.value
