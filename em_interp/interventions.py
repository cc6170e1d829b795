"""Turn a direction into hook functions that project it out of the residual stream, add it, or set it.

Each verb returns TransformerLens's own type, a list of `(hook_name, function)` pairs, so interventions add:

    model.hooks(fwd_hooks=project_out(direction, sites) + add_direction(direction, [site], scale=1))

A hook function works in plain torch too: `block.register_forward_hook(lambda block, args, out: fn(out))`.
It keeps nothing, edits nothing in place, and computes in float32 where the stream is bfloat16 or float16: with
the vector and the dot product rounded to bfloat16, 3 to 20 times as much of the direction would be left.

This file imports torch and jaxtyping only, so that other interpretability code can take it as it is.
"""

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Hooks = list[tuple[str, Callable]]
Stream = Float[Tensor, "batch pos d_model"]
Positions = Literal["all", "prompt", "response"]
PromptLength = int | Sequence[int] | Int[Tensor, "*batch"]

_SITE = re.compile(r"blocks\.(?P<layer>\d+)\.|(hook_)?(pos_)?embed\b")
_STREAM, _WRITES = ("resid_pre", "resid_mid", "resid_post"), ("attn_out", "mlp_out")


@runtime_checkable
class LayeredDirection(Protocol):
    """What an `em_interp.Direction` has, spelled out so that this file need not import it."""

    @property
    def vectors(self) -> Float[Tensor, "layer d_model"]:
        """One vector a layer, of any length."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of the layer in each row."""
        ...

    @property
    def site(self) -> str:
        """Where it was read: resid_pre, resid_mid, resid_post, attn_out or mlp_out."""
        ...

    @property
    def residual_norm(self) -> Float[Tensor, " layer"]:
        """Mean norm of a token's residual stream: the unit of strength."""
        ...

    @property
    def positive_projection(self) -> Float[Tensor, " layer"]:
        """Mean projection of the positive class on the unit vector."""
        ...

    @property
    def negative_projection(self) -> Float[Tensor, " layer"]:
        """Mean projection of the negative class on the unit vector."""
        ...


AnyDirection = Float[Tensor, " d_model"] | Float[Tensor, "layer d_model"] | LayeredDirection


@dataclass(frozen=True, eq=False, kw_only=True)
class Intervention(ABC):
    """A hook function: the stream goes in, an edited copy of the same dtype and device comes out.

    It acts at `positions`: at all of them, in the `prompt` (before `prompt_length`), or in the `response` (the rest).
    `prompt_length` is one number for all rows, as in a left-padded batch about to be answered, or one a row; padding
    counts. It can be given later, with `at_prompt_length`.

    A stream of one position under a prompt of several is a decoding step with a key-value cache: response.
    Under a prompt of one token it cannot be told from that prompt, and counts as prompt.
    """

    site: str
    vectors: Float[Tensor, "rank d_model"] = field(repr=False)
    positions: Positions = "all"
    prompt_length: PromptLength | None = None

    def __post_init__(self) -> None:
        """Refuse positions that nothing can be at."""
        if self.positions not in ("all", "prompt", "response"):
            raise ValueError(f"positions {self.positions!r} is unknown: choose 'all', 'prompt' or 'response'")
        if self.prompt_length is not None:
            try:
                lengths = torch.as_tensor(self.prompt_length)
                least: Any = int(lengths.min())
            except (OverflowError, RuntimeError, TypeError, ValueError):
                lengths, least = None, self.prompt_length
            if lengths is None or least < 0:
                raise ValueError(f"prompt_length is {least!r}: count the tokens before the response, with padding")
            object.__setattr__(self, "prompt_length", lengths.tolist())  # numbers: no call has to wait for a GPU

    def to(self, device: torch.device) -> "Intervention":
        """The same with its vectors on a device, so that no call has to copy them there."""
        return self if self.vectors.device == device else replace(self, vectors=self.vectors.to(device))

    @abstractmethod
    def edit(self, stream: Stream, vectors: Float[Tensor, "rank d_model"]) -> Stream:
        """The intervention at every position; both arguments come in the same dtype, float32 or better."""

    def __call__(self, stream: Stream, hook: Any = None) -> Stream:
        """Edit the stream on the chosen positions; TransformerLens passes its hook point as `hook`."""
        d_model = self.vectors.shape[-1]
        if stream.ndim != 3 or stream.shape[-1] != d_model:
            raise ValueError(
                f"direction has d_model {d_model} but the stream at {self.site} is {stream.shape[-1]} wide "
                f"(shape {tuple(stream.shape)}): use this model's direction, at a site [batch, pos, d_model]"
            )
        chosen = self._chosen(stream)
        if chosen is False:
            return stream
        precise = stream.to(torch.promote_types(stream.dtype, torch.float32))
        edited = self.edit(precise, self.vectors.to(precise)).to(stream.dtype)
        return edited if chosen is True else torch.where(chosen[..., None], edited, stream)

    def _chosen(self, stream: Stream) -> bool | Bool[Tensor, "#batch pos"]:
        """Where to act: everywhere, nowhere, or a mask."""
        if self.positions == "all":
            return True
        if self.prompt_length is None:
            raise ValueError(
                f"the intervention at {self.site} acts on the {self.positions} but does not know where the "
                f"prompt ends: bind it with at_prompt_length(hooks, prompt_length)"
            )
        batch, n_positions, _ = stream.shape
        lengths = [self.prompt_length] if isinstance(self.prompt_length, int) else list(self.prompt_length)
        if len(lengths) not in (1, batch):
            raise ValueError(
                f"prompt_length has {len(lengths)} rows but the stream at {self.site} has {batch}: give one "
                f"number for all rows, or one a row"
            )
        if 1 < n_positions < max(lengths):
            raise ValueError(
                f"the stream at {self.site} has {n_positions} positions but prompt_length is {max(lengths)}: pass "
                f"the whole prompt (padding counts), or with a key-value cache one position at a time"
            )
        if n_positions == 1 < max(lengths):  # no mask: when decoding, this runs at every site for every token
            return self.positions == "response"
        prompt = torch.arange(n_positions) < torch.tensor(lengths)[:, None]
        return (prompt if self.positions == "prompt" else ~prompt).to(stream.device)


