"""The figures of training hold the numbers they are given, mark a turn where one was found, and say where none was."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from em_interp import figures
from em_interp.organisms.phase_change import EffectPath, Phases, phases
from tests.builders import EVIL, assert_drawable, same, texts, trace, trajectory


@cache
def turning() -> Phases:
    return phases(trajectory(), "a.B", n_resamples=40)


@cache
def straight() -> Phases:
    return phases(trajectory().path("b.B"), n_resamples=40)


def effect_path() -> EffectPath:
    value = torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.4, 0.8]])
    return EffectPath("misaligned_answers", torch.tensor([0, 100, 240]), (1.0, 5.0), value, value - 0.1, value + 0.2)


def test_the_panels_hold_the_numbers():
    p = turning()
    figure = figures.phase_change(p)
    for name, values in (
        ("norm", p.norm),
        ("cosine to the final", p.cosine_to_final),
        ("gradient norm", p.grad_norm),
        ("loss", p.loss),
    ):
        assert trace(figure, name).x == tuple(p.steps.tolist())
        assert same(trace(figure, name).y, values)
    for i, window in enumerate(p.windows):
        band, line = (trace(figure, f"window of {window} checkpoints", nth) for nth in (0, 1))
        assert same(line.y, p.local_cosine[i])
        defined = p.floor[0, i].isfinite()
        assert same(band.y, torch.cat([p.floor[1, i][defined], p.floor[0, i][defined].flip(0)]))
        assert band.fillcolor != line.line.color
    assert len({t.yaxis for t in figure.data}) == 5
    assert figure.layout.xaxis5.title.text == "optimizer step"
    assert_drawable(figure)


def test_a_turn_is_a_line_through_every_panel_with_its_interval():
    p = replace(turning(), change_point=replace(turning().change_point, low=90, high=115))
    figure = figures.phase_change(p)
    lines = [s for s in figure.layout.shapes if s.type == "line"]
    boxes = [s for s in figure.layout.shapes if s.type == "rect"]
    assert {(s.x0, s.x1) for s in lines} == {(100, 100)}
    assert {(s.x0, s.x1) for s in boxes} == {(90, 115)}
    assert len({s.yref for s in lines}) == len({s.yref for s in boxes}) == 5
    assert "turn, step 100" in texts(figure)
    assert "at step 100 [90, 115] (p = 0.024)" in figure.layout.title.text
    assert not [s for s in figures.phase_change(turning()).layout.shapes if s.type == "rect"]


def test_a_straight_path_is_said_in_words():
    p = straight()
    figure = figures.phase_change(p)
    assert len(figure.layout.shapes) == 0
    assert f"no change of direction found (p = {p.change_point.p_value:.3f})" in figure.layout.title.text
    assert len({t.yaxis for t in figure.data}) == 3  # a bare path has no loss and no gradient
    assert "turn" not in texts(figures.training_path(p))
    assert_drawable(figure)


def test_the_path_is_coloured_by_step_with_start_end_and_turn():
    p = turning()
    figure = figures.training_path(p)
    points = figure.data[0]
    assert same(points.x, p.pca[:, 0])
    assert same(points.y, p.pca[:, 1])
    assert points.marker.color == tuple(p.steps.tolist())
    named = {a.text: (a.x, a.y) for a in figure.layout.annotations}
    assert named["start"] == tuple(p.pca[0, :2].tolist())
    assert named["end"] == tuple(p.pca[-1, :2].tolist())
    assert named["<b>turn, step 100</b>"] == tuple(p.pca[20, :2].tolist())
    assert f"{100 * p.explained[0]:.0f} %" in figure.layout.xaxis.title.text
    assert f"{100 * p.explained[1]:.0f} %" in figure.layout.yaxis.title.text
    assert_drawable(figure)
    line = replace(p, pca=p.pca[:, :1], explained=p.explained[:1])
    assert set(figures.training_path(line).data[0].y) == {0.0}


def test_effects_are_a_line_and_a_band_a_scale():
    e = effect_path()
    figure = figures.effect_by_step(e, turning())
    for i, scale in enumerate(("1", "5")):
        band, line = (trace(figure, f"adapter × {scale}", nth) for nth in (0, 1))
        assert line.x == (0, 100, 240)
        assert same(line.y, e.value[i])
        assert same(band.y, torch.cat([e.high[i], e.low[i].flip(0)]))
    assert "adapter × 5, step 100<br>0.40 [0.30, 0.60]" in trace(figure, "adapter × 5", 1).hovertext
    assert figure.layout.yaxis.title.text == "misaligned answers"
    assert [s.x0 for s in figure.layout.shapes] == [100]
    assert_drawable(figure)
    assert len(figures.effect_by_step(e).layout.shapes) == 0


@pytest.mark.parametrize("name", [EVIL, "layers.15.mlp.down_proj.B"])
def test_names_are_text_and_keep_their_underscores(name):
    p, e = replace(turning(), name=name), replace(effect_path(), behaviour=name)
    for figure in (figures.phase_change(p), figures.training_path(p), figures.effect_by_step(e, p)):
        assert "<script" not in figure.to_json()
    if name != EVIL:
        assert name in figures.phase_change(p).layout.title.text
