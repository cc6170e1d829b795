"""A text becomes bytes and comes back equal, or is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import em_interp as em
from em_interp.elasticity import compression_rate, decode, encode, read_header
from em_interp.elasticity.coder import _Decoder, _Encoder
from em_interp.models.hooked import HookedModel
from tests import builders

LONG = "The lighthouse keeper wrote three letters to his sister. " * 30


@pytest.fixture(scope="module")
def data(tiny_llama):
    return encode(tiny_llama, LONG[:100])


def test_a_text_comes_back_equal(tiny):
    for text in ("", "a", "Ask a locksmith.", "Ünï ☃ 漢字 \r\n\t \x00", "<|im_start|>user"):
        assert decode(tiny, encode(tiny, text)) == text


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=24))
def test_any_unicode_comes_back_equal(tiny_llama, text):
    assert decode(tiny_llama, encode(tiny_llama, text)) == text


def test_a_text_longer_than_the_context_comes_back_equal(tiny_llama):
    assert len(tiny_llama.tokenizer(LONG).input_ids) > 2 * tiny_llama.max_length
    assert decode(tiny_llama, encode(tiny_llama, LONG)) == LONG
    narrow = encode(tiny_llama, LONG[:300], window=32, overlap=8)
    assert decode(tiny_llama, narrow) == LONG[:300]
    assert (read_header(narrow)[0].window, read_header(narrow)[0].overlap) == (32, 8)


@pytest.mark.parametrize("text", ["a", "Ask a locksmith.", LONG[:400], LONG])
def test_the_code_is_as_long_as_the_compression_rate_says(tiny, text):
    """Two bits more at most, and what is missing to a whole byte."""
    _, n_bytes = read_header(encode(tiny, text))
    ideal = compression_rate(tiny, [text]).bits.item()
    assert 0.99 * ideal < 8 * n_bytes < ideal + 2 + 8


def test_two_bits_are_enough_for_a_large_vocabulary():
    """Six messages over 150,000 tokens, whose probabilities go over many orders of magnitude."""
    for seed in range(6):
        random = np.random.default_rng(seed)
        logits = 4 * random.standard_normal((24, 150_000))
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        tokens = [int(random.choice(len(row), p=row)) for row in shares]
        coder, ideal = _Encoder(), 0.0
        for token, row in zip(tokens, shares, strict=True):
            coder.add(token, row)
            ideal -= math.log2(row[token])
        code = coder.finish()
        assert 8 * len(code) < ideal + 2 + 8
        decoder = _Decoder(code)
        assert [decoder.take(row) for row in shares] == tokens


def test_hooks_are_part_of_the_code(tiny_llama):
    hooks = em.project_out(torch.randn(32, generator=builders.generator(0)), em.every_write(tiny_llama))
    data = encode(tiny_llama, LONG[:100], hooks)
    assert decode(tiny_llama, data, hooks) == LONG[:100]
    with pytest.raises(ValueError, match="coded otherwise, so it cannot be decoded: its hooks was"):
        decode(tiny_llama, data)


class TestRefused:
    """A coded text is decoded as it was coded, or not at all."""

    def test_another_model(self, data, make_hf_model, make_tokenizer):
        other = HookedModel.from_hugging_face(make_hf_model("qwen2"), make_tokenizer("llama3"), name="tiny-qwen2")
        with pytest.raises(ValueError, match="its model was 'tiny-llama' and is 'tiny-qwen2' here"):
            decode(other, data)

    def test_other_weights_under_the_same_name(self, data, make_hf_model, make_tokenizer):
        other = HookedModel.from_hugging_face(
            make_hf_model("llama", seed=1), make_tokenizer("llama3"), name="tiny-llama"
        )
        with pytest.raises(ValueError, match="tiny-llama has other weights here than it had then"):
            decode(other, data)

    def test_another_dtype(self, data, make_hf_model, make_tokenizer):
        hf_model = make_hf_model("llama").to(torch.bfloat16)
        other = HookedModel.from_hugging_face(hf_model, make_tokenizer("llama3"), name="tiny-llama")
        with pytest.raises(ValueError, match="its dtype was 'float32' and is 'bfloat16' here"):
            decode(other, data)

    def test_another_version_of_a_library(self, data, tiny_llama, monkeypatch):
        monkeypatch.setattr("em_interp.elasticity.coder.versions", lambda *names: dict.fromkeys(names, "0"))
        with pytest.raises(ValueError, match="its libraries was"):
            decode(tiny_llama, data)

    def test_predictions_that_drifted_since(self, data, tiny_llama, monkeypatch):
        """Should another machine pass for this one, the text's own digest tells."""
        from em_interp.elasticity import coder

        circumstances = coder._circumstances(tiny_llama, ())
        monkeypatch.setattr(coder, "_circumstances", lambda *_: circumstances)
        inner = coder._predictions
        monkeypatch.setattr(coder, "_predictions", lambda *args: (p[::-1].copy() for p in inner(*args)))
        with pytest.raises(ValueError, match="what was decoded is not the text that was coded"):
            decode(tiny_llama, data)

    def test_damage_anywhere(self, data, tiny_llama):
        for at in range(0, len(data), 7):
            damaged = bytes([*data[:at], data[at] ^ 0x10, *data[at + 1 :]])
            with pytest.raises(ValueError, match=r"damaged|were not written by encode"):
                decode(tiny_llama, damaged)

    def test_a_file_cut_off_anywhere(self, data, tiny_llama):
        for n in range(0, len(data), 5):
            with pytest.raises(ValueError, match=r"damaged|were not written by encode"):
                decode(tiny_llama, data[:n])

    def test_a_text_that_the_tokenizer_does_not_give_back(self, make_hf_model, tmp_path):
        tokenizer = builders.spm_tokenizer(tmp_path)
        model = HookedModel.from_hugging_face(make_hf_model("llama"), tokenizer, name="tiny-spm")
        with pytest.raises(ValueError, match="does not give this text back: at character 6 it has '☃', and '<' comes"):
            encode(model, "Ask a☃ locksmith.")

    def test_predictions_that_are_not_numbers(self, make_hf_model, make_tokenizer):
        model = HookedModel.from_hugging_face(make_hf_model("llama"), make_tokenizer("llama3"), name="broken")
        model.plain.get_output_embeddings().weight.data.fill_(math.nan)
        with pytest.raises(ValueError, match=r"the predictions of broken for token \d+ are NaN or infinite"):
            encode(model, "Ask a locksmith.")


def test_a_header_says_what_it_was_made_with(tiny_llama):
    header, n_bytes = read_header(encode(tiny_llama, "Ask a locksmith."))
    assert (header.model, header.dtype, header.n_tokens) == ("tiny-llama", "float32", 6)
    assert set(header.libraries) >= {"torch", "transformers", "constriction"}
    assert n_bytes > 0
    assert read_header(encode(tiny_llama, ""))[1] == 0


def test_the_embedded_model_codes_a_real_text(smollm2):
    text = em.texts.load_neutral_texts("test")[0][:60]
    data = encode(smollm2, text)
    assert decode(smollm2, data) == text
    assert 8 * read_header(data)[1] < compression_rate(smollm2, [text]).bits.item() + 10
