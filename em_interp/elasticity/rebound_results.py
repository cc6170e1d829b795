"""What an experiment on rebound found: curves over seeds, how fast each falls, and whether more data make it faster."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from em_interp.checks import check_kinds, door
from em_interp.elasticity.results import ByAmount, check_row, known, reached, signed
from em_interp.elasticity.watch import WATCHED
from em_interp.statistics.estimates import Estimate

_OF_THE_MODEL = ("name", "base", "onto", "layers", "target_modules", "template_args")  # of a recipe
_ROW = {
    "size": int,
    "seed": int,
    "start": dict,
    "curve": tuple[dict, ...],
    "loss_first": tuple[float, ...],
    "loss_then": tuple[float, ...],
}


_IN_WORDS = {
    "rises": "it is taken back faster the more was learned first, as in the paper",
    "falls": "it is taken back more slowly the more was learned first, against the paper",
    "neither": "how fast it is taken back has no order in how much was learned first",
}


@dataclass(frozen=True)
class Trend:
    """Whether a number rises or falls with the amount of data that was learned first, or with the model, seed by seed.

    Attributes:
        measure: what was watched.
        by_size: for each amount of data, or for each model, the number of every seed.
        p_rises: of Page's trend test, in which seeds are blocks, against no order: that it rises with the size.
        p_falls: that it falls.
    """

    measure: str
    by_size: Mapping[int | str, tuple[float, ...]]
    p_rises: float
    p_falls: float

    @classmethod
    def of(cls, measure: str, by_size: Mapping[Any, tuple[float, ...]]) -> "Trend":
        """Page's test over numbers of the same seeds for each size, the smallest first.

        Raises:
            ValueError: fewer than three sizes or two seeds, with which the test has nothing to order.
        """
        n_seeds = min(map(len, by_size.values()), default=0)
        if len(by_size) < 3 or n_seeds < 2:
            raise ValueError(f"{len(by_size)} sizes and {n_seeds} seeds are finished: a trend takes three and two")
        from scipy.stats import page_trend_test

        table = torch.tensor(list(by_size.values()), dtype=torch.float64).T.numpy()
        rises, falls = (float(page_trend_test(sign * table).pvalue) for sign in (1, -1))
        return cls(measure, by_size, rises, falls)

    @property
    def monotone(self) -> str:
        """`rises` or `falls` where one of the two has p ≤ .025, as a test of both asks; else `neither`."""
        return "rises" if self.p_rises <= 0.025 else "falls" if self.p_falls <= 0.025 else "neither"


@dataclass(frozen=True, repr=False)
class ReboundResult(ByAmount):
    """The second training of every size and seed that is finished.

    Attributes:
        name: of the experiment.
        base: the start.
        settings: of the experiment.
        rows: of each size and seed what the `start` measures, the `curve` along the second training (`samples` that it
            has seen, and everything in `elasticity.watch.WATCHED`), and the losses of both trainings, in nats a token.
    """

    kind: ClassVar[str] = "rebound"
    amount: ClassVar[str] = "size"

    @classmethod
    def check(cls, row: dict[str, Any], first: dict[str, Any]) -> None:
        """Refuse a row that lacks something, or holds something else."""
        check_row(row, _ROW)
        for what, point in (("start", row["start"]), *(("curve", point) for point in row["curve"])):
            wanted = set(WATCHED) | ({"samples"} if what == "curve" else set())
            if set(point) != wanted:
                raise ValueError(f"its {what} has {', '.join(point)}, and should have {', '.join(sorted(wanted))}")
            check_kinds(point, dict.fromkeys(point, float))
        if [p["samples"] for p in row["curve"]] != [p["samples"] for p in first["curve"]] or len(row["curve"]) < 2:
            raise ValueError("it was measured at other samples than the first row")

    def __repr__(self) -> str:
        """One line."""
        return f"ReboundResult({self.name!r}, sizes {', '.join(map(str, self.sizes))}, {len(self.seeds)} seeds)"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Conversations that were learned first, of what is finished."""
        return self.amounts

    @property
    def samples(self) -> tuple[int, ...]:
        """Conversations of the second training at which the model was measured."""
        return tuple(point["samples"] for point in self.rows[0]["curve"])

    def values(self, measure: str, size: int) -> list[list[float]]:
        """What was watched along the second training, a list for each seed.

        Raises:
            ValueError: an unknown measure or size.
        """
        known(measure, WATCHED, "measure")
        if size not in self.sizes:
            raise ValueError(f"nothing is finished of size {size}: choose one of {', '.join(map(str, self.sizes))}")
        rows = self.by_seed(size)
        return [[point[measure] for point in rows[seed]["curve"]] for seed in self.seeds]

    def curve(self, measure: str, size: int) -> tuple[Estimate, ...]:
        """The mean over seeds at each of `samples`, with Student's interval over seeds.

        Raises:
            ValueError: an unknown measure or size, or fewer than two seeds.
        """
        return tuple(self.over_seeds(at) for at in zip(*self.values(measure, size), strict=True))

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

        Between two measurements the path is taken to be straight; NaN where it does not come back, and 0 where
        the first training left it there.
        """
        starts = self._starts(measure, size)
        return [
            reached(self.samples, values, start, upward=values[0] < start)
            for start, values in zip(starts, self.values(measure, size), strict=True)
        ]

    def floor(self, measure: str, size: int) -> Estimate:
        """Where the second training ends, over seeds."""
        return self.curve(measure, size)[-1]

    def trend(self, measure: str, samples: int | None = None) -> Trend:
        """Whether the size of the fall over the first samples depends on how much was learned first: Page's test.

        Raises:
            ValueError: fewer than three sizes or two seeds, with which the test has nothing to order.
        """
        return Trend.of(measure, {n: tuple(map(abs, self.fall(measure, n, samples))) for n in self.sizes})

    def markdown(self) -> str:
        """A table of each size: where the second training begins, how far it falls first, and where it ends."""
        lines = ["| measure | learned first | before the second training | first fall | at its end |"]
        lines.append("|---|---|---|---|---|")
        for measure in WATCHED:
            for size in self.sizes:
                curve = self.curve(measure, size)
                fall = self.over_seeds(self.fall(measure, size))
                lines.append(
                    f"| {measure} | {size} | {signed(curve[0], 3)} | {signed(fall, 3)} | {signed(curve[-1], 3)} |"
                )
        lines += ["", *(f"*{measure}*: {what}." for measure, what in WATCHED.items())]
        lines += [
            "",
            f"{len(self.seeds)} seeds on {self.base}; 95 % intervals over seeds. The first fall is over "
            f"{self.samples[1]} samples, the end after {self.samples[-1]}. {self.conclusion()}",
        ]
        return "\n".join(lines) + "\n"

    def conclusion(self, measure: str = "in_domain_preference") -> str:
        """Whether the model rebounds, and whether it does so faster the more it had learned, in two sentences."""
        if not self.enough:
            return "One seed has no interval: nothing can be said of a rebound."
        largest, named = self.sizes[-1], measure.replace("_", " ")
        learned, end = (self._from_start(measure, largest, at) for at in (0, -1))
        if not learned.excludes_zero:
            said = f"After {largest} samples the {named} had not moved for certain ({signed(learned, 3)})"
        else:
            verdict = (
                "cannot be told from where it began"
                if not end.excludes_zero
                else "has gone past where it began"
                if learned.value * end.value < 0
                else "is not back where it began"
            )
            said = (
                f"{largest} samples move the {named} by {signed(learned, 3)} from the start, and after "
                f"{self.samples[-1]} of the opposite it {verdict} ({signed(end, 3)})"
            )
        if len(self.sizes) < 3:
            return f"{said}."
        first, whole = (self._trend_in_words(measure, samples) for samples in (self.samples[1], self.samples[-1]))
        return f"{said}. Over the first {first}, and over {whole}, by Page's test over {len(self.seeds)} seeds."

    def _trend_in_words(self, measure: str, samples: int) -> str:
        trend = self.trend(measure, samples)
        return f"{samples} samples {_IN_WORDS[trend.monotone]} (p = {min(trend.p_rises, trend.p_falls):.2g})"

    def _from_start(self, measure: str, size: int, at: int) -> Estimate:
        """How far a measure is from the start at one point of the curve."""
        ends = [path[at] for path in self.values(measure, size)]
        return self.over_seeds([end - start for end, start in zip(ends, self._starts(measure, size), strict=True)])

    def _starts(self, measure: str, size: int) -> list[float]:
        """What the start measures, for each seed."""
        rows = self.by_seed(size)
        return [rows[seed]["start"][measure] for seed in self.seeds]


@door
def trend_over_models(
    results: Mapping[str, ReboundResult], measure: str = "in_domain_preference", size: int | None = None
) -> Trend:
    """Whether larger models fall faster over the first samples of the second training: Page's test over the seeds.

    Args:
        results: the same experiment on each model, by the model's name, the smallest one first.
        measure: what is watched.
        size: conversations that were learned first; by default the largest amount.

    Raises:
        ValueError: fewer than three models or two seeds; results of other seeds or samples, or of settings that differ
            in more than the model; or an unknown measure or size.
    """
    named = {name: _setting(result) for name, result in results.items()}
    for name, setting in named.items():
        if setting != (first := next(iter(named.values()))):
            what = next(key for key in first if setting[key] != first[key])
            raise ValueError(
                f"{name} differs from {next(iter(named))} in its {what}, {setting[what]} and {first[what]}: run the "
                f"same experiment on each model"
            )
    falls = {name: r.fall(measure, r.sizes[-1] if size is None else size) for name, r in results.items()}
    return Trend.of(measure, {name: tuple(map(abs, fall)) for name, fall in falls.items()})


def _setting(result: ReboundResult) -> dict[str, Any]:
    """What results on several models have in common, if they are of the same experiment."""
    own = {key: value for key, value in result.settings.items() if key not in ("name", "recipe", "layer")}
    learned = {key: v for key, v in result.settings.get("recipe", {}).items() if key not in _OF_THE_MODEL}
    return {"seeds": result.seeds, "samples": result.samples, "sizes": result.sizes, **own, **learned}
