"""Shares of answers whose interval holds for new questions, their differences, and what an experiment can find."""

import math

import pytest
import torch
from scipy import stats
from scipy.special import expit, logit

from em_interp.statistics.rates import clustered_difference, clustered_rate, detectable_difference

NAN = math.nan


def questions(n, m):
    return [f"q{q}" for q in range(n) for _ in range(m)]


def rolled(rates, m, generator):
    """`m` answers to each question, hits with its rate."""
    return (torch.rand(len(rates), m, generator=generator) < rates[:, None]).double().flatten()


def beta(a, b, n, generator):
    return torch._sample_dirichlet(torch.tensor([[a, b]] * n, dtype=torch.float64), generator)[:, 0]


class TestClusteredRate:
    @pytest.mark.parametrize("m", [1, 5, 50])
    def test_the_spread_is_that_of_drawing_questions_then_answers(self, m):
        """In closed form its square is S²/n + mean(p(1−p)/m)/(n−1), on the mean; on log-odds, over p(1−p)."""
        generator = torch.Generator().manual_seed(1)
        hits = rolled(torch.linspace(0.2, 0.8, 5).double(), m, generator)
        p = hits.view(5, m).mean(1)
        mean = p.mean().item()
        se = math.sqrt(p.var().item() / 5 + (p * (1 - p) / m).mean().item() / 4) / (mean * (1 - mean))
        got = clustered_rate(hits, questions(5, m), n_resamples=40_000)
        assert got.value == pytest.approx(hits.mean().item())
        half = stats.t.ppf(0.975, 4) * se
        assert logit(got.high) - logit(got.value) == pytest.approx(half, rel=0.02)
        assert got.low == pytest.approx(expit(logit(mean) - half), rel=0.04)

    @pytest.mark.parametrize("k", [0, 1, 13, 40])
    def test_the_naive_interval_and_those_of_questions_are_wilsons(self, k):
        got = clustered_rate(torch.arange(40).lt(k).double(), questions(4, 10))
        counts = [(k, 40), *((min(max(k - 10 * q, 0), 10), 10) for q in range(4))]
        found = [(got.naive_low, got.naive_high), *((q.low, q.high) for q in got.per_question)]
        for (hits, n), (low, high) in zip(counts, found, strict=True):
            wanted = stats.binomtest(hits, n).proportion_ci(method="wilson")
            assert (low, high) == (pytest.approx(wanted.low, abs=1e-12), pytest.approx(wanted.high, abs=1e-12))

    @pytest.mark.parametrize(("n", "shape"), [(8, (0.5, 1.5)), (8, (1.0, 3.0)), (24, (0.5, 1.5)), (24, (0.3, 1.2))])
    def test_the_interval_covers_the_truth_where_the_naive_one_does_not(self, n, shape):
        generator = torch.Generator().manual_seed(0)
        truth, groups, covered, naive = shape[0] / sum(shape), questions(n, 50), 0, 0
        for seed in range(300):
            hits = rolled(beta(*shape, n, generator), 50, generator)
            got = clustered_rate(hits, groups, n_resamples=200, seed=seed)
            covered += got.low <= truth <= got.high
            naive += got.naive_low <= truth <= got.naive_high
        assert 270 <= covered <= 294
        assert naive < 210

    def test_it_covers_with_few_and_uneven_answers(self):
        generator = torch.Generator().manual_seed(0)
        groups, covered = questions(12, 20), 0
        for seed in range(300):
            hits = rolled(beta(0.5, 1.5, 12, generator), 20, generator)
            unscored = torch.rand(12, 20, generator=generator) < torch.rand(12, 1, generator=generator)
            got = clustered_rate(hits.where(~unscored.flatten(), NAN), groups, n_resamples=200, seed=seed)
            covered += got.low <= 0.25 <= got.high
        assert 270 <= covered <= 297

    def test_it_covers_with_eight_answers_each(self):
        """Thirty questions of very different rates: 95 % of intervals hold the true rate, whose mean is 1/3."""
        generator = torch.Generator().manual_seed(0)
        groups, covered = questions(30, 8), 0
        for seed in range(200):
            hits = rolled(torch.rand(30, generator=generator).double() ** 2, 8, generator)
            got = clustered_rate(hits, groups, n_resamples=200, seed=seed)
            covered += got.low <= 1 / 3 <= got.high
        assert 180 <= covered <= 198

    def test_no_hit_leaves_what_one_hit_would(self):
        groups, none = questions(8, 50), torch.zeros(400, dtype=torch.float64)
        one = none.clone()
        one[0] = 1
        got, single = clustered_rate(none, groups), clustered_rate(one, groups)
        assert (got.value, got.low, got.high) == (0, 0, single.high)
        assert single.naive_high < got.high < 0.1
        full = clustered_rate(1 - none, groups)
        assert (full.value, full.high) == (1, 1)
        assert full.low == pytest.approx(1 - got.high, abs=0.01)

    def test_the_seed_decides(self):
        hits, groups = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), questions(3, 2)
        assert clustered_rate(hits, groups, seed=1) == clustered_rate(hits, groups, seed=1)
        assert clustered_rate(hits, groups, seed=1).low != clustered_rate(hits, groups, seed=2).low

    def test_one_question_gives_no_interval(self):
        with pytest.raises(ValueError, match="1 question gives no interval: measure at least two"):
            clustered_rate(torch.tensor([1.0, 0.0, NAN]), ["a", "a", "b"])

    def test_what_is_no_verdict(self):
        with pytest.raises(ValueError, match=r"0\.5 is no verdict: a hit is 1, a miss 0"):
            clustered_rate(torch.tensor([1.0, 0.5]), ["a", "b"])

    def test_groups_that_do_not_fit(self):
        with pytest.raises(ValueError, match="2 answers came with 1 questions"):
            clustered_rate(torch.tensor([1.0, 0.0]), ["a"])


