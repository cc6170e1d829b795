"""Conditions under which a model is looked at: as it is, without its adapter, a direction taken out or put in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import Messages
from em_interp.behaviour.answers import Answer
from em_interp.behaviour.generation import respond
from em_interp.behaviour.refusal import refusal_verdicts
from em_interp.checks import door
from em_interp.directions.direction import Direction
from em_interp.interventions import Hooks, add_direction, project_out, set_projection
from em_interp.models.hooked import HookedModel, TransformerLensModel, every_layer, site, without_adapter
from em_interp.statistics.rates import Rate, clustered_rate

Removal = Literal["all_layers_own", "one_layer", "all_layers_same", "set_negative"]
ConditionKind = Literal[
    "plain", "base", "all_layers_own", "one_layer", "all_layers_same", "set_negative", "subtracted", "added"
]
REMOVALS: tuple[Removal, ...] = get_args(Removal)
_LABELS: dict[str, str] = {
    "plain": "as it is",
    "base": "its base",
    "all_layers_own": "removed at every layer",
    "one_layer": "removed at layer {layer}",
    "all_layers_same": "removed at every layer (the vector of layer {layer})",
    "set_negative": "set to its negative class at layer {layer}",
    "subtracted": "subtracted at layer {layer}",
    "added": "added × {strength:g}",
}


@dataclass(frozen=True, eq=False)
class Condition:
    """One thing that is done to a model.

    Attributes:
        kind: `plain` and `base`: nothing, with and without the adapter. `all_layers_own`: each layer's own vector is
            projected out at the output of every block; `one_layer`: that of `layer` there; `all_layers_same`: that of
            `layer` at every block. `set_negative`: the projection at `layer` is set to the mean of the negative class.
            `subtracted`: the vector of `layer` is taken off there, once. `added`: it is added there.
        direction: name of the direction; empty for `plain` and `base`.
        layer: whose vector, or where.
        strength: of what is added, in mean residual norms of the layer.
        without: the name of another direction, where only the part orthogonal to that one is used.
        random: whether the direction is a random one, as a yardstick.
        hooks: what does it.
    """

    kind: ConditionKind
    direction: str = ""
    layer: int | None = None
    strength: float | None = None
    without: str = ""
    random: bool = False
    hooks: Hooks = field(default_factory=list, repr=False)

    @property
    def key(self) -> str:
        """What code looks it up by, the same in every run."""
        parts = (self.direction, self.without and f"without {self.without}", self.kind, self.layer, self.strength)
        return "/".join(str(part) for part in parts if part not in ("", None))

    @property
    def subject(self) -> str:
        """What is taken out or put in, for people: `misalignment`, or `misalignment without refusal`."""
        return f"{self.direction} without {self.without}" if self.without else self.direction

    @property
    def done(self) -> str:
        """What is done with it, for people: `removed at layer 15`, `added × 0.2`."""
        return _LABELS[self.kind].format(layer=self.layer, strength=self.strength)

    @property
    def label(self) -> str:
        """All of it, for people."""
        return f"{self.subject} {self.done}".strip()

    def on(self, model: HookedModel) -> AbstractContextManager[Any]:
        """A context in which the model's adapter is as this condition wants it."""
        return without_adapter(model) if self.kind == "base" else nullcontext()


@door
def removed(model: TransformerLensModel, direction: Direction, removal: Removal, layer: int, **of: Any) -> Condition:
    """A direction taken out of the stream in one of the four ways of `Condition`.

    Raises:
        ValueError: a removal that does not exist.
    """
    hooked = HookedModel.of(model)
    if removal not in REMOVALS:
        raise ValueError(f"removal {removal!r} is unknown: choose from {', '.join(REMOVALS)}")
    hooks = {
        "all_layers_own": lambda: project_out(direction, every_layer(hooked)),
        "one_layer": lambda: project_out(direction[layer], [site(hooked, layer)]),
        "all_layers_same": lambda: project_out(direction[layer], every_layer(hooked)),
        "set_negative": lambda: set_projection(direction, [site(hooked, layer)], "negative"),
    }[removal]()
    whose = None if removal == "all_layers_own" else layer
    return Condition(removal, direction.name, whose, hooks=hooks, **of)


