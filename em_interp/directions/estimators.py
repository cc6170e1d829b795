"""Directions from activations: the difference of means, what stands in for it under the null, and parts of two."""

from dataclasses import replace
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import Activations, ContrastActivations
from em_interp.directions.direction import Direction
from em_interp.statistics.resampling import permuted_labels

Pooling = Literal["conversation", "token"]
_NOTHING = 1e-9  # of the length of an activation: what float64 leaves of a difference that is zero


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


def permuted_directions(
    contrast: ContrastActivations, n: int, *, seed: int, pooling: Pooling = "conversation"
) -> tuple[Direction, ...]:
    """What a direction would be if the labels meant nothing: differences of means of the same activations, permuted.

    Labels are permuted within each question; questions that have one class only exchange theirs as whole units. Each
    difference is then made as long, at every layer, as the one under the true labels, so that what it does differs by
    where it points and not by how far. Sums are in float64. Isotropic directions (`random_like`) are a weaker null:
    they lie mostly where activations hardly vary, and so do little.

    This is the exact null of a permutation test, and it has a price. Where the classes lie far apart, permuted labels
    leave much of the true direction in the difference (half of its squared length where questions differ from each
    other as much as the classes do), and some draws do nearly what the true one does. Power is low then: what does
    not stand out from this null was not shown to do nothing.

    Args:
        contrast: the activations that the direction is the difference of means of.
        n: how many. Names are `permuted 1`, `permuted 2` …; of where the classes lie along them nothing is known (NaN).
        seed: of the permutations.
        pooling: as in `difference_of_means`.

    Raises:
        ValueError: n is below one; labels without which nothing is left to point anywhere at some layer; or as
            `difference_of_means`.
    """
    if n < 1:
        raise ValueError(f"n is {n}: ask for one permuted direction or more")
    true = difference_of_means(contrast, pooling=pooling)
    sides = (contrast.positive, contrast.negative)
    positive = torch.arange(len(sides[0]) + len(sides[1])) < len(sides[0])
    generator = torch.Generator().manual_seed(seed)
    labels = permuted_labels(positive, sides[0].groups + sides[1].groups, n, generator)
    weights = torch.cat([_weights(side, pooling) for side in sides])
    plus, minus = ((weights * chosen) / (weights * chosen).sum(-1, keepdim=True) for chosen in (labels, ~labels))
    found = []
    for row, layer in enumerate(contrast.layers):
        rows = torch.cat([side.values[:, row] for side in sides]).double()
        vectors = (plus - minus) @ rows
        lengths = vectors.norm(dim=-1, keepdim=True)
        if true.norm[row] > 0 and not (lengths > _NOTHING * rows.norm(dim=-1).mean()).all():
            raise ValueError(
                f"with its labels permuted the classes of {contrast.name!r} do not differ at layer {layer}, where they "
                f"do with the true ones: give more questions, or other texts in each"
            )
        found.append(vectors / lengths.clamp_min(torch.finfo(torch.float64).tiny) * true.vectors[row].double().norm())
    unknown = torch.full_like(true.residual_norm, torch.nan)
    bare = replace(true, positive_projection=unknown, negative_projection=unknown)
    draws = torch.stack(found, 1).float()
    return tuple(replace(bare, vectors=vectors, name=f"permuted {i}") for i, vectors in enumerate(draws, 1))


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
