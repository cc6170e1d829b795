"""In words: do two directions do each other's work?"""

import math
from collections.abc import Iterator, Mapping

from em_interp.behaviour.effects import BITS, DAMAGE, JUDGED, PREFERENCE, REFUSES_HARMFUL, CrossEffects, is_random

CAVEAT = (
    "Where a direction moves nothing, no effect was shown, and none was excluded: its interval says what there is room "
    "for."
)


def what_follows(effects: CrossEffects, own: Mapping[str, str], *, damage: int | float = DAMAGE) -> tuple[str, ...]:
    """In words, intervention by intervention: do two directions do each other's work?

    A direction *moves* a behaviour where the change's interval excludes zero and the change is larger than that of any
    random direction under the same intervention. Where both move their own and neither the other's, they are doubly
    dissociated; where one moves the other's, the sharing is one-way; where both do, it is mutual. An intervention that
    costs more than `damage` bits a token of plain prose is left out: a broken model says nothing.

    Args:
        effects: what `cross_effects` found.
        own: the two directions' names, each with the behaviour that is its own.
        damage: bits a token.

    Raises:
        ValueError: not two directions, or one of which nothing was measured.
    """
    if len(own) != 2:
        raise ValueError(f"{len(own)} directions came with their behaviours: give two")
    kinds = dict.fromkeys(kind for name, kind in effects.interventions if name == next(iter(own)))
    if not kinds:
        raise ValueError(f"nothing was done with the direction {next(iter(own))!r}: see .interventions")
    return (*(sentence for kind in kinds for sentence in _followed(effects, own, kind, damage)), CAVEAT)


def standard_conclusions(effects: CrossEffects, misalignment: str, refusal: str) -> tuple[str, ...]:
    """`what_follows` for the two directions by `standard_behaviours`: by preference, and by a judge's scores first.

    Where the parts that stand apart were measured, they are spoken of as well.

    Args:
        effects: what `cross_effects` found, with `JUDGED` among the behaviours if there was a judge.
        misalignment: the name of the one direction, whose own behaviour is `PREFERENCE`, and `JUDGED`.
        refusal: that of the other one, whose own is `REFUSES_HARMFUL`.
    """
    pairs = [(misalignment, refusal), (f"{misalignment} without {refusal}", f"{refusal} without {misalignment}")]
    measured = {direction for direction, _ in effects.interventions}
    pairs = [pair for pair in pairs if measured.issuperset(pair)]
    judged = [("Misaligned by the judge's scores. ", JUDGED)] if JUDGED in effects.baseline else []
    ways = [*judged, ("Misaligned by preference. " if judged else "", PREFERENCE)]
    found = [
        f"{how}{sentence}"
        for how, behaviour in ways
        for first, second in pairs
        for sentence in what_follows(effects, {first: behaviour, second: REFUSES_HARMFUL})[:-1]
    ]
    return (*found, CAVEAT)


def _followed(effects: CrossEffects, own: Mapping[str, str], kind: str, damage: int | float) -> Iterator[str]:
    (a, of_a), (b, of_b) = own.items()
    broken = [name for name in own if _cost(effects, name, kind) > damage]
    if broken:
        costs = " and ".join(f"{_cost(effects, name, kind):.1f} ({name})" for name in broken)
        yield f"{kind.capitalize()}: costs {costs} bits a token of plain prose, which is damage, and no evidence."
        return
    unknown = [(d, b) for d in own for b in (of_a, of_b) if math.isnan(effects.change(d, kind, b).value)]
    if unknown:
        which = " and ".join(f"{d} on {behaviour}" for d, behaviour in unknown)
        yield f"{kind.capitalize()}: too few questions have a score to tell the effect of {which}, so nothing follows."
        return
    moves = {(d, b): _moves(effects, d, kind, b) for d in own for b in (of_a, of_b)}
    if not (moves[a, of_a] and moves[b, of_b]):
        idle = [d for d, behaviour in own.items() if not moves[d, behaviour]]
        who = f"{idle[0]} does not move" if len(idle) == 1 else f"neither {idle[0]} nor {idle[1]} moves"
        yield f"{kind.capitalize()}: {who} even its own behaviour, so nothing follows."
        return
    across = [d for d, other in ((a, of_b), (b, of_a)) if moves[d, other]]
    yield (
        f"{kind.capitalize()}: "
        + {
            0: f"double dissociation. {a} and {b} each move their own behaviour, and neither the other's.",
            1: f"one-way. Both move their own behaviour, and {' '.join(across)} moves the other's as well.",
            2: f"shared. {a} and {b} each move both behaviours.",
        }[len(across)]
    )


def _moves(effects: CrossEffects, direction: str, kind: str, behaviour: str) -> bool:
    change = effects.change(direction, kind, behaviour)
    random = [
        abs(e.change.value)
        for e in effects.effects
        if is_random(e.direction) and e.behaviour == behaviour and e.intervention == _random_kind(kind)
    ]
    largest = max((size for size in random if not math.isnan(size)), default=0.0)
    return change.excludes_zero and abs(change.value) > largest


def _random_kind(kind: str) -> str:
    """What was done with random directions beside this."""
    if kind.startswith("added"):
        return kind
    return kind.replace("set to its negative class", "subtracted") if kind.startswith("set") else "removed"


def _cost(effects: CrossEffects, direction: str, kind: str) -> float:
    return effects.change(direction, kind, BITS).value if BITS in effects.baseline else 0.0
