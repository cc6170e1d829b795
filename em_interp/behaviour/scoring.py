"""How likely a model finds given words: one pass, with only the logits that are needed."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.forward import share_prefix
from em_interp.activations.reading import Messages, default_batch_tokens
from em_interp.interventions import at_prompt_length
from em_interp.models.hooked import HookedModel, HookPairs, attached
from em_interp.progress import bar
from em_interp.texts.conversations import Encoded, batches, encode


def answer_log_probs(
    model: Any, conversations: Sequence[Messages], hooks: HookPairs = (), *, batch_tokens: int | None = None
) -> Float[Tensor, " conversation"]:
    """Log-probability (nats) a token of each conversation's last answer, given all before it."""
    hooked = HookedModel.of(model)
    encoded = [encode(hooked.tokenizer, c, "response", max_length=hooked.max_length) for c in conversations]
    return _mean_log_probs(hooked, encoded, hooks, batch_tokens)


def text_bits(
    model: Any, texts: Sequence[str], hooks: HookPairs = (), *, batch_tokens: int | None = None
) -> Float[Tensor, " text"]:
    """Bits a token that the model needs for each plain text, its first token given: lower is better predicted."""
    hooked = HookedModel.of(model)
    ids = [tuple(hooked.tokenizer(text).input_ids) for text in texts]
    encoded = [Encoded(text, 0, (tuple(range(1, len(text))),)) for text in ids]
    return -_mean_log_probs(hooked, encoded, hooks, batch_tokens) / math.log(2)


@torch.inference_mode()
def last_logits(
    model: Any, conversations: Sequence[Messages], hooks: HookPairs = (), *, batch_tokens: int | None = None
) -> Float[Tensor, "conversation vocab"]:
    """The logits of the first token the model would say to each conversation, float32 on the CPU."""
    hooked = HookedModel.of(model)
    encoded = [encode(hooked.tokenizer, c, "last", max_length=hooked.max_length) for c in conversations]
    rows: list[Tensor] = [torch.empty(0)] * len(encoded)
    for batch, logits, kept in _logits(hooked, encoded, hooks, batch_tokens):
        for i, row, spans in zip(batch.index, logits, batch.spans, strict=True):
            rows[i] = row[kept.index(spans[0][0])].float().cpu()
    return torch.stack(rows)


@torch.inference_mode()
def _mean_log_probs(
    hooked: HookedModel, encoded: Sequence[Encoded], hooks: HookPairs, batch_tokens: int | None
) -> Float[Tensor, " conversation"]:
    means = torch.empty(len(encoded))
    predicting = [Encoded(e.ids, e.prompt_length, (tuple(i - 1 for i in e.spans[0]),)) for e in encoded]
    for batch, logits, kept in _logits(hooked, predicting, hooks, batch_tokens):
        for row, (i, spans) in enumerate(zip(batch.index, batch.spans, strict=True)):
            said = batch.ids[row, [t + 1 for t in spans[0]]].to(logits.device)
            # Row by row: the float32 copy of one answer's logits is small where that of a batch is gigabytes.
            log_probs = logits[row, [kept.index(t) for t in spans[0]]].float().log_softmax(-1)
            means[i] = log_probs.gather(-1, said[:, None]).double().mean()
    return means


def _logits(hooked: HookedModel, encoded: Sequence[Encoded], hooks: HookPairs, batch_tokens: int | None) -> Any:
    """Batch by batch: the logits at every position that some row's span names, and those positions."""
    prefix, encoded = share_prefix(hooked, encoded, hooks)
    with bar(total=len(encoded), desc="scoring", unit="conversation") as progress:
        for batch in batches(encoded, batch_tokens or default_batch_tokens(hooked)):
            kept = sorted({token for spans in batch.spans for token in spans[0]})
            at = torch.tensor(kept, device=hooked.device)
            with attached(hooked, at_prompt_length(list(hooks), batch.prompt_length)) as hf_model:
                logits = prefix.run(hf_model, batch, hooked.device, logits_to_keep=at).logits
            yield batch, logits, kept
            progress.update(len(batch.index))


@torch.inference_mode()
def text_divergence(
    model: Any, texts: Sequence[str], hooks: HookPairs = (), *, batch_tokens: int | None = None
) -> Float[Tensor, " text"]:
    """KL divergence (nats a token) of the changed model's predictions from the untouched one's: Σ p log(p / p′).

    Each token of a plain text is predicted from those before it; 0 is no change, and there is no upper end.
    """
    hooked = HookedModel.of(model)
    ids = [tuple(hooked.tokenizer(text).input_ids) for text in texts]
    encoded = [Encoded(text, 0, (tuple(range(len(text) - 1)),)) for text in ids]
    found = torch.zeros(len(encoded))
    with bar(total=len(encoded), desc="divergence", unit="text") as progress:
        for batch in batches(encoded, batch_tokens or default_batch_tokens(hooked)):
            before, after = (_logits(hooked, batch, h) for h in ((), hooks))
            for row, (i, spans) in enumerate(zip(batch.index, batch.spans, strict=True)):
                # Row by row: the float32 copies of one text's logits are small where those of a batch are gigabytes.
                log_p, log_q = (x[row, : len(spans[0])].float().log_softmax(-1) for x in (before, after))
                found[i] = (log_p.exp() * (log_p - log_q)).sum(-1).double().mean()
            progress.update(len(batch.index))
    return found
