"""Read the residual stream of a model on chosen tokens: the only reader of activations."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from em_interp.activations.forward import free_below, is_untouched_below, texts_key, through_blocks
from em_interp.checks import check_own, door
from em_interp.files import read_object, write_tensors
from em_interp.models.hooked import HookedModel, HookPairs, TransformerLensModel
from em_interp.models.sites import SITES
from em_interp.progress import bar
from em_interp.texts.contrasts import Contrast
from em_interp.texts.conversations import Batch, Conversation, Encoded, Span, encode

# Elements of span tokens that are reduced together, 4 MiB in float64.
_AT_ONCE = 2**19

_TENSORS = ("values", "norms", "n_tokens")

Messages = Conversation | Sequence[Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class Activations:
    """What the residual stream held on the span of each conversation: one row a conversation, all layers.

    Attributes:
        values: mean over the span's tokens, float32 on the CPU (summed in float64).
        norms: mean over the span's tokens of the token's norm: how long a residual vector is there.
        n_tokens: how many tokens the span has.
        groups: the question each row answers, the unit of every resampling.
        layers: the layer axis by number.
        site: `resid_post`, `resid_pre`, `resid_mid`, `attn_out` or `mlp_out`.
        span: the tokens read: `response`, `turn`, `last` or `post_instruction`.
        model: which model, revision and adapter were read.
        positions: 0 everywhere, or for `post_instruction`, which has one row a token, −1 for the last one, −2 …
    """

    values: Float[Tensor, "conversation layer d_model"]
    norms: Float[Tensor, "conversation layer"]
    n_tokens: Int[Tensor, " conversation"]
    groups: tuple[str, ...]
    layers: tuple[int, ...]
    site: str
    span: str
    model: str
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse NaN and infinity where they arise, with the layer and the conversation."""
        check_own(self)
        if not self.positions:
            object.__setattr__(self, "positions", (0,) * len(self.groups))
        if len(self.groups) != self.values.shape[0] or len(self.layers) != self.values.shape[1]:
            raise ValueError(
                f"activations of shape {tuple(self.values.shape)} came with {len(self.groups)} groups and "
                f"{len(self.layers)} layers: give one group a conversation and one number a layer"
            )
        beside = {"norms": self.norms.shape[:1], "n_tokens": self.n_tokens.shape, "positions": (len(self.positions),)}
        for name, shape in beside.items():
            if tuple(shape) != (len(self.groups),):
                raise ValueError(f"{name} has {shape[0]} rows and there are {len(self.groups)} conversations")
        finite = torch.isfinite(self.values.sum(-1))  # of the sum, as a mask of every value would double the memory
        if not finite.all():
            row, layer = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"activations are NaN or infinite at layer {self.layers[layer]} in conversation {row} "
                f"({self.groups[row]!r}), {int((~finite).sum())} times in all: the model's numbers overflow there "
                f"(a float16 model? load it with dtype=torch.bfloat16 or float32)"
            )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.groups)

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        shape = " × ".join(map(str, self.values.shape))
        return f"Activations({shape}, {self.site}, span {self.span!r}, {self.model})"

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.values.shape[-1]

    def rows(self, keep: Sequence[int]) -> "Activations":
        """These rows only, in this order."""
        index = torch.as_tensor(list(keep), dtype=torch.long)
        return replace(
            self,
            values=self.values[index],
            norms=self.norms[index],
            n_tokens=self.n_tokens[index],
            groups=tuple(self.groups[i] for i in keep),
            positions=tuple(self.positions[i] for i in keep),
        )

    def at(self, position: int) -> "Activations":
        """The rows of one template token of span `post_instruction`: −1 the last one, −2 the one before it."""
        if position not in self.positions:
            raise ValueError(f"no row is at position {position}: choose one of {sorted(set(self.positions))}")
        return self.rows([i for i, p in enumerate(self.positions) if p == position])

    def save(self, path: str | Path) -> Path:
        """Write the activations as safetensors, with everything but the tensors as JSON metadata."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TENSORS}
        return write_tensors(Path(path), "activations", {name: getattr(self, name) for name in _TENSORS}, rest)

    @classmethod
    def load(cls, path: str | Path) -> "Activations":
        """Read activations back, equal to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, is not a safetensors file, or holds something else than activations; a
                field is missing or of another kind.
        """
        return read_object(path, "activations", cls)


@dataclass(frozen=True, eq=False)
class ContrastActivations:
    """The activations of both classes of a contrast, read at the same place of the same model."""

    name: str
    positive: Activations
    negative: Activations
    contrast_hash: str

    def __post_init__(self) -> None:
        """Refuse classes that were not read alike."""
        check_own(self)
        for what in ("layers", "site", "span", "model", "d_model"):
            ours, theirs = getattr(self.positive, what), getattr(self.negative, what)
            if ours != theirs:
                raise ValueError(f"the classes of {self.name!r} differ in {what}: {ours} and {theirs}: read both alike")

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        return f"ContrastActivations({self.name!r}, {len(self.positive)} − {len(self.negative)}, {self.positive!r})"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer axis by number."""
        return self.positive.layers

    @property
    def site(self) -> str:
        """The place in the block that was read."""
        return self.positive.site

    @property
    def span(self) -> str:
        """The tokens that were read."""
        return self.positive.span

    @property
    def model(self) -> str:
        """The model that was read."""
        return self.positive.model

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.positive.d_model

    @property
    def groups(self) -> tuple[str, ...]:
        """The questions of both classes, each once, in the order met."""
        return tuple(dict.fromkeys(self.positive.groups + self.negative.groups))

    def restricted_to(self, groups: Collection[str], *, name: str | None = None) -> "ContrastActivations":
        """The rows of these questions only, such as `contrast.where(tone="calm").groups`, under a name of their own."""
        wanted = set(groups)
        unknown = wanted - set(self.groups)
        if unknown:
            raise ValueError(
                f"{len(unknown)} of the questions were not read, such as {min(unknown)!r}: read them first"
            )
        positive, negative = (
            side.rows([i for i, group in enumerate(side.groups) if group in wanted])
            for side in (self.positive, self.negative)
        )
        return replace(self, name=name or self.name, positive=positive, negative=negative)

    def at(self, position: int) -> "ContrastActivations":
        """One template token of span `post_instruction`, in both classes."""
        return replace(self, positive=self.positive.at(position), negative=self.negative.at(position))


