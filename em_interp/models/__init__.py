"""A model by its name or folder, with or without an adapter, as a hooked model checked against Hugging Face."""

from em_interp.models.adapter_files import adapter_base, adapter_factors
from em_interp.models.adapters import adapter_digest, attach_adapter
from em_interp.models.hooked import (
    HookedModel,
    HookPairs,
    attached,
    every_layer,
    every_write,
    site,
    without_adapter,
)
from em_interp.models.loading import load_model
from em_interp.models.sites import SITES
from em_interp.models.weights import export, merge_hooks, orthogonalize

__all__ = [
    "SITES",
    "HookPairs",
    "HookedModel",
    "adapter_base",
    "adapter_digest",
    "adapter_factors",
    "attach_adapter",
    "attached",
    "every_layer",
    "every_write",
    "export",
    "load_model",
    "merge_hooks",
    "orthogonalize",
    "site",
    "without_adapter",
]
