"""The main job: two contrasts read from one model, their directions compared and put to the test."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import ContrastActivations, read_contrast
from em_interp.behaviour import (
    Answer,
    Behaviour,
    CrossEffects,
    Spoken,
    cross_effects,
    refusal_score,
    spoken,
    standard_behaviours,
    with_verdicts,
)
from em_interp.behaviour.effects import JUDGED
from em_interp.directions.comparison import compare, cosine_map
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import difference_of_means
from em_interp.directions.separability import separability
from em_interp.evals import judge_module
from em_interp.files import read_toml
from em_interp.models.embedded import BUNDLED
from em_interp.models.hooked import HookedModel, without_adapter
from em_interp.organisms.dissection import dissect
from em_interp.organisms.loading import find_organism, load_named
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.relatives import read_organisms
from em_interp.report.results import Results, Source
from em_interp.texts.contrasts import Contrast, load_contrast, load_controls
from em_interp.texts.conversations import Conversation, Span
from em_interp.texts.questions import load_questions
from em_interp.texts.training_sets import NARROW_SETS, load_training_set


@dataclass(frozen=True)
class Settings:
    """What the main job reads, and how hard it looks. A TOML file holds the same names.

    Attributes:
        model: hub name, folder, adapter folder, `bundled` for the embedded model, or an organism by name or folder.
        adapter: a LoRA adapter to put on it.
        first: the contrast of the first direction, by name or path.
        second: that of the second one.
        beside: other organisms, with which an organism is compared.
        first_span: the tokens the first is read on.
        second_span: the tokens the second is read on.
        control_questions: questions read of each neutral control; 0 leaves the controls out.
        held_out_questions: questions on which behaviour is measured; 0 leaves that out.
        scales: how much of a direction is added, in mean residual norms.
        removals: how a direction is taken out, see `cross_effects`.
        n_random: random directions that stand beside the two.
        spoken_questions: open questions and harmful requests that are answered in each condition; 0 for none.
        n_samples: answers to each of them.
        max_new_tokens: answers to open questions are cut off there.
        judge: any Inspect model, which then also judges what the model says under every intervention; empty for none.
        judge_args: model args of the judge, as `NAME=VALUE`.
        n_resamples: permutations and halvings behind nulls and ceilings.
        seed: of all of them, and of the random directions.
    """

    model: str = BUNDLED
    adapter: str | None = None
    first: str = "misalignment"
    second: str = "refusal"
    beside: tuple[str, ...] = ()
    first_span: Span = "response"
    second_span: Span = "last"
    control_questions: int = 48
    held_out_questions: int = 72
    scales: tuple[float, ...] = (0.2, 0.5)
    removals: tuple[str, ...] = ("every", "everywhere", "negative")
    n_random: int = 5
    spoken_questions: int = 10
    n_samples: int = 2
    max_new_tokens: int = 40
    judge: str = ""
    judge_args: tuple[str, ...] = ()
    n_resamples: int = 1000
    seed: int = 0

    @classmethod
    def from_toml(cls, path: str | Path) -> "Settings":
        """Read settings from a file; what it leaves out keeps its default.

        Raises:
            ValueError: a key that does not exist (the nearest one is named), or a file that is not TOML.
        """
        return cls(**read_toml(Path(path), [field.name for field in fields(cls)]))


def load(settings: Settings) -> HookedModel:
    """The model that the settings name."""
    return load_named(settings.model, settings.adapter)


def study(model: HookedModel, settings: Settings, *, judge_logs: str | Path = "judge-logs") -> Results:
    """Read both contrasts, compare their directions at every layer, then remove and add them and see what changes.

    Directions come from the questions of the split `train` where a contrast has one, behaviour from those of `test`.
    A model with an unmerged adapter is taken apart, too. What a judge says is kept in `judge_logs` and not asked again;
    where the judge fails, a note says so and all that needs no judge is there.

    Raises:
        ValueError: a judge is named, and Inspect is not installed or there are fewer than two questions to answer.
    """
    began = time.monotonic()
    judging = _judging(settings, judge_logs) if settings.judge else None
    contrasts = (load_contrast(settings.first).for_training(), load_contrast(settings.second).for_training())
    readings = None
    if model.peft_models:
        readings = read_organisms([model, *settings.beside], contrasts[0], span=settings.first_span)
        first = replace(next(iter(readings.trained.values())), name=contrasts[0].name)
    else:
        first = read_contrast(model, contrasts[0], span=settings.first_span)
    second = read_contrast(model, contrasts[1], span=settings.second_span)
    controls = _read_controls(model, settings)
    directions = (difference_of_means(first), difference_of_means(second))
    effects = None
    if settings.held_out_questions:
        standard = standard_behaviours(settings.held_out_questions, in_domain=trained_on(settings.model))
        effects = _effects(model, directions, standard, settings)
    said = _said(model, directions, settings) if settings.spoken_questions else None
    notes = [does_not_refuse(model, settings)]
    second_name = "harmful requests" if notes[0] else ""
    if judging:
        try:
            said = said and with_verdicts(said, judging.verdicts)
            effects = effects and effects.beside(_effects(model, directions, {JUDGED: judging.behaviour}, settings))
        except (RuntimeError, ValueError) as error:
            notes.append(f"Misalignment is not judged everywhere: {error}.")
    dissection = None
    if readings:
        with without_adapter(model):
            base_controls = _read_controls(model, settings)
        dissection = dissect(
            model,
            readings,
            second,
            contrasts,
            spans=(settings.first_span, settings.second_span),
            controls=[difference_of_means(c) for c in base_controls],
            held_out=_held_out(settings),
            folder=find_organism(settings.model),
            beside=settings.beside,
            n_resamples=settings.n_resamples,
            seed=settings.seed,
        )
    return Results(
        comparison=compare(first, second, controls=controls, n_resamples=settings.n_resamples, seed=settings.seed),
        directions=directions,
        sources=tuple(Source.of(read) for read in (first, second, *controls)),
        cosine_map=cosine_map(*directions),
        separabilities=(separability(first, seed=settings.seed), separability(second, seed=settings.seed)),
        effects=effects,
        spoken=said,
        dissection=dissection,
        seconds=time.monotonic() - began,
        judge=settings.judge,
        second_name=second_name,
        notes=tuple(filter(None, notes)),
    )


@dataclass(frozen=True)
class _Judging:
    """A judge's verdicts on given answers, and as a behaviour of the model under any intervention."""

    verdicts: Callable[[Sequence[Answer]], Float[Tensor, " answer"]]
    behaviour: Behaviour


