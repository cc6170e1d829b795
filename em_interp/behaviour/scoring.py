"""How likely a model finds given words: one pass, with only the logits that are needed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_interp.activations.forward import log_probs_at_spans, logits_at_spans
from em_interp.activations.reading import Messages
from em_interp.behaviour.windows import Windows, code_lengths, plain_tokens, prefix_of
from em_interp.checks import door
from em_interp.models.hooked import HookedModel, HookPairs, TransformerLensModel
from em_interp.progress import bar
from em_interp.texts.conversations import Batch, Encoded, encode


@door
def answer_log_probs(
    model: TransformerLensModel,
    conversations: Sequence[Messages],
    hooks: HookPairs = (),
    *,
    batch_tokens: int | None = None,
) -> Float[Tensor, " conversation"]:
    """Log-probability (nats) a token of each conversation's last answer, given all before it."""
    hooked = HookedModel.of(model)
    encoded = [encode(hooked.template, c, "response", max_length=hooked.max_length) for c in conversations]
    return _mean_log_probs(hooked, encoded, hooks, batch_tokens)


@door
def text_bits(
    model: TransformerLensModel, texts: Sequence[str], hooks: HookPairs = (), *, batch_tokens: int | None = None
) -> Float[Tensor, " text"]:
    """Bits a token that the model needs for each plain text, its first token given: lower is better predicted.

    A text longer than the model takes is scored in windows that overlap by half, as in `compression_rate`.

    Raises:
        ValueError: a text of fewer than two tokens.
    """
    hooked = HookedModel.of(model)
    windows = Windows.of(hooked)
    tokens = plain_tokens(hooked, texts)
    n_before = len(windows.prefix)
    for number, (text, ids) in enumerate(zip(texts, tokens, strict=True), 1):
        _check_predicted(hooked, text, n_before + len(ids), f"text {number} of {len(texts)}")
    bits = code_lengths(hooked, tokens, windows, hooks, batch_tokens=batch_tokens)
    return torch.stack([b.double().sum() / (len(b) - (not n_before)) for b in bits]).float()


@door
def text_divergence(
    model: TransformerLensModel, texts: Sequence[str], hooks: HookPairs = (), *, batch_tokens: int | None = None
) -> Float[Tensor, " text"]:
    """KL divergence (nats a token) of the changed model's predictions from the untouched one's: Σ p log(p / p′).

    Each token of a plain text is predicted from those before it; 0 is no change, and there is no upper end.
    """
    return text_effects(model, texts, hooks, batch_tokens=batch_tokens).divergence


class TextEffects(NamedTuple):
    """What hooks do to a model's predictions of plain texts: `text_bits` under them, and `text_divergence`."""

    bits: Float[Tensor, " text"]
    divergence: Float[Tensor, " text"]


@torch.inference_mode()
@door
def text_effects(
    model: TransformerLensModel, texts: Sequence[str], hooks: HookPairs = (), *, batch_tokens: int | None = None
) -> TextEffects:
    """Bits a token of plain texts, and how far the predictions moved, from the same passes.

    The untouched model is run beside the changed one. Where the model keeps what goes into its final norm
    (`em_interp.activations.keeping`), that costs the unembedding alone.
    """
    hooked = HookedModel.of(model)
    encoded = _before(_plain_texts(hooked, texts))
    bits, divergence = torch.zeros(len(texts)), torch.zeros(len(texts))
    untouched, changed = (
        logits_at_spans(hooked, encoded, h, batch_tokens=batch_tokens, share=False) for h in ((), hooks)
    )
    with bar(total=len(encoded), desc="texts", unit="text") as progress:
        for (batch, old), (_, new) in zip(untouched, changed, strict=True):
            # Row by row: the float32 copies of one text's logits are small where those of a batch are gigabytes.
            for i, said, p, q in zip(batch.index, _said(batch), old, new, strict=True):
                log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
                bits[i] = -log_q.gather(-1, said.to(log_q.device)[:, None]).double().mean() / math.log(2)
                divergence[i] = (log_p.exp() * (log_p - log_q)).sum(-1).double().mean()
            progress.update(len(batch.index))
    return TextEffects(bits, divergence)


@torch.inference_mode()
def last_logits(
    model: TransformerLensModel,
    conversations: Sequence[Messages],
    hooks: HookPairs = (),
    *,
    batch_tokens: int | None = None,
) -> Float[Tensor, "conversation vocab"]:
    """The logits of the first token the model would say to each conversation, float32 on the CPU."""
    hooked = HookedModel.of(model)
    encoded = [encode(hooked.template, c, "last", max_length=hooked.max_length) for c in conversations]
    if not encoded:
        raise ValueError("there are no conversations to score")
    rows: list[Tensor] = [torch.empty(0)] * len(encoded)
    for batch, logits in logits_at_spans(hooked, encoded, hooks, batch_tokens=batch_tokens):
        for i, row in zip(batch.index, logits, strict=True):
            rows[i] = row[0].float().cpu()
    return torch.stack(rows)


@torch.inference_mode()
def _mean_log_probs(
    hooked: HookedModel, encoded: Sequence[Encoded], hooks: HookPairs, batch_tokens: int | None
) -> Float[Tensor, " conversation"]:
    means = torch.empty(len(encoded))
    passes = log_probs_at_spans(hooked, encoded, hooks, batch_tokens=batch_tokens)
    with bar(total=len(encoded), desc="scoring", unit="conversation") as progress:
        for batch, log_probs in passes:
            for i, row in zip(batch.index, log_probs, strict=True):
                means[i] = row.double().mean()
            progress.update(len(batch.index))
    return means


def _said(batch: Batch) -> list[Int[Tensor, " token"]]:
    """Of each row, the tokens that those of its span predict."""
    return [batch.ids[row, [token + 1 for token in span]] for row, [span] in enumerate(batch.spans)]


def _before(encoded: Sequence[Encoded]) -> list[Encoded]:
    """The tokens before those of the span, which are what predicts them."""
    return [Encoded(e.ids, e.prompt_length, (tuple(i - 1 for i in e.spans[0]),)) for e in encoded]


def _plain_texts(hooked: HookedModel, texts: Sequence[str]) -> list[Encoded]:
    """Texts without a chat template, every token but the first in the span.

    Raises:
        ValueError: what `plain_tokens` refuses, a text of fewer than two tokens, or of more than the model takes.
    """
    prefix = prefix_of(hooked)
    encoded = []
    for number, (text, tokens) in enumerate(zip(texts, plain_tokens(hooked, texts), strict=True), 1):
        ids = (*prefix, *tokens)
        _check_predicted(hooked, text, len(ids), f"text {number} of {len(texts)}")
        if hooked.max_length is not None and len(ids) > hooked.max_length:
            raise ValueError(
                f"text {number} of {len(texts)} has {len(ids)} tokens but the model takes {hooked.max_length}: "
                f"shorten it or leave it out"
            )
        encoded.append(Encoded(ids, 0, (tuple(range(1, len(ids))),)))
    return encoded


def _check_predicted(hooked: HookedModel, text: str, n_tokens: int, which: str) -> None:
    if not text or n_tokens < 2:
        raise ValueError(
            f"{which} ({text!r}) has {n_tokens} tokens for {hooked.name}, and the first token of a text is predicted "
            f"from nothing: give texts of two tokens or more"
        )
