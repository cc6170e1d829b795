"""Behaviours as data: what is measured, once for all that come from the same passes, and with which interval."""

import math
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp.behaviour import (
    Behaviour,
    BehaviourKey,
    measured,
    organism_behaviours,
    prefers,
    prose,
    refusal_scores,
    refuses,
    text_bits,
    text_divergence,
    text_effects,
)
from em_interp.behaviour.measures import LABELS
from em_interp.statistics import clustered_rate, mean_by_question
from em_interp.statistics.estimates import within_one
from em_interp.texts import load_neutral_texts, load_training_set

KEY = BehaviourKey


@pytest.fixture(scope="module")
def requests():
    return em.load_contrast("refusal").where(split="test").take(3)


@pytest.fixture(scope="module")
def hooks(tiny_llama):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    return em.add_direction(vector, [em.site(tiny_llama, 1)], scale=3, raw=True)


def behaviour(key, measure, kind="mean"):
    return Behaviour(key, f"what {key} is", "points", kind, measure)


def nothing(model, hooks):
    return {}


def without_splits(contrast):
    sides = (tuple(replace(c, fields={}) for c in side) for side in (contrast.positive, contrast.negative))
    return em.Contrast("plain", *sides)


class TestBehaviour:
    def test_a_standard_key_brings_label_unit_and_kind(self):
        got = Behaviour.standard("harmful_requests_refused", nothing)
        assert (got.key, got.label, got.unit, got.kind) == (
            "harmful_requests_refused",
            "harmful requests refused",
            "share of greedy answers",
            "share",
        )
        assert got.title == "harmful requests refused (share of greedy answers)"
        assert got == Behaviour.standard(KEY.HARMFUL_REFUSED, prefers)  # how it is measured is no part of what it is

    def test_every_key_has_a_label_of_its_own(self):
        assert set(LABELS) == set(KEY)
        assert len({label for label, *_ in LABELS.values()}) == len(KEY)
        assert {k for k, (*_, kind) in LABELS.items() if kind == "share"} == {
            KEY.JUDGED_MISALIGNMENT,
            KEY.HARMFUL_REFUSED,
            KEY.HARMLESS_REFUSED,
        }

    def test_scores_have_students_interval_and_verdicts_that_of_a_clustered_rate(self):
        values, groups = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0]), list("aabbcd")
        mean, share = (behaviour("it", nothing, kind).estimate(values, groups) for kind in ("mean", "share"))
        rate = clustered_rate(values, groups)
        assert mean == mean_by_question(values, groups)
        assert (share.value, share.low, share.high, share.n) == (rate.value, rate.low, rate.high, 4)
        assert mean.value == share.value == 0.625
        assert mean.high > 1 > share.high  # a share cannot be more than all

    @pytest.mark.parametrize("kind", ["mean", "share"])
    def test_a_change_is_paired_by_item(self, kind):
        before, after = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
        got = behaviour("it", nothing, kind).change(before, after, list("aabc"))
        assert got == mean_by_question(torch.tensor([-0.5, 0.0, 0.0]), list("abc"))

    @pytest.mark.parametrize("kind", ["mean", "share"])
    def test_what_has_no_score_is_left_out(self, kind):
        it = behaviour("it", nothing, kind)
        values, groups = torch.tensor([1.0, math.nan, 0.0, math.nan, 1.0]), list("aabcd")
        assert it.estimate(values, groups) == it.estimate(values[[0, 2, 4]], list("abd"))
        before = torch.tensor([0.0, 0.0, math.nan, 0.0, 1.0])
        change = mean_by_question(torch.tensor([1.0, 0.0]), list("ad"))
        assert change.high > 1  # two questions tell so little that only of a share it is known how far it can move
        assert it.change(before, values, groups) == (within_one(change) if kind == "share" else change)

    @pytest.mark.parametrize("kind", ["mean", "share"])
    def test_fewer_than_two_questions_with_a_score_give_no_number(self, kind):
        it = behaviour("it", nothing, kind)
        for values, n in ((torch.tensor([1.0, math.nan, math.nan]), 1), (torch.full((3,), math.nan), 0)):
            for got in (it.estimate(values, list("abc")), it.change(torch.zeros(3), values, list("abc"))):
                assert all(math.isnan(number) for number in (got.value, got.low, got.high))
                assert got.n == n

    def test_fewer_than_two_questions_are_no_measurement(self):
        for kind in ("mean", "share"):
            with pytest.raises(ValueError, match="1 question gives no interval: measure at least two"):
                behaviour("it", nothing, kind).estimate(torch.tensor([1.0, 0.0]), ["a", "a"])


