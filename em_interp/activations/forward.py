"""Forward passes over many conversations, in which nothing is computed twice.

What all conversations begin with, such as a system prompt, is run once: `Prefix`. What several conditions have in
common is run once, too: inside `keeping(model, 15)` the stream that enters block 15 is kept, and every pass in which
hooks and adapters act at block 15 or above goes on from there.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from em_interp.interventions import Intervention, at_prompt_length
from em_interp.models.hooked import PROBE, HookedModel, HookPairs, TransformerLensModel, attached, tolerance
from em_interp.models.sites import user_hooks
from em_interp.texts.conversations import Batch, Encoded, batches

WORTH = 8  # tokens; below this a second pass costs more than what it saves
BUDGET = 2**31  # bytes of kept streams


def default_batch_tokens(hooked: HookedModel) -> int:
    """Large enough to keep the device busy; a CPU gains nothing from more and loses its cache."""
    return 1024 if hooked.device.type == "cpu" else 8192


def keeping(
    model: TransformerLensModel,
    *blocks: int,
    like: "KeptStreams | None" = None,
    budget: int = BUDGET,
) -> HookedModel:
    """The same model, which keeps the stream that enters these blocks and goes on from it where it can.

    A pass goes on from block k where its hooks act at k or above, nobody has put hooks on the blocks below, and their
    weights and adapters are as they were when the stream was kept. That this changes nothing is checked here on a short
    text; where it does, as on an architecture not met before, all passes are whole ones.

    Args:
        model: a `HookedModel` or a bridge.
        *blocks: block numbers from 1; the number of layers stands for what goes into the final norm, so that a pass
            without hooks costs only the unembedding the second time.
        like: what a model has kept (`model.kept`) whose blocks below compute the same, such as another fine-tune of the
            same base with its adapter in the same block. Checked as above.
        budget: bytes, on the model's device; what has no room is computed again.
    """
    hooked = HookedModel.of(model)
    wanted = tuple(sorted(block for block in set(blocks) if 0 < block <= hooked.n_layers))
    if hooked.plain is None or not wanted:
        return replace(hooked, kept=None)
    kept = KeptStreams(wanted, budget, _versions(hooked))
    if like is not None and not _adapters(_below(hooked, max(wanted))):
        kept = replace(like, blocks=wanted, versions=kept.versions)
    return replace(hooked, kept=kept) if _check(replace(hooked, kept=kept)) else replace(hooked, kept=None)


@dataclass(eq=False, repr=False)
class KeptStreams:
    """Streams of earlier passes, without their padding, by the block they enter and the tokens they are of."""

    blocks: tuple[int, ...]
    budget: int
    versions: tuple[int, ...]
    streams: dict[tuple[Any, ...], Float[Tensor, "token d_model"]] = field(default_factory=dict)
    prefixes: dict[tuple[Any, ...], Any] = field(default_factory=dict)  # keys and values of the blocks below
    readings: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def keep(self, key: tuple[Any, ...], stream: Float[Tensor, "token d_model"]) -> None:
        """Keep a stream, if there is room."""
        used = sum(s.numel() * s.element_size() for s in self.streams.values())
        if used + stream.numel() * stream.element_size() <= self.budget:
            self.streams[key] = stream


@dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of the tokens that all conversations share, such as a system prompt; often there are none."""

    ids: tuple[int, ...] = ()
    cache: Any = None

    @property
    def length(self) -> int:
        """How many tokens they are."""
        return len(self.ids)

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
    length = min(
        common_length([e.ids for e in encoded]), *(min(token for span in e.spans for token in span) for e in encoded)
    )
    ours = all(isinstance(function, Intervention) for _, function in hooks)
    passes = _Passes.of(hooked, Prefix(), hooks)
    with attached(hooked, at_prompt_length(list(hooks), length)) as hf_model:
        if length < WORTH or not ours or hf_model is not hooked.plain:
            return Prefix(), list(encoded)
        cache = passes.cache(hf_model, encoded[0].ids[:length])
    if not repeats(cache):
        return Prefix(), list(encoded)
    return Prefix(encoded[0].ids[:length], cache), [_cut(e, length) for e in encoded]


