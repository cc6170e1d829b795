"""How well a direction tells the classes of held-out questions apart."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from em_interp.activations.reading import ContrastActivations
from em_interp.checks import door
from em_interp.directions.comparison import check_questions
from em_interp.statistics.resampling import mean_weights, numbered


@dataclass(frozen=True, eq=False)
class Separability:
    """How well a direction tells the classes of questions apart that it was not computed from.

    Attributes:
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
            f"Separability({self.name!r}, {len(self.layers)} layers, {self.n_questions} questions in {self.n_folds} "
            f"folds, best at layer {self.layers[row]}: AUC {self.auc[row]:.2f} [{self.low[row]:.2f}, "
            f"{self.high[row]:.2f}])"
        )


@door
def separability(contrast: ContrastActivations, *, n_folds: int = 5, seed: int = 0) -> Separability:
    """Project each conversation on the difference of means of the other folds, and see how well that tells the classes.

    Folds are grouped by question. Pairs are compared within a fold, since folds have directions of their own, and
    never within a question, whose two answers share more than the class. The interval is that of clustered DeLong
    (Obuchowski 1997): variance over questions, t quantiles, on the logit scale; it takes the directions as given.
    Where every pair is in order it is Clopper and Pearson's for as many successes as questions.

    Raises:
        ValueError: there are fewer than two questions of each class a fold, or several positions are in the contrast.
    """
    check_questions(contrast)
    question = numbered(contrast.positive.groups + contrast.negative.groups)
    positive = torch.arange(len(question)) < len(contrast.positive)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: give a whole number from 0 to 2³² − 1")
    fold = _folds(contrast, n_folds, seed)
    others = fold != torch.arange(n_folds)[:, None]
    plus, minus = mean_weights(others & positive), mean_weights(others & ~positive)
    compared = (fold[positive][:, None] == fold[~positive]) & (question[positive][:, None] != question[~positive])
    projections, estimates = [], []
    for row in range(len(contrast.layers)):
        rows = torch.cat([contrast.positive.values[:, row], contrast.negative.values[:, row]]).double()
        direction = torch.nn.functional.normalize((plus - minus) @ rows, dim=-1)
        along = rows @ direction.T - (((plus + minus) / 2 @ rows) * direction).sum(-1)
        held_out = along.gather(1, fold[:, None])[:, 0]
        projections.append(held_out)
        estimates.append(_auc(held_out[positive], held_out[~positive], compared, question))
    auc, low, high = torch.tensor(estimates, dtype=torch.float64).T
    held_out = torch.stack(projections, -1).float()
    found = {"auc": auc, "low": low, "high": high, "positive": held_out[positive], "negative": held_out[~positive]}
    return Separability(contrast.name, contrast.layers, len(contrast.groups), n_folds, seed, **found)


def _folds(contrast: ContrastActivations, n_folds: int, seed: int) -> Int[Tensor, " row"]:
    """Which fold holds out each row, all rows of a question in the same, the classes as even as can be."""
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(set(contrast.positive.groups)), len(set(contrast.negative.groups)))
    if not 2 <= n_folds <= fewest // 2:
        raise ValueError(
            f"n_folds is {n_folds} and {contrast.name!r} has {fewest} questions in a class: choose at least 2 folds, "
            f"of at least two questions each"
        )
    groups = contrast.positive.groups + contrast.negative.groups
    labels = [1] * len(contrast.positive) + [0] * len(contrast.negative)
    fold = torch.empty(len(groups), dtype=torch.long)
    splits = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    for number, (_, held_out) in enumerate(splits):
        fold[torch.from_numpy(held_out)] = number
    return fold


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
