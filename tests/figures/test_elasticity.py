"""Forward against inverse, as drawn."""

import pytest

from em_interp import figures
from em_interp.elasticity import ResistanceResult
from em_interp.elasticity.resistance_results import PAIRS
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


def test_one_seed_has_no_interval():
    assert "inverse − forward" not in figures.resistance(result(1)).layout.title.text


def test_nothing_is_not_drawn():
    with pytest.raises(ValueError, match="no seed is finished"):
        figures.resistance(result(0))


def test_the_conclusion_comes_out_of_the_numbers():
    said = result().conclusion()
    assert "By the training loss inverse training ends lower, as in the paper: −0.200" in said
    assert "By the excess over the author's own bits inverse training ends lower, as in the paper: −0.110" in said
