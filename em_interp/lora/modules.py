"""A LoRA adapter taken apart: what each module's update is, what it writes, and the model with parts of it off."""

import html
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_interp.activations.reading import Messages, residual_stream
from em_interp.directions.direction import Direction
from em_interp.interventions import add_direction
from em_interp.models.adapters import adapter_factors, check_plain_lora
from em_interp.models.hooked import HookedModel, layer
from em_interp.texts.conversations import Span

# Modules whose output is added to the residual stream, by their usual names: asked only where there is no bridge.
_WRITERS = ("o_proj", "down_proj", "c_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "wo", "w2")


@dataclass(frozen=True, eq=False)
class LoraModule:
    """One module's low-rank update: `scale · B · A · x` is added to the module's output.

    Attributes:
        name: layer and module, `layers.15.mlp.down_proj`.
        layer: the number of the block; None outside the blocks, as at the LM head.
        A: what it reads, float32 on the CPU, a copy.
        B: what it writes.
        scale: the true one: α/r, or α/√r for a rank-stabilised adapter, this module's own r and α.
        writes_to_stream: whether the module's output is added to the residual stream.
        gain: weights of the norm that lies between the module and the stream, as in Gemma 2 and 3. Only a
            `HookedModel` knows it.
    """

    name: str
    layer: int | None
    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    scale: float
    writes_to_stream: bool
    gain: Float[Tensor, " d_out"] | None = None

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        stream = ", writes to the stream" if self.writes_to_stream else ""
        return (
            f"LoraModule({self.name!r}, rank {self.rank}, {self.A.shape[1]} → {self.B.shape[0]}, "
            f"scale {self.scale:g}{stream})"
        )

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.A.shape[0]

    @property
    def factored(self) -> Any:
        """The update as TransformerLens's `FactoredMatrix`, `[d_out, d_in]` with the scale in it."""
        from transformer_lens import FactoredMatrix

        return FactoredMatrix(self.scale * self.B, self.A)

    @property
    def written(self) -> Float[Tensor, "d_model rank"]:
        """What a scalar of 1 in each component adds to the residual stream; behind a norm, its direction only.

        Raises:
            ValueError: the module does not write to the stream.
        """
        if not self.writes_to_stream:
            raise ValueError(
                f"{self.name} does not write to the residual stream: choose a module that does (o_proj, down_proj …)"
            )
        columns = self.scale * self.B
        return columns if self.gain is None else self.gain[:, None] * columns


Source = Any  # a HookedModel, a PeftModel, an adapter folder, or LoraModules


def lora_modules(source: Source) -> tuple[LoraModule, ...]:
    """Every module's update of a LoRA or rsLoRA adapter, layer by layer.

    Args:
        source: a `HookedModel` with an unmerged adapter, a PEFT model, or an adapter's folder or hub name, for which
            no base model is needed. From the last two, which modules write to the stream is told by their names.

    Raises:
        ValueError: there is no adapter, a merged one, several, or one that does more than add B·A·x (DoRA, biases,
            embeddings …); or its files are damaged, incomplete or do not belong together.
    """
    if isinstance(source, (str, Path)):
        found = adapter_factors(source)
        names = _names(found)
        return tuple(
            LoraModule(names[p], layer_number(names[p]), a.float(), b.float(), scale, _named_writer(names[p]))
            for p, (a, b, scale) in sorted(found.items(), key=lambda item: _order(names[item[0]]))
        )
    if isinstance(source, HookedModel):
        layers, writers = lora_layers(source), _writers(source)
        return tuple(_snapshot(name, lora, path in writers, writers.get(path)) for name, (path, lora) in layers.items())
    if not hasattr(source, "peft_config"):
        raise TypeError(
            f"a {type(source).__name__} has no adapter to take apart: pass a HookedModel, a PEFT model or a folder"
        )
    layers = _peft_layers(source)
    return tuple(_snapshot(name, lora, _named_writer(name), None) for name, (_, lora) in layers.items())


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


def write_cosines(source: Source, direction: Direction, controls: Sequence[Direction] = ()) -> WriteCosines:
    """The cosine of everything an adapter writes with a direction at the layer where it is written.

    `source` is an adapter as for `write_directions`, or what that returned.

    Soligo et al. 2025 (arXiv 2506.11618) report .04 for B at layer 24: what the write becomes downstream is what
    aligns, see `propagated`.

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
        from scipy import stats

        n = len(self.changes)
        rows = self.changes.double()
        means = torch.cat([rows.mean(0)[None], (rows.sum(0) - rows) / max(n - 1, 1)])
        cosines = torch.stack([_along(mean, self.layers, direction) for mean in means])
        if n < 2:
            half = torch.full_like(cosines[0], math.nan)
        else:
            error = ((n - 1) * cosines[1:].var(0, correction=0)).sqrt()
            half = float(stats.t.ppf(0.975, n - 1)) * error
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


def propagated(  # noqa: PLR0913 - what is added, where, and how it is read
    model: Any,
    vector: LoraModule | Float[Tensor, " d_model"],
    conversations: Sequence[Messages],
    *,
    layer_added: int | None = None,
    component: int = 0,
    coefficient: int | float = 1.0,
    span: Span = "response",
    batch_tokens: int | None = None,
) -> Propagated:
    """Add a vector at one layer's output, at every token, and read what the stream becomes at each layer from there.

    Both readings run on the bridge, on the same kernels, so that a coefficient of 0 changes nothing at all. The model
    keeps its adapter; inside `without_adapter` it is the base through which the write propagates.

    Args:
        model: a `HookedModel` or a `TransformerBridge`.
        vector: a module that writes to the stream, or any vector.
        conversations: what is read.
        layer_added: at which layer's output; a module brings its own.
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
        if layer_added is not None and layer_added != vector.layer:
            raise ValueError(f"{vector.name} writes at layer {vector.layer}, not {layer_added}: leave layer_added out")
        name, layer_added, vector = component_name(vector.name, component), vector.layer, vector.written[:, component]
    if layer_added is None:
        raise ValueError("a bare vector does not say where it is added: give layer_added=")
    hooked = HookedModel.of(model)
    site = layer(hooked, layer_added)
    layers = range(layer_added, hooked.n_layers)
    read = []
    for scale in (0.0, coefficient):
        with hooked.hooks(fwd_hooks=add_direction(vector, [site], scale=scale, raw=True)):
            read.append(residual_stream(hooked, conversations, span=span, layers=layers, batch_tokens=batch_tokens))
    before, after = read
    changes = _by_group(after.values.double() - before.values.double(), before.groups)
    return Propagated(changes.float(), tuple(layers), name, float(coefficient), span, before.model)


@dataclass(frozen=True)
class TokenReadout:
    """The tokens that a vector makes likelier and less likely, each with its logit, the strongest first."""

    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{_cell(token)}</td><td>{logit:+.2f}</td><td>{_cell(other)}</td><td>{less:+.2f}</td></tr>"
            for (token, logit), (other, less) in zip(self.top, self.bottom, strict=True)
        )
        return f"<table><thead><tr><th>top</th><th></th><th>bottom</th><th></th></tr></thead>{rows}</table>"