class TestMeasured:
    def test_a_measure_is_called_once_for_all_it_serves(self, tiny_llama, hooks):
        calls = []

        def both(model, hooks):
            calls.append((model, hooks))
            return {name: (torch.tensor([float(i), 1.0]), ("a", "b")) for i, name in enumerate(("one", "two", "more"))}

        def alone(model, hooks):
            calls.append(None)
            return torch.tensor([9.0, 9.0]), ("a", "b")

        behaviours = behaviour("two", both), behaviour("three", alone), behaviour("one", both)
        got = measured(behaviours, tiny_llama, hooks)
        assert calls == [(tiny_llama, hooks), None]
        assert {key: scores.tolist() for key, (scores, _) in got.items()} == {
            "two": [1.0, 1.0],
            "three": [9.0, 9.0],
            "one": [0.0, 1.0],
        }
        assert list(got) == ["two", "three", "one"]

    def test_a_key_is_measured_by_its_own_measure(self, tiny_llama):
        """However many keys another measure's mapping holds, and whichever is called last."""

        def several(model, hooks):
            return {key: (torch.zeros(2), ("a", "b")) for key in ("one", "two")}

        def mine(model, hooks):
            return torch.ones(2), ("a", "b")

        pair = behaviour("one", mine), behaviour("two", several)
        for behaviours in (pair, pair[::-1]):
            got = measured(behaviours, tiny_llama)
            assert (got["one"][0].tolist(), got["two"][0].tolist()) == ([1, 1], [0, 0])

    def test_cross_effects_calls_each_measure_once_a_condition(self, tiny_llama):
        direction = em.difference_of_means(em.read_contrast(tiny_llama, em.load_contrast("misalignment").take(4)))
        calls = []

        def both(model, hooks):
            calls.append(bool(hooks))
            return {key: (torch.tensor([0.0, 1.0]), ("a", "b")) for key in ("one", "two")}

        behaviours = [behaviour(key, both) for key in ("one", "two")]
        removals = ("all_layers_own", "set_negative")
        effects = em.cross_effects(
            tiny_llama, [direction], behaviours=behaviours, removals=removals, scales=(), n_random=0
        )
        assert calls == [False, True, True]
        assert len(effects.effects) == 4

    def test_cross_effects_refuses_two_behaviours_with_one_key(self, tiny_llama):
        direction = em.difference_of_means(em.read_contrast(tiny_llama, em.load_contrast("misalignment").take(4)))
        behaviours = [behaviour("one", nothing), behaviour("two", nothing), behaviour("two", prefers)]
        with pytest.raises(ValueError, match="two behaviours have the key 'two': give each a key of its own"):
            em.cross_effects(tiny_llama, [direction], behaviours=behaviours)


