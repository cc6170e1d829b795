"""Directions from activations: estimators of what tells classes apart, their stand-ins under nulls, parts of two."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from em_interp.activations.reading import Activations, ContrastActivations
from em_interp.checks import door
from em_interp.directions.direction import Direction
from em_interp.statistics.resampling import class_sums, numbered, permuted_labels

Pooling = Literal["conversation", "token"]

_NOTHING = 1e-9  # of the length of an activation: what float64 leaves of a difference that is zero
_CONSTANT = 1e-6  # of a dimension's size: a spread below that is rounding
_REGRESSION: dict[str, Any] = {
    "Cs": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),  # inverse strengths of L2 that are chosen from
    "scoring": "neg_log_loss",
    "solver": "newton-cholesky",
    "l1_ratios": (0,),
    "use_legacy_attributes": False,
}


@door
def difference_of_means(contrast: ContrastActivations, *, pooling: Pooling = "conversation") -> Direction:
    """Subtract the mean activation of the negative class from that of the positive class, at every layer.

    `pooling="conversation"` gives every conversation the same weight; `"token"` every token, as the code of Soligo
    et al. (2025, arXiv 2506.11618) does, so that long answers count for more. Sums are in float64.
    """
    if pooling not in ("conversation", "token"):
        raise ValueError(f"pooling {pooling!r} is unknown: choose 'conversation' or 'token'")
    positive, negative = _means(contrast, pooling)
    return _along(contrast, positive - negative, "difference_of_means", pooling)


@door
def standardised(contrast: ContrastActivations) -> Direction:
    """The difference of means with every dimension in units of its within-class standard deviation.

    The vector, times an activation, is that activation's projection in those units: the difference is divided by the
    deviation once to be in the units, and once more because the activation is not. It is the linear discriminant of
    independent dimensions (Bickel and Levina 2004), which no massive dimension takes over.
    """
    positive, negative = _means(contrast, "conversation")
    return _along(contrast, (positive - negative) / deviations([contrast]).square(), "standardised")


@door
def lda(contrast: ContrastActivations) -> Direction:
    """Fisher's linear discriminant: the difference of means over the within-class covariance.

    Dimensions are taken in units of their within-class standard deviations, and their covariance there is shrunk
    towards a multiple of the identity as Ledoit and Wolf (2004) do, so fewer conversations than dimensions are enough.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    positive, negative = _means(contrast, "conversation")
    deviation, vectors = deviations([contrast]), []
    for row in range(len(contrast.layers)):
        rows, labels = _rows(contrast, row)
        means = torch.where(labels[:, None], positive[row], negative[row])
        residuals = (rows - means) / deviation[row]
        shrinkage = float(ledoit_wolf_shrinkage(residuals.numpy(), assume_centered=True))
        mean_variance = float(residuals.square().mean())
        apart = (positive[row] - negative[row]) / deviation[row]
        vectors.append(_solved(residuals, shrinkage * mean_variance, 1 - shrinkage, apart) / deviation[row])
    return _along(contrast, torch.stack(vectors), "lda")


@door
def paired(contrast: ContrastActivations) -> Direction:
    """The mean over questions of the difference between the two classes' means within the question.

    What a question's answers share in both classes drops out, and each question counts once, however often it was
    answered.

    Raises:
        ValueError: a question has conversations of one class only.
    """
    return _along(contrast, _differences(contrast).mean(0), "paired")


@door
def principal(contrast: ContrastActivations) -> Direction:
    """The first principal component of the within-question differences, about zero, as Zou et al. (2023) read it.

    It follows arXiv 2310.01405, where the order within a pair is random and differences are therefore about zero.

    Raises:
        ValueError: a question has conversations of one class only.
    """
    differences = _differences(contrast).transpose(0, 1)
    components = torch.linalg.svd(differences, full_matrices=False).Vh[:, 0]
    return _along(contrast, components, "principal")