@door
def residual_stream(  # noqa: PLR0913 - where and how to read, all keyword-only
    model: TransformerLensModel,
    conversations: Sequence[Messages],
    hooks: HookPairs = (),
    *,
    span: Span = "response",
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    batch_tokens: int | None = None,
) -> Activations:
    """Read the residual stream of every conversation on one span of its tokens, at all layers in one pass.

    Hooks that are given or already on the bridge take part: what is read is the stream as they leave it. The sums are
    formed on the model's device inside the hook: beyond the result, one batch at one layer is all the memory used.

    Args:
        model: a `HookedModel` or a `TransformerBridge`.
        conversations: `Conversation`s or plain lists of messages; rows come back in their order.
        hooks: interventions, or any hook functions, under which the stream is read.
        span: `response`, `turn`, `last`, or `post_instruction` (one row for each of the template's tokens).
        site: `resid_post` (a block's output), `resid_pre`, `resid_mid`, `attn_out` or `mlp_out`.
        layers: which layers, by number; all of them by default.
        batch_tokens: tokens a batch may hold, padding counted; 1,024 on a CPU and 8,192 elsewhere by default.

    Raises:
        ValueError: no conversations, an unknown span or site, a layer out of range, a conversation longer than the
            context, a span without tokens, NaN or infinity in the stream.
    """
    how = _How(span, layers, batch_tokens)
    return _read_sites(HookedModel.of(model), conversations, (site,), hooks, how)[site]


@door
def read_contrast(  # noqa: PLR0913 - what residual_stream takes
    model: TransformerLensModel,
    contrast: Contrast,
    hooks: HookPairs = (),
    *,
    span: Span = "response",
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    batch_tokens: int | None = None,
) -> ContrastActivations:
    """Read both classes of a contrast alike; the arguments are those of `residual_stream`."""
    both = contrast.positive + contrast.negative
    activations = residual_stream(model, both, hooks, span=span, site=site, layers=layers, batch_tokens=batch_tokens)
    n_positive = len(activations) * len(contrast.positive) // (len(contrast.positive) + len(contrast.negative))
    return ContrastActivations(
        name=contrast.name,
        positive=activations.rows(range(n_positive)),
        negative=activations.rows(range(n_positive, len(activations))),
        contrast_hash=contrast.content_hash,
    )


