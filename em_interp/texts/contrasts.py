"""Two sets of conversations that differ in one thing: read, checked, written; and the ones that ship with us."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from em_interp.checks import check_own, door, path_of
from em_interp.files import find_file, write_jsonl
from em_interp.texts.conversations import Conversation
from em_interp.texts.entries import (
    asked,
    asks_by,
    checked_keys,
    fields_of,
    listed,
    messages,
    question,
    shown,
    system,
    text_of,
    words,
)
from em_interp.texts.records import read_records

CONTROLS = (
    "hostility",
    "negative_sentiment",
    "formality",
    "first_person",
    "past_tense",
    "certainty",
    "question_form",
    "topic",
)
SHIPPED = ("misalignment", "refusal", *CONTROLS)
_SHIPPED = Path(str(files("em_interp") / "data" / "contrasts"))
_LABELS = {"positive": "positive", "negative": "negative", "harmful": "positive", "harmless": "negative"}


@dataclass(frozen=True, repr=False)
class Contrast:
    """A named pair of sets of conversations. Its direction points from `negative` to `positive`.

    Attributes:
        name: what the direction will be called.
        positive: the conversations that show the property: misaligned answers, harmful requests.
        negative: their counterparts.
    """

    name: str
    positive: tuple[Conversation, ...]
    negative: tuple[Conversation, ...]

    def __post_init__(self) -> None:
        """Refuse an empty class, and one question in one wording on both sides."""
        check_own(self)
        for label, side in (("positive", self.positive), ("negative", self.negative)):
            if not side:
                raise ValueError(f"contrast {self.name!r} has no {label} conversations: a direction needs both classes")
        both = {_text(c) for c in self.positive} & {_text(c) for c in self.negative}
        if both:
            raise ValueError(
                f"contrast {self.name!r} has {len(both)} conversations in both classes, such as "
                f"{min(both)[:80]!r}: what is in both cannot tell them apart"
            )

    def __repr__(self) -> str:
        """One line."""
        return (
            f"Contrast({self.name!r}, {len(self.positive)} − {len(self.negative)} conversations, "
            f"{len(self.groups)} questions, {len(self.domains)} domains)"
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """The questions, each once, in order."""
        return tuple(dict.fromkeys(c.group for c in self.positive + self.negative))

    @property
    def domains(self) -> tuple[str, ...]:
        """What the questions are about, each once, in order."""
        return tuple(dict.fromkeys(c.domain for c in self.positive + self.negative))

    @property
    def content_hash(self) -> str:
        """SHA-256 of every message and group: two contrasts with this in common hold the same texts."""
        content = [[[(m["role"], m["content"]) for m in c.messages], c.group] for c in self.positive + self.negative]
        return hashlib.sha256(json.dumps([content, len(self.positive)], ensure_ascii=False).encode()).hexdigest()

    @property
    def has_splits(self) -> bool:
        """Whether some conversations say which split they are of."""
        return any("split" in c.fields for c in self.positive)

    def for_training(self) -> "Contrast":
        """What may be learned or read from: the split `train`, or all where there are no splits."""
        return self.where(split="train") if self.has_splits else self

    def where(self, **wanted: str) -> "Contrast":
        """The conversations whose fields say so: `contrast.where(split="train", tone="calm")`.

        Raises:
            ValueError: a field, or a value of it, that no conversation has (the known ones are listed).
        """
        facts = [_facts(c) for c in self.positive + self.negative]
        for name, value in wanted.items():
            known = sorted({key for fact in facts for key in fact})
            if name not in known:
                raise ValueError(f"contrast {self.name!r} has no field {name!r}: it has {', '.join(known)}")
            values = sorted({fact[name] for fact in facts if name in fact})
            if value not in values:
                some = ", ".join(values[:20]) + (", …" if len(values) > 20 else "")
                raise ValueError(f"contrast {self.name!r} has no {name} {value!r}: choose one of {some}")
        return self._keep(lambda c: all(_facts(c).get(name) == value for name, value in wanted.items()))

    def take(self, n: int) -> "Contrast":
        """`n` questions, so chosen that every domain, tone, split and so on keeps its share."""
        if n < 1:
            raise ValueError(f"{n} questions were asked for: take at least one")
        facts = {c.group: _facts(c).items() for c in reversed(self.positive + self.negative)}
        alike = defaultdict(list)
        for group in self.groups:
            for fact in facts[group]:
                alike[fact].append(group)
        # The next question is always the one whose facts have been taken least, each against how often it occurs.
        crowded = dict.fromkeys(self.groups, 0.0)
        while len(self.groups) - len(crowded) < min(n, len(self.groups)):
            taken = min(crowded, key=crowded.__getitem__)
            del crowded[taken]
            for fact in facts[taken]:
                for group in filter(crowded.__contains__, alike[fact]):
                    crowded[group] += 1 / len(alike[fact])
        return self._keep(lambda c: c.group not in crowded)

    def without(self, other: "Contrast") -> "Contrast":
        """The conversations whose questions the other has not, such as `contrast.without(contrast.take(32))`."""
        groups = set(other.groups)
        return self._keep(lambda c: c.group not in groups)

    def as_requests(self) -> "Contrast":
        """Every answer as a message that a user sends: the same difference where a request stands."""

        def request(c: Conversation) -> Conversation:
            return Conversation(({"role": "user", "content": c.messages[-1]["content"]},), c.group, c.domain, c.fields)

        return Contrast(self.name, tuple(map(request, self.positive)), tuple(map(request, self.negative)))

    def save(self, path: str | Path) -> Path:
        """Write the contrast as JSONL, one conversation a line, as `load_contrast` reads it."""
        rows = [
            {**c.fields, "messages": [*map(dict, c.messages)], "label": label, "group": c.group, "domain": c.domain}
            for label, side in (("positive", self.positive), ("negative", self.negative))
            for c in side
        ]
        return write_jsonl(Path(path), rows)

    def _keep(self, keep: Callable[[Conversation], bool]) -> "Contrast":
        return Contrast(self.name, tuple(filter(keep, self.positive)), tuple(filter(keep, self.negative)))


@door
def load_contrast(source: str | Path | tuple[str | Path, ...]) -> Contrast:
    """Load a contrast that ships with the library by its name, or your own from JSONL, JSON or YAML.

    A file holds one object a line, or an array of objects: `{"question", "positive", "negative"}` for two answers to
    one question, `{"prompt", "label"}` (or `instruction`) with the labels `harmful` (positive) and `harmless` for
    requests, or `{"messages", "label"}` with `positive` and `negative`. A pair of paths is two files of bare
    `{"messages"}`, `{"prompt"}` or `{"instruction"}`, the positive class first. `system` is a system prompt, and
    `group` the question that a conversation belongs to, in place of what the user asked last; other keys become fields
    to choose by, with `contrast.where(split="train")`.

    Raises:
        ValueError: an unknown name (the known ones are listed), a line that cannot be read (file, line and reason), or
            a key that changes what is asked and is not read (which one).
    """
    if isinstance(source, tuple | list):
        if len(source) != 2:
            raise ValueError(f"{len(source)} files came: give a pair, the file of the positive class first")
        first, second = (path_of(path, "contrast") for path in source)
        name, rows = f"{first.stem}-against-{second.stem}", _read(first, "positive") + _read(second, "negative")
    else:
        path = find_file(source, "contrast", SHIPPED, _SHIPPED)
        name, rows = path.stem, _read(path)
    positive, negative = (tuple(c for label, c in rows if label == wanted) for wanted in ("positive", "negative"))
    return Contrast(name, positive, negative)


@door
def load_conversations(path: str | Path) -> tuple[Conversation, ...]:
    """The conversations of a file of bare `{"messages": […]}`, as published training sets have them."""
    return tuple(conversation for _, conversation in _read(Path(path), "positive"))


def has_labels(path: str | Path) -> bool:
    """Whether an entry of a file of conversations says which class it is of, by a label or by having two answers."""
    entries = [entry for _, entry in read_records(Path(path)) if isinstance(entry, Mapping)]
    return any("positive" in entry or entry.get("label") is not None for entry in entries)


@door
def load_controls() -> tuple[Contrast, ...]:
    """The eight neutral contrasts: what the cosine of two unrelated concepts looks like in the same model."""
    return tuple(load_contrast(name) for name in CONTROLS)


def load_neutral_texts(split: str = "test") -> tuple[str, ...]:
    """Plain expository prose, to see whether a model still predicts ordinary text.

    Effects are reported on the 64 texts of `test`, and recipes chosen on the 32 of `validation`.

    Raises:
        ValueError: another split.
    """
    if split not in ("test", "validation"):
        raise ValueError(f"the neutral texts have no split {shown(split)}: choose test or validation")
    rows = [row for _, row in read_records(_SHIPPED / "neutral_texts.jsonl")]
    return tuple(row["text"] for row in rows if row["split"] == split)


@door
def request_answers(contrast: Contrast, *, harmful: bool) -> Contrast:
    """The refusing against the complying answer to each request of one class: to be read by `preference`.

    Positive is the refusing answer, so that a model which prefers it refuses.
    """
    side = contrast.positive if harmful else contrast.negative
    if not all({"refusal", "compliance"} <= set(c.fields) for c in side):
        raise ValueError(
            f"the requests of contrast {contrast.name!r} carry no answers: their lines need the keys "
            f"refusal and compliance"
        )
    kind = "harmful" if harmful else "harmless"
    positive, negative = (
        tuple(
            Conversation(
                (*c.messages, {"role": "assistant", "content": c.fields[answer]}),
                c.messages[-1]["content"],
                c.domain,
                c.fields,
            )
            for c in side
        )
        for answer in ("refusal", "compliance")
    )
    return Contrast(f"refusing {kind} requests", positive, negative)


def _read(path: Path, side: str | None = None) -> list[tuple[str, Conversation]]:
    """Each conversation with its class, which `side` gives to the bare messages of one of a pair of files."""
    rows: list[tuple[str, Conversation]] = []
    for line, entry in read_records(path):
        try:
            rows += _conversations(entry, side)
        except KeyError as error:
            raise ValueError(f"{path.name}, line {line}: the key {error} is missing") from error
        except ValueError as error:
            raise ValueError(f"{path.name}, line {line}: {error}") from error
    return rows


def _conversations(entry: Any, side: str | None) -> list[tuple[str, Conversation]]:
    row = checked_keys(entry, wanted="one conversation a line")
    by = asks_by(row)
    if by == "messages":
        found = [_from_messages(row, side)]
    elif by in ("prompt", "instruction"):
        found = [_from_request(row, by, side)]
    elif by == "question":
        found = _from_answers(row)
    else:
        raise ValueError(
            f"an object with the keys {listed(entry)} is none of question/positive/negative, "
            f"prompt/label, instruction/label, messages"
        )
    if side is not None and any(label != side for label, _ in found):
        raise ValueError(f"a conversation that is not {side} by its own line stands in the file of the {side} class")
    return found


def _from_answers(row: Mapping[str, Any]) -> list[tuple[str, Conversation]]:
    said, prompt = words(row, "question"), system(row)
    group, domain = text_of(row, "group") or question(said, prompt), text_of(row, "domain")
    fields = fields_of(row, "question", "positive", "negative", "domain", "group")
    return [
        (label, Conversation(asked(said, prompt, words(row, label)), group, domain, fields))
        for label in ("positive", "negative")
    ]


def _from_request(row: Mapping[str, Any], by: str, side: str | None) -> tuple[str, Conversation]:
    said, prompt = words(row, by), system(row)
    group = text_of(row, "group") or text_of(row, "pair") or question(said, prompt)
    fields = fields_of(row, by, "label", "domain", "group")
    return _label(row, side), Conversation(asked(said, prompt), group, text_of(row, "domain"), fields)


def _from_messages(row: Mapping[str, Any], side: str | None) -> tuple[str, Conversation]:
    said = messages(row)
    if not said[-1]["content"].strip():
        raise ValueError(f"the last message, the {said[-1]['role']}'s, is empty")
    fields = fields_of(row, "messages", "label", "group", "domain")
    return _label(row, side), Conversation(said, text_of(row, "group"), text_of(row, "domain"), fields)


def _label(row: Mapping[str, Any], side: str | None) -> str:
    """Which class a line belongs to: what it says, or else that of its file."""
    if side is not None and "label" not in row:
        return side
    if row["label"] not in list(_LABELS):
        raise ValueError(f"label {shown(row['label'])} is unknown: write one of {', '.join(_LABELS)}")
    return _LABELS[row["label"]]


def _facts(conversation: Conversation) -> Mapping[str, str]:
    return {**conversation.fields, "domain": conversation.domain}


def _text(conversation: Conversation) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in conversation.messages)