@door
def logistic(contrast: ContrastActivations) -> Direction:
    """The weights of a logistic regression with an L2 penalty, every dimension in units of its within-class deviation.

    The penalty is the one of five, from 1 to 10,000, with the smallest log-loss on held-out questions: up to three
    folds, all conversations of a question in the same.

    Raises:
        ValueError: a class has fewer than two questions.
    """
    from sklearn.linear_model import LogisticRegressionCV

    deviation, vectors = deviations([contrast]), []
    groups = contrast.positive.groups + contrast.negative.groups
    n_folds = min(3, len(set(contrast.positive.groups)), len(set(contrast.negative.groups)))
    if n_folds < 2:
        raise ValueError(f"{contrast.name!r} has a class with fewer than two questions: a penalty is chosen with two")
    for row in range(len(contrast.layers)):
        rows, labels = _rows(contrast, row)
        scaled = (rows - rows.mean(0)) / deviation[row]
        # The penalty sees lengths only, so coordinates along the rows' own axes do as well, and there are few of them.
        left, sizes, axes = torch.linalg.svd(scaled, full_matrices=False)
        splits = question_folds(labels.tolist(), groups, n_folds, seed=0)
        chosen = LogisticRegressionCV(cv=splits, **_REGRESSION).fit((left * sizes).numpy(), labels.numpy())
        vectors.append(torch.from_numpy(chosen.coef_[0]) @ axes / deviation[row])
    return _along(contrast, torch.stack(vectors), "logistic")


EstimatorName = Literal["difference_of_means", "standardised", "lda", "paired", "logistic", "principal"]
Estimator = EstimatorName | Callable[[ContrastActivations], Direction]
ESTIMATORS: dict[EstimatorName, Callable[[ContrastActivations], Direction]] = {
    "difference_of_means": difference_of_means,
    "standardised": standardised,
    "lda": lda,
    "paired": paired,
    "logistic": logistic,
    "principal": principal,
}


def estimator_of(estimator: Estimator) -> Callable[[ContrastActivations], Direction]:
    """An estimator by its name, or the function that was given."""
    if callable(estimator):
        return estimator
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator {estimator!r} is unknown: choose one of {', '.join(ESTIMATORS)}, or give a function"
        )
    return ESTIMATORS[estimator]


def deviations(contrasts: Sequence[ContrastActivations]) -> Float[Tensor, "layer d_model"]:
    """Standard deviation of every dimension within the classes, pooled over all classes of all the contrasts.

    A dimension that never varies and is the same in all classes has an infinite one: nothing is read along it.

    Raises:
        ValueError: a dimension does not vary within the classes and differs between them, or no class has two rows.
    """
    sides = [side for c in contrasts for side in (c.positive, c.negative)]
    freedom = sum(len(side) - 1 for side in sides)
    if freedom < 1 or min(map(len, sides)) < 1:
        raise ValueError(f"no class of {contrasts[0].name!r} has two conversations: how a dimension varies takes two")
    found = []
    for row, layer in enumerate(contrasts[0].layers):
        rows = [side.values[:, row].double() for side in sides]
        means = torch.stack([r.mean(0) for r in rows])
        squares = torch.stack([(r - m).square().sum(0) for r, m in zip(rows, means, strict=True)])
        deviation = (squares.sum(0) / freedom).sqrt()
        size = torch.cat(rows).abs().amax(0)
        still = deviation <= _CONSTANT * size
        moved = still & ((means[::2] - means[1::2]).abs().amax(0) > _CONSTANT * size)
        if moved.any():
            raise ValueError(
                f"dimension {int(moved.nonzero()[0])} at layer {layer} has one value in each class of "
                f"{contrasts[0].name!r}: there is no deviation to divide by, so read more conversations, or take the "
                f"difference of means"
            )
        found.append(torch.where(still, torch.inf, deviation))
    return torch.stack(found)


