"""Directions are planted in noise of known shape; simulations lie along the layer axis, one a layer."""

import functools
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from scipy import stats
from sklearn.model_selection import StratifiedGroupKFold

from em_interp.activations.reading import Activations, ContrastActivations
from em_interp.directions.comparison import Comparison, compare, cosine_map
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import difference_of_means
from em_interp.directions.separation import separability
from em_interp.statistics.resampling import _kinds, permuted_labels, random_halves
from em_interp.statistics.wild_bootstrap import Signs

N_SIMULATIONS = 200
TRUTH = 0.3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def activations(values: torch.Tensor, groups: Sequence[str], **other) -> Activations:
    n, n_layers, _ = values.shape
    what = {"layers": tuple(range(n_layers)), "site": "resid_post", "span": "response", "model": "tiny"} | other
    return Activations(values.float(), torch.ones(n, n_layers), torch.ones(n, dtype=torch.long), tuple(groups), **what)


def contrast(
    positive: torch.Tensor,
    negative: torch.Tensor,
    groups: Sequence[str],
    negative_groups: Sequence[str] | None = None,
    name: str = "harm",
    **other,
) -> ContrastActivations:
    """Made from tensors `conversation layer d_model`; rows without groups of their own are paired."""
    negative_groups = groups if negative_groups is None else negative_groups
    return ContrastActivations(
        name, activations(positive, groups, **other), activations(negative, negative_groups, **other), "hash"
    )


def random_contrast(
    n: int = 8, *, shape: tuple[int, int] = (3, 5), seed: int = 0, shift: float = 4.0, name: str = "a"
) -> ContrastActivations:
    """Paired rows, shifted along the first coordinate, far from the origin and with what a question adds to both."""
    g, (n_layers, d) = seeded(seed), shape
    question = 3 * torch.randn(n, n_layers, d, generator=g) + 10
    positive, negative = (question + torch.randn(n, n_layers, d, generator=g) for _ in range(2))
    positive[..., 0] += shift
    return contrast(positive, negative, [f"{name}{i}" for i in range(n)], name=name)


# ------------------------------------------------------------------ calibration


def noise_shape(noise: str, d: int) -> torch.Tensor:
    """Standard deviation of each coordinate, such that a row of noise has norm one."""
    variance = {"isotropic": torch.ones(d), "anisotropic": 1 / torch.arange(1, d + 1)}[noise]
    return (variance / variance.sum()).sqrt()


@dataclass(frozen=True)
class Plant:
    """n questions a side, true directions of length `strength` for noise of norm one, and their cosine."""

    n: int
    strength: float
    noise: str
    layout: str = "paired"
    truth: float = TRUTH
    d: int = 128
    seed: int = 1

    def __str__(self) -> str:
        return f"{self.n}-{self.strength}-{self.noise}-{self.layout}"


def planted(plant: Plant) -> tuple[ContrastActivations, ContrastActivations]:
    """Two contrasts, N_SIMULATIONS times."""
    n, layout, g = plant.n, plant.layout, seeded(plant.seed)
    u, v = torch.linalg.qr(torch.randn(N_SIMULATIONS, plant.d, 2, generator=g)).Q.unbind(-1)
    sd = noise_shape(plant.noise, plant.d)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, N_SIMULATIONS, plant.d, generator=g) * sd

    shared = [draw(n), draw(n)]
    made = []
    for name, direction in (("a", u), ("b", plant.truth * u + math.sqrt(1 - plant.truth**2) * v)):
        shift = plant.strength / 2 * direction
        rows = [draw(n), draw(n)]
        if layout == "shared":  # two models reading the same texts: most of the noise is in both
            rows = [math.sqrt(0.7) * s + math.sqrt(0.3) * r for s, r in zip(shared, rows, strict=True)]
        prefix = "" if layout == "shared" else name
        groups = [f"{prefix}{i}" for i in range(n)]
        other = [f"{prefix}{i + n}" for i in range(n)] if layout == "unpaired" else groups
        made.append(contrast(rows[0] + shift, rows[1] - shift, groups, other, name=name))
    return made[0], made[1]


def covered(c: Comparison, truth: float = TRUTH) -> float:
    """How often the interval holds the truth, among the simulations where both directions were found."""
    found = c.found_a & c.found_b
    return float(((c.low <= truth) & (truth <= c.high))[found].double().mean())


