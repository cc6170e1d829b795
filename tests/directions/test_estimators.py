"""Estimators find a planted direction where dimensions are alike, and the standardised ones where one is massive."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression

from em_interp.activations.reading import Activations, ContrastActivations
from em_interp.directions.comparison import clearest, compare
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import (
    ESTIMATORS,
    deviations,
    difference_of_means,
    estimator_of,
    lda,
    logistic,
    paired,
    principal,
    standardised,
)
from em_interp.directions.separation import separability


def side(values: torch.Tensor, groups: Sequence[str]) -> Activations:
    return Activations(
        values=values,
        norms=values.norm(dim=-1),
        n_tokens=torch.ones(len(values), dtype=torch.long),
        groups=tuple(groups),
        layers=tuple(range(values.shape[1])),
        site="resid_post",
        span="last",
        model="tiny",
    )


def contrast(  # noqa: PLR0913 - how large, how strong, and what a massive dimension does
    name: str, seed: int, *, n: int = 48, layers: int = 18, d: int = 64, massive: float = 0.0, shift: float = 0.2
) -> ContrastActivations:
    """A strong direction, another at every layer; dimension 0 can be massive, and says nothing of the classes."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(layers, d, generator=g)

    def drawn(sign: int) -> Activations:
        rows = torch.randn(n, layers, d, generator=g) + sign * shift * truth
        rows[..., 0] += massive * torch.randn(n, layers, generator=g)
        return side(rows, [f"{name} {i}" for i in range(n)])

    return ContrastActivations(name, drawn(1), drawn(-1), contrast_hash=name)


