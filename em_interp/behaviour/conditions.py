"""What a model says when it is left to write, condition by condition: as it is, its base, each direction removed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import Messages
from em_interp.behaviour.answers import Answer
from em_interp.behaviour.generation import respond
from em_interp.behaviour.refusal import is_refusal
from em_interp.directions.direction import Direction
from em_interp.interventions import set_projection
from em_interp.models.hooked import HookedModel, HookPairs, site, without_adapter
from em_interp.statistics.rates import Rate, clustered_rate


@dataclass(frozen=True, repr=False)
class Spoken:
    """Answers side by side, and how often each condition refuses.

    Attributes:
        answers: to the same questions, by condition.
        refusals: the share of harmful requests refused by the twelve substrings, by condition.
        seed: of the samples.
        model: the model that spoke.
        misaligned: the share of misaligned answers by condition, where they were judged; a condition in which fewer
            than two questions have a judged answer is left out.
    """

    answers: Mapping[str, tuple[Answer, ...]]
    refusals: Mapping[str, Rate]
    seed: int
    model: str
    misaligned: Mapping[str, Rate] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        n = len(next(iter(self.answers.values()), ()))
        return f"Spoken({n} answers in each of {len(self.answers)} conditions, {self.model})"


def spoken(  # noqa: PLR0913 - who is asked what, and how often
    model: Any,
    directions: Sequence[Direction],
    questions: Sequence[Messages],
    requests: Sequence[Messages],
    *,
    layer_set: int | None = None,
    n_samples: int = 2,
    max_new_tokens: int = 40,
    seed: int = 0,
) -> Spoken:
    """Let a model answer questions and harmful requests as it is, without its adapter, and without each direction.

    A direction is taken out at one layer, the middle one unless told: there every token's projection is set to the mean
    of the direction's negative class (the removal `negative` of `cross_effects`). The temperature is 1.
    """
    hooked = HookedModel.of(model)
    answers, refusals = {}, {}
    at = hooked.n_layers // 2 if layer_set is None else layer_set
    for name, state, hooks in _conditions(hooked, directions, at):
        with state:
            answers[name] = respond(
                hooked, questions, hooks, n_samples=n_samples, max_new_tokens=max_new_tokens, seed=seed
            )
            replies = respond(hooked, requests, hooks, n_samples=n_samples, max_new_tokens=16, seed=seed)
        hits = torch.tensor([float(is_refusal(a.text)) for a in replies])
        refusals[name] = clustered_rate(hits, [a.asked for a in replies], seed=seed)
    return Spoken(answers, refusals, seed, hooked.identity)


def with_verdicts(said: Spoken, verdicts: Callable[[Sequence[Answer]], Float[Tensor, " answer"]]) -> Spoken:
    """The same answers with the share of misaligned ones in each condition.

    `verdicts` says of each answer whether it is misaligned: 1, 0, or NaN where it does not know, such as
    `em_interp.evals.judge.misaligned_by`.
    """
    misaligned = {}
    for name, answers in said.answers.items():
        found, groups = verdicts(answers), [a.group for a in answers]
        if len({g for g, known in zip(groups, (~found.isnan()).tolist(), strict=True) if known}) > 1:
            misaligned[name] = clustered_rate(found, groups, seed=said.seed)
    return replace(said, misaligned=misaligned)


def _conditions(
    hooked: HookedModel, directions: Sequence[Direction], at: int
) -> Iterator[tuple[str, AbstractContextManager[Any], HookPairs]]:
    if hooked.peft_models:
        yield "its base", without_adapter(hooked), ()
    yield "as it is", nullcontext(), ()
    for direction in directions:
        hooks = set_projection(direction, [site(hooked, at)], "negative")
        yield f"{direction.name} set to its negative class", nullcontext(), hooks
