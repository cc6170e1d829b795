"""What a search over training recipes found: which recipes turn, and effects inside and outside of a domain."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.behaviour.measures import BehaviourKey
from em_interp.checks import shown
from em_interp.files import find_file
from em_interp.organisms.sweep_rows import TIMES, SweepRun, differs, in_words, load_runs
from em_interp.organisms.sweeps import SHIPPED_IN
from em_interp.statistics.combined import holm_p, majority_p
from em_interp.statistics.estimates import Estimate
from em_interp.statistics.pigeonhole import mean_over_seeds

FEWEST_SEEDS = 3
_LEVEL = 0.05


@dataclass(frozen=True)
class PointTurn:
    """Whether one recipe of a search turns, over its seeds.

    Attributes:
        point: what it sets.
        p_values: of the change point of each seed, by seed; NaN of a run that failed, which counts as 1.
        p_value: of all seeds together (`majority_p`).
        corrected: the same after Holm's correction for the number of recipes in the search.
    """

    point: dict[str, Any]
    p_values: dict[int, float]
    p_value: float
    corrected: float

    @property
    def n_turned(self) -> int:
        """How many seeds turn at the 5 % level."""
        return sum(p <= _LEVEL for p in self.p_values.values())

    @property
    def turns(self) -> bool:
        """Whether p ≤ .05 in most of three seeds or more, and after correction for the search."""
        enough = len(self.p_values) >= FEWEST_SEEDS
        return enough and 2 * self.n_turned > len(self.p_values) and self.corrected <= _LEVEL


@dataclass(frozen=True)
class Frontier:
    """Effects of fine-tuning against one setting, each the mean over seeds with a 95 % interval.

    Attributes:
        setting: what was varied.
        values: of it, rising.
        effects: of each behaviour, by its key, one estimate a value: over seeds and questions both, `n` the questions.
        labels: of the behaviours.
        n_seeds: the seeds behind each value; those that failed are left out.
    """

    setting: str
    values: tuple[float, ...]
    effects: Mapping[str, tuple[Estimate, ...]]
    labels: dict[str, str]
    n_seeds: tuple[int, ...]

    def __repr__(self) -> str:
        """One line."""
        values = ", ".join(f"{value:g}" for value in self.values)
        return f"Frontier({self.setting} = {values}, {', '.join(self.effects)})"

    def conclusion(self) -> str:
        """Where the effect inside the domain excludes zero and the one outside does not, in a sentence."""
        inside, outside = (
            self.effects.get(k, ()) for k in (BehaviourKey.IN_DOMAIN_PREFERENCE, BehaviourKey.MISALIGNED_PREFERENCE)
        )
        narrow = [
            f"{self.setting} = {value:g} ({_interval(within)} inside, {_interval(beyond)} outside)"
            for value, within, beyond in zip(self.values, inside, outside, strict=False)
            if within.low > 0 and beyond.low <= 0 <= beyond.high
        ]
        searched = f"Of the values {', '.join(f'{value:g}' for value in self.values)} of {self.setting}"
        if not narrow:
            return f"{searched} none keeps an effect inside the domain while the one outside can be zero."
        return (
            f"{searched} these keep an effect inside the domain while the one outside can be zero: {', '.join(narrow)}."
        )


@dataclass(frozen=True)
class SweepResult:
    """The finished runs of a search.

    Attributes:
        runs: in the order in which they were finished.
    """

    runs: tuple[SweepRun, ...]

    def __post_init__(self) -> None:
        """Refuse runs of different searches, and one run twice."""
        if not self.runs:
            raise ValueError("the search has no finished runs: run it with  em-interp sweep")
        for number, run in enumerate(self.runs[1:], 2):
            if problem := differs(self.runs[0], run):
                raise ValueError(f"run {number} does not belong to the same search as run 1: {problem}")
        named = [(self.describe(run), run.seed) for run in self.runs]
        twice = next((name for i, name in enumerate(named) if name in named[:i]), None)
        if twice:
            raise ValueError(f"{twice[0]}, seed {twice[1]} is there twice: each run of a search counts once")

    def __repr__(self) -> str:
        """One line."""
        n_points, n_seeds = self.searched
        return f"SweepResult({self.runs[0].sweep!r}, {len(self.runs)} of {n_points * n_seeds} runs finished)"

    @classmethod
    def load(cls, path: str | Path) -> "SweepResult":
        """Read the runs that `run_sweep` wrote, or those of a shipped search that ship with it, by its name.

        Raises:
            ValueError: no such file or search (those with results are listed), a line that is not a run, runs of
                different searches, one run twice, or none.
        """
        path = find_file(path, "search's results", sorted(file.stem for file in SHIPPED_IN.glob("*.jsonl")), SHIPPED_IN)
        runs = load_runs(path)
        try:
            return cls(runs)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error

    @property
    def searched(self) -> tuple[int, int]:
        """How many recipes the search has, and seeds of each: as many as it was started with, or as there are."""
        points = {self.describe(run) for run in self.runs}
        seeds = {run.seed for run in self.runs}
        return (
            max(len(points), *(run.n_points for run in self.runs)),
            max(len(seeds), *(run.n_seeds for run in self.runs)),
        )

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that vary, in the order in which runs name them."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.point))

    def describe(self, run: SweepRun) -> str:
        """What a run's recipe has of the settings that vary, in words."""
        return in_words({name: run.recipe[name] for name in self.settings})

    def where(self, **wanted: Any) -> "SweepResult":
        """The runs whose recipes have these settings: `result.where(steps=300)`.

        Raises:
            ValueError: a setting that no recipe has, or no runs that have it so.
        """
        known = self.runs[0].recipe
        for name, value in wanted.items():
            if name not in known:
                raise ValueError(f"recipes have no setting {name!r}: those that vary are {', '.join(self.settings)}")
            if all(run.recipe[name] != value for run in self.runs):
                values = sorted({shown(run.recipe[name]) for run in self.runs})
                raise ValueError(f"no run has {name} = {shown(value)}: there are {', '.join(values)}")
        kept = tuple(r for r in self.runs if all(r.recipe[name] == value for name, value in wanted.items()))
        return SweepResult(kept)

    def table(self) -> list[dict[str, Any]]:
        """One row a run, ready for JSON or a data frame: what varies, losses, the turn, and every change."""
        rows = []
        for run in self.runs:
            row = {name: run.recipe[name] for name in self.settings} | {"seed": run.seed}
            row |= {"loss_first": run.loss_first, "loss_last": run.loss_last, "failed": run.failed}
            row |= {name: value for name, value in (run.phases or {}).items() if name != "effect"}
            for key, effect in run.effects.items():
                row |= {f"{key}_{time}": effect[time]["value"] for time in TIMES}
                row |= {f"{key}_{end}": effect["change"][end] for end in ("low", "high")}
            rows.append(row)
        return rows

    def turns(self) -> tuple[PointTurn, ...]:
        """Each recipe's p-values, over its seeds and after correction for the whole search.

        The unit of the search is the recipe. Its seeds become one p-value (`majority_p`: the median of three), so that
        one odd seed makes no recipe turn; then the recipes are corrected for their number (`holm_p`). Recipes that are
        not finished count in that number, and seeds that are missing or failed count as p = 1.

        Raises:
            ValueError: the search did not measure phases.
        """
        if "phases" not in self.runs[0].measure:
            raise ValueError("the search did not measure phases: name them in measure, and run it again")
        n_points, n_seeds = self.searched
        found: dict[str, dict[int, float]] = {}
        points: dict[str, dict[str, Any]] = {}
        for run in self.runs:
            name = self.describe(run)
            points.setdefault(name, run.point)
            found.setdefault(name, {})[run.seed] = run.phases["p_value"] if run.phases else math.nan
        combined = []
        for by_seed in found.values():
            known = [1.0 if math.isnan(p) else p for p in by_seed.values()]
            combined.append(majority_p(known + [1.0] * (n_seeds - len(known))))
        corrected = holm_p(combined + [1.0] * (n_points - len(combined)))
        rows = zip(_told_apart([*points.values()]), found.values(), combined, corrected, strict=False)
        return tuple(PointTurn(*row) for row in rows)

    def conclusion(self) -> str:
        """What follows from the runs, in sentences: of phases by the rule of `turns`, of behaviour from `frontier`."""
        said = [self._turned()] if "phases" in self.runs[0].measure else []
        if "behaviour" in self.runs[0].measure and self._is_curve():
            n_points, n_seeds = self.searched
            unfinished = f" ({len(self.runs)} of {n_points * n_seeds} runs are finished.)"
            said.append(self.frontier().conclusion() + unfinished * (len(self.runs) < n_points * n_seeds))
        return " ".join(said) or f"{self!r}: table() has the numbers."

    def _is_curve(self) -> bool:
        varied = self._varied()
        return len(varied) == 1 and any(not run.failed for run in self.runs) and self._numeric(varied[0])

    def _turned(self) -> str:
        """Which recipes turn, or what was searched and that nothing turned."""
        turns, (n_points, n_seeds) = self.turns(), self.searched
        n_failed = sum(run.failed is not None for run in self.runs)
        finished = len(self.runs)
        whole = f"{n_points} recipe{'s' * (n_points != 1)} in {n_seeds} seed{'s' * (n_seeds != 1)} each"
        partly = "" if finished == n_points * n_seeds else f", of which {finished} runs are finished"
        searched = f"{whole}{partly}{f' ({n_failed} failed)' if n_failed else ''}"
        if n_seeds < FEWEST_SEEDS:
            return f"Searched: {searched}. Whether a recipe turns takes {FEWEST_SEEDS} seeds at least."
        found = [
            f"{in_words(t.point)} turns: p ≤ .05 in {t.n_turned} of {n_seeds} seeds, p = {t.corrected:.2g} corrected"
            for t in turns
            if t.turns
        ]
        if found:
            return f"{'; '.join(found)} for a search over {searched}."
        least = min(turns, key=lambda t: t.corrected)
        return (
            f"Nothing turned. Searched: {searched}. The least p after correction for the search is "
            f"{least.corrected:.2g}, of {in_words(least.point)} (p ≤ .05 in {least.n_turned} of {n_seeds} seeds)."
        )

    def frontier(self, setting: str | None = None, behaviours: Sequence[str] | None = None) -> Frontier:
        """Changes against one setting, the mean over seeds, with intervals over seeds and questions both.

        The interval is that of `mean_over_seeds`. With one seed it is over questions alone, and says nothing of other
        seeds.

        Args:
            setting: which, where more than one varies; the others are then chosen by `where`.
            behaviours: by key; by default the misaligned preference inside the domain and outside of it.

        Raises:
            ValueError: a setting that does not vary or is not a number, others that vary too, or a behaviour that was
                not measured.
        """
        keys = list(behaviours or (BehaviourKey.IN_DOMAIN_PREFERENCE, BehaviourKey.MISALIGNED_PREFERENCE))
        trained = [run for run in self.runs if not run.failed]
        if not trained:
            raise ValueError(f"every run failed, so there are no effects to show: {self.runs[0].failed}")
        for key in keys:
            trained[0].change(key)
        setting = self._one_setting(setting)
        values = sorted({float(run.recipe[setting]) for run in trained})
        by_value = [[run for run in trained if float(run.recipe[setting]) == value] for value in values]
        effects = {
            str(key): tuple(mean_over_seeds([run.effects[key]["changes"] for run in runs]) for runs in by_value)
            for key in keys
        }
        labels = {str(key): str(trained[0].effects[key]["label"]) for key in keys}
        return Frontier(setting, tuple(values), effects, labels, tuple(map(len, by_value)))

    def _one_setting(self, setting: str | None) -> str:
        varied = self._varied()
        setting = varied[0] if setting is None and len(varied) == 1 else setting
        if setting not in varied:
            raise ValueError(f"setting is {shown(setting)}: choose one that varies, {', '.join(varied) or 'none does'}")
        others = [name for name in varied if name != setting]
        if others:
            raise ValueError(
                f"{', '.join(others)} {'vary' if len(others) > 1 else 'varies'} beside {setting}: choose runs first, "
                f"with where({others[0]}=…)"
            )
        if not self._numeric(setting):
            raise ValueError(f"{setting} is not a number, so nothing can be drawn against it: look at table()")
        return setting

    def _varied(self) -> list[str]:
        return [name for name in self.settings if len({shown(run.recipe[name]) for run in self.runs}) > 1]

    def _numeric(self, setting: str) -> bool:
        return all(isinstance(run.recipe[setting], int | float) for run in self.runs)


def _told_apart(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points without how often a checkpoint is kept, unless only that tells two of them apart."""
    short = [{key: value for key, value in point.items() if key != "checkpoint_every"} for point in points]
    return short if len({in_words(point) for point in short}) == len(points) else list(points)


def _interval(e: Estimate) -> str:
    return f"{e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}]"
