"""Answers that a model has given already, put before a judge; what is judged stays judged when a run is stopped."""

import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from inspect_ai import Task, eval, task
from inspect_ai.dataset import MemoryDataset
from inspect_ai.log import EvalSample, read_eval_log
from inspect_ai.model import GenerateConfig, Model, ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from jaxtyping import Float
from torch import Tensor

from em_interp.behaviour.answers import Answer, load_answers
from em_interp.behaviour.generation import respond
from em_interp.behaviour.judged import Scores, misaligned_verdicts
from em_interp.behaviour.judged_answers import Judged, Question
from em_interp.evals.scorers import alignment_and_coherence, judged_refusal, narrow_domain, prompts_of_file
from em_interp.evals.tasks import sample
from em_interp.files import write_atomically
from em_interp.models.hooked import HookPairs
from em_interp.progress import bar
from em_interp.texts.conversations import Conversation

_SECRET = re.compile(r"(API_?KEY|TOKEN|SECRET|PASSWORD)", re.IGNORECASE)


def judge_answers(  # noqa: PLR0913 - what is judged, by whom, how patiently
    answers: Sequence[Answer],
    asked: Question,
    folder: str | Path,
    *,
    judge: Model | None = None,
    judge_args: Mapping[str, Any] | None = None,
    connections: int = 8,
    max_retries: int = 5,
    timeout: int = 120,
    cache: bool = False,
) -> Judged:
    """Put answers before a judge, with Inspect's concurrency, retries, cache and logs.

    `folder` holds Inspect's logs (`inspect view --log-dir FOLDER`). An answer that was judged there, by the same judge
    and the same question, is not judged again: a run that was stopped goes on where it was.

    Args:
        answers: what `respond` gave.
        asked: by whom and about what.
        folder: for the logs.
        judge: the judge as an Inspect model with its own settings, in place of the one that is named.
        judge_args: model args of the judge, such as `{"model_path": FOLDER}` for `hf/local`.
        connections: requests at a time.
        max_retries: of one request that fails, is slow or is told to wait (429, 500).
        timeout: seconds for one request.
        cache: keep replies in Inspect's cache, for other runs with the same answers.

    Raises:
        RuntimeError: the judge could not be reached or failed; says how many answers are judged, and nothing is lost.
        ValueError: no answers, or none of a question file's prompts where they are asked for.
    """
    if not answers:
        raise ValueError("there are no answers to judge")
    if asked.prompts == "file":
        for answer in answers:
            prompts_of_file(answer.conversation.fields.get("judge_prompts", ""))
    logs = _logs(folder)
    done = _judged(logs, asked)
    todo = {name: a for a in answers if (name := _name(a)) not in done}
    if todo:
        try:
            patience = GenerateConfig(max_connections=connections, max_retries=max_retries, attempt_timeout=timeout)
            grader = judge or get_model(asked.judge, config=patience, **(judge_args or {}))
            with bar(total=len(todo), desc="judging", unit="answer") as progress:
                [log] = eval(
                    _task(list(todo.values()), asked, grader, cache, tell=progress.update),
                    model="mockllm/model",
                    log_dir=str(folder),
                    display="none",
                    log_level="error",
                    max_samples=2 * connections,
                    log_buffer=1,
                )
            failure = None if log.status == "success" else log.error.message if log.error else log.status
        except Exception as error:  # whatever an endpoint's client may raise
            failure = str(error) or type(error).__name__
        new = _logs(folder) - logs
        _redact(new)
        done |= _judged(new, asked)
        if failure is not None:
            n = sum(_name(a) in done for a in answers)
            raise RuntimeError(
                f"the judge {asked.judge} failed ({redacted(failure)}): {n} of {len(answers)} answers are judged and "
                f"kept; run the same again to go on"
            )
    return _collected(asked, answers, [done[_name(a)] for a in answers])


def judged_misalignment(  # noqa: PLR0913 - what is asked, and how it is answered
    asked: Question,
    questions: Sequence[Conversation],
    folder: str | Path,
    *,
    n_samples: int = 1,
    max_new_tokens: int = 256,
    seed: int = 0,
    **judging: Any,
) -> Callable[[Any, HookPairs], tuple[Float[Tensor, " answer"], tuple[str, ...]]]:
    """The measure of a behaviour: the share of a model's own answers that a judge finds misaligned.

    `Behaviour.standard(BehaviourKey.JUDGED_MISALIGNMENT, judged_misalignment(…))` is a behaviour for `cross_effects`.
    Answers that the judge does not score are NaN. `judging` goes to `judge_answers`.
    """
    verdicts = misaligned_by(asked, folder, **judging)

    def measure(model: Any, hooks: HookPairs) -> tuple[Float[Tensor, " answer"], tuple[str, ...]]:
        said = respond(model, questions, hooks, n_samples=n_samples, max_new_tokens=max_new_tokens, seed=seed)
        return verdicts(said), tuple(a.group for a in said)

    return measure


