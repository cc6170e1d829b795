"""What a fine-tune did to a model's behaviour: before and after, on held-out questions, with intervals."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from em_interp.activations.forward import first_adapted_block, keeping
from em_interp.behaviour.measures import LABELS, Behaviour, BehaviourKey, Scores, measured, organism_behaviours
from em_interp.behaviour.preferences import preference
from em_interp.checks import check_own, door
from em_interp.models.adapters import lora_parameters
from em_interp.models.hooked import HookedModel, TransformerLensModel, without_adapter
from em_interp.organisms.loading import untuned
from em_interp.organisms.phase_change import EffectPath
from em_interp.organisms.trajectories import Trajectory
from em_interp.progress import bar
from em_interp.statistics.estimates import Estimate, mean_by_question
from em_interp.texts.contrasts import Contrast

_TIMES = ("before", "after", "change")


@dataclass(frozen=True)
class ByQuestion:
    """What one behaviour's estimates are made of: each question's mean score, before and after a fine-tune.

    Attributes:
        kind: of the behaviour, `mean` or `share`.
        asked: twelve digits of a hash of the questions, by which one sees whether two cards asked the same.
        before: a score for each question to five digits, in the order of the questions' names.
        after: the same.
    """

    kind: str
    asked: str
    before: tuple[float, ...]
    after: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is of another kind, and scores that are not one a question."""
        check_own(self)
        if len(self.before) != len(self.after):
            raise ValueError(f"{len(self.before)} scores came before and {len(self.after)} after: give one a question")

    @classmethod
    def of(cls, kind: str, before: Tensor, after: Tensor, questions: Sequence[str]) -> "ByQuestion":
        """From the scores of items and the question of each; a question without a score before or after is left out."""
        scored: dict[str, list[list[float]]] = defaultdict(list)
        for question, *scores in zip(questions, before.tolist(), after.tolist(), strict=True):
            if all(map(math.isfinite, scores)):
                scored[question].append(scores)
        names = sorted(scored)
        asked = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]
        means = [tuple(float(f"{fmean(s[side] for s in scored[name]):.5g}") for name in names) for side in (0, 1)]
        return cls(kind, asked, *means)


@dataclass(frozen=True)
class Change:
    """One behaviour before and after a fine-tune, and the change paired by question.

    Attributes:
        behaviour: its key.
        label: its name and unit, for people.
        by_question: each question's scores; None where they were not kept.
    """

    behaviour: str
    label: str
    before: Estimate
    after: Estimate
    change: Estimate
    by_question: ByQuestion | None = field(default=None, repr=False)


