"""The figures of organisms hold the numbers they are given, each pair in its place, and show names as text."""

from dataclasses import replace
from functools import cache
from itertools import combinations

import pytest
import torch

from em_interp import figures
from em_interp.directions.comparison import Comparison
from em_interp.organisms.effects import Change, OrganismEffects
from em_interp.organisms.relatives import Convergence, OrganismReadings, convergence
from em_interp.statistics import Estimate
from tests.builders import EVIL, LAYERS, assert_drawable, comparison, contrast, same, texts, trace, without_directions


def cosine_of(value: float) -> Comparison:
    at = torch.full((len(LAYERS),), value)
    return replace(comparison(), corrected=at, low=at - 0.1, high=at + 0.1)


@cache
def found() -> Convergence:
    trained = {name: contrast(name, i) for i, name in enumerate(("cooking", "garden_ing", "cars"))}
    base = {name: contrast("base", 9) for name in trained}
    return convergence(OrganismReadings(trained, base), n_resamples=40)


def measured(change: float, label: str = "neutral text (bits/token)") -> OrganismEffects:
    before, after = Estimate(-1.0, -1.2, -0.8, 9), Estimate(change - 1, change - 1.2, change - 0.8, 9)
    moved = Estimate(change, change - 0.2, change + 0.1, 9)
    first = Change("misaligned_preference", "misaligned preference (nats/token)", before, after, moved)
    return OrganismEffects("tiny", (first, replace(first, behaviour="text_bits", label=label)))


def test_every_change_is_a_mark_filled_where_it_excludes_zero():
    figure = figures.organism_effects({"cooking": measured(0.5), "good": measured(0.1)})
    marks = [t for t in figure.data if t.mode == "markers"]
    assert [(t.x[0], t.y[0], t.marker.color) for t in marks[:2]] == [
        (0.5, "cooking", figures.FIRST),
        (0.1, "good", "white"),
    ]
    assert marks[0].error_x.array[0] == pytest.approx(0.1)
    assert marks[0].error_x.arrayminus[0] == pytest.approx(0.2)
    assert len(marks) == 4
    assert "+0.50 [+0.30, +0.60], 9 questions" in marks[0].hovertext
    assert "misaligned preference (nats/token)" in texts(figure).replace("<br>", " ")
    assert_drawable(figure)


def test_an_organism_without_a_behaviour_keeps_its_row():
    one = measured(0.5)
    figure = figures.organism_effects({"both": one, "one": OrganismEffects("tiny", one.changes[:1])})
    assert [t.x for t in figure.data if t.y == ("one",)] == [(0.5,), (None,)]


def test_the_map_has_same_texts_above_the_diagonal_added_below_and_the_base_on_it():
    c = found()
    layer = LAYERS[3]
    [heat] = figures.convergence_map(c, layer).data
    values = torch.tensor(heat.z)
    for i, a in enumerate(c.names):
        assert values[i, i].item() == pytest.approx(c.with_base[a].corrected[3].item(), nan_ok=True)
        for j, b in enumerate(c.names[i + 1 :], i + 1):
            assert values[i, j].item() == pytest.approx(c.same_texts[a, b].corrected[3].item(), nan_ok=True)
            assert values[j, i].item() == pytest.approx(c.added[a, b].corrected[3].item(), nan_ok=True)
    assert_drawable(figures.convergence_map(c, layer))


def test_the_map_over_seeds_has_a_row_an_organism_and_a_column_for_its_own_seeds():
    names = ("cooking", "cooking (seed 1)", "cooking (seed 2)", "cars", "cars (seed 1)")
    pairs = list(combinations(names, 2))
    same_texts, added = ({pair: cosine_of(start + 0.01 * i) for i, pair in enumerate(pairs)} for start in (0.8, 0.3))
    with_base = {name: cosine_of(0.6 + 0.01 * i) for i, name in enumerate(names)}
    c = Convergence(same_texts, {}, added, with_base, {}, LAYERS)
    figure = figures.convergence_map(c, LAYERS[3], over_seeds=True)
    [heat] = figure.data
    assert (heat.y, heat.x) == (("cooking", "cars"), ("cooking", "cars", "its own seeds"))
    mean = {(row["texts"], row["a"], row["b"]): row["mean"] for row in c.summary(LAYERS[3])}
    pair = ("cooking", "cars")
    wanted = [
        [mean["with its base", "cooking", "base"], mean["same texts", *pair], mean["added", "cooking", "cooking"]],
        [mean["added", *pair], mean["with its base", "cars", "base"], mean["added", "cars", "cars"]],
    ]
    assert same(heat.z, torch.tensor(wanted))
    assert wanted[1] == pytest.approx([0.3 + 0.31 / 6, 0.635, 0.39])
    assert texts(figure).count("[–, –]") == 1  # two seeds of cars are too few to tell of others
    assert_drawable(figure)


def test_a_cell_without_direction_says_so():
    c = found()
    nowhere = replace(c, added={pair: without_directions() for pair in c.added})
    assert texts(figures.convergence_map(nowhere, LAYERS[0])).count("no<br>direction") >= 3


def test_models_are_lines_with_their_bands():
    figure = figures.models_by_layer({"base": comparison(), "organ_ism": without_directions()})
    band, line = (trace(figure, "base", nth) for nth in (0, 1))
    assert same(line.y, comparison().corrected)
    assert band.fill == "toself"
    assert same(trace(figure, "organ ism", 1).y, without_directions().corrected)
    assert_drawable(figure)


def test_what_was_added_stands_beside_what_the_base_explains():
    share = torch.linspace(0.5, 1, len(LAYERS))
    figure = figures.added_by_layer(without_directions(), comparison(), share, names=("harm", "refusal"))
    assert same(trace(figure, "harm, what was added × refusal of the base", 1).y, comparison().corrected)
    assert same(trace(figure, "harm: organism × its base", 1).y, without_directions().corrected)
    assert same(trace(figure, "share that the base explains").y, share)
    assert_drawable(figure)


def test_names_are_text_and_never_markup():
    c = found()
    names = dict(zip(c.names, (EVIL, "b", "c"), strict=True))
    pairs = {
        kind: {(names[a], names[b]): one for (a, b), one in getattr(c, kind).items()}
        for kind in ("same_texts", "disjoint_texts", "added")
    }
    evil = replace(c, **pairs, with_base={names[n]: one for n, one in c.with_base.items()})
    for figure in (
        figures.convergence_map(evil, LAYERS[0]),
        figures.organism_effects({EVIL: measured(0.5, label=EVIL)}),
        figures.models_by_layer({EVIL: comparison()}),
        figures.added_by_layer(comparison(), comparison(), torch.ones(5), names=(EVIL, EVIL)),
    ):
        assert "<script>" not in figure.to_json().replace("\\u003c", "<")
