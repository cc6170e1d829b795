"""Directions from activations: the difference of means, its random twins, and the parts of two that stand apart."""

from dataclasses import replace
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import Activations, ContrastActivations
from em_interp.checks import door
from em_interp.directions.direction import Direction

Pooling = Literal["conversation", "token"]


@door
def difference_of_means(contrast: ContrastActivations, *, pooling: Pooling = "conversation") -> Direction:
    """Subtract the mean activation of the negative class from that of the positive class, at every layer.

    `pooling="conversation"` gives every conversation the same weight; `"token"` every token, as the code of Soligo
    et al. (2025, arXiv 2506.11618) does, so that long answers count for more. Sums are in float64.
    """
    if pooling not in ("conversation", "token"):
        raise ValueError(f"pooling {pooling!r} is unknown: choose 'conversation' or 'token'")
    for label, side in (("positive", contrast.positive), ("negative", contrast.negative)):
        if not len(side):
            raise ValueError(f"contrast {contrast.name!r} has no {label} activations: a direction needs both classes")
        positions = sorted(set(side.positions))
        if len(positions) > 1:
            raise ValueError(
                f"the activations hold {len(positions)} positions a conversation ({side.span}): choose one with "
                f"contrast.at(position), of {positions}"
            )
    positive, negative = _mean(contrast.positive, pooling), _mean(contrast.negative, pooling)
    vectors = positive - negative
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return Direction(
        vectors=vectors.float(),
        residual_norm=_residual_norm(contrast, pooling).float(),
        positive_projection=(positive * unit).sum(-1).float(),
        negative_projection=(negative * unit).sum(-1).float(),
        layers=contrast.layers,
        name=contrast.name,
        site=contrast.site,
        span=contrast.span,
        pooling=pooling,
        model=contrast.model,
        contrast_hash=contrast.contrast_hash,
        n_positive=len(contrast.positive),
        n_negative=len(contrast.negative),
    )


def _mean(activations: Activations, pooling: Pooling) -> Float[Tensor, "layer d_model"]:
    weights = _weights(activations, pooling)
    return einsum(weights, activations.values.double(), "c, c layer d_model -> layer d_model") / weights.sum()


def _residual_norm(contrast: ContrastActivations, pooling: Pooling) -> Float[Tensor, " layer"]:
    weights = torch.cat([_weights(side, pooling) for side in (contrast.positive, contrast.negative)])
    return weights @ torch.cat([contrast.positive.norms, contrast.negative.norms]).double() / weights.sum()


def _weights(activations: Activations, pooling: Pooling) -> Float[Tensor, " conversation"]:
    return activations.n_tokens.double() if pooling == "token" else torch.ones(len(activations), dtype=torch.float64)


def random_like(direction: Direction, seed: int, name: str) -> Direction:
    """An isotropic random direction of the same length at every layer, the same one at all of them."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(direction.d_model, generator=generator), dim=0)
    return replace(direction, vectors=direction.norm[:, None] * unit, name=name)


def parts_apart(first: Direction, second: Direction) -> tuple[Direction, Direction]:
    """What each of two directions has that the other has not, layer by layer."""

    def without(a: Direction, b: Direction) -> Direction:
        rows = torch.stack([b[number] for number in a.layers])
        unit = torch.nn.functional.normalize(rows, dim=-1)
        shared = (a.vectors * unit).sum(-1, keepdim=True)
        return replace(a, vectors=a.vectors - shared * unit, name=f"{a.name} without {b.name}")

    return without(first, second), without(second, first)