def question_folds(
    labels: Sequence[bool], groups: Sequence[str], n_folds: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """Rows to learn from and rows held out, fold by fold: all of a question in the same, classes as even as can be."""
    from sklearn.model_selection import StratifiedGroupKFold

    splits = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    return [(learned.tolist(), held_out.tolist()) for learned, held_out in splits]


@door
def permuted_directions(
    contrast: ContrastActivations, n: int, *, seed: int, pooling: Pooling = "conversation"
) -> tuple[Direction, ...]:
    """What a direction would be if the labels meant nothing: differences of means of the same activations, permuted.

    Labels are permuted within each question; questions that have one class only exchange theirs as whole units. Each
    difference is then made as long, at every layer, as the one under the true labels, so that what it does differs by
    where it points and not by how far. Sums are in float64. Isotropic directions (`random_like`) are a weaker null:
    they lie mostly where activations hardly vary, and so do little.

    This is the exact null of a permutation test, and it has a price. Where the classes lie far apart, permuted labels
    leave much of the true direction in the difference (half of its squared length where questions differ from each
    other as much as the classes do), and some draws do nearly what the true one does. Power is low then: what does
    not stand out from this null was not shown to do nothing.

    Args:
        contrast: the activations that the direction is the difference of means of.
        n: how many. Names are `permuted 1`, `permuted 2` …; of where the classes lie along them nothing is known (NaN).
        seed: of the permutations.
        pooling: as in `difference_of_means`.

    Raises:
        ValueError: n is below one; labels without which nothing is left to point anywhere at some layer; or as
            `difference_of_means`.
    """
    if n < 1:
        raise ValueError(f"n is {n}: ask for one permuted direction or more")
    true = difference_of_means(contrast, pooling=pooling)
    sides = (contrast.positive, contrast.negative)
    positive = torch.arange(len(sides[0]) + len(sides[1])) < len(sides[0])
    generator = torch.Generator().manual_seed(seed)
    labels = permuted_labels(positive, sides[0].groups + sides[1].groups, n, generator)
    weights = torch.cat([_weights(side, pooling) for side in sides])
    plus, minus = ((weights * chosen) / (weights * chosen).sum(-1, keepdim=True) for chosen in (labels, ~labels))
    found = []
    for row, layer in enumerate(contrast.layers):
        rows = torch.cat([side.values[:, row] for side in sides]).double()
        vectors = (plus - minus) @ rows
        lengths = vectors.norm(dim=-1, keepdim=True)
        if true.norm[row] > 0 and not (lengths > _NOTHING * rows.norm(dim=-1).mean()).all():
            raise ValueError(
                f"with its labels permuted the classes of {contrast.name!r} do not differ at layer {layer}, where they "
                f"do with the true ones: give more questions, or other texts in each"
            )
        found.append(vectors / lengths.clamp_min(torch.finfo(torch.float64).tiny) * true.vectors[row].double().norm())
    unknown = torch.full_like(true.residual_norm, torch.nan)
    bare = replace(true, positive_projection=unknown, negative_projection=unknown)
    draws = torch.stack(found, 1).float()
    return tuple(replace(bare, vectors=vectors, name=f"permuted {i}") for i, vectors in enumerate(draws, 1))


@door
def random_like(direction: Direction, seed: int, name: str) -> Direction:
    """An isotropic random direction of the same length at every layer, the same one at all of them."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(direction.d_model, generator=generator), dim=0)
    return replace(direction, vectors=direction.norm[:, None] * unit, name=name)


@door
def parts_apart(first: Direction, second: Direction) -> tuple[Direction, Direction]:
    """What each of two directions has that the other has not, layer by layer."""

    def without(a: Direction, b: Direction) -> Direction:
        rows = torch.stack([b[number] for number in a.layers])
        unit = torch.nn.functional.normalize(rows, dim=-1)
        shared = (a.vectors * unit).sum(-1, keepdim=True)
        return replace(a, vectors=a.vectors - shared * unit, name=f"{a.name} without {b.name}")

    return without(first, second), without(second, first)


def _along(
    contrast: ContrastActivations,
    vectors: Float[Tensor, "layer d_model"],
    estimator: EstimatorName,
    pooling: Pooling = "conversation",
) -> Direction:
    """The direction along some vectors, turned to the positive class, as long as the class means lie apart there."""
    positive, negative = _means(contrast, pooling)
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    apart = ((positive - negative) * unit).sum(-1, keepdim=True)
    unit = unit * apart.sign()
    return Direction(
        vectors=(apart.abs() * unit).float(),
        residual_norm=_residual_norm(contrast, pooling).float(),
        positive_projection=(positive * unit).sum(-1).float(),
        negative_projection=(negative * unit).sum(-1).float(),
        layers=contrast.layers,
        name=contrast.name,
        site=contrast.site,
        span=contrast.span,
        pooling=pooling,
        model=contrast.model,
        contrast_hash=contrast.contrast_hash,
        n_positive=len(contrast.positive),
        n_negative=len(contrast.negative),
        estimator=estimator,
    )


def _means(
    contrast: ContrastActivations, pooling: Pooling
) -> tuple[Float[Tensor, "layer d_model"], Float[Tensor, "layer d_model"]]:
    """Of the positive and of the negative class."""
    for label, side in (("positive", contrast.positive), ("negative", contrast.negative)):
        if not len(side):
            raise ValueError(f"contrast {contrast.name!r} has no {label} activations: a direction needs both classes")
        positions = sorted(set(side.positions))
        if len(positions) > 1:
            raise ValueError(
                f"the activations hold {len(positions)} positions a conversation ({side.span}): choose one with "
                f"contrast.at(position), of {positions}"
            )
    return _mean(contrast.positive, pooling), _mean(contrast.negative, pooling)


def _mean(activations: Activations, pooling: Pooling) -> Float[Tensor, "layer d_model"]:
    weights = _weights(activations, pooling)
    return einsum(weights, activations.values.double(), "c, c layer d_model -> layer d_model") / weights.sum()


def _residual_norm(contrast: ContrastActivations, pooling: Pooling) -> Float[Tensor, " layer"]:
    weights = torch.cat([_weights(side, pooling) for side in (contrast.positive, contrast.negative)])
    return weights @ torch.cat([contrast.positive.norms, contrast.negative.norms]).double() / weights.sum()


def _weights(activations: Activations, pooling: Pooling) -> Float[Tensor, " conversation"]:
    return activations.n_tokens.double() if pooling == "token" else torch.ones(len(activations), dtype=torch.float64)


def _rows(contrast: ContrastActivations, row: int) -> tuple[Float[Tensor, "conversation d_model"], Bool[Tensor, " c"]]:
    """All conversations of one layer, positive ones first, and which are positive."""
    rows = torch.cat([contrast.positive.values[:, row], contrast.negative.values[:, row]]).double()
    return rows, torch.arange(len(rows)) < len(contrast.positive)


def _differences(contrast: ContrastActivations) -> Float[Tensor, "question layer d_model"]:
    """Mean of the positive minus mean of the negative conversations of each question."""
    _means(contrast, "conversation")  # refuses what has no direction
    sides = (contrast.positive, contrast.negative)
    alone = set(sides[0].groups) ^ set(sides[1].groups)
    if alone:
        raise ValueError(
            f"{len(alone)} questions of {contrast.name!r} have conversations of one class only, such as {min(alone)!r}:"
            f" differences within questions need both, so leave those out or choose another estimator"
        )
    rows = torch.cat([side.values for side in sides]).double().transpose(0, 1)
    positive = torch.arange(rows.shape[1]) < len(sides[0])
    question = numbered(sides[0].groups + sides[1].groups)
    counts = class_sums(torch.ones(rows.shape[1], 1, dtype=torch.float64), positive, question)
    means = class_sums(rows, positive, question) / counts
    return (means[:, 0] - means[:, 1]).transpose(0, 1)


def _solved(
    residuals: Float[Tensor, "row d_model"], ridge: float, share: float, vector: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """`vector` over the covariance `ridge` · I + `share` · that of the residuals, by the smaller system."""
    n, d = residuals.shape
    if d <= n:
        covariance = share * residuals.T @ residuals / n + ridge * torch.eye(d, dtype=torch.float64)
        return torch.linalg.solve(covariance, vector)
    # Woodbury's identity: as many unknowns as rows.
    gram = share * residuals @ residuals.T + ridge * n * torch.eye(n, dtype=torch.float64)
    return (vector - share * residuals.T @ torch.linalg.solve(gram, residuals @ vector)) / ridge
