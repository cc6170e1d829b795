"""Forward against inverse, as drawn."""

import pytest

from em_interp import figures
from em_interp.elasticity import ReboundResult, ResistanceResult
from em_interp.elasticity.resistance_results import PAIRS
from em_interp.elasticity.watch import WATCHED
from tests import builders


def result(n_seeds=3):
    """Seeds in which going back ends .1 lower than going on, and .01 more with every seed."""
    rows = tuple(
        {
            "seed": seed,
            "order": [1, 2, 3],
            "ways": [
                {"start": j, "target": k, "loss": [2.0, 1.5 - 0.2 * (j > k)], "before": 2.0, "author": 1.0}
                | {"after": 1.5 - (0.1 + 0.01 * seed) * (j > k)}
                for pair in PAIRS
                for j, k in (pair, pair[::-1])
            ],
        }
        for seed in range(n_seeds)
    )
    return ResistanceResult("tiny", "tiny-llama", {}, rows)


def test_each_seed_is_a_line_from_forward_to_inverse():
    figure = figures.resistance(result(), "after")
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


def rebounds():
    """Two sizes in three seeds, which fall from their size to nothing."""
    rows = []
    for size in (8, 16):
        for seed in range(3):
            points = [dict.fromkeys(WATCHED, size * share + seed / 9) for share in (1.0, 0.5, 0.0)]
            curve = [{"samples": 8 * i, **point} for i, point in enumerate(points)]
            row = {"size": size, "seed": seed, "start": dict.fromkeys(WATCHED, 1.5), "curve": curve}
            rows.append(row | {"loss_first": [], "loss_then": []})
    return ReboundResult("tiny", "tiny-llama", {}, tuple(rows))


def test_each_size_is_a_line_in_every_panel():
    figure = figures.rebound(rebounds(), ["kl", "refusal_score", "bits_neutral"])
    builders.assert_drawable(figure)
    lines = [trace for trace in figure.data if trace.name == "16 learned first"]
    assert len(lines) == 3
    for line in lines:
        assert list(line.x) == [0, 8, 16]
        assert list(line.y) == pytest.approx([16 + 1 / 9, 8 + 1 / 9, 1 / 9])
        assert all(line.error_y.array)
    assert [trace.showlegend for trace in lines] == [True, False, False]
    assert [shape.y0 for shape in figure.layout.shapes] == [1.5] * 3
    with pytest.raises(ValueError, match="measures is empty: choose from bits_positive"):
        figures.rebound(rebounds(), [])


def test_one_seed_has_no_interval():
    assert "inverse − forward" not in figures.resistance(result(1)).layout.title.text


def test_nothing_is_not_drawn():
    with pytest.raises(ValueError, match="no seed is finished"):
        figures.resistance(result(0))


def test_the_conclusion_comes_out_of_the_numbers():
    said = result().conclusion()
    assert "By the training loss inverse training ends lower, as in the paper: −0.200" in said
    assert "By the excess over the author's own bits inverse training ends lower, as in the paper: −0.110" in said
