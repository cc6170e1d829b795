"""What a model said, and the JSONL file in which answers appear as they are finished."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.checks import door, path_of
from em_interp.files import json_line, parse_json, read_bytes, write_jsonl
from em_interp.texts.conversations import Conversation
from em_interp.texts.entries import shown

FORMAT = "em_interp.answers/1"
_ROW = {
    **{"messages": list, "group": str, "domain": str, "fields": dict},
    **{"answer": str, "sample": int, "tokens": list, "finished": bool},
}


@dataclass(frozen=True)
class Answer:
    """One answer of a model.

    Attributes:
        conversation: what was asked; it ends with the user's words, or with an answer that the model went on with.
        text: what the model said, without blanks around it and without special tokens but for those that mark a
            thought; it begins with the mark of a thought that the prompt opened. Where it went on with an answer,
            what it added, with the blank before it.
        sample: which answer to this conversation it is, from 0.
        tokens: the ids that were generated, the closing one included.
        finished: whether the model came to an end by itself, or was cut off.
    """

    conversation: Conversation
    text: str
    sample: int = 0
    tokens: tuple[int, ...] = ()
    finished: bool = True

    @property
    def group(self) -> str:
        """The question it answers: the unit of every resampling."""
        return self.conversation.group

    @property
    def asked(self) -> str:
        """The user's last words."""
        return next(m["content"] for m in reversed(self.conversation.messages) if m["role"] == "user")

    @property
    def spoken(self) -> Conversation:
        """The conversation with the answer as its last message, whole where it was begun."""
        c = self.conversation
        before, begun = (c.messages[:-1], c.messages[-1]["content"].rstrip()) if c.answered else (c.messages, "")
        answer = {"role": "assistant", "content": begun + self.text}
        return Conversation((*before, answer), c.group, c.domain, c.fields)

    @property
    def key(self) -> str:
        """A short hash of what was asked and which sample this is: the answer's name in files and logs."""
        return answer_key(self.conversation, self.sample)

    def as_row(self) -> dict[str, Any]:
        """One line of a file of answers."""
        c = self.conversation
        return {
            "key": self.key,
            "group": c.group,
            "domain": c.domain,
            "fields": dict(c.fields),
            "messages": [dict(m) for m in c.messages],
            "sample": self.sample,
            "answer": self.text,
            "finished": self.finished,
            "tokens": list(self.tokens),
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Answer":
        """What `as_row` made, read back.

        Raises:
            ValueError: something is missing, or is not what `as_row` writes.
        """
        if not isinstance(row, Mapping):
            raise ValueError(f"{shown(row)} is not an object")
        for key, kind in _ROW.items():
            if key not in row:
                raise ValueError(f"it is not an answer: the key {key!r} is missing")
            if type(row[key]) is not kind:
                raise ValueError(f"it is not an answer: {key} is {shown(row[key])}")
        if not all(type(token) is int for token in row["tokens"]) or not all(
            type(v) is str for v in row["fields"].values()
        ):
            raise ValueError("it is not an answer: tokens are not all whole numbers, or fields not all words")
        asked = Conversation(tuple(row["messages"]), row["group"], row["domain"], row["fields"])
        return cls(asked, row["answer"], row["sample"], tuple(row["tokens"]), row["finished"])


def answer_key(conversation: Conversation, sample: int) -> str:
    """SHA-256, shortened, of the messages and the number of the sample."""
    content = json.dumps([[(m["role"], m["content"]) for m in conversation.messages], sample], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class AnswerFile:
    """A JSONL file: settings in the first line, then an answer a line, in the order in which they are finished.

    A run that is killed leaves at most its last line torn, which opening the file again cuts off. `done` holds the
    answers of earlier runs by their keys.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Begin the file, or open the one that a run with the same settings began.

        Raises:
            ValueError: the file was begun with other settings (they are named), or is no file of answers.
        """
        self.path = path_of(path, "answers")
        self.header = {"format": FORMAT, **settings}
        if not self.path.exists():
            self.finish(())
        begun, self.done = _read(self.path)
        other = [k for k in {**begun, **self.header} if begun.get(k) != self.header.get(k)]
        if other:
            differences = "; ".join(f"{k} was {_brief(begun.get(k))}, is {_brief(self.header.get(k))}" for k in other)
            raise ValueError(f"{self.path.name} was begun with other settings ({differences}): choose another file")
        _cut_torn_line(self.path)

    def write(self, answers: Iterable[Answer]) -> None:
        """Append answers; they are on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json_line(a.as_row()) for a in answers)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, answers: Iterable[Answer]) -> None:
        """Write the file anew with these answers in this order: it then tells nothing of how often it was stopped."""
        write_jsonl(self.path, [self.header, *(a.as_row() for a in answers)])


@door
def load_answers(path: str | Path) -> tuple[Answer, ...]:
    """The answers in a file that `respond` wrote; a finished one has them in the order of the conversations.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or a line that cannot be read (which one, and why).
    """
    return tuple(_read(Path(path))[1].values())


def answers_header(path: str | Path) -> dict[str, Any]:
    """The settings with which the answers in a file were made."""
    return _read(Path(path))[0]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Answer]]:
    lines = read_bytes(path).split(b"\n")[:-1]  # what follows the last line break is a torn line, or nothing
    header: Any = None
    answers: dict[str, Answer] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line.decode("utf-8-sig"))
            if number == 1:
                header = row
            elif isinstance(header, dict) and header.get("format") == FORMAT:
                answer = Answer.of_row(row)
                answers[answer.key] = answer
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}: remove the line to go on") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path.name} holds no answers: its first line is not that of a file that respond wrote")
    return header, answers


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def in_order(conversations: Sequence[Conversation], n_samples: int) -> list[tuple[Conversation, int]]:
    """Every answer wanted. A conversation that stands there twice gets further samples, not the same ones again."""
    seen: dict[str, int] = {}
    wanted = []
    for conversation in conversations:
        key = answer_key(conversation, 0)
        first = seen.get(key, 0)
        wanted += [(conversation, first + sample) for sample in range(n_samples)]
        seen[key] = first + n_samples
    return wanted
