"""The figures of a search hold its numbers: effects with intervals at every value, and the p-values of every seed."""

import math

import pytest

from em_interp import figures
from em_interp.organisms import PointTurn, SweepResult
from em_interp.organisms.sweep_results import Frontier
from em_interp.statistics import Estimate
from tests.builders import EVIL, assert_drawable, sweep_runs


def values_of(frontier: Frontier, first: float, *others: float) -> Frontier:
    effects = {key: es[: 1 + len(others)] for key, es in frontier.effects.items()}
    return Frontier(frontier.setting, (first, *others), effects, frontier.labels, frontier.n_seeds[: 1 + len(others)])


def test_effects_stand_at_their_values_with_their_intervals():
    f = SweepResult(sweep_runs()).frontier()
    figure = figures.frontier(f)
    inside, outside = figure.data
    assert inside.name == "misaligned preference, in domain"
    for trace, estimates in zip((inside, outside), f.effects.values(), strict=True):
        assert trace.y == tuple(e.value for e in estimates)
        assert trace.error_y.array == pytest.approx([e.high - e.value for e in estimates])
        assert trace.error_y.arrayminus == pytest.approx([e.value - e.low for e in estimates])
    assert figure.layout.xaxis.ticktext == ("0", "1", "10")
    assert "kl weight = 10: " in inside.hovertext[2]
    assert "3 seeds" in inside.hovertext[2]
    assert "means of 3 seeds, 95 % intervals over seeds and questions" in figure.layout.title.text
    assert_drawable(figure)


def test_the_axis_is_logarithmic_and_zero_stands_to_the_left():
    f = SweepResult(sweep_runs()).frontier()
    for values, places in (
        ((0.0, 1.0, 100.0), [-0.5, 0.0, 2.0]),
        ((0.1, 1.0, 10.0), [-1.0, 0.0, 1.0]),
        ((0.0, 1.0, 2.0), [0.0, 1.0, 2.0]),
        ((-1.0, 1.0, 100.0), [-1.0, 1.0, 100.0]),
    ):
        figure = figures.frontier(values_of(f, *values))
        assert list(figure.data[0].x) == pytest.approx(places)
        assert len(figure.layout.shapes) == (places[0] == -0.5)  # the gap


def test_one_seed_says_that_it_is_one():
    e = (Estimate(0.1, 0.0, 0.2, 9),)
    figure = figures.frontier(Frontier("alpha", (1.0,), {"x": e}, {"x": EVIL}, (1,)))
    assert "one seed, 95 % intervals over questions" in figure.layout.title.text
    assert "<script>" not in figure.to_json()
    assert_drawable(figure)


def turns() -> tuple[PointTurn, ...]:
    return (
        PointTurn({"steps": 80}, {0: 0.4, 1: 0.0001, 2: math.nan}, 0.4, 0.8),
        PointTurn({"steps": 300}, {0: 0.002, 1: 0.01, 2: 0.2}, 0.0003, 0.0006),
    )


def test_every_seed_is_a_mark_and_recipes_are_sorted():
    figure = figures.turn_map(turns())
    first, first_all, second, second_all = figure.data
    assert first.x == (0.4, 0.001)  # what failed is not drawn, and the smallest stand at the edge
    assert first.y == ("steps\u00a0=\u00a080",) * 2
    assert first_all.x == (0.8,)
    assert second.x == (0.002, 0.01, 0.2)
    assert (first.marker.color, second.marker.color) == ("white", figures.FIRST)
    assert "corrected p = 0.0006" in second_all.hovertext
    assert "1 failed" in first_all.hovertext
    assert "seed 1: p = 0.000" in first.hovertext[1]
    assert figure.layout.yaxis.categoryarray == ("steps\u00a0=\u00a080", "steps\u00a0=\u00a0300")
    assert "1 of 2 turn after correction for the search" in figure.layout.title.text.replace("<br>", " ")
    assert_drawable(figure)


def test_long_names_are_not_cut_so_that_each_recipe_has_its_row():
    many = {"target_modules": [f"module_{i}" for i in range(9)]}
    figure = figures.turn_map([PointTurn(many | {"rank": rank}, {0: 0.5}, 0.5, 0.5) for rank in (1, 2)])
    assert len(set(figure.layout.yaxis.categoryarray)) == 2


def test_none_turns_and_none_given():
    assert "none turns after correction" in figures.turn_map(turns()[:1]).layout.title.text.replace("<br>", " ")
    with pytest.raises(ValueError, match="there are no recipes to draw"):
        figures.turn_map(())