def logits_at_spans(
    model: TransformerLensModel,
    encoded: Sequence[Encoded],
    hooks: HookPairs = (),
    *,
    batch_tokens: int | None = None,
    share: bool = True,
) -> Iterator[tuple[Batch, Sequence[Float[Tensor, "token vocab"]]]]:
    """Batch by batch, the longest first: of each row the logits at the tokens of its span, and nowhere else.

    `share=False` leaves whole what all conversations begin with, so that the batches are the same under any hooks.
    """
    hooked = HookedModel.of(model)
    prefix, encoded = share_prefix(hooked, encoded, hooks) if share else (Prefix(), list(encoded))
    passes = _Passes.of(hooked, prefix, hooks)
    for batch in batches(encoded, batch_tokens or default_batch_tokens(hooked)):
        rows = [row for row, [span] in enumerate(batch.spans) for _ in span]
        tokens = [token for [span] in batch.spans for token in span]
        with attached(hooked, at_prompt_length(list(hooks), batch.prompt_length)) as hf_model:
            logits = passes.logits(hf_model, batch, rows, tokens)
        yield batch, logits.split([len(span) for [span] in batch.spans])


def log_probs_at_spans(
    model: TransformerLensModel,
    encoded: Sequence[Encoded],
    hooks: HookPairs = (),
    *,
    batch_tokens: int | None = None,
) -> Iterator[tuple[Batch, Sequence[Float[Tensor, " token"]]]]:
    """Batch by batch, the longest first: of each row the log-probability (nats) of each token of its span.

    Logits exist for a few hundred tokens at a time, however many a batch has.

    Args:
        model: a `HookedModel` or a bridge.
        encoded: what is scored; a span has no token at the very beginning, which is predicted from nothing.
        hooks: interventions, or any hook functions.
        batch_tokens: tokens at a time; by default as many as the device likes.
    """
    hooked = HookedModel.of(model)
    before = [Encoded(e.ids, e.prompt_length, (tuple(i - 1 for i in e.spans[0]),)) for e in encoded]
    prefix, before = share_prefix(hooked, before, hooks)
    passes = _Passes.of(hooked, prefix, hooks)
    for batch in batches(before, batch_tokens or default_batch_tokens(hooked)):
        places = [(row, token) for row, [span] in enumerate(batch.spans) for token in span]
        rows, tokens = ([place[i] for place in places] for i in (0, 1))
        said = batch.ids[rows, [token + 1 for token in tokens]].to(hooked.device)
        with attached(hooked, at_prompt_length(list(hooks), batch.prompt_length)) as hf_model:
            parts = passes.logits_in_parts(hf_model, batch, rows, tokens)
            log_probs = [  # cross_entropy is four times as slow where each token counts for itself
                logits.float().log_softmax(-1).gather(-1, token[:, None].to(logits.device))[:, 0]
                for logits, token in zip(parts, said.split(_part(hooked)), strict=True)
            ]
        yield batch, torch.cat(log_probs).split([len(span) for [span] in batch.spans])


def through_blocks(  # noqa: PLR0913 - what is run, under what, who reads
    model: TransformerLensModel,
    encoded: Sequence[Encoded],
    readers: HookPairs,
    hooks: HookPairs = (),
    *,
    batch_tokens: int | None = None,
    start: Callable[[Batch], None],
) -> Iterator[Batch]:
    """Batch by batch, run the blocks without the unembedding; `readers` see the stream as `hooks` leave it.

    Blocks above the last one that is read or acted on are not run. `start` hears of each batch before it is.
    """
    hooked = HookedModel.of(model)
    prefix, encoded = share_prefix(hooked, encoded, hooks)
    passes = _Passes.of(hooked, prefix, hooks, readers)
    beyond = _above(hooked, [*hooks, *readers])
    once = nullcontext() if hooks else attached(hooked, readers)  # attaching costs what a thin model's pass costs
    with once as ready:
        for batch in batches(encoded, batch_tokens or default_batch_tokens(hooked)):
            start(batch)
            bound = at_prompt_length(list(hooks), batch.prompt_length)
            with (
                nullcontext(ready) if ready is not None else attached(hooked, [*bound, *readers]) as hf_model,
                _ending_at(_blocks(hooked)[beyond:] if hf_model is hooked.plain else ()),
            ):
                passes.run(hf_model, batch, body=True)
            yield batch