def truth_of(seed: int, layers: int = 18, d: int = 64) -> torch.Tensor:
    return torch.randn(layers, d, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- a massive dimension


@pytest.mark.parametrize("estimator", ["standardised", "lda", "logistic"])
def test_one_massive_dimension_hides_nothing_from_standardised_estimators(estimator) -> None:
    layers = 4 if estimator == "logistic" else 18
    found = separability(contrast("a", 0, massive=60, layers=layers, shift=0.25), estimator=estimator)
    assert float(found.auc.min()) > 0.9
    assert found.estimator == estimator
    assert estimator in repr(found)


def test_one_massive_dimension_hides_the_direction_from_the_difference_of_means() -> None:
    c = contrast("a", 0, massive=60)
    assert float(separability(c).auc.max()) < 0.7
    direction = difference_of_means(c)
    assert float(direction.dominance.median()) > 0.7
    assert int(direction.vectors[6].abs().argmax()) == 0
    assert float(standardised(c).dominance.max()) < 0.5


@pytest.mark.parametrize("massive", [30.0, 200.0, 5000.0])
def test_standardised_cosines_of_unrelated_directions_are_zero_whatever_the_massive_dimension(massive) -> None:
    a, b = (contrast(name, seed, massive=massive) for name, seed in (("a", 2), ("b", 3)))
    both = compare(a, b, metric="standardised", n_resamples=100)
    assert both.found_a.all()
    assert both.found_b.all()
    assert float(both.corrected.abs().median()) < 0.25
    assert not both.dominated.any()
    assert clearest(both) is None
    plain = compare(a, b, n_resamples=100)
    assert int(plain.dominated.sum()) > 12
    assert clearest(plain) is None
    assert "dominate at" in repr(plain)


def test_the_standardised_interval_covers_zero_for_two_independent_directions() -> None:
    """200 simulations: a layer each."""
    a, b = (contrast(name, seed, massive=60, layers=200) for name, seed in (("a", 10), ("b", 11)))
    # A true cosine of two random vectors is not zero: put b's truth at a right angle to a's.
    units = [torch.nn.functional.normalize(truth_of(seed, 200), dim=-1) for seed in (10, 11)]
    shared = (truth_of(11, 200) * units[0]).sum(-1, keepdim=True) * units[0]
    b = replace(
        b,
        positive=replace(b.positive, values=b.positive.values - 0.2 * shared),
        negative=replace(b.negative, values=b.negative.values + 0.2 * shared),
    )
    # The massive dimension weighs next to nothing in these units, and its part of the truth is lost with it.
    found = compare(a, b, metric="standardised", n_resamples=40)
    lost = units[0][:, 0] * torch.nn.functional.normalize(truth_of(11, 200) - shared, dim=-1)[:, 0]
    inside = (found.low <= -lost) & (-lost <= found.high)
    assert bool(found.corrected.isfinite().all())
    assert float(inside.double().mean()) >= 0.93


def test_without_a_massive_dimension_both_metrics_agree() -> None:
    a, b = contrast("a", 20, layers=60), contrast("b", 20, layers=60)  # one truth, other noise is not drawn: shift it
    b = replace(
        b,
        positive=side(
            b.positive.values + 0.5 * torch.randn(48, 60, 64, generator=torch.Generator().manual_seed(5)),
            b.positive.groups,
        ),
    )
    plain, units = (compare(a, b, metric=metric, n_resamples=40) for metric in ("plain", "standardised"))
    assert float((plain.corrected - units.corrected).abs().max()) < 0.05
    width = [float((c.high - c.low).mean()) for c in (plain, units)]
    assert width[1] == pytest.approx(width[0], rel=0.15)
    cosines = [float(torch.cosine_similarity(difference_of_means(a).vectors, standardised(a).vectors).min())]
    assert min(cosines) > 0.95


def test_dimensions_in_other_units_change_nothing_standardised() -> None:
    a, b = contrast("a", 30, layers=3), contrast("b", 31, layers=3)
    scale = torch.exp(2 * torch.randn(64, generator=torch.Generator().manual_seed(0)))

    def scaled(c: ContrastActivations) -> ContrastActivations:
        positive, negative = (side(s.values * scale, s.groups) for s in (c.positive, c.negative))
        return replace(c, positive=positive, negative=negative)

    here = compare(a, b, metric="standardised", n_resamples=40)
    there = compare(scaled(a), scaled(b), metric="standardised", n_resamples=40)
    for name in ("cosine", "corrected", "low", "high", "null_a", "ceiling"):
        assert torch.allclose(getattr(here, name), getattr(there, name), atol=1e-4), name
    for name in ("standardised", "lda"):
        aucs = [separability(c, estimator=name).auc for c in (a, scaled(a))]
        assert torch.allclose(aucs[0], aucs[1], atol=1e-3)


# ---------------------------------------------------------------- each estimator by its definition


def rows_of(c: ContrastActivations, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.cat([c.positive.values[:, layer], c.negative.values[:, layer]]).double()
    return rows, torch.arange(len(rows)) < len(c.positive)


def assert_along(direction: Direction, layer: int, wanted: torch.Tensor) -> None:
    cosine = torch.cosine_similarity(direction.vectors[layer].double(), wanted.double(), dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-5)


def test_deviations_are_pooled_within_classes() -> None:
    c = contrast("a", 1, n=9, layers=2, d=8, massive=3)
    rows, positive = rows_of(c, 1)
    squares = sum(((rows[k] - rows[k].mean(0)) ** 2).sum(0) for k in (positive, ~positive))
    assert torch.allclose(deviations([c])[1], (squares / (18 - 2)).sqrt())
    twice = deviations([c, c])[1]
    assert torch.allclose(twice, (2 * squares / (36 - 4)).sqrt())


def test_standardised_and_lda_solve_their_own_equations() -> None:
    for n, d in ((20, 8), (6, 30)):  # more rows than dimensions, and fewer
        c = contrast("a", 1, n=n, layers=2, d=d, massive=3)
        rows, positive = rows_of(c, 1)
        apart = rows[positive].mean(0) - rows[~positive].mean(0)
        deviation = deviations([c])[1]
        assert_along(standardised(c), 1, apart / deviation**2)
        residuals = torch.cat([rows[k] - rows[k].mean(0) for k in (positive, ~positive)]) / deviation
        covariance = torch.from_numpy(ledoit_wolf(residuals.numpy(), assume_centered=True)[0])
        assert_along(lda(c), 1, torch.linalg.solve(covariance, apart / deviation) / deviation)


def test_paired_counts_each_question_once_and_principal_is_their_first_component() -> None:
    g = torch.Generator().manual_seed(0)
    groups = ("x", "x", "x", "y", "z")
    c = ContrastActivations(
        "c", side(torch.randn(5, 2, 6, generator=g), groups), side(torch.randn(3, 2, 6, generator=g), "zyx"), "c"
    )
    positive, negative = c.positive.values[:, 1].double(), c.negative.values[:, 1].double()
    differences = torch.stack(
        [positive[:3].mean(0) - negative[2], positive[3] - negative[1], positive[4] - negative[0]]
    )
    assert_along(paired(c), 1, differences.mean(0) * (1 if turned(c, differences.mean(0)) else -1))
    component = torch.linalg.eigh(differences.T @ differences).eigenvectors[:, -1]
    assert_along(principal(c), 1, component * (1 if turned(c, component) else -1))


def turned(c: ContrastActivations, vector: torch.Tensor) -> bool:
    """Whether the vector points from the negative to the positive class."""
    apart = c.positive.values[:, 1].double().mean(0) - c.negative.values[:, 1].double().mean(0)
    return float(apart @ vector) > 0


def test_logistic_is_a_regression_with_one_of_its_penalties() -> None:
    c = contrast("a", 1, n=20, layers=1, d=50)
    rows, positive = rows_of(c, 0)
    deviation = deviations([c])[0]
    scaled = ((rows - rows.mean(0)) / deviation).numpy()
    fits = [
        LogisticRegression(C=penalty, tol=1e-8, max_iter=10_000).fit(scaled, positive.numpy()).coef_[0]
        for penalty in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    ]
    found = logistic(c).unit[0].double()
    cosines = [float(torch.cosine_similarity(found, torch.from_numpy(weights) / deviation, dim=0)) for weights in fits]
    assert max(cosines) == pytest.approx(1, abs=1e-4)
    assert all(first != second for first, second in pairwise(cosines))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_gives_a_direction_for_every_use(name, tmp_path) -> None:
    """Turned to the positive class, as long as the class means are apart along it, in a file, in separability."""
    c = contrast("a", 3, n=24, layers=3, d=12, shift=0.5)
    direction = ESTIMATORS[name](c)
    assert direction.estimator == name
    apart = c.positive.values.mean(0) - c.negative.values.mean(0)
    assert torch.allclose(direction.norm, (apart * direction.unit).sum(-1), atol=1e-5)
    assert torch.allclose(direction.positive_projection - direction.negative_projection, direction.norm, atol=1e-5)
    assert float(torch.cosine_similarity(direction.vectors, truth_of(3, 3, 12)).min()) > 0.75
    back = Direction.load(direction.save(tmp_path / "file"))
    assert back.estimator == name
    assert torch.equal(back.vectors, direction.vectors)
    assert float(separability(c, estimator=name).auc.min()) > 0.8
    by_function = separability(c, estimator=ESTIMATORS[name])
    assert torch.equal(by_function.auc, separability(c, estimator=name).auc)
    assert by_function.estimator == name


def test_rows_in_another_order_give_the_same_direction() -> None:
    c = contrast("a", 3, n=12, layers=2, d=10)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    turned_round = replace(c, positive=c.positive.rows(order), negative=c.negative.rows(order[::-1]))
    for name in ESTIMATORS:
        if name != "logistic":  # its folds are drawn
            assert torch.allclose(ESTIMATORS[name](c).vectors, ESTIMATORS[name](turned_round).vectors, atol=1e-5), name


# ---------------------------------------------------------------- what is refused


def with_still_dimension(c: ContrastActivations, apart: float) -> ContrastActivations:
    values = [s.values.clone() for s in (c.positive, c.negative)]
    values[0][..., 5], values[1][..., 5] = 1.5 + apart, 1.5
    return replace(c, positive=side(values[0], c.positive.groups), negative=side(values[1], c.negative.groups))


def test_a_dimension_that_never_varies_is_not_read_along() -> None:
    c = with_still_dimension(contrast("a", 1, n=12, layers=2, d=10), 0.0)
    for name in ("standardised", "lda", "logistic"):
        assert float(ESTIMATORS[name](c).vectors[:, 5].abs().max()) == 0
    assert bool(compare(c, c, metric="standardised", n_resamples=40).cosine.isfinite().all())


def test_a_dimension_that_tells_classes_apart_without_any_spread_is_refused() -> None:
    c = with_still_dimension(contrast("a", 1, n=12, layers=2, d=10), 0.3)
    for name in ("standardised", "lda", "logistic"):
        with pytest.raises(ValueError, match="dimension 5 at layer 0 has one value in each class of 'a'"):
            ESTIMATORS[name](c)
    with pytest.raises(ValueError, match="read more conversations, or take the difference of means"):
        compare(c, c, metric="standardised", n_resamples=40)


def unpaired(c: ContrastActivations) -> ContrastActivations:
    return replace(c, negative=replace(c.negative, groups=tuple(f"other {i}" for i in range(len(c.negative)))))


@pytest.mark.parametrize("estimator", [paired, principal])
def test_differences_within_questions_need_both_classes(estimator) -> None:
    c = contrast("a", 1, n=6, layers=1, d=5)
    with pytest.raises(ValueError, match="12 questions of 'a' have conversations of one class only, such as 'a 0'"):
        estimator(unpaired(c))


def one_each(c: ContrastActivations) -> ContrastActivations:
    return replace(c, positive=c.positive.rows([0]), negative=c.negative.rows([0]))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda: standardised(one_each(contrast("a", 1, n=3, layers=1, d=5))), "no class of 'a' has two conversations"),
        (lambda: lda(one_each(contrast("a", 1, n=3, layers=1, d=5))), "no class of 'a' has two conversations"),
        (
            lambda: inspect.unwrap(estimator_of)("lasso"),
            "estimator 'lasso' is unknown: choose one of difference_of_means, standardis",
        ),
    ],
)
def test_errors_say_what_came_and_what_to_do(broken: Callable, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        broken()


def test_logistic_takes_two_questions_of_each_class() -> None:
    c = contrast("a", 1, n=4, layers=1, d=5)
    alone = replace(c, positive=replace(c.positive, groups=("a 0",) * 4))
    with pytest.raises(ValueError, match="'a' has a class with fewer than two questions"):
        logistic(alone)


def test_an_unknown_metric_is_refused() -> None:
    c = contrast("a", 1, layers=1)
    with pytest.raises(ValueError, match="metric 'cosine' is unknown: choose one of plain, standardised"):
        inspect.unwrap(compare)(c, c, metric="cosine")


# ---------------------------------------------------------------- dominance


def test_dominance_is_the_share_of_the_three_largest_dimensions() -> None:
    direction = replace(difference_of_means(contrast("a", 0, layers=2, d=6)), vectors=torch.zeros(2, 6))
    some = replace(direction, vectors=torch.tensor([[3.0, 4.0, 0, 0, 1, 1], [1.0, -1, 1, -1, 1, -1]]))
    assert some.dominance.tolist() == pytest.approx([26 / 27, 0.5])
    assert "three dimensions hold up to 96% (layer 0)" in repr(some)
    assert math.isnan(float(direction.dominance[0]))


def test_the_headline_is_where_the_nulls_are_rejected_and_no_dimension_rules() -> None:
    a, b = contrast("a", 20, layers=5), contrast("b", 20, layers=5)
    c = compare(a, b, n_resamples=40)
    best = clearest(c)
    assert best is not None
    hit = torch.arange(5) == best
    for changed in (
        replace(c, dominated=hit),
        replace(c, p_a=torch.where(hit, 0.06, c.p_a)),
        replace(c, p_b=torch.where(hit, 0.06, c.p_b)),
    ):
        assert clearest(changed) not in (None, best)
    for changed in (
        replace(c, p_anywhere_a=0.06),
        replace(c, p_anywhere_b=0.06),
        replace(c, dominated=torch.ones(5, dtype=torch.bool)),
    ):
        assert clearest(changed) is None
        assert "none told from chance" in repr(changed)
