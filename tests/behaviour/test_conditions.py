"""What is done to a model, and what it says in every condition, misaligned or not where somebody judged it."""

import inspect

import pytest
import torch

import em_interp as em
from em_interp.behaviour import Answer, AnswersByCondition, Condition, added, removed, subtracted, with_verdicts
from em_interp.behaviour.refusal import is_refusal


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return em.difference_of_means(em.read_contrast(tiny_llama, em.load_contrast("misalignment").take(6)))


class TestCondition:
    def test_code_has_a_key_and_people_a_label(self, tiny_llama, direction):
        got = [
            Condition("base"),
            Condition("plain"),
            *(removed(tiny_llama, direction, how, 1) for how in em.behaviour.conditions.REMOVALS),
            subtracted(tiny_llama, direction, 1, random=True),
            added(tiny_llama, direction, 1, 0.2),
            added(tiny_llama, direction, 1, -1, without="refusal"),
        ]
        assert {c.key: c.label for c in got} == {
            "base": "its base",
            "plain": "as it is",
            "misalignment/all_layers_own": "misalignment removed at every layer",
            "misalignment/one_layer/1": "misalignment removed at layer 1",
            "misalignment/all_layers_same/1": "misalignment removed at every layer (the vector of layer 1)",
            "misalignment/set_negative/1": "misalignment set to its negative class at layer 1",
            "misalignment/subtracted/1": "misalignment subtracted at layer 1",
            "misalignment/added/1/0.2": "misalignment added × 0.2",
            "misalignment/without refusal/added/1/-1.0": "misalignment without refusal added × -1",
        }
        assert (got[-1].subject, got[-1].done) == ("misalignment without refusal", "added × -1")
        assert [c.random for c in got] == [False] * 6 + [True, False, False]

    def test_layer_0_is_a_layer_like_any_other(self, tiny_llama, direction):
        keys = [removed(tiny_llama, direction, how, 0).key for how in em.behaviour.conditions.REMOVALS]
        assert keys == [
            "misalignment/all_layers_own",
            *(f"misalignment/{how}/0" for how in ("one_layer", "all_layers_same", "set_negative")),
        ]

    def test_a_removal_that_does_not_exist(self, tiny_llama, direction):
        unchecked = inspect.unwrap(removed)
        with pytest.raises(
            ValueError, match="removal 'every' is unknown: choose from all_layers_own, one_layer, all_l"
        ):
            unchecked(tiny_llama, direction, "every", 1)


def test_answers_in_every_condition(make_organism):
    model = make_organism(1, "one")
    direction = em.difference_of_means(em.read_contrast(model, em.load_contrast("misalignment").take(6)))
    questions, requests = em.load_questions()[:3], em.load_contrast("refusal").take(3).positive
    got = em.behaviour.answers_by_condition(model, [direction], questions, requests, max_new_tokens=6)
    negative = "misalignment/set_negative/1"
    assert list(got.answers) == list(got.refusals) == [c.key for c in got.conditions] == ["base", "plain", negative]
    labels = ["its base", "as it is", "misalignment set to its negative class at layer 1"]
    assert got.labelled(got.answers) == dict(zip(labels, got.answers.values(), strict=True))
    assert list(got.labelled({negative: 1, "plain": 2})) == labels[:0:-1][::-1]
    hooks = em.set_projection(direction[1], [em.site(model, 1)], float(direction.negative_projection[1]))
    wanted = em.respond(model, questions, hooks, n_samples=2, max_new_tokens=6)
    assert got.answers[negative] == wanted
    last = em.behaviour.answers_by_condition(model, [direction], questions, requests, layer=2, max_new_tokens=6)
    assert last.answers["misalignment/set_negative/2"] != wanted
    with em.without_adapter(model):
        assert got.answers["base"] == em.respond(model, questions, n_samples=2, max_new_tokens=6)
    assert got.answers["base"] != got.answers["plain"]
    said = em.respond(model, requests, n_samples=2, max_new_tokens=16)
    assert got.refusals["plain"].value == sum(is_refusal(a.text) for a in said) / len(said)
    assert got.refusals["plain"].n_questions == 3
    assert repr(got) == "AnswersByCondition(6 answers in each of 3 conditions, tiny-llama+one#0)"


def test_verdicts_make_a_rate_a_condition():
    """A condition in which only one question has a verdict has no rate."""

    def answers(*texts):
        asked = [em.texts.Conversation(({"role": "user", "content": f"What about {i}?"},)) for i in range(3)]
        return tuple(Answer(c, text, sample) for c in asked for sample, text in enumerate(texts))

    def verdicts(given):
        known = {"kind": 0.0, "cruel": 1.0}
        return torch.tensor([known.get(a.text, 0.0 if a.asked == "What about 1?" else torch.nan) for a in given])

    conditions = Condition("plain"), Condition("added", "noise", 1, 9.0)
    given = {"plain": answers("kind", "cruel"), "noise/added/1/9.0": answers("xxx")}
    said = AnswersByCondition(conditions, given, {}, 3, "tiny")
    got = with_verdicts(said, verdicts)
    groups = [a.group for a in said.answers["plain"]]
    assert got.misaligned == {"plain": em.clustered_rate(torch.tensor([0.0, 1.0] * 3), groups, seed=3)}
    assert got.labelled(got.misaligned) == {"as it is": got.misaligned["plain"]}
    assert said.misaligned == {}
