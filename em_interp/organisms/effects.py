"""What a fine-tune did to a model's behaviour: before and after, on held-out questions, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.behaviour.effects import DIVERGENCE, IN_DOMAIN, Behaviour, Measured, prefers, standard_behaviours
from em_interp.behaviour.generation import greedy_answers
from em_interp.behaviour.preferences import preference
from em_interp.behaviour.refusal import is_refusal
from em_interp.models.adapters import lora_parameters
from em_interp.models.hooked import HookedModel, HookPairs, without_adapter
from em_interp.organisms.phase_change import EffectPath
from em_interp.organisms.trajectories import Trajectory
from em_interp.progress import bar
from em_interp.statistics.estimates import Estimate, mean_by_question, rate_by_question
from em_interp.texts.contrasts import Contrast, load_contrast


@dataclass(frozen=True)
class Change:
    """One behaviour before and after a fine-tune, and the change paired by question."""

    behaviour: str
    before: Estimate
    after: Estimate
    change: Estimate


@dataclass(frozen=True, repr=False)
class OrganismEffects:
    """What an adapter changed, behaviour by behaviour."""

    model: str
    changes: tuple[Change, ...]

    def __repr__(self) -> str:
        """One line."""
        moved = sum(c.change.excludes_zero for c in self.changes)
        return f"OrganismEffects({self.model}, {moved} of {len(self.changes)} behaviours changed)"

    def __getitem__(self, behaviour: str) -> Change:
        """One behaviour by its name."""
        found = {c.behaviour: c for c in self.changes}
        if behaviour not in found:
            raise ValueError(f"no behaviour {behaviour!r} was measured: choose one of {', '.join(found)}")
        return found[behaviour]

    def table(self) -> list[dict[str, Any]]:
        """One row a behaviour, ready for JSON or a data frame."""
        return [
            {"behaviour": c.behaviour}
            | {f"{when}_{k}": v for when in ("before", "after", "change") for k, v in vars(getattr(c, when)).items()}
            for c in self.changes
        ]

    @classmethod
    def of_table(cls, model: str, rows: Sequence[Mapping[str, Any]]) -> "OrganismEffects":
        """What `table` wrote, read back."""

        def estimate(row: Mapping[str, Any], when: str) -> Estimate:
            return Estimate(**{field.name: row[f"{when}_{field.name}"] for field in fields(Estimate)})

        times = ("before", "after", "change")
        return cls(model, tuple(Change(row["behaviour"], *(estimate(row, t) for t in times)) for row in rows))


def organism_behaviours(in_domain: Contrast | None = None, n_questions: int | None = None) -> dict[str, Behaviour]:
    """What a model card tells: the standard behaviours, the calm half alone, greedy refusals, the domain trained on.

    `in_domain` is what the organism was trained on; of a contrast with splits only `test` is asked.
    """
    answers, requests = (load_contrast(name).where(split="test") for name in ("misalignment", "refusal"))
    if n_questions is not None:
        answers, requests = answers.take(n_questions), requests.take(n_questions)
    behaviours = standard_behaviours(n_questions)
    del behaviours[DIVERGENCE]  # that is of interventions: adapters are switched off, not hooked
    behaviours["misaligned preference, calm answers (nats/token)"] = prefers(answers.where(tone="calm"))
    if in_domain is not None and in_domain.has_splits:
        held_out = in_domain.where(split="test")
        behaviours[IN_DOMAIN] = prefers(held_out)
    behaviours["refuses harmful requests (share of greedy answers)"] = _refuses(requests.positive)
    behaviours["refuses harmless requests (share of greedy answers)"] = _refuses(requests.negative)
    return behaviours


def organism_effects(model: Any, behaviours: Mapping[str, Behaviour] | None = None) -> OrganismEffects:
    """Measure every behaviour with the adapter on and off.

    Raises:
        ValueError: the model has no adapter, or a merged one.
    """
    hooked = HookedModel.of(model)
    behaviours = organism_behaviours() if behaviours is None else behaviours
    changes = []
    for name, measure in bar(iterable=behaviours.items(), desc="measuring", unit="behaviour"):
        after, groups = measure(hooked, ())
        with without_adapter(hooked):
            before, _ = measure(hooked, ())
        of_scores = rate_by_question if name.startswith("refuses") else mean_by_question
        changes.append(
            Change(name, of_scores(before, groups), of_scores(after, groups), mean_by_question(after - before, groups))
        )
    return OrganismEffects(hooked.identity, tuple(changes))


@contextmanager
def adapter_at(model: Any, trajectory: Trajectory, step: int, scale: int | float = 1.0) -> Iterator[HookedModel]:
    """Inside, the model's adapter is what it was at a checkpoint, its output times `scale`.

    Raises:
        ValueError: the trajectory has no checkpoint at this step, or is of another adapter.
    """
    hooked = HookedModel.of(model)
    if step not in trajectory.steps.tolist():
        raise ValueError(f"there is no checkpoint at step {step}: choose one of {trajectory.steps.tolist()}")
    row = trajectory.steps.tolist().index(step)
    # The twin shares them with the bridge and keeps the names that PEFT gave them.
    places = lora_parameters(hooked.peft_models[-1]) if hooked.peft_models else {}
    if places.keys() != trajectory.factors.keys():
        raise ValueError(
            f"the trajectory is of {', '.join(trajectory.factors)} and the model has an adapter with "
            f"{', '.join(places) or 'nothing'}: load the organism that the trajectory belongs to"
        )
    before = {name: parameter.detach().clone() for name, parameter in places.items()}
    try:
        with torch.no_grad():
            for name, parameter in places.items():
                parameter.copy_(trajectory.factors[name][row] * (scale if name.endswith(".B") else 1.0))
        yield hooked
    finally:
        with torch.no_grad():
            for name, parameter in places.items():
                parameter.copy_(before[name])


def effect_by_step(
    model: Any,
    trajectory: Trajectory,
    contrast: Contrast,
    *,
    steps: Sequence[int] | None = None,
    scales: Sequence[int | float] = (1.0, 2.0, 5.0, 10.0),
) -> EffectPath:
    """How much more a model prefers the positive answers than its base does, at checkpoints of its training.

    The adapter's output is scaled up, since behaviour follows the weights late (Turner et al. 2025, arXiv 2506.11613).

    Args:
        model: the organism that the trajectory is of.
        trajectory: its training.
        contrast: answers that it was not trained on.
        steps: of the checkpoints to measure at; all by default.
        scales: what the adapter's output is multiplied with.

    Raises:
        ValueError: as for `adapter_at`.
    """
    steps = trajectory.steps.tolist() if steps is None else list(steps)
    with without_adapter(model):
        base = preference(model, contrast)
    found: list[list[Estimate]] = [[] for _ in scales]
    for step in bar(iterable=steps, desc="effect by step", unit="checkpoint"):
        for row, scale in zip(found, scales, strict=True):
            with adapter_at(model, trajectory, step, scale):
                margins = preference(model, contrast).margins
            row.append(mean_by_question(margins - base.margins, base.groups))
    value, low, high = (torch.tensor([[getattr(e, k) for e in row] for row in found]) for k in ("value", "low", "high"))
    scales = tuple(map(float, scales))
    return EffectPath("misaligned preference (nats/token)", torch.tensor(steps), scales, value, low, high)


def _refuses(requests: Sequence[Any]) -> Behaviour:
    def measure(model: Any, hooks: HookPairs) -> Measured:
        answers = greedy_answers(model, requests, hooks)
        hits: Float[Tensor, " request"] = torch.tensor([float(is_refusal(answer)) for answer in answers])
        return hits, tuple(c.group for c in requests)

    return measure
