"""Figures hold exactly the numbers they are given, break off where there are none, and show names as text."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from em_interp import figures
from em_interp.behaviour import Behaviour, Condition, Effect
from em_interp.directions.comparison import clearest, compare
from em_interp.statistics import Estimate
from tests.builders import (
    EVIL,
    LAYERS,
    assert_drawable,
    comparison,
    contrast,
    directions,
    effects,
    same,
    separabilities,
    texts,
    trace,
    unmeasured,
    without_directions,
)


def test_the_lines_are_the_numbers_given():
    c = comparison()
    figure = figures.cosine_by_layer(c)
    for name, values in (
        ("noise-corrected cosine", c.corrected),
        ("plug-in cosine", c.cosine),
        ("plug-in ceiling", c.ceiling),
    ):
        assert trace(figure, name).x == LAYERS
        assert same(trace(figure, name).y, values)
    for side, controls in enumerate((c.controls_a, c.controls_b)):
        for i in range(2):
            assert same(trace(figure, f"control {i}", side).y, controls[i])
    assert trace(figure, "control 0", 0).line.color != trace(figure, "control 0", 1).line.color
    assert "misalignment" in trace(figure, "control 0", 0).legendgrouptitle.text
    assert "refusal" in trace(figure, "control 0", 1).legendgrouptitle.text
    assert_drawable(figure)


def test_bands_are_outlines_that_stop_where_there_is_no_direction():
    c = comparison()
    figure = figures.cosine_by_layer(c)
    band = trace(figure, "its 95 % interval")
    low, high = c.low.tolist(), c.high.tolist()
    assert band.x == (3, 4, 4, 3, None, 7, 8, 8, 7)
    assert band.y == (high[0], high[1], low[1], low[0], None, high[3], high[4], low[4], low[3])
    assert band.fill == "toself"
    null = trace(figure, "null: labels of refusal<br>permuted")
    assert null.x == (*LAYERS, *LAYERS[::-1])
    assert same(null.y, torch.cat([c.null_b[1], c.null_b[0].flip(0)]))
    assert same(trace(figure, "null: labels of misalignment<br>permuted").y[:5], c.null_a[1])


def test_a_single_layer_between_gaps_keeps_its_interval():
    c = comparison()
    keep = torch.tensor([False, False, False, True, False])
    alone = replace(c, **{n: getattr(c, n).masked_fill(~keep, math.nan) for n in ("corrected", "low", "high")})
    band = trace(figures.cosine_by_layer(alone), "its 95 % interval")
    low, high = float(c.low[3]), float(c.high[3])
    assert band.y == (high, high, low, low)
    assert band.x[0] < 7 < band.x[1]


def test_missing_directions_are_said_in_words():
    figure = figures.cosine_by_layer(comparison())
    assert texts(figure).count("no direction here") == 1
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].x1) == (4.5, 6.0)
    assert "no direction here: refusal" in trace(figure, "plug-in cosine").hovertext[2]
    nowhere = figures.cosine_by_layer(without_directions())
    assert "no direction here, at any layer" in texts(nowhere)
    assert "[" not in texts(nowhere)
    assert_drawable(nowhere)


def test_the_label_is_on_the_interval_farthest_from_zero():
    c = comparison()
    assert "<b>0.52 [0.32, 0.62]</b> at layer 7" in texts(figures.cosine_by_layer(c))
    assert clearest(c) == 3
    mirrored = replace(c, corrected=-c.corrected, low=-c.high, high=-c.low)
    assert "<b>−0.52 [−0.62, −0.32]</b> at layer 7" in texts(figures.cosine_by_layer(mirrored))
    turned = torch.tensor([1.0, 1, 1, -1, 1])
    opposite = replace(
        c, corrected=c.corrected * turned, low=c.low.where(turned > 0, -c.high), high=c.high.where(turned > 0, -c.low)
    )
    assert clearest(opposite) == 3
    wide = replace(c, low=c.corrected - 2)
    assert clearest(wide) == 3
    assert clearest(replace(wide, corrected=c.corrected * torch.tensor([1.0, 2, 1, 1, 1]))) == 1
    assert clearest(without_directions()) is None


def test_hover_gives_every_number_with_its_interval():
    c = comparison()
    shown = trace(figures.cosine_by_layer(c), "noise-corrected cosine").hovertext[3]
    low, high = c.null_a[:, 3].tolist()
    assert "noise-corrected 0.52 [0.32, 0.62]" in shown
    assert f"labels of misalignment permuted: {figures.number(low)} … {figures.number(high)}" in shown


def test_marks_are_hollow_where_few_dimensions_rule():
    c = replace(comparison(), dominated=torch.tensor([False, True, False, False, True]))
    symbols = trace(figures.cosine_by_layer(c), "noise-corrected cosine").marker.symbol
    assert list(symbols) == ["circle", "circle-open", "circle", "circle", "circle-open"]
    shown = trace(figures.cosine_by_layer(c), "noise-corrected cosine").hovertext[3]
    assert f"in three dimensions: misalignment {c.dominance_a[3]:.0%}, refusal {c.dominance_b[3]:.0%}" in shown


def test_both_metrics_stand_in_one_figure_above_the_share_of_few_dimensions():
    plain = comparison()
    units = replace(plain, metric="standardised", corrected=plain.corrected + 0.01)
    figure = figures.cosine_by_metric(plain, units, model="some/tiny-model")
    assert same(trace(figure, "the stream as it is", 1).y, plain.corrected)
    assert same(trace(figure, "standardised dimensions", 1).y, units.corrected)
    assert same(trace(figure, "misalignment: share in three dimensions").y, plain.dominance_a)
    assert same(trace(figure, "refusal: share in three dimensions").y, plain.dominance_b)
    assert_drawable(figure)
    for first, second in ((units, plain), (plain, plain), (plain, replace(units, a="another"))):
        with pytest.raises(ValueError, match="are not the same in two metrics: give compare"):
            figures.cosine_by_metric(first, second)


def test_other_estimators_are_dotted():
    plain = separabilities()
    dotted = [replace(s, estimator="standardised", auc=s.auc - 0.1) for s in plain]
    figure = figures.norms_and_separability(directions(), [*plain, *dotted])
    line = trace(figure, "refusal, standardised", 1)
    assert same(line.y, dotted[1].auc)
    assert (line.line.dash, line.showlegend) == ("dot", True)
    assert line.line.color == trace(figure, "refusal", 0).line.color


def test_one_layer_and_no_controls():
    c = compare(contrast("a", 0, layers=(3,)), contrast("b", 1, layers=(3,)), n_resamples=40)
    figure = figures.cosine_by_layer(c)
    assert len(figure.data) == 6
    assert figure.layout.xaxis.range == (2.5, 3.5)
    assert trace(figure, "plug-in cosine").mode == "markers"
    assert_drawable(figure)


def test_the_largest_control_is_named_on_each_side():
    c = comparison()
    c = replace(
        c,
        controls_a=torch.tensor([[0.1, 0.2, 0, 0, 0], [0.0, 0, 0, -0.3, 0]]),
        controls_b=torch.tensor([[0.1, 0.2, 0, math.nan, 0], [0.0, 0, 0, math.nan, 0]]),
    )
    named = {a.text: (a.x, a.y) for a in figures.cosine_by_layer(c).layout.annotations}
    assert named["control 1"] == (7, pytest.approx(-0.3))
    assert named["control 0"] == (4, pytest.approx(0.2))


def test_the_map_has_the_same_range_on_both_sides_of_zero():
    matrix = torch.tensor([[0.1, -0.4, 0.2], [0.0, 0.3, -0.1]])
    figure = figures.cosine_map(matrix, a="one", b="two", layers_a=[3, 4], layers_b=[3, 4, 5])
    heat = figure.data[0]
    assert torch.equal(torch.tensor(heat.z), matrix)
    assert (heat.zmin, heat.zmax, heat.zmid) == (pytest.approx(-0.4), pytest.approx(0.4), 0)
    assert (heat.x, heat.y) == ((3, 4, 5), (3, 4))
    assert (figure.data[1].x, figure.data[1].y) == ((3, 4), (3, 4))
    assert "one, layer 3<br>two, layer 4<br>cosine −0.40" in heat.hovertext[0][1]
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("layer of two", "layer of one")
    assert_drawable(figure)
    assert figures.cosine_map(matrix).data[0].y == (0, 1)


def test_norms_are_relative_and_areas_have_their_interval():
    (a, b), (s, t) = directions(), separabilities()
    figure = figures.norms_and_separability((a, b), (s, t))
    assert same(figure.data[0].y, a.norm / a.residual_norm)
    assert same(figure.data[1].y, b.norm / b.residual_norm)
    assert same(trace(figure, "refusal", 2).y, t.auc)
    assert same(trace(figure, "refusal", 1).y, torch.cat([t.high, t.low.flip(0)]))
    assert (
        figures.interval(float(s.auc[0]), float(s.low[0]), float(s.high[0]))
        in trace(figure, "misalignment", 2).hovertext[0]
    )
    assert_drawable(figure)
    alone = figures.norms_and_separability((a, b))
    assert len(alone.data) == 2
    assert "yaxis2" not in alone.layout.to_plotly_json()


def test_projections_are_the_held_out_ones_with_the_area_in_the_title():
    s = separabilities()[0]
    figure = figures.projections(s, 7, model="some/tiny-model")
    assert same(trace(figure, "positive class").x, s.positive[:, 3])
    assert same(trace(figure, "negative class").x, s.negative[:, 3])
    assert figures.interval(float(s.auc[3]), float(s.low[3]), float(s.high[3])) in figure.layout.title.text
    assert "layer 7 in tiny-model" in figure.layout.title.text
    assert_drawable(figure)
    with pytest.raises(ValueError, match="layer 6 is not among those of 'misalignment': choose one of 3, 4, 5, 7, 8"):
        figures.projections(s, 6)


def test_effects_are_dots_with_intervals_around_a_zero_line():
    e = effects()
    figure = figures.cross_effects(e)
    dots = [t for t in figure.data if t.mode == "markers"]
    assert len(dots) == 6
    first = dots[0]
    assert first.y == ("misalignment removed at every layer", "misalignment added × 0.5")
    assert first.x == (-1.0, 1.0)
    assert first.error_x.array == (0.5, 0.5)
    assert first.error_x.arrayminus == (0.25, 0.25)
    assert first.marker.color == (figures.FIRST, figures.FIRST)
    assert first.marker.symbol == ("circle", "diamond")  # what has a null moves, and is taken for an effect
    random = dots[2]
    assert random.marker.symbol == ("circle", "circle")
    assert (random.error_x.color, random.marker.color) == (figures.GREY, ("white", "white"))
    assert "<b>refusal (log-odds)</b><br>as it is: 1.50 [1.25, 1.75]" in texts(figure)
    assert [(s.x0, s.x1) for s in figure.layout.shapes] == [(0, 0), (0, 0)]
    assert random.y == ("random removed at every layer", "random added × 0.5")
    assert figure.layout.yaxis.categoryarray[-1] == "misalignment removed at every layer"
    assert "+1.00 [+0.75, +1.50], 9 questions" in first.hovertext[1]
    assert "p = 0.05 by 19 permuted labels, this cell alone" in first.hovertext[1]
    assert "p =" not in first.hovertext[0]
    assert_drawable(figure)


def test_what_permuted_labels_do_is_a_band_as_far_as_the_largest():
    figure = figures.cross_effects(effects())
    bands = [t for t in figure.data if t.name == "permuted labels"]
    assert len(bands) == 4  # two behaviours and two directions, none for what is random
    assert bands[0].x == (-0.18, 0.18, None)
    assert bands[0].y == ("misalignment added × 0.5", "misalignment added × 0.5", None)
    assert "19 directions of permuted labels" in figure.layout.title.text.replace("<br>", " ")
    missing = tuple(replace(e, null=(math.nan, *e.null[1:])) if e.null else e for e in effects().effects)
    assert_drawable(figures.cross_effects(replace(effects(), effects=missing)))


def test_names_are_text_and_never_markup():
    c = replace(comparison(), a=EVIL, controls=(EVIL, "b"))
    d = replace(directions()[0], name=EVIL)
    s = replace(separabilities()[0], name=EVIL)
    nothing = Estimate(0.0, -1.0, 1.0, 3)
    e = replace(effects(), behaviours=(Behaviour(EVIL, EVIL, EVIL, "mean", unmeasured),), baseline={EVIL: nothing})
    done = Condition("all_layers_own", EVIL, without=EVIL)
    e = replace(e, effects=(Effect(done, EVIL, nothing, nothing),), model=EVIL)
    for figure in (
        figures.cosine_by_layer(c, model=EVIL),
        figures.cosine_map(torch.eye(2), a=EVIL, b=EVIL, model=EVIL),
        figures.norms_and_separability([d], [s], model=EVIL),
        figures.projections(s, 3, model=EVIL),
        figures.cross_effects(e),
    ):
        shown = json.dumps(figure.to_dict(), default=str)
        assert "alert(1)" in shown
        assert "<script" not in shown
        assert_drawable(figure)


def test_long_names_are_cut_and_titles_wrapped():
    c = replace(comparison(), a="a very long name " * 12)
    figure = figures.cosine_by_layer(c, model="some/" + "long-model-name-" * 9)
    assert "…" in figure.layout.title.text
    assert max(map(len, figure.layout.title.text.split("<span")[0].split("<br>"))) <= 80
    assert figure.layout.margin.t > figures.cosine_by_layer(comparison()).layout.margin.t


def test_untitled_takes_the_room_of_the_title_away():
    figure = figures.cross_effects(effects())
    bare = figures.untitled(figure)
    assert bare.layout.title.text == ""
    assert bare.layout.height - bare.layout.margin.t == figure.layout.height - figure.layout.margin.t
    assert "What" in figure.layout.title.text


def test_importing_the_library_loads_no_plotly():
    code = "import sys, em_interp; print('plotly' in sys.modules, 'em_interp.figures' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
