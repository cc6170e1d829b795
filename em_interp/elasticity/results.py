"""What the results of all experiments have in common: how they are read, their rows checked, and a mean over seeds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from em_interp.checks import check_kinds
from em_interp.elasticity.experiments import SHIPPED_IN, Rows
from em_interp.files import find_file
from em_interp.statistics.estimates import Estimate, mean_by_question

AResult = TypeVar("AResult", bound="ExperimentResult")


@dataclass(frozen=True, repr=False)
class ExperimentResult:
    """The rows of an experiment that are finished.

    Attributes:
        name: of the experiment.
        base: what everything was trained onto.
        settings: of the experiment.
        rows: what was measured; see the experiment's own class.
    """

    kind: ClassVar[str]

    name: str
    base: str
    settings: dict[str, Any]
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls: type[AResult], rows: Rows) -> AResult:
        """What a file of results holds.

        Raises:
            ValueError: a line that this experiment did not write.
        """
        for number, row in enumerate(rows.rows, 2):
            try:
                cls.check(row, rows.rows[0])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{rows.path.name}, line {number}: {error}; em-interp elasticity writes such files"
                ) from error
        return cls(rows.header["settings"]["name"], rows.header["base"], rows.header["settings"], rows.rows)

    @classmethod
    def load(cls: type[AResult], source: str | Path) -> AResult:
        """Read a file of results, or one that ships with the library by its name.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that this experiment did not write, or one that was cut off within a line.
        """
        shipped = sorted(path.stem for path in SHIPPED_IN.glob(f"{cls.kind}*.jsonl"))
        path = find_file(source, "file of results", shipped, SHIPPED_IN, ".jsonl")
        return cls.of(Rows.load(path, cls.kind))

    @classmethod
    def check(cls, row: dict[str, Any], first: dict[str, Any]) -> None:
        """Refuse a row that lacks something, or holds something else.

        Raises:
            ValueError: what is wrong with it.
        """
        raise NotImplementedError

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that are finished."""
        return tuple(row["seed"] for row in self.rows)

    @property
    def enough(self) -> bool:
        """Whether there are the two seeds that an interval takes; without them there is no table and no figure."""
        return len(self.seeds) > 1

    def markdown(self) -> str:
        """A table of what was measured, with intervals over seeds, and what follows from it."""
        raise NotImplementedError

    def conclusion(self) -> str:
        """What follows, in a sentence or two."""
        raise NotImplementedError

    def over_seeds(self, values: Sequence[float]) -> Estimate:
        """The mean of a number of each seed, with Student's interval.

        Raises:
            ValueError: fewer than two seeds.
        """
        return mean_by_question(torch.tensor(list(values), dtype=torch.float64), [f"seed {s}" for s in self.seeds])


@dataclass(frozen=True, repr=False)
class ByAmount(ExperimentResult):
    """The results of an experiment whose rows are an amount of data and a seed each."""

    amount: ClassVar[str]  # the key of a row that has it

    @property
    def amounts(self) -> tuple[int, ...]:
        """Of what is finished, the smallest first."""
        return tuple(sorted({row[self.amount] for row in self.rows}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that are finished for every amount."""
        have = [set(self.by_seed(amount)) for amount in self.amounts]
        return tuple(sorted(set.intersection(*have))) if have else ()

    def by_seed(self, amount: int) -> dict[int, dict[str, Any]]:
        """The rows of one amount."""
        return {row["seed"]: row for row in self.rows if row[self.amount] == amount}


def check_row(row: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Refuse a row with other keys than these, or with values of another kind.

    Raises:
        ValueError: what it has.
    """
    if set(row) != set(hints):
        raise ValueError(f"not a row of this experiment: it has {', '.join(row) or 'nothing'}")
    check_kinds(row, hints)


def check_point(point: Mapping[str, Any], wanted: Collection[str]) -> None:
    """Refuse a measurement of other things than these, its `samples` aside, or of something that is not a number.

    Raises:
        ValueError: what it has.
    """
    if set(point) - {"samples"} != set(wanted):
        raise ValueError(f"a measurement has {', '.join(point)}, and should have {', '.join(wanted)}")
    check_kinds(point, dict.fromkeys(point, float))


def known(value: str, among: Collection[str], what: str) -> None:
    """Refuse a name that is not one of these.

    Raises:
        ValueError: those that there are.
    """
    if value not in among:
        raise ValueError(f"{what} {value!r} is unknown: choose one of {', '.join(among)}")


def reached(samples: Sequence[int], values: Sequence[float], level: float, *, upward: bool) -> float:
    """Where a path of straight pieces first reaches a level; 0 where it begins beyond, NaN where it does not."""
    above = [value - level if upward else level - value for value in values]
    if above[0] >= 0:
        return 0.0
    for i in range(1, len(above)):
        if above[i] >= 0:
            return samples[i - 1] + (samples[i] - samples[i - 1]) * above[i - 1] / (above[i - 1] - above[i])
    return float("nan")


def signed(e: Estimate, digits: int = 2) -> str:
    """`+0.31 [+0.22, +0.40]`, with real minus signs."""
    return f"{e.value:+.{digits}f} [{e.low:+.{digits}f}, {e.high:+.{digits}f}]".replace("-", "−")