@dataclass(frozen=True, eq=False, kw_only=True)
class SetProjection(Intervention):
    """Sets the stream's projection on each of its orthonormal `vectors` to `value`; 0 projects them out."""

    value: float

    def edit(self, stream: Stream, vectors: Float[Tensor, "rank d_model"]) -> Stream:
        """The stream x becomes x − Vᵀ(Vx − value)."""
        return stream - (stream @ vectors.mT - self.value) @ vectors


@dataclass(frozen=True, eq=False, kw_only=True)
class AddVector(Intervention):
    """Adds its one vector, which is `coefficient` times the direction as it was given."""

    coefficient: float

    def edit(self, stream: Stream, vectors: Float[Tensor, "rank d_model"]) -> Stream:
        """The stream x becomes x + coefficient · v."""
        return stream + vectors


def project_out(
    direction: AnyDirection,
    sites: Iterable[str],
    *,
    positions: Positions = "all",
    prompt_length: PromptLength | None = None,
) -> Hooks:
    """Directional ablation: take a direction out of the stream, x − v̂v̂ᵀx.

    Arditi et al. 2024 (arXiv 2406.11717), section 2.4; Soligo et al. 2025 (arXiv 2506.11618). On every write
    to the stream (`hook_embed`, every `hook_attn_out` and `hook_mlp_out`) it equals orthogonalised weights.

    Args:
        direction: one vector for every site; or one a layer, a tensor (row = layer number) or a `Direction`:
            then a site takes the vector of the layer in its name, and the embedding that of layer 0.
        sites: hook names, such as `blocks.24.hook_resid_post`. A `Direction` goes where it was read, and one read
            in the stream on all that is written to it; one vector of it, `direction[24]`, goes anywhere. At
            `hook_resid_mid` TransformerLens edits what the MLP reads, and not what goes on in the stream.
        positions: `all`, the `prompt` or the `response`.
        prompt_length: tokens before the response, for those two; padding counts. See `at_prompt_length`.

    Raises:
        ValueError: a vector is zero or not finite; a site names no layer, one that has no vector, or another place
            in the block than where the `Direction` was read.
    """
    return set_projection(direction, sites, 0.0, positions=positions, prompt_length=prompt_length)


def project_out_subspace(
    basis: Float[Tensor, "rank d_model"],
    sites: Iterable[str],
    *,
    positions: Positions = "all",
    prompt_length: PromptLength | None = None,
) -> Hooks:
    """Take a whole subspace out of the stream: x − VᵀVx, for orthonormal rows V; the rest as in `project_out`.

    Raises:
        ValueError: the rows are not orthonormal to 1e-4.
    """
    rows = basis.detach().double().cpu()
    error = float((rows @ rows.mT - torch.eye(len(rows))).abs().max())
    if not error <= 1e-4:
        raise ValueError(
            f"the rows of the basis are not orthonormal, V·Vᵀ is {error:.2g} off the identity: "
            f"orthonormalise them in float32 with torch.linalg.qr(basis.mT).Q.mT"
        )
    basis = basis.clone()  # whatever happens to the caller's own
    where: dict[str, Any] = {"positions": positions, "prompt_length": prompt_length}
    return [(site, SetProjection(site=site, vectors=basis, value=0.0, **where)) for site in _names(sites)]


