"""Draws of signs against the same draws made row by row, one question left out at a time."""

import itertools
import math

import pytest
import torch

from em_interp.statistics.wild_bootstrap import Signs, Sum, by_question, critical_values, inner_product

N, D, LAYERS = 6, 4, 2


def summed(questions, seed, shares=None):
    g = torch.Generator().manual_seed(seed)
    n = len(questions)
    shares = torch.full((n,), 1 / n) if shares is None else torch.tensor(shares)
    centre, added = torch.randn(LAYERS, D, generator=g), torch.randn(LAYERS, n, D, generator=g)
    return Sum(centre.double(), added.double(), tuple(questions), shares.double())


def every_sign(*questions):
    names = tuple(sorted(set(itertools.chain(*questions))))
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=len(names))), dtype=torch.float64)
    return Signs(signs, names)


def rows(x, signs, draw, layer):
    """By question, a row of data whose mean is the sum in this draw."""
    n = len(x.questions)
    drawn = signs.of(x.questions)[draw]
    return {q: x.centre[layer] + n * drawn[i] * x.added[layer, i] for i, q in enumerate(x.questions)}


def unbiased(x, y, without=None):
    """Mean product of rows of two different questions."""
    products = [p @ q for g, p in x.items() for h, q in y.items() if g != h and without not in (g, h)]
    return float(sum(products) / len(products))


A, B = [f"q{i}" for i in range(N)], [f"r{i}" for i in range(N)]


class TestInnerProduct:
    @pytest.mark.parametrize("other", ["itself", "shared", "separate"])
    def test_equals_the_unbiased_product_and_its_jackknife_in_every_draw(self, other):
        x = summed(A, 0)
        y = {"itself": x, "shared": summed(A[::-1], 1), "separate": summed(B, 1)}[other]
        signs = every_sign(x.questions, y.questions)
        got = inner_product(x, y, signs)
        moved = by_question(got.of_x, got.of_y, x, y)
        questions = list(dict.fromkeys(x.questions + y.questions))
        for draw, layer in itertools.product(range(3, len(signs.values), 37), range(LAYERS)):
            a, b = rows(x, signs, draw, layer), rows(y, signs, draw, layer)
            assert float(got.value[layer, draw]) == pytest.approx(unbiased(a, b), rel=1e-9)
            left_out = torch.tensor([unbiased(a, b, q) for q in questions])
            changes = math.sqrt((N - 1) / N) * (unbiased(a, b) - left_out)
            torch.testing.assert_close(moved[layer, draw], changes.double(), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("other", ["itself", "partly shared", "separate"])
    def test_the_mean_over_all_signs_is_the_product_of_the_centres(self, other):
        x = summed(A, 0)
        y = {"itself": x, "partly shared": summed(A[3:] + B[:2], 1), "separate": summed(B, 1)}[other]
        value = inner_product(x, y, every_sign(x.questions, y.questions)).value
        torch.testing.assert_close(value.mean(-1), (x.centre * y.centre).sum(-1))
        assert (value.std(-1) > 1).all()

    def test_a_large_question_takes_the_mean_along(self):
        """Its own residual shrinks by its share, and is scaled to the variance that its noise has."""
        x = summed(A, 0, shares=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
        y = Sum(x.centre, torch.zeros(LAYERS, 1, D).double(), ("other",), torch.zeros(1).double())
        moved = inner_product(x, y, Signs.as_observed([*A, "other"])).of_x[:, 0]
        along = (x.added * x.centre[:, None]).sum(-1)
        torch.testing.assert_close(moved[:, 0], (along[:, 0] - along.sum(-1) / 2) / math.sqrt(0.5))
        torch.testing.assert_close(moved[:, 4], (along[:, 4] - along.sum(-1) / 10) / math.sqrt(0.9))


class TestByQuestion:
    def test_changes_of_one_question_add_up(self):
        x, y = summed(["a", "b", "c"], 0), summed(["d", "b"], 1)
        of_x, of_y = torch.tensor([1.0, 2.0, 3.0])[None, None], torch.tensor([10.0, 20.0])[None, None]
        assert by_question(of_x, of_y, x, y)[0, 0].tolist() == [1, 22, 3, 10]
        assert of_x.flatten().tolist() == [1, 2, 3]


class TestSigns:
    def test_follow_the_name_and_the_seed_and_not_the_order(self):
        signs, again = Signs.drawn(A + B, 500, seed=3), Signs.drawn(B[::-1] + A + A, 500, seed=3)
        assert torch.equal(signs.values, again.values)
        assert torch.equal(signs.of(["r2", "q1"]), again.of(["q1", "r2"]).flip(-1))
        assert not torch.equal(signs.values, Signs.drawn(A + B, 500, seed=4).values)
        assert set(signs.values.flatten().tolist()) == {-1, 1}
        assert signs.values.mean(0).abs().max() < 0.2
        correlation = signs.values.T @ signs.values / 500 - torch.eye(2 * N)
        assert correlation.abs().max() < 0.2

    def test_as_observed_turns_none(self):
        assert Signs.as_observed(A).of(["q4", "q0"]).tolist() == [[1, 1]]


class TestCriticalValues:
    def test_the_wider_of_both_intervals_counts_at_each_end(self):
        # Of 199 draws, the 195th is exceeded by 2.5 % of 200 and the 190th by 5 %.
        skewed = torch.cat([torch.arange(1, 160), -0.001 * torch.arange(1, 41)])[None].double()
        above, below = critical_values(skewed[:, torch.randperm(199, generator=torch.Generator().manual_seed(0))])
        assert float(above) == 155  # of t itself, with 4 of 159 positive draws above
        assert float(below) == 150  # of the sizes, with 9 of 199 above
        symmetric = torch.cat([torch.arange(1, 101), -torch.arange(1, 100)])[None].double()
        above, below = critical_values(symmetric)
        assert (float(above), float(below)) == (96, 95)

    def test_draws_without_a_value_do_not_count_and_too_few_exclude_nothing(self):
        t = torch.arange(-100.0, 100)[None].repeat(2, 1)
        t[0, 1::2] = math.nan
        above, below = critical_values(t)
        alone = critical_values(t[:1, ::2])
        assert (above[0], below[0]) == (alone[0][0], alone[1][0])
        t[1, 38:] = math.nan
        above, below = critical_values(t)
        assert above[0].isfinite()
        assert above[1] == below[1] == math.inf
