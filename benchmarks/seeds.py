"""How often the 95 % interval over seeds and questions holds the true mean, and how often that over questions alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from benchmarks.timing import table
from em_interp.statistics.pigeonhole import mean_over_seeds, share_over_seeds

SEEDS = (3, 4, 5)
QUESTIONS = (24, 48, 72)
DEVIATIONS = (
    (0.0, 1.0, 1.0),
    (0.0, 0.5, 1.0),
    (0.1, 0.5, 1.0),
    (0.2, 1.0, 1.0),
    (0.3, 0.3, 1.0),
    (0.3, 1.0, 0.3),
    (0.5, 1.0, 1.0),
    (1.0, 1.0, 1.0),
)
KINDS = ("normal", "skewed", "verdicts")
MEAN = 0.5
WANTED = (0.92, 0.98)


@dataclass(frozen=True)
class Cell:
    """One way to simulate a table of seeds and questions.

    Attributes:
        kind: normal; skewed, where what a question adds and the noise are exponential; verdicts, 1 where a normal value
            is above zero.
        n_seeds: rows.
        n: questions, columns.
        deviations: standard deviations of what a seed adds, of what a question adds, and of the noise.
    """

    kind: str
    n_seeds: int
    n: int
    deviations: tuple[float, float, float]

    @property
    def truth(self) -> float:
        """The mean over all seeds and questions that could come."""
        spread = math.sqrt(sum(d**2 for d in self.deviations))
        return 0.5 * (1 + math.erf(MEAN / spread / math.sqrt(2))) if self.kind == "verdicts" else MEAN


@dataclass(frozen=True)
class Found:
    """Shares of simulations in which an interval holds the truth, and the median width of the one over both."""

    both: float
    questions_only: float
    width: float


def simulated(cell: Cell, n_simulations: int, *, seed: int) -> Tensor:
    """Tables, `[simulation, seed, question]`."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((cell.n_seeds, 1), (1, cell.n), (cell.n_seeds, cell.n))

    def drawn(shape: tuple[int, int], skewed: bool) -> Tensor:
        values = torch.empty(n_simulations, *shape, dtype=torch.float64)
        return values.exponential_(generator=g) - 1 if skewed else values.normal_(generator=g)

    skewed = (False, *[cell.kind == "skewed"] * 2)
    parts = [d * drawn(s, k) for d, s, k in zip(cell.deviations, shapes, skewed, strict=True)]
    values = MEAN + parts[0] + parts[1] + parts[2]
    return (values > 0).double() if cell.kind == "verdicts" else values


def measured(cell: Cell, n_simulations: int, *, seed: int = 0) -> Found:
    """Simulate a cell and count."""
    pool = share_over_seeds if cell.kind == "verdicts" else mean_over_seeds
    found = [pool(values) for values in simulated(cell, n_simulations, seed=seed)]
    both = sum(e.low <= cell.truth <= e.high for e in found)
    only = sum(e.questions_only.low <= cell.truth <= e.questions_only.high for e in found)
    width = sorted(e.high - e.low for e in found)[len(found) // 2]
    return Found(both / n_simulations, only / n_simulations, width)


def seeds(n_simulations: int) -> Iterator[str]:
    """One table a kind of values, and then which cells miss."""
    every: list[tuple[Cell, Found]] = []
    for kind in KINDS:
        rows: list[tuple[str, ...]] = [("seeds", "questions", *("/".join(f"{d:g}" for d in ds) for ds in DEVIATIONS))]
        for n_seeds, n in product(SEEDS, QUESTIONS):
            cells = [Cell(kind, n_seeds, n, deviations) for deviations in DEVIATIONS]
            results = [measured(cell, n_simulations, seed=len(every) + i) for i, cell in enumerate(cells)]
            every += zip(cells, results, strict=True)
            rows.append((str(n_seeds), str(n), *(f"{r.both:.1%} ({r.questions_only:.0%})" for r in results)))
        yield table(
            f"{kind}: coverage of 95 % intervals over seeds and questions (over questions alone), by the standard "
            f"deviations of seeds/questions/noise, {n_simulations} simulations a cell",
            rows,
        )
    yield _summary(every, n_simulations)


def _summary(every: list[tuple[Cell, Found]], n_simulations: int) -> str:
    shares = [result.both for _, result in every]
    missed = [(cell, result) for cell, result in every if not WANTED[0] <= result.both <= WANTED[1]]
    error = math.sqrt(0.95 * 0.05 / n_simulations)
    lines = [
        f"{len(every)} cells: {min(shares):.1%} to {max(shares):.1%}, mean {sum(shares) / len(shares):.1%} (over "
        f"questions alone from {min(result.questions_only for _, result in every):.0%}); {len(missed)} outside "
        f"{WANTED[0]:.0%} to {WANTED[1]:.0%}, standard error of a cell {error:.1%}"
    ]
    return "\n".join([*lines, *(f"  {result.both:.1%}: {cell}" for cell, result in missed)])
