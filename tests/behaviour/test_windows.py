"""Windows that slide along a text, and the bits that a model needs for it."""

import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import em_interp as em
from em_interp.behaviour.windows import Windows, code_lengths, plain_tokens, prefix_of
from em_interp.models.hooked import HookedModel, attached
from tests import builders

LONG = "The lighthouse keeper wrote three letters to his sister. " * 12


@pytest.fixture(scope="module")
def with_bos(make_hf_model, make_tokenizer):
    """A tiny Llama whose tokenizer puts a BOS before every text."""
    tokenizer = make_tokenizer("llama3")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return HookedModel.from_hugging_face(make_hf_model("llama"), tokenizer, name="tiny-bos")


def forward_bits(model, ids):
    """Bits of all tokens but the first, by one plain forward pass."""
    with torch.no_grad(), attached(model) as hf_model:
        logits = hf_model(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none") / math.log(2)


def test_windows_predict_every_token_once_and_read_the_overlap_again():
    windows, ids = Windows(10, 4), tuple(range(100, 127))
    cut = windows.over(ids)
    assert [token for begin, end, _ in cut for token in range(begin, end)] == list(range(1, 27))
    for begin, end, window in cut:
        assert len(window.ids) <= 10
        assert [window.ids[i] for i in window.spans[0]] == list(ids[begin:end])
        first = window.spans[0][0]
        assert first == (1 if begin == 1 else 4)
        assert window.ids == ids[begin - first : end]


def test_every_window_begins_with_what_the_tokenizer_puts_before_a_text():
    ids = tuple(range(100, 127))
    cut = Windows(10, 4, prefix=(7,)).over(ids)
    assert [token for begin, end, _ in cut for token in range(begin, end)] == list(range(27))
    for begin, end, window in cut:
        assert window.ids[0] == 7
        assert [window.ids[i] for i in window.spans[0]] == list(ids[begin:end])
        assert len(window.ids) <= 10


def test_the_prefix_is_what_the_tokenizer_adds(tiny_llama, with_bos):
    assert prefix_of(tiny_llama) == ()
    assert prefix_of(with_bos) == (1,)


def test_a_text_that_fits_has_the_bits_of_a_plain_forward(tiny):
    texts = ["Ask a locksmith.", LONG[:200]]
    tokens = plain_tokens(tiny, texts)
    for ids, bits in zip(tokens, code_lengths(tiny, tokens, Windows.of(tiny)), strict=True):
        assert bits[0] == 0
        torch.testing.assert_close(bits[1:], forward_bits(tiny, ids), atol=1e-4, rtol=1e-4)


def test_with_a_bos_the_first_token_is_predicted_too(with_bos):
    [ids] = plain_tokens(with_bos, ["Ask a locksmith."])
    [bits] = code_lengths(with_bos, [ids], Windows.of(with_bos))
    torch.testing.assert_close(bits, forward_bits(with_bos, (1, *ids)), atol=1e-4, rtol=1e-4)


def test_a_longer_text_is_read_in_windows(tiny_llama, with_bos):
    """Each token is predicted from its window alone, as a pass over that window by hand does."""
    for model in (tiny_llama, with_bos):
        [ids] = plain_tokens(model, [LONG])
        windows = Windows.of(model, 64, 16)
        [bits] = code_lengths(model, [ids], windows, batch_tokens=200)
        for begin, end, window in windows.over(ids):
            wanted = forward_bits(model, window.ids)[[i - 1 for i in window.spans[0]]]
            torch.testing.assert_close(bits[begin:end], wanted, atol=1e-4, rtol=1e-4)


def test_logits_exist_for_a_few_tokens_at_a_time(tiny_llama, monkeypatch):
    """However long the batch; and the numbers are the same."""
    tokens = plain_tokens(tiny_llama, [LONG, LONG[:300]])
    [*wanted] = code_lengths(tiny_llama, tokens, Windows.of(tiny_llama))
    monkeypatch.setattr("em_interp.activations.forward.default_batch_tokens", lambda _: 64)
    sizes = []
    head = tiny_llama.plain.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, logits: sizes.append(logits.shape[:-1].numel()))
    got = code_lengths(tiny_llama, tokens, Windows.of(tiny_llama), batch_tokens=2000)
    handle.remove()
    assert max(sizes) == 16
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


class TestBadWindows:
    @pytest.mark.parametrize(
        ("width", "overlap", "error"),
        [
            (10_000, None, "window is 10000 tokens but the model takes 256: choose a smaller one"),
            (1, None, "window is 1 tokens: give 2 at least"),
            (64, 64, "overlap is 64 tokens: give 1 to 63, fewer than a window has"),
            (64, 0, "overlap is 0 tokens: give 1 to 63"),
        ],
    )
    def test_they_are_refused(self, tiny_llama, width, overlap, error):
        with pytest.raises(ValueError, match=error):
            Windows.of(tiny_llama, width, overlap)


class TestTextBits:
    """`text_bits` is the same quantity by the same code."""

    def test_it_is_the_mean_over_the_tokens_that_are_predicted(self, tiny_llama, with_bos):
        texts = ["Ask a locksmith.", LONG]
        for model, given in ((tiny_llama, 1), (with_bos, 0)):
            lengths = code_lengths(model, plain_tokens(model, texts), Windows.of(model))
            wanted = torch.stack([bits[given:].mean() for bits in lengths])
            torch.testing.assert_close(em.text_bits(model, texts), wanted, atol=1e-5, rtol=1e-5)


def test_more_overlap_predicts_a_real_text_no_worse(smollm2):
    """More context helps a model that has learned to use it."""
    text = " ".join(em.texts.load_neutral_texts("test")[:6])
    [ids] = plain_tokens(smollm2, [text])
    totals = [code_lengths(smollm2, [ids], Windows.of(smollm2, 64, overlap))[0].sum() for overlap in (8, 24, 48)]
    assert totals[0] > totals[1] > totals[2]
    assert totals[2] > code_lengths(smollm2, [ids], Windows.of(smollm2))[0].sum()


def test_hooks_change_the_bits(tiny_llama):
    hooks = em.project_out(torch.randn(32, generator=builders.generator(0)), em.every_write(tiny_llama))
    tokens = plain_tokens(tiny_llama, [LONG])
    [before], [after] = (code_lengths(tiny_llama, tokens, Windows.of(tiny_llama), h) for h in ((), hooks))
    assert not torch.allclose(before, after, atol=1e-3)