@door
def component_outputs(  # noqa: PLR0913 - what residual_stream takes
    model: TransformerLensModel,
    conversations: Sequence[Messages],
    hooks: HookPairs = (),
    *,
    span: Span = "response",
    layers: Sequence[int] | None = None,
    batch_tokens: int | None = None,
) -> dict[str, Activations]:
    """What each layer's attention and MLP write to the residual stream, `attn_out` and `mlp_out`, in one pass.

    The arguments are those of `residual_stream`.
    """
    sites = ("attn_out", "mlp_out")
    return _read_sites(HookedModel.of(model), conversations, sites, hooks, _How(span, layers, batch_tokens))


@dataclass(frozen=True)
class _How:
    span: Span
    layers: Sequence[int] | None
    batch_tokens: int | None


def _read_sites(
    hooked: HookedModel, conversations: Sequence[Messages], sites: tuple[str, ...], hooks: HookPairs, how: _How
) -> dict[str, Activations]:
    """The activations at each site, all read in the same forward passes."""
    span, chosen = how.span, _layers(hooked, how.layers)
    for site in sites:
        if site not in SITES:
            raise ValueError(f"site {site!r} is unknown: choose one of {', '.join(SITES)}")
    if not conversations:
        raise ValueError("there are no conversations to read")
    spoken = [Conversation.of(c) for c in conversations]
    encoded = [encode(hooked.template, c, span, max_length=hooked.max_length) for c in spoken]
    n_rows = {len(e.spans) for e in encoded}
    if len(n_rows) > 1:
        raise ValueError(
            f"span {span!r} has between {min(n_rows)} and {max(n_rows)} tokens, and should have as many in every "
            f"conversation: read them apart"
        )
    points = [f"blocks.{layer}.hook_{site}" for site in sites for layer in chosen]
    values, norms = _read_with_kept(hooked, encoded, points, hooks, how.batch_tokens)
    return {
        site: Activations(
            values=values[:, i * len(chosen) : (i + 1) * len(chosen)],
            norms=norms[:, i * len(chosen) : (i + 1) * len(chosen)],
            n_tokens=torch.tensor([len(tokens) for e in encoded for tokens in e.spans]),
            groups=tuple(c.group for c, e in zip(spoken, encoded, strict=True) for _ in e.spans),
            layers=chosen,
            site=site,
            span=span,
            model=hooked.identity,
            positions=tuple(position for e in encoded for position in _positions(e)),
        )
        for i, site in enumerate(sites)
    }


def _read_with_kept(
    hooked: HookedModel, encoded: Sequence[Encoded], points: Sequence[str], hooks: HookPairs, batch_tokens: int | None
) -> tuple[Float[Tensor, "row point d_model"], Float[Tensor, "row point"]]:
    """`_read`, where what was read of the same stream before is not read again."""
    kept = {} if hooked.kept is None else hooked.kept.readings
    block = _kept_block(hooked, hooks)
    if not block:
        return _read(hooked, encoded, points, hooks, batch_tokens)
    of_texts = texts_key(hooked, encoded, block)
    below = [p for p in points if free_below(hooked, [(p, None)]) < block]
    todo = [p for p in points if p not in below or (p, *of_texts) not in kept]
    fresh = _read(hooked, encoded, todo, hooks, batch_tokens) if todo else ()
    read = dict(zip(todo, zip(*(tensor.unbind(1) for tensor in fresh), strict=True), strict=True))
    kept |= {(p, *of_texts): read[p] for p in below if p in read}
    found = [read[p] if p in read else kept[p, *of_texts] for p in points]
    return torch.stack([values for values, _ in found], 1), torch.stack([norms for _, norms in found], 1)


def _kept_block(hooked: HookedModel, hooks: HookPairs) -> int:
    """The last block below which nothing changes, of those whose entering stream is kept; 0 for none."""
    blocks = () if hooked.kept is None else hooked.kept.blocks
    free = free_below(hooked, hooks)
    return max((block for block in blocks if block <= free and is_untouched_below(hooked, block)), default=0)


