"""How well a direction tells the classes of held-out questions apart."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from em_interp.activations.reading import ContrastActivations
from em_interp.checks import door
from em_interp.directions.comparison import check_questions
from em_interp.directions.estimators import Estimator, estimator_of, question_folds
from em_interp.statistics.resampling import numbered


@dataclass(frozen=True, eq=False)
class Separability:
    """How well a direction tells the classes of questions apart that it was not computed from.

    Attributes:
        estimator: how the directions were found.
        auc: chance that a held-out positive conversation lies farther along the direction than a negative one of
            another question in the same fold; 0.5 is chance.
        low: lower end of its 95 % interval.
        high: upper end.
        positive: held-out projections of the positive class, zero midway between the class means of the other folds.
        negative: the same of the negative class.
    """

    name: str
    layers: tuple[int, ...]
    n_questions: int
    n_folds: int
    seed: int
    estimator: str
    auc: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    positive: Float[Tensor, "positive layer"]
    negative: Float[Tensor, "negative layer"]

    def table(self) -> list[dict[str, Any]]:
        """One dict a layer, of plain numbers, ready for JSON."""
        numbers = zip(self.layers, self.auc.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
        return [dict(zip(("layer", "auc", "low", "high"), row, strict=True)) for row in numbers]

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        row = int(self.auc.argmax())
        return (
            f"Separability({self.name!r}, {len(self.layers)} layers, {self.estimator}, {self.n_questions} "
            f"questions in {self.n_folds} folds, best at layer {self.layers[row]}: AUC {self.auc[row]:.2f} "
            f"[{self.low[row]:.2f}, {self.high[row]:.2f}])"
        )


@door
def separability(
    contrast: ContrastActivations, *, estimator: Estimator = "difference_of_means", n_folds: int = 5, seed: int = 0
) -> Separability:
    """Project each conversation on the direction of the other folds, and see how well that tells the classes apart.

    Folds are grouped by question. Pairs are compared within a fold, since folds have directions of their own, and
    never within a question, whose two answers share more than the class. The interval is that of clustered DeLong
    (Obuchowski 1997): variance over questions, t quantiles, on the logit scale; it takes the directions as given.
    Where every pair is in order it is Clopper and Pearson's for as many successes as questions.

    Args:
        contrast: activations of both classes.
        estimator: how a fold's direction is found: a name among `ESTIMATORS`, or a function of activations.
        n_folds: how many folds, of at least two questions of each class.
        seed: of the folds.

    Raises:
        ValueError: there are fewer than two questions of each class a fold, several positions are in the contrast, or
            there is no such estimator.
    """
    check_questions(contrast)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: give a whole number from 0 to 2³² − 1")
    estimate = estimator_of(estimator)
    fewest = min(len(set(contrast.positive.groups)), len(set(contrast.negative.groups)))
    if not 2 <= n_folds <= fewest // 2:
        raise ValueError(
            f"n_folds is {n_folds} and {contrast.name!r} has {fewest} questions in a class: choose at least 2 folds, "
            f"of at least two questions each"
        )
    groups = contrast.positive.groups + contrast.negative.groups
    question, n_positive = numbered(groups), len(contrast.positive)
    positive = torch.arange(len(question)) < n_positive
    rows = torch.cat([contrast.positive.values, contrast.negative.values])
    fold = torch.empty(len(groups), dtype=torch.long)
    held_out = torch.empty(*rows.shape[:2], dtype=torch.float64)
    for number, (learned, left_out) in enumerate(question_folds(positive.tolist(), groups, n_folds, seed)):
        of_others = replace(
            contrast,
            positive=contrast.positive.rows([i for i in learned if i < n_positive]),
            negative=contrast.negative.rows([i - n_positive for i in learned if i >= n_positive]),
        )
        found = estimate(of_others)
        unit = torch.nn.functional.normalize(found.vectors.double(), dim=-1)
        middle = (found.positive_projection + found.negative_projection).double() / 2
        held_out[left_out] = einsum(rows[left_out].double(), unit, "row layer d, layer d -> row layer") - middle
        fold[left_out] = number
    compared = (fold[positive][:, None] == fold[~positive]) & (question[positive][:, None] != question[~positive])
    estimates = [_auc(along[positive], along[~positive], compared, question) for along in held_out.T]
    auc, low, high = torch.tensor(estimates, dtype=torch.float64).T
    along = held_out.float()
    numbers = {"auc": auc, "low": low, "high": high, "positive": along[positive], "negative": along[~positive]}
    named = estimator if isinstance(estimator, str) else getattr(estimator, "__name__", "given")
    return Separability(contrast.name, contrast.layers, len(contrast.groups), n_folds, seed, named, **numbers)


def _auc(
    positive: Float[Tensor, " positive"],
    negative: Float[Tensor, " negative"],
    compared: Bool[Tensor, "positive negative"],
    question: Int[Tensor, " row"],
) -> tuple[float, float, float]:
    """Share of the compared pairs in order, ties as halves, with both ends of its interval."""
    from scipy.special import expit, logit, stdtrit

    difference = positive[:, None] - negative
    wins = ((difference > 0).double() + (difference == 0).double() / 2) * compared
    auc = float(wins.sum() / compared.sum())
    pull = (wins - auc * compared) / compared.sum()
    n = int(question.max()) + 1
    of_question = torch.zeros(n, dtype=torch.float64).index_add(0, question, torch.cat([pull.sum(1), pull.sum(0)]))
    error = float((n / (n - 1) * of_question.square().sum()).sqrt())
    freedom = min(len(question[: len(positive)].unique()), len(question[len(positive) :].unique())) - 1
    if auc in (0.0, 1.0):
        chance = 0.025 ** (1 / (freedom + 1))
        return (auc, chance, 1.0) if auc else (auc, 0.0, 1 - chance)
    reach = stdtrit(freedom, 0.975) * error / (auc * (1 - auc))
    return auc, float(expit(logit(auc) - reach)), float(expit(logit(auc) + reach))
