"""What the numbers of a report say, in sentences."""

import math
from collections.abc import Sequence

from torch import Tensor

from em_interp.behaviour.effects import CrossEffects
from em_interp.directions.comparison import Comparison, clearest
from em_interp.figures.style import interval, number


def findings(comparison: Comparison, standardised: Comparison | None = None) -> tuple[str, ...]:
    """What the numbers say, in a few sentences: how alike, against which null, in which metric, beside which controls.

    `standardised` is the same comparison in units of each dimension's deviation.
    """
    c, n = comparison, len(comparison.layers)
    row, found = clearest(c), int(c.corrected.isfinite().sum())
    if not found:
        return (
            f"At none of the {n} layers do both contrasts have a direction that stands out from permuted labels "
            f"({c.a}: {int(c.found_a.sum())} layers; {c.b}: {int(c.found_b.sum())} layers), so there is no cosine to "
            f"report.",
            "That is no evidence that the two are unrelated: more questions may show a direction.",
        )
    if row is None:
        return (
            f"Both contrasts have a direction at {found} of {n} layers, but at none of them can their cosine be told "
            f"from chance{_and_few_dimensions(c)}.",
            f"{_reached(c)}.",
        )
    value, low, high = (float(x[row]) for x in (c.corrected, c.low, c.high))
    here = f"{interval(value, low, high)} at layer {c.layers[row]}"
    n_apart = int(((c.low > 0) | (c.high < 0)).sum())
    if not n_apart:
        return (
            f"Both contrasts have a direction at {found} of {n} layers, but at none of "
            f"them does the interval of the corrected cosine exclude zero; the largest is {here}.",
            f"The data fit directions that have nothing to do with each other, and there they leave room for cosines "
            f"from {number(low)} to {number(high)}.",
        )
    return (
        f"At {n_apart} of {n} layers the corrected cosine's interval excludes zero; it stays farthest "
        f"from zero with {here}.",
        _against_null(c, row),
        *([_in_other_units(standardised, row, value)] if standardised else []),
        _against_controls(c, row),
    )


def _and_few_dimensions(c: Comparison) -> str:
    count = int(c.dominated.sum())
    if not count:
        return ""
    return f", or from what few dimensions do: three of them hold more than half of a direction at {count}"


def _reached(c: Comparison) -> str:
    p = max(c.p_anywhere_a, c.p_anywhere_b)
    return f"{100 * p:.1f} % of permutations reach the data's largest plug-in cosine at some layer or other"


def _against_null(c: Comparison, row: int) -> str:
    low, high = min(c.null_a[0, row], c.null_b[0, row]), max(c.null_a[1, row], c.null_b[1, row])
    return (
        f"With permuted labels the plug-in cosine there lies between {number(float(low))} and {number(float(high))} "
        f"(95 %), with the true ones it is {number(float(c.cosine[row]))}; {_reached(c)}."
    )


def _in_other_units(c: Comparison, row: int, plain: float) -> str:
    """Whether the cosine is still there when no dimension counts for more because it varies more."""
    value, low, high = (float(x[row]) for x in (c.corrected, c.low, c.high))
    text = "With every dimension in units of its own deviation within the classes "
    if math.isnan(value):
        return (
            f"{text}there is no direction to compare at that layer, so the cosine hangs on dimensions that vary much."
        )
    text += f"it is {interval(value, low, high)} there"
    holds = low > 0 if plain > 0 else high < 0
    return (
        f"{text}: a few dimensions that vary much do not make it."
        if holds
        else (f"{text}, so it hangs on dimensions that vary much.")
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
    return f"{text} {capitalised(c.a)} itself lies closest to {nearest[1]} ({number(nearest[0])})."


def _largest(names: Sequence[str], cosines: Tensor) -> tuple[float, str] | None:
    if not cosines.isfinite().any():
        return None
    row = int(cosines.abs().nan_to_num(-1).argmax())
    return float(cosines[row]), names[row].replace("_", " ")


def effect_findings(effects: CrossEffects) -> str:
    """How many changes have an interval that excludes zero and stand out from permuted labels, beside random ones."""
    random = [e.change.excludes_zero for e in effects.effects if e.condition.random]
    ours = [e.change.excludes_zero for e in effects.effects if not e.condition.random]
    text = f"Of {len(ours)} changes that the directions make, {sum(ours)} have an interval that excludes zero"
    if random:
        text += f"; of {len(random)} that random directions of the same length make, {sum(random)}"
    held = len(effects.corrected_p())
    if not held:
        return f"{text}. None was held against permuted labels, so that none has a p-value."
    return (
        f"{text}. {held} were held against {effects.n_null} directions of permuted labels, and {len(effects.moving())} "
        f"of them move their behaviour: interval and p-value, corrected for the cells measured alike, exclude chance."
    )


def capitalised(text: str) -> str:
    """With a capital first letter, the rest as it stands."""
    return text[:1].upper() + text[1:]
