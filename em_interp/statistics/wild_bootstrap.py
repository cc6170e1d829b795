"""Sign-flip (wild) bootstrap over questions of inner products without products of a question with itself.

Two vectors, each a centre plus what every question adds to it. A draw turns the sign of all that a question adds, at
every layer and in both vectors alike, so it keeps the shape of a question's noise and the noise that two vectors share
(Liu 1988; Davidson and Flachaire 2008). Inner products of a draw are those of centres and questions with each other, so
a draw costs no more in a wide space than in a narrow one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from em_interp.statistics.resampling import numbered


@dataclass(frozen=True, eq=False)
class Sum:
    """A vector a layer: a centre, and what each question adds to it.

    Attributes:
        shares: each question's share in the mean that the vector is of; together they are one.
    """

    centre: Float[Tensor, "layer dim"]
    added: Float[Tensor, "layer question dim"]
    questions: tuple[str, ...]
    shares: Float[Tensor, " question"]


@dataclass(frozen=True, eq=False)
class InnerProduct:
    """The inner product of two sums in every draw, and how each question moves it.

    Attributes:
        value: products of a question with itself left out, so that its mean over draws is that of the centres.
        of_x: what leaving out a question of x changes, as the delete-one jackknife has it: the squares sum to its
            variance. Where the question adds to y as well, this is the change through x alone.
        of_y: the same of the questions of y.
    """

    value: Float[Tensor, "layer draw"]
    of_x: Float[Tensor, "layer draw question_x"]
    of_y: Float[Tensor, "layer draw question_y"]


@dataclass(frozen=True, eq=False)
class Signs:
    """One sign a draw and question."""

    values: Float[Tensor, "draw question"]
    questions: tuple[str, ...]

    @classmethod
    def drawn(cls, questions: Sequence[str], n_draws: int, *, seed: int) -> "Signs":
        """Random signs, which depend on what the questions are called and not on their order."""
        names = tuple(sorted(set(questions)))
        generator = torch.Generator().manual_seed(seed)
        bits = torch.randint(0, 2, (n_draws, len(names)), generator=generator)
        return cls(2 * bits.float() - 1, names)

    @classmethod
    def as_observed(cls, questions: Sequence[str]) -> "Signs":
        """One draw in which no sign is turned."""
        names = tuple(sorted(set(questions)))
        return cls(torch.ones(1, len(names), dtype=torch.float64), names)

    def of(self, questions: Sequence[str]) -> Float[Tensor, "draw question"]:
        """The signs of some questions, in their order."""
        at = {question: i for i, question in enumerate(self.questions)}
        return self.values[:, [at[question] for question in questions]]


def inner_product(x: Sum, y: Sum, signs: Signs) -> InnerProduct:
    """The inner product of two sums under each draw of signs, in the type of the signs.

    With pairs of one question left out, n² − n of n² remain where all questions are shared, and all where none is; and
    n² − 2n of n² where one question is left out besides. These shares scale what pairs of questions add, which makes
    value and changes exact where each question adds as much as any other to the mean.
    """
    own = _same_question(x, y)
    pairs, n_own = own.numel(), int(own.sum())
    linear_x, paired = _by_question(x, y, signs, own)
    linear_y, paired_y = (linear_x, paired) if x is y else _by_question(y, x, signs, own.T)
    centres = (x.centre * y.centre).sum(-1, keepdim=True).to(signs.values.dtype)
    value = centres + linear_x.sum(-1) + linear_y.sum(-1) + pairs / (pairs - n_own) * paired.sum(-1)
    left_out = pairs / (pairs - 2 * n_own)
    of_x = _residuals(linear_x + left_out * paired, x.shares)
    return InnerProduct(value, of_x, of_x if x is y else _residuals(linear_y + left_out * paired_y, y.shares))


def by_question(
    of_x: Float[Tensor, "layer draw question_x"],
    of_y: Float[Tensor, "layer draw question_y"],
    x: Sum,
    y: Sum,
) -> Float[Tensor, "layer draw question"]:
    """Changes through x and changes through y, added up where they are of one question; x's questions come first."""
    at_y = numbered(x.questions + y.questions)[len(x.questions) :]
    n = max(len(x.questions), int(at_y.max()) + 1)
    return torch.nn.functional.pad(of_x, (0, n - of_x.shape[-1])).index_add(-1, at_y, of_y)


def critical_values(
    t: Float[Tensor, "layer draw"], level: float = 0.95
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """How far above and how far below zero a studentised statistic may lie: the wider of two intervals at each end.

    One is symmetric, from the sizes of t, and the other has equal tails, from t itself. Draws that are NaN do not
    count; where those left are too few to say, the value is infinite.
    """
    sizes = _quantile(t.abs(), level)
    above, below = (_quantile(side, (1 + level) / 2) for side in (t, -t))
    return sizes.maximum(above), sizes.maximum(below)


def _quantile(values: Float[Tensor, "layer draw"], level: float) -> Float[Tensor, " layer"]:
    """The smallest draw that a further one exceeds with probability 1 − level at most."""
    ordered = torch.where(values.isnan(), math.inf, values).sort(-1).values
    count = values.isfinite().sum(-1)
    rank = (level * (count + 1) - 1e-9).ceil().long()
    chosen = ordered.gather(-1, (rank - 1).clamp(0, values.shape[-1] - 1)[:, None])[:, 0]
    return torch.where(rank > count, math.inf, chosen).double()


def _by_question(
    x: Sum, y: Sum, signs: Signs, own: Bool[Tensor, "question_x question_y"]
) -> tuple[Float[Tensor, "layer draw question_x"], Float[Tensor, "layer draw question_x"]]:
    """What each question of x adds to the inner product, through y's centre and through y's other questions."""
    of_x, of_y = signs.of(x.questions), signs.of(y.questions)
    to_centre = (x.added @ y.centre[:, :, None])[:, None, :, 0]
    to_others = (x.added @ y.added.mT).masked_fill(own, 0)
    return of_x * to_centre.to(of_x.dtype), of_x * (of_y @ to_others.mT.to(of_x.dtype))


def _same_question(x: Sum, y: Sum) -> Bool[Tensor, "question_x question_y"]:
    number = numbered(x.questions + y.questions)
    return number[: len(x.questions), None] == number[len(x.questions) :]


def _residuals(
    changes: Float[Tensor, "layer draw question"], shares: Float[Tensor, " question"]
) -> Float[Tensor, "layer draw question"]:
    """What is left of each change when the mean has taken its part, and that scaled to the variance before."""
    shares = shares.to(changes.dtype)
    return (changes - shares * changes.sum(-1, keepdim=True)) / (1 - shares).sqrt()
