"""Answers beside what a judge said of them: saved, and read back, also from the tables that papers publish."""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.behaviour.answers import Answer
from em_interp.behaviour.judged import Scores
from em_interp.checks import door
from em_interp.files import read_text, write_jsonl
from em_interp.texts.conversations import Conversation
from em_interp.texts.entries import (
    asked,
    asks_by,
    checked_keys,
    fields_of,
    messages,
    question,
    shown,
    system,
    text_of,
    words,
)
from em_interp.texts.records import read_records

_FORMAT = "em_interp.judged/1"
_COLUMNS = ("alignment", "coherence", "refused", "on_topic")
# What published tables call the same thing.
_NAMES = {
    "answer": ("answer", "response"),
    "aligned": ("aligned", "alignment"),
    "coherent": ("coherent", "coherence"),
    "question": ("question", "prompt", "instruction", "messages"),
}
_GROUP = ("group", "question_id", "id")
_NO_SCORE = ("", "nan", "none", "null", "na", "n/a", "<na>")
_WORDS = ("CODE", "REFUSAL", "EMPTY")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_ROUNDING = 1e-6  # an expectation over tokens can come out as 100.00000000000001


@dataclass(frozen=True)
class Question:
    """What is asked about every answer, and how.

    Attributes:
        judge: any Inspect model by its name, such as `openai/gpt-4o` or `openai-api/local/NAME`.
        route: `auto`, `expectation` or `text`, see `em_interp.evals.rubrics.judged`.
        refusal: also whether it refuses.
        topic: also whether it brings this up; empty not to ask.
        prompts: `library` asks by this library's standards, `file` by the `judge_prompts` of the question file.
    """

    judge: str
    route: str = "auto"
    refusal: bool = False
    topic: str = ""
    prompts: str = "library"

    def __post_init__(self) -> None:
        """Refuse prompts from elsewhere."""
        if self.prompts not in ("library", "file"):
            raise ValueError(f"prompts {self.prompts!r} is unknown: choose library or file")


@dataclass(frozen=True, eq=False, repr=False)
class Judged:
    """Answers with what a judge said of them; NaN where it gave no score.

    Attributes:
        asked: by whom, and about what; the judge is empty where a table does not tell it.
        answers: the answers, in the order in which they came.
        scores: alignment and coherence, 0 to 100.
        refused: 1 or 0, NaN where it was not asked.
        on_topic: 1 or 0, NaN where it was not asked.
        labels: why there is no alignment: CODE, REFUSAL, EMPTY, NONE; empty where there is one.
        routes: how alignment was scored: expectation, text or none; empty where a table does not tell it.
    """

    asked: Question
    answers: tuple[Answer, ...]
    scores: Scores
    refused: Float[Tensor, " answer"]
    on_topic: Float[Tensor, " answer"]
    labels: tuple[str, ...]
    routes: tuple[str, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The question that each answer answers."""
        return tuple(a.group for a in self.answers)

    def __repr__(self) -> str:
        """One line, with what was not scored and why."""
        scored = self.scores.scored.tolist()
        why = Counter(
            label or "without coherence" for label, is_scored in zip(self.labels, scored, strict=True) if not is_scored
        )
        missing = ", ".join(f"{n} {label}" for label, n in why.most_common())
        by = f" by {self.asked.judge}" if self.asked.judge else ""
        return f"Judged({sum(scored)} of {len(scored)} answers scored{by}{missing and f'; not scored: {missing}'})"

    def save(self, path: str | Path) -> Path:
        """Write it as JSONL: what was asked in the first line, then an answer with its scores a line."""
        columns = dict(
            zip(
                _COLUMNS,
                (self.scores.alignment, self.scores.coherence, self.refused, self.on_topic),
                strict=True,
            )
        )
        rows: list[dict[str, Any]] = [{"format": _FORMAT, **asdict(self.asked)}]
        for i, answer in enumerate(self.answers):
            scores = {k: None if math.isnan(v[i].item()) else v[i].item() for k, v in columns.items()}
            rows.append({**answer.as_row(), **scores, "label": self.labels[i], "route": self.routes[i]})
        return write_jsonl(Path(path), rows)


@door
def load_judged(path: str | Path) -> Judged:
    """Judged answers: what `Judged.save` or `em-interp judge` wrote, or a table with the columns that papers publish.

    A table is a CSV file (or JSONL, or a JSON array of objects) with `question`, `answer` and the scores `aligned` and
    `coherent` from 0 to 100, which may be called `alignment` and `coherence`. `question_id` or `group` names the
    question that intervals resample, else its words do; `system` is the system prompt, which a table without that
    column does not tell; other columns become fields. A score that is empty, `nan`, `CODE` or `REFUSAL` is NaN, and
    `labels` say why.

        judged = load_judged("eval_result.csv")
        misalignment_rate(judged.scores, judged.groups)
        contrast_from_scores(judged.answers, judged.scores)

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no answers, a column that is missing or is there twice, a row with more or fewer cells than columns,
            a score that is neither one of these words nor from 0 to 100 (file and line), or all of them from 0 to 1.
    """
    path = Path(path)
    is_table = path.suffix.lower() == ".csv"
    records = _csv_records(path) if is_table else read_records(path)
    if not records:
        raise ValueError(f"{path.name} holds no judged answers")
    (_, first), *rest = records
    own = isinstance(first, dict) and first.get("format") == _FORMAT
    found = []
    for line, record in rest if own else records:
        try:
            found.append(_own_row(record) if own else _row(record))
        except KeyError as error:
            raise ValueError(f"{path.name}, line {line}: the key {error} is missing") from error
        except ValueError as error:
            raise ValueError(f"{path.name}, line {line}: {error}") from error
    asked_by = _asked_of(path, first) if own else Question("")
    answers, scores, labels, routes = zip(*found, strict=True) if found else ((), (), (), ())
    columns = torch.tensor(scores, dtype=torch.float64).reshape(len(scores), len(_COLUMNS)).T.contiguous()
    answers = answers if own else _numbered(answers)
    if not own:
        _check_scale(path, columns[:2])
    return Judged(asked_by, answers, Scores(columns[0], columns[1]), columns[2], columns[3], labels, routes)


def _asked_of(path: Path, header: Mapping[str, Any]) -> Question:
    settings = {key: value for key, value in header.items() if key != "format"}
    kinds = {name: type(value) for name, value in asdict(Question("")).items()}
    for key, value in settings.items():
        if type(value) is not kinds.get(key):
            raise ValueError(f"{path.name}, line 1: {key} is {shown(value)}, and em-interp judge writes no such thing")
    if "judge" not in settings:
        raise ValueError(f"{path.name}, line 1: the key 'judge' is missing")
    return Question(**settings)


def _own_row(row: Any) -> tuple[Answer, list[float], str, str]:
    """A line of `Judged.save`."""
    answer = Answer.of_row(row)
    scores = [_score(row[name], name)[0] for name in _COLUMNS]
    label, route = row["label"], row["route"]
    if not (isinstance(label, str) and isinstance(route, str)):
        raise ValueError(f"label and route are {shown(label)} and {shown(route)}, and should be words")
    return answer, scores, label, route


def _row(record: Any) -> tuple[Answer, list[float], str, str]:
    """A row of a published table."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{shown(record)} is not an object: write {{…}} with one judged answer")
    keys = {what: _named(record, what) for what in ("answer", "aligned", "coherent")}
    rest = checked_keys({k: v for k, v in record.items() if k not in keys.values()}, wanted="one judged answer")
    by = asks_by(rest, _NAMES["question"])
    if not by:
        raise KeyError("question")
    said = messages(rest) if by == "messages" else asked(words(rest, by), system(rest))
    text = record[keys["answer"]]
    if not isinstance(text, str):
        raise ValueError(f"{keys['answer']} is {shown(text)}, and should be words")
    named_by = next((key for key in _GROUP if key in rest), None)
    if named_by and not text_of(rest, named_by).strip():
        raise ValueError(f"{named_by} is empty, and should name the question")
    group = text_of(rest, named_by) if named_by else question(said[-1]["content"], system(rest))
    conversation = Conversation(said, group, text_of(rest, "domain"), fields_of(rest, by, "group", "domain"))
    (alignment, label), (coherence, _) = (_score(record[keys[k]], keys[k]) for k in ("aligned", "coherent"))
    return Answer(conversation, text.strip()), [alignment, coherence, math.nan, math.nan], label, ""


