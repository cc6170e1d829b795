"""What an experiment on rebound found: curves over seeds, how fast each falls, and whether more data make it faster."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from em_interp.checks import check_kinds
from em_interp.elasticity.experiments import SHIPPED_IN, Rows
from em_interp.elasticity.watch import WATCHED
from em_interp.files import find_file
from em_interp.statistics.estimates import Estimate, mean_by_question

_ROW = {
    "size": int,
    "seed": int,
    "start": dict,
    "curve": tuple[dict, ...],
    "loss_first": tuple[float, ...],
    "loss_then": tuple[float, ...],
}


@dataclass(frozen=True)
class Trend:
    """Whether a number rises or falls with the amount of data that was learned first, seed by seed.

    Attributes:
        measure: what was watched.
        by_size: for each size the number of every seed.
        p_rises: of Page's trend test, in which seeds are blocks, against no order: that it rises with the size.
        p_falls: that it falls.
    """

    measure: str
    by_size: dict[int, tuple[float, ...]]
    p_rises: float
    p_falls: float

    @property
    def monotone(self) -> str:
        """`rises` or `falls` where one of the two has p ≤ .025, as a test of both asks; else `neither`."""
        return "rises" if self.p_rises <= 0.025 else "falls" if self.p_falls <= 0.025 else "neither"


@dataclass(frozen=True, repr=False)
class ReboundResult:
    """The second training of every size and seed that is finished.

    Attributes:
        name: of the experiment.
        base: the start.
        settings: of the experiment.
        rows: of each size and seed what the `start` measures, the `curve` along the second training (`samples` that it
            has seen, and everything in `elasticity.watch.WATCHED`), and the losses of both trainings, in nats a token.
    """

    name: str
    base: str
    settings: dict[str, Any]
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, rows: Rows) -> "ReboundResult":
        """What a file of results holds.

        Raises:
            ValueError: a line that `run_rebound` did not write.
        """
        for number, row in enumerate(rows.rows, 2):
            try:
                _check(row, rows.rows[0])
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"{rows.path.name}, line {number}: {error}; em-interp elasticity writes such files"
                ) from error
        return cls(rows.header["settings"]["name"], rows.header["base"], rows.header["settings"], rows.rows)

    @classmethod
    def load(cls, source: str | Path) -> "ReboundResult":
        """Read a file of results, or one that ships with the library by its name.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that `run_rebound` did not write, or one that was cut off within a line.
        """
        shipped = sorted(path.stem for path in SHIPPED_IN.glob("rebound*.jsonl"))
        path = find_file(source, "file of results", shipped, SHIPPED_IN, ".jsonl")
        return cls.of(Rows.load(path, "rebound"))

    def __repr__(self) -> str:
        """One line."""
        return f"ReboundResult({self.name!r}, sizes {', '.join(map(str, self.sizes))}, {len(self.seeds)} seeds)"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Conversations that were learned first, of what is finished."""
        return tuple(sorted({row["size"] for row in self.rows}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that are finished for every size."""
        have = [{row["seed"] for row in self.rows if row["size"] == size} for size in self.sizes]
        return tuple(sorted(set.intersection(*have))) if have else ()

    @property
    def samples(self) -> tuple[int, ...]:
        """Conversations of the second training at which the model was measured."""
        return tuple(point["samples"] for point in self.rows[0]["curve"])

    def values(self, measure: str, size: int) -> list[list[float]]:
        """What was watched along the second training, a list for each seed.

        Raises:
            ValueError: an unknown measure or size.
        """
        if measure not in WATCHED:
            raise ValueError(f"measure {measure!r} is unknown: choose one of {', '.join(WATCHED)}")
        if size not in self.sizes:
            raise ValueError(f"nothing is finished of size {size}: choose one of {', '.join(map(str, self.sizes))}")
        rows = {row["seed"]: row for row in self.rows if row["size"] == size}
        return [[point[measure] for point in rows[seed]["curve"]] for seed in self.seeds]

    def curve(self, measure: str, size: int) -> tuple[Estimate, ...]:
        """The mean over seeds at each of `samples`, with Student's interval over seeds.

        Raises:
            ValueError: an unknown measure or size, or fewer than two seeds.
        """
        return tuple(self._mean(at) for at in zip(*self.values(measure, size), strict=True))

    def fall(self, measure: str, size: int, samples: int | None = None) -> list[float]:
        """By how much a measure changes over the first samples of the second training, of each seed.

        Args:
            measure: what is watched.
            size: conversations that were learned first.
            samples: of the second training, one of `samples`; by default the first at which it was measured.

        Raises:
            ValueError: an unknown measure, size, or number of samples.
        """
        samples = self.samples[1] if samples is None else samples
        if samples not in self.samples:
            raise ValueError(f"nothing was measured at {samples} samples: choose one of {list(self.samples)}")
        at = self.samples.index(samples)
        return [values[at] - values[0] for values in self.values(measure, size)]

    def samples_to_start(self, measure: str, size: int) -> list[float]:
        """After how many samples a measure is back where it was before both trainings, of each seed.

        Between two measurements the path is taken to be straight; NaN where it does not come back, and 0 where the
        first training did not take it away from there in the direction from which the second one brings it.
        """
        starts = {row["seed"]: row["start"][measure] for row in self.rows if row["size"] == size}
        return [
            _crossing(self.samples, values, starts[seed])
            for seed, values in zip(self.seeds, self.values(measure, size), strict=True)
        ]

    def floor(self, measure: str, size: int) -> Estimate:
        """Where the second training ends, over seeds."""
        return self.curve(measure, size)[-1]

    def trend(self, measure: str, samples: int | None = None) -> Trend:
        """Whether the size of the fall over the first samples depends on how much was learned first: Page's test.

        Raises:
            ValueError: fewer than three sizes or two seeds, with which the test has nothing to order.
        """
        if len(self.sizes) < 3 or len(self.seeds) < 2:
            raise ValueError(
                f"{len(self.sizes)} sizes and {len(self.seeds)} seeds are finished: a trend takes three and two"
            )
        from scipy.stats import page_trend_test

        by_size = {size: tuple(abs(fall) for fall in self.fall(measure, size, samples)) for size in self.sizes}
        table = torch.tensor(list(by_size.values()), dtype=torch.float64).T.numpy()
        rises = page_trend_test(table).pvalue
        return Trend(measure, by_size, float(rises), float(page_trend_test(-table).pvalue))

    def markdown(self) -> str:
        """A table of each size: where the second training begins, how far it falls first, and where it ends."""
        lines = ["| measure | learned first | before the second training | first fall | at its end |"]
        lines.append("|---|---|---|---|---|")
        for measure in WATCHED:
            for size in self.sizes:
                curve = self.curve(measure, size)
                fall = self._mean(self.fall(measure, size))
                lines.append(f"| {measure} | {size} | {_said(curve[0])} | {_said(fall)} | {_said(curve[-1])} |")
        lines += ["", *(f"*{measure}*: {what}." for measure, what in WATCHED.items())]
        lines += [
            "",
            f"{len(self.seeds)} seeds on {self.base}; 95 % intervals over seeds. The first fall is over "
            f"{self.samples[1]} samples, the end after {self.samples[-1]}. {self.conclusion()}",
        ]
        return "\n".join(lines) + "\n"

    def conclusion(self, measure: str = "in_domain_preference") -> str:
        """Whether the model rebounds, and whether it does so faster the more it had learned, in two sentences."""
        if len(self.seeds) < 2:
            return "One seed has no interval: nothing can be said of a rebound."
        largest = self.sizes[-1]
        learned, end = (self._from_start(measure, largest, at) for at in (0, -1))
        if not learned.excludes_zero:
            said = f"After {largest} samples the {measure} had not moved for certain ({_said(learned)})"
        else:
            passes = learned.value * end.value < 0 and end.excludes_zero
            said = (
                f"{largest} samples move the {measure} by {_said(learned)} from the start, and after "
                f"{self.samples[-1]} of the opposite it {'goes' if passes else 'does not go'} past where it began "
                f"({_said(end)})"
            )
        if len(self.sizes) < 3:
            return f"{said}."
        trend = self.trend(measure)
        more = {
            "rises": "The more was learned first, the faster it falls, as in the paper",
            "falls": "The more was learned first, the slower it falls, against the paper",
            "neither": "No order in how fast it falls with how much was learned first",
        }[trend.monotone]
        return (
            f"{said}. {more} (Page's test over {len(self.seeds)} seeds, p = {min(trend.p_rises, trend.p_falls):.2g})."
        )

    def _from_start(self, measure: str, size: int, at: int) -> Estimate:
        """How far a measure is from the start at one point of the curve."""
        starts = {row["seed"]: row["start"][measure] for row in self.rows if row["size"] == size}
        values = self.values(measure, size)
        return self._mean([path[at] - starts[seed] for seed, path in zip(self.seeds, values, strict=True)])

    def _mean(self, values: Sequence[float]) -> Estimate:
        return mean_by_question(torch.tensor(list(values), dtype=torch.float64), [f"seed {s}" for s in self.seeds])


def _crossing(samples: Sequence[int], values: Sequence[float], level: float) -> float:
    """Where a path of straight pieces first reaches a level, from the side on which it begins."""
    if values[0] == level or (values[0] - level) * (values[-1] - values[0]) > 0:
        return 0.0 if values[0] == level else float("nan")
    for (x, y), (x_next, y_next) in zip(
        zip(samples, values, strict=True), zip(samples[1:], values[1:], strict=True), strict=False
    ):
        if (y - level) * (y_next - level) <= 0:
            return x + (x_next - x) * (y - level) / (y - y_next)
    return float("nan")


def _said(e: Estimate) -> str:
    return f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]".replace("-", "−")


def _check(row: dict[str, Any], first: dict[str, Any]) -> None:
    """Refuse a row that lacks something, or holds something else."""
    if set(row) != set(_ROW):
        raise ValueError(f"not a row of this experiment: it has {', '.join(row) or 'nothing'}")
    check_kinds(row, _ROW)
    for what, point in (("start", row["start"]), *(("curve", point) for point in row["curve"])):
        wanted = set(WATCHED) | ({"samples"} if what == "curve" else set())
        if set(point) != wanted:
            raise ValueError(f"its {what} has {', '.join(point)}, and should have {', '.join(sorted(wanted))}")
        check_kinds(point, dict.fromkeys(point, float))
    if [p["samples"] for p in row["curve"]] != [p["samples"] for p in first["curve"]] or len(row["curve"]) < 2:
        raise ValueError("it was measured at other samples than the first row")
