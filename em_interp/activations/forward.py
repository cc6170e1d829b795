"""Forward passes over many conversations, in which the tokens that all of them begin with are run only once."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from em_interp.interventions import Intervention, at_prompt_length
from em_interp.models.hooked import HookedModel, HookPairs, attached
from em_interp.texts.conversations import Batch, Encoded

# Below this a second pass costs more than the tokens it saves.
_WORTH = 8


@dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of the tokens that all conversations share, such as a system prompt; often there are none."""

    length: int = 0
    cache: Any = None

    def run(self, call: Callable[..., Any], batch: Batch, device: torch.device, **kwargs: Any) -> Any:
        """Call a Hugging Face model on a batch from which the shared tokens were cut off."""
        mask = torch.nn.functional.pad(batch.mask, (self.length, 0), value=1).to(device)
        past = copy.deepcopy(self.cache)
        if past is not None:
            past.batch_repeat_interleave(len(batch.index))
        ids = batch.ids.to(device)
        return call(input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=past is not None, **kwargs)


def share_prefix(
    hooked: HookedModel, encoded: Sequence[Encoded], hooks: HookPairs = ()
) -> tuple[Prefix, list[Encoded]]:
    """Run what all conversations begin with, under the same hooks, and cut it off them.

    Nothing is shared where a token of it is to be read, where a hook may depend on where in the stream it is, or where
    the model keeps something else than keys and values.
    """
    length = min(_common_length(encoded), *(min(token for span in e.spans for token in span) for e in encoded))
    ours = all(isinstance(function, Intervention) for _, function in hooks)
    with attached(hooked, at_prompt_length(list(hooks), length)) as hf_model:
        if length < _WORTH or not ours or hf_model is not hooked.plain:
            return Prefix(), list(encoded)
        ids = torch.tensor([encoded[0].ids[:length]], device=hooked.device)
        cache = hf_model.base_model(input_ids=ids, use_cache=True).past_key_values
    if not _repeats(cache):
        return Prefix(), list(encoded)
    return Prefix(length, cache), [_cut(e, length) for e in encoded]


def _repeats(cache: Any) -> bool:
    from transformers import DynamicCache

    return type(cache) is DynamicCache


def _common_length(encoded: Sequence[Encoded]) -> int:
    first, last = min(e.ids for e in encoded), max(e.ids for e in encoded)
    return next((i for i, (x, y) in enumerate(zip(first, last, strict=False)) if x != y), min(len(first), len(last)))


def _cut(encoded: Encoded, length: int) -> Encoded:
    spans = tuple(tuple(token - length for token in span) for span in encoded.spans)
    return Encoded(encoded.ids[length:], encoded.prompt_length - length, spans)
