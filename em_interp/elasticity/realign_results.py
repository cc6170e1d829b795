"""What an experiment on re-alignment found: what is left, what comes back, and whether the second time is faster."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from em_interp.checks import check_kinds
from em_interp.elasticity.results import ExperimentResult, check_point, check_row, known, reached, signed
from em_interp.elasticity.watch import WATCHED
from em_interp.statistics.estimates import Estimate

EXPOSURES = ("first", "second", "twin")
REALIGNED = ("back", "twin back")
# What is held against the direction that the first exposure added: a model, and the one it is taken from.
DIRECTIONS = {
    "left": ("back", "start"),
    "from good data alone": ("twin back", "start"),
    "returned": ("second", "start"),
    "added again": ("second", "back"),
    "added to the twin": ("twin", "twin back"),
}
SAID = {
    "left": "what is left of it after good data",
    "from good data alone": "what good data alone added to the twin",
    "returned": "what there is after the second exposure, from the start",
    "added again": "what the second exposure alone added",
    "added to the twin": "what a first exposure added to the twin",
}
_NUMBERS = ("corrected", "low", "high", "null_b_low", "null_b_high", "ceiling", "share")
_ROW = {"seed": int, "start": dict, "exposures": dict, "realigned": dict, "directions": dict, "retraced": dict}


@dataclass(frozen=True, repr=False)
class RealignResult(ExperimentResult):
    """Every seed that is finished.

    Attributes:
        name: of the experiment.
        base: the start.
        settings: of the experiment.
        rows: of each seed what the `start` measures; along each of the `exposures` (`first`, `second`, and that of the
            `twin`, which had the good data and no bad ones before) what is watched, with the `samples` seen; what the
            `realigned` models measure; the `directions`, each against the one that the first exposure added (corrected
            cosine with interval over questions, null of permuted labels, ceiling, and the `share` of that direction's
            length); and `retraced`, the cosine of the adapter's update with that of the first exposure at each step.
    """

    kind: ClassVar[str] = "realign"

    @classmethod
    def check(cls, row: dict[str, Any], first: dict[str, Any]) -> None:
        """Refuse a row that lacks something, or holds something else."""
        check_row(row, _ROW)
        for what, wanted in (("exposures", EXPOSURES), ("realigned", REALIGNED), ("directions", DIRECTIONS)):
            if set(row[what]) != set(wanted):
                raise ValueError(f"its {what} are {', '.join(row[what])}, and should be {', '.join(wanted)}")
        points = [row["start"], *row["realigned"].values(), *(p for path in row["exposures"].values() for p in path)]
        for point in points:
            check_point(point, WATCHED)
        for direction in row["directions"].values():
            check_kinds({key: direction[key] for key in _NUMBERS}, dict.fromkeys(_NUMBERS, float | None))

    def __repr__(self) -> str:
        """One line."""
        return f"RealignResult({self.name!r}, {len(self.rows)} seeds on {self.base})"

    @property
    def samples(self) -> tuple[int, ...]:
        """Conversations of an exposure at which the model was measured."""
        return tuple(point["samples"] for point in self.rows[0]["exposures"]["first"])

    def values(self, measure: str, exposure: str) -> list[list[float]]:
        """What was watched along an exposure, a list for each seed.

        Raises:
            ValueError: an unknown measure or exposure.
        """
        known(measure, WATCHED, "measure")
        known(exposure, EXPOSURES, "exposure")
        return [[point[measure] for point in row["exposures"][exposure]] for row in self.rows]

    def curve(self, measure: str, exposure: str) -> tuple[Estimate, ...]:
        """The mean over seeds at each of `samples`, with Student's interval over seeds.

        Raises:
            ValueError: an unknown measure or exposure, or fewer than two seeds.
        """
        return tuple(self.over_seeds(at) for at in zip(*self.values(measure, exposure), strict=True))

    def realigned(self, measure: str, which: str = "back") -> Estimate:
        """How far a measure is from the start after good data, over seeds; `back` or `twin back`.

        Raises:
            ValueError: an unknown measure or model, or fewer than two seeds.
        """
        known(measure, WATCHED, "measure")
        known(which, REALIGNED, "model")
        return self.over_seeds([row["realigned"][which][measure] - row["start"][measure] for row in self.rows])

    def apart(self, measure: str = "share") -> Estimate | None:
        """How far the re-aligned model is from the twin that has had the good data alone, over seeds, paired.

        Args:
            measure: what is watched, or the `share` of the first direction's length that lies along it.

        Returns:
            The mean difference with Student's interval; None where the first exposure added no direction in some seed.

        Raises:
            ValueError: an unknown measure, or fewer than two seeds.
        """
        if measure == "share":
            shares = [[row["directions"][w]["share"] for w in ("left", "from good data alone")] for row in self.rows]
            missing = any(None in both for both in shares)
            return None if missing else self.over_seeds([left - alone for left, alone in shares])
        known(measure, WATCHED, "measure")
        ends = [row["realigned"] for row in self.rows]
        return self.over_seeds([end["back"][measure] - end["twin back"][measure] for end in ends])

    def samples_to(self, exposure: str, measure: str = "in_domain_preference", share: int | float = 0.5) -> list[float]:
        """After how many samples a measure has gone a share of the way that the first exposure went, of each seed.

        The level is the same for all exposures of a seed. Between two measurements the path is taken to be straight; 0
        where an exposure begins beyond the level, and NaN where it does not come there.

        Raises:
            ValueError: an unknown measure or exposure, or a share that is not between 0 and 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}: give a share of the way, above 0 and at most 1")
        found = []
        for ours, first in zip(self.values(measure, exposure), self.values(measure, "first"), strict=True):
            level = first[0] + share * (first[-1] - first[0])
            found.append(reached(self.samples, ours, level, upward=first[-1] > first[0]))
        return found

    def priming(
        self, against: str = "twin", measure: str = "in_domain_preference", share: int | float = 0.5
    ) -> Estimate | None:
        """By how many samples the second exposure is slower than a first one, paired by seed: negative is priming.

        Args:
            against: the `twin`'s exposure, which began from good data too, or the `first` one.
            measure: what is watched.
            share: of the way that the first exposure went.

        Returns:
            The mean over seeds with Student's interval; None where an exposure does not come so far in some seed.

        Raises:
            ValueError: an unknown measure or exposure, or fewer than two seeds.
        """
        second, other = (self.samples_to(name, measure, share) for name in ("second", against))
        differences = [s - o for s, o in zip(second, other, strict=True)]
        return None if any(map(math.isnan, differences)) else self.over_seeds(differences)

    def direction(self, which: str, number: str = "corrected") -> Estimate | None:
        """How alike a direction is to the one that the first exposure added, over seeds.

        Args:
            which: `left`, `from good data alone`, `returned`, `added again` or `added to the twin`.
            number: the `corrected` cosine, or the `share` of the first direction's length that lies along it.

        Returns:
            The mean over seeds with Student's interval; None where some seed has no direction to compare.

        Raises:
            ValueError: another direction or number, or fewer than two seeds.
        """
        known(which, DIRECTIONS, "direction")
        known(number, _NUMBERS, "number")
        values = [row["directions"][which][number] for row in self.rows]
        return None if None in values else self.over_seeds(values)

    def markdown(self) -> str:
        """Directions with interval, null and ceiling, a line a seed; behaviour at each stage; and what follows."""
        lines = ["| against what the first exposure added | seed | cosine | null | ceiling | share of its length |"]
        lines.append("|---|---|---|---|---|---|")
        for which, said in SAID.items():
            for row in self.rows:
                d = row["directions"][which]
                cosine = f"{_number(d['corrected'])} [{_number(d['low'])}, {_number(d['high'])}]"
                null = f"{_number(d['null_b_low'])} to {_number(d['null_b_high'])}"
                ends = f"{_number(d['ceiling'])} | {_number(d['share'])}"
                lines.append(f"| {said} | {row['seed']} | {cosine} | {null} | {ends} |")
        lines += [
            "",
            "| change from the start | after bad data | after good | after bad again | twin: after good | after bad |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for measure in WATCHED:
            first, second, twin = (self._from_start(measure, exposure) for exposure in EXPOSURES)
            stages = [first, self.realigned(measure), second, self.realigned(measure, "twin back"), twin]
            lines.append(f"| {measure} | " + " | ".join(map(signed, stages)) + " |")
        lines += ["", *(f"*{measure}*: {what}." for measure, what in WATCHED.items())]
        lines += [
            "",
            f"{len(self.rows)} seeds on {self.base}; intervals of cosines are over questions, the others over ",
        ]
        lines[-1] += f"seeds. {self.conclusion()}"
        return "\n".join(lines) + "\n"

    def conclusion(self) -> str:
        """Whether the direction comes back, refusal with it, and whether the second exposure is faster."""
        if not self.enough:
            return "One seed has no interval: nothing can be said of re-alignment."
        said = []
        for which in ("left", "from good data alone", "returned"):
            cosine, share = self.direction(which), self.direction(which, "share")
            if cosine is None or share is None:
                said.append(f"In some seed there is no direction to compare for {SAID[which]}.")
            else:
                said.append(
                    f"{SAID[which].capitalize()} has a cosine of {signed(cosine)} with it, {signed(share)} as long."
                )
        for what, measure in (("that direction", "share"), ("preference", "in_domain_preference")):
            apart = self.apart(measure)
            if apart is not None:
                verdict = "can be told" if apart.excludes_zero else "cannot be told"
                said.append(
                    f"By {what} the re-aligned model {verdict} from the twin, which has had the good data alone: "
                    f"{signed(apart)}."
                )
        refusal = [self._from_start("refusal_score", "first"), self.realigned("refusal_score")]
        said.append(
            f"The refusal score is at {signed(refusal[0])} after bad data and at {signed(refusal[1])} after good."
        )
        found = self.priming()
        if found is None:
            said.append("In some seed an exposure does not come half the way, so nothing follows of priming.")
        else:
            verdict = (
                "faster" if found.high < 0 else "slower" if found.low > 0 else "neither faster nor slower for certain"
            )
            said.append(f"The second exposure is {verdict} than the twin's first: {signed(found, 1)} samples.")
        return " ".join(said)

    def _from_start(self, measure: str, exposure: str) -> Estimate:
        """How far a measure is from the start at the end of an exposure."""
        ends = [path[-1] for path in self.values(measure, exposure)]
        return self.over_seeds([end - row["start"][measure] for end, row in zip(ends, self.rows, strict=True)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