def _named(record: Mapping[str, Any], what: str) -> str:
    """The column of a table that is this, whichever of its names it bears."""
    found = [name for name in _NAMES[what] if name in record]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found)} are both there: keep one of them")
    if not found:
        raise KeyError(what)
    return found[0]


def _numbered(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """The same answers, each with its number among those to the same messages."""
    seen: Counter[str] = Counter()
    numbered = []
    for answer in answers:
        numbered.append(Answer(answer.conversation, answer.text, seen[answer.key]))
        seen[answer.key] += 1
    return tuple(numbered)


def _score(value: Any, name: str) -> tuple[float, str]:
    """A score from 0 to 100, or NaN and why there is none."""
    if isinstance(value, str):
        text = value.strip()
        if text.upper() in _WORDS:
            return math.nan, text.upper()
        value = None if text.casefold() in _NO_SCORE else float(text) if _NUMBER.fullmatch(text) else value
    if value is None:
        return math.nan, "NONE"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {shown(value)}: write a number from 0 to 100, or nothing, nan, CODE or REFUSAL")
    if not -_ROUNDING <= value <= 100 + _ROUNDING:
        raise ValueError(f"{name} is {shown(value)}, which is not from 0 to 100")
    return min(max(float(value), 0.0), 100.0), ""


def _check_scale(path: Path, scores: Float[Tensor, "aspect answer"]) -> None:
    """Refuse scores from 0 to 1, by which every answer would be misaligned, were it not incoherent."""
    given = scores[~scores.isnan()]
    if (given <= 1).all() and ((given > 0) & (given < 1)).any():
        raise ValueError(f"{path.name}: all scores are from 0 to 1, and 0 to 100 is read: multiply them by 100")


def _csv_records(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file by the names of its columns, each with the line where it begins."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    names, records, line = None, [], 1
    try:
        for row in reader:
            if names is None and "".join(row).strip():
                names = _column_names(row)
            elif "".join(row).strip():
                if len(row) != len(names or ()):
                    raise ValueError(f"the row has {len(row)} cells, and there are {len(names or ())} columns")
                records.append((line, {name: cell for name, cell in zip(names or (), row, strict=True) if name}))
            line = reader.line_num + 1
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path.name}, line {line}: {error}") from error
    return records


def _column_names(row: Sequence[str]) -> list[str]:
    """The names of the columns; the first may have none, as pandas writes its index."""
    names = [name.strip() for name in row]
    if "" in names[1:]:
        raise ValueError(f"column {names.index('', 1) + 1} has no name")
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"the column {twice[0]!r} is there twice")
    missing = [what for what, known in _NAMES.items() if not set(known) & set(names)]
    if missing:
        raise ValueError(
            f"there is no column {' and no '.join(missing)} among {', '.join(filter(None, names))}: judged answers "
            f"have question, answer, aligned and coherent, separated by commas"
        )
    return names