CELLS = [
    *(Plant(48, strength, "isotropic") for strength in (0.25, 0.8)),
    *(Plant(48, strength, "anisotropic") for strength in (0.35, 0.8)),
    *(Plant(192, strength, "isotropic") for strength in (0.125, 0.4)),
    *(Plant(192, strength, "anisotropic") for strength in (0.175, 0.4)),
    Plant(48, 0.5, "anisotropic", "unpaired"),
    Plant(48, 0.5, "anisotropic", "shared"),
]


@pytest.mark.parametrize("plant", CELLS, ids=str)
def test_interval_covers_the_truth_and_the_corrected_cosine_is_unbiased(plant) -> None:
    c = compare(*planted(plant), n_resamples=40)
    found = c.found_a & c.found_b
    assert found.double().mean() > 0.97
    assert 0.90 <= covered(c) <= 0.99
    assert c.corrected[found].mean() == pytest.approx(TRUTH, abs=0.02)
    # The standard error is honest as well; as the jackknife gives it, it is up to 40 % too large.
    assert c.standard_error[found].median() == pytest.approx(float(c.corrected[found].std()), rel=0.2)
    # The noise planted here does harm, so the correction had something to correct.
    if plant.layout == "shared":
        assert c.cosine.mean() > TRUTH + 0.03
    else:
        assert c.cosine.mean() < TRUTH - 0.01
        assert c.cosine.mean() == pytest.approx(TRUTH * float(c.ceiling.mean()), abs=0.02)


def test_where_the_direction_drowns_in_noise_it_says_so() -> None:
    c = compare(*planted(Plant(48, 0.1, "anisotropic")), n_resamples=99)
    missing = ~(c.found_a & c.found_b)
    assert missing.double().mean() > 0.95
    for values in (c.corrected, c.low, c.high, c.standard_error):
        assert torch.equal(values.isnan(), missing)
    assert c.cosine.isfinite().all()
    # Between drowned and plain, those that are found are covered too, though their mean is a selection.
    marginal = compare(*planted(Plant(48, 0.2, "anisotropic")), n_resamples=99)
    assert 0.2 < (marginal.found_a & marginal.found_b).double().mean() < 0.95
    assert covered(marginal) >= 0.9


@pytest.mark.parametrize("layout", ["paired", "unpaired"])
def test_without_a_direction_findings_are_as_rare_as_promised(layout) -> None:
    a, _ = planted(Plant(24, 0.0, "anisotropic", layout, d=32))
    _, b = planted(Plant(24, 0.8, "anisotropic", layout, d=32, seed=5))
    c = compare(a, b, n_resamples=199)
    assert 0.01 <= c.found_a.double().mean() <= 0.1
    assert c.found_b.all()
    assert stats.kstest(c.p_a.numpy(), "uniform").pvalue > 0.01
    outside = (c.cosine < c.null_a[0]) | (c.cosine > c.null_a[1])
    assert 0.01 <= outside.double().mean() <= 0.1


def test_ceiling_is_the_plug_in_cosine_of_equal_directions() -> None:
    c = compare(*planted(Plant(48, 0.6, "anisotropic", truth=1.0)), n_resamples=100)
    assert float(c.ceiling.mean()) == pytest.approx(float(c.cosine.mean()), abs=0.02)
    assert c.ceiling_a.mean() < c.ceiling.mean() - 0.02  # halves are noisier than the whole
    assert float(c.corrected.mean()) == pytest.approx(1, abs=0.02)
    assert c.corrected.max() > 1.05  # the estimate is not cut off, which would bias it …
    assert c.low.max() == 1  # … but the interval always holds a cosine that can be
    assert (c.high >= c.corrected).all()


# ------------------------------------------------------------------ the slow, obvious way


Row = tuple[str, torch.Tensor]
Classes = tuple[list[Row], list[Row]]


def rows_of(c: ContrastActivations, layer: int) -> Classes:
    """Rows of both classes with their questions, centred between the class means."""
    values = [side.values[:, layer].double() for side in (c.positive, c.negative)]
    middle = (values[0].mean(0) + values[1].mean(0)) / 2
    sides = zip(values, (c.positive, c.negative), strict=True)
    positive, negative = (list(zip(side.groups, value - middle, strict=True)) for value, side in sides)
    return positive, negative


def slow_product(a: list[Row], b: list[Row]) -> float:
    """Mean product of two rows of different questions."""
    return statistics.fmean(float(x @ y) for g, x in a for h, y in b if g != h)


def slow_inner(a: Classes, b: Classes, without: str | None = None) -> float:
    (ap, an), (bp, bn) = ([[row for row in rows if row[0] != without] for rows in side] for side in (a, b))
    return slow_product(ap, bp) - slow_product(ap, bn) - slow_product(an, bp) + slow_product(an, bn)


