"""Means and shares in which the question is the unit: one interval for each."""

import math

import pytest
import torch
from scipy import stats

from em_interp.statistics import Estimate, clustered_rate, mean_by_question, rate_by_question
from em_interp.statistics.estimates import within_one


def questions(n, m):
    return [f"q{q}" for q in range(n) for _ in range(m)]


def interval(rate):
    return Estimate(rate.value, rate.low, rate.high, rate.n_questions)


class TestEstimate:
    def test_one_line(self):
        assert repr(Estimate(0.3123, 0.22, -0.4, 72)) == "+0.312 [+0.22, -0.4] (n = 72)"

    @pytest.mark.parametrize(
        ("change", "kept"),
        [((-1.2, 0.4), (-1.0, 0.4)), ((0.3, 1.7), (0.3, 1.0)), ((-0.2, 0.4), (-0.2, 0.4))],
    )
    def test_no_share_changes_by_more_than_one(self, change, kept):
        assert within_one(Estimate(0.1, *change, 9)) == Estimate(0.1, *kept, 9)

    @pytest.mark.parametrize(
        ("low", "high", "excludes"),
        [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (math.nan, math.nan, False)],
    )
    def test_on_one_side_of_zero(self, low, high, excludes):
        assert Estimate(0.1, low, high, 9).excludes_zero == excludes


class TestMeans:
    def test_each_question_counts_once(self):
        assert mean_by_question(torch.tensor([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]).value == 0.5

    def test_the_interval_is_students_over_questions(self):
        values = torch.tensor([0.5, 1.5, 2.0, 2.0, 4.0, 0.0])
        got = mean_by_question(values, ["a", "a", "b", "b", "c", "d"])  # by question 1, 2, 4 and 0
        wanted = stats.t.interval(0.95, 3, loc=1.75, scale=stats.sem([1, 2, 4, 0]))
        assert (got.value, got.low, got.high, got.n) == (1.75, *map(pytest.approx, wanted), 4)

    def test_copies_of_a_response_are_no_more_evidence(self):
        hits, groups = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]), list("abcde")
        assert mean_by_question(hits.repeat(9), groups * 9) == mean_by_question(hits, groups)

    def test_one_question_gives_no_interval(self):
        with pytest.raises(ValueError, match="1 question gives no interval: measure at least two"):
            mean_by_question(torch.tensor([1.0, 2.0]), ["a", "a"])

    def test_groups_that_do_not_fit(self):
        with pytest.raises(ValueError, match="2 values came with 1 questions"):
            mean_by_question(torch.tensor([1.0, 0.0]), ["a"])


class TestShares:
    """One quantity, one interval: that of `clustered_rate`."""

    @pytest.mark.parametrize("m", [1, 4])
    def test_it_is_the_clustered_rate(self, m):
        hits = (torch.rand(20 * m, generator=torch.Generator().manual_seed(0)) < 0.35).double()
        groups = questions(20, m)
        got = rate_by_question(hits, groups)
        assert got == interval(clustered_rate(hits, groups))
        assert got.low < hits.mean() < got.high

    def test_copies_of_a_response_are_no_more_evidence(self):
        hits, groups = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]), list("abcde")
        assert rate_by_question(hits.repeat(9), groups * 9) == rate_by_question(hits, groups)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_all_or_none_is_still_uncertain(self, value):
        hits, groups = torch.full((10,), value), [str(i) for i in range(10)]
        got = rate_by_question(hits, groups)
        assert got == interval(clustered_rate(hits, groups))
        hits[0] = 1 - value
        other = rate_by_question(hits, groups)
        assert (got.low, got.high) == ((0, other.high) if value == 0 else (other.low, 1))
        assert 0.2 < got.high - got.low < 0.6
        assert got.excludes_zero == (value == 1)

    def test_one_question_gives_no_interval(self):
        with pytest.raises(ValueError, match="1 question gives no interval: measure at least two"):
            rate_by_question(torch.tensor([1.0, 0.0]), ["a", "a"])

    def test_groups_that_do_not_fit(self):
        with pytest.raises(ValueError, match="2 answers came with 1 questions"):
            rate_by_question(torch.tensor([1.0, 0.0]), ["a"])
