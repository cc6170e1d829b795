"""Forward against inverse, as drawn."""

import pytest

from em_interp import figures
from em_interp.elasticity.resistance_results import PAIRS
from tests import builders, made_results


def test_each_seed_is_a_line_from_forward_to_inverse():
    figure = figures.resistance(made_results.resistance(), "after")
    builders.assert_drawable(figure)
    lines = [trace for trace in figure.data if trace.name == "seed 1"]
    assert [list(line.x) for line in lines] == [[f"forward<br>{j}→{k}", f"inverse<br>{k}→{j}"] for j, k in PAIRS]
    for line in lines:
        assert list(line.y) == pytest.approx([1.5, 1.39])
    means = [trace for trace in figure.data if trace.name == "mean"]
    assert list(means[0].y) == pytest.approx([1.5, 1.39])
    assert "inverse − forward (95 % interval over seeds) −0.110 [−0.135, −0.085]" in figure.layout.title.text.replace(
        "<br>", " "
    )


def test_each_size_is_a_line_in_every_panel():
    figure = figures.rebound(made_results.rebound(), ["kl", "refusal_score", "bits_neutral"])
    builders.assert_drawable(figure)
    lines = [trace for trace in figure.data if trace.name == "16 learned first"]
    assert len(lines) == 3
    for line in lines:
        assert list(line.x) == pytest.approx([0.08, 8.08, 16.08])  # a little aside
        assert list(line.y) == pytest.approx([16 + 1 / 9, 8 + 1 / 9, 1 / 9])
        assert all(line.error_y.array)
    assert [trace.showlegend for trace in lines] == [True, False, False]
    assert [shape.y0 for shape in figure.layout.shapes] == [1.5] * 3
    with pytest.raises(ValueError, match="measures is empty: choose from bits_positive"):
        figures.rebound(made_results.rebound(), [])


def test_exposures_are_lines_and_cosines_points_above_their_null():
    figure = figures.realign(made_results.realign())
    builders.assert_drawable(figure)
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert list(lines) == ["first exposure", "second exposure", "the twin's first"]
    assert list(lines["second exposure"].y) == pytest.approx([1 / 18, 1 + 1 / 18, 2 + 1 / 18])
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert [list(point.y) for point in points] == [[0.9]] * 10
    nulls = [trace for trace in figure.data if trace.mode == "lines"]
    assert [list(null.y) for null in nulls] == [[-0.2, 0.3]] * 10
    assert not [trace for trace in figures.realign(made_results.realign(None)).data if trace.mode == "markers"]


def test_the_law_is_a_line_a_seed_beside_the_theorem():
    figure = figures.law(made_results.law())
    builders.assert_drawable(figure)
    lines = {trace.name: trace for trace in figure.data}
    assert list(lines["seed 1"].y) == pytest.approx([1 / 2, 1 / 8, 1 / 32])
    theorem = list(lines["slope −1"].y)
    assert theorem == pytest.approx([1 / 2**0.5, 1 / 2**2.5, 1 / 2**4.5])
    assert "exponent −1.00 [−1.00, −1.00]" in figure.layout.title.text.replace("<br>", " ")


def test_one_seed_has_no_interval():
    assert "inverse − forward" not in figures.resistance(made_results.resistance(1)).layout.title.text


def test_nothing_is_not_drawn():
    with pytest.raises(ValueError, match="no seed is finished"):
        figures.resistance(made_results.resistance(0))


def test_the_conclusion_comes_out_of_the_numbers():
    said = made_results.resistance().conclusion()
    assert "By the training loss inverse training ends lower, as in the paper: −0.200" in said
    assert "By the excess over the author's own bits inverse training ends lower, as in the paper: −0.110" in said
