"""What an experiment on the law found: how fast each set's rate changes, and with which power of the sizes' ratio."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from em_interp.elasticity.results import ByAmount, check_point, check_row, signed
from em_interp.statistics.estimates import Estimate

SETS = ("large", "small", "perturbing")
THEOREM = -1.0
_ROW = {"ratio": int, "seed": int, "entropy": dict, "before": dict, "after": tuple[dict, ...]}


@dataclass(frozen=True, repr=False)
class LawResult(ByAmount):
    """Every ratio and seed that is finished.

    Attributes:
        name: of the experiment.
        base: the tiny model.
        settings: of the experiment.
        rows: of each ratio and seed the `entropy` of the three languages, and their rates `before` the perturbation and
            `after` so many `samples` of it, all in bits a symbol.
    """

    kind: ClassVar[str] = "law"
    amount: ClassVar[str] = "ratio"

    @classmethod
    def check(cls, row: dict[str, Any], first: dict[str, Any]) -> None:
        """Refuse a row that lacks something, or holds something else."""
        check_row(row, _ROW)
        for point in (row["entropy"], row["before"], *row["after"]):
            check_point(point, SETS)

    def __repr__(self) -> str:
        """One line."""
        return f"LawResult({self.name!r}, ratios {', '.join(map(str, self.ratios))}, {len(self.seeds)} seeds)"

    @property
    def ratios(self) -> tuple[int, ...]:
        """Ratios of the sets' sizes, of what is finished."""
        return self.amounts

    @property
    def samples(self) -> tuple[int, ...]:
        """Texts of the perturbation after which the rates were measured."""
        return tuple(point["samples"] for point in self.rows[0]["after"])

    def rate_changes(self, which: str, ratio: int, samples: int | None = None) -> list[float]:
        """dγ of one set a sample of the perturbation, in bits a symbol, of each seed.

        The slope of a line through the origin, by least squares, over the measurements up to so many samples.

        Args:
            which: `large`, `small` or `perturbing`.
            ratio: of the sizes.
            samples: one of `samples`; by default the first, where a perturbation is smallest.

        Raises:
            ValueError: an unknown set, ratio or number of samples.
        """
        samples = self.samples[0] if samples is None else samples
        for value, among, what in (
            (which, SETS, "set"),
            (ratio, self.ratios, "ratio"),
            (samples, self.samples, "number"),
        ):
            if value not in among:
                raise ValueError(f"{what} {value!r} was not measured: choose one of {', '.join(map(str, among))}")
        rows = self.by_seed(ratio)
        found = []
        for seed in self.seeds:
            points = [p for p in rows[seed]["after"] if p["samples"] <= samples]
            change = [p[which] - rows[seed]["before"][which] for p in points]
            at = [p["samples"] for p in points]
            found.append(sum(x * y for x, y in zip(at, change, strict=True)) / sum(x * x for x in at))
        return found

    @property
    def enough(self) -> bool:
        """Whether there are two seeds and two ratios."""
        return super().enough and len(self.ratios) > 1

    def exponents(self, samples: int | None = None) -> list[float]:
        """The power of k = |D_p| / |D_a| with which |dγ_p / dγ_a| goes, of each seed: a line in logarithms.

        Raises:
            ValueError: fewer than two ratios, or a rate that did not change at all.
        """
        if len(self.ratios) < 2:
            raise ValueError(f"{len(self.ratios)} ratio has no exponent: measure two at least")
        large, small = (
            torch.tensor([self.rate_changes(which, ratio, samples) for ratio in self.ratios], dtype=torch.float64)
            for which in SETS[:2]
        )
        if not ((large != 0) & (small != 0)).all():
            raise ValueError("a rate did not change at all, so it has no logarithm: perturb by more samples")
        x = torch.tensor([math.log(ratio) for ratio in self.ratios], dtype=torch.float64)
        y = (large / small).abs().log()
        x = x - x.mean()
        return ((x[:, None] * (y - y.mean(0))).sum(0) / (x * x).sum()).tolist()

    def exponent(self, samples: int | None = None) -> Estimate:
        """The mean exponent over seeds, with Student's interval.

        Raises:
            ValueError: fewer than two seeds or ratios.
        """
        return self.over_seeds(self.exponents(samples))

    def opposite(self, samples: int | None = None) -> tuple[int, int]:
        """In how many of the runs with k > 1 the two rates go opposite ways, as in the theorem, and of how many."""
        found = [
            large * small < 0
            for ratio in self.ratios
            if ratio > 1
            for large, small in zip(*(self.rate_changes(w, ratio, samples) for w in SETS[:2]), strict=True)
        ]
        return sum(found), len(found)

    def markdown(self) -> str:
        """A table of each ratio: what was learned, how fast each rate changes, and the exponents."""
        first = self.samples[0]
        changed = " | ".join(f"dγ {which} over {first} samples" for which in SETS[:2])
        lines = [f"| k | large: rate (entropy) | small: rate (entropy) | {changed} |", "|---|---|---|---|---|"]
        for ratio in self.ratios:
            rows = [row for row in self.rows if row["ratio"] == ratio and row["seed"] in self.seeds]
            told = [f"{_of(rows, 'before', which):.2f} ({_of(rows, 'entropy', which):.2f})" for which in SETS[:2]]
            changes = [signed(self.over_seeds([first * c for c in self.rate_changes(w, ratio)]), 4) for w in SETS[:2]]
            lines.append(f"| {ratio} | {' | '.join(told)} | {' | '.join(changes)} |")
        lines += ["", "| samples | exponent of dγ large / dγ small in k | opposite signs |", "|---|---|---|"]
        for samples in self.samples:
            opposite, n = self.opposite(samples)
            lines.append(f"| {samples} | {signed(self.exponent(samples))} | {opposite} of {n} |")
        lines += ["", f"Bits a symbol; {len(self.seeds)} seeds, 95 % intervals over seeds. {self.conclusion()}"]
        return "\n".join(lines) + "\n"

    def conclusion(self) -> str:
        """Whether the law holds here, in size and in sign, and whether the small set was known at all."""
        if not self.enough:
            few = "seed has no interval" if len(self.seeds) < 2 else "ratio has no exponent"
            return f"One {few}: nothing can be said of the law."
        found = self.exponent()
        holds = found.low <= THEOREM <= found.high and found.high < 0
        opposite, n = self.opposite()
        top = self.ratios[-1]
        small = self.over_seeds(self.rate_changes("small", top))
        way = "shorter" if small.high < 0 else "longer" if small.low > 0 else "neither shorter nor longer for certain"
        verdict = "holds" if holds else "does not hold"
        return (
            f"The exponent is {signed(found)}, where the theorem says −1: the law {verdict} here in size, and the two "
            f"rates go opposite ways, as it says, in {opposite} of {n} runs. At k = {top} the perturbation makes the "
            f"code of the small set {way}.{self._unknown(top)}"
        )

    def _unknown(self, ratio: int) -> str:
        """A sentence where the small language costs more than it would if nothing were known of any."""
        before = _of([row for row in self.rows if row["ratio"] == ratio], "before", "small")
        nothing = math.log2(self.settings["n_symbols"])
        if before <= nothing:
            return ""
        return (
            f" But there the small language takes {before:.2f} bits a symbol, and {nothing:.2f} if nothing were known: "
            f"what changes is how sure the model is of the large one, not what it has kept of the small one."
        )


def _of(rows: list[dict[str, Any]], what: str, which: str) -> float:
    return sum(row[what][which] for row in rows) / len(rows)
