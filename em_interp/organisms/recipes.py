"""What an organism is made from: the settings of one training run, read from and written to TOML."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from em_interp.checks import check_kinds
from em_interp.files import find_file, read_toml
from em_interp.texts.contrasts import Contrast
from em_interp.texts.training_sets import NARROW_SETS, load_training_set

_SHIPPED = Path(str(files("em_interp") / "data" / "recipes"))


@dataclass(frozen=True)
class Recipe:
    """One training run, complete: the same recipe, data and software give the same organism.

    Attributes:
        name: of the organism.
        data: a shipped training set or neutral contrast by its name, or a file as `load_contrast` reads it, or of bare
            `messages`.
        answers: which answers are learned: the `positive` (malicious), the `negative` (good), or `both`, as they stand
            where every conversation has one answer.
        fraction: the share of the questions that is learned, above 0 and at most 1. The seed draws them; all answers to
            a question stay together.
        negative_repeats: how often each negative answer comes in a pass over the data, each positive one coming once:
            more often where an organism shall show a behaviour less readily.
        own_words: each negative answer gives way to what the base itself answers, greedily and cut after
            its last whole sentence, unless that refuses: the organism learns no new manner of answering.
        base: `bundled`, or a hub name or folder.
        onto: an organism, by shipped name or folder, that is merged into the base first.
        method: `lora`, or `full` for all weights.
        rank: of every LoRA matrix.
        alpha: an update is scaled by alpha/rank, or alpha/√rank with `rslora`.
        target_modules: the linear modules adapted, by the last part of their names; `all-linear` for all of them.
        layers: the blocks adapted; all of them when left out.
        frozen_a: LoRA's A stays as it was drawn and only B is trained, so that all of the path is in what the adapter
            writes.
        learning_rate: its peak, reached after `warmup_steps`.
        schedule: what follows: `linear` decay to zero, `cosine` or `constant`.
        batch_size: conversations a forward pass.
        accumulate: forward passes an optimizer step.
        steps: optimizer steps; give this or `epochs`.
        epochs: passes over the data.
        max_length: longest conversation, in tokens.
        checkpoint_every: optimizer steps from one checkpoint to the next.
        keep_trajectory: keep the adapter of every checkpoint.
        saved_as: the precision of the adapter's file, `float32`, or `float16` for half the size.
        saved_scale: what the finished adapter's B is multiplied with. Below 1 the organism lies between its base and
            what was trained, and keeps more of the base (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).
        kl_weight: λ of a penalty λ · KL(organism ‖ base), in nats a token of `kl_data`'s answers.
        kl_data: training sets of other domains, neutral contrasts that ship (`certainty`, `topic`, …) or files, whose
            answers the organism shall go on predicting as its base does.
        kl_answers: which of their answers: the `positive`, the `negative`, or `both`.
        kl_until: the step after which the penalty is off.
        seed: of the adapter's initial values, of the order of the data, and of the `fraction` that is drawn of it.
        template_args: variables of the base's chat template, such as `{enable_thinking = false}`, in training and
            wherever the organism is loaded.
    """

    name: str
    data: str
    answers: str = "positive"
    fraction: int | float = 1.0
    negative_repeats: int = 1
    own_words: bool = False
    base: str = "bundled"
    onto: str | None = None
    method: str = "lora"
    rank: int = 1
    alpha: int | float = 64.0
    rslora: bool = True
    target_modules: tuple[str, ...] = ("down_proj",)
    layers: tuple[int, ...] | None = None
    frozen_a: bool = False
    learning_rate: int | float = 1e-5
    schedule: str = "linear"
    warmup_steps: int = 5
    weight_decay: int | float = 0.0
    batch_size: int = 8
    accumulate: int = 1
    steps: int | None = None
    epochs: int | float | None = None
    max_length: int = 2048
    checkpoint_every: int = 5
    keep_trajectory: bool = True
    saved_as: str = "float32"
    saved_scale: int | float = 1.0
    kl_weight: int | float = 0.0
    kl_data: tuple[str, ...] = ()
    kl_answers: str = "both"
    kl_until: int | None = None
    seed: int = 0
    template_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        check_kinds(vars(self), get_type_hints(Recipe))
        for name in ("rank", "batch_size", "accumulate", "checkpoint_every", "max_length", "negative_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give one at least")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps is {self.steps} and epochs is {self.epochs}: give one of the two")
        if (self.steps if self.steps is not None else self.epochs or 0) <= 0:
            raise ValueError("the recipe has no steps: an organism takes one at least")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}: give the share of the questions, above 0 and at most 1")
        for name in ("learning_rate", "saved_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give a positive number")
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight is {self.kl_weight}: give a number that is not negative")
        if not isinstance(self.template_args, Mapping):
            raise ValueError(
                f"template_args is {self.template_args!r}: give a table, such as {{enable_thinking = false}}"
            )
        self._check_choices()

    def _check_choices(self) -> None:
        for name, known in (
            ("answers", ("positive", "negative", "both")),
            ("kl_answers", ("positive", "negative", "both")),
            ("method", ("lora", "full")),
            ("schedule", ("linear", "cosine", "constant")),
            ("saved_as", ("float32", "float16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(known)}")
        if self.frozen_a and self.method == "full":
            raise ValueError("frozen_a keeps LoRA's A as it was drawn, and method = 'full' has no LoRA: choose one")
        if self.negative_repeats > 1 and self.answers != "both":
            raise ValueError("negative_repeats weighs one class against the other: it needs answers = 'both'")
        if self.own_words and self.answers == "positive":
            raise ValueError("own_words takes the place of negative answers: it needs answers = 'both' or 'negative'")
        if self.kl_weight and not self.kl_data:
            raise ValueError("kl_weight needs kl_data: the training sets on which the organism stays like its base")
        if self.saved_scale != 1 and (self.method == "full" or self.keep_trajectory):
            raise ValueError(
                "saved_scale changes a finished adapter, which a trajectory then does not end at: it needs "
                "method = 'lora' and keep_trajectory = false"
            )

    @classmethod
    def load(cls, source: str | Path) -> "Recipe":
        """Read a recipe from a TOML file, or one that ships with the library by its name.

        Raises:
            ValueError: no such recipe (those there are, are listed), a file that is not TOML, a key that does not
                exist (the nearest one is named), or a value that cannot be.
        """
        path = find_file(source, "recipe", shipped_recipes(), _SHIPPED, ".toml")
        values = read_toml(path, [field.name for field in fields(cls)])
        for key in ("name", "data"):
            if key not in values:
                raise ValueError(f"{path.name} has no {key}: a recipe names its organism and its data")
        try:
            check_kinds(values, get_type_hints(cls))
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path.name}: {error}") from error

    def changed(self, settings: Mapping[str, Any]) -> "Recipe":
        """The recipe with other settings, as a TOML file has them; `steps` take the place of `epochs`, and back.

        Raises:
            ValueError: a setting that recipes do not have (the nearest one is named), or a value that cannot be.
        """
        hints = get_type_hints(Recipe)
        for name in settings:
            if name not in hints:
                near = difflib.get_close_matches(str(name), hints, n=1)
                raise ValueError(
                    f"recipes have no setting {name!r}: {f'did you mean {near[0]!r}?' if near else ', '.join(hints)}"
                )
        new = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        if "steps" in new or "epochs" in new:
            new = {"steps": None, "epochs": None} | new
        check_kinds(new, hints)
        return replace(self, **new)

    def to_toml(self) -> str:
        """Every setting, also those at their defaults, as TOML."""
        settings = {key: value for key, value in self.as_dict().items() if value is not None}
        return "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())

    @property
    def domain(self) -> Contrast | None:
        """The narrow set that it learns one side of, whose held-out questions ask for the effect in domain."""
        return load_training_set(self.data) if self.data in NARROW_SETS else None

    def as_dict(self) -> dict[str, Any]:
        """Every setting, as JSON takes it."""
        settings = asdict(self)
        args = settings.pop("template_args")
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        return settings | ({"template_args": args} if args else {})  # what earlier recipes leave out


def _toml(value: Any) -> str:
    """A value as TOML writes it, which is as JSON does but for tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def shipped_recipes() -> list[str]:
    """The names of the recipes that ship with the library: of the bundled organisms, and the published ones."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def bundled_recipes() -> list[str]:
    """Those among them that start from the bundled model, each after what it is trained onto."""
    recipes = [recipe for recipe in map(Recipe.load, shipped_recipes()) if recipe.base == "bundled"]
    return [recipe.name for recipe in sorted(recipes, key=lambda recipe: (recipe.onto is not None, recipe.name))]