def slow_noise(side: Classes, question: str) -> torch.Tensor:
    """How much the question's rows, against their class means, add to the difference of means."""
    total = torch.zeros_like(side[0][0][1])
    for sign, rows in ((1, side[0]), (-1, side[1])):
        mean = torch.stack([x for _, x in rows]).mean(0)
        total += sign * sum((x - mean for g, x in rows if g == question), torch.zeros_like(mean)) / len(rows)
    return total


@dataclass(frozen=True)
class Slow:
    """Corrected cosine, interval and standard error, one question and one draw at a time."""

    corrected: float
    low: float
    high: float
    standard_error: float


def jackknifed(
    inner: Callable[[str | None], float],
    aa: Callable[[str | None], float],
    bb: Callable[[str | None], float],
    questions: list[str],
) -> tuple[float, float, torch.Tensor]:
    """Inner product, root of the product of the squared norms, and the covariance of both."""
    length = math.sqrt(aa(None) * bb(None))
    numerators, lengths = [], []
    for q in questions:
        numerators.append(inner(q))
        # To first order in each squared norm.
        changes = (aa(q) - aa(None)) * math.sqrt(bb(None) / aa(None)) + (bb(q) - bb(None)) * math.sqrt(
            aa(None) / bb(None)
        )
        lengths.append(length + changes / 2)
    both = torch.tensor([numerators, lengths], dtype=torch.float64)
    # Each side's changes are zero on average, and n is that of the side.
    return inner(None), length, (both - both.mean(1, keepdim=True)) @ (both - both.mean(1, keepdim=True)).T


def slow_corrected(a: Classes, b: Classes, *, seed: int, n_draws: int) -> Slow:
    """Every side has one pair a question, and both have as many questions."""
    ours, theirs = ([g for g, _ in side[0]] for side in (a, b))
    n, questions = len(ours), sorted({*ours, *theirs})
    inner, length, covariance = jackknifed(
        functools.partial(slow_inner, a, b), functools.partial(slow_inner, a, a), functools.partial(slow_inner, b, b),
        questions,
    )  # fmt: skip
    covariance, cosine = (n - 1) / n * covariance, inner / length
    aa, bb = slow_inner(a, a), slow_inner(b, b)
    slope, variance_of_pairs = torch.tensor([1, -cosine], dtype=torch.float64), 0.0
    for g, h in itertools.combinations(questions, 2):
        (ag, ah), (bg, bh) = ([slow_noise(side, q) for q in (g, h)] for side in (a, b))
        in_length = math.sqrt(bb / aa) * ag @ ah + math.sqrt(aa / bb) * bg @ bh
        variance_of_pairs += float(ag @ bh + ah @ bg - cosine * in_length) ** 2
    of_ratio = float(slope @ covariance @ slope)
    error = math.sqrt(of_ratio - min(variance_of_pairs, of_ratio / 2)) / length

    # Centres of the unbiased lengths, both turned alike in their plane until their cosine is the corrected one.
    means = [torch.stack([slow_mean(rows) for rows in side]) for side in (a, b)]
    unit_a, unit_b = ((m[0] - m[1]) / (m[0] - m[1]).norm() for m in means)
    before, after = math.acos(float(unit_a @ unit_b)), math.acos(cosine)
    turn = (before - after) / 2
    centre_a = (math.sin(before - turn) * unit_a + math.sin(turn) * unit_b) / math.sin(before) * math.sqrt(aa)
    centre_b = (math.sin(before - turn) * unit_b + math.sin(turn) * unit_a) / math.sin(before) * math.sqrt(bb)
    signs, t = Signs.drawn(questions, n_draws, seed=seed), []
    for draw in range(n_draws):
        rows = [
            {q: centre + math.sqrt(n / (n - 1)) * n * s * slow_noise(side, q) for q, s in zip(names, of, strict=True)}
            for side, names, centre, of in (
                (a, ours, centre_a, signs.of(ours)[draw].tolist()),
                (b, theirs, centre_b, signs.of(theirs)[draw].tolist()),
            )
        ]
        products = [Products(*pair) for pair in ((rows[0], rows[1]), (rows[0], rows[0]), (rows[1], rows[1]))]
        if min(products[1].mean(), products[2].mean()) > 0:
            drawn, drawn_length, spread = jackknifed(*(product.mean for product in products), questions)
            t.append((drawn - cosine * drawn_length) / math.sqrt((n - 1) / n * float(slope @ spread @ slope)))
    t.sort()
    above = max(wanted_rank([abs(x) for x in t], 0.95), wanted_rank(t, 0.975))
    below = max(wanted_rank([abs(x) for x in t], 0.95), wanted_rank([-x for x in t], 0.975))

    def excess(c: float, critical: float) -> float:
        """Above zero where the cosine c is excluded."""
        direction = torch.tensor([1, -c], dtype=torch.float64)
        return (inner - c * length) ** 2 - critical**2 * float(direction @ covariance @ direction)

    low, high = roots(functools.partial(excess, critical=above))[0], roots(functools.partial(excess, critical=below))[1]
    return Slow(cosine, min(max(low, -1), 1), min(high, max(1, cosine)), error)


