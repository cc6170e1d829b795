"""What an adapter writes to the residual stream: its directions, their cosines, and what becomes of them downstream."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.forward import keeping
from em_interp.activations.reading import Messages, residual_stream
from em_interp.checks import door
from em_interp.directions.direction import Direction
from em_interp.interventions import add_direction
from em_interp.lora.modules import LoraModule, Source, component_name, lora_modules
from em_interp.models.hooked import HookedModel, TransformerLensModel, site
from em_interp.statistics.estimates import student
from em_interp.texts.conversations import Span


@dataclass(frozen=True, eq=False)
class Writes:
    """What an adapter writes to the residual stream: one row a module and singular component, strongest first.

    Attributes:
        vectors: left singular vectors of `scale · B · A`, unit length. A singular vector has no sign of its own: it
            is given that of the column of B that weighs most in it, so at rank 1 it is B itself.
        strengths: the singular values.
        modules: the module of each row.
        layers: its layer.
        components: 0 for the strongest of its module.
    """

    vectors: Float[Tensor, "write d_model"]
    strengths: Float[Tensor, " write"]
    modules: tuple[str, ...]
    layers: tuple[int, ...]
    components: tuple[int, ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.modules)

    def __repr__(self) -> str:
        """One line."""
        return f"Writes({len(self)} vectors of {len(set(self.modules))} modules, d_model {self.vectors.shape[1]})"

    @property
    def names(self) -> tuple[str, ...]:
        """Module and component of each row, `layers.15.mlp.down_proj[0]`."""
        return tuple(map(component_name, self.modules, self.components))


@door
def write_directions(source: Source) -> Writes:
    """The directions that an adapter writes to the stream, module by module; what is written is in their span.

    Components that write nothing (B of rank below the adapter's) are left out.

    Raises:
        ValueError: no module of it writes to the stream, or all that do write nothing; or as for `lora_modules`.
    """
    rows: list[tuple[Tensor, Tensor, str, int, int]] = []
    for module in _all(source):
        if module.writes_to_stream and module.layer is not None:
            left, strengths, _ = _svd(module)
            weights = left.mT @ module.written
            heaviest = weights.gather(1, weights.abs().argmax(1, keepdim=True))
            left = left * heaviest.mT.sign()
            rows += [
                (left[:, k], strengths[k], module.name, module.layer, k)
                for k in range(module.rank)
                if strengths[k] > 1e-6 * max(strengths[0], 1e-12)
            ]
    if not rows:
        raise ValueError(
            "nothing is written to the residual stream: the adapter is on no module that writes to it, or untrained"
        )
    vectors, strengths, modules, layers, components = zip(*rows, strict=True)
    return Writes(torch.stack(vectors), torch.stack(strengths), modules, layers, components)


@dataclass(frozen=True, eq=False)
class WriteCosines:
    """How well what an adapter writes lies along a direction, each write at its own layer.

    Attributes:
        writes: the rows.
        direction: name of the direction.
        cosine: of each row with it.
        controls: names of the directions beside it.
        control_cosines: the same of each of them.
        chance: 95 % of random vectors have a cosine below this in size. Activations are anisotropic, so the controls
            are the stricter yardstick.
    """

    writes: Writes
    direction: str
    cosine: Float[Tensor, " write"]
    controls: tuple[str, ...]
    control_cosines: Float[Tensor, "control write"]
    chance: float

    def __repr__(self) -> str:
        """One line."""
        peak = int(self.cosine.abs().argmax())
        return (
            f"WriteCosines({self.direction!r}, {len(self.writes)} writes, largest {self.cosine[peak]:+.2f} at "
            f"{self.writes.names[peak]}, chance ±{self.chance:.2f})"
        )

    def table(self) -> list[dict[str, Any]]:
        """One row a write, of plain numbers."""
        w = self.writes
        columns = {
            "write": w.names,
            "layer": w.layers,
            "strength": w.strengths.tolist(),
            "cosine": self.cosine.tolist(),
            **{f"control: {n}": row.tolist() for n, row in zip(self.controls, self.control_cosines, strict=True)},
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@door
def write_cosines(source: Source, direction: Direction, controls: Sequence[Direction] = ()) -> WriteCosines:
    """The cosine of everything an adapter writes with a direction at the layer where it is written.

    `source` is an adapter as for `write_directions`, or what that returned.

    Soligo et al. 2025 (arXiv 2506.11618) report .04 for B at layer 24: what the write becomes downstream is what
    aligns, see `propagate`.

    Raises:
        ValueError: the direction was not read at a module's layer, or is of another width.
    """
    writes = source if isinstance(source, Writes) else write_directions(source)
    found = torch.stack([_along(writes.vectors, writes.layers, d) for d in (direction, *controls)])
    return WriteCosines(
        writes=writes,
        direction=direction.name,
        cosine=found[0],
        controls=tuple(d.name for d in controls),
        control_cosines=found[1:],
        chance=1.96 / math.sqrt(direction.d_model),
    )


@dataclass(frozen=True, eq=False)
class Propagated:
    """What adding a vector at one layer's output makes of the residual stream from there on.

    Attributes:
        changes: mean change over the span's tokens, one row a question. Row 0 of the layers is where it was added.
        name: what was added.
        coefficient: how many times.
    """

    changes: Float[Tensor, "question layer d_model"]
    layers: tuple[int, ...]
    name: str
    coefficient: float
    span: str
    model: str

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        return (
            f"Propagated({self.coefficient:g} × {self.name!r} at layer {self.layers[0]}, read to layer "
            f"{self.layers[-1]}, span {self.span!r}, {len(self.changes)} questions, {self.model})"
        )

    @property
    def change(self) -> Float[Tensor, "layer d_model"]:
        """The mean over questions."""
        return self.changes.double().mean(0).float()

    def along(self, direction: Direction) -> "Downstream":
        """Its cosine with a direction, layer by layer, with the jackknife interval over questions."""
        n = len(self.changes)
        rows = self.changes.double()
        means = torch.cat([rows.mean(0)[None], (rows.sum(0) - rows) / max(n - 1, 1)])
        cosines = torch.stack([_along(mean, self.layers, direction) for mean in means])
        if n < 2:
            half = torch.full_like(cosines[0], math.nan)
        else:
            error = ((n - 1) * cosines[1:].var(0, correction=0)).sqrt()
            half = student(n - 1) * error
        low, high = (cosines[0] - half).clamp(-1, 1), (cosines[0] + half).clamp(-1, 1)
        return Downstream(self.name, direction.name, self.layers, cosines[0], low, high)


@dataclass(frozen=True, eq=False)
class Downstream:
    """The cosine of a propagated write with a direction at every layer from where it was added; 95 % interval."""

    name: str
    direction: str
    layers: tuple[int, ...]
    cosine: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]

    def __repr__(self) -> str:
        """One line."""
        row = int(self.cosine.abs().argmax())
        return (
            f"Downstream({self.name!r} along {self.direction!r}, {self.cosine[0]:+.2f} at layer {self.layers[0]}, "
            f"largest {self.cosine[row]:+.2f} [{self.low[row]:+.2f}, {self.high[row]:+.2f}] at layer "
            f"{self.layers[row]})"
        )


@door
def propagate(  # noqa: PLR0913 - what is added, where, and how it is read
    model: TransformerLensModel,
    vector: LoraModule | Float[Tensor, " d_model"],
    conversations: Sequence[Messages],
    *,
    layer: int | None = None,
    component: int = 0,
    coefficient: int | float = 1.0,
    span: Span = "response",
    batch_tokens: int | None = None,
) -> Propagated:
    """Add a vector at one layer's output, at every token, and read what the stream becomes at each layer from there.

    The blocks below run once, for both readings, on the same kernels, so that a coefficient of 0 changes nothing at
    all. The model keeps its adapter; inside `without_adapter` it is the base through which the write propagates.

    Args:
        model: a `HookedModel` or a `TransformerBridge`.
        vector: a module that writes to the stream, or any vector.
        conversations: what is read.
        layer: at which layer's output; a module brings its own.
        component: which column of a module's B, times its scale, is added.
        coefficient: how many times; for a module, the scalar that the component would have.
        span: the tokens read.
        batch_tokens: as for `residual_stream`.

    Raises:
        ValueError: the module writes elsewhere, has no such component, or no layer was given for a bare vector.
    """
    name = "vector"
    if isinstance(vector, LoraModule):
        if not 0 <= component < vector.rank:
            raise ValueError(f"{vector.name} has no component {component}: it has {vector.rank}, counted from 0")
        if layer is not None and layer != vector.layer:
            raise ValueError(f"{vector.name} writes at layer {vector.layer}, not {layer}: leave layer out")
        name, layer, vector = component_name(vector.name, component), vector.layer, vector.written[:, component]
    if layer is None:
        raise ValueError("a bare vector does not say where it is added: give layer=")
    hooked = HookedModel.of(model)
    where, layers, kept = site(hooked, layer), range(layer, hooked.n_layers), keeping(hooked, layer + 1)
    before, after = (
        residual_stream(
            kept,
            conversations,
            add_direction(vector, [where], scale=scale, raw=True),
            span=span,
            layers=layers,
            batch_tokens=batch_tokens,
        )
        for scale in (0.0, coefficient)
    )
    changes = _by_group(after.values.double() - before.values.double(), before.groups)
    return Propagated(changes.float(), tuple(layers), name, float(coefficient), span, before.model)


def _all(source: Source) -> tuple[LoraModule, ...]:
    if isinstance(source, LoraModule):
        return (source,)
    if isinstance(source, Sequence) and source and all(isinstance(module, LoraModule) for module in source):
        return tuple(source)
    return lora_modules(source)


def _svd(module: LoraModule) -> tuple[Tensor, Tensor, Tensor]:
    from transformer_lens import FactoredMatrix

    return FactoredMatrix(module.written, module.A).svd()


def _along(rows: Float[Tensor, "row d_model"], layers: Sequence[int], direction: Direction) -> Float[Tensor, " row"]:
    if direction.d_model != rows.shape[-1]:
        raise ValueError(
            f"direction {direction.name!r} has d_model {direction.d_model} but {rows.shape[-1]} features are written: "
            f"use this model's direction"
        )
    vectors = torch.stack([direction[number] for number in layers]).double()
    return torch.nn.functional.cosine_similarity(rows.double(), vectors, dim=-1).float()


def _by_group(
    values: Float[Tensor, "row layer d_model"], groups: Sequence[str]
) -> Float[Tensor, "group layer d_model"]:
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([order[group] for group in groups])
    sums = values.new_zeros(len(order), *values.shape[1:]).index_add_(0, index, values)
    return sums / index.bincount()[:, None, None]