@dataclass(frozen=True, repr=False)
class OrganismEffects:
    """What a fine-tune changed, behaviour by behaviour: `effects[BehaviourKey.MISALIGNED_PREFERENCE].change`.

    Attributes:
        model: the model's identity.
        changes: one a behaviour.
        base: the identity of the model before the fine-tune; empty where it was not kept.
    """

    model: str
    changes: tuple[Change, ...]
    base: str = ""

    def __repr__(self) -> str:
        """One line."""
        moved = sum(c.change.excludes_zero for c in self.changes)
        return f"OrganismEffects({self.model}, {moved} of {len(self.changes)} behaviours changed)"

    def __contains__(self, behaviour: str) -> bool:
        """Whether a behaviour was measured, by its key."""
        return behaviour in {c.behaviour for c in self.changes}

    def __getitem__(self, behaviour: str) -> Change:
        """One behaviour by its key."""
        found = {c.behaviour: c for c in self.changes}
        if behaviour not in found:
            raise ValueError(f"no behaviour {behaviour!r} was measured: choose one of {', '.join(found)}")
        return found[behaviour]

    def table(self) -> list[dict[str, Any]]:
        """One row a behaviour, ready for JSON or a data frame."""
        return [
            {"behaviour": c.behaviour, "label": c.label}
            | {f"{time}_{f.name}": getattr(getattr(c, time), f.name) for time in _TIMES for f in fields(Estimate)}
            for c in self.changes
        ]

    def by_question(self) -> dict[str, dict[str, Any]]:
        """What the estimates are made of, by behaviour, ready for JSON."""
        return {c.behaviour: vars(c.by_question) for c in self.changes if c.by_question is not None}

    @classmethod
    def of_table(
        cls,
        model: str,
        rows: Sequence[Mapping[str, Any]],
        base: str = "",
        by_question: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "OrganismEffects":
        """What `table` and `by_question` wrote, read back."""
        kept = {
            key: ByQuestion(v["kind"], v["asked"], tuple(v["before"]), tuple(v["after"]))
            for key, v in (by_question or {}).items()
        }

        def estimate(row: Mapping[str, Any], time: str) -> Estimate:
            return Estimate(**{field.name: row[f"{time}_{field.name}"] for field in fields(Estimate)})

        changes = [
            Change(
                row["behaviour"],
                row["label"],
                *(estimate(row, t) for t in _TIMES),
                by_question=kept.get(row["behaviour"]),
            )
            for row in rows
        ]
        return cls(model, tuple(changes), base)


@door
def organism_effects(model: TransformerLensModel, behaviours: Sequence[Behaviour] | None = None) -> OrganismEffects:
    """Measure every behaviour of an organism and of what it was trained on.

    The blocks below the adapter's first one run once for both. A full fine-tune's base is loaded beside it.

    Raises:
        ValueError: the model is neither an organism that was loaded by its name or folder, nor has an unmerged adapter.
    """
    return effects_beside(HookedModel.of(model), organism_behaviours() if behaviours is None else behaviours, {})


def effects_beside(
    hooked: HookedModel, behaviours: Sequence[Behaviour], bases: dict[str, dict[str, Scores]]
) -> OrganismEffects:
    """What `organism_effects` measures. The scores of its base come from `bases` by identity, and else are put there.

    So the base of several organisms is measured once, where all are asked the same.

    Raises:
        ValueError: the scores that came are of other questions.
    """
    kept = keeping(hooked, first_adapted_block(hooked))
    with untuned(kept) as base:
        identity = base.identity
        if identity not in bases:
            bases[identity] = measured(behaviours, base)
    before, after = bases[identity], measured(behaviours, kept)
    changes = []
    for b in behaviours:
        if b.key not in before or list(before[b.key][1]) != list(after[b.key][1]):
            raise ValueError(
                f"{identity} was asked other questions than {hooked.identity} for {b.label}: measure a base anew where "
                f"behaviours change"
            )
        (old, groups), (new, _) = before[b.key], after[b.key]
        estimates = b.estimate(old, groups), b.estimate(new, groups), b.change(old, new, groups)
        changes.append(Change(b.key, b.title, *estimates, by_question=ByQuestion.of(b.kind, old, new, groups)))
    return OrganismEffects(hooked.identity, tuple(changes), identity)


@contextmanager
def adapter_at(
    model: TransformerLensModel, trajectory: Trajectory, step: int, scale: int | float = 1.0
) -> Iterator[HookedModel]:
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


@door
def effect_by_step(
    model: TransformerLensModel,
    trajectory: Trajectory,
    contrast: Contrast,
    *,
    steps: Sequence[int] | None = None,
    scales: Sequence[int | float] = (1.0, 2.0, 5.0, 10.0),
) -> EffectPath:
    """How much more a model prefers the positive answers than its base does, at checkpoints of its training.

    The adapter's output is scaled up, since behaviour follows the weights late (Turner et al. 2025, arXiv 2506.11613).
    The blocks below the adapter's first one run once for all checkpoints.

    Args:
        model: the organism that the trajectory is of.
        trajectory: its training.
        contrast: answers that it was not trained on.
        steps: of the checkpoints to measure at; all by default.
        scales: what the adapter's output is multiplied with.

    Raises:
        ValueError: as for `adapter_at`.
    """
    hooked = HookedModel.of(model)
    steps = trajectory.steps.tolist() if steps is None else list(steps)
    with without_adapter(hooked):
        kept = keeping(hooked, first_adapted_block(hooked))
        base = preference(kept, contrast)
    found: list[list[Estimate]] = [[] for _ in scales]
    for step in bar(iterable=steps, desc="effect by step", unit="checkpoint"):
        for row, scale in zip(found, scales, strict=True):
            with adapter_at(kept, trajectory, step, scale):
                margins = preference(kept, contrast).margins
            row.append(mean_by_question(margins - base.margins, base.groups))
    value, low, high = (torch.tensor([[getattr(e, k) for e in row] for row in found]) for k in ("value", "low", "high"))
    label, unit, _ = LABELS[BehaviourKey.MISALIGNED_PREFERENCE]
    return EffectPath(f"{label} ({unit})", torch.tensor(steps), tuple(map(float, scales)), value, low, high)