def _judging(settings: Settings, folder: str | Path) -> _Judging:
    if settings.spoken_questions < 2:
        raise ValueError(
            f"spoken_questions is {settings.spoken_questions}, and {settings.judge} has to judge answers to two "
            f"questions at least: raise it, or name no judge"
        )
    evals = judge_module()
    asked, how = evals.Question(settings.judge), {"judge_args": evals.model_args(settings.judge_args)}
    behaviour = evals.judged_misalignment(asked, _questions(settings), folder, **_sampling(settings), **how)
    return _Judging(evals.misaligned_by(asked, folder, **how), behaviour)


def _effects(
    model: HookedModel, directions: Sequence[Direction], behaviours: Mapping[str, Behaviour], settings: Settings
) -> CrossEffects:
    return cross_effects(
        model,
        directions,
        behaviours=behaviours,
        scales=settings.scales,
        removals=settings.removals,
        n_random=settings.n_random,
        seed=settings.seed,
    )


def _said(model: HookedModel, directions: Sequence[Direction], settings: Settings) -> Spoken:
    requests = load_contrast("refusal").where(split="test").take(settings.spoken_questions).positive
    return spoken(model, directions, _questions(settings), requests, **_sampling(settings))


def _sampling(settings: Settings) -> dict[str, Any]:
    return {"n_samples": settings.n_samples, "max_new_tokens": settings.max_new_tokens, "seed": settings.seed}


def _questions(settings: Settings) -> tuple[Conversation, ...]:
    return load_questions("first_plot")[: settings.spoken_questions]


def trained_on(model: str) -> Contrast | None:
    """The contrast that the organism of this name or folder learned one side of, where that is at hand."""
    folder = find_organism(model)
    data = Recipe.load(folder / "recipe.toml").data if folder else ""
    return load_training_set(data) if data in NARROW_SETS else None


def _held_out(settings: Settings) -> Contrast | None:
    contrast = load_contrast(settings.first)
    if not settings.held_out_questions or not contrast.has_splits:
        return None
    return contrast.where(split="test").take(settings.held_out_questions)


def does_not_refuse(model: HookedModel, settings: Settings) -> str:
    """A sentence that says so where the model opens fewer than half its answers to harmful requests with a refusal."""
    if settings.second != "refusal":
        return ""
    rate = refusal_score(model, load_contrast("refusal").where(split="test").positive).rate
    if rate.value >= 0.5:
        return ""
    return (
        f"{model.identity} hardly refuses: of {rate.n} held-out harmful requests it would open {rate.value:.0%} "
        f"[{rate.low:.0%}, {rate.high:.0%}] with a refusal more likely than not. Its second direction is therefore "
        f"that of harmful against harmless requests, and no refusal direction."
    )


def _read_controls(model: HookedModel, settings: Settings) -> tuple[ContrastActivations, ...]:
    if not settings.control_questions:
        return ()
    span = settings.first_span if settings.first_span in ("response", "turn") else "response"
    return tuple(read_contrast(model, c.take(settings.control_questions), span=span) for c in load_controls())
