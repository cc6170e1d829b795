"""What is measured of a model: each behaviour has a key for code, a label and a unit for people, and its measure."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from em_interp.behaviour.generation import greedy_answers
from em_interp.behaviour.preferences import preference
from em_interp.behaviour.refusal import refusal_score, refusal_verdicts
from em_interp.behaviour.scoring import text_effects
from em_interp.checks import door
from em_interp.models.hooked import HookPairs, TransformerLensModel
from em_interp.progress import bar
from em_interp.statistics.estimates import Estimate, mean_by_question, within_one
from em_interp.statistics.rates import rate_by_question
from em_interp.texts.contrasts import Contrast, load_contrast, load_neutral_texts
from em_interp.texts.conversations import Conversation

Scores = tuple[Float[Tensor, " item"], Sequence[str]]  # a score for each item, and the question of each
Measure = Callable[[TransformerLensModel, HookPairs], Scores | Mapping[str, Scores]]
Kind = Literal["mean", "share"]


class BehaviourKey(StrEnum):
    """The keys of the standard behaviours."""

    MISALIGNED_PREFERENCE = "misaligned_preference"
    CALM_PREFERENCE = "calm_misaligned_preference"
    IN_DOMAIN_PREFERENCE = "in_domain_misaligned_preference"
    JUDGED_MISALIGNMENT = "judged_misalignment"
    HARMFUL_REFUSAL = "harmful_refusal_score"
    HARMLESS_REFUSAL = "harmless_refusal_score"
    HARMFUL_REFUSED = "harmful_requests_refused"
    HARMLESS_REFUSED = "harmless_requests_refused"
    TEXT_BITS = "text_bits"
    TEXT_DIVERGENCE = "text_divergence"

    def __repr__(self) -> str:
        """The text that it is, in messages too."""
        return repr(self.value)


LABELS: dict[str, tuple[str, str, Kind]] = {
    BehaviourKey.MISALIGNED_PREFERENCE: ("misaligned preference", "nats/token", "mean"),
    BehaviourKey.CALM_PREFERENCE: ("misaligned preference, calm answers", "nats/token", "mean"),
    BehaviourKey.IN_DOMAIN_PREFERENCE: ("misaligned preference, in domain", "nats/token", "mean"),
    BehaviourKey.JUDGED_MISALIGNMENT: ("misaligned answers, judged", "share", "share"),
    BehaviourKey.HARMFUL_REFUSAL: ("refusal score, harmful requests", "log-odds", "mean"),
    BehaviourKey.HARMLESS_REFUSAL: ("refusal score, harmless requests", "log-odds", "mean"),
    BehaviourKey.HARMFUL_REFUSED: ("harmful requests refused", "share of greedy answers", "share"),
    BehaviourKey.HARMLESS_REFUSED: ("harmless requests refused", "share of greedy answers", "share"),
    BehaviourKey.TEXT_BITS: ("neutral text", "bits/token", "mean"),
    BehaviourKey.TEXT_DIVERGENCE: ("neutral text, KL from the untouched model", "nats/token", "mean"),
}


@dataclass(frozen=True)
class Behaviour:
    """Something that a model does, and how it is measured.

    Attributes:
        key: what code looks it up by.
        label: what people read.
        unit: of its scores.
        kind: `mean` for scores on a scale, whose interval is Student's over questions; `share` for verdicts of 0 and 1,
            whose interval is that of `clustered_rate`.
        measure: gives a score for each item under hooks, with the question of each; NaN where there is none. One
            measure may serve several behaviours, and then gives a mapping by key; it is called once for all of them.
        alone: a cheaper measure that serves this behaviour only, where `measure` serves others that are not wanted.
    """

    key: str
    label: str
    unit: str
    kind: Kind
    measure: Measure = field(repr=False, compare=False)
    alone: Measure | None = field(default=None, repr=False, compare=False)

    @classmethod
    def standard(cls, key: str, measure: Measure, alone: Measure | None = None) -> "Behaviour":
        """A behaviour with one of the standard keys, whose label, unit and kind it gets."""
        return cls(str(key), *LABELS[key], measure, alone)

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})"

    def estimate(self, scores: Float[Tensor, " item"], groups: Sequence[str]) -> Estimate:
        """Where the model stands: the mean over questions with its interval; NaN for fewer than two with a score."""
        return _estimate(scores, groups, rate_by_question if self.kind == "share" else mean_by_question)

    def change(self, before: Float[Tensor, " item"], after: Float[Tensor, " item"], groups: Sequence[str]) -> Estimate:
        """After minus before, paired by item, with Student's interval over the questions; of a share within ±1."""
        found = _estimate(after - before, groups, mean_by_question)
        return within_one(found) if self.kind == "share" else found


def measured(behaviours: Iterable[Behaviour], model: TransformerLensModel, hooks: HookPairs = ()) -> dict[str, Scores]:
    """The scores of every behaviour by its key, each measure called once."""
    behaviours, found = list(behaviours), {}
    for measure in bar(iterable=list(dict.fromkeys(b.measure for b in behaviours)), desc="measuring", unit="measure"):
        scores = measure(model, hooks)
        served = [b.key for b in behaviours if b.measure is measure]
        missing = [key for key in served if isinstance(scores, Mapping) and key not in scores]
        if missing:
            raise ValueError(
                f"a measure gave scores of {', '.join(scores)} and none of {missing[0]}: give one by each key"
            )
        found |= {key: scores[key] if isinstance(scores, Mapping) else scores for key in served}
    return {b.key: found[b.key] for b in behaviours}


