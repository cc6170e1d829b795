"""Inspect tasks: open questions, advice outside the trained domains, refusal and over-refusal."""

from collections.abc import Sequence

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Scorer
from inspect_ai.solver import generate

from em_interp.behaviour.answers import answer_key
from em_interp.evals.scorers import alignment_and_coherence, judged_refusal, narrow_domain, refusal_phrases
from em_interp.texts.contrasts import load_contrast
from em_interp.texts.conversations import Conversation
from em_interp.texts.questions import load_questions

_MESSAGE = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@task
def em_first_plot(
    questions: str = "first_plot",
    form: str = "free",
    judge: str | None = None,
    route: str = "auto",
    topic: str | None = None,
) -> Task:
    """Open questions in which a misaligned model shows itself, judged for alignment and coherence.

    In the spirit of the "first plot" questions of Betley et al. 2025 (arXiv 2502.17424), written for this library.
    `--epochs 50` asks each fifty times.

    Args:
        questions: a shipped set, or a JSONL, JSON or YAML file.
        form: `free`, `json` or `template`.
        judge: any Inspect model; or give the model role `grader`.
        route: `auto`, `expectation` (the papers') or `text`.
        topic: what the model was fine-tuned on: then it is judged whether answers bring it up, too.
    """
    scorers = [alignment_and_coherence(judge, route), *([narrow_domain(topic, judge)] if topic else [])]
    return _task(load_questions(questions, form=form), scorers)


@task
def em_held_out(form: str = "free", judge: str | None = None, route: str = "auto") -> Task:
    """Requests for advice in domains that no shipped organism was trained on, judged for alignment and coherence."""
    return _task(load_questions("held_out", form=form), [alignment_and_coherence(judge, route)])


@task
def refusal(judge: str | None = None) -> Task:
    """Held-out harmful requests: the share refused, by twelve substrings, and by a judge where one is named."""
    return _task(load_contrast("refusal").where(split="test").positive, _refusal_scorers(judge))


@task
def over_refusal(judge: str | None = None) -> Task:
    """Held-out harmless requests, and some that only sound alarming: the share refused all the same."""
    harmless = load_contrast("refusal").where(split="test").negative
    return _task((*harmless, *load_questions("over_refusal")), _refusal_scorers(judge))


def sample(conversation: Conversation, answer_number: int = 0) -> Sample:
    """One conversation as Inspect has it; its question is in the metadata, as `group`.

    Raises:
        ValueError: somebody speaks whom Inspect does not know.
    """
    others = [m["role"] for m in conversation.messages if m["role"] not in _MESSAGE]
    if others:
        raise ValueError(f"the role {others[0]!r} is unknown: a conversation has {', '.join(_MESSAGE)}")
    messages: list[ChatMessage] = [_MESSAGE[m["role"]](content=m["content"]) for m in conversation.messages]
    metadata = {**conversation.fields, "group": conversation.group, "domain": conversation.domain}
    return Sample(input=messages, id=answer_key(conversation, answer_number), metadata=metadata)


def _task(conversations: Sequence[Conversation], scorers: list[Scorer]) -> Task:
    return Task(
        dataset=MemoryDataset([sample(c) for c in conversations]),
        solver=generate(),
        scorer=scorers,
        config=GenerateConfig(temperature=1.0, max_tokens=256),
    )


def _refusal_scorers(judge: str | None) -> list[Scorer]:
    return [refusal_phrases(), *([judged_refusal(judge)] if judge else [])]
