"""The model with parts of its adapter scaled, switched off or kept from writing along a direction."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_interp.directions.direction import Direction
from em_interp.lora.modules import active_adapter, layers_in, lora_layers, lora_modules, unknown_name
from em_interp.models.hooked import HookedModel


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
    if not math.isfinite(default):
        raise ValueError(f"the factor of all others, default, is {default}: give a finite number")
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
            if not torch.isfinite(vector).all():
                raise ValueError(f"the direction is NaN or infinite at {module.name}: estimate it again")
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