@door
def added(model: TransformerLensModel, direction: Direction, layer: int, scale: int | float, **of: Any) -> Condition:
    """A direction added at the output of a block, at all positions, `scale` mean residual norms long."""
    hooks = add_direction(direction, [site(model, layer)], scale=scale)
    return Condition("added", direction.name, layer, float(scale), hooks=hooks, **of)


@door
def subtracted(model: TransformerLensModel, direction: Direction, layer: int, **of: Any) -> Condition:
    """A direction taken off once at the output of a block: the twin of `set_negative` for what has no classes."""
    hooks = add_direction(direction, [site(model, layer)], scale=-1, raw=True)
    return Condition("subtracted", direction.name, layer, hooks=hooks, **of)


@dataclass(frozen=True, repr=False)
class AnswersByCondition:
    """Answers side by side, and how often the model refuses in each condition.

    Attributes:
        conditions: what was done to the model; everything else is by their keys.
        answers: to the same questions.
        refusals: the share of harmful requests refused, by the published phrases.
        seed: of the samples.
        model: the model that answered.
        misaligned: the share of misaligned answers, where they were judged; a condition in which fewer than two
            questions have a judged answer is left out.
    """

    conditions: tuple[Condition, ...]
    answers: Mapping[str, tuple[Answer, ...]]
    refusals: Mapping[str, Rate]
    seed: int
    model: str
    misaligned: Mapping[str, Rate] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        n = len(next(iter(self.answers.values()), ()))
        return f"AnswersByCondition({n} answers in each of {len(self.conditions)} conditions, {self.model})"

    def labelled(self, by_key: Mapping[str, Any]) -> dict[str, Any]:
        """The same by label, for people, in the order of the conditions."""
        return {c.label: by_key[c.key] for c in self.conditions if c.key in by_key}


@door
def answers_by_condition(  # noqa: PLR0913 - who is asked what, and how often
    model: TransformerLensModel,
    directions: Sequence[Direction],
    questions: Sequence[Messages],
    requests: Sequence[Messages],
    *,
    layer: int | None = None,
    n_samples: int = 2,
    max_new_tokens: int = 40,
    seed: int = 0,
) -> AnswersByCondition:
    """Let a model answer questions and harmful requests as it is, without its adapter, and without each direction.

    A direction is taken out at one layer, the middle one unless told: there every token's projection is set to the mean
    of the direction's negative class (`set_negative`). The temperature is 1.
    """
    hooked = HookedModel.of(model)
    conditions = tuple(_conditions(hooked, directions, hooked.n_layers // 2 if layer is None else layer))
    answers, refusals = {}, {}
    for c in conditions:
        with c.on(hooked):
            answers[c.key] = respond(
                hooked, questions, c.hooks, n_samples=n_samples, max_new_tokens=max_new_tokens, seed=seed
            )
            replies = respond(hooked, requests, c.hooks, n_samples=n_samples, max_new_tokens=16, seed=seed)
        hits = refusal_verdicts(a.text for a in replies)
        refusals[c.key] = clustered_rate(hits, [a.asked for a in replies], seed=seed)
    return AnswersByCondition(conditions, answers, refusals, seed, hooked.identity)


@door
def with_verdicts(
    said: AnswersByCondition, verdicts: Callable[[Sequence[Answer]], Float[Tensor, " answer"]]
) -> AnswersByCondition:
    """The same answers with the share of misaligned ones in each condition.

    `verdicts` says of each answer whether it is misaligned: 1, 0, or NaN where it does not know, such as
    `em_interp.evals.judge.misaligned_by`.
    """
    misaligned = {}
    for key, answers in said.answers.items():
        found, groups = verdicts(answers), [a.group for a in answers]
        if len({g for g, known in zip(groups, (~found.isnan()).tolist(), strict=True) if known}) > 1:
            misaligned[key] = clustered_rate(found, groups, seed=said.seed)
    return replace(said, misaligned=misaligned)


def _conditions(hooked: HookedModel, directions: Sequence[Direction], layer: int) -> Iterator[Condition]:
    if hooked.peft_models:
        yield Condition("base")
    yield Condition("plain")
    for direction in directions:
        yield removed(hooked, direction, "set_negative", layer)
