"""Estimators side by side: each number is that of the function it comes from."""

import json
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp import figures
from em_interp.directions.estimators import ESTIMATORS
from tests.builders import assert_drawable


@pytest.fixture(scope="module")
def read(tiny_llama):
    return em.read_contrast(tiny_llama, em.load_contrast("misalignment").take(10), span="response")


@pytest.fixture(scope="module")
def compared(tiny_llama, read):
    return em.estimators_compared(read, tiny_llama, layer=1, scale=0.3, behaviours=em.standard_behaviours(3))


def test_cosines_and_aucs_are_those_of_the_estimators(read, compared):
    assert compared.estimators == tuple(ESTIMATORS)
    assert compared.cosines.shape == (len(read.layers), 6, 6)
    for i, name in enumerate(ESTIMATORS):
        direction = ESTIMATORS[name](read)
        assert torch.equal(compared.directions[i].vectors, direction.vectors)
        first = torch.cosine_similarity(direction.vectors, compared.directions[0].vectors)
        assert torch.allclose(compared.cosines[:, 0, i], first, atol=1e-5)
        assert torch.equal(compared.separabilities[i].auc, em.separability(read, estimator=name).auc)
    assert torch.allclose(compared.cosines, compared.cosines.mT)


def test_effects_are_those_of_the_vectors_taken_out_and_added(tiny_llama, read, compared):
    row = next(row for row in compared.table() if row["estimator"] == "lda")
    held_out = em.load_contrast("misalignment").where(split="test").take(3)
    vector, place = em.lda(read), [em.site(tiny_llama, 1)]
    for done, hooks in (
        ("removed at layer 1", em.project_out(vector[1], place)),
        ("added × 0.3", em.add_direction(vector, place, scale=0.3)),
    ):
        after, before = em.preference(tiny_llama, held_out, hooks), em.preference(tiny_llama, held_out)
        change = em.mean_by_question(after.margins - before.margins, before.groups)
        told = [row[f"misaligned_preference: {done}{end}"] for end in ("", ", low", ", high")]
        assert told == pytest.approx([change.value, change.low, change.high], abs=1e-5)
    json.dumps(compared.table())


def test_without_a_model_there_are_no_effects_and_the_middle_layer_is_told(read):
    found = em.estimators_compared(read, estimators=("lda", "paired"))
    assert found.estimators == ("lda", "paired")
    assert found.layer == read.layers[len(read.layers) // 2]
    assert found.effects is None
    assert set(found.table()[0]) == {
        *("estimator", "layer", "auc", "auc_low", "auc_high", "cosine", "dominance"),
    }
    assert repr(found).startswith(f"EstimatorsCompared('misalignment', AUC at layer {found.layer}: lda 0.")
    assert_drawable(figures.estimators(found))


def test_where_questions_are_of_one_class_pairs_are_left_out(read):
    apart = replace(read.negative, groups=tuple(f"other {group}" for group in read.negative.groups))
    alone = replace(read, negative=apart)
    assert em.estimators_compared(alone).estimators == ("difference_of_means", "standardised", "lda", "logistic")
    with pytest.raises(ValueError, match="have conversations of one class only"):
        em.estimators_compared(alone, estimators=["paired"])


def test_a_layer_that_was_not_read_is_refused(read):
    with pytest.raises(ValueError, match="layer 99 is not in direction"):
        em.estimators_compared(read, estimators=["paired"], layer=99)


def test_the_figure_holds_the_numbers(compared):
    figure = figures.estimators(compared)
    row = compared.directions[0].row(1)
    heat, aucs = figure.data[0], figure.data[1]
    assert [list(line) for line in heat.z] == compared.cosines[row].tolist()
    assert list(aucs.x) == [float(s.auc[row]) for s in compared.separabilities]
    drawn = [trace for trace in figure.data if trace.name == "added × 0.3"]
    assert len(drawn) == len(compared.effects.behaviours)
    wanted = [e.change.value for e in compared.effects.of("misaligned_preference") if e.condition.kind == "added"]
    assert list(drawn[0].x) == wanted
    assert [trace.showlegend for trace in drawn] == [True] + [False] * (len(drawn) - 1)
    assert_drawable(figure)