def slow_mean(rows: list[Row]) -> torch.Tensor:
    return torch.stack([x for _, x in rows]).mean(0)


def wanted_rank(values: list[float], level: float) -> float:
    return sorted(values)[math.ceil(level * (len(values) + 1) - 1e-9) - 1]


class Products:
    """Products of the rows of two sets of questions."""

    def __init__(self, x: dict[str, torch.Tensor], y: dict[str, torch.Tensor]) -> None:
        self.x, self.y = list(x), list(y)
        self.values = torch.stack(list(x.values())) @ torch.stack(list(y.values())).T

    def mean(self, without: str | None = None) -> float:
        """Of two different questions, one question left out of both."""
        kept = torch.tensor([[g != h and without not in (g, h) for h in self.y] for g in self.x])
        return float(self.values[kept].mean())


def roots(quadratic: Callable[[float], float]) -> list[float]:
    """Both zeros of a quadratic from three of its values."""
    at = [quadratic(x) for x in (-1, 0, 1)]
    a, b, c = (at[0] + at[2]) / 2 - at[1], (at[2] - at[0]) / 2, at[1]
    return sorted((-b + sign * math.sqrt(b * b - 4 * a * c)) / (2 * a) for sign in (1, -1))


LAYOUTS = {
    "paired": (range(9), range(9), range(20, 29), range(20, 29)),
    "unpaired": (range(9), range(30, 41), range(50, 60), range(70, 79)),
    "mixed": ([*range(8), 0, 0, 1, 9], [*range(3, 12), 4, 4], [*range(20, 28), 20], [*range(24, 34), 33]),
    "shared": (range(9), range(9), range(9), range(9)),
    "partly shared": ([*range(10), 0, 2, 2], range(3, 12), range(6, 16), [*range(4, 14), 4]),
}


def laid_out(layout: str, n_layers: int = 3, d: int = 6) -> tuple[ContrastActivations, ContrastActivations]:
    """Strong directions in an uneven layout of questions, with what a question adds shared between contrasts."""
    g = seeded(11)
    question = torch.randn(100, n_layers, d, generator=g)
    classes = []
    for i, groups in enumerate(LAYOUTS[layout]):
        rows = question[list(groups)] + torch.randn(len(groups), n_layers, d, generator=g)
        rows[..., 0] += 2 - 4 * (i % 2)
        rows[..., 1] += (1 - 2 * (i % 2)) * (i // 2)
        classes.append((rows + 5, [f"q{j}" for j in groups]))
    (ap, gap), (an, gan), (bp, gbp), (bn, gbn) = classes
    return contrast(ap, an, gap, gan, "a"), contrast(bp, bn, gbp, gbn, "b")


@pytest.mark.parametrize("layout", ["paired", "shared"])
def test_closed_form_equals_the_loop_over_questions(layout) -> None:
    a, b = laid_out(layout, n_layers=2)
    c = compare(a, b, n_resamples=100, seed=3)
    assert (c.found_a & c.found_b).all()
    for layer in range(2):
        wanted = slow_corrected(rows_of(a, layer), rows_of(b, layer), seed=3, n_draws=100)
        for name, tolerance in (("corrected", 1e-9), ("standard_error", 1e-9), ("low", 1e-4), ("high", 1e-4)):
            assert float(getattr(c, name)[layer]) == pytest.approx(getattr(wanted, name), rel=tolerance), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_corrected_cosine_equals_the_mean_of_products_of_different_questions(layout) -> None:
    a, b = laid_out(layout, n_layers=2)
    c = compare(a, b, n_resamples=100)
    assert (c.found_a & c.found_b).all()
    for layer in range(2):
        x, y = rows_of(a, layer), rows_of(b, layer)
        wanted = slow_inner(x, y) / math.sqrt(slow_inner(x, x) * slow_inner(y, y))
        assert float(c.corrected[layer]) == pytest.approx(wanted, rel=1e-9)


def test_permutation_p_values_equal_those_of_all_sign_flips() -> None:
    a, b = random_contrast(7, shape=(2, 4), shift=1.0), random_contrast(7, shape=(2, 4), seed=1, shift=1.0, name="b")
    a = replace(a, positive=replace(a.positive, values=a.positive.values + 0.3))
    c = compare(a, b, n_resamples=20_000)
    pairs = (a.positive.values - a.negative.values).double()
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=7))).double()
    other = difference_of_means(b).vectors.double()
    flipped = torch.einsum("fq,qld->fld", signs, pairs)
    cosines = torch.nn.functional.cosine_similarity(flipped, other[None], dim=-1)
    at_least = cosines.abs() >= cosines[0].abs() - 1e-6
    torch.testing.assert_close(c.p_a, at_least.double().mean(0), atol=0.015, rtol=0)
    largest = cosines.abs().amax(-1)
    assert c.p_anywhere_a == pytest.approx(float((largest >= largest[0] - 1e-6).double().mean()), abs=0.015)
    below, within, above = torch.quantile(cosines, torch.tensor([0.01, 0.04, 0.99]).double(), dim=0)
    assert ((below - 0.01 <= c.null_a[0]) & (c.null_a[0] < within)).all()  # 2.5 %, between steps of 1/128
    assert ((-within < c.null_a[1]) & (c.null_a[1] <= above + 0.01)).all()
    norms = flipped.norm(dim=-1)
    p_norm = (norms >= norms[0] - 1e-6).double().mean(0)
    assert ((p_norm - 0.05).abs() > 0.01).all(), "the test's own data must not lie on the edge"
    assert torch.equal(c.found_a, p_norm < 0.05)


