"""A LoRA adapter taken apart: what each module's update is, what it writes, and the model with parts of it off."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_interp.checks import door
from em_interp.models.adapter_files import adapter_factors, check_plain_lora
from em_interp.models.hooked import HookedModel, TransformerLensModel
from em_interp.models.sites import writer

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
        gain: weights of the norm that lies between the module and the stream, as in Gemma 2 and 3, or the factor by
            which its output is multiplied, as in Granite. Only a `HookedModel` knows it.
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


@door
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


def lora_layers(model: TransformerLensModel) -> dict[str, tuple[str, Any]]:
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
    """Path of every module whose output joins the stream, by the bridge's own tables, and what it is multiplied by."""
    found: dict[str, Tensor | None] = {}
    for name in (f"blocks.{layer}.hook_{part}_out" for layer in range(hooked.n_layers) for part in ("attn", "mlp")):
        write = writer(hooked.bridge, name)
        if write is None or hooked.sites.reason(name):
            continue
        ones = torch.ones(1, 1, hooked.d_model, device=hooked.device, dtype=hooked.dtype)
        if write.norm is not None:
            assert hooked.plain is not None
            ones = hooked.plain.get_submodule(write.norm).forward(ones)  # of ones its own weights; no hook sees it
        plain = write.norm is None and write.scale == 1
        found[write.path] = None if plain else write.scale * ones[0, 0].float().cpu()
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


def unknown_name(name: str, names: Sequence[str]) -> ValueError:
    """What to raise where an adapter has no module or component of a name: those that it has are listed."""
    return ValueError(f"the adapter has no {name!r}: choose one of {', '.join(names)}")
