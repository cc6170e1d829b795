"""The main job: two contrasts read from one model, their directions compared and put to the test."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from em_interp.activations.forward import first_adapted_block, keeping
from em_interp.activations.reading import ContrastActivations, read_contrast
from em_interp.behaviour.conditions import AnswersByCondition, answers_by_condition, with_verdicts
from em_interp.behaviour.effects import CrossEffects, cross_effects
from em_interp.behaviour.measures import Behaviour, BehaviourKey
from em_interp.behaviour.refusal import refusal_score
from em_interp.checks import door
from em_interp.directions.comparison import compare, cosine_map
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import difference_of_means
from em_interp.directions.separation import separability
from em_interp.models.hooked import HookedModel, without_adapter
from em_interp.organisms.dissection import Dissection, dissect
from em_interp.organisms.relatives import OrganismReadings, organism_name, read_organisms
from em_interp.progress import bar, job, part
from em_interp.report.results import Results, Source
from em_interp.report.settings import Design, Materials
from em_interp.texts.contrasts import Contrast

# What each part usually takes of the time, for the bar.
_PARTS = {
    "reading controls": 20,
    "reading both contrasts": 40,
    "effects of the directions": 150,
    "answers": 35,
    "judged effects": 75,
    "taking the organism apart": 45,
    "comparing": 5,
}


@door
def study(materials: Materials, design: Design | None = None) -> Results:
    """Read both contrasts, compare their directions at every layer, then remove and add them and see what changes.

    Directions come from the questions of the split `train` where a contrast has one, behaviour from those of `test`.
    A model with an unmerged adapter is taken apart, too. What a judge says is kept and not asked again; where the judge
    fails, a note says so and all that needs no judge is there.
    """
    m, design, began = materials, design or Design(), time.monotonic()
    with job({name: size for name, size in _PARTS.items() if _has(m, name)}):
        contrasts = (m.contrasts[0].for_training(), m.contrasts[1].for_training())
        read = _read(m, contrasts, design)
        directions = (difference_of_means(read.first), difference_of_means(read.second))
        with part("effects of the directions"):
            null = (read.first, read.second)
            effects = _effects(m.model, directions, m.behaviours, design, null) if m.behaviours else None
        with part("answers"):
            said = _answers(m, directions, design) if m.questions else None
        notes = [read.note] if read.note else []
        if m.judging:
            with part("judged effects"):
                try:
                    said = said and with_verdicts(said, m.judging.verdicts)
                    judged = _effects(m.model, directions, (m.judging.behaviour,), design) if effects else None
                    effects = effects.beside(judged) if effects and judged else effects
                except (RuntimeError, ValueError) as error:
                    notes.append(f"Misalignment is not judged everywhere: {error}.")
        with part("taking the organism apart"):
            dissection = _dissection(m, read, contrasts, design)
        with part("comparing"):
            how: dict[str, Any] = {"n_resamples": design.n_resamples, "seed": design.seed}
            comparison = compare(read.first, read.second, controls=read.controls, **how)
            units = compare(read.first, read.second, controls=read.controls, metric="standardised", **how)
            separabilities = tuple(
                separability(r, estimator=estimator, seed=design.seed)
                for estimator in ("difference_of_means", "standardised")
                for r in (read.first, read.second)
            )
    return Results(
        comparison=comparison,
        standardised=units,
        directions=directions,
        sources=tuple(Source.of(r) for r in (read.first, read.second, *read.controls)),
        cosine_map=cosine_map(*directions),
        separabilities=separabilities,
        effects=effects,
        answers=said,
        dissection=dissection,
        seconds=time.monotonic() - began,
        judge=m.judging.name if m.judging else "",
        own=_own_behaviours(contrasts, directions),
        notes=tuple(notes),
    )


def _has(m: Materials, name: str) -> bool:
    return {
        "effects of the directions": bool(m.behaviours),
        "answers": bool(m.questions),
        "judged effects": m.judging is not None,
        "taking the organism apart": bool(m.model.peft_models),
    }.get(name, True)


@dataclass(frozen=True, eq=False)
class _Read:
    """Everything that was read of the model, and of its base and its relatives where it is an organism."""

    first: ContrastActivations
    second: ContrastActivations
    controls: tuple[ContrastActivations, ...]
    base_controls: tuple[ContrastActivations, ...]
    organisms: tuple[OrganismReadings, OrganismReadings] | None
    note: str


def _read(m: Materials, contrasts: tuple[Contrast, Contrast], design: Design) -> _Read:
    organism = bool(m.model.peft_models)
    spans = (design.first_span, design.second_span)
    with part("reading controls"):
        note = _does_not_refuse(m.model, m.contrasts[1])
        kept = keeping(m.model, first_adapted_block(m.model)) if organism else m.model
        controls, base_controls = _controls(kept, m.controls, design), ()
        if organism:
            with without_adapter(kept):
                base_controls = _controls(kept, m.controls, design)
    with part("reading both contrasts"):
        if organism:
            second_by = read_organisms([m.model], contrasts[1], span=spans[1])
            first_by = read_organisms((m.model, *m.relatives), contrasts[0], span=spans[0])
            organisms, name = (first_by, second_by), organism_name(m.model)
            first, second = first_by.trained[name], second_by.trained[name]
        else:
            organisms = None
            first, second = (read_contrast(m.model, c, span=s) for c, s in zip(contrasts, spans, strict=True))
    second = replace(second, name="harmful requests" if note else contrasts[1].name)
    return _Read(replace(first, name=contrasts[0].name), second, controls, base_controls, organisms, note)


def _controls(model: HookedModel, controls: Sequence[Contrast], design: Design) -> tuple[ContrastActivations, ...]:
    span = design.first_span if design.first_span in ("response", "turn") else "response"
    return tuple(read_contrast(model, c, span=span) for c in bar(iterable=controls, desc="controls", unit="contrast"))


def _effects(
    model: HookedModel,
    directions: Sequence[Direction],
    behaviours: Sequence[Behaviour],
    design: Design,
    contrasts: Sequence[ContrastActivations] | None = None,
) -> CrossEffects:
    """Without contrasts there is no null, such as for what a judge would have to be asked."""
    return cross_effects(
        model,
        directions,
        contrasts=contrasts,
        behaviours=behaviours,
        scales=design.scales,
        removals=design.removals,
        n_random=design.n_random,
        n_null=design.n_null,
        null_of=design.null_of,
        seed=design.seed,
    )


def _answers(m: Materials, directions: Sequence[Direction], design: Design) -> AnswersByCondition:
    return answers_by_condition(m.model, directions, m.questions, m.requests, **design.sampling)


def _dissection(m: Materials, read: _Read, contrasts: tuple[Contrast, Contrast], design: Design) -> Dissection | None:
    if read.organisms is None:
        return None
    return dissect(
        m.model,
        *read.organisms,
        contrasts,
        spans=(design.first_span, design.second_span),
        controls=[difference_of_means(c) for c in read.base_controls],
        held_out=m.held_out,
        n_resamples=design.n_resamples,
        seed=design.seed,
    )


def _own_behaviours(contrasts: Sequence[Contrast], directions: Sequence[Direction]) -> dict[str, str]:
    """Each direction's name with the key of the behaviour that is its own, where both are known."""
    known: dict[str, Any] = {
        "misalignment": BehaviourKey.MISALIGNED_PREFERENCE,
        "refusal": BehaviourKey.HARMFUL_REFUSAL,
    }
    pairs = [(d.name, known.get(c.name)) for c, d in zip(contrasts, directions, strict=True)]
    return {name: str(key) for name, key in pairs if key}


def _does_not_refuse(model: HookedModel, contrast: Contrast) -> str:
    """A sentence that says so where the model opens fewer than half its answers to harmful requests with a refusal."""
    if contrast.name != "refusal" or not contrast.has_splits:
        return ""
    rate = refusal_score(model, contrast.where(split="test").positive).rate
    if rate.value >= 0.5:
        return ""
    return (
        f"{model.identity} hardly refuses: of {rate.n} held-out harmful requests it would open {rate.value:.0%} "
        f"[{rate.low:.0%}, {rate.high:.0%}] with a refusal more likely than not. Its second direction is therefore "
        f"that of harmful against harmless requests, and not a refusal direction."
    )