def token_readout(model: Any, vector: Float[Tensor, " d_model"], k: int = 10) -> TokenReadout:
    """Read a vector through the final norm and the unembedding, as if it were all there is in the stream.

    TransformerLens's `logit_readout`; its norm takes the vector's length away, so only its direction counts.
    """
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    hooked = HookedModel.of(model)
    logits = logit_readout(hooked.bridge, vector).values
    ends = []
    for largest in (True, False):
        values, ids = logits.topk(k, largest=largest)
        ends.append(tuple(zip(token_strings(hooked.tokenizer, ids.tolist()), values.tolist(), strict=True)))
    return TokenReadout(*ends)


def token_strings(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token as the text it stands for, the blank before a word kept."""
    texts = {}
    for token in set(ids):
        text, piece = tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token)
        texts[token] = f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text
    return tuple(texts[token] for token in ids)


@contextmanager
def scaled_adapters(
    model: HookedModel, factors: Mapping[str, int | float], default: int | float = 1.0
) -> Iterator[HookedModel]:
    """Inside, each adapter's output is times its factor: 0 takes it out, so that all at 0 is exactly the base.

    Args:
        model: a `HookedModel` with an unmerged adapter.
        factors: by module, `layers.15.mlp.down_proj`, or by component of one, `layers.15.mlp.down_proj[3]`, which
            has precedence.
        default: the factor of every module not named; 0 leaves the named ones alone.

    Raises:
        ValueError: no adapter; an unknown module or component (those there are, are listed); a factor not finite.
    """
    layers = lora_layers(model)
    by_module = {n: torch.full((lora.r[active_adapter(lora)],), float(default)) for n, (_, lora) in layers.items()}
    for name in sorted(factors, key=lambda name: name not in by_module):  # modules first, then components of them
        if not math.isfinite(factors[name]):
            raise ValueError(f"the factor of {name} is {factors[name]}: give a finite number")
        module, at = _module_of(name, by_module)
        by_module[module][at] = float(factors[name])

    def multiply(factor: Float[Tensor, " rank"]) -> Callable[..., Tensor]:
        return lambda _, __, output: output * factor.to(output)

    hooks = {n: multiply(factor) for n, factor in by_module.items() if not (factor == 1).all()}
    with _hooked(model, "lora_A", hooks):
        yield model


@contextmanager
def projected_adapters(model: HookedModel, direction: Direction | Float[Tensor, " d_model"]) -> Iterator[HookedModel]:
    """Inside, no adapter writes along a direction: it is projected out of every B whose output joins the stream.

    A `Direction` is taken at each module's own layer, one vector everywhere.

    Raises:
        ValueError: no adapter, none that writes to the stream, or a direction without a vector at its layer.
    """
    units = {}
    for module in lora_modules(model):
        if module.writes_to_stream and module.layer is not None:
            vector = direction if isinstance(direction, Tensor) else direction[module.layer]
            if vector.shape != module.B.shape[:1]:
                raise ValueError(f"direction has d_model {len(vector)} but {module.name} writes {len(module.B)}")
            # Behind a norm of weights g it is g ⊙ output that must have nothing along v, so output nothing along g ⊙ v.
            vector = vector.detach().float().cpu() * (1.0 if module.gain is None else module.gain)
            if not vector.any():
                raise ValueError(f"the direction is zero at {module.name}: leave that layer's adapter as it is")
            units[module.name] = torch.nn.functional.normalize(vector, dim=0)
    if not units:
        raise ValueError("the adapter is on no module that writes to the residual stream: there is nothing to project")

    def project(unit: Float[Tensor, " d_model"]) -> Callable[..., Tensor]:
        def out(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            precise, along = output.float(), unit.to(output.device)
            return (precise - (precise @ along)[..., None] * along).to(output.dtype)

        return out

    with _hooked(model, "lora_B", {name: project(unit) for name, unit in units.items()}):
        yield model


@contextmanager
def _hooked(model: HookedModel, factor: str, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Forward hooks on these adapters' `lora_A` or `lora_B`, of the bridge and of its twin."""
    chosen = {name: lora for name, (_, lora) in lora_layers(model).items() if name in hooks}
    with ExitStack() as stack:
        for peft_model in model.peft_models:
            for name, lora in layers_in(peft_model, chosen).items():
                module = getattr(lora, factor)[active_adapter(lora)]
                stack.callback(module.register_forward_hook(hooks[name]).remove)
        yield


def lora_layers(model: Any) -> dict[str, tuple[str, Any]]:
    """Name → path and PEFT layer, on the twin, which keeps the names that PEFT gave."""
    hooked = HookedModel.of(model)
    if not hooked.peft_models:
        reason = "its adapter is merged: pass the adapter's folder" if hooked.adapter else "it has no adapter"
        raise ValueError(f"{hooked!r} cannot be taken apart: {reason}")
    return _peft_layers(hooked.peft_models[-1])


def _peft_layers(peft_model: Any) -> dict[str, tuple[str, Any]]:
    """Name → path in the base model and layer with `lora_A` and `lora_B`, once all are known to be plain LoRA."""
    from peft.tuners.lora import LoraLayer

    active = list(peft_model.active_adapters)
    if len(active) != 1:
        raise ValueError(f"the model has {len(active)} active adapters ({', '.join(active)}): set_adapter to one")
    check_plain_lora(peft_model.peft_config[active[0]].to_dict(), f"adapter {active[0]!r}")
    found = {
        path: module
        for path, module in peft_model.get_base_model().named_modules()
        if isinstance(module, LoraLayer) and active[0] in module.r
    }
    names = _names(found)
    for path, module in found.items():
        if active[0] not in module.lora_A or getattr(module.lora_A[active[0]], "weight", torch.empty(0)).ndim != 2:
            raise ValueError(f"the adapter on {names[path]} ({type(module.get_base_layer()).__name__}) is not linear")
        if module.lora_variant:
            kind = type(module.lora_variant[active[0]]).__name__
            raise ValueError(f"the adapter on {names[path]} is a {kind}: B·A·x is not the whole of what it does")
        if module.merged:
            raise ValueError(f"the adapter on {names[path]} is merged: unmerge it first, or pass its folder")
    return {names[path]: (path, found[path]) for path in found}


def layers_in(root: nn.Module, layers: Mapping[str, Any]) -> dict[str, Any]:
    """The same layers in a model that shares their parameters, whatever it calls them: a bridge has its own names."""
    names = {id(lora.lora_A[active_adapter(lora)].weight): name for name, lora in layers.items()}
    found = {}
    for module in root.modules():
        for factor in getattr(module, "lora_A", {}).values():
            if id(factor.weight) in names:
                found[names[id(factor.weight)]] = module
    assert found.keys() == layers.keys()
    return found


def active_adapter(lora: Any) -> str:
    """The name of the adapter that a PEFT layer runs."""
    (name,) = lora.active_adapters
    return name


def _snapshot(name: str, lora: Any, writes: bool, gain: Tensor | None) -> LoraModule:
    a, b = (
        getattr(lora, side)[active_adapter(lora)].weight.detach().to("cpu", torch.float32, copy=True)
        for side in ("lora_A", "lora_B")
    )
    return LoraModule(name, layer_number(name), a, b, float(lora.scaling[active_adapter(lora)]), writes, gain)


@torch.no_grad()
def _writers(hooked: HookedModel) -> dict[str, Float[Tensor, " d_model"] | None]:
    """Path of every module whose output joins the stream, by the bridge's own tables, and the norm in between."""
    found: dict[str, Tensor | None] = {}
    for block in hooked.bridge.blocks:
        for part, output in (("attn", "o"), ("mlp", "out")):
            component = block.submodules.get(part)
            last = getattr(component, "submodules", {}).get(output)
            if last is None:
                continue
            through = block.hook_aliases.get(f"hook_{part}_out", part).split(".")[0]
            gain = None
            if through != part:
                assert hooked.plain is not None
                norm = hooked.plain.get_submodule(f"{block.name}.{block.submodules[through].name}")
                ones = torch.ones(1, 1, hooked.d_model, device=hooked.device, dtype=hooked.dtype)
                gain = norm.forward(ones)[0, 0].float().cpu()  # an RMS norm of ones is its own weights; no hook sees it
            found[f"{block.name}.{component.name}.{last.name}"] = gain
    return found


def _named_writer(name: str) -> bool:
    return layer_number(name) is not None and name.rpartition(".")[2] in _WRITERS


def _names(paths: Mapping[str, Any]) -> dict[str, str]:
    """The path from the stack of layers on: `layers.15.mlp.down_proj`, `h.3.attn.c_attn`; the whole path elsewhere."""
    if not paths:
        raise ValueError("the adapter is on no linear module: there is nothing to take apart")
    names = {}
    for path in paths:
        match = re.search(r"(?:^|\.)([a-zA-Z_]+\.\d+\..+)$", path)
        names[path] = match[1] if match else path
    doubles = [path for path in paths if list(names.values()).count(names[path]) > 1]
    if doubles:
        raise ValueError(f"the adapter is on two stacks of layers, {doubles[0]} and {doubles[1]}: only one can be read")
    return names


def layer_number(name: str) -> int | None:
    """The number of the layer in a module's name; None outside the layers."""
    match = re.match(r"[a-zA-Z_]+\.(\d+)\.", name)
    return int(match[1]) if match else None


def _order(name: str) -> tuple[int | float, str]:
    number = layer_number(name)
    return math.inf if number is None else number, name


def component_name(module: str, number: int) -> str:
    """`layers.15.mlp.down_proj[0]`."""
    return f"{module}[{number}]"


def _module_of(name: str, by_module: Mapping[str, Float[Tensor, " rank"]]) -> tuple[str, Any]:
    """Module and index of `module` or `module[3]`."""
    if name in by_module:
        return name, slice(None)
    match = re.fullmatch(r"(.+)\[(\d+)\]", name)
    if match is None or match[1] not in by_module:
        raise unknown_name(name, tuple(by_module))
    if int(match[2]) >= len(by_module[match[1]]):
        raise ValueError(f"{match[1]} has no component {match[2]}: it has {len(by_module[match[1]])}, counted from 0")
    return match[1], int(match[2])


def unknown_name(name: str, names: Sequence[str]) -> ValueError:
    """What to raise where an adapter has no module or component of a name: those that it has are listed."""
    return ValueError(f"the adapter has no {name!r}: choose one of {', '.join(names)}")


def _all(source: Source) -> tuple[LoraModule, ...]:
    if isinstance(source, LoraModule):
        return (source,)
    if isinstance(source, Sequence) and not isinstance(source, str):
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


def _cell(token: str) -> str:
    return f"<code>{html.escape(repr(token)[1:-1])}</code>"
