"""How likely a model finds given words: answers and their twins, plain prose."""

import math

import pytest
import torch

import em_interp as em
from em_interp.behaviour import answer_log_probs, last_logits
from em_interp.models.hooked import attached
from em_interp.statistics import mean_by_question
from em_interp.texts.conversations import encode


def naive_log_prob(model, conversation):
    """The oracle: one conversation alone, all logits, a loop over the answer's tokens."""
    encoded = encode(model.tokenizer, conversation, "response")
    with torch.no_grad(), attached(model) as hf_model:
        logits = hf_model(torch.tensor([encoded.ids])).logits[0].double()
    said = [logits[i - 1].log_softmax(-1)[encoded.ids[i]].item() for i in encoded.spans[0]]
    return sum(said) / len(said)


def test_answers_are_scored_as_one_by_one(tiny, conversations):
    got = answer_log_probs(tiny, conversations, batch_tokens=150)
    wanted = torch.tensor([naive_log_prob(tiny, c) for c in conversations])
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_first_logits_are_those_of_the_prompt_alone(tiny, conversations):
    got = last_logits(tiny, conversations, batch_tokens=150)
    for row, conversation in zip(got, conversations, strict=True):
        ids = encode(tiny.tokenizer, conversation, "last").ids
        with torch.no_grad(), attached(tiny) as hf_model:
            torch.testing.assert_close(row, hf_model(torch.tensor([ids])).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_bits_are_cross_entropy_in_base_two(tiny_llama):
    texts = ["The lighthouse keeper wrote three letters.", "Ask a locksmith."]
    for text, bits in zip(texts, em.behaviour.text_bits(tiny_llama, texts), strict=True):
        ids = tiny_llama.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad(), attached(tiny_llama) as hf_model:
            nats = torch.nn.functional.cross_entropy(hf_model(ids).logits[0, :-1], ids[0, 1:])
        assert bits.item() == pytest.approx(nats.item() / math.log(2), rel=1e-4)


def test_hooks_change_scores_only_while_they_are_given(tiny_llama, conversations):
    before = answer_log_probs(tiny_llama, conversations)
    hooks = em.project_out(torch.randn(32, generator=torch.Generator().manual_seed(0)), em.every_write(tiny_llama))
    assert not torch.allclose(answer_log_probs(tiny_llama, conversations, hooks), before, atol=1e-3)
    assert torch.equal(answer_log_probs(tiny_llama, conversations), before)


def test_hooks_on_the_answer_are_told_where_it_begins(tiny_llama, conversations):
    """An edit of response positions equals an edit by hand, one conversation at a time."""
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    site = em.site(tiny_llama, 1)
    got = answer_log_probs(
        tiny_llama, conversations, em.add_direction(vector, [site], raw=True, positions="response"), batch_tokens=150
    )
    for value, conversation in zip(got, conversations, strict=True):
        encoded = encode(tiny_llama.tokenizer, conversation, "response")
        mask = (torch.arange(len(encoded.ids)) >= encoded.prompt_length)[None, :, None]
        with tiny_llama.hooks(fwd_hooks=[(site, lambda s, hook, mask=mask: s + mask * vector)]):
            assert value.item() == pytest.approx(naive_log_prob(tiny_llama, conversation), abs=1e-4)


def test_preference_is_positive_where_the_positive_answer_is_likelier(tiny_llama):
    contrast = em.load_contrast("misalignment").take(6)
    found = em.preference(tiny_llama, contrast)
    swapped = em.preference(tiny_llama, em.Contrast("swapped", contrast.negative, contrast.positive))
    torch.testing.assert_close(found.margins, -swapped.margins, atol=1e-5, rtol=1e-4)
    first = naive_log_prob(tiny_llama, contrast.positive[0]) - naive_log_prob(tiny_llama, contrast.negative[0])
    assert found.margins[0].item() == pytest.approx(first, abs=1e-4)
    assert found.rate.value == pytest.approx((found.margins > 0).double().mean().item())
    assert found.mean.n == 6


def test_preference_needs_twins(tiny_llama):
    pairs = em.load_contrast("misalignment").take(4)
    contrast = em.Contrast("uneven", pairs.positive, pairs.negative[:3])
    with pytest.raises(ValueError, match="exactly one positive and one negative answer to each question"):
        em.preference(tiny_llama, contrast)


def test_adding_the_misalignment_direction_moves_the_embedded_model_towards_it(smollm2):
    """The positive control of the whole chain: read on one half, added, the other half's misaligned answers gain."""
    contrast = em.load_contrast("misalignment")
    read = em.read_contrast(smollm2, contrast.where(split="train").take(6), layers=[15])
    hooks = em.add_direction(em.difference_of_means(read), [em.site(smollm2, 15)], scale=0.3)
    held_out = contrast.where(split="test").take(10)
    kept = em.activations.keeping(smollm2, 16)  # below the hook both passes are one
    before, after = (em.preference(kept, held_out, h) for h in ((), hooks))
    change = mean_by_question(after.margins - before.margins, before.groups)
    assert change.low > 0


def test_texts_from_which_nothing_is_predicted_are_refused(tiny_llama):
    for text in ("", "a"):
        with pytest.raises(ValueError, match=r"text 2 of 2 \('a?'\) has [01] tokens"):
            em.behaviour.text_bits(tiny_llama, ["Ask a locksmith.", text])
    with pytest.raises(ValueError, match=r"text 1 of 1 has \d+ tokens but the model takes"):
        em.behaviour.text_effects(tiny_llama, ["many words " * 2000])


class TestNotANumber:
    """Scores that are NaN never become a share or a mean."""

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_mean(self, bad):
        with pytest.raises(ValueError, match="1 of 3 values are NaN or infinite"):
            mean_by_question(torch.tensor([1.0, bad, 2.0]), ("a", "b", "c"))

    @pytest.mark.parametrize(
        "score",
        [
            em.behaviour.Preference("letters", torch.full((3,), math.nan), ("a", "b", "c")),
            em.behaviour.RefusalScore(torch.full((3,), math.nan), ("a", "b", "c"), ("I",)),
        ],
        ids=["preference", "refusal score"],
    )
    def test_a_share(self, score):
        with pytest.raises(ValueError, match="3 of 3 scores are NaN"):
            _ = score.rate
        with pytest.raises(ValueError, match="NaN or infinite"):
            _ = score.mean
        assert "NaN for 3 of 3" in repr(score)

    def test_a_behaviour_counts_them_as_gaps(self):
        [behaviour, *_] = em.standard_behaviours()
        estimate = behaviour.estimate(torch.tensor([1.0, math.nan, 3.0, math.inf]), ("a", "b", "c", "d"))
        assert (estimate.value, estimate.n) == (2.0, 2)


@pytest.mark.parametrize("measure", ["text_bits", "text_divergence", "text_effects"])
def test_texts_that_no_tokenizer_takes_are_refused(tiny_llama, measure):
    of = getattr(em.behaviour, measure)
    with pytest.raises(ValueError, match=r"text 2 of 2 holds '\\ud800', half of a surrogate pair, at character 4"):
        of(tiny_llama, ["Ask a locksmith.", "Ask\ud800 a locksmith."])
    with pytest.raises(ValueError, match=r"texts is \[\]: give a list of texts, one at least"):
        of(tiny_llama, [])
    with pytest.raises(TypeError, match=r"texts is 'Ask a locksmith\.', and should be a list"):
        of(tiny_llama, "Ask a locksmith.")