@torch.inference_mode()
def _read(
    hooked: HookedModel, encoded: Sequence[Encoded], points: Sequence[str], hooks: HookPairs, batch_tokens: int | None
) -> tuple[Float[Tensor, "row point d_model"], Float[Tensor, "row point"]]:
    """Mean over each span of the stream, and of its norm, at every one of these hook points."""
    n_rows = len(encoded[0].spans)
    values = torch.empty(len(encoded), n_rows, len(points), hooked.d_model)
    norms = torch.empty(len(encoded), n_rows, len(points))
    reduction = _Reduction(len(points), hooked)
    readers = [(point, partial(reduction.take, i)) for i, point in enumerate(points)]
    passes = through_blocks(hooked, encoded, readers, hooks, batch_tokens=batch_tokens, start=reduction.start)
    with bar(total=len(encoded), desc="reading", unit="conversation") as progress:
        for batch in passes:
            means, lengths = reduction.finish()
            index = torch.tensor(batch.index)
            values[index] = rearrange(means, "point (c row) d -> c row point d", row=n_rows).float().cpu()
            norms[index] = rearrange(lengths, "point (c row) -> c row point", row=n_rows).float().cpu()
            progress.update(len(batch.index))
    return values.flatten(0, 1), norms.flatten(0, 1)


class _Reduction:
    """Takes the tokens of the spans as they pass each hook point and turns them into means, on the model's device.

    What passes costs one small copy. The arithmetic waits until a few mebibytes have come together, since in thin
    models and short spans what a kernel does costs less than its launch.
    """

    def __init__(self, n_points: int, hooked: HookedModel) -> None:
        """Nothing is taken before `start`."""
        self.n_points, self.d_model, self.device, self.dtype = n_points, hooked.d_model, hooked.device, hooked.dtype

    def start(self, batch: Batch) -> None:
        """Get ready for a batch: where its tokens lie in the flattened stream, and 1/n at the n of each span."""
        spans = [(i, span) for i, row in enumerate(batch.spans) for span in row]
        tokens = [i * batch.ids.shape[1] + token for i, span in spans for token in span]
        share = [torch.full((1, len(span)), 1 / len(span), dtype=torch.float64) for _, span in spans]
        self.tokens, self.weights = torch.tensor(tokens, device=self.device), torch.block_diag(*share).to(self.device)
        self.sums = self.weights.new_empty(self.n_points, len(spans), self.d_model)
        self.norms = self.weights.new_empty(self.n_points, len(spans))
        # Made before the forward pass: small blocks that outlive large ones would leave holes in the heap.
        at_once = max(1, _AT_ONCE // (len(tokens) * self.d_model))
        self.taken = torch.empty(at_once, len(tokens), self.d_model, device=self.device, dtype=self.dtype)
        self.points: list[int] = []

    def take(self, point: int, stream: Float[Tensor, "batch pos d_model"], hook: Any = None) -> None:
        """The hook: copy out the tokens that count and leave the stream as it is."""
        self.taken[len(self.points)] = stream.flatten(0, 1)[self.tokens]
        self.points.append(point)
        if len(self.points) == len(self.taken):
            self._reduce()

    def finish(self) -> tuple[Float[Tensor, "point row d_model"], Float[Tensor, "point row"]]:
        """Mean over each span of the stream, and of its norm."""
        self._reduce()
        return self.sums, self.norms

    def _reduce(self) -> None:
        streams = self.taken[: len(self.points)].double()
        self.sums[self.points] = self.weights @ streams
        self.norms[self.points] = streams.norm(dim=-1) @ self.weights.mT
        self.points.clear()


def _layers(hooked: HookedModel, layers: Sequence[int] | None) -> tuple[int, ...]:
    chosen = tuple(range(hooked.n_layers)) if layers is None else tuple(layers)
    outside = [layer for layer in chosen if not 0 <= layer < hooked.n_layers]
    if outside or not chosen:
        raise ValueError(f"layers {outside or '()'} are out of range: the model has layers 0 to {hooked.n_layers - 1}")
    return chosen


def _positions(encoded: Encoded) -> range:
    return range(-len(encoded.spans), 0) if len(encoded.spans) > 1 else range(1)
