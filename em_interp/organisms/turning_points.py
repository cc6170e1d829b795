"""Whether and where a path changes direction: against straight paths with the same steps and the same noise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_interp.checks import door

_FEWEST = 12  # checkpoints; with fewer, neither side of a turn has a direction to speak of
_NEAR = 2  # increments this close share the optimizer's momentum, so their products are left out
_WIDEST = 128  # dimensions of the null paths' noise; noise of more is drawn with these, which widens the null a little
_SMOOTH = 7  # increments over which the share of the signal is averaged
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class ChangePoint:
    """The checkpoint at which a path changes direction, with its interval and its p-value.

    Attributes:
        step: optimizer step of the checkpoint that parts the increments best in two directions.
        low: lower end of its 95 % interval, of a checkpoint.
        high: upper end.
        p_value: share of straight paths with this path's step lengths and noise that turn as much.
        angle: between the mean increments before and after, in degrees, free of noise; NaN where a side has none.
    """

    step: int
    low: int
    high: int
    p_value: float
    angle: float

    @property
    def found(self) -> bool:
        """Whether the path turns, at the 5 % level."""
        return self.p_value <= 0.05

    def __repr__(self) -> str:
        """One line."""
        if not self.found:
            return f"ChangePoint(not found, p = {self.p_value:.3f})"
        return f"ChangePoint(step {self.step} [{self.low}, {self.high}], {self.angle:.0f}°, p = {self.p_value:.3f})"


@door
def change_point(
    path: Float[Tensor, "checkpoint d"],
    steps: Int[Tensor, " _"],
    *,
    n_resamples: int = 500,
    seed: int = 0,
) -> ChangePoint:
    """The checkpoint at which the direction of the increments changes most, and whether that is more than noise.

    The increments between checkpoints are made as long as one another, so that a learning rate that falls is no turn,
    and parted in two by least squares (`ruptures`, one break, an eighth of the increments at least on either side).

    How far they turn is measured without the products of an increment with itself and with its two neighbours on
    either side, which share noise: 2(‖μ‖‖ν‖ − μ·ν) · mn/(m + n), the most over all breaks, for means μ and ν of m
    and n increments. It is zero, but for chance, where the two sides are parallel, however noisy each is.

    The null paths are straight. Each increment keeps its length and the share of it along the mean direction (averaged
    over seven increments). The rest of it is noise, modelled as an autoregression of first order, whose memory is
    estimated from neighbouring increments with its bias taken out (Marriott and Pope 1954). Its shocks have the sizes
    and the directions of the path's own noise, so that this stays as large, as anisotropic and as high-dimensional as
    it was; but the directions come in a random order, each with a random sign. For the null the mean direction is that
    of the whole path. For the interval it is that of either side, and the paths turn by `angle`; the interval is
    symmetric, in whole checkpoints, and holds 95 % of the breaks found in them: for a clear turn it is one checkpoint.

    Simulated with 40 to 80 increments, noise half as long as the signal to half again as long, isotropic or not, with
    a memory of 0 to 0.6: 0 to 6 % of straight paths turn, the fewer the longer the memory, and hardly more where the
    signal fades and the noise stays. Intervals hold the turn in 92 to 97 %. A turn of 45° in the largest noise with the
    longest memory is mostly missed. A path that bends all along is not straight either, and has a turn in its midst:
    look at `Phases.pca`.

    Raises:
        ValueError: fewer than twelve checkpoints, steps that are not one a checkpoint, numbers that are not finite, a
            path that does not move.
    """
    check_resamples(n_resamples)
    return find_turn(path_coordinates(path, steps), steps, n_resamples, seed)


def path_coordinates(
    path: Float[Tensor, "checkpoint d"], steps: Int[Tensor, " _"]
) -> Float[Tensor, "checkpoint coordinate"]:
    """The path in as many dimensions as it has checkpoints, all lengths and angles kept."""
    n = len(path)
    if n < _FEWEST:
        raise ValueError(
            f"the path has {n} checkpoint{'s' * (n != 1)} and a change of direction takes at least {_FEWEST}: train "
            f"again with a smaller checkpoint_every"
        )
    if len(steps) != n:
        raise ValueError(f"the path has {n} checkpoints and there are {len(steps)} steps: give one a checkpoint")
    if not (steps.diff() > 0).all():
        raise ValueError(f"the checkpoints' steps are {steps.tolist()}: they should rise")
    if not torch.isfinite(path).all():
        bad = int((~torch.isfinite(path).all(1)).nonzero()[0])
        raise ValueError(f"the path is NaN or infinite at step {int(steps[bad])}: the training diverged")
    if not (path.diff(dim=0) != 0).any():
        raise ValueError(f"the path stays where it is for {n} checkpoints: choose a matrix that was trained")
    path = path.double()
    return path if path.shape[1] <= n else torch.linalg.qr(path.T, mode="r").R.T


def unit_increments(
    path: Float[Tensor, "checkpoint d"],
) -> tuple[Float[Tensor, "increment d"], Float[Tensor, " increment"]]:
    """The increments between checkpoints at length one, and how long they were."""
    moved = path.diff(dim=0)
    lengths = moved.norm(dim=1)
    return moved / lengths.clamp_min(_TINY * float(lengths.max()))[:, None], lengths


def _margin(n: int) -> int:
    """How many of n increments at least lie on either side of a break."""
    return max(4, n // 8)


def best_break(units: Float[Tensor, "increment d"]) -> int:
    """How many increments lie before the break that leaves the least sum of squares about the two means."""
    import ruptures

    n = len(units)
    found = ruptures.Dynp(model="l2", min_size=_margin(n), jump=1).fit(units.numpy()).predict(n_bkps=1)
    return int(found[0])


def _gain(units: Float[Tensor, "*path increment d"]) -> Float[Tensor, "*path break"]:
    """What each break takes off the sum of squares; the first break is after `_margin` increments."""
    n = units.shape[-2]
    m = torch.arange(1, n)
    sums = units.cumsum(-2)
    whole, first = sums[..., -1:, :], sums[..., :-1, :]
    apart = (first - whole * (m / n)[:, None].to(units)).square().sum(-1) * n / (m * (n - m)).to(units)
    return apart[..., _margin(n) - 1 : n - _margin(n)]


class _Products(NamedTuple):
    """Mean product of two increments more than two apart: both before the break, both after, one on each side."""

    before: Float[Tensor, "*path break"]
    after: Float[Tensor, "*path break"]
    between: Float[Tensor, "*path break"]


def _products(units: Float[Tensor, "*path increment d"]) -> _Products:
    """At every break from after `_margin` increments on, from running sums: what is near is taken off again."""
    n = units.shape[-2]
    m = torch.arange(1, n).to(units)
    sums = units.cumsum(-2)
    whole, first = sums[..., -1:, :], sums[..., :-1, :]
    square, cross = first.square().sum(-1), (first * whole).sum(-1)
    total = whole.square().sum(-1)
    before, after, between = square, total - 2 * cross + square, cross - square
    for lag in range(_NEAR + 1):
        near = (units[..., lag:, :] * units[..., : n - lag, :]).sum(-1) * (1 + (lag > 0))  # each pair is there twice
        running = torch.nn.functional.pad(near.cumsum(-1), (lag, 0))  # of pairs that end with the increment or before
        ended, begun = running[..., :-1], running[..., (torch.arange(n - 1) + lag).clamp_max(n - 1)]
        before = before - ended
        after = after - (running[..., -1:] - begun)
        between = between - (begun - ended) / 2
    pairs = [(k - _NEAR) * (k - _NEAR - 1) for k in (m, n - m)]
    across = m * (n - m) - _NEAR * (_NEAR + 1) / 2
    kept = slice(_margin(n) - 1, n - _margin(n))
    counted = zip((before, after, between), (*pairs, across), strict=True)
    return _Products(*((sum_ / count.clamp_min(1))[..., kept] for sum_, count in counted))


def _bend(units: Float[Tensor, "*path increment d"]) -> Float[Tensor, "*path break"]:
    """How far the path turns at each break: zero on average where the two sides are parallel."""
    n = units.shape[-2]
    m = torch.arange(_margin(n), n - _margin(n) + 1).to(units)
    p = _products(units)
    return 2 * ((p.before.clamp_min(0) * p.after.clamp_min(0)).sqrt() - p.between) * m * (n - m) / n


@dataclass(frozen=True, eq=False)
class _Noise:
    """Unit increments as a smooth share along the mean direction, of the path or of a side of the break, and noise."""

    n_before: int
    along: Float[Tensor, " increment"]
    noise: Float[Tensor, "increment coordinate"]  # the first coordinate is along the direction, the others across
    memory: float
    cosine: float  # of the two sides' mean directions


def path_noise(units: Float[Tensor, "increment d"], n_before: int, *, straight: bool) -> _Noise:
    """What increments have along one direction, or along one on either side of a break, and what else."""
    n = len(units)
    halves = (slice(0, n_before), slice(n_before, n))
    memory = _memory(_across(units, halves))  # of a turning path too, whose turn would pass for memory
    sides = (slice(0, n),) if straight else halves
    along = _smooth(torch.cat([_along(units[side], memory) for side in sides])).clamp(0, 1)
    across = _across(units, sides)
    kept = (units.square().sum(1) - across.square().sum(1)).clamp_min(0).sqrt()
    noise = torch.cat([(kept - _smooth(kept))[:, None], _narrowed(across)], 1)
    lengths = noise.norm(dim=1).clamp_min(_TINY)
    noise = noise * ((1 - along.square()).sqrt() / lengths)[:, None]
    return _Noise(n_before, along, noise, memory, _cosine_of_sides(units, n_before))


def _across(units: Float[Tensor, "increment d"], sides: Sequence[slice]) -> Float[Tensor, "increment d"]:
    across = units.clone()
    for side in sides:
        mean = torch.nn.functional.normalize(units[side].sum(0), dim=0)
        across[side] -= (units[side] @ mean)[:, None] * mean
    return across


def _memory(across: Float[Tensor, "increment d"]) -> float:
    """Autocorrelation of neighbours, of which two fitted means took 2(1 + 3ρ)/n.

    Rounded up by half the standard error that it has in noise of one dimension: too little would be too many turns.
    """
    n, lengths = len(across), across.norm(dim=1)
    neighbours = float((across[1:] * across[:-1]).sum() / (lengths[1:] * lengths[:-1]).sum().clamp_min(_TINY))
    return min(max((n * neighbours + 2) / (n - 6), 0.0) + 0.5 / math.sqrt(n), 0.9)


def _along(units: Float[Tensor, "increment d"], memory: float) -> Float[Tensor, " increment"]:
    """Share of each increment along its side's true mean, from its products with others that share no noise with it.

    Those are the ones for which the memory has faded to a tenth.
    """
    n = len(units)
    reach = min(math.ceil(math.log(0.1) / math.log(memory)) if memory > 0.1 else 1, n // 3 + 1)
    far = ((torch.arange(n)[:, None] - torch.arange(n)).abs() > reach).double()
    products = (units @ units.T) * far
    square = float(products.sum() / far.sum())
    return products.sum(1) / far.sum(1).clamp_min(1) / math.sqrt(square) if square > _TINY else torch.zeros(n).double()


def _smooth(values: Float[Tensor, " increment"]) -> Float[Tensor, " increment"]:
    n = len(values)
    near = ((torch.arange(n)[:, None] - torch.arange(n)).abs() <= _SMOOTH // 2).double()
    return near @ values / near.sum(1)


def _narrowed(across: Float[Tensor, "increment d"]) -> Float[Tensor, "increment coordinate"]:
    """Noise in no more than `_WIDEST` dimensions: a random projection keeps its products but for one part in √128."""
    if across.shape[1] > len(across):
        across = torch.linalg.qr(across.T, mode="r").R.T
    if across.shape[1] <= _WIDEST:
        return across
    left, sizes, _ = torch.linalg.svd(across, full_matrices=False)  # so that a rotated path gives the same,
    left = left * torch.where(left.pow(3).sum(0) < 0, -1.0, 1.0)  # signs too; their sums are zero
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(len(sizes), _WIDEST, generator=generator, dtype=across.dtype) / math.sqrt(_WIDEST)
    return (left * sizes) @ random


def _cosine_of_sides(units: Float[Tensor, "increment d"], n_before: int) -> float:
    """Cosine of the two mean directions without noise, NaN where a side has no direction."""
    before, after, between = (float(p[n_before - _margin(len(units))]) for p in _products(units))
    if min(before, after) <= _TINY:
        return math.nan
    return min(max(between / math.sqrt(before * after), -1.0), 1.0)


def simulated_paths(
    noise: _Noise, cosine: float, n: int, generator: torch.Generator
) -> Iterator[Float[Tensor, "path increment d"]]:
    """Unit increments of n random paths whose two sides have this cosine, some at a time."""
    turned = torch.arange(len(noise.along)) >= noise.n_before
    sine = math.sqrt(1 - cosine**2)
    axes = torch.stack([torch.where(turned, cosine, 1.0), torch.where(turned, sine, 0.0)], 1)
    along, memory = noise.along.float()[:, None], noise.memory
    sizes = noise.noise.norm(dim=1, keepdim=True).clamp_min(_TINY)
    directions = (noise.noise / sizes).float()
    sizes = sizes.float() * math.sqrt(1 - memory**2)
    sizes[0] /= math.sqrt(1 - memory**2)  # the first is as large as what shocks add up to
    for drawn in torch.arange(n).split(max(1, 4_000_000 // directions.numel())):
        order = torch.rand(len(drawn), len(sizes), generator=generator).argsort(1)
        tossed = torch.randint(0, 2, (len(drawn), len(sizes), 1), generator=generator).float() * 2 - 1
        noisy = tossed * sizes * directions[order]
        for i in range(1, len(sizes)):
            noisy[:, i] += memory * noisy[:, i - 1]
        signal = (along + noisy[..., :1]) * axes.float()
        yield torch.nn.functional.normalize(torch.cat([signal, noisy[..., 1:]], 2), dim=2)


def find_turn(
    path: Float[Tensor, "checkpoint d"], steps: Int[Tensor, " checkpoint"], n_resamples: int, seed: int
) -> ChangePoint:
    """`change_point` of a path whose coordinates were checked."""
    generator = torch.Generator().manual_seed(seed)
    units, _ = unit_increments(path)
    n, here = len(units), best_break(units)
    null = path_noise(units, here, straight=True)
    bends = torch.cat([_bend(straight).amax(-1) for straight in simulated_paths(null, 1.0, n_resamples, generator)])
    observed = float(_bend(units).max()) - 1e-5 * n  # a path without noise turns by no more than rounding
    p_value = (1 + int((bends >= observed).sum())) / (1 + n_resamples)
    noise = path_noise(units, here, straight=False)
    plain = torch.nn.functional.cosine_similarity(units[:here].sum(0), units[here:].sum(0), dim=0)
    cosine = float(plain.clamp(-1, 1)) if math.isnan(noise.cosine) else noise.cosine
    found = torch.cat([_gain(turning).argmax(-1) for turning in simulated_paths(noise, cosine, n_resamples, generator)])
    off = (found + _margin(n) - here).abs().double()
    reach = int(torch.quantile(off, 0.95, interpolation="higher"))
    low, high = max(here - reach, 1), min(here + reach, n - 1)
    angle = math.degrees(math.acos(noise.cosine)) if not math.isnan(noise.cosine) else math.nan
    return ChangePoint(int(steps[here]), int(steps[low]), int(steps[high]), p_value, angle)


def check_resamples(n_resamples: int) -> None:
    """Refuse fewer resamples than a 95 % null takes."""
    if n_resamples < 40:
        raise ValueError(f"n_resamples is {n_resamples}: a 95 % null takes at least 40, and 500 is a good number")
