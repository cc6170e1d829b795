"""How well a model compresses texts, against what is known of texts and models."""

import math

import pytest
import torch

import em_interp as em
from em_interp.behaviour.windows import Windows, code_lengths
from em_interp.elasticity import baseline_rates, compression_rate
from em_interp.models.hooked import HookedModel, attached
from em_interp.texts.conversations import encode
from tests import builders

TEXTS = ["Ask a locksmith.", "Ünï ☃ 漢字\n\n\tz", "The lighthouse keeper wrote three letters. " * 12]


@pytest.fixture(scope="module")
def uniform(make_hf_model, make_tokenizer):
    """A model that finds every token equally likely."""
    model = HookedModel.from_hugging_face(make_hf_model("qwen2"), make_tokenizer("chatml"), name="uniform")
    model.plain.get_output_embeddings().weight.data.zero_()
    return model


def test_a_uniform_model_needs_the_vocabulary_in_bits_for_each_token(uniform):
    rate = compression_rate(uniform, TEXTS)
    vocabulary = math.log2(uniform.plain.get_output_embeddings().weight.shape[0])
    n_tokens = torch.tensor([len(uniform.tokenizer(t, add_special_tokens=False).input_ids) for t in TEXTS])
    n_bytes = torch.tensor([len(t.encode()) for t in TEXTS])
    torch.testing.assert_close(rate.rates("token"), torch.full((3,), vocabulary).double(), atol=0, rtol=1e-6)
    torch.testing.assert_close(rate.rates("byte"), (n_tokens * vocabulary / n_bytes).double(), atol=0, rtol=1e-5)
    torch.testing.assert_close(rate.rates("character") * torch.tensor([len(t) for t in TEXTS]), rate.bits.double())
    assert rate.total() == pytest.approx((n_tokens.sum() * vocabulary / n_bytes.sum()).item())


def test_the_mean_has_an_interval_over_texts(tiny_llama):
    rate = compression_rate(tiny_llama, TEXTS)
    assert rate.mean("character").value == pytest.approx(rate.rates("character").mean().item())
    assert rate.mean().n == 3
    assert repr(rate) == f"CompressionRate(tiny-llama: 3 texts, {rate.total():.3f} bits a byte in all)"


def test_a_language_without_order_costs_its_entropy(make_hf_model, make_tokenizer):
    """A tiny model trained on independent tokens comes within 5 % of the entropy of their source, from above."""
    shares = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    entropy = -(shares * shares.log2()).sum().item()
    generator = builders.generator(0)
    drawn = 10 + torch.multinomial(shares, 64 * 66, replacement=True, generator=generator).view(66, 64)
    hf_model = make_hf_model("llama").train()
    optimiser = torch.optim.Adam(hf_model.parameters(), 1e-2)
    for step in range(60):
        rows = drawn[step % 8 * 8 :][:8]
        hf_model(input_ids=rows, labels=rows).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model = HookedModel.from_hugging_face(hf_model.eval(), make_tokenizer("llama3"), name="trained")
    bits = code_lengths(model, [tuple(row.tolist()) for row in drawn[64:]], Windows.of(model))
    rate = torch.cat([b[1:] for b in bits]).mean().item()
    said = -torch.cat([shares[row[1:] - 10].log2() for row in drawn[64:]]).mean().item()
    assert said - 0.02 < rate < 1.05 * entropy


class TestConversations:
    def test_their_answers_are_measured_apart(self, tiny, conversations):
        rate = compression_rate(tiny, conversations)
        answers = rate.answers
        for i, conversation in enumerate(conversations):
            encoded = encode(tiny.template, conversation, "response")
            with torch.no_grad(), attached(tiny) as hf_model:
                logits = hf_model(torch.tensor([encoded.ids])).logits[0, :-1].log_softmax(-1)
            bits = -logits.gather(-1, torch.tensor(encoded.ids[1:])[:, None])[:, 0] / math.log(2)
            first = math.log2(tiny.plain.get_output_embeddings().weight.shape[0])
            assert rate.bits[i].item() == pytest.approx(bits.sum().item() + first, rel=1e-4)
            said = bits[[place - 1 for place in encoded.spans[0]]].sum().item()
            assert answers.bits[i].item() == pytest.approx(said, rel=1e-4)
            assert answers.n_bytes[i] == len(conversation[-1]["content"].encode())
            assert answers.n_tokens[i] == len(encoded.spans[0])
        assert rate.mean().n == len({c[0]["content"] for c in conversations})
        assert "in the answers" in repr(rate)

    def test_they_are_those_that_answers_are_scored_by(self, tiny_llama, conversations):
        answers = compression_rate(tiny_llama, conversations).answers
        nats = em.behaviour.answer_log_probs(tiny_llama, conversations)
        torch.testing.assert_close(answers.rates("token").float(), -nats / math.log(2), atol=1e-5, rtol=1e-5)

    def test_and_plain_texts_are_not_measured_together(self, tiny_llama, conversations):
        with pytest.raises(ValueError, match="1 of 2 are plain texts and the others conversations: measure the two"):
            compression_rate(tiny_llama, ["Ask a locksmith.", conversations[0]])


class TestBadInput:
    def test_an_empty_text(self, tiny_llama):
        with pytest.raises(ValueError, match="text 2 of 2 is empty, and has no rate: leave it out"):
            compression_rate(tiny_llama, ["Ask a locksmith.", ""])

    def test_an_unknown_unit(self, tiny_llama):
        with pytest.raises(ValueError, match="unit 'word' is unknown: choose one of byte, token, character"):
            compression_rate(tiny_llama, TEXTS).mean("word")

    def test_programs_have_no_tokens(self):
        with pytest.raises(ValueError, match="zlib has no tokens: ask for bits a byte or a character"):
            baseline_rates(TEXTS)[0].rates("token")

    def test_nothing_to_compress(self, tiny_llama):
        for of in (lambda: compression_rate(tiny_llama, []), lambda: baseline_rates([]), lambda: baseline_rates([""])):
            with pytest.raises(ValueError, match="give a list of texts"):
                of()


class TestBaselines:
    def test_each_program_gives_the_text_back_from_so_many_bytes(self):
        """The shortest that each can do: no header, and its strongest setting."""
        import zlib

        names = [rate.compressor for rate in baseline_rates(TEXTS)]
        assert names == ["zlib", "lzma", "zstandard"]
        deflated = zlib.compress(TEXTS[2].encode(), 9)
        assert baseline_rates(TEXTS)[0].bits[2] == 8 * (len(deflated) - 6)

    def test_together_texts_share_what_they_have_in_common(self):
        alone, together = (baseline_rates([TEXTS[2]] * 5, together=t) for t in (False, True))
        for one, all_five in zip(alone, together, strict=True):
            assert all_five.total() < one.total() / 3


def test_the_embedded_model_beats_every_program_on_plain_prose(smollm2):
    texts = em.texts.load_neutral_texts("test")[:12]
    rate = compression_rate(smollm2, texts)
    assert rate.mean().high < min(program.mean().low for program in baseline_rates(texts))
    assert rate.total() < min(program.total() for program in baseline_rates(texts, together=True))
