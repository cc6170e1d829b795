"""What experiments on elasticity have in common: a recipe in TOML, trainings that follow each other, rows in a file.

An experiment consists of rows, one a seed or a size. Each is trained in stages, every stage an organism in a folder of
its own, and then written to a JSONL file whose first line says what the experiment is. So what was interrupted goes on
where it stopped, within a training too, and a file that was cut off is not read as whole.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

import torch

from em_interp.checks import check_kinds, path_of, shown
from em_interp.files import find_file, json_line, read_text, read_toml, versions, write_atomically, write_jsonl
from em_interp.models.hooked import HookedModel
from em_interp.organisms.loading import base_model, hooked_base, load_organism
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import Organism, finished, train_organism
from em_interp.progress import job, part
from em_interp.texts.conversations import Conversation
from em_interp.texts.records import read_records

SHIPPED_IN = Path(str(files("em_interp") / "data" / "elasticity"))
AnExperiment = TypeVar("AnExperiment", bound="Experiment")


@dataclass(frozen=True)
class Experiment:
    """What every experiment's TOML file has.

    Attributes:
        name: of the experiment.
        recipe: how every stage is trained; in the file, a shipped recipe or a file by its name, and `[settings]` in
            which the experiment differs from it.
        seeds: that everything is done from.
    """

    kind: ClassVar[str]
    own_recipe: ClassVar[Recipe | None] = None  # what a file that names none has

    name: str
    recipe: Recipe
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse values of another kind, and seeds that are there twice."""
        check_kinds(vars(self), get_type_hints(type(self)))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {shown(list(self.seeds))}: give one at least, and each once")

    @classmethod
    def load(cls: type[AnExperiment], source: str | Path) -> AnExperiment:
        """Read an experiment from a TOML file, or one that ships with the library by its name.

        Raises:
            ValueError: no such experiment (those that ship are listed), a file that is not TOML, a key that does not
                exist (the nearest one is named), or a value that cannot be.
        """
        path = find_file(source, f"{cls.kind} experiment", shipped(cls.kind), SHIPPED_IN, ".toml")
        known = [f.name for f in fields(cls)]
        values = read_toml(path, [*known, "settings"])
        try:
            for key in ("name", "recipe", "seeds"):
                if key not in values and not (key == "recipe" and cls.own_recipe):
                    raise ValueError(f"there is no {key}: an experiment has a name, a recipe and seeds")
            settings, named = values.pop("settings", {}), values.pop("recipe", None)
            check_kinds({"recipe": named, "settings": settings}, {"recipe": str | None, "settings": dict})
            recipe = Recipe.load(named) if named is not None else cls.own_recipe
            assert recipe is not None
            values["recipe"] = recipe.changed(settings)
            read: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            return cls(**read)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path.name}: {error}") from error

    def settings(self) -> dict[str, Any]:
        """Every setting but the seeds, as the first line of a file has them: seeds may be added later."""
        recipe = self.recipe.as_dict()
        del recipe["seed"]
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("recipe", "seeds")}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in own.items()} | {"recipe": recipe}


def shipped(kind: str) -> list[str]:
    """The names of the experiments of one kind that ship with the library."""
    return sorted(path.stem for path in SHIPPED_IN.glob(f"{kind}*.toml"))


