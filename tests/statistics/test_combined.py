"""P-values put together keep their level, and are small where most of them are."""

import pytest
import torch
from scipy import stats

from em_interp.statistics import holm_p, majority_p


def test_of_one_it_is_the_p_value_itself():
    assert majority_p([0.03]) == pytest.approx(0.03)


def test_of_three_it_is_by_the_median():
    assert majority_p([0.2, 0.04, 0.001]) == pytest.approx(3 * 0.04**2 - 2 * 0.04**3)
    assert majority_p([1.0, 0.04, 0.04]) == majority_p([0.04, 0.04, 0.001])


def test_of_four_and_five_it_is_by_the_third():
    assert majority_p([0.1, 0.2, 0.3, 0.9]) == pytest.approx(stats.binom.sf(2, 4, 0.3))
    assert majority_p([0.1, 0.2, 0.3, 0.9, 1.0]) == pytest.approx(stats.binom.sf(2, 5, 0.3))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_under_the_null_it_is_uniform(n):
    draws = torch.rand(2000, n, generator=torch.Generator().manual_seed(n))
    found = [majority_p(row) for row in draws.tolist()]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_one_odd_seed_carries_nothing():
    assert majority_p([1e-6, 0.6, 0.7]) > 0.5
    assert stats.combine_pvalues([1e-6, 0.6, 0.7]).pvalue < 0.001  # as Fisher's would


def test_holm_goes_down_step_by_step():
    assert holm_p([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_p([0.9, 0.8]) == (1.0, 1.0)
    assert holm_p([0.02]) == (0.02,)


def test_holm_keeps_the_level_of_a_whole_search():
    draws = torch.rand(2000, 8, generator=torch.Generator().manual_seed(0))
    wrong = sum(min(holm_p(row)) <= 0.05 for row in draws.tolist()) / 2000
    assert 0.03 < wrong < 0.065


@pytest.mark.parametrize("combine", [majority_p, holm_p])
@pytest.mark.parametrize("values", [[], [0.1, 1.2], [-0.1], [float("nan")]])
def test_what_is_not_a_p_value_is_refused(combine, values):
    with pytest.raises(ValueError, match=r"p-values are \[.*\]: give one at least, each between 0 and 1"):
        combine(values)
