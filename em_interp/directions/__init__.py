"""Directions from activations, compared layer by layer; interventions as files and flags name them."""

from em_interp.directions.comparison import Comparison, clearest, compare, cosine_map
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import (
    ESTIMATORS,
    difference_of_means,
    lda,
    logistic,
    paired,
    parts_apart,
    permuted_directions,
    principal,
    random_like,
    standardised,
)
from em_interp.directions.separation import Separability, separability
from em_interp.directions.settings import Edit, hooks_of

__all__ = [
    "ESTIMATORS",
    "Comparison",
    "Direction",
    "Edit",
    "Separability",
    "clearest",
    "compare",
    "cosine_map",
    "difference_of_means",
    "hooks_of",
    "lda",
    "logistic",
    "paired",
    "parts_apart",
    "permuted_directions",
    "principal",
    "random_like",
    "separability",
    "standardised",
]
