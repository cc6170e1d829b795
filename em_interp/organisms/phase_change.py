"""Where in training an adapter turns: rotation, path in its principal plane, and the change of its direction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_interp.checks import door
from em_interp.organisms.trajectories import Trajectory
from em_interp.organisms.turning_points import (
    ChangePoint,
    best_break,
    check_resamples,
    find_turn,
    path_coordinates,
    path_noise,
    simulated_paths,
    unit_increments,
)


@dataclass(frozen=True, eq=False)
class Phases:
    """What became of an adapter's vector over training, checkpoint by checkpoint.

    Attributes:
        name: of the matrix, or of the path.
        steps: the optimizer step of each checkpoint.
        norm: length of the vector.
        cosine_to_final: cosine with the last vector, NaN where there is no vector yet.
        windows: of the local cosine, in checkpoints.
        local_cosine: −1 where the path is straight, 0 where it turns at a right angle, NaN where it is not defined.
        floor: 2.5 % and 97.5 % quantiles of the local cosine of straight paths with these step lengths and this noise.
        pca: the path in its principal components.
        explained: share of the path's variance along each.
        loss: median training loss over the optimizer steps since the last checkpoint; None for a bare path.
        grad_norm: the same of the gradient's norm.
        change_point: where the direction of the increments changes most.
    """

    name: str
    steps: Int[Tensor, " checkpoint"]
    norm: Float[Tensor, " checkpoint"]
    cosine_to_final: Float[Tensor, " checkpoint"]
    windows: tuple[int, ...]
    local_cosine: Float[Tensor, "window checkpoint"]
    floor: Float[Tensor, "2 window checkpoint"]
    pca: Float[Tensor, "checkpoint component"]
    explained: Float[Tensor, " component"]
    loss: Float[Tensor, " checkpoint"] | None
    grad_norm: Float[Tensor, " checkpoint"] | None
    change_point: ChangePoint
    n_resamples: int
    seed: int

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        c = self.change_point
        turn = f"turns at step {c.step} [{c.low}, {c.high}]" if c.found else "no turn found"
        return (
            f"Phases({self.name!r}, {len(self.steps)} checkpoints to step {int(self.steps[-1])}, {turn}, "
            f"p = {c.p_value:.3f})"
        )


@dataclass(frozen=True, eq=False)
class EffectPath:
    """A behaviour at every checkpoint, with the adapter scaled by one factor or several.

    Attributes:
        behaviour: what was measured, and its unit.
        steps: the optimizer step of each checkpoint.
        scales: what the adapter was multiplied with.
        value: the behaviour at each scale and checkpoint.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    behaviour: str
    steps: Int[Tensor, " checkpoint"]
    scales: tuple[float, ...]
    value: Float[Tensor, "scale checkpoint"]
    low: Float[Tensor, "scale checkpoint"]
    high: Float[Tensor, "scale checkpoint"]

    def __post_init__(self) -> None:
        """Refuse numbers that are not one a scale and checkpoint."""
        wanted = (len(self.scales), len(self.steps))
        for what in ("value", "low", "high"):
            if tuple(getattr(self, what).shape) != wanted:
                raise ValueError(
                    f"{what} has shape {tuple(getattr(self, what).shape)} and there are {wanted[0]} scales and "
                    f"{wanted[1]} checkpoints: give one number for each scale (rows) and checkpoint (columns)"
                )

    def __repr__(self) -> str:
        """One line."""
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"EffectPath({self.behaviour!r}, {len(self.steps)} checkpoints, scales {scales})"


@door
def phases(  # noqa: PLR0913 - a path and how it is read
    path: Trajectory | Float[Tensor, "checkpoint d"],
    matrix: str | None = None,
    *,
    steps: Int[Tensor, " _"] | None = None,
    windows: Sequence[int] | None = None,
    n_resamples: int = 500,
    seed: int = 0,
) -> Phases:
    """Follow an adapter through its training: how it grows, rotates, and whether and where it turns.

    The floor of the local cosine is the band that 95 % of random paths lie in which are straight and have this path's
    step lengths and its noise on either side of its change point, made as in `change_point`. Noise alone keeps the
    local cosine above −1, the more so the shorter the window.

    Args:
        path: a trajectory, or one vector a checkpoint.
        matrix: of the trajectory, by name; every B as one vector if none is given.
        steps: of the checkpoints of a bare path; a trajectory has its own.
        windows: of the local cosine, in checkpoints; about a 20th, a 10th and a 5th of the path if none are given.
        n_resamples: how many straight paths for the null, and how many turning ones for the interval.
        seed: of both.

    Raises:
        ValueError: fewer than twelve checkpoints, steps that are not one a checkpoint, numbers that are not finite, a
            path that does not move, a window that does not fit.
    """
    trajectory = path if isinstance(path, Trajectory) else None
    vectors = trajectory.path(matrix) if trajectory else path
    assert isinstance(vectors, Tensor)
    if trajectory is not None:
        steps = trajectory.steps
    steps = torch.arange(len(vectors)) if steps is None else steps
    vectors = path_coordinates(vectors, steps)
    windows = _windows(len(vectors), windows)
    check_resamples(n_resamples)
    rotations = torch.stack([local_cosine(vectors, window) for window in windows])
    floor = _floor(vectors, windows, n_resamples, seed)
    coordinates, explained = _principal(vectors)
    return Phases(
        name=matrix or ("every B" if trajectory else "path"),
        steps=steps,
        norm=vectors.norm(dim=1),
        cosine_to_final=_cosines(vectors, vectors[-1]),
        windows=windows,
        local_cosine=rotations,
        floor=floor.masked_fill(rotations.isnan(), math.nan),
        pca=coordinates,
        explained=explained,
        loss=_since_last(trajectory.loss, steps) if trajectory else None,
        grad_norm=_since_last(trajectory.grad_norm, steps) if trajectory else None,
        change_point=find_turn(vectors, steps, n_resamples, seed),
        n_resamples=n_resamples,
        seed=seed,
    )


