"""A search over training recipes: what is varied, from which seeds, what is measured, and on which questions."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from em_interp.checks import check_kinds, shown
from em_interp.files import find_file, read_toml
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.sweep_rows import in_words

MEASURES = ("phases", "behaviour", "refusal")
VALIDATION = "validation"
_FEWEST_CHECKPOINTS = 12  # of which `phases` can tell whether a path turns
_FIXED = ("name", "seed", "base", "onto", "data", "template_args")  # a search is of one model and one set of data
SHIPPED_IN = Path(str(files("em_interp") / "data" / "sweeps"))


@dataclass(frozen=True)
class SweepQuestions:
    """Which questions a search is judged on: never those of a split `test`, which are for the final report.

    Each is a source, or a source and one of its splits: a shipped contrast or training set by its name, or a file.
    Where no split is named, it is `validation`; a file of one's own without splits is asked whole.

    Attributes:
        outside: questions outside of the domain that is learned.
        inside: questions inside of it; by default the recipe's own data.
        requests: harmful (positive) and harmless requests.
        n: at most so many of each, spread over the domains; all by default.
    """

    outside: tuple[str, ...] = ("misalignment", "train")
    inside: tuple[str, ...] | None = None
    requests: tuple[str, ...] = ("refusing",)
    n: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a source with or without a split, and the split that is kept for the report."""
        check_kinds(vars(self), get_type_hints(SweepQuestions))
        for what in ("outside", "inside", "requests"):
            named = getattr(self, what)
            if named is not None and len(named) not in (1, 2):
                raise ValueError(
                    f"questions.{what} is {shown(named)}: give a source, or a source and one of its splits"
                )
            if named is not None and named[1:] == ("test",):
                raise ValueError(
                    f"questions.{what} names the split test, which is for the final report: a recipe that is chosen on "
                    f"it would be reported too well, so choose another split"
                )
        if self.n is not None and self.n < 2:
            raise ValueError(f"questions.n is {self.n}: an interval takes two questions at least")


@dataclass(frozen=True)
class Sweep:
    """A search over training recipes.

    Attributes:
        name: of the search.
        recipe: what all of them have in common.
        points: the settings that each has of its own.
        seeds: that each is trained from.
        measure: what is measured: `phases` (whether the path turns, and the effect outside the domain at checkpoints,
            with the adapter scaled), `behaviour` (the misaligned preference inside the domain and outside), `refusal`
            (greedy refusals of harmful and of harmless requests, and bits a token of plain prose).
        questions: which are asked.
        scales: of the adapter in the effect at checkpoints.
        effect_checkpoints: how many checkpoints it is measured at, the last one among them; 0 leaves it out.
        n_resamples: of the null of the change point.
    """

    name: str
    recipe: Recipe
    points: tuple[Mapping[str, Any], ...]
    seeds: tuple[int, ...]
    measure: tuple[str, ...]
    questions: SweepQuestions = field(default_factory=SweepQuestions)
    scales: tuple[int | float, ...] = (1.0, 5.0)
    effect_checkpoints: int = 6
    n_resamples: int = 500

    def __post_init__(self) -> None:
        """Refuse points that are not recipes, points or seeds that are there twice, and measures that do not exist."""
        check_kinds(vars(self), get_type_hints(Sweep))
        for what in ("points", "seeds", "measure", "scales"):
            given = getattr(self, what)
            if not given:
                raise ValueError(f"the search has no {what}: give one at least")
            if any(one in given[:i] for i, one in enumerate(given)):
                raise ValueError(f"{what} are {shown(list(given))}: give each once")
        if unknown := set(self.measure).difference(MEASURES):
            raise ValueError(f"measure names {min(unknown)!r}: choose from {', '.join(MEASURES)}")
        if self.n_resamples < 40 or self.effect_checkpoints < 0:
            raise ValueError(
                f"n_resamples is {self.n_resamples} and effect_checkpoints {self.effect_checkpoints}: give 40 and 0 at "
                f"least"
            )
        recipes = [self.at(point, self.seeds[0]) for point in self.points]
        for i, recipe in enumerate(recipes):
            if recipe in recipes[:i]:
                raise ValueError(f"two points are the same recipe, {in_words(self.points[i])}: give each once")
            if "phases" in self.measure:
                _check_path(recipe, self.points[i])

    def __repr__(self) -> str:
        """One line."""
        return (
            f"Sweep({self.name!r}, {len(self.points)} recipes × {len(self.seeds)} seeds, measures "
            f"{', '.join(self.measure)})"
        )

    @classmethod
    def load(cls, source: str | Path) -> "Sweep":
        """Read a search from a TOML file, or one that ships with the library by its name.

        The file has `name`, `recipe` (a shipped one, or a file), `seeds`, `measure`, and what varies: `[vary]` with a
        list for each setting, of which every combination is trained, or a `[[point]]` for each recipe. `[settings]` are
        those in which all of them differ from the recipe; `questions` is `"validation"` or a table as
        `SweepQuestions` has it.

        Raises:
            ValueError: no such search (those that ship are listed), a file that is not TOML, a key that does not exist
                (the nearest one is named), or a value that cannot be.
        """
        path = find_file(source, "search", shipped_sweeps(), SHIPPED_IN, ".toml")
        known = [f.name for f in fields(cls) if f.name != "points"]
        values = read_toml(path, [*known, "settings", "vary", "point"])
        try:
            return cls(**_parsed(values))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path.name}: {error}") from error

    def at(self, point: Mapping[str, Any], seed: int) -> Recipe:
        """The recipe of one point and seed.

        Raises:
            ValueError: a setting that recipes do not have (the nearest one is named), one that a search keeps, or a
                value that cannot be.
        """
        return replace(_changed(self.recipe, point), seed=seed)


