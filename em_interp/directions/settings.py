"""Interventions as a shell or a settings file names them: a direction's file, a layer, a strength, positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from em_interp.checks import door
from em_interp.directions.direction import Direction
from em_interp.interventions import Hooks, Positions, add_direction, project_out, set_projection
from em_interp.models.hooked import HookedModel, TransformerLensModel, every_layer, every_write, site

VERBS = ("project_out", "set_negative", "add")
SITES = ("every", "own", "writes")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One intervention with a direction that lies in a file.

    Attributes:
        project_out: the file of a direction to take out of the stream; or
        set_negative: the file of one on which the stream's projection is set to the mean of the negative class; or
        add: the file of one to add to it.
        layer: whose vector. Left out, each layer has its own; `add` needs one.
        sites: `every` layer's output, its `own` layer's only, or the `writes` of embedding, attention and MLPs (not for
            `set_negative`: what is written there has another mean). By default a direction is taken out at every layer,
            and set or added at its own.
        scale: how much is added, in mean residual norms of the layer.
        positions: `all`, the `prompt` or the `response`.
    """

    project_out: str | None = None
    set_negative: str | None = None
    add: str | None = None
    layer: int | None = None
    sites: str | None = None
    scale: int | float = 1.0
    positions: str = "all"

    def __post_init__(self) -> None:
        """Refuse what says nothing, or two things at once."""
        if sum(getattr(self, verb) is not None for verb in VERBS) != 1:
            raise ValueError(f"say what to do with which file: one of {', '.join(f'{verb}=FILE' for verb in VERBS)}")
        if self.sites not in (None, *SITES):
            raise ValueError(f"sites {self.sites!r} is unknown: choose one of {', '.join(SITES)}")
        if self.positions not in get_args(Positions):
            raise ValueError(f"positions {self.positions!r} is unknown: choose one of {', '.join(get_args(Positions))}")
        if self.layer is None and (self.add is not None or self.sites == "own"):
            raise ValueError("say which layer's vector: layer=15")
        if self.set_negative is not None and self.sites not in (None, "own" if self.layer is not None else "every"):
            raise ValueError(
                "a class mean holds at the layer where it was read: give layer=15 for that layer's output, or neither "
                "layer nor sites for every layer's own"
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Edit":
        """An edit from names and values, numbers as text understood.

        Raises:
            ValueError: a name that does not exist, or a value that is no number where one is wanted.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(f"an intervention has no {name!r}: it has {', '.join(known)}")
        numbers = {"layer": int, "scale": float}
        try:
            values: dict[str, Any] = {k: numbers.get(k, str)(v) for k, v in settings.items() if v is not None}
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{dict(settings)} is no intervention: {error}") from error

    def hooks(self, model: TransformerLensModel) -> Hooks:
        """The hook functions on a model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no direction, one of another width, or none of this layer.
        """
        hooked = HookedModel.of(model)
        path = str(self.project_out or self.set_negative or self.add)
        direction = Direction.load(path)
        if direction.d_model != hooked.d_model:
            raise ValueError(
                f"the direction in {path} is {direction.d_model} wide and the model {hooked.d_model}: it was read from "
                f"{direction.model}"
            )
        vector = direction if self.layer is None else direction[self.layer]
        where: Any = {"positions": self.positions}
        own = self.add is not None or (self.set_negative is not None and self.layer is not None)
        sites = self.sites or ("own" if own else "every")
        at = {
            "every": lambda: every_layer(hooked),
            "own": lambda: [site(hooked, self.layer or 0)],
            "writes": lambda: every_write(hooked),
        }[sites]()
        if self.project_out is not None:
            return project_out(vector, at, **where)
        if self.set_negative is not None:
            return set_projection(direction, at, "negative", **where)
        norm = direction.residual_norm[direction.row(self.layer or 0)]
        return add_direction(vector, at, scale=self.scale, residual_norm=norm, **where)


@door
def hooks_of(model: TransformerLensModel, edits: Sequence[Edit]) -> Hooks:
    """The hook functions of several edits, in their order."""
    return [hook for edit in edits for hook in edit.hooks(model)]