def set_projection(
    direction: AnyDirection,
    sites: Iterable[str],
    value: int | float | Tensor | str,
    *,
    positions: Positions = "all",
    prompt_length: PromptLength | None = None,
) -> Hooks:
    """Clamp the stream's projection on a direction: x + (value − v̂ᵀx) v̂; to a class's mean, affine concept editing.

    Args:
        direction: as in `project_out`.
        sites: hook names.
        value: one number, or one a layer (rows as the direction's; beside one vector, row = layer number), or
            `"positive"` or `"negative"`, the mean projection of that class of a `Direction`.
        positions: `all`, the `prompt` or the `response`.
        prompt_length: tokens before the response, for those two; padding counts. See `at_prompt_length`.

    Raises:
        ValueError: as in `project_out`; or the value is not finite, or no class of the direction.
    """
    if isinstance(value, str):
        if value not in ("positive", "negative"):
            raise ValueError(f"value {value!r} is unknown: give a number, or 'positive' or 'negative'")
        if not isinstance(direction, LayeredDirection):
            raise ValueError(f"a bare tensor has no {value} class: give a Direction, or the value as a number")
        value = direction.positive_projection if value == "positive" else direction.negative_projection
    where: dict[str, Any] = {"positions": positions, "prompt_length": prompt_length}
    hooks: Hooks = []
    for site in _names(sites):
        vector, number = _vector(direction, site), _number("value", value, direction, site)
        unit = vector / _length(vector)
        hooks.append((site, SetProjection(site=site, vectors=unit[None], value=number, **where)))
    return hooks


def add_direction(  # noqa: PLR0913 - what, where, how much, at which positions
    direction: AnyDirection,
    sites: Iterable[str],
    *,
    scale: int | float = 1.0,
    raw: bool = False,
    residual_norm: int | float | Tensor | None = None,
    positions: Positions = "all",
    prompt_length: PromptLength | None = None,
) -> Hooks:
    """Activation addition, in units of the mean residual norm there: x + scale · residual_norm · v̂.

    `raw=True` adds x + scale · v with v as it came, the λ·v of Soligo et al. 2025 (arXiv 2506.11618). Either
    way the function's `coefficient` is the multiple of v that is added.

    Args:
        direction: as in `project_out`.
        sites: hook names.
        scale: 1 adds a vector as long as a typical residual vector; a negative number steers away.
        raw: take v's own length as the unit.
        residual_norm: the unit for a bare tensor, or in place of a `Direction`'s own; one number, or one a
            layer as `value` in `set_projection`.
        positions: `all`, the `prompt` or the `response`.
        prompt_length: tokens before the response, for those two; padding counts. See `at_prompt_length`.

    Raises:
        ValueError: as in `project_out`; or scale is not finite; the unit is missing, unused or not positive.
    """
    scale = _finite("scale", scale)
    if raw and residual_norm is not None:
        raise ValueError("raw=True adds scale · v and has no use for residual_norm: give one of the two")
    if not raw and residual_norm is None:
        if not isinstance(direction, LayeredDirection):
            raise ValueError(
                "a bare tensor does not say how long a residual vector is: give residual_norm=, such as "
                "direction.residual_norm, or raw=True to add scale · v"
            )
        residual_norm = direction.residual_norm
    where: dict[str, Any] = {"positions": positions, "prompt_length": prompt_length}
    hooks: Hooks = []
    for site in _names(sites):
        vector = added = _vector(direction, site)
        coefficient = float(scale)
        if residual_norm is not None:
            norm = _number("residual_norm", residual_norm, direction, site)
            if norm <= 0:
                raise ValueError(f"residual_norm is {norm:g} at {site}: give the mean norm of a token's stream")
            added, coefficient = norm * (vector / _length(vector)), scale * norm / _length(vector).item()
        hooks.append((site, AddVector(site=site, vectors=scale * added[None], coefficient=coefficient, **where)))
    return hooks


def at_prompt_length(hooks: Iterable[tuple[str, Callable]], prompt_length: PromptLength) -> Hooks:
    """Tell the interventions in a list where the prompt ends; foreign functions pass through unchanged."""

    def bind(function: Callable) -> Callable:
        ours = isinstance(function, Intervention)
        return replace(function, prompt_length=prompt_length) if ours else function

    return [(name, bind(function)) for name, function in hooks]