def shipped_sweeps() -> list[str]:
    """The names of the searches that ship with the library."""
    return sorted(path.stem for path in SHIPPED_IN.glob("*.toml"))


def _parsed(values: dict[str, Any]) -> dict[str, Any]:
    """What a search's file says, as `Sweep` takes it."""
    for key in ("name", "recipe", "seeds", "measure"):
        if key not in values:
            raise ValueError(f"there is no {key}: a search has a name, a recipe, seeds and what it measures")
    vary, points = values.pop("vary", None), values.pop("point", None)
    if (vary is None) == (points is None):
        raise ValueError("say what varies, in one way: a table [vary] of lists, or a [[point]] for each recipe")
    check_kinds({"recipe": values["recipe"]}, {"recipe": str})
    settings = values.pop("settings", {})
    check_kinds({"settings": settings, "vary": vary}, {"settings": dict, "vary": dict | None})
    values["points"] = tuple(points) if points is not None else tuple(_combinations(vary))
    for name in settings:
        if any(name in point for point in values["points"] if isinstance(point, Mapping)):
            raise ValueError(f"{name} is in [settings] and varies too: leave it in one place")
    asked = values.pop("questions", VALIDATION)
    if asked != VALIDATION:
        values["questions"] = _questions(asked)
    values["recipe"] = _changed(Recipe.load(values["recipe"]), settings)
    return values


def _changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    for name in settings:
        if name in _FIXED:
            raise ValueError(
                f"{name} is the same in all of a search (its seeds are named for all points at once): make another "
                f"search for another {name}"
            )
    try:
        return recipe.changed(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"at {in_words(settings)}: {error}") from error


def _questions(asked: Any) -> SweepQuestions:
    known = [f.name for f in fields(SweepQuestions)]
    if not isinstance(asked, Mapping):
        raise ValueError(f"questions is {shown(asked)}: write 'validation', or a table with {', '.join(known)}")
    for name in asked:
        if name not in known:
            raise ValueError(f"questions has an unknown key {name!r}: the keys are {', '.join(known)}")
    read: dict[str, Any] = {
        name: (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
        for name, value in asked.items()
    }
    return SweepQuestions(**read)


def _combinations(vary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, values in vary.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"vary.{name} is {shown(values)}: write a list of the values to try, one at least")
    for values in itertools.product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def _check_path(recipe: Recipe, point: Mapping[str, Any]) -> None:
    """Refuse a recipe whose path `phases` could not read."""
    if recipe.method == "full" or not recipe.keep_trajectory:
        raise ValueError(
            f"at {in_words(point)}: phases follow an adapter through its checkpoints, so method should be 'lora' and "
            f"keep_trajectory true"
        )
    if recipe.steps is None:
        raise ValueError(f"at {in_words(point)}: phases need a number of checkpoints, so give steps in place of epochs")
    n = 1 + -(-recipe.steps // recipe.checkpoint_every)
    if n < _FEWEST_CHECKPOINTS:
        raise ValueError(
            f"at {in_words(point)}: {recipe.steps} steps with checkpoint_every = {recipe.checkpoint_every} give {n} "
            f"checkpoints, and a change of direction takes at least {_FEWEST_CHECKPOINTS}: choose a smaller "
            f"checkpoint_every"
        )
