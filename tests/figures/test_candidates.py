"""The three maps of candidates for a refusal direction, as drawn."""

from em_interp import figures
from em_interp.behaviour import select
from tests import builders
from tests.behaviour.test_selection import made


def test_each_score_is_a_map_with_the_chosen_candidate_ringed():
    nan = float("nan")
    scores = made(
        bypass=[[nan, 1.0, -5.0, -9.0, nan], [-9.0, -2.0, -1.0, -1.5, nan]],
        induce=[[nan, 1.0, 0.1, -0.1, nan], [1.0, 1.0, 1.0, 1.0, nan]],
        kl=[[nan, 0.0, 0.1, 0.0, nan], [0.11, 0.0, 0.0, 0.0, nan]],
        zero=[(0, 0)],
    )
    figure = figures.selection(select(scores))
    builders.assert_drawable(figure)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [map_.z[1][1] for map_ in maps] == [-2.0, 1.0, 0.0]
    assert maps[0].z[0][0] is None
    assert [map_.zmin for map_ in maps] == [-9.0, -1.0, 0]
    assert "induces less than 0" in maps[0].hovertext[0][3]
    crosses, ring = (trace for trace in figure.data[1:3])
    assert list(zip(crosses.x, crosses.y, strict=True)) == [(3, "-2  &lt;a&gt;"), (0, "-1  &lt;b&gt;")]
    assert (list(ring.x), list(ring.y)) == ([2], ["-2  &lt;a&gt;"])
    assert "4 harmful requests at 3.00" in figure.layout.title.text.replace("<br>", " ")
