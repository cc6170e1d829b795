"""Questions as the unit of resampling: labels permuted and halves drawn."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def mean_weights(chosen: Bool[Tensor, "resample row"]) -> Float[Tensor, "resample row"]:
    """Weights on the rows that take the mean of the chosen ones."""
    return chosen.double() / chosen.sum(-1, keepdim=True)


def permuted_labels(
    positive: Bool[Tensor, " row"], groups: tuple[str, ...], n: int, generator: torch.Generator
) -> Bool[Tensor, "permutation row"]:
    """Shuffle labels among the rows of each question with both classes, and among whole questions with one."""
    kinds = _kinds(positive, groups)
    units = [row if kinds[group] == "both" else group for row, group in enumerate(groups)]
    strata = [group if kinds[group] == "both" else None for group in groups]
    unit, stratum = numbered(units), numbered(strata)
    n_units = int(unit.max()) + 1
    stratum_of, label_of = torch.empty(n_units), torch.empty(n_units, dtype=torch.bool)
    stratum_of[unit], label_of[unit] = stratum.float(), positive
    shuffled = _shuffled_within(stratum_of, n, generator)
    labels = torch.empty(n, n_units, dtype=torch.bool)
    labels.scatter_(1, shuffled, label_of[stratum_of.argsort(stable=True)].expand(n, -1))
    return labels[:, unit]


def random_halves(
    positive: Bool[Tensor, " row"], groups: tuple[str, ...], n: int, generator: torch.Generator
) -> Bool[Tensor, "halving row"]:
    """Rows of a random half of the questions, of each kind of question as many as of the other half, or one more."""
    kinds = _kinds(positive, groups)
    shuffled = _shuffled_within(numbered(list(kinds.values())).float(), n, generator)
    half = torch.empty(n, len(kinds), dtype=torch.bool)
    half.scatter_(1, shuffled, (torch.arange(len(kinds)) % 2 == 0).expand(n, -1))
    return half[:, numbered(groups)]


def _shuffled_within(
    stratum: Float[Tensor, " unit"], n: int, generator: torch.Generator
) -> Int[Tensor, "resample unit"]:
    """Orders of the units that keep the strata in order and shuffle each of them inside."""
    return (stratum.double() + torch.rand(n, len(stratum), generator=generator, dtype=torch.float64)).argsort(-1)


def _kinds(positive: Bool[Tensor, " row"], groups: tuple[str, ...]) -> dict[str, str]:
    """Whether each question has rows of both classes or of which one, in the order met."""
    kinds: dict[str, str] = {}
    for group, label in zip(groups, positive.tolist(), strict=True):
        kind = "positive" if label else "negative"
        kinds[group] = kind if kinds.get(group, kind) == kind else "both"
    return kinds


def numbered(values: Sequence[Any]) -> Int[Tensor, " value"]:
    """Number the values by the order in which they are met."""
    number = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([number[value] for value in values])


def class_sums(
    rows: Float[Tensor, "*layer row dim"], positive: Bool[Tensor, " row"], question: Int[Tensor, " row"]
) -> Float[Tensor, "*layer 2 question dim"]:
    """Sum the rows of each class, positive first, and question."""
    n = int(question.max()) + 1
    empty = rows.new_zeros(*rows.shape[:-2], 2 * n, rows.shape[-1])
    return empty.index_add(-2, question + n * ~positive, rows).unflatten(-2, (2, n))
