"""A LoRA adapter taken apart: its matrices, what it writes, when it fires, and the model with parts of it off."""

from em_interp.lora.modules import LoraModule, lora_modules
from em_interp.lora.scalars import (
    AdapterScalars,
    ClassScalars,
    ScalarProbe,
    adapter_scalars,
    class_scalars,
    probe_scalars,
)
from em_interp.lora.switches import projected_adapters, scaled_adapters
from em_interp.lora.writes import (
    Downstream,
    Propagated,
    WriteCosines,
    Writes,
    propagate,
    write_cosines,
    write_directions,
)

__all__ = [
    "AdapterScalars",
    "ClassScalars",
    "Downstream",
    "LoraModule",
    "Propagated",
    "ScalarProbe",
    "WriteCosines",
    "Writes",
    "adapter_scalars",
    "class_scalars",
    "lora_modules",
    "probe_scalars",
    "projected_adapters",
    "propagate",
    "scaled_adapters",
    "write_cosines",
    "write_directions",
]
