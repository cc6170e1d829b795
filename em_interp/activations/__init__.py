"""Forward passes over many conversations, and what the residual stream holds on a span of their tokens."""

from em_interp.activations.forward import first_adapted_block, keeping, logits_at_spans
from em_interp.activations.reading import (
    Activations,
    ContrastActivations,
    component_outputs,
    read_contrast,
    residual_stream,
)

__all__ = [
    "Activations",
    "ContrastActivations",
    "component_outputs",
    "first_adapted_block",
    "keeping",
    "logits_at_spans",
    "read_contrast",
    "residual_stream",
]
