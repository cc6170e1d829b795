"""P-values of effects by a null of permuted labels: of one, and of several that a conclusion rests on."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.checks import door

_TIE = 1 - 1e-5  # permutations that give the labels back must count as ties in spite of float32


@door
def permutation_p(observed: float, null: Sequence[float]) -> float:
    """(1 + how many draws are at least as large in size) / (1 + how many draws there are), two-sided.

    With 19 draws it can reach .05, with 39 .025. Draws that are NaN were not measured and are left out of both counts;
    NaN where no draw is left, or where the observed value is.
    """
    known = [abs(value) for value in null if not math.isnan(value)]
    if not known or math.isnan(observed):
        return math.nan
    return (1 + sum(value >= abs(observed) * _TIE for value in known)) / (1 + len(known))


@door
def step_down_p(observed: Float[Tensor, " cell"], null: Float[Tensor, "draw cell"]) -> Float[Tensor, " cell"]:
    """P-values of several effects together: the chance that any of those without an effect comes out as small is p.

    The step-down max-T of Westfall and Young (1993, *Resampling-based multiple testing*, algorithm 2.8): the largest
    effect is held against the largest of all cells in each draw, the next one against the largest of the others, and so
    on; no p is smaller than that of a larger effect. Nineteen draws reach .05 that way for any number of cells, where
    Holm's correction of four p-values would need 79.

    So that cells in different units compare, each one's values are divided by their root mean square. The observed
    value is among these: were it left out, the draws alone would be held down by their own scale, and of four
    cells without effects, one would come out at .05 in 10 % of cases with 19 draws, and not in 5 %.

    Args:
        observed: the effects.
        null: those of the same draws in every cell (a row is one draw). A draw that is NaN in a cell is left out whole.

    Returns:
        In float64, at least `permutation_p` of each cell; NaN everywhere where no draw is left.

    Raises:
        ValueError: an observed effect that is NaN or infinite, or another number of cells in the draws.
    """
    if null.shape[1] != len(observed):
        raise ValueError(f"{len(observed)} effects came with draws of {null.shape[1]} cells: give each its own draws")
    if not observed.isfinite().all():
        raise ValueError(f"an effect is NaN or infinite in {observed.tolist()}: leave out what was not measured")
    alone = [permutation_p(value, draws) for value, draws in zip(observed.tolist(), null.mT.tolist(), strict=True)]
    values = torch.cat([observed[None].double(), null[~null.isnan().any(-1)].double()])
    if len(values) == 1:
        return torch.full_like(observed, math.nan, dtype=torch.float64)
    scale = values.square().mean(0).sqrt()
    sizes = values.abs() / torch.where(scale > 0, scale, 1)
    order = sizes[0].argsort(descending=True)
    # Of each draw the largest in the cells from here on.
    largest = sizes[1:, order].flip(-1).cummax(-1).values.flip(-1)
    steps = [permutation_p(float(sizes[0, cell]), largest[:, i].tolist()) for i, cell in enumerate(order)]
    corrected = torch.tensor(steps, dtype=torch.float64).cummax(-1).values
    return torch.maximum(torch.empty_like(corrected).scatter_(0, order, corrected), corrected.new_tensor(alone))
