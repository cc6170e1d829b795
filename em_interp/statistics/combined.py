"""P-values put together: of several seeds into one of their recipe, of several recipes into those of a whole search."""

from collections.abc import Sequence

from em_interp.checks import door, shown


@door
def majority_p(p_values: Sequence[int | float]) -> float:
    """One p-value of several independent ones, which is small where most of them are.

    The statistic is the p-value that just more than half of them do not exceed: the second smallest of three, the third
    of five. Where none of them has an effect, the r-th smallest of n is at most x with the probability that a Beta(r,
    n − r + 1) variable is, and that is returned (Wilkinson 1951, *A statistical consideration in psychological
    research*, Psychological Bulletin 48). Other than Fisher's sum of logarithms it cannot be carried by one of them.

    It is a test of the hypothesis that none has an effect. Which of them have one, it does not say.

    Raises:
        ValueError: there are none, or one that is not between 0 and 1.
    """
    from scipy import stats

    values = _checked(p_values)
    rank = len(values) // 2 + 1
    return float(stats.beta.cdf(sorted(values)[rank - 1], rank, len(values) - rank + 1))


@door
def holm_p(p_values: Sequence[int | float]) -> tuple[float, ...]:
    """P-values corrected for their number: where none has an effect, one comes out at .05 or less in 5 % of cases.

    The smallest of m is multiplied with m, the next with m − 1, and so on, and none is smaller than one before it (Holm
    1979, *A simple sequentially rejective multiple test procedure*). It holds however they depend on each other.

    Returns:
        In the order in which they came, at most 1.

    Raises:
        ValueError: there are none, or one that is not between 0 and 1.
    """
    values = _checked(p_values)
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min((len(values) - rank) * values[i], 1.0))
        corrected[i] = largest
    return tuple(corrected)


def _checked(p_values: Sequence[int | float]) -> list[float]:
    values = list(map(float, p_values))
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"p-values are {shown(p_values)}: give one at least, each between 0 and 1")
    return values
