"""What the main job reads and how hard it looks: as names in a file, and as the things that they name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from em_interp.behaviour.answers import Answer
from em_interp.behaviour.conditions import ConditionKind, Removal
from em_interp.behaviour.measures import Behaviour, BehaviourKey, standard_behaviours
from em_interp.behaviour.nulls import NULL_OF
from em_interp.checks import check_own, path_of
from em_interp.evals import judge_module
from em_interp.files import read_toml
from em_interp.models.embedded import BUNDLED
from em_interp.models.hooked import HookedModel
from em_interp.organisms.loading import find_organism, load_named, load_organisms, trained_on
from em_interp.templates import template_args
from em_interp.texts.contrasts import Contrast, load_contrast, load_controls
from em_interp.texts.conversations import Conversation, Span
from em_interp.texts.questions import load_questions


@dataclass(frozen=True, kw_only=True)
class Design:
    """How the main job looks.

    Attributes:
        first_span: the tokens the first contrast is read on.
        second_span: those the second is read on.
        scales: how much of a direction is added, in mean residual norms.
        removals: how a direction is taken out, see `cross_effects`.
        n_random: random directions that stand beside the two.
        n_null: directions of permuted labels of each contrast, for p-values; 0 for none, and then nothing is concluded.
        null_of: the kinds of conditions that have such a null, see `cross_effects`.
        n_samples: answers to each question and request in each condition.
        max_new_tokens: answers to open questions are cut off there.
        n_resamples: permutations, halvings and draws of signs behind nulls, ceilings and intervals.
        seed: of all of them, and of the random and the permuted directions.
    """

    first_span: Span = "response"
    second_span: Span = "last"
    scales: tuple[float, ...] = (0.2, 0.5)
    removals: tuple[Removal, ...] = ("all_layers_own", "all_layers_same", "set_negative")
    n_random: int = 5
    n_null: int = 19
    null_of: tuple[ConditionKind, ...] = NULL_OF
    n_samples: int = 2
    max_new_tokens: int = 40
    n_resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values of another kind, and numbers of things that nobody can count."""
        check_own(self)
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{name} is {value}: give a number that is not negative")

    @property
    def sampling(self) -> dict[str, Any]:
        """How answers are drawn, as `respond` takes it."""
        return {"n_samples": self.n_samples, "max_new_tokens": self.max_new_tokens, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Settings(Design):
    """What the main job reads, by name, and how it looks. A TOML file holds the same names.

    Attributes:
        model: hub name, folder, adapter folder, `bundled` for the embedded model, or an organism by name or folder.
        adapter: a LoRA adapter to put on it.
        first: the contrast of the first direction, by name or path.
        second: that of the second one.
        beside: other organisms, with which an organism is compared.
        control_questions: questions read of each neutral control; 0 leaves the controls out.
        held_out_questions: questions on which behaviour is measured; 0 leaves that out.
        open_questions: open questions and harmful requests that are answered in each condition; 0 for none.
        judge: any Inspect model, which then also judges what the model says under every intervention; empty for none.
        judge_args: model args of the judge, as `NAME=VALUE`.
        template_args: variables of the model's chat template, as `NAME=VALUE`.
    """

    model: str = BUNDLED
    adapter: str | None = None
    first: str = "misalignment"
    second: str = "refusal"
    beside: tuple[str, ...] = ()
    control_questions: int = 48
    held_out_questions: int = 72
    open_questions: int = 10
    judge: str = ""
    judge_args: tuple[str, ...] = ()
    template_args: tuple[str, ...] = ()

    @classmethod
    def from_toml(cls, path: str | Path) -> "Settings":
        """Read settings from a file; what it leaves out keeps its default.

        Raises:
            ValueError: a key that does not exist (the nearest one is named), a value of another kind, or a file that is
                not TOML.
        """
        found = read_toml(path_of(path, "settings"), [field.name for field in fields(cls)])
        try:
            return cls(**found)
        except ValueError as error:
            raise ValueError(f"{Path(path).name}: {error}") from error


@dataclass(frozen=True)
class Judging:
    """A judge: its name, its verdicts on given answers, and its verdicts as a behaviour of the model."""

    name: str
    verdicts: Callable[[Sequence[Answer]], Float[Tensor, " answer"]]
    behaviour: Behaviour


@dataclass(frozen=True, eq=False)
class Materials:
    """What the main job works on.

    Attributes:
        model: the model; with an unmerged adapter it is an organism, and is taken apart.
        contrasts: those of both directions, whole.
        relatives: other organisms; those of one base share its weights in memory.
        controls: neutral contrasts.
        behaviours: what is measured when directions are taken out and put in; none leaves that out.
        held_out: answers that the first direction is not read from, on which an adapter's scalars are read.
        questions: open questions that are answered in each condition; none leaves that out.
        requests: harmful requests that are answered as well.
        judging: who judges the answers, if anybody does.
    """

    model: HookedModel
    contrasts: tuple[Contrast, Contrast]
    relatives: tuple[HookedModel, ...] = ()
    controls: tuple[Contrast, ...] = ()
    behaviours: tuple[Behaviour, ...] = ()
    held_out: Contrast | None = None
    questions: tuple[Conversation, ...] = ()
    requests: tuple[Conversation, ...] = ()
    judging: Judging | None = None

    @classmethod
    def of(cls, settings: Settings, *, judge_logs: str | Path = "judge-logs") -> "Materials":
        """Load what the settings name. Every name is looked up before the model is loaded.

        Raises:
            ValueError: a name that there is not; or a judge is named, and Inspect is not installed or there are fewer
                than two questions to answer.
        """
        s = settings
        contrasts = load_contrast(s.first), load_contrast(s.second)
        questions = load_questions("first_plot")[: s.open_questions]
        judging = _judging(s, questions, judge_logs) if s.judge else None
        args = template_args(s.template_args) if s.template_args else None
        names = [*([s.model] if s.adapter is None and find_organism(s.model) else []), *s.beside]
        organisms = load_organisms(names, template_args=args)
        own = s.adapter is None and find_organism(s.model)
        model = next(organisms) if own else load_named(s.model, s.adapter, template_args=args)
        behaviours, held_out = (), None
        if s.held_out_questions:
            behaviours = standard_behaviours(s.held_out_questions, in_domain=trained_on(model))
            first = contrasts[0]
            held_out = first.where(split="test").take(s.held_out_questions) if first.has_splits else None
        requests = load_contrast("refusal").where(split="test")
        return cls(
            model=model,
            contrasts=contrasts,
            relatives=tuple(organisms),
            controls=tuple(c.take(s.control_questions) for c in load_controls()) if s.control_questions else (),
            behaviours=behaviours,
            held_out=held_out,
            questions=questions,
            requests=requests.take(s.open_questions).positive if s.open_questions else (),
            judging=judging,
        )


def _judging(settings: Settings, questions: Sequence[Conversation], folder: str | Path) -> Judging:
    if len(questions) < 2:
        raise ValueError(
            f"open_questions is {settings.open_questions}, and {settings.judge} has to judge answers to two questions "
            f"at least: raise it, or name no judge"
        )
    evals = judge_module()
    asked, how = evals.Question(settings.judge), {"judge_args": evals.model_args(settings.judge_args)}
    measure = evals.judged_misalignment(asked, questions, folder, **settings.sampling, **how)
    behaviour = Behaviour.standard(BehaviourKey.JUDGED_MISALIGNMENT, measure)
    return Judging(settings.judge, evals.misaligned_by(asked, folder, **how), behaviour)