@door
def local_cosine(
    path: Float[Tensor, "checkpoint d"], window: int, *, threshold: float | None = None
) -> Float[Tensor, " checkpoint"]:
    """How straight the path is at each checkpoint: cos(v[t−k] − v[t], v[t+k] − v[t]) (Turner et al. 2025, 2506.11613).

    A straight path gives −1 and a right angle 0; rotating or scaling the path changes nothing. NaN where the window
    leaves the path, and where the path hardly moves.

    Args:
        path: one vector a checkpoint.
        window: k, in checkpoints.
        threshold: length that the longer of the two differences must have; by default a tenth of what it has at the
            median checkpoint of this window. The paper took 0.0035, for its own organisms.
    """
    cosine = path.new_full((len(path),), math.nan, dtype=torch.float64)
    moved = path.double()[window:] - path.double()[:-window]
    if len(moved) <= window:
        return cosine
    lengths = moved.norm(dim=1)
    longer = lengths[:-window].maximum(lengths[window:])
    least = float(longer.median()) / 10 if threshold is None else threshold
    inner = -(moved[:-window] * moved[window:]).sum(1)
    defined = (longer >= least) & (lengths[:-window].minimum(lengths[window:]) > 0)
    cosine[window:-window] = torch.where(defined, inner / (lengths[:-window] * lengths[window:]), math.nan)
    return cosine


# ---------------------------------------------------------------- a path as increments


# ---------------------------------------------------------------- the path's noise, and paths that have it too


def _floor(
    path: Float[Tensor, "checkpoint d"], windows: Sequence[int], n_resamples: int, seed: int
) -> Float[Tensor, "2 window checkpoint"]:
    """The band that the local cosine has on straight paths; the turn, if there is one, is not part of their noise."""
    generator = torch.Generator().manual_seed(seed)
    units, lengths = unit_increments(path)
    straight = simulated_paths(path_noise(units, best_break(units), straight=False), 1.0, n_resamples, generator)
    cosines = torch.cat([_local_cosines(paths * lengths.float()[:, None], windows) for paths in straight])
    return torch.quantile(cosines, torch.tensor([0.025, 0.975]), dim=0).double()


def _local_cosines(
    moved: Float[Tensor, "path increment d"], windows: Sequence[int]
) -> Float[Tensor, "path window checkpoint"]:
    """Of many paths at once, NaN where the window leaves the path."""
    path = torch.nn.functional.pad(moved.cumsum(1), (0, 0, 1, 0))
    cosines = path.new_full((len(path), len(windows), path.shape[1]), math.nan)
    for row, window in enumerate(windows):
        apart = path[:, window:] - path[:, :-window]
        unit = torch.nn.functional.normalize(apart, dim=2)
        cosines[:, row, window:-window] = -(unit[:, :-window] * unit[:, window:]).sum(2)
    return cosines


# ---------------------------------------------------------------- the rest


def _windows(n: int, windows: Sequence[int] | None) -> tuple[int, ...]:
    if windows is None:
        return tuple(sorted({max(1, round(n / share)) for share in (20, 10, 5)}))
    bad = [window for window in windows if not 1 <= window <= (n - 1) // 2]
    if bad or not windows:
        raise ValueError(
            f"windows are {list(windows)} and the path has {n} checkpoints: choose some from 1 to {(n - 1) // 2}"
        )
    return tuple(windows)


def _cosines(path: Float[Tensor, "checkpoint d"], to: Float[Tensor, " d"]) -> Float[Tensor, " checkpoint"]:
    lengths = path.norm(dim=1) * to.norm()
    return torch.where(lengths > 0, path @ to / lengths, math.nan).clamp(-1, 1)


def _principal(
    path: Float[Tensor, "checkpoint d"],
) -> tuple[Float[Tensor, "checkpoint component"], Float[Tensor, " component"]]:
    """Three components or as many as there are, each with the sign that makes the way from start to end positive."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(3, path.shape[1]), svd_solver="full")
    found = torch.from_numpy(pca.fit_transform(path.numpy()))
    return found * torch.where(found[-1] < found[0], -1.0, 1.0), torch.from_numpy(pca.explained_variance_ratio_)


def _since_last(values: Float[Tensor, " step"], steps: Int[Tensor, " checkpoint"]) -> Float[Tensor, " checkpoint"]:
    """Median over the optimizer steps since the checkpoint before; NaN where there was none."""
    ends = steps.tolist()
    parts = [values[first:last] for first, last in zip([0, *ends[:-1]], ends, strict=True)]
    return torch.stack([part.double().median() if len(part) else torch.tensor(math.nan).double() for part in parts])
