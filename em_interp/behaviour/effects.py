"""Each direction removed and added, against each behaviour, beside a random direction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.behaviour.preference import preference
from em_interp.behaviour.rates import Estimate, mean_by_question
from em_interp.behaviour.refusal import refusal_score
from em_interp.behaviour.scoring import text_bits
from em_interp.contrasts import load_contrast, load_neutral_texts
from em_interp.directions import Direction
from em_interp.interventions import add_direction, project_out
from em_interp.models import HookedModel, HookPairs, every_layer, layer
from em_interp.progress import bar

Scores = tuple[Float[Tensor, " item"], Sequence[str]]
Behaviour = Callable[[Any, HookPairs], Scores]


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
        layer: where directions were added; they were removed at every layer.
        scale: how much was added, in mean residual norms of that layer.
        n_random: how many random directions stand beside the others.
        seed: of the first of them; each next one has the next.
        model: the model measured.
    """

    baseline: Mapping[str, Estimate]
    effects: tuple[Effect, ...]
    layer: int
    scale: float
    n_random: int
    seed: int
    model: str

    def __repr__(self) -> str:
        """One line."""
        interventions = {(e.direction, e.intervention) for e in self.effects}
        size = f"{len(interventions)} interventions × {len(self.baseline)} behaviours"
        return f"CrossEffects({size}, added at layer {self.layer}, {self.model})"

    def table(self) -> list[dict[str, Any]]:
        """One row an intervention and behaviour, ready for JSON or a data frame."""
        return [
            {
                "direction": e.direction,
                "intervention": e.intervention,
                "behaviour": e.behaviour,
                "baseline": self.baseline[e.behaviour].value,
                "change": e.change.value,
                "low": e.change.low,
                "high": e.change.high,
                "n": e.change.n,
            }
            for e in self.effects
        ]


def standard_behaviours(n_questions: int | None = None) -> dict[str, Behaviour]:
    """The held-out questions and requests of the shipped contrasts, and plain prose: what cross_effects measures.

    `n_questions` of each, spread over the domains; all of them by default. None is among those directions are read from
    when these are read with `.where(split="train")`.
    """
    answers, requests = (load_contrast(name).where(split="test") for name in ("misalignment", "refusal"))
    texts = load_neutral_texts()
    if n_questions is not None:
        answers, requests, texts = (
            answers.take(n_questions),
            requests.take(n_questions),
            texts[:: max(1, len(texts) // n_questions)],
        )

    def misalignment(model: Any, hooks: HookPairs) -> Scores:
        found = preference(model, answers, hooks)
        return found.margins, found.groups

    def refusing(side: Sequence[Any]) -> Behaviour:
        def score(model: Any, hooks: HookPairs) -> Scores:
            found = refusal_score(model, side, hooks)
            return found.scores, found.groups

        return score

    return {
        "misaligned preference (nats/token)": misalignment,
        "refusal score, harmful (log-odds)": refusing(requests.positive),
        "refusal score, harmless (log-odds)": refusing(requests.negative),
        "neutral text (bits/token)": lambda model, hooks: (text_bits(model, texts, hooks), texts),
    }


def cross_effects(  # noqa: PLR0913 - what is done, what is measured, all keyword-only
    model: Any,
    directions: Sequence[Direction],
    *,
    layer_added: int | None = None,
    scale: float = 0.5,
    n_random: int = 1,
    behaviours: Mapping[str, Behaviour] | None = None,
    seed: int = 0,
) -> CrossEffects:
    """Remove and add each direction, and see what that does to every behaviour, beside random directions.

    Removed: each layer's own vector is projected out of the output of every block. Added: the vector of `layer_added`
    (the middle layer by default), as long as `scale` mean residual norms there, at that layer and all positions. The
    random directions have the same length, and are drawn from `seed`.
    """
    hooked = HookedModel.of(model)
    behaviours = standard_behaviours() if behaviours is None else behaviours
    at = hooked.n_layers // 2 if layer_added is None else layer_added
    rivals = [
        random_like(directions[0], seed + i, f"random {i + 1}" if n_random > 1 else "random") for i in range(n_random)
    ]
    interventions = {
        (direction.name, kind): hooks
        for direction in [*directions, *rivals]
        for kind, hooks in (
            ("removed", project_out(direction, every_layer(hooked))),
            ("added", add_direction(direction, [layer(hooked, at)], scale=scale)),
        )
    }
    before = {name: behaviour(hooked, ()) for name, behaviour in behaviours.items()}
    effects = []
    for (name, kind), hooks in bar(iterable=interventions.items(), desc="cross effects", unit="intervention"):
        for behaviour, measure in behaviours.items():
            after, groups = measure(hooked, hooks)
            effects.append(Effect(name, kind, behaviour, mean_by_question(after - before[behaviour][0], groups)))
    baseline = {name: mean_by_question(*scores) for name, scores in before.items()}
    return CrossEffects(baseline, tuple(effects), at, scale, n_random, seed, hooked.identity)


def random_like(direction: Direction, seed: int, name: str) -> Direction:
    """An isotropic random direction of the same length at every layer, the same one at all of them."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(direction.d_model, generator=generator), dim=0)
    return replace(direction, vectors=direction.norm[:, None] * unit, name=name)