def test_labels_are_permuted_within_a_question_and_single_ones_as_whole_questions() -> None:
    groups = ("both", "both", "both", "p1", "p1", "p2", "pair", "both", "n1", "n2", "n2", "pair")
    positive = torch.tensor([True] * 7 + [False] * 5)
    kinds = {"both": "both", "p1": "positive", "p2": "positive", "pair": "both", "n1": "negative", "n2": "negative"}
    assert _kinds(positive, groups) == kinds
    labels = permuted_labels(positive, groups, 4000, seeded(0))
    rows = {name: [i for i, g in enumerate(groups) if g == name] for name in kinds}
    assert (labels[:, rows["both"]].sum(1) == 3).all()
    assert (labels[:, rows["pair"]].sum(1) == 1).all()
    for single in ("p1", "n2"):
        assert (labels[:, rows[single][0]] == labels[:, rows[single][1]]).all()
    singles = labels[:, [rows[name][0] for name in ("p1", "p2", "n1", "n2")]]
    assert (singles.sum(1) == 2).all()
    patterns, counts = labels.unique(dim=0, return_counts=True)
    assert len(patterns) == 4 * 2 * 6  # every labelling that keeps the rule …
    assert stats.chisquare(counts.numpy()).pvalue > 0.001  # … equally often


def test_halves_split_each_kind_of_question_evenly() -> None:
    groups = [f"q{i}" for i in range(5)] * 2 + [f"p{i}" for i in range(4)] + [f"n{i}" for i in range(7)]
    positive = torch.tensor([True] * 5 + [False] * 5 + [True] * 4 + [False] * 7)
    half = random_halves(positive, tuple(groups), 500, seeded(0))
    assert torch.equal(half[:, :5], half[:, 5:10])
    for first, last in ((0, 5), (10, 14), (14, 21)):
        size = half[:, first:last].sum(1)
        assert ((2 * size - (last - first)).abs() <= 1).all()
    assert ((half.double().mean(0) - 0.5).abs() < 0.15).all()


# ------------------------------------------------------------------ theorems


def test_a_contrast_with_itself_has_cosine_one_and_no_error() -> None:
    a = random_contrast(12)
    c = compare(a, a, n_resamples=100)
    one = torch.ones(3).double()
    for values in (c.cosine, c.corrected, c.low, c.high):
        torch.testing.assert_close(values, one)
    torch.testing.assert_close(c.standard_error, 0 * one, atol=1e-6, rtol=0)
    assert (c.p_a < 0.05).all()
    assert (c.ceiling > 0.5).all()
    reverse = replace(a, positive=a.negative, negative=a.positive)
    torch.testing.assert_close(compare(a, reverse, n_resamples=100).corrected, -one)


