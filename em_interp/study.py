"""The main job: two contrasts read from one model, their directions compared and put to the test."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from em_interp.activations import ContrastActivations, read_contrast
from em_interp.behaviour import Spoken, cross_effects, refusal_score, spoken, standard_behaviours
from em_interp.bundled import BUNDLED, find_organism, load_named
from em_interp.comparison import compare, cosine_map, separability
from em_interp.contrasts import NARROW_SETS, Contrast, load_contrast, load_controls, load_training_set
from em_interp.convergence import read_organisms
from em_interp.conversations import Span
from em_interp.directions import Direction, difference_of_means
from em_interp.dissection import dissect
from em_interp.files import read_toml
from em_interp.models import HookedModel, without_adapter
from em_interp.questions import load_questions
from em_interp.recipes import Recipe
from em_interp.report import Results, Source


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
        spoken_questions: open questions and harmful requests that are answered twice in each condition; 0 for none.
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
    removals: tuple[str, ...] = ("every", "everywhere")
    n_random: int = 5
    spoken_questions: int = 10
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


def study(model: HookedModel, settings: Settings) -> Results:
    """Read both contrasts, compare their directions at every layer, then remove and add them and see what changes.

    Directions come from the questions of the split `train` where a contrast has one, behaviour from those of `test`.
    A model with an unmerged adapter is taken apart, too.
    """
    began = time.monotonic()
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
        effects = cross_effects(
            model,
            directions,
            behaviours=standard_behaviours(settings.held_out_questions, in_domain=_trained_on(settings)),
            scales=settings.scales,
            removals=settings.removals,
            n_random=settings.n_random,
            seed=settings.seed,
        )
    said = _said(model, directions, settings) if settings.spoken_questions else None
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
    note = does_not_refuse(model, settings)
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
        second_name="harmful requests" if note else "",
        notes=(note,) if note else (),
    )


def _said(model: HookedModel, directions: Sequence[Direction], settings: Settings) -> Spoken:
    requests = load_contrast("refusal").where(split="test").take(settings.spoken_questions).positive
    questions = load_questions("first_plot")[: settings.spoken_questions]
    return spoken(model, directions, questions, requests, seed=settings.seed)


def _trained_on(settings: Settings) -> Contrast | None:
    """The contrast that an organism learned one side of, where that is at hand."""
    folder = find_organism(settings.model)
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
