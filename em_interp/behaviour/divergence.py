"""How far an intervention moves what a model predicts, word by word, on texts that it should leave alone."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import default_batch_tokens
from em_interp.interventions import at_prompt_length
from em_interp.models.hooked import HookedModel, HookPairs, attached
from em_interp.progress import bar
from em_interp.texts.conversations import Batch, Encoded, batches


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


def _logits(hooked: HookedModel, batch: Batch, hooks: HookPairs) -> Float[Tensor, "batch pos vocab"]:
    with attached(hooked, at_prompt_length(list(hooks), batch.prompt_length)) as hf_model:
        return hf_model(
            input_ids=batch.ids.to(hooked.device), attention_mask=batch.mask.to(hooked.device), use_cache=False
        ).logits