def test_planted_shift_is_recovered_only_where_it_was_planted() -> None:
    g = seeded(3)
    rows = [torch.randn(40, 4, 64, generator=g) for _ in range(4)]
    for positive in (rows[0], rows[2]):
        positive[:, 2, 5] += 4
    groups = [f"q{i}" for i in range(40)], [f"r{i}" for i in range(40)]
    c = compare(contrast(rows[0], rows[1], groups[0]), contrast(rows[2], rows[3], groups[1]))
    assert c.low[2] <= 1 <= c.high[2]
    assert c.low[2] > 0.8
    assert c.p_a[2] == c.p_b[2] == pytest.approx(1 / 1001)
    assert max(c.p_anywhere_a, c.p_anywhere_b) < 0.01
    assert (c.p_a[[0, 1, 3]] > 0.01).all()


def test_order_of_rows_does_not_matter() -> None:
    a, b = laid_out("partly shared")
    order = [torch.randperm(len(side), generator=seeded(1)).tolist() for side in (a.positive, a.negative, b.positive)]
    a2 = replace(a, positive=a.positive.rows(order[0]), negative=a.negative.rows(order[1]))
    b2 = replace(b, positive=b.positive.rows(order[2]))
    same(compare(a, b, n_resamples=200), compare(a2, b2, n_resamples=200), drawn=False)


def test_rotation_and_scale_do_not_matter() -> None:
    a, b = laid_out("mixed")
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=seeded(2))).Q

    def moved(c: ContrastActivations, scale: float) -> ContrastActivations:
        sides = [replace(side, values=side.values @ rotation * scale + 3) for side in (c.positive, c.negative)]
        return replace(c, positive=sides[0], negative=sides[1])

    same(compare(a, b, n_resamples=200), compare(moved(a, 1.0), moved(b, 1000.0), n_resamples=200), drawn=True)


def test_the_two_sides_are_alike() -> None:
    a, b = laid_out("partly shared")
    ab, ba = compare(a, b, n_resamples=200), compare(b, a, n_resamples=200)
    same(ab, ba, drawn=False)
    torch.testing.assert_close(ab.null_a, ba.null_b, atol=0.15, rtol=0)


def same(x: Comparison, y: Comparison, *, drawn: bool) -> None:
    """Equal in all that is computed, and in what is drawn when the draws are the same."""
    for name in ("cosine", "corrected", "low", "high", "standard_error"):
        torch.testing.assert_close(getattr(x, name), getattr(y, name), atol=1e-4, rtol=1e-4)
    for name in ("ceiling_a", "ceiling_b", "null_a", "null_b") if drawn else ():
        torch.testing.assert_close(getattr(x, name), getattr(y, name), atol=1e-3, rtol=1e-3)


