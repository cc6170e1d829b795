"""One run of a search over training recipes, as a line of its file has it, and whether it belongs to a search."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from em_interp.checks import check_kinds, shown
from em_interp.statistics.estimates import Estimate
from em_interp.texts.records import read_records

TIMES = ("before", "after", "change")


@dataclass(frozen=True)
class SweepRun:
    """One recipe of a search, trained from one seed and measured: a line of the file.

    Attributes:
        sweep: name of the search.
        point: what this recipe sets other than the search's own recipe.
        seed: of the run.
        recipe: every setting of the recipe but the seed.
        base: identity of the model that it was trained on.
        questions: which texts were asked, by what they are for: where they come from, their number and their hash.
        measure: what was measured.
        how: the settings of the measuring.
        n_points: recipes in the search.
        n_seeds: seeds of each.
        loss_first: training loss at the first optimizer step, in nats a token; None where that one diverged.
        loss_last: at the last one; of a run that diverged, at the last before.
        failed: why there are no measures: the training diverged, and at which step, or its organism cannot be measured;
            None where there are.
        phases: the turn (`p_value`, `step`, `low`, `high`, `angle` in degrees), the number of checkpoints, and the
            effect outside the domain at some of them, with the adapter scaled; None where it was not measured.
        effects: of each behaviour, by its key: its label, estimates `before`, `after` and `change`, and the change of
            each question.
        seconds: what training and measuring took.
        versions: of the software.
    """

    sweep: str
    point: dict[str, Any]
    seed: int
    recipe: dict[str, Any]
    base: str
    questions: dict[str, Any]
    measure: tuple[str, ...]
    how: dict[str, Any]
    n_points: int
    n_seeds: int
    loss_first: int | float | None
    loss_last: int | float | None
    failed: str | None
    phases: dict[str, Any] | None
    effects: dict[str, Any]
    seconds: int | float
    versions: dict[str, Any]

    def __repr__(self) -> str:
        """One line."""
        ended = "failed" if self.failed else f"loss {self.loss_last:.2f}"
        return f"SweepRun({self.sweep!r}, {in_words(self.point)}, seed {self.seed}, {ended})"

    def as_dict(self) -> dict[str, Any]:
        """The run as a line of the file takes it."""
        return asdict(self) | {"measure": list(self.measure)}

    def change(self, behaviour: str) -> Estimate:
        """What the fine-tune changed in a behaviour, with its interval over questions; NaN of a run that failed."""
        if self.failed:
            return Estimate(math.nan, math.nan, math.nan, 0)
        if behaviour not in self.effects:
            raise ValueError(
                f"{str(behaviour)!r} was not measured: the file has {', '.join(self.effects) or 'no behaviours'}"
            )
        return Estimate(**self.effects[behaviour]["change"])


def load_runs(path: Path) -> tuple[SweepRun, ...]:
    """The runs in a file, each checked by itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is not a run.
    """
    hints = get_type_hints(SweepRun)
    found = []
    for line, entry in read_records(path):
        missing = [f.name for f in fields(SweepRun) if not isinstance(entry, Mapping) or f.name not in entry]
        try:
            if missing or len(entry) > len(hints):
                raise ValueError(f"not a run of a search (it has {'no ' + missing[0] if missing else 'other keys'})")
            check_kinds(entry, hints)
            run = SweepRun(**{**entry, "measure": tuple(entry["measure"])})
            _check_numbers(run)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path.name}, line {line}: {error}; em-interp sweep writes such files") from error
        found.append(run)
    return tuple(found)


def _check_numbers(run: SweepRun) -> None:
    """Refuse a run whose settings, turn or effects are not what `run_sweep` writes."""
    unknown = [name for name in run.point if name not in run.recipe]
    if unknown:
        raise ValueError(f"its point sets {unknown[0]}, which its recipe does not have")
    if run.phases is not None and not 0 <= float(run.phases["p_value"]) <= 1:
        raise ValueError(f"its p_value is {shown(run.phases['p_value'])}, and should be between 0 and 1")
    for key, effect in run.effects.items():
        for time in TIMES:
            Estimate(**effect[time])
        if not effect["changes"] or not all(isinstance(change, int | float) for change in effect["changes"]):
            raise ValueError(f"the changes of {key} are {shown(effect['changes'])}, and should be a list of numbers")


def differs(first: SweepRun, other: SweepRun) -> str:
    """In what two runs cannot be of one search, in words; empty where they can."""
    for what in ("sweep", "base", "questions", "measure", "how"):
        a, b = getattr(first, what), getattr(other, what)
        if a != b:
            return f"{what} is {_short(b, a)}, not {_short(a, b)}"
    varied = {*first.point, *other.point}
    for name in dict.fromkeys([*first.recipe, *other.recipe]):
        a, b = first.recipe.get(name), other.recipe.get(name)
        if a != b and name not in varied:
            return f"its recipe has {name} = {shown(b)}, not {shown(a)}"
    return ""


def _short(value: Any, beside: Any) -> str:
    """A value, and of a mapping only what is not the same beside it."""
    if isinstance(value, Mapping) and isinstance(beside, Mapping):
        value = {key: item for key, item in value.items() if item != beside.get(key)}
    return shown(value)


def in_words(point: Mapping[str, Any]) -> str:
    """`learning_rate = 0.002, steps = 300`; the recipe as it is where a point sets nothing."""
    told = (f"{key} = {value:.10g}" if isinstance(value, float) else f"{key} = {value}" for key, value in point.items())
    return ", ".join(told) or "the recipe as it is"
