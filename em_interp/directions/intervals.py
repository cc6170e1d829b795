"""The interval of a noise-corrected cosine: Fieller's, with critical values from a sign-flip bootstrap."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.statistics.wild_bootstrap import Signs, Sum, by_question, critical_values, inner_product

_SMALL = 1e-4  # of a length of one: draws are in float32, which says little about smaller errors


@dataclass(frozen=True, eq=False)
class Noisy:
    """A direction at a few layers with what is known of its noise.

    Attributes:
        noise: how far each question pulls it, its squares summing to an unbiased variance.
        squared: the unbiased squared length, above zero.
        shares: each question's share in the means.
    """

    direction: Float[Tensor, "layer dim"]
    noise: Float[Tensor, "layer question dim"]
    squared: Float[Tensor, " layer"]
    questions: tuple[str, ...]
    shares: Float[Tensor, " question"]

    def scaled(self) -> Sum:
        """Of unbiased length one, with what each question adds to it as observed: the residuals of the mean."""
        length = self.squared.sqrt()[:, None]
        residuals = self.noise / length[..., None] * (1 - self.shares).sqrt()[:, None]
        return Sum(self.direction / length, residuals, self.questions, self.shares)

    def around(self, unit: Float[Tensor, "layer dim"]) -> Sum:
        """The same noise around a centre of length one, all of which is taken to be signal."""
        return Sum(unit, self.noise / self.squared.sqrt()[:, None, None], self.questions, self.shares)


def cosine_interval(
    a: Noisy, b: Noisy, cosine: Float[Tensor, " layer"], signs: Signs
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """Both ends of the 95 % interval of a corrected cosine, and its standard error.

    The statistic is inner product − c · length, where the length is the root of the product of both unbiased squared
    lengths, over its standard error by the delete-one-question jackknife. The interval holds every c for which it is
    within its critical values (Fieller 1954). These are not Student's: inner product and lengths are products of noise
    with noise, skewed where a few dimensions carry most of it, and the jackknife counts such products twice (Efron and
    Stein 1981). So the statistic is computed again from draws in which each question's noise has a random sign, around
    centres that have the corrected lengths and the corrected cosine.

    The standard error is the jackknife's with these products counted once. Below 0.0001, as between a direction and
    itself, Student's critical values serve: draws are made in float32.
    """
    from scipy.special import stdtrit

    x, y = a.scaled(), b.scaled()
    numerator, length = _changes(x, y)
    covariance = torch.stack([numerator, length], 1)
    covariance = covariance @ covariance.mT
    of_ratio = covariance[:, 0, 0] - 2 * cosine * covariance[:, 0, 1] + cosine**2 * covariance[:, 1, 1]
    students = float(stdtrit(min(len(a.questions), len(b.questions)) - 1, 0.975))
    above, below = (
        torch.where(of_ratio < _SMALL**2, students, drawn)
        for drawn in critical_values(_studentised(a, b, cosine.clamp(-1, 1), signs))
    )
    low, high = _fieller(cosine, covariance, (above, below))
    # The jackknife expects at most twice the truth, so never take away more than half.
    variance = of_ratio - _pairs(x, y, cosine).minimum(of_ratio / 2)
    return low, high, variance.clamp_min(0).sqrt()


def _changes(x: Sum, y: Sum) -> tuple[Float[Tensor, "layer question"], Float[Tensor, "layer question"]]:
    """How inner product and length of two sums of length one change with each question."""
    signs = Signs.as_observed(x.questions + y.questions)
    between, of_x, of_y = (inner_product(*pair, signs) for pair in ((x, y), (x, x), (y, y)))
    numerator, length = by_question(between.of_x, between.of_y, x, y), by_question(of_x.of_x, of_y.of_x, x, y)
    return numerator[:, 0], length[:, 0]


def _studentised(a: Noisy, b: Noisy, cosine: Float[Tensor, " layer"], signs: Signs) -> Float[Tensor, "layer draw"]:
    """Inner product − cosine · length over its standard error in each draw; NaN where a length would be imaginary."""
    unit_a, unit_b = _at_angle(a.direction, b.direction, cosine)
    x, y = a.around(unit_a), b.around(unit_b)
    between, of_x, of_y = (inner_product(*pair, signs) for pair in ((x, y), (x, x), (y, y)))
    valid = (of_x.value > 0) & (of_y.value > 0)
    squared_x, squared_y = (torch.where(valid, side.value, 1) for side in (of_x, of_y))
    c = cosine[:, None].to(squared_x.dtype)
    # To first order the length moves with both squared lengths; each is changed by a question twice, once as x and
    # once as y.
    ratio = (squared_y / squared_x).sqrt()
    through_x = between.of_x - (c * ratio)[..., None] * of_x.of_x
    through_y = between.of_y - (c / ratio)[..., None] * of_y.of_x
    error = by_question(through_x, through_y, x, y).square().sum(-1).sqrt()
    t = (between.value - c * (squared_x * squared_y).sqrt()) / error.clamp_min(_SMALL**2)
    return torch.where(valid, t, math.nan)


def _at_angle(
    a: Float[Tensor, "layer dim"], b: Float[Tensor, "layer dim"], cosine: Float[Tensor, " layer"]
) -> tuple[Float[Tensor, "layer dim"], Float[Tensor, "layer dim"]]:
    """Two vectors of length one with a given cosine, in the plane of a and b, as far from a as from b."""
    unit_a, unit_b = (torch.nn.functional.normalize(side, dim=-1) for side in (a, b))
    middle, across = (torch.nn.functional.normalize(side, dim=-1) for side in (unit_a + unit_b, unit_a - unit_b))
    half = torch.acos(cosine)[:, None] / 2
    return half.cos() * middle + half.sin() * across, half.cos() * middle - half.sin() * across


def _fieller(
    cosine: Float[Tensor, " layer"],
    covariance: Float[Tensor, "layer 2 2"],
    critical: tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]],
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """All cosines that the data do not exclude, inside [−1, 1] (or up to the estimate), at a length of one."""
    one = torch.ones_like(cosine)
    lowest, highest = torch.minimum(cosine, -one), torch.maximum(cosine, one)
    ends = []
    for sign, furthest in zip((-1, 1), critical, strict=True):
        spread = furthest[:, None, None] ** 2 * covariance
        a, b, c = 1 - spread[:, 1, 1], cosine - spread[:, 0, 1], cosine**2 - spread[:, 0, 0]
        end = (b + sign * (b**2 - a * c).clamp_min(0).sqrt()) / a
        # A length that may be zero excludes no cosine.
        ends.append(torch.where(a > 0, end, sign * math.inf))
    return ends[0].clamp(lowest, one), ends[1].clamp(-one, highest)


def _pairs(x: Sum, y: Sum, cosine: Float[Tensor, " layer"]) -> Float[Tensor, " layer"]:
    """Variance that inner product − cosine · length owes to products of two questions' noise.

    The jackknife counts it twice: leaving out either question of a pair leaves out the product.
    """
    questions = tuple(dict.fromkeys(x.questions + y.questions))
    of_x, of_y = (_among(questions, side) for side in (x, y))
    pairs = of_x @ of_y.mT
    pairs = pairs + pairs.mT - cosine[:, None, None] * (of_x @ of_x.mT + of_y @ of_y.mT)
    return (pairs.square().sum((1, 2)) - pairs.diagonal(dim1=1, dim2=2).square().sum(-1)) / 2


def _among(questions: tuple[str, ...], x: Sum) -> Float[Tensor, "layer question dim"]:
    at = [questions.index(question) for question in x.questions]
    every = x.added.new_zeros(len(x.added), len(questions), x.added.shape[-1])
    every[:, at] = x.added
    return every
