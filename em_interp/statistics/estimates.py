"""Means and rates with intervals in which the question is the unit, not the response."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.checks import door

_AnEstimate = TypeVar("_AnEstimate", bound="Estimate")


@dataclass(frozen=True, repr=False)
class Estimate:
    """A number with its 95 % interval and the number of questions behind it."""

    value: float
    low: float
    high: float
    n: int

    def __repr__(self) -> str:
        """One line: `+0.31 [+0.22, +0.40] (n = 72)`."""
        return f"{self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}] (n = {self.n})"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@door
def mean_by_question(values: Float[Tensor, " conversation"], groups: Sequence[str]) -> Estimate:
    """The mean over questions, each counted once, with Student's interval over the questions.

    Raises:
        ValueError: a value that is NaN or infinite, or fewer than two questions, from which no interval can be had.
    """
    per_question = _question_means(values, groups)
    n = len(per_question)
    if n < 2:
        raise ValueError(f"{n} question gives no interval: measure at least two")
    half = student(n - 1) * (per_question.std() / math.sqrt(n)).item()
    mean = per_question.mean().item()
    return Estimate(mean, mean - half, mean + half, n)


def within_one(change: _AnEstimate) -> _AnEstimate:
    """The same, its interval cut off at −1 and 1: no share can change by more."""
    return replace(change, low=max(change.low, -1.0), high=min(change.high, 1.0))


def student(degrees: int | float) -> float:
    """The 97.5 % quantile of Student's distribution: half-widths of 95 % intervals are so many standard errors."""
    from scipy import stats

    return float(stats.t.ppf(0.975, degrees))


def _question_means(values: Float[Tensor, " conversation"], groups: Sequence[str]) -> Float[Tensor, " question"]:
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values came with {len(groups)} questions: give one question a value")
    broken = int((~torch.isfinite(values)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(values)} values are NaN or infinite, so there is no mean: look for a model whose "
            f"weights are damaged, an intervention that overflows, or answers without a score, and leave those out"
        )
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([order[group] for group in groups])
    sums = torch.zeros(len(order), dtype=torch.float64).index_add_(0, index, values.double())
    return sums / index.bincount(minlength=len(order))