def first_adapted_block(model: TransformerLensModel) -> int:
    """The first block that an adapter is on; what enters it is the same without the adapter. 0 where unknown."""
    hooked = HookedModel.of(model)
    if hooked.plain is None or _adapters(_below(hooked, 0)):
        return 0
    return next((number for number, block in enumerate(_blocks(hooked)) if _adapters([block])), 0)


def free_below(hooked: HookedModel, hooks: Iterable[tuple[str, Any]]) -> int:
    """The largest k such that the stream that enters block k is the same with these hooks and without."""
    entered = hooked.n_layers
    for name, _ in hooks:
        block, place = _place(name)
        entered = min(entered, block + (place == "hook_resid_post"))
    return entered


def _above(hooked: HookedModel, hooks: Iterable[tuple[str, Any]]) -> int:
    """The first block of those above all of these hooks; as many as there are where one lies outside of the blocks."""
    places = [_place(name) for name, _ in hooks]
    return max(block + 1 if place else hooked.n_layers for block, place in places)


class _Ended(Exception):
    """A pass has come as far as it was wanted."""


@contextmanager
def _ending_at(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, a pass ends where the first of these blocks begins; with none it is a whole one."""

    def end(*_: Any) -> None:
        raise _Ended

    handles = [block.register_forward_pre_hook(end) for block in blocks[:1]]
    try:
        yield
    except _Ended:
        pass
    finally:
        for handle in handles:
            handle.remove()


def texts_key(hooked: HookedModel, encoded: Sequence[Encoded], block: int) -> tuple[Any, ...]:
    """What the streams of these conversations below a block belong to: weights, adapters, tokens and spans."""
    content = repr([(e.ids, e.spans) for e in encoded]).encode()
    return (block, _state(hooked, block), hashlib.sha256(content).digest())


def is_untouched_below(hooked: HookedModel, block: int) -> bool:
    """Whether nobody has put hooks of their own on the bridge, or on the modules below a block."""
    on_bridge = bool(user_hooks(hooked.bridge.hook_dict))
    modules = (module for part in _below(hooked, block) for module in part.modules())
    return not on_bridge and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


@dataclass(frozen=True, eq=False)
class _Passes:
    """Passes over the batches of one set of conversations, each from the last kept stream that it can go on from."""

    hooked: HookedModel
    prefix: Prefix
    points: dict[int, tuple[Any, ...]]  # the blocks whose entering stream no hook changes, with their state
    last: int  # the last of them that a pass may go on from: somebody reads what is above

    @classmethod
    def of(cls, hooked: HookedModel, prefix: Prefix, hooks: HookPairs, readers: HookPairs = ()) -> "_Passes":
        if hooked.kept is None:
            return cls(hooked, prefix, {}, 0)
        free = free_below(hooked, hooks)
        points = [block for block in hooked.kept.blocks if block <= free and is_untouched_below(hooked, block)]
        return cls(hooked, prefix, {block: _state(hooked, block) for block in points}, free_below(hooked, readers))

    def logits(
        self, hf_model: Any, batch: Batch, rows: Sequence[int], tokens: Sequence[int]
    ) -> Float[Tensor, "token vocab"]:
        """The logits of these tokens of the rows beside them; on the twin the head is given nothing else."""
        run = partial(self.run, hf_model, batch)
        if hf_model is self.hooked.plain:
            return logits_at(hf_model, run, rows, tokens)
        columns, at = _columns(tokens)
        return run(logits_to_keep=columns.to(self.hooked.device)).logits[rows, at]

    def logits_in_parts(
        self, hf_model: Any, batch: Batch, rows: Sequence[int], tokens: Sequence[int]
    ) -> Iterator[Float[Tensor, "token vocab"]]:
        """The same, `_part` tokens at a time."""
        run, size = partial(self.run, hf_model, batch), _part(self.hooked)
        if hf_model is self.hooked.plain:
            yield from logits_in_parts(hf_model, run, rows, tokens, size)
        else:
            yield from self.logits(hf_model, batch, rows, tokens).split(size)

    def run(self, hf_model: Any, batch: Batch, *, body: bool = False, **kwargs: Any) -> Any:
        """Call the model on a batch, without its head where only the `body` is wanted."""
        call = hf_model.base_model if body else hf_model
        if hf_model is not self.hooked.plain or not self.points:
            return self.prefix.run(call, batch, self.hooked.device, **kwargs)
        with self._from_kept(self._keys(batch.ids, batch.mask), batch.mask.bool().to(self.hooked.device)):
            return self.prefix.run(call, batch, self.hooked.device, **kwargs)

    def cache(self, hf_model: Any, ids: Sequence[int]) -> Any:
        """The keys and values of one text: those of the blocks that are not run again are those of the first time."""
        tokens = torch.tensor([ids])
        call, inputs = hf_model.base_model, {"input_ids": tokens.to(self.hooked.device), "use_cache": True}
        if hf_model is not self.hooked.plain or not self.points:
            return cache_of(call(**inputs))
        keys, kept = self._keys(tokens, torch.ones_like(tokens)), self.hooked.kept.prefixes
        with self._from_kept(keys, torch.ones(1, len(ids), dtype=torch.bool, device=self.hooked.device)) as first:
            cache = cache_of(call(**inputs))
        if not repeats(cache):
            return cache
        if first:
            cache.layers = [*kept[keys[first]], *cache.layers[first:]]
        kept |= {key: cache.layers[:block] for block, key in keys.items() if key not in kept}
        return cache

    def _keys(self, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> dict[int, tuple[Any, ...]]:
        content = hashlib.sha256(ids.numpy().tobytes() + mask.numpy().tobytes()).digest()
        return {b: (b, state, self.prefix.ids, ids.shape, content) for b, state in self.points.items()}

    @contextmanager
    def _from_kept(self, keys: dict[int, tuple[Any, ...]], mask: Bool[Tensor, "batch pos"]) -> Iterator[int]:
        """Inside, a pass goes on from the last kept stream, and what enters later blocks is kept; yields where."""
        streams = self.hooked.kept.streams
        first = max((block for block, key in keys.items() if block <= self.last and key in streams), default=0)
        with (
            resumed(_blocks(self.hooked)[:first], _unpacked(streams[keys[first]], mask)) if first else nullcontext(),
            _recorded(self.hooked, {block: keys[block] for block in keys if block > first}, mask),
        ):
            yield first


@contextmanager
def resumed(blocks: Sequence[Any], stream: Float[Tensor, "batch pos d_model"] | None = None) -> Iterator[None]:
    """Inside, these blocks of a Hugging Face model pass through what comes in, and the last of them gives `stream`."""
    before = [vars(module).get("forward") for module in blocks]
    try:
        for module in blocks:
            module.forward = _pass_through
        if stream is not None and blocks:
            blocks[-1].forward = lambda *_, **__: stream
        yield
    finally:
        for module, forward in zip(blocks, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _pass_through(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def logits_at(
    hf_model: Any, run: Callable[..., Any], rows: Sequence[int], tokens: Sequence[int]
) -> Float[Tensor, "place vocab"]:
    """The logits of these tokens of the rows beside them; the head is given nothing else.

    `run` calls the model on a batch, with `logits_to_keep` beside what else it gives.
    """
    columns, at = _columns(tokens)

    def only_these(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][rows, at][None], *args[1:])

    head = hf_model.get_output_embeddings()
    handle = head.register_forward_pre_hook(only_these)
    try:
        logits = run(logits_to_keep=columns.to(head.weight.device)).logits
    finally:
        handle.remove()
    # A view: what `logits[0]` gives back is as large as the logits, and zero but for one row.
    return logits.squeeze(0) if len(logits) == 1 and logits.shape[1] == len(rows) else logits[rows, at]


def logits_in_parts(
    hf_model: Any, run: Callable[..., Any], rows: Sequence[int], tokens: Sequence[int], size: int
) -> Iterator[Float[Tensor, "place vocab"]]:
    """`logits_at`, `size` places at a time: one pass, in which what enters the head is kept in place of the logits.

    Where something lies between a model's body and its head, each part takes a pass of its own.
    """
    bodies: list[Any] = []
    entering: list[Tensor] = []
    columns, at = _columns(tokens)

    def first_part(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        entering.append(args[0][rows, at])
        return (entering[0][:size][None], *args[1:])

    body, head = hf_model.base_model, hf_model.get_output_embeddings()
    handles = [
        body.register_forward_hook(lambda _, __, output: bodies.append(output)),
        head.register_forward_pre_hook(first_part),
    ]
    try:
        logits = run(logits_to_keep=columns.to(head.weight.device)).logits
    finally:
        for handle in handles:
            handle.remove()
    if len(entering) == 1 and logits.shape[:2] == (1, min(size, len(rows))):
        yield logits.squeeze(0)
    else:  # another head than the one that was asked for
        yield logits_at(hf_model, run, rows[:size], tokens[:size])
    for start in range(size, len(rows), size):
        part = slice(start, start + size)
        found = _through_head(hf_model, bodies[-1], entering[0][part]) if bodies else None
        yield logits_at(hf_model, run, rows[part], tokens[part]) if found is None else found


def _through_head(
    hf_model: Any, output: Any, states: Float[Tensor, "place d_model"]
) -> Float[Tensor, "place vocab"] | None:
    """What a model makes of these last states: its head, and whatever it does to the logits after it.

    None where the head is given something else than what the body gives.
    """
    body, head = hf_model.base_model, hf_model.get_output_embeddings()
    if body is hf_model or not isinstance(output, dict) or "last_hidden_state" not in output:
        return None
    seen: list[bool] = []
    output = copy.copy(output)
    output["last_hidden_state"] = states[None]
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(torch.equal(args[0], states[None])))
    before = vars(body).get("forward")
    body.forward = lambda *_, **__: output
    try:
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        logits = hf_model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
        if before is None:
            del body.forward
        else:
            body.forward = before
    return logits.squeeze(0) if seen == [True] else None


def _part(hooked: HookedModel) -> int:
    """Of how many tokens there are logits at a time."""
    return default_batch_tokens(hooked) // 4


def _columns(tokens: Sequence[int]) -> tuple[Int[Tensor, " column"], list[int]]:
    """The columns of a batch that hold one of these tokens, and for each token the place of its column among them."""
    columns = sorted(set(tokens))
    place = {column: i for i, column in enumerate(columns)}
    return torch.tensor(columns, dtype=torch.long), [place[token] for token in tokens]


@contextmanager
def _recorded(hooked: HookedModel, keys: dict[int, tuple[Any, ...]], mask: Bool[Tensor, "batch pos"]) -> Iterator[None]:
    """Inside, the streams that enter these blocks are kept, before any hook at that place changes them."""
    blocks, handles = _blocks(hooked), []

    def recorder(key: tuple[Any, ...]) -> Callable[..., None]:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                hooked.kept.keep(key, output.detach()[mask])

        return record

    try:
        for block, key in keys.items():
            handles.append(blocks[block - 1].register_forward_hook(recorder(key), prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unpacked(stream: Float[Tensor, "token d_model"], mask: Bool[Tensor, "batch pos"]) -> Tensor:
    whole = stream.new_zeros(*mask.shape, stream.shape[-1])
    whole[mask] = stream
    return whole


@torch.inference_mode()
def _check(hooked: HookedModel) -> bool:
    """Whether passes that go on from kept streams give what whole passes give, on two texts of different length."""
    ids = tuple(hooked.tokenizer(PROBE).input_ids)
    texts = [Encoded(some, 0, (tuple(range(len(some))),)) for some in (ids, ids[: len(ids) // 2])]
    whole = replace(hooked, kept=None)
    [(_, wanted)] = logits_at_spans(whole, texts, share=False, batch_tokens=2**31)
    for block in hooked.kept.blocks:
        alone = replace(hooked, kept=replace(hooked.kept, blocks=(block,)))
        # The first keeps, where nothing was kept before; the second goes on from it.
        [_], [(_, got)] = (list(logits_at_spans(alone, texts, share=False, batch_tokens=2**31)) for _ in range(2))
        new, old = torch.cat(list(got)).float(), torch.cat(list(wanted)).float()
        if not ((new - old).norm() / old.norm()).item() <= tolerance(hooked):
            return False
    return True


def _blocks(hooked: HookedModel) -> list[Any]:
    assert hooked.plain is not None
    return [hooked.plain.get_submodule(block.name) for block in hooked.bridge.blocks]


def _below(hooked: HookedModel, block: int) -> list[nn.Module]:
    """The modules that make the stream which enters a block."""
    plain: Any = hooked.plain
    return [plain.get_input_embeddings(), *_blocks(hooked)[:block]]


def _versions(hooked: HookedModel) -> tuple[int, ...]:
    """How often each weight was written to in place, in the order of the blocks."""
    return tuple(p._version for module in _below(hooked, hooked.n_layers) for p in module.parameters())


def _state(hooked: HookedModel, block: int) -> tuple[Any, ...]:
    """What the weights and adapters below a block are, as far as they may change while streams are kept."""
    below = _below(hooked, block)
    n = sum(1 for module in below for _ in module.parameters())
    changed = tuple(
        (i, now)
        for i, (now, then) in enumerate(zip(_versions(hooked), hooked.kept.versions, strict=True))
        if now != then
    )
    switches = tuple(
        (bool(m.disable_adapters), tuple(m.active_adapters), tuple(getattr(m, "scaling", {}).items()))
        for m in _adapters(below)
    )
    return tuple(c for c in changed if c[0] < n), switches


def _adapters(parts: Iterable[nn.Module]) -> list[Any]:
    """The modules that PEFT has put its adapters on."""
    modules = (module for part in parts for module in part.modules())
    return [module for module in modules if hasattr(module, "disable_adapters") and hasattr(module, "active_adapters")]


def _place(name: str) -> tuple[int, str]:
    """Block and place of a hook name; block 0 for what lies before the blocks, whose hooks reach everything."""
    parts = name.split(".")
    if parts[0] != "blocks" or not parts[1].isdecimal():
        return 0, ""
    return int(parts[1]), ".".join(parts[2:])


def cache_of(output: Any) -> Any:
    """The keys and values that a pass has left; None where a model keeps something else, as Mamba does."""
    return getattr(output, "past_key_values", None)


def repeats(cache: Any) -> bool:
    """Whether a cache holds keys and values only, which can be repeated for many texts that begin alike."""
    from transformers import DynamicCache

    return type(cache) is DynamicCache


def common_length(texts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all texts begin with."""
    first, last = min(texts), max(texts)
    return next((i for i, (x, y) in enumerate(zip(first, last, strict=False)) if x != y), min(len(first), len(last)))


def _cut(encoded: Encoded, length: int) -> Encoded:
    spans = tuple(tuple(token - length for token in span) for span in encoded.spans)
    return Encoded(encoded.ids[length:], encoded.prompt_length - length, spans)