def test_the_seed_decides_the_draws() -> None:
    a, b = laid_out("mixed")
    first, again, other = (compare(a, b, n_resamples=50, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first.null_a, again.null_a)
    assert torch.equal(first.low, again.low)
    assert not torch.equal(first.null_a, other.null_a)
    assert not torch.equal(first.low, other.low)
    assert torch.equal(first.corrected, other.corrected)
    assert torch.equal(first.standard_error, other.standard_error)


def test_classes_that_hold_the_same_texts_have_no_direction() -> None:
    a, b = random_contrast(37, shape=(3, 100)), random_contrast(37, shape=(3, 100), seed=1, name="b")
    order = torch.randperm(37, generator=seeded(0)).tolist()
    c = compare(replace(a, positive=a.negative.rows(order)), b, n_resamples=50)
    assert not c.found_a.any()
    assert (c.cosine == 0).all()
    assert (c.p_a == 1).all()
    json.dumps(c.table(), allow_nan=False)


def test_controls_are_compared_with_both_sides() -> None:
    a, b = random_contrast(12), random_contrast(12, seed=1, name="b")
    length, weather = random_contrast(12, seed=2, name="length"), random_contrast(12, seed=3, shift=0, name="weather")
    length = replace(
        length, positive=replace(length.positive, span="last"), negative=replace(length.negative, span="last")
    )
    c = compare(a, b, controls=[length, weather], n_resamples=100)
    assert c.controls == ("length", "weather")
    for got, side in ((c.controls_a, a), (c.controls_b, b)):
        torch.testing.assert_close(got[0], compare(side, length, n_resamples=100).corrected)
    plug_in = compare(b, weather, n_resamples=100).cosine
    torch.testing.assert_close(c.controls_b_plug_in[1], plug_in)
    assert compare(a, b, n_resamples=100).controls_a.shape == (0, 3)


# ------------------------------------------------------------------ what is shown


def test_table_is_plain_and_has_one_dict_a_layer() -> None:
    a, b = random_contrast(12), random_contrast(12, seed=1, shift=0, name="b")
    c = compare(a, b, controls=[random_contrast(12, seed=2, name="length")], n_resamples=100)
    table = json.loads(json.dumps(c.table(), allow_nan=False))
    assert [row["layer"] for row in table] == [0, 1, 2]
    row = next(row for row in table if not row["found_b"])
    assert row["corrected"] is row["low"] is row["control_b: length"] is None
    assert row["control_a: length"] == pytest.approx(float(c.controls_a[0, row["layer"]]))
    assert row["null_a_high"] == pytest.approx(float(c.null_a[1, row["layer"]]))
    assert row["ceiling"] == pytest.approx(float(c.ceiling[row["layer"]]))
    assert row["cosine"] == pytest.approx(float(c.cosine[row["layer"]]))


def test_representations_are_short_and_say_where_there_is_no_direction() -> None:
    a, b = random_contrast(12), random_contrast(12, seed=1, shift=0, name="<b>")
    c = compare(a, b, n_resamples=100)
    assert "\n" not in repr(c)
    assert "12 and 12 questions" in repr(c)
    assert "no direction here" in c._repr_html_()
    assert "&lt;b&gt;" in c._repr_html_()
    assert "<b>" not in c._repr_html_()
    nowhere = replace(c, found_b=torch.zeros(3, dtype=torch.bool))
    assert "no direction here at any layer" in repr(nowhere)
    assert "clearest at layer" in repr(compare(a, a, n_resamples=100))
    assert "\n" not in repr(separability(a))


# ------------------------------------------------------------------ errors


def test_errors_say_what_came_and_what_to_do() -> None:
    a = random_contrast()
    two_positions = replace(
        a,
        positive=replace(a.positive, positions=(-1, -2) * 4),
        negative=replace(a.negative, positions=(-1, -2) * 4),
    )
    elsewhere = replace(a, positive=replace(a.positive, site="attn_out"), negative=replace(a.negative, site="attn_out"))
    later = replace(a, positive=replace(a.positive, layers=(1, 2, 3)), negative=replace(a.negative, layers=(1, 2, 3)))
    few = replace(a, positive=a.positive.rows([0, 1]))
    for bad, message in (
        (
            random_contrast(shape=(3, 7), name="wide"),
            "'wide' is a direction of another width: d_model 7 and not 5 as 'a'",
        ),
        (elsewhere, "read at site attn_out and 'a' at resid_post: read both at the same"),
        (later, r"read at layers \(1, 2, 3\) and 'a' at \(0, 1, 2\): read both at the same"),
        (two_positions, r"holds 2 positions a conversation .*contrast.at\(position\), of \[-2, -1\]"),
        (few, "'a' has positive conversations on 2 questions: .*at least 3, so read more questions"),
    ):
        for arguments in ((a, bad), (a, a, bad)):
            with pytest.raises(ValueError, match=message):
                compare(*arguments[:2], controls=arguments[2:])
    with pytest.raises(ValueError, match="n_resamples is 20: a 95 % null takes at least 40"):
        compare(a, a, n_resamples=20)
    with pytest.raises(ValueError, match="give each control a name of its own"):
        compare(a, a, controls=[a, a])
    with pytest.raises(ValueError, match="n_folds is 5 and 'a' has 8 questions in a class: choose at least 2 folds"):
        separability(a, n_folds=5)
    with pytest.raises(ValueError, match=r"choose one with contrast.at\(position\)"):
        separability(two_positions)


def test_base_and_organism_and_two_spans_can_be_compared() -> None:
    a = random_contrast()
    other = replace(
        a,
        positive=replace(a.positive, model="organism", span="last"),
        negative=replace(a.negative, model="organism", span="last"),
    )
    torch.testing.assert_close(compare(a, other, n_resamples=100).cosine, torch.ones(3).double())


# ------------------------------------------------------------------ maps between directions


def test_cosine_map_holds_every_pair_of_layers() -> None:
    a = difference_of_means(random_contrast())
    b = difference_of_means(random_contrast(shape=(2, 5), seed=1))
    found = cosine_map(a, b)
    assert found.shape == (3, 2)
    for i, j in itertools.product(range(3), range(2)):
        assert float(found[i, j]) == pytest.approx(float(torch.cosine_similarity(a[i], b[j], dim=0)), abs=1e-6)


def test_cosine_map_refuses_another_width() -> None:
    a, b = (difference_of_means(random_contrast(shape=(3, d))) for d in (5, 7))
    assert isinstance(a, Direction)
    with pytest.raises(ValueError, match="d_model 5 and 'a' has 7: the cosine needs two directions of one width"):
        cosine_map(a, b)


# ------------------------------------------------------------------ separability


def slow_separability(c: ContrastActivations, n_folds: int, layer: int) -> tuple[float, list[float], list[float]]:
    """Held-out AUC of different questions in the same fold, and the projections, in plain loops."""
    groups = c.positive.groups + c.negative.groups
    rows = torch.cat([c.positive.values, c.negative.values])[:, layer].double()
    label = [1] * len(c.positive) + [0] * len(c.negative)
    projection, wins = [math.nan] * len(groups), []
    for train, test in StratifiedGroupKFold(n_folds, shuffle=True, random_state=0).split(label, label, groups):
        assert not {groups[i] for i in train} & {groups[i] for i in test}
        plus, minus = (torch.stack([rows[i] for i in train if label[i] == k]).mean(0) for k in (1, 0))
        unit = (plus - minus) / (plus - minus).norm()
        for i in test:
            projection[i] = float((rows[i] - (plus + minus) / 2) @ unit)
        for i, j in itertools.product(test, test):
            if label[i] and not label[j] and groups[i] != groups[j]:
                wins.append(float(projection[i] > projection[j]))
    n = len(c.positive)
    return statistics.fmean(wins), projection[:n], projection[n:]


@pytest.mark.parametrize("layout", ["paired", "unpaired", "mixed"])
def test_separability_equals_the_loop_over_pairs(layout) -> None:
    a, _ = laid_out(layout)
    a = replace(a, positive=replace(a.positive, values=a.positive.values - 3 * (torch.arange(6) == 0)))
    s = separability(a, n_folds=3)
    for layer in range(3):
        auc, positive, negative = slow_separability(a, 3, layer)
        assert float(s.auc[layer]) == pytest.approx(auc)
        torch.testing.assert_close(s.positive[:, layer], torch.tensor(positive), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(s.negative[:, layer], torch.tensor(negative), atol=1e-4, rtol=1e-4)


def test_held_out_interval_covers_and_shared_questions_do_not_flatter() -> None:
    """The true AUC is that of the folds' directions on new questions; pairs of one question would be easier."""
    g = seeded(8)
    question = math.sqrt(0.6) * torch.randn(20, N_SIMULATIONS, 16, generator=g)
    rows = [question + math.sqrt(0.4) * torch.randn(20, N_SIMULATIONS, 16, generator=g) for _ in range(2)]
    rows[0][..., 0] += 2
    groups = [f"q{i}" for i in range(20)]
    s = separability(contrast(rows[0], rows[1], groups))
    label = [1] * 20 + [0] * 20
    truth = []
    for train, _ in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(label, label, groups * 2):
        kept = [i for i in train if i < 20]
        unit = torch.nn.functional.normalize(rows[0][kept].mean(0) - rows[1][kept].mean(0), dim=-1)
        truth.append(stats.norm.cdf(2 * unit[:, 0].double() / math.sqrt(2)))
    true_auc = torch.stack([torch.from_numpy(fold) for fold in truth]).mean(0)
    assert float(s.auc.mean()) == pytest.approx(float(true_auc.mean()), abs=0.01)
    assert 0.9 <= ((s.low <= true_auc) & (true_auc <= s.high)).double().mean() <= 0.99


def test_rows_of_a_question_never_help_to_classify_each_other() -> None:
    """Four answers a question share a large random shift of their class: in other questions it says nothing."""
    g = seeded(9)
    rows = [torch.randn(30, 1, 20, 64, generator=g) + 0.1 * torch.randn(30, 4, 20, 64, generator=g) for _ in range(2)]
    groups = [f"q{i // 4}" for i in range(120)]
    s = separability(contrast(rows[0].flatten(0, 1), rows[1].flatten(0, 1), groups))
    assert float(s.auc.mean()) == pytest.approx(0.5, abs=0.05)


def test_perfect_separation_is_not_certain() -> None:
    s = separability(random_contrast(12, shift=1000.0))
    assert (s.auc == 1).all()
    assert (s.high == 1).all()
    assert float(s.low[0]) == pytest.approx(0.025 ** (1 / 12))
    assert json.loads(json.dumps(s.table()))[2]["auc"] == 1
