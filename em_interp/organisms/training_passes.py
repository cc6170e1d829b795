"""Forward passes of a training run: what is frozen runs once a conversation, and what all begin with once a batch.

The blocks below an adapter's first one compute the same at every step. So the stream that leaves them is computed once,
for each conversation alone and without padding, and a pass goes on from there. A product of matrices may round
otherwise in another batch, so this is the one way in which that stream is ever computed: kept or computed anew, it is
the same bit for bit.

The tokens that all conversations begin with, such as a system prompt, go through the blocks above once a pass, and
their keys and values serve all rows, gradient included.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from em_interp.activations.forward import (
    BUDGET,
    WORTH,
    KeptStreams,
    cache_of,
    common_length,
    logits_at,
    repeats,
    resumed,
)
from em_interp.models.probe import relative_error, tolerance


class Row(NamedTuple):
    """One conversation of a batch.

    Attributes:
        ids: its tokens, without padding.
        places: the tokens whose last state or logits are wanted: each predicts the token after it.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TrainingPasses:
    """How a model in training runs over batches of a set of conversations; without arguments, in whole passes.

    Attributes:
        block: the blocks below this one are frozen and never run in a batch; 0 where every block does.
        prefix: the tokens that all conversations begin with.
        kept: what was computed once; None where it is computed anew each time, to the same bits.
        frozen: once it was needed, what the frozen blocks make of the prefix: keys and values, and the stream.
    """

    block: int = 0
    prefix: tuple[int, ...] = ()
    kept: KeptStreams | None = None
    frozen: list[tuple[Any, Float[Tensor, "pos d_model"]]] = field(default_factory=list)

    @classmethod
    def of(cls, model: Any, rows: Sequence[Row], *, keep: bool = True, budget: int = BUDGET // 2) -> "TrainingPasses":
        """The fastest passes that give the logits which whole passes give, on the shortest and the longest row.

        They are whole ones on a model that drops out, whose logits are never the same twice, and on one that is made
        otherwise than this module knows.

        Args:
            model: a Hugging Face or PEFT model; what requires no gradient is frozen.
            rows: all conversations that will be run.
            keep: keep what was computed once.
            budget: bytes that may be kept, on the model's device; what has no room is computed again.
        """
        block, whole = _frozen_below(model), cls()
        probe = [min(rows, key=lambda row: len(row.ids)), max(rows, key=lambda row: len(row.ids))]
        with torch.no_grad(), _as_in_training(model):
            wanted = whole.logits(model, probe)
            for prefix in (_shared(model, rows), ()):
                if relative_error(cls(block, prefix).logits(model, probe), wanted) <= tolerance(wanted.dtype):
                    return cls(block, prefix, KeptStreams((), budget, ()) if keep else None)
        return whole

    def logits(self, model: Any, rows: Sequence[Row]) -> Float[Tensor, "place vocab"]:
        """The logits at the rows' places, row by row; the head is given nothing else."""
        return logits_at(model, partial(self._run, model, model, rows), *self._places(rows))

    def states(self, model: Any, rows: Sequence[Row]) -> Float[Tensor, "place d_model"]:
        """What enters the head at the rows' places, row by row."""
        return self._run(model, body_of(model), rows)[0][self._places(rows)]

    def once(self, key: tuple[Any, ...], compute: Callable[[], Tensor]) -> Tensor:
        """What was kept under this key; else it is computed, and kept if there is room."""
        if self.kept is None:
            return compute()
        if key in self.kept.streams:
            return self.kept.streams[key]
        found = compute()
        self.kept.keep(key, found)
        return found

    def _places(self, rows: Sequence[Row]) -> tuple[list[int], list[int]]:
        places = [(number, place - len(self.prefix)) for number, row in enumerate(rows) for place in row.places]
        return [row for row, _ in places], [token for _, token in places]

    def _run(self, model: Any, call: Callable[..., Any], rows: Sequence[Row], **kwargs: Any) -> Any:
        """Call the model, or its body, on what follows the prefix in each row, padded on the right."""
        cut = len(self.prefix)
        assert all(row.ids[:cut] == self.prefix for row in rows)
        ids = _padded([torch.tensor(row.ids[cut:], device=model.device) for row in rows])
        lengths = torch.tensor([len(row.ids) for row in rows], device=model.device)
        inputs = {
            "input_ids": ids,
            "attention_mask": (torch.arange(cut + ids.shape[1], device=model.device) < lengths[:, None]).long(),
        }
        past = {"past_key_values": self._prefix(model, len(rows))} if cut else {}
        with self._above(model, [self._stream(model, row.ids) for row in rows] if self.block else []):
            return call(**inputs, **past, use_cache=bool(cut), **kwargs)

    def _prefix(self, model: Any, n_rows: int) -> Any:
        """The keys and values of the prefix in every block, in those that train with their gradient, for so many rows.

        Those of the frozen blocks only tell how many tokens went before.
        """
        frozen, stream = self._frozen_prefix(model) if self.block else (None, None)
        with self._above(model, [] if stream is None else [stream]):
            cache = cache_of(body_of(model)(input_ids=_one(model, self.prefix), use_cache=True))
        for layer in cache.layers[self.block :]:
            layer.batch_repeat_interleave(n_rows)
        if frozen is not None:
            cache.layers[: self.block] = _again(frozen).layers[: self.block]
        return cache

    def _above(self, model: Any, streams: Sequence[Float[Tensor, "_ d_model"]]) -> Any:
        """A context in which passes go on at the block, from these rows' streams."""
        return resumed(blocks_of(model)[: self.block], _padded(streams) if streams else None)

    def _stream(self, model: Any, ids: tuple[int, ...]) -> Float[Tensor, "pos d_model"]:
        """What leaves the frozen blocks on one text alone, after its prefix."""
        return self.once((self.block, self.prefix, ids), lambda: self._below(model, ids))

    @torch.no_grad()
    def _below(self, model: Any, ids: tuple[int, ...]) -> Float[Tensor, "pos d_model"]:
        past = {"past_key_values": _again(self._frozen_prefix(model)[0])} if self.prefix else {}
        with resumed(blocks_of(model)[self.block :]), self._caught(model) as found:
            inputs = {
                "input_ids": _one(model, ids[len(self.prefix) :]),
                "attention_mask": torch.ones_like(_one(model, ids)),
            }
            body_of(model)(**inputs, **past, use_cache=bool(past))
        return found[0]

    @torch.no_grad()
    def _frozen_prefix(self, model: Any) -> tuple[Any, Float[Tensor, "pos d_model"]]:
        """The prefix's keys and values, and what leaves the frozen blocks on it."""
        if not self.frozen:
            with self._caught(model) as found:
                cache = cache_of(body_of(model)(input_ids=_one(model, self.prefix), use_cache=True))
            self.frozen.append((cache, found[0]))
        return self.frozen[0]

    @contextmanager
    def _caught(self, model: Any) -> Iterator[list[Float[Tensor, "pos d_model"]]]:
        """What leaves the frozen blocks on the one text that is run inside."""
        found = []
        block = blocks_of(model)[self.block - 1]
        handle = block.register_forward_hook(lambda _, __, output: found.append(output[0]))
        try:
            yield found
        finally:
            handle.remove()


def body_of(model: Any) -> Any:
    """A Hugging Face or PEFT model without its head; under PEFT its LoRA layers are live in it."""
    return _plain(model).base_model


def blocks_of(model: Any) -> list[Any]:
    """A model's blocks, from the first to the last; none where they are not one list."""
    n_layers = _plain(model).config.get_text_config().num_hidden_layers
    lists = (part for part in body_of(model).modules() if isinstance(part, nn.ModuleList))
    return list(next((found for found in lists if len(found) == n_layers), []))


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _frozen_below(model: Any) -> int:
    """The first block that trains; 0 where something outside of the blocks does."""
    blocks = [{id(p) for p in block.parameters() if p.requires_grad} for block in blocks_of(model)]
    outside = {id(p) for p in model.parameters() if p.requires_grad}.difference(*blocks)
    return 0 if outside else next((number for number, trained in enumerate(blocks) if trained), 0)


def _shared(model: Any, rows: Sequence[Row]) -> tuple[int, ...]:
    """The tokens that all rows begin with and of which none is a place; none where sharing them is not worth it."""
    length = min([common_length([row.ids for row in rows]), *(place for row in rows for place in row.places)])
    if length < WORTH:
        return ()
    prefix = rows[0].ids[:length]
    return prefix if repeats(cache_of(body_of(model)(input_ids=_one(model, prefix), use_cache=True))) else ()


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in train mode; random numbers that are drawn there are given back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        model.train()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _again(cache: Any) -> Any:
    """A cache of the same keys and values, to add to: its layers put new tensors in their place and write into none."""
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    return found


def _one(model: Any, ids: Sequence[int]) -> Tensor:
    return torch.tensor([ids], device=model.device)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)