@dataclass(frozen=True)
class Rows:
    """The JSONL file of an experiment: a line that says what it is, and a line for each row that is finished.

    Attributes:
        path: the file.
        header: its first line.
        rows: the lines after it.
    """

    path: Path
    header: dict[str, Any]
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def opened(cls, out: str | Path, experiment: Experiment, base: str) -> "Rows":
        """The file as it is now; a new one is not written before its first row.

        Raises:
            ValueError: a folder, or a file that holds another experiment, or this one on another base.
        """
        path = path_of(out, "experiment")
        if path.is_dir():
            raise ValueError(f"{path.name} is a folder: name the file in it that the results shall be written to")
        header = {"experiment": experiment.kind, "base": base, "settings": experiment.settings()}
        header["versions"] = versions("torch", "transformers", "peft", "trl")
        if not path.is_file():
            return cls(path, header, ())
        there = cls.load(path, experiment.kind)
        for what in ("base", "settings"):
            if there.header[what] != header[what]:
                raise ValueError(
                    f"{path.name} holds another experiment: its {_difference(there.header[what], header[what], what)}. "
                    f"Write to another file, or remove this one first"
                )
        return there

    @classmethod
    def load(cls, path: Path, kind: str) -> "Rows":
        """Read a file of one kind of experiment.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line that is not whole, or a file of another kind.
        """
        records = [entry for _, entry in read_records(path)]
        header = records[0] if records else None
        if not isinstance(header, dict) or set(header) != {"experiment", "base", "settings", "versions"}:
            raise ValueError(f"{path.name} is not a file of results: em-interp elasticity writes such files")
        if header["experiment"] != kind:
            raise ValueError(f"{path.name} holds the experiment {header['experiment']!r}, not {kind!r}")
        if not all(isinstance(row, dict) for row in records[1:]):
            raise ValueError(f"{path.name} has a line that is not a row of results: run the experiment again")
        return cls(path, header, tuple(records[1:]))

    def missing(self, wanted: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
        """Those of the wanted rows, each told by its seed and amounts, that are not finished."""
        return [dict(keys) for keys in wanted if not any(keys.items() <= row.items() for row in self.rows)]

    def with_row(self, row: Mapping[str, Any]) -> "Rows":
        """The same with one row more, in the file too; a reader never meets half a line."""
        before = read_text(self.path) if self.path.is_file() else json_line(self.header)
        write_atomically(self.path, before + json_line(dict(row)))
        return replace(self, rows=(*self.rows, dict(row)))


def _difference(there: Any, here: Any, what: str) -> str:
    """In what two first lines differ, in words."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in {**here, **there}:
            if there.get(name) != here.get(name):
                return _difference(there.get(name), here.get(name), name)
    return f"{what} is {shown(there)}, not {shown(here)}"


@dataclass(frozen=True, eq=False)
class Stages:
    """Trainings of one row that follow on each other, each in a folder of its own and done once.

    Attributes:
        folder: in which they lie.
        recipe: how each is trained, but for its data and for what it starts from.
        device: as in `train_organism`.
    """

    folder: Path
    recipe: Recipe
    device: str | torch.device | None = None

    def train(self, name: str, told: Sequence[Conversation], onto: Organism | None = None, **changes: Any) -> Organism:
        """An organism that has learned these conversations, on top of the base or of another; as it is, if it is there.

        Args:
            name: of its folder.
            told: what it learns, every answer as it stands.
            onto: what it starts from; by default what the recipe names.
            **changes: settings in which it differs from the recipe.
        """
        data = write_jsonl(self.folder.absolute() / f"{name}.jsonl", ({"messages": list(c.messages)} for c in told))
        start = self.recipe.onto if onto is None else str(onto.folder.absolute())
        settings = {"answers": "both", "fraction": 1.0, "name": name, "data": str(data), "onto": start, **changes}
        recipe = replace(self.recipe, **settings)
        with part(name):
            return finished(self.folder / name, recipe) or train_organism(
                recipe, self.folder / name, device=self.device
            )

    def load(self, organism: Organism | None) -> HookedModel:
        """A trained organism, or what the recipe starts from."""
        if organism is not None:
            return load_organism(organism.folder, device=self.device)
        recipe = self.recipe
        return hooked_base(base_model(recipe.base, recipe.onto, device=self.device), recipe.template_args)


def finish(  # noqa: PLR0913 - what is run, where, and how long each part takes
    rows: Rows,
    pending: Sequence[Mapping[str, int]],
    experiment: Experiment,
    row: Callable[[Mapping[str, int], Stages], Mapping[str, Any]],
    parts: Mapping[str, float],
    keep: str | Path | None,
    device: str | torch.device | None,
) -> Rows:
    """Train and measure every pending row, and append each to the file as it is finished.

    Args:
        rows: the file.
        pending: seed and amounts of each row.
        experiment: what is run.
        row: trains and measures one row, whose stages have a folder of their own.
        parts: of the job, each with its share of the time.
        keep: a folder in which every organism is kept; by default they are removed when all is done.
        device: as in `train_organism`.
    """
    if not pending:
        return rows
    folder = path_of(keep, "organisms") if keep is not None else rows.path.with_name(f"{rows.path.name}.unfinished")
    with job(parts):
        for keys in pending:
            name = "-".join(f"{what}-{value}" for what, value in keys.items())
            rows = rows.with_row(row(keys, Stages(folder / name, experiment.recipe, device)))
    if keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def shuffled(conversations: Sequence[Conversation], seed: int) -> list[Conversation]:
    """Conversations in an order of this seed."""
    order = torch.randperm(len(conversations), generator=torch.Generator().manual_seed(seed)).tolist()
    return [conversations[i] for i in order]