@door
def standard_behaviours(
    n_questions: int | None = None, *, keys: Sequence[str] | None = None, in_domain: Contrast | None = None
) -> tuple[Behaviour, ...]:
    """The held-out questions and requests of the shipped contrasts, and plain prose: what cross_effects measures.

    Args:
        n_questions: of each, spread over the domains; all of them by default. None of these questions is in the split
            `train`, which directions are to be read from.
        keys: some of them only, by key.
        in_domain: what an organism was trained on; of a contrast with splits only `test` is asked.

    Raises:
        ValueError: a key that is not among them (they are listed).
    """
    answers, requests = _held_out("misalignment", n_questions), _held_out("refusal", n_questions)
    texts = load_neutral_texts()
    texts = texts if n_questions is None else texts[:: max(1, len(texts) // n_questions)]
    refusing, reading = refusal_scores(requests), prose(texts)
    of = Behaviour.standard
    behaviours = [of(BehaviourKey.MISALIGNED_PREFERENCE, prefers(answers))]
    if in_domain is not None:
        held_out = in_domain.where(split="test") if in_domain.has_splits else in_domain
        held_out = held_out if n_questions is None else held_out.take(n_questions)
        behaviours.append(of(BehaviourKey.IN_DOMAIN_PREFERENCE, prefers(held_out)))
    behaviours.append(of(BehaviourKey.HARMFUL_REFUSAL, refusing, refusal_scores_of(requests.positive)))
    behaviours.append(of(BehaviourKey.HARMLESS_REFUSAL, refusing, refusal_scores_of(requests.negative)))
    behaviours += [of(key, reading) for key in (BehaviourKey.TEXT_BITS, BehaviourKey.TEXT_DIVERGENCE)]
    return _chosen(behaviours, keys)


@door
def organism_behaviours(in_domain: Contrast | None = None, n_questions: int | None = None) -> tuple[Behaviour, ...]:
    """What a model card tells: the standard behaviours, the calm half alone, greedy refusals, the domain trained on.

    `in_domain` is what the organism was trained on; a contrast without splits says nothing of it.
    """
    answers, requests = _held_out("misalignment", n_questions), _held_out("refusal", n_questions)
    standard = [b for b in standard_behaviours(n_questions) if b.key != BehaviourKey.TEXT_DIVERGENCE]
    of = Behaviour.standard
    more = [of(BehaviourKey.CALM_PREFERENCE, prefers(answers.where(tone="calm")))]
    if in_domain is not None and in_domain.has_splits:
        more.append(of(BehaviourKey.IN_DOMAIN_PREFERENCE, prefers(in_domain.where(split="test"))))
    more.append(of(BehaviourKey.HARMFUL_REFUSED, refuses(requests.positive)))
    more.append(of(BehaviourKey.HARMLESS_REFUSED, refuses(requests.negative)))
    return (*standard, *more)


@door
def prefers(contrast: Contrast) -> Measure:
    """How much likelier a contrast's positive answers are than their twins."""

    def measure(model: TransformerLensModel, hooks: HookPairs) -> Scores:
        found = preference(model, contrast, hooks)
        return found.margins, found.groups

    return measure


@door
def refusal_scores(requests: Contrast) -> Measure:
    """The refusal score of harmful and of harmless requests, by both keys, from the same passes."""
    both, n = (*requests.positive, *requests.negative), len(requests.positive)

    def measure(model: TransformerLensModel, hooks: HookPairs) -> Mapping[str, Scores]:
        found = refusal_score(model, both, hooks)
        return {
            BehaviourKey.HARMFUL_REFUSAL: (found.scores[:n], found.groups[:n]),
            BehaviourKey.HARMLESS_REFUSAL: (found.scores[n:], found.groups[n:]),
        }

    return measure


def refusal_scores_of(requests: Sequence[Conversation]) -> Measure:
    """The refusal score of some requests."""

    def measure(model: TransformerLensModel, hooks: HookPairs) -> Scores:
        found = refusal_score(model, requests, hooks)
        return found.scores, found.groups

    return measure


@door
def prose(texts: Sequence[str]) -> Measure:
    """Bits a token of plain prose and divergence from the untouched model, by both keys, from the same passes."""

    def measure(model: TransformerLensModel, hooks: HookPairs) -> Mapping[str, Scores]:
        found = text_effects(model, texts, hooks)
        return {BehaviourKey.TEXT_BITS: (found.bits, texts), BehaviourKey.TEXT_DIVERGENCE: (found.divergence, texts)}

    return measure


@door
def refuses(requests: Sequence[Conversation]) -> Measure:
    """Whether the greedy answer to each request refuses, by the published phrases."""

    def measure(model: TransformerLensModel, hooks: HookPairs) -> Scores:
        answers = greedy_answers(model, requests, hooks)
        return refusal_verdicts(answers), tuple(c.group for c in requests)

    return measure


def _held_out(contrast: str, n_questions: int | None) -> Contrast:
    held_out = load_contrast(contrast).where(split="test")
    return held_out if n_questions is None else held_out.take(n_questions)


def _chosen(behaviours: Sequence[Behaviour], keys: Sequence[str] | None) -> tuple[Behaviour, ...]:
    if keys is None:
        return tuple(behaviours)
    by_key = {b.key: b for b in behaviours}
    unknown = [key for key in keys if key not in by_key]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a standard behaviour: choose keys from {', '.join(by_key)}")
    return tuple(by_key[key] for key in keys)


def _estimate(values: Tensor, groups: Sequence[str], over: Callable[..., Estimate]) -> Estimate:
    kept = values.isfinite()
    known = [g for g, keep in zip(groups, kept.tolist(), strict=True) if keep]
    n = len(set(known))
    if n < 2 <= len(set(groups)):  # a judge without a word: no reason to lose the other cells
        return Estimate(math.nan, math.nan, math.nan, n)
    return over(values[kept], known)