def described(hooks: Iterable[tuple[str, Callable]]) -> list[str]:
    """What was done to the model, a line a hook: enough to see whether two runs did the same."""
    return [f"{site} {_function(function)}" for site, function in hooks]


def _function(function: Any) -> str:
    if not isinstance(function, Intervention):
        return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
    vectors = function.vectors.detach().float().cpu().contiguous().flatten().tolist()
    rest = {f.name: getattr(function, f.name) for f in fields(function) if f.name not in ("site", "vectors")}
    told = ", ".join(f"{name}={value!r}" for name, value in rest.items() if value is not None)
    return f"{type(function).__name__}({told}) of {hashlib.sha256(repr(vectors).encode()).hexdigest()[:12]}"


def _names(sites: Iterable[str]) -> list[str]:
    if isinstance(sites, str):
        raise ValueError(f"sites is the string {sites!r}: give a list of hook names, [{sites!r}]")
    names: list[str] = list(sites) if isinstance(sites, Iterable) else [sites]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"sites is {names or 'empty'}: give hook names, such as ['blocks.0.hook_resid_post']")
    if len(set(names)) < len(names):
        raise ValueError(f"site {max(names, key=names.count)!r} comes twice, and would be hooked twice: list it once")
    return names


def _vector(direction: AnyDirection, site: str) -> Float[Tensor, " d_model"]:
    """The vector that acts at a site, in float32 or better, finite and not zero."""
    vectors = direction
    if isinstance(direction, LayeredDirection):
        _check_place(direction.site, site)
        vectors = direction.vectors
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2):
        raise TypeError(
            f"direction is a {type(direction).__name__}: give a tensor [d_model] or [layer, d_model], or a Direction"
        )
    vector = vectors if vectors.ndim == 1 else vectors[_row(site, _layers(direction, len(vectors)))]
    if not torch.isfinite(vector).all():
        raise ValueError(f"the direction at {site} is NaN or infinite: compute it from finite activations")
    if not vector.any():
        raise ValueError(f"the direction at {site} is zero, its two classes do not differ there: leave the site out")
    return vector.to(torch.promote_types(vector.dtype, torch.float32))


def _check_place(read_at: str, site: str) -> None:
    """Layer 3's input is layer 2's output: a `Direction` elsewhere in the block would be off by one, silently."""
    place = site.rpartition("hook_")[2]
    fits = place == read_at or (place in _WRITES and read_at in _STREAM)
    if place in _STREAM + _WRITES and not fits:
        raise ValueError(
            f"the direction was read at {read_at} and {site} is another place in the block: read it there "
            f"(site={place!r}), or give one vector of it, such as direction[layer], which goes anywhere"
        )


def _length(vector: Float[Tensor, " d_model"]) -> Float[Tensor, ""]:
    peak = vector.abs().max()  # divided out first: below 1e-19 or above it the squares leave float32
    return peak * (vector / peak).norm()


def _number(what: str, values: int | float | Tensor, direction: AnyDirection, site: str) -> float:
    """The entry of a per-layer tensor that belongs to a site; a single number belongs to every site."""
    if isinstance(values, Tensor) and values.ndim:
        layers = _layers(direction, len(values))
        if len(values) != len(layers):
            raise ValueError(f"{what} has {len(values)} rows for {len(layers)} layers: give one number a layer")
        values = values[_row(site, layers)]
    return _finite(what, values, f" at {site}")


def _finite(what: str, value: Any, at: str = "") -> float:
    try:
        number: Any = value if isinstance(value, str | bytes) else float(value)
    except (RuntimeError, TypeError, ValueError):
        number = value
    if not isinstance(number, float) or not math.isfinite(number):
        raise ValueError(f"{what} is {number!r}{at}: give a finite number")
    return number


def _layers(direction: AnyDirection, n_rows: int) -> Sequence[int]:
    """The layer of each row: a `Direction` knows, a tensor counts from 0, and so does one beside a vector."""
    if not isinstance(direction, Tensor):
        return direction.layers
    return range(len(direction) if direction.ndim > 1 else n_rows)


def _row(site: str, layers: Sequence[int]) -> int:
    match = _SITE.match(site)
    if match is None:
        raise ValueError(
            f"site {site!r} has no layer in its name, to choose one of {len(layers)} layers by: give one "
            f"vector, such as direction[{layers[-1]}], or a site like 'blocks.{layers[-1]}.hook_resid_post'"
        )
    layer = int(match["layer"] or 0)
    if layer not in layers:
        raise ValueError(
            f"site {site!r} is at layer {layer}, and there are rows for layers {', '.join(map(str, layers))} "
            f"only: choose sites of those layers, or one vector for all sites"
        )
    return layers.index(layer)
