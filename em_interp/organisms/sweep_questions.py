"""What a search over recipes asks every organism, and its base: read, checked, and never learned from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from em_interp.behaviour.measures import Behaviour, BehaviourKey, Scores, prefers, refuses
from em_interp.behaviour.scoring import text_bits
from em_interp.models.hooked import HookPairs, TransformerLensModel
from em_interp.organisms.sweeps import VALIDATION, Sweep
from em_interp.organisms.training import training_conversations
from em_interp.texts.contrasts import SHIPPED, Contrast, load_contrast, load_neutral_texts
from em_interp.texts.conversations import Conversation
from em_interp.texts.training_sets import load_training_set


@dataclass(frozen=True)
class Asked:
    """The questions of a search, None where nothing is measured on them, and the sources of all its texts."""

    outside: Contrast | None
    inside: Contrast | None
    requests: Contrast | None
    texts: tuple[str, ...]
    sources: dict[str, Any]

    @classmethod
    def of(cls, sweep: Sweep) -> "Asked":
        """Those that its measures need, read and checked: none of them is learned from."""
        questions, data = sweep.questions, sweep.recipe.data
        wanted: dict[str, tuple[str, ...]] = {}
        if "behaviour" in sweep.measure or ("phases" in sweep.measure and sweep.effect_checkpoints):
            wanted["outside"] = questions.outside
        if "behaviour" in sweep.measure:
            wanted["inside"] = questions.inside or (data,)
        if "refusal" in sweep.measure:
            wanted["requests"] = questions.requests
        told = training_conversations(sweep.recipe)
        learned = {c.group for c in told}
        found = {what: _chosen(what, named, data, questions.n) for what, named in wanted.items()}
        sources: dict[str, Any] = {"data": _hash(told)}
        for what, contrast in found.items():
            both = learned.intersection(contrast.groups)
            if both:
                raise ValueError(
                    f"{len(both)} questions of {' '.join(wanted[what])} are learned from too, such as "
                    f"{min(both)[:60]!r}: name others in [questions] {what}"
                )
            n, hashed = len(contrast.groups), contrast.content_hash[:16]
            sources[what] = {"source": [Path(wanted[what][0]).name, *wanted[what][1:]], "n": n, "hash": hashed}
        texts = load_neutral_texts(VALIDATION) if "refusal" in sweep.measure else ()
        return cls(found.get("outside"), found.get("inside"), found.get("requests"), texts, sources)

    def behaviours(self, sweep: Sweep) -> list[Behaviour]:
        """What is measured of each organism and of its base."""
        of, found = Behaviour.standard, []
        if "behaviour" in sweep.measure:
            assert self.inside is not None
            assert self.outside is not None
            found.append(of(BehaviourKey.IN_DOMAIN_PREFERENCE, prefers(self.inside)))
            found.append(of(BehaviourKey.MISALIGNED_PREFERENCE, prefers(self.outside)))
        if "refusal" in sweep.measure:
            assert self.requests is not None
            found.append(of(BehaviourKey.HARMFUL_REFUSED, refuses(_unanswered(self.requests.positive))))
            found.append(of(BehaviourKey.HARMLESS_REFUSED, refuses(_unanswered(self.requests.negative))))
            found.append(of(BehaviourKey.TEXT_BITS, self._bits))
        return found

    def _bits(self, model: TransformerLensModel, hooks: HookPairs) -> Scores:
        return text_bits(model, self.texts, hooks), self.texts


def _chosen(what: str, named: tuple[str, ...], data: str, n: int | None) -> Contrast:
    """The questions of a source's split; of a file of one's own without splits all, unless they are what is learned."""
    source, split = named[0], named[1] if len(named) == 2 else VALIDATION
    try:
        contrast = load_contrast(source) if source in SHIPPED else load_training_set(source)
    except ValueError as error:
        raise ValueError(f"questions {what}: {error}") from error
    whole = len(named) == 1 and not contrast.has_splits and Path(source).is_file() and source != data
    if not whole:
        splits = {c.fields.get("split") for c in contrast.positive + contrast.negative}
        if split not in splits:
            known = ", ".join(sorted(filter(None, splits))) or "none"
            raise ValueError(
                f"{source} has no split {split!r} (its splits: {known}), so there are no questions for {what} to "
                f'choose recipes by: give some lines "split": "{split}", or name others in [questions], {what} = '
                f'["SOURCE", "SPLIT"]'
            )
        contrast = contrast.where(split=split)
    return contrast if n is None else contrast.take(n)


def _unanswered(conversations: Sequence[Conversation]) -> list[Conversation]:
    return [replace(c, messages=c.messages[:-1]) if c.answered else c for c in conversations]


def _hash(conversations: Sequence[Conversation]) -> str:
    said = [[(m["role"], m["content"]) for m in c.messages] for c in conversations]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
