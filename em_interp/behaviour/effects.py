"""Each direction removed and added, against each behaviour, beside random directions: who does whose work."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from em_interp.behaviour.preferences import preference
from em_interp.behaviour.refusal import refusal_score
from em_interp.behaviour.scoring import text_bits, text_divergence
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import parts_apart, random_like
from em_interp.interventions import Hooks, add_direction, project_out, set_projection
from em_interp.models.hooked import HookedModel, HookPairs, every_layer, site
from em_interp.progress import bar
from em_interp.statistics.estimates import Estimate, mean_by_question
from em_interp.texts.contrasts import Contrast, load_contrast, load_neutral_texts

Measured = tuple[Float[Tensor, " item"], Sequence[str]]  # a score for each item, and the question of each
Behaviour = Callable[[Any, HookPairs], Measured]

PREFERENCE = "misaligned preference (nats/token)"
IN_DOMAIN = "misaligned preference, in domain (nats/token)"
JUDGED = "misaligned answers, judged (share)"
REFUSES_HARMFUL = "refusal score, harmful (log-odds)"
REFUSES_HARMLESS = "refusal score, harmless (log-odds)"
BITS = "neutral text (bits/token)"
DIVERGENCE = "neutral text, KL to untouched (nats/token)"
REMOVALS = ("every", "one", "everywhere", "negative")
# An intervention that costs more bits a token of plain prose has broken the model: what it does is no evidence.
DAMAGE = 0.5


@dataclass(frozen=True)
class Effect:
    """What one intervention changes in one behaviour, question by question."""

    direction: str
    intervention: str
    behaviour: str
    change: Estimate


@dataclass(frozen=True)
class CrossEffects:
    """Interventions × behaviours.

    Attributes:
        baseline: each behaviour of the model as it is.
        effects: the change that each intervention makes in each behaviour, paired by question.
        layer: where directions were added, and whose vector was removed where one was.
        scales: how much was added, in mean residual norms of that layer.
        n_random: how many random directions stand beside the others.
        seed: of the first of them; each next one has the next.
        model: the model measured.
    """

    baseline: Mapping[str, Estimate]
    effects: tuple[Effect, ...]
    layer: int
    scales: tuple[float, ...]
    n_random: int
    seed: int
    model: str

    def __repr__(self) -> str:
        """One line."""
        size = f"{len(self.interventions)} interventions × {len(self.baseline)} behaviours"
        return f"CrossEffects({size}, added at layer {self.layer}, {self.model})"

    @property
    def interventions(self) -> tuple[tuple[str, str], ...]:
        """What was done, as direction and kind, each once, in order."""
        return tuple(dict.fromkeys((e.direction, e.intervention) for e in self.effects))

    def change(self, direction: str, intervention: str, behaviour: str) -> Estimate:
        """One cell.

        Raises:
            ValueError: nothing of the kind was measured.
        """
        for e in self.effects:
            if (e.direction, e.intervention, e.behaviour) == (direction, intervention, behaviour):
                return e.change
        raise ValueError(f"{direction} {intervention} was not measured on {behaviour}: see .table()")

    def beside(self, other: "CrossEffects") -> "CrossEffects":
        """The same interventions with the behaviours of both, those of the other one last.

        Raises:
            ValueError: the other one measured other interventions, or another model.
        """
        done = [(c.interventions, c.layer, c.scales, c.seed, c.model) for c in (self, other)]
        if done[0] != done[1]:
            raise ValueError(
                f"{self} and {other} did not do the same: give both the same model, directions, layer, scales, "
                f"removals, n_random and seed"
            )
        baseline, effects = {**self.baseline, **other.baseline}, self.effects + other.effects
        return replace(self, baseline=baseline, effects=effects)

    def table(self) -> list[dict[str, Any]]:
        """One row an intervention and behaviour, ready for JSON or a data frame; None where nothing was scored."""
        return [
            {
                "direction": e.direction,
                "intervention": e.intervention,
                "behaviour": e.behaviour,
                "baseline": _or_none(self.baseline[e.behaviour].value),
                "change": _or_none(e.change.value),
                "low": _or_none(e.change.low),
                "high": _or_none(e.change.high),
                "n": e.change.n,
            }
            for e in self.effects
        ]


def standard_behaviours(n_questions: int | None = None, *, in_domain: Contrast | None = None) -> dict[str, Behaviour]:
    """The held-out questions and requests of the shipped contrasts, and plain prose: what cross_effects measures.

    `n_questions` of each, spread over the domains; all of them by default. None is among those directions are read from
    when these are read with `.where(split="train")`. `in_domain` is what an organism was trained on; of a contrast with
    splits only `test` is asked.
    """
    answers, requests = (load_contrast(name).where(split="test") for name in ("misalignment", "refusal"))
    texts = load_neutral_texts()
    if n_questions is not None:
        answers, requests = answers.take(n_questions), requests.take(n_questions)
        texts = texts[:: max(1, len(texts) // n_questions)]
    some = texts[::2] if len(texts) > 3 else texts  # each is read twice
    domain = {}
    if in_domain is not None:
        held_out = in_domain.where(split="test") if in_domain.has_splits else in_domain
        domain[IN_DOMAIN] = prefers(held_out if n_questions is None else held_out.take(n_questions))
    return {
        PREFERENCE: prefers(answers),
        **domain,
        REFUSES_HARMFUL: _refusal(requests.positive),
        REFUSES_HARMLESS: _refusal(requests.negative),
        BITS: lambda model, hooks: (text_bits(model, texts, hooks), texts),
        DIVERGENCE: lambda model, hooks: (text_divergence(model, some, hooks), some),
    }


def prefers(contrast: Contrast) -> Behaviour:
    """How much likelier a contrast's positive answers are than their twins, as a behaviour."""

    def measure(model: Any, hooks: HookPairs) -> Measured:
        found = preference(model, contrast, hooks)
        return found.margins, found.groups

    return measure


