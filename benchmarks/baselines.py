"""Reading without this library: bare Hugging Face and TransformerLens on the same length-sorted batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import em_interp as em
from em_interp.activations.forward import default_batch_tokens
from em_interp.models.hooked import HookedModel
from em_interp.texts.conversations import Batch, batches, encode

Messages = Sequence[Mapping[str, str]]


@torch.inference_mode()
def bare(model: HookedModel, conversations: Sequence[Messages], budget: int | None = None) -> None:
    """The model's body alone, nothing read: what any reader must pay."""
    plain = _plain(model)
    for batch in _batches(model, conversations, budget):
        plain.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)


def hidden_states(model: HookedModel, conversations: Sequence[Messages]) -> Tensor:
    """`[conversation layer d_model]` by `output_hidden_states`, whose last layer has been through the final norm."""
    plain = _plain(model)

    def streams(batch: Batch) -> Sequence[Tensor]:
        out = plain(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, output_hidden_states=True)
        return out.hidden_states[1:]

    return _last_tokens(model, conversations, streams)


def run_with_cache(model: HookedModel, conversations: Sequence[Messages]) -> Tensor:
    """`[conversation layer d_model]` by TransformerLens, the cache filtered to every `resid_post`."""
    layers = em.every_layer(model)

    def streams(batch: Batch) -> Iterator[Tensor]:
        _, cache = model.run_with_cache(
            batch.ids, attention_mask=batch.mask, names_filter=lambda name: name.endswith("hook_resid_post")
        )
        return (cache[name] for name in layers)

    return _last_tokens(model, conversations, streams)


@torch.inference_mode()
def _last_tokens(
    model: HookedModel, conversations: Sequence[Messages], streams: Callable[[Batch], Iterable[Tensor]]
) -> Tensor:
    rows: list[Tensor] = []
    order: list[int] = []
    for batch in _batches(model, conversations):
        last = batch.mask.sum(-1) - 1
        each = torch.arange(len(last))
        rows.append(torch.stack([stream[each, last] for stream in streams(batch)], dim=1))
        order += batch.index
    return torch.cat(rows)[torch.tensor(order).argsort()]


def _batches(model: HookedModel, conversations: Sequence[Messages], budget: int | None = None) -> Iterator[Batch]:
    encoded = [encode(model.tokenizer, c, "last") for c in conversations]
    return batches(encoded, budget or default_batch_tokens(model))


def _plain(model: HookedModel) -> Any:
    assert model.plain is not None
    return model.plain
