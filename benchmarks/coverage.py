"""How often the 95 % interval of a corrected cosine holds the true cosine, simulated cell by cell."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from benchmarks.timing import table
from em_interp.activations.reading import Activations, ContrastActivations
from em_interp.directions.comparison import Comparison, compare

COSINES = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98)
QUESTIONS = (24, 48, 128)
NOISES = ("isotropic", "log-normal", "Student's t", "Student's t of rows")
D_MODEL = 96
STRENGTH = 0.35  # length of the true directions; a row of noise has length one
SHARED = 0.7  # of the variance of noise, where both contrasts read the same questions
RESAMPLES = 200
WANTED = (0.92, 0.98)


@dataclass(frozen=True)
class Cell:
    """One way to simulate two contrasts.

    Attributes:
        cosine: the true cosine.
        n: questions a contrast.
        noise: isotropic; log-normal, the standard deviation of each dimension exp(a normal number); Student's t of
            three degrees in each dimension, or one such length for all dimensions of a row.
        shared: whether both contrasts read the same questions, which have most of the noise in common.
        rows: one a question and class, or one to four, which have half of their noise in common.
    """

    cosine: float
    n: int
    noise: str
    shared: bool
    rows: str


@dataclass(frozen=True)
class Found:
    """What came out: shares of simulations in which both directions were found and their interval holds the truth."""

    found: float
    covered: float
    width: float


def simulated(cell: Cell, n_simulations: int, *, seed: int) -> tuple[ContrastActivations, ContrastActivations]:
    """Two contrasts whose layers are simulations, each with directions and noise of its own."""
    g = torch.Generator().manual_seed(seed)
    a, across = torch.linalg.qr(torch.randn(n_simulations, D_MODEL, 2, generator=g)).Q.unbind(-1)
    b = cell.cosine * a + math.sqrt(1 - cell.cosine**2) * across
    scale = torch.ones(n_simulations, D_MODEL)
    if cell.noise == "log-normal":
        scale = torch.randn(n_simulations, D_MODEL, generator=g).exp()
    scale /= scale.norm(dim=-1, keepdim=True)
    question = torch.arange(cell.n)
    if cell.rows == "several":
        question = question.repeat_interleave(1 + question % 4)

    def drawn() -> Tensor:
        """Noise of one class."""
        rows = _standard(cell.noise, (len(question), *scale.shape), g)
        if cell.rows == "several":
            rows = (rows + _standard(cell.noise, (cell.n, *scale.shape), g)[question]) / math.sqrt(2)
        return rows * scale

    common = [drawn(), drawn()] if cell.shared else []
    made = []
    for name, direction in (("a", a), ("b", b)):
        classes = []
        for i, sign in enumerate((1, -1)):
            rows = drawn()
            if cell.shared:
                rows = math.sqrt(SHARED) * common[i] + math.sqrt(1 - SHARED) * rows
            classes.append(rows + sign * STRENGTH / 2 * direction)
        groups = tuple(f"{'' if cell.shared else name}{q}" for q in question.tolist())
        made.append(ContrastActivations(name, *(_read(values, groups) for values in classes), contrast_hash=name))
    return made[0], made[1]


def measured(cell: Cell, n_simulations: int, *, seed: int = 0, n_resamples: int = RESAMPLES) -> Found:
    """Simulate a cell and compare."""
    return held(compare(*simulated(cell, n_simulations, seed=seed), n_resamples=n_resamples), cell.cosine)


def held(c: Comparison, truth: float) -> Found:
    """What the layers of a comparison say of the true cosine."""
    found = c.corrected.isfinite()
    low, high = c.low[found], c.high[found]
    covered = ((low <= truth) & (truth <= high)).double().mean()
    return Found(float(found.double().mean()), float(covered), float((high - low).median()))


def coverage(n_simulations: int) -> Iterator[str]:
    """One table a kind of noise, and then which cells miss."""
    every: list[tuple[Cell, Found]] = []
    for noise in NOISES:
        rows: list[tuple[str, ...]] = [("questions, rows", "n", "found", *(f"ρ = {cosine:g}" for cosine in COSINES))]
        for shared, several, n in product((False, True), ("one", "several"), QUESTIONS):
            cells = [Cell(cosine, n, noise, shared, several) for cosine in COSINES]
            results = [measured(cell, n_simulations, seed=len(every) + i) for i, cell in enumerate(cells)]
            every += zip(cells, results, strict=True)
            found = sum(result.found for result in results) / len(results)
            each = (f"{result.covered:.1%} {result.width:.2f}" for result in results)
            rows.append((f"{'shared' if shared else 'separate'}, {several}", str(n), f"{found:.0%}", *each))
        yield table(f"{noise}: coverage and median width of 95 % intervals, {n_simulations} simulations a cell", rows)
    yield _summary(every)


def _summary(every: list[tuple[Cell, Found]]) -> str:
    shares = [result.covered for _, result in every]
    missed = [(cell, result) for cell, result in every if not WANTED[0] <= result.covered <= WANTED[1]]
    lines = [
        f"{len(every)} cells: {min(shares):.1%} to {max(shares):.1%}, mean {sum(shares) / len(shares):.1%}; "
        f"{len(missed)} outside {WANTED[0]:.0%} to {WANTED[1]:.0%}"
    ]
    lines += [
        f"  {result.covered:.1%} of {result.found:.0%} found, width {result.width:.2f}: {cell}"
        for cell, result in missed
    ]
    return "\n".join(lines)


def _standard(noise: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise of mean zero and variance one."""
    normal = torch.randn(shape, generator=generator)
    if not noise.startswith("Student"):
        return normal
    lengths = shape if noise == "Student's t" else (*shape[:-1], 1)
    chi_squared = torch.randn(3, *lengths, generator=generator).square().sum(0)
    return normal / chi_squared.sqrt()  # t has variance three, and √(χ² / 3) is what it divides by


def _read(values: Tensor, groups: tuple[str, ...]) -> Activations:
    n, n_layers, _ = values.shape
    return Activations(
        values=values,
        norms=values.norm(dim=-1),
        n_tokens=torch.ones(n, dtype=torch.long),
        groups=groups,
        layers=tuple(range(n_layers)),
        site="resid_post",
        span="last",
        model="simulated",
    )
