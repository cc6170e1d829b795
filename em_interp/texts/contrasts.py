"""Two sets of conversations that differ in one thing: read, checked, written; and the ones that ship with us."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from em_interp.files import read_jsonl, write_jsonl
from em_interp.texts.conversations import Conversation, checked_messages

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
_SHIPPED = files("em_interp") / "data" / "contrasts"
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


def load_contrast(source: str | Path | tuple[str | Path, str | Path]) -> Contrast:
    """Load a contrast that ships with the library by its name, or your own from JSONL.

    A file holds one object a line: `{"question", "positive", "negative"}` for two answers to one question,
    `{"prompt", "label"}` with the labels `harmful` (positive) and `harmless` for requests, or `{"messages", "label"}`
    with `positive` and `negative`. A pair of paths is two files of bare `{"messages"}`, the positive class first.
    Other keys become fields to choose by, with `contrast.where(split="train")`.

    Raises:
        ValueError: an unknown name (the known ones are listed), or a line that cannot be read (file, line and reason).
    """
    if isinstance(source, tuple):
        first, second = map(Path, source)
        name, rows = f"{first.stem}-against-{second.stem}", _read(first, "positive") + _read(second, "negative")
    else:
        path = Path(source)
        if not path.is_file():
            if str(source) not in SHIPPED:
                raise ValueError(f"no contrast {str(source)!r}: it is neither a file nor one of {', '.join(SHIPPED)}")
            path = Path(str(_SHIPPED.joinpath(f"{source}.jsonl")))
        name, rows = path.stem, _read(path)
    positive, negative = (tuple(c for label, c in rows if label == wanted) for wanted in ("positive", "negative"))
    return Contrast(name, positive, negative)


def load_conversations(path: str | Path) -> tuple[Conversation, ...]:
    """The conversations of a JSONL file of bare `{"messages": […]}`, as published training sets have them."""
    return tuple(conversation for _, conversation in _read(Path(path), "positive"))


def load_controls() -> tuple[Contrast, ...]:
    """The eight neutral contrasts: what the cosine of two unrelated concepts looks like in the same model."""
    return tuple(load_contrast(name) for name in CONTROLS)


def load_neutral_texts() -> tuple[str, ...]:
    """Plain expository prose, to see whether a model still predicts ordinary text."""
    return tuple(row["text"] for _, row in read_jsonl(Path(str(_SHIPPED.joinpath("neutral_texts.jsonl")))))


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
    for number, row in read_jsonl(path):
        try:
            rows += _conversations(row, side)
        except KeyError as error:
            raise ValueError(f"{path.name}, line {number}: the key {error} is missing") from error
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from error
    return rows


def _conversations(row: Any, side: str | None) -> list[tuple[str, Conversation]]:
    if not isinstance(row, dict):
        raise ValueError(f"{json.dumps(row)[:40]} is no object: write {{…}} with one conversation a line")
    if "messages" in row:
        found = [_from_messages(row, side)]
    elif "prompt" in row:
        found = [_from_request(row)]
    elif "question" in row:
        found = _from_answers(row)
    else:
        raise ValueError(
            f"an object with the keys {', '.join(row) or 'none'} is none of question/positive/negative, prompt/label, "
            f"messages"
        )
    if side is not None and any(label != side for label, _ in found):
        raise ValueError(f"a conversation that is not {side} by its own line stands in the file of the {side} class")
    return found


def _from_answers(row: dict[str, Any]) -> list[tuple[str, Conversation]]:
    question = _words(row, "question")
    fields = _fields(row, "question", "positive", "negative", "domain")
    return [
        (label, Conversation(_asked(question, _words(row, label)), question, _fact(row, "domain"), fields))
        for label in ("positive", "negative")
    ]


def _from_request(row: dict[str, Any]) -> tuple[str, Conversation]:
    prompt = _words(row, "prompt")
    group, fields = _fact(row, "pair") or prompt, _fields(row, "prompt", "label", "domain")
    return _label(row), Conversation(_asked(prompt), group, _fact(row, "domain"), fields)


def _from_messages(row: dict[str, Any], side: str | None) -> tuple[str, Conversation]:
    messages = checked_messages(row["messages"])
    if not messages[-1]["content"].strip():
        raise ValueError(f"the last message, the {messages[-1]['role']}'s, is empty")
    fields = _fields(row, "messages", "label", "group", "domain")
    label = side if side is not None and "label" not in row else _label(row)
    return label, Conversation(messages, _fact(row, "group"), _fact(row, "domain"), fields)


def _label(row: Mapping[str, Any]) -> str:
    """Which class a line belongs to."""
    if row["label"] not in list(_LABELS):
        raise ValueError(f"label {row['label']!r} is unknown: write one of {', '.join(_LABELS)}")
    return _LABELS[row["label"]]


def _fact(row: Mapping[str, Any], key: str) -> str:
    return "" if row.get(key) is None else str(row[key])


def _asked(question: str, answer: str | None = None) -> tuple[Mapping[str, str], ...]:
    user = {"role": "user", "content": question}
    return (user,) if answer is None else (user, {"role": "assistant", "content": answer})


def _words(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is {value!r}, and should be words")
    return value


def _fields(row: Mapping[str, Any], *known: str) -> dict[str, str]:
    return {key: _fact(row, key) for key in row if key not in known}


def _facts(conversation: Conversation) -> Mapping[str, str]:
    return {**conversation.fields, "domain": conversation.domain}


def _text(conversation: Conversation) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in conversation.messages)