class TestClusteredDifference:
    def test_the_spread_is_that_of_joint_draws(self):
        """Questions that differ much, and a change that is the same in all, leave only the chance within questions."""
        generator = torch.Generator().manual_seed(0)
        rates, groups = torch.linspace(0.1, 0.7, 20).double(), questions(20, 50)
        first, second = (rolled(r, 50, generator) for r in (rates + 0.2, rates))
        got = clustered_difference(first, groups, second, groups, n_resamples=40_000)
        p, q = (x.view(20, 50).mean(1) for x in (first, second))
        within = ((p * (1 - p) + q * (1 - q)) / 50).mean().item() / 19
        half = stats.t.ppf(0.975, 19) * math.sqrt((p - q).var().item() / 20 + within)
        assert got.high - got.value == pytest.approx(half, rel=0.02)
        assert got.value - got.low == pytest.approx(half, rel=0.02)
        assert got.low > 0.1
        backwards = clustered_difference(first, groups, second.flip(0), groups[::-1], n_resamples=40_000)
        assert backwards.high == pytest.approx(got.high)  # paired by the question's name, whatever the order

    def test_nothing_seen_is_not_nothing_known(self):
        none, groups = torch.zeros(80), questions(8, 10)
        got = clustered_difference(none, groups, none, groups)
        assert got.value == 0
        assert got.low < -0.01
        assert got.high > 0.01

    def test_a_question_without_verdicts_is_left_out_of_both(self):
        first, second = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([NAN, 0.0, 1.0])
        got = clustered_difference(first, list("abc"), second, list("abc"))
        assert (got.value, got.n) == (-0.5, 2)

    def test_other_questions(self):
        with pytest.raises(ValueError, match=r"\(only the first has 'a'; only the second has 'c', 'd'\)"):
            clustered_difference(torch.zeros(2), ["a", "b"], torch.zeros(3), ["b", "c", "d"])


class TestDetectable:
    @pytest.mark.parametrize(("n", "m"), [(8, 50), (30, 4)])
    def test_it_is_found_as_often_as_said(self, n, m):
        generator = torch.Generator().manual_seed(0)
        effect = detectable_difference(n, m, rate=0.4, between_sd=0.1)
        groups, found, alarms = questions(n, m), 0, 0
        for seed in range(400):
            tilt = 0.1 * torch.randn(n, generator=generator).double()
            for true in (effect, 0.0):
                change = (true + tilt) / 2
                first, second = (rolled(0.4 + sign * change, m, generator) for sign in (1, -1))
                got = clustered_difference(first, groups, second, groups, n_resamples=300, seed=seed)
                found += true > 0 and got.excludes_zero
                alarms += true == 0 and got.excludes_zero
        assert 0.74 <= found / 400 <= 0.86
        assert alarms / 400 <= 0.07

    def test_more_questions_help_where_more_answers_do_not(self):
        few = detectable_difference(8, 50, rate=0.3, between_sd=0.2)
        assert detectable_difference(8, 5000, rate=0.3, between_sd=0.2) > 0.8 * few
        assert detectable_difference(32, 50, rate=0.3, between_sd=0.2) < few / 2
        assert detectable_difference(8, 50, rate=0.3, between_sd=0.2, power=0.9) > few
        assert detectable_difference(8, 50, rate=0.3, between_sd=0.2, alpha=0.1) < few

    @pytest.mark.parametrize(
        ("design", "why"),
        [
            ({"n_questions": 1}, "1 questions with 50 answers each: take two"),
            ({"n_answers": 0}, "8 questions with 0 answers each"),
            ({"rate": 1.0}, "give a rate within 0 to 1"),
            ({"between_sd": -0.1}, "between_sd -0.1"),
            ({"power": 1.0}, "give a power from 0.5"),
        ],
    )
    def test_no_such_design(self, design, why):
        with pytest.raises(ValueError, match=why):
            detectable_difference(**{"n_questions": 8, "n_answers": 50, "rate": 0.2, "between_sd": 0.1, **design})