def cross_effects(  # noqa: PLR0913 - what is done, what is measured, all keyword-only
    model: Any,
    directions: Sequence[Direction],
    *,
    layer_added: int | None = None,
    scales: Sequence[int | float] = (0.2, 0.5),
    removals: Sequence[str] = REMOVALS,
    apart: bool = True,
    n_random: int = 5,
    behaviours: Mapping[str, Behaviour] | None = None,
    seed: int = 0,
) -> CrossEffects:
    """Remove and add each direction, and see what that does to every behaviour, beside random directions.

    Args:
        model: a `HookedModel` or a bridge.
        directions: those that are compared, such as misalignment and refusal.
        layer_added: where directions are added, at all positions; the middle layer by default.
        scales: how much is added, in mean residual norms there; negative numbers steer away.
        removals: `every`: each layer's own vector is projected out at the output of every block; `one`: that of
            `layer_added` there; `everywhere`: that of `layer_added` at every block; `negative`: the projection on that
            of `layer_added` is set there to the mean of the negative class. Where both classes lie on one side of
            zero, to project out is to push past one of them, and only the last takes the property away (affine
            concept editing, Marshall et al. 2024, arXiv 2411.09003).
        apart: of two directions, also the part of each that is orthogonal to the other.
        n_random: isotropic random directions, as long as the first, removed at every layer and added; beside
            `negative`, which moves the positive class by the direction's length, subtracted once. Their number is what
            a largest one has to be read against.
        behaviours: what is measured, by name; `standard_behaviours()` by default. Scores may be NaN where there is
            none, such as a judge's: a pair with one is left out, and a cell with fewer than two questions left is NaN.
        seed: of the random directions.

    Raises:
        ValueError: a removal that does not exist, or no directions.
    """
    hooked = HookedModel.of(model)
    unknown = [r for r in removals if r not in REMOVALS]
    if unknown or not directions:
        what = f"removal {unknown[0]!r} is unknown" if unknown else "there are no directions"
        raise ValueError(f"{what}: give directions, and removals from {', '.join(REMOVALS)}")
    behaviours = standard_behaviours() if behaviours is None else behaviours
    at = hooked.n_layers // 2 if layer_added is None else layer_added
    parts = parts_apart(*directions) if apart and len(directions) == 2 else ()
    projected = [r for r in removals if r != "negative"]  # a part of a direction has no classes of its own
    rivals = [random_like(directions[0], seed + i, f"random {i + 1}") for i in range(n_random)]
    done = {
        (direction.name, kind): hooks
        for some, kinds in ((directions, removals), (parts, projected), (rivals, _random_kinds(removals)))
        for direction in some
        for kind, hooks in _interventions(hooked, direction, at, kinds, scales)
    }
    before = {name: behaviour(hooked, ()) for name, behaviour in behaviours.items()}
    effects = []
    for (name, kind), hooks in bar(iterable=done.items(), desc="cross effects", unit="intervention"):
        for behaviour, measure in behaviours.items():
            after, groups = measure(hooked, hooks)
            effects.append(Effect(name, kind, behaviour, _mean(after - before[behaviour][0], groups)))
    baseline = {name: _mean(*scores) for name, scores in before.items()}
    return CrossEffects(baseline, tuple(effects), at, tuple(float(s) for s in scales), n_random, seed, hooked.identity)


def is_random(direction: str) -> bool:
    """Whether a direction of `cross_effects` is a random one."""
    return direction.split(" ")[0] == "random"


def _interventions(
    hooked: HookedModel, direction: Direction, at: int, removals: Sequence[str], scales: Sequence[int | float]
) -> Iterator[tuple[str, Hooks]]:
    if "every" in removals:
        yield "removed", project_out(direction, every_layer(hooked))
    if "one" in removals:
        yield f"removed at layer {at}", project_out(direction[at], [site(hooked, at)])
    if "everywhere" in removals:
        yield f"of layer {at} removed everywhere", project_out(direction[at], every_layer(hooked))
    if "negative" in removals:
        yield f"set to its negative class at layer {at}", set_projection(direction, [site(hooked, at)], "negative")
    if "subtracted" in removals:
        yield f"subtracted at layer {at}", add_direction(direction, [site(hooked, at)], scale=-1, raw=True)
    for scale in scales:
        yield f"added × {scale:g}", add_direction(direction, [site(hooked, at)], scale=scale)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean(values: Float[Tensor, " item"], groups: Sequence[str]) -> Estimate:
    kept = ~values.isnan()
    known = [g for g, keep in zip(groups, kept.tolist(), strict=True) if keep]
    n = len(set(known))
    if n < 2 <= len(set(groups)):  # a judge without a word: no reason to lose the other cells
        return Estimate(math.nan, math.nan, math.nan, n)
    return mean_by_question(values[kept], known)


def _random_kinds(removals: Sequence[str]) -> list[str]:
    """What stands beside removals: random directions are the same at every layer, so all projections are one."""
    projected = [] if set(removals) <= {"negative"} else ["every"]
    return [*projected, *(["subtracted"] if "negative" in removals else [])]


def _refusal(requests: Sequence[Any]) -> Behaviour:
    def measure(model: Any, hooks: HookPairs) -> Measured:
        found = refusal_score(model, requests, hooks)
        return found.scores, found.groups

    return measure
