"""P-values by permuted labels: by hand, in order, and false no more often than they say."""

import inspect
import math

import pytest
import torch

from em_interp.statistics import permutation_p, step_down_p


class TestOneCell:
    def test_it_counts_draws_that_are_as_large_in_size(self):
        null = [0.1, -0.6, 0.5, -0.2]
        assert permutation_p(0.7, null) == 1 / 5
        assert permutation_p(-0.5, null) == 3 / 5
        assert permutation_p(0.0, null) == 1

    def test_nineteen_draws_reach_a_twentieth_and_no_more(self):
        assert permutation_p(1.0, [0.1] * 19) == 0.05  # to the bit: nothing else is "at most .05"
        assert permutation_p(1.0, [0.1] * 18) > 0.05

    def test_labels_given_back_are_ties_in_spite_of_float32(self):
        value = 0.123456789
        assert permutation_p(value, [float(torch.tensor(value)), -float(torch.tensor(value)), 0.0]) == 3 / 4
        assert permutation_p(value, [0.9999 * value] * 3) == 1 / 4

    def test_what_was_not_measured_is_in_neither_count(self):
        assert permutation_p(1.0, [math.nan, 0.5, 2.0]) == 2 / 3
        assert math.isnan(permutation_p(1.0, [math.nan]))
        assert math.isnan(permutation_p(1.0, []))
        assert math.isnan(permutation_p(math.nan, [0.5]))


class TestSeveralCells:
    def test_by_hand(self):
        """Squares of observed and draws sum up to four times 25 and 4 in the cells: root mean squares of 5 and 2."""
        observed = torch.tensor([9.0, -2.0])  # 1.8 and 1 in the cells' own units
        null = torch.tensor([[3.0, -2.0], [-3.0, 2.0], [1.0, 2.0]])  # .6 1, .6 1, .2 1
        assert step_down_p(observed, null).tolist() == [1 / 4, 1.0]
        # The largest is held against the largest of both cells; the other one against its own draws alone.
        observed = torch.tensor([3.0, math.sqrt(10)])  # .6 and 1.58
        null = torch.tensor([[9.0, 1.0], [-3.0, math.sqrt(5)], [1.0, 0.0]])  # 1.8 .5, .6 1.12, .2 0
        assert step_down_p(observed, null).tolist() == [3 / 4, 2 / 4]

    def test_it_is_in_order_and_no_smaller_than_each_alone(self):
        generator = torch.Generator().manual_seed(0)
        for n in (3, 19, 60):
            scale = torch.tensor([1.0, 1e-3, 1e3, 1.0, 7.0])
            observed, null = 2 * torch.randn(5, generator=generator), torch.randn(n, 5, generator=generator)
            null[0, 3] = math.nan
            got = step_down_p(observed * scale, null * scale)
            alone = [permutation_p(float(o), draws.tolist()) for o, draws in zip(observed, null.mT, strict=True)]
            assert all(p >= single for p, single in zip(got.tolist(), alone, strict=True))
            torch.testing.assert_close(got, step_down_p(observed, null))  # units are nothing
            known = torch.cat([observed[None], null[~null.isnan().any(-1)]])
            order = (observed.abs() / known.square().mean(0).sqrt()).argsort(descending=True)
            assert (got[order].diff() >= 0).all()

    def test_four_clear_effects_need_nineteen_draws(self):
        null = torch.randn(19, 4, generator=torch.Generator().manual_seed(0))
        assert step_down_p(torch.full((4,), 9.0), null).tolist() == [0.05] * 4

    def test_one_cell_is_what_it_is_alone(self):
        null = torch.randn(19, 1, generator=torch.Generator().manual_seed(1))
        for value in (0.1, 1.0, 3.0):
            assert step_down_p(torch.tensor([value]), null).item() == permutation_p(value, null[:, 0].tolist())

    def test_a_draw_that_was_not_measured_in_a_cell_is_left_out_whole(self):
        null = torch.tensor([[0.1, 0.1], [math.nan, 5.0], [0.2, 0.1]])
        assert step_down_p(torch.tensor([1.0, 1.0]), null).tolist() == [1 / 3, 2 / 4]
        nothing = step_down_p(torch.tensor([1.0, 1.0]), torch.full((2, 2), math.nan))
        assert nothing.isnan().all()
        assert step_down_p(torch.zeros(2), torch.zeros(3, 2)).tolist() == [1, 1]

    def test_what_has_no_p_is_told(self):
        unchecked = inspect.unwrap(step_down_p)
        with pytest.raises(ValueError, match="2 effects came with draws of 3 cells: give each its own draws"):
            unchecked(torch.zeros(2), torch.zeros(4, 3))
        with pytest.raises(ValueError, match="an effect is NaN or infinite"):
            step_down_p(torch.tensor([math.nan, 1.0]), torch.zeros(4, 2))

    @pytest.mark.parametrize("rho", [0.0, 0.8])
    @pytest.mark.parametrize("heavy", [False, True])
    def test_of_four_cells_without_effects_one_is_found_in_a_twentieth_of_cases(self, rho, heavy):
        generator, n_cases = torch.Generator().manual_seed(3), 1500
        values = torch.randn(n_cases, 20, 4, generator=generator, dtype=torch.float64)
        values = math.sqrt(rho) * values[..., :1] + math.sqrt(1 - rho) * values
        values = values**3 if heavy else values
        found = sum(bool((step_down_p(case[0], case[1:]) <= 0.05).any()) for case in values) / n_cases
        assert 0.03 < found < 0.05 + 3 * math.sqrt(0.05 * 0.95 / n_cases)
