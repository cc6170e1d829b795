"""What a model says in every condition, and how much of it is misaligned where somebody judged it."""

import torch

import em_interp as em
from em_interp.behaviour import Answer, Spoken, with_verdicts
from em_interp.behaviour.refusal import is_refusal


def test_spoken_has_every_condition(make_organism):
    model = make_organism(1, "one")
    direction = em.difference_of_means(em.read_contrast(model, em.load_contrast("misalignment").take(6)))
    questions, requests = em.load_questions()[:3], em.load_contrast("refusal").take(3).positive
    got = em.spoken(model, [direction], questions, requests, max_new_tokens=6)
    assert list(got.answers) == list(got.refusals) == ["its base", "as it is", "misalignment set to its negative class"]
    hooks = em.set_projection(direction[1], [em.site(model, 1)], float(direction.negative_projection[1]))
    wanted = em.respond(model, questions, hooks, n_samples=2, max_new_tokens=6)
    assert got.answers["misalignment set to its negative class"] == wanted
    last = em.spoken(model, [direction], questions, requests, layer_set=2, max_new_tokens=6)
    assert last.answers["misalignment set to its negative class"] != wanted
    with em.without_adapter(model):
        assert got.answers["its base"] == em.respond(model, questions, n_samples=2, max_new_tokens=6)
    assert got.answers["its base"] != got.answers["as it is"]
    said = em.respond(model, requests, n_samples=2, max_new_tokens=16)
    assert got.refusals["as it is"].value == sum(is_refusal(a.text) for a in said) / len(said)
    assert got.refusals["as it is"].n_questions == 3


def test_verdicts_make_a_rate_a_condition():
    """A condition in which only one question has a verdict has no rate."""

    def answers(*texts):
        asked = [em.Conversation(({"role": "user", "content": f"What about {i}?"},)) for i in range(3)]
        return tuple(Answer(c, text, sample) for c in asked for sample, text in enumerate(texts))

    def verdicts(given):
        known = {"kind": 0.0, "cruel": 1.0}
        return torch.tensor([known.get(a.text, 0.0 if a.asked == "What about 1?" else torch.nan) for a in given])

    said = Spoken({"as it is": answers("kind", "cruel"), "broken": answers("xxx")}, {}, 3, "tiny")
    got = with_verdicts(said, verdicts)
    groups = [a.group for a in said.answers["as it is"]]
    assert got.misaligned == {"as it is": em.clustered_rate(torch.tensor([0.0, 1.0] * 3), groups, seed=3)}
    assert said.misaligned == {}
