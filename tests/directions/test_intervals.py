"""Intervals hold the true cosine as often as they say, in a few cells of `python -m benchmarks coverage`."""

import math

import pytest
import torch

from benchmarks.coverage import Cell, held, measured, simulated
from em_interp.directions.comparison import compare
from em_interp.directions.intervals import Noisy, cosine_interval
from em_interp.statistics.wild_bootstrap import Signs


@pytest.mark.parametrize(
    "cell",
    [
        # Student's critical values on a jackknife that counts pairs of questions once cover 89 % and 92 %: too narrow.
        Cell(0.9, 48, "log-normal", shared=False, rows="one"),
        Cell(0.98, 24, "log-normal", shared=False, rows="several"),
        # On the plain jackknife, which counts them twice, they cover 99.7 %: too wide.
        Cell(0.98, 24, "isotropic", shared=True, rows="several"),
    ],
    ids=str,
)
def test_holds_the_true_cosine(cell) -> None:
    found = measured(cell, 300, seed=1, n_resamples=100)
    assert found.found > 0.95
    assert 0.93 <= found.covered <= 0.985


def test_where_directions_are_barely_found_it_is_as_wide_as_it_must_be() -> None:
    cell = Cell(0.9, 24, "log-normal", shared=False, rows="one")
    a, b = simulated(cell, 200, seed=2)
    found = held(compare(a, b, n_resamples=100), cell.cosine)
    assert 0.5 < found.found < 0.8
    assert found.covered >= 0.93


def noisy(direction, noise, n=12):
    """One layer, of which noise is known exactly."""
    squared = direction.square().sum() - noise.square().sum()
    names = tuple(f"{'ab'[int(direction[1] != 0)]}{i}" for i in range(n))
    return Noisy(direction[None], noise[None], squared[None], names, torch.full((n,), 1 / n).double())


def ends(a, b, cosine, n_draws=400):
    signs = Signs.drawn(a.questions + b.questions, n_draws, seed=0)
    return [float(end) for end in cosine_interval(a, b, torch.tensor([cosine], dtype=torch.float64), signs)]


def noise(size, n=12, d=8, seed=0):
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()
    return size * (drawn - drawn.mean(0)) / (drawn - drawn.mean(0)).norm()


E1, E2 = torch.eye(8).double()[:2]


def test_ends_are_where_the_noise_puts_them() -> None:
    """So little noise that everything is linear in it: critical values are near Student's."""
    a, b = noisy(E1, noise(0.01)), noisy((E1 + E2) / math.sqrt(2), noise(0.01, seed=1))
    low, high, error = ends(a, b, math.sqrt(0.5))
    across = [((a.noise[0] @ E2).square().sum() / 2).sqrt(), (b.noise[0] @ (E1 - E2)).square().sum().sqrt() / 2]
    wanted = math.hypot(*map(float, across))
    assert error == pytest.approx(wanted, rel=0.01)
    for end in (low, high):
        assert 1.9 < abs(end - math.sqrt(0.5)) / wanted < 2.5
    tenth = ends(noisy(E1, noise(0.001)), noisy((E1 + E2) / math.sqrt(2), noise(0.001, seed=1)), math.sqrt(0.5))
    assert tenth[1] - tenth[0] == pytest.approx((high - low) / 10, rel=0.02)


def test_a_length_that_may_be_zero_excludes_no_cosine() -> None:
    a, b = noisy(E1, noise(0.97)), noisy(E2, noise(0.97, seed=1))
    low, high, _ = ends(a, b, 0.3)
    assert (low, high) == (-1, 1)
    assert ends(a, b, 1.4)[1] == 1.4  # the estimate belongs to it
    assert ends(a, b, -1.4)[0] == -1.4


def test_too_few_draws_exclude_no_cosine() -> None:
    a, b = noisy(E1, noise(0.1)), noisy(E2, noise(0.1, seed=1))
    assert ends(a, b, 0.0)[0] > -0.5
    assert ends(a, b, 0.0, n_draws=20)[:2] == [-1, 1]


def test_nearly_equal_directions_have_an_interval_and_equal_ones_are_certain() -> None:
    a = noisy(E1, noise(0.3))
    for difference in (1e-3, 1e-5, 0.0):
        b = noisy(E1, noise(0.3) + difference * noise(0.3, seed=1))
        inner = 1 - (a.noise * b.noise).sum()
        cosine = float(inner / (a.squared * b.squared).sqrt())
        low, high, error = ends(a, b, cosine)
        assert 0 <= error < difference + 1e-7
        assert cosine - 10 * difference - 1e-7 < low <= cosine + 1e-12
        assert high >= cosine - 1e-12