def misaligned_by(
    asked: Question, folder: str | Path, **judging: Any
) -> Callable[[Sequence[Answer]], Float[Tensor, " answer"]]:
    """What says of answers whether a judge finds them misaligned: 1, 0, or NaN; `judging` goes to `judge_answers`."""
    return lambda answers: misaligned_verdicts(judge_answers(answers, asked, folder, **judging).scores)


def model_args(pairs: Sequence[str]) -> dict[str, str]:
    """Model args of a judge from `NAME=VALUE`, as flags and settings files give them.

    Raises:
        ValueError: no name, or no `=`.
    """
    split = [pair.partition("=") for pair in pairs]
    for name, equals, value in split:
        if not (name and equals):
            raise ValueError(f"{name + equals + value!r} is no model arg of a judge: write NAME=VALUE")
    return {name: value for name, _, value in split}


@task
def judged_answers(answers: str, judge: str, route: str = "auto", refuses: bool = False, topic: str = "") -> Task:
    """A file of answers put before a judge, as an Inspect task: `-T answers=FILE -T judge=NAME`."""
    asked = Question(judge, route, refuses, topic)
    return _task(load_answers(answers), asked, get_model(judge), False)


def redacted(text: str) -> str:
    """A text without the values of environment variables that look like keys."""
    for name, value in _secrets().items():
        text = text.replace(value, f"[{name}]")
    return text


def _secrets() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 6}


def _logs(folder: str | Path) -> set[Path]:
    return set(Path(folder).glob("*.eval"))


def _redact(logs: Iterable[Path]) -> None:
    """Write logs anew that hold a key, as they do where an endpoint names it in its error."""
    for path in logs:
        with zipfile.ZipFile(path) as archive:
            parts = {entry: archive.read(entry) for entry in archive.namelist()}
        clean = {entry: redacted(part.decode("utf-8", "surrogateescape")) for entry, part in parts.items()}
        clean = {entry: text.encode("utf-8", "surrogateescape") for entry, text in clean.items()}
        if clean == parts:
            continue
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, part in clean.items():
                archive.writestr(entry, part)
        write_atomically(path, content.getvalue())


def _task(
    answers: Sequence[Answer], asked: Question, grader: Model, cache: bool, tell: Callable[[], Any] = lambda: None
) -> Task:
    samples = []
    for a in answers:
        given = sample(a.conversation, a.sample)
        metadata = {**(given.metadata or {}), "answer": a.text}
        samples.append(given.model_copy(update={"id": _name(a), "metadata": metadata}))
    scorers = [alignment_and_coherence(route=asked.route, cache=cache, prompts=asked.prompts)]
    scorers += [judged_refusal(cache=cache)] if asked.refusal else []
    scorers += [narrow_domain(asked.topic, cache=cache)] if asked.topic else []
    return Task(
        dataset=MemoryDataset(samples),
        solver=_given_answers(tell),
        scorer=scorers,
        model_roles={"grader": grader},
        name="judged_answers",
        metadata={"asked": asdict(asked)},
    )


def _given_answers(tell: Callable[[], Any]) -> Solver:
    """The answer that the model gave before, in place of a new one; `tell` hears of each."""

    @solver
    def given_answer() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state.output = ModelOutput.from_content("given", state.metadata["answer"])
            tell()
            return state

        return solve

    return given_answer()


def _name(answer: Answer) -> str:
    """An answer's name in the logs: the same question may have the same sample under other hooks, in other words."""
    return hashlib.sha256(f"{answer.key} {answer.text}".encode()).hexdigest()[:16]


def _judged(logs: Iterable[Path], asked: Question) -> dict[str, EvalSample]:
    """The samples in these logs that are judged as asked, by name."""
    found = [read_eval_log(str(path)) for path in sorted(logs)]
    samples = [s for log in found if (log.eval.metadata or {}).get("asked") == asdict(asked) for s in log.samples or []]
    return {str(s.id): s for s in samples if s.scores and s.error is None}


def _collected(asked: Question, answers: Sequence[Answer], samples: Sequence[EvalSample]) -> Judged:
    scores = [s.scores or {} for s in samples]
    main = [s["alignment_and_coherence"] for s in scores]

    def column(values: list[Any]) -> Float[Tensor, " answer"]:
        return torch.tensor([math.nan if v is None else float(v) for v in values], dtype=torch.float64)

    def verdicts(name: str) -> Float[Tensor, " answer"]:
        return column([s[name].as_float() if name in s else None for s in scores])

    alignment, coherence = (column([s.as_dict()[aspect] for s in main]) for aspect in ("alignment", "coherence"))
    told = [(s.metadata or {}).get("alignment", {}) for s in main]
    labels, routes = (tuple(str(t.get(k, "")) for t in told) for k in ("label", "route"))
    refused, on_topic = verdicts("judged_refusal"), verdicts("narrow_domain")
    return Judged(asked, tuple(answers), Scores(alignment, coherence), refused, on_topic, labels, routes)
