"""A mean over seeds and questions: its interval against draws of the bootstrap, in simulations, and what is refused."""

import math

import pytest
import torch

from benchmarks.seeds import Cell, measured
from em_interp.statistics import mean_by_question, mean_over_seeds, rate_by_question, share_over_seeds
from em_interp.statistics.pigeonhole import _mean_squares


def drawn(deviations, shape=(4, 30), seed=0):
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(s, generator=g, dtype=torch.float64) for s in ((shape[0], 1), (1, shape[1]), shape)]
    return sum(d * part for d, part in zip(deviations, parts, strict=True))


def test_the_parts_are_the_variances_of_drawing_rows_and_columns_anew():
    """Owen's bootstrap itself: rows alone, columns alone, and both."""
    table = drawn((0.5, 1.0, 1.0))
    (n_seeds, n), (a, b, e) = table.shape, _mean_squares(table)
    g = torch.Generator().manual_seed(1)
    rows, columns = (torch.randint(k, (20000, k), generator=g) for k in (n_seeds, n))
    wanted = (a * (n_seeds - 1) / n_seeds, b * (n - 1) / n, e * (n_seeds - 1) * (n - 1) / (n_seeds * n))
    by_rows, by_columns = table.mean(1)[rows].mean(1).var(), table.mean(0)[columns].mean(1).var()
    both = torch.stack([table[r][:, c].mean() for r, c in zip(rows, columns, strict=True)]).var()
    assert by_rows.item() == pytest.approx(wanted[0] / table.numel(), rel=0.05)
    assert by_columns.item() == pytest.approx(wanted[1] / table.numel(), rel=0.05)
    assert both.item() == pytest.approx(sum(wanted) / table.numel(), rel=0.05)


def test_mean_squares_are_those_of_the_two_way_table_on_average():
    """Their expectations: Qσ²_seed + σ², Sσ²_question + σ², σ²."""
    found = torch.tensor([_mean_squares(drawn((0.5, 1.0, 2.0), seed=i)) for i in range(1500)]).mean(0)
    assert found.tolist() == pytest.approx([30 * 0.25 + 4, 4 + 4, 4], rel=0.08)


def test_questions_only_is_the_interval_over_the_questions_means():
    table = drawn((1.0, 1.0, 1.0))
    found = mean_over_seeds(table)
    by_hand = mean_by_question(table.mean(0), [str(i) for i in range(30)])
    assert vars(found.questions_only) == pytest.approx(vars(by_hand))
    assert found.value == pytest.approx(table.mean().item())
    assert (found.n, found.n_seeds) == (30, 4)
    assert found.high - found.low > 2 * (by_hand.high - by_hand.low)
    assert found.low + found.high == pytest.approx(2 * found.value)
    assert mean_over_seeds(table.tolist()) == found


def test_where_seeds_agree_the_interval_is_that_over_questions():
    table = drawn((0.0, 1.0, 0.0))
    found = mean_over_seeds(table)
    assert (found.low, found.high) == pytest.approx((found.questions_only.low, found.questions_only.high))
    assert found.n_effective == pytest.approx(30)


@pytest.mark.parametrize(
    ("deviations", "wanted"),
    [((1.0, 0.0, 0.0), 40), ((0.0, 1.0, 0.0), 60), ((0.0, 0.0, 1.0), 2400), ((1.0, 1.0, 0.0), 2 / (1 / 40 + 1 / 60))],
)
def test_effective_observations_are_one_observations_variance_over_the_means(deviations, wanted):
    """In tables that are large enough for the parts to be seen."""
    found = [mean_over_seeds(drawn(deviations, (40, 60), seed=i)).n_effective for i in range(40)]
    assert sorted(found)[20] == pytest.approx(wanted, rel=0.15)
    assert all(40 - 1e-6 <= n <= 2400 + 1e-6 for n in found)


def test_one_seed_has_the_interval_over_its_questions_and_says_so():
    row = drawn((0.0, 1.0, 1.0))[:1]
    found = mean_over_seeds(row)
    assert (found.low, found.high) == (found.questions_only.low, found.questions_only.high)
    assert (found.n_seeds, found.n_effective) == (1, 30)
    assert repr(found).endswith("(n = 30, one seed: the interval is over questions alone)")
    several = repr(mean_over_seeds([[0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 1.0, 2.0], [1.0, 2.0, 2.0, 4.0]]))
    assert several == (
        "+1.83 [+0.271, +3.4] (3 seeds × 4 questions, worth 6 independent ones; over questions alone [+0.302, +3.36])"
    )


class TestShares:
    def test_they_stay_within_zero_and_one(self):
        verdicts = torch.zeros(3, 10)
        verdicts[0, 0] = 1
        found = share_over_seeds(verdicts)
        assert found.value == pytest.approx(1 / 30)
        assert 0 < found.low < found.questions_only.low < found.value < found.questions_only.high < found.high < 1
        mirrored = share_over_seeds(1 - verdicts)
        assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))

    def test_far_from_both_ends_the_interval_is_nearly_that_of_the_mean(self):
        verdicts = (drawn((0.3, 1.0, 1.0), (5, 200)) > 0).double()
        share, mean = share_over_seeds(verdicts), mean_over_seeds(verdicts)
        assert (share.low, share.high) == pytest.approx((mean.low, mean.high), abs=0.01)

    def test_verdicts_that_are_all_alike_have_the_interval_of_one_seed(self):
        found = share_over_seeds(torch.zeros(5, 20))
        one = rate_by_question(torch.zeros(20), [str(i) for i in range(20)])
        assert (found.value, found.low, found.high) == (0, 0, one.high)
        assert one.high > 0.1
        assert share_over_seeds(torch.ones(5, 20)).low == pytest.approx(1 - one.high)

    def test_shares_of_several_answers_are_taken_and_what_is_no_share_is_refused(self):
        assert share_over_seeds([[0.0, 1.0, 0.5], [1.0, 0.5, 0.0]]).value == pytest.approx(0.5)
        for odd in (-0.1, 1.5):
            with pytest.raises(ValueError, match=f"a share of hits is {odd}: give numbers from 0 to 1"):
                share_over_seeds([[0.0, 1.0], [1.0, odd]])


@pytest.mark.parametrize("kind", ["normal", "skewed", "verdicts"])
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_it_covers_the_truth_and_the_interval_over_questions_does_not(kind, n_seeds):
    found = measured(Cell(kind, n_seeds, 48, (0.5, 1.0, 1.0)), 300)
    assert 0.92 <= found.both <= 0.98
    assert found.questions_only < 0.85


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_it_covers_the_truth_where_seeds_do_not_differ(n_seeds):
    assert 0.92 <= measured(Cell("normal", n_seeds, 24, (0.0, 1.0, 1.0)), 300).both <= 0.98


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "no seed came: give one row of values a seed"),
        ([[1.0, 2.0], [1.0]], "row 1 has 1 values and row 0 has 2: measure every seed on the same questions"),
        ([[1.0], [2.0]], "1 question gives no interval: measure at least two"),
        ([[1.0, math.nan], [1.0, 2.0]], "1 of 4 values are NaN or infinite, so there is no mean over seeds"),
        ([[1.0, math.inf]], "1 of 2 values are NaN or infinite"),
    ],
)
def test_what_is_no_table_is_refused(values, words):
    for pool in (mean_over_seeds, share_over_seeds):
        with pytest.raises(ValueError, match=words):
            pool(values)
