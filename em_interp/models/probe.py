"""Two ways of computing the same thing, compared by their logits on one probe; NaN and infinity never pass."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Logits = Float[Tensor, "batch pos vocab"]


def probe_ids(hf_model: Any) -> Int[Tensor, "batch pos"]:
    """Twenty-four tokens from all over a model's vocabulary."""
    table = hf_model.get_input_embeddings().weight
    return torch.linspace(0, len(table) - 1, 24, device=table.device).long()[None]


@torch.no_grad()
def eager_logits(hf_model: Any, ids: Tensor) -> Logits:
    """Logits with the attention that a bridge has, which is the eager one."""
    implementation = hf_model.config._attn_implementation
    hf_model.set_attn_implementation("eager")
    try:
        return hf_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
    finally:
        hf_model.set_attn_implementation(implementation)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """How far logits are off, relative to their size: infinite where the shapes differ, NaN where one of them is."""
    if got.shape != wanted.shape:
        return math.inf
    wanted = wanted.to(got)
    if torch.isfinite(got).all() and torch.equal(got, wanted):
        return 0.0
    return float((got - wanted).norm() / wanted.norm())


def tolerance(dtype: torch.dtype, at_least: float = 1e-5) -> float:
    """How far logits may be off, relative to their size, for two ways of computing them to count as the same."""
    return max(at_least, 4 * torch.finfo(dtype).eps)


def check_weights_finite(hf_model: nn.Module, name: str) -> None:
    """Refuse a model with NaN or infinity in a weight.

    Raises:
        ValueError: it names the weights.
    """
    broken = [path for path, weight in hf_model.named_parameters() if not _finite(weight)]
    if broken:
        raise ValueError(
            f"{name} is NaN or infinite at {listed(broken)}: its training diverged, or its file is damaged"
        )


def _finite(weight: Tensor) -> bool:
    if not weight.is_floating_point() or weight.itemsize < 2 or weight.numel() == 0:  # quantised, or nothing
        return True
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(weight.detach()))


def listed(names: Any, most: int = 4) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