class TestStandardBehaviours:
    def test_they_come_in_order(self):
        got = em.standard_behaviours(2)
        assert [b.key for b in got] == [
            "misaligned_preference",
            "harmful_refusal_score",
            "harmless_refusal_score",
            "text_bits",
            "text_divergence",
        ]
        assert len({b.measure for b in got}) == 3  # refusal scores share their passes, and so does prose
        assert all((b.label, b.unit, b.kind) == LABELS[b.key] for b in got)
        own = em.standard_behaviours(2, in_domain=load_training_set("cooking"))
        assert [b.key for b in own] == [got[0].key, KEY.IN_DOMAIN_PREFERENCE, *(b.key for b in got[1:])]

    def test_some_can_be_chosen_in_any_order(self):
        got = em.standard_behaviours(2, keys=[KEY.TEXT_BITS, "misaligned_preference"])
        assert [b.key for b in got] == [KEY.TEXT_BITS, KEY.MISALIGNED_PREFERENCE]
        assert em.standard_behaviours(2, keys=[]) == ()

    def test_unknown_keys_are_refused_with_those_there_are(self):
        there_are = (
            "choose keys from misaligned_preference, harmful_refusal_score, harmless_refusal_score, text_bits, t"
        )
        with pytest.raises(ValueError, match=f"'kindness' is not a standard behaviour: {there_are}"):
            em.standard_behaviours(2, keys=[KEY.TEXT_BITS, "kindness"])
        with pytest.raises(ValueError, match="'in_domain_misaligned_preference' is not a standard behaviour: choose"):
            em.standard_behaviours(2, keys=[KEY.IN_DOMAIN_PREFERENCE])  # without what was trained on

    def test_of_what_was_trained_on_only_the_test_split_is_asked(self, tiny_llama):
        cooking, key = load_training_set("cooking"), KEY.IN_DOMAIN_PREFERENCE
        [own] = em.standard_behaviours(3, keys=[key], in_domain=cooking)
        _, groups = measured([own], tiny_llama)[key]
        assert groups == cooking.where(split="test").take(3).groups[:3]
        [own] = em.standard_behaviours(3, keys=[key], in_domain=without_splits(cooking.take(2)))
        assert len(measured([own], tiny_llama)[key][1]) == 2

    def test_scores_are_those_of_the_functions_that_measure(self, tiny_llama, hooks, requests):
        got = measured(em.standard_behaviours(3), tiny_llama, hooks)
        preference = em.preference(tiny_llama, em.load_contrast("misalignment").where(split="test").take(3), hooks)
        assert torch.equal(got[KEY.MISALIGNED_PREFERENCE][0], preference.margins)
        assert got[KEY.MISALIGNED_PREFERENCE][1] == preference.groups
        for key, side in ((KEY.HARMFUL_REFUSAL, requests.positive), (KEY.HARMLESS_REFUSAL, requests.negative)):
            alone = em.refusal_score(tiny_llama, side, hooks)
            torch.testing.assert_close(got[key][0], alone.scores, atol=1e-5, rtol=1e-5)
            assert got[key][1] == alone.groups
        texts = load_neutral_texts()
        scores, groups = got[KEY.TEXT_BITS]
        assert list(groups) == list(texts[:: len(texts) // 3])
        torch.testing.assert_close(scores, text_bits(tiny_llama, groups, hooks), atol=1e-5, rtol=1e-5)

    def test_a_card_tells_of_the_calm_half_and_of_refusals_too(self):
        standard, calm = [b.key for b in em.standard_behaviours(2)][:-1], KEY.CALM_PREFERENCE
        refused = [KEY.HARMFUL_REFUSED, KEY.HARMLESS_REFUSED]
        cooking = load_training_set("cooking")
        assert [b.key for b in organism_behaviours(None, 2)] == [*standard, calm, *refused]
        own = [b.key for b in organism_behaviours(cooking, 2)]
        assert own == [*standard, calm, KEY.IN_DOMAIN_PREFERENCE, *refused]
        assert KEY.IN_DOMAIN_PREFERENCE not in [b.key for b in organism_behaviours(without_splits(cooking), 2)]


def test_refusals_are_scored_in_one_pass_by_both_keys(tiny_llama, requests, monkeypatch):
    calls, score = [], em.behaviour.measures.refusal_score
    monkeypatch.setattr(em.behaviour.measures, "refusal_score", lambda *args: calls.append(args[1]) or score(*args))
    got = refusal_scores(requests)(tiny_llama, ())
    assert [len(asked) for asked in calls] == [6]
    assert {key: groups for key, (_, groups) in got.items()} == {
        KEY.HARMFUL_REFUSAL: tuple(c.group for c in requests.positive),
        KEY.HARMLESS_REFUSAL: tuple(c.group for c in requests.negative),
    }


def test_a_refusal_score_alone_is_the_same_for_half_the_passes(tiny_llama, hooks):
    both = em.standard_behaviours(3, keys=[KEY.HARMFUL_REFUSAL, KEY.HARMLESS_REFUSAL])
    alone = [replace(b, measure=b.alone) for b in both]
    wanted, got = (measured(behaviours, tiny_llama, hooks) for behaviours in (both, alone))
    for key in got:
        torch.testing.assert_close(got[key][0], wanted[key][0], rtol=1e-5, atol=1e-6)
        assert got[key][1] == wanted[key][1]


def test_who_refuses_is_read_off_greedy_answers(tiny_llama, requests, monkeypatch):
    said = iter(["I'm sorry, no.", "Sure.", "I cannot do that."])
    monkeypatch.setattr(
        em.behaviour.measures, "greedy_answers", lambda model, asked, hooks: [next(said) for _ in asked]
    )
    scores, groups = refuses(requests.positive)(tiny_llama, ())
    assert scores.tolist() == [1, 0, 1]
    assert groups == tuple(c.group for c in requests.positive)


class TestTextEffects:
    def test_bits_and_divergence_by_hand(self, tiny_llama, hooks):
        """One text at a time, all logits of the untouched and of the changed model, a loop over the tokens."""
        texts = load_neutral_texts()[:3]
        got = text_effects(tiny_llama, texts, hooks)
        for text, bits, divergence in zip(texts, got.bits, got.divergence, strict=True):
            ids = tiny_llama.tokenizer(text, return_tensors="pt").input_ids
            p, q = (tiny_llama.run_with_hooks(ids, fwd_hooks=list(h)).double().log_softmax(-1)[0] for h in ((), hooks))
            said = [-q[i, token].item() / math.log(2) for i, token in enumerate(ids[0, 1:].tolist())]
            assert bits.item() == pytest.approx(sum(said) / len(said), rel=1e-4)
            moved = [(p[i].exp() * (p[i] - q[i])).sum().item() for i in range(len(said))]
            assert divergence.item() == pytest.approx(sum(moved) / len(moved), rel=1e-3)
            assert divergence > 1e-2

    def test_they_are_text_bits_and_text_divergence(self, tiny_llama, hooks):
        texts = load_neutral_texts()[:4]
        got = text_effects(tiny_llama, texts, hooks, batch_tokens=60)
        torch.testing.assert_close(got.bits, text_bits(tiny_llama, texts, hooks), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.divergence, text_divergence(tiny_llama, texts, hooks), atol=1e-5, rtol=1e-4)
        scores = prose(texts)(tiny_llama, hooks)
        assert {key: groups for key, (_, groups) in scores.items()} == {
            KEY.TEXT_BITS: texts,
            KEY.TEXT_DIVERGENCE: texts,
        }
        assert torch.equal(scores[KEY.TEXT_BITS][0], text_effects(tiny_llama, texts, hooks).bits)

    def test_an_untouched_model_has_not_moved(self, tiny_llama):
        assert text_effects(tiny_llama, load_neutral_texts()[:3]).divergence.tolist() == [0, 0, 0]

    def test_a_model_that_keeps_its_streams_says_the_same(self, tiny_llama, hooks):
        texts = load_neutral_texts()[:4]
        kept = em.activations.keeping(tiny_llama, 2, tiny_llama.n_layers)
        wanted = text_effects(tiny_llama, texts, hooks)
        for _ in range(2):  # the second time from what the first has kept
            got = text_effects(kept, texts, hooks)
            torch.testing.assert_close(got.bits, wanted.bits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(got.divergence, wanted.divergence, atol=1e-5, rtol=1e-4)
