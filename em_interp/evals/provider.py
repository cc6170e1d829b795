"""An Inspect model provider: `em_interp/NAME` serves a hooked model, steered or ablated, to any Inspect task.

    inspect eval em_interp/em_first_plot --model em_interp/cooking-rank1 -M project_out=misalignment.safetensors

Model args: `project_out`, `set_negative` or `add` with `layer`, `sites`, `scale`, `positions`
(`em_interp.directions.settings.Edit`);
`interventions`, a list of such settings, for more than one; `batch_size`, answers at a time (16); `adapter`, `device`
and `dtype` as for `load_model`; `template_args`, variables of the chat template, as `"{enable_thinking: false}"` or
`enable_thinking=false`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from logging import getLogger
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.log._samples import sample_active
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from em_interp.behaviour.answers import Answer
from em_interp.behaviour.generation import Request, Sampling, in_batches
from em_interp.directions.settings import Edit, hooks_of
from em_interp.interventions import described
from em_interp.organisms.loading import load_named
from em_interp.templates import template_args
from em_interp.texts.conversations import Conversation

_LOG = getLogger(__name__)
_EDIT = [field.name for field in fields(Edit)]
_LOADING = ("adapter", "device", "dtype", "template_args")
_BATCH_SIZE = 16
# Asked for by a task and not to be had here: better said once than left unsaid.
_IGNORED = ("top_p", "top_k", "stop_seqs", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs")


@dataclass(eq=False)
class _Waiting:
    request: Request
    sampling: Sampling
    answer: Answer | None = None
    error: Exception | None = None


class HookedModelAPI(ModelAPI):
    """Answers of a `HookedModel` under interventions, the same whatever Inspect runs beside them.

    Where the last message is the assistant's, the answer was begun: it is gone on with, and the completion is what is
    added. Only text can be read: pictures, sound, files, thoughts apart from the text and tool calls are errors.

    A sample's random numbers come from the config's seed (0 unless told), its messages and its epoch. The temperature
    is 1 unless told.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own signature
        **model_args: Any,
    ) -> None:
        """Load the model and read the directions.

        Raises:
            ValueError: an unknown model, organism or model arg.
            FileNotFoundError: no direction in the file that a model arg names.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        edits, self.batch_size = _edits(model_args), _batch_size(model_args)
        self.hooked = load_named(model_name, **_loading(model_args))
        self.hooks = hooks_of(self.hooked, edits)
        self._waiting: list[_Waiting] = []
        self._turn = anyio.Lock()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one conversation, or go on with its answer; those that wait at the same time go into one batch.

        Raises:
            ValueError: tools, or content that is not text; a conversation that `encode` refuses.
        """
        if tools:
            raise ValueError("the em_interp provider serves plain conversations: it has no tools")
        from inspect_ai._util.logger import warn_once

        for name in _IGNORED:
            if getattr(config, name) is not None:
                warn_once(_LOG, f"the em_interp provider draws from the whole softmax and leaves {name} aside")
        chosen = {
            "max_new_tokens": config.max_tokens,
            "temperature": config.temperature,
            "seed": config.seed,
        }
        sampling = Sampling(**{name: value for name, value in chosen.items() if value is not None})
        conversation = Conversation(tuple({"role": m.role, "content": _words(m)} for m in input))
        n, active = config.num_choices or 1, sample_active()
        first = n * (active.epoch - 1) if active else 0
        waiting = [_Waiting(Request.of(self.hooked, conversation, first + i, sampling), sampling) for i in range(n)]
        answers = await self._answers(waiting)
        return _output(self.model_name, waiting[0].request, answers)

    def max_connections(self) -> int:
        """As many as go into one batch."""
        return self.batch_size

    def max_tokens(self) -> int | None:
        """Enough for an answer in a few paragraphs."""
        return Sampling().max_new_tokens

    async def _answers(self, wanted: Sequence[_Waiting]) -> list[Answer]:
        self._waiting += wanted
        async with self._turn:
            await anyio.sleep(0.01)  # those that ask at the same moment come along
            while any(w.answer is None and w.error is None for w in wanted):
                batch = [w for w in self._waiting if w.sampling == self._waiting[0].sampling][: self.batch_size]
                self._waiting = [w for w in self._waiting if not any(w is b for b in batch)]
                await anyio.to_thread.run_sync(self._run, batch)
        answers = []
        for w in wanted:
            if w.error is not None:
                raise w.error
            assert w.answer is not None
            answers.append(w.answer)
        return answers

    def _run(self, batch: Sequence[_Waiting]) -> None:
        try:
            requests, sampling = [w.request for w in batch], batch[0].sampling
            found = in_batches(self.hooked, requests, self.hooks, sampling, self.batch_size)
            answers = [answer for some in found for answer in some]
        except Exception as error:  # each of those that wait is told
            for w in batch:
                w.error = error
            return
        for w, answer in zip(batch, answers, strict=True):
            w.answer = answer

    @property
    def interventions(self) -> list[str]:
        """What is done to the model, a line a hook."""
        return described(self.hooks)


def _words(message: ChatMessage) -> str:
    """The words of a message that is nothing but words."""
    if isinstance(message, ChatMessageTool) or (isinstance(message, ChatMessageAssistant) and message.tool_calls):
        raise ValueError(
            f"a message of the {message.role} is about a tool: the em_interp provider serves plain conversations"
        )
    for part in message.content if isinstance(message.content, list) else ():
        if not isinstance(part, ContentText):
            raise ValueError(
                f"a message of the {message.role} holds content of type {part.type!r}, which the em_interp provider "
                f"cannot read: it takes text alone"
            )
    return message.text


def _edits(model_args: dict[str, Any]) -> list[Edit]:
    """The interventions among model args, which keep the rest."""
    single = {name: model_args.pop(name) for name in _EDIT if name in model_args}
    several = model_args.pop("interventions", [])
    if not isinstance(several, list) or not all(isinstance(edit, dict) for edit in several):
        raise ValueError("interventions is a list of settings, such as [{add: FILE, layer: 15, scale: 0.2}]")
    return [Edit.of(settings) for settings in [*([single] if single else []), *several]]


def _batch_size(model_args: dict[str, Any]) -> int:
    """The batch size among model args, which keep the rest."""
    given = str(model_args.pop("batch_size", _BATCH_SIZE))
    if not given.isdecimal() or not int(given):
        raise ValueError(f"batch_size is {given}: give a whole number of answers at a time")
    return int(given)


def _loading(model_args: dict[str, Any]) -> dict[str, Any]:
    import torch

    known = {name: model_args.pop(name) for name in _LOADING if name in model_args}
    if model_args:
        wanted = ", ".join([*_EDIT, "interventions", "batch_size", *_LOADING])
        raise ValueError(f"the em_interp provider has no model arg {min(model_args)!r}: it has {wanted}")
    if isinstance(known.get("dtype"), str):
        dtype = getattr(torch, known["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype {known['dtype']!r} is unknown: write float32, bfloat16 or float16")
        known["dtype"] = dtype
    if isinstance(known.get("template_args"), str | list):
        given = known["template_args"]
        known["template_args"] = template_args([given] if isinstance(given, str) else [str(pair) for pair in given])
    return known


def _output(model_name: str, request: Request, answers: Sequence[Answer]) -> ModelOutput:
    choices = [
        ChatCompletionChoice(
            message=ChatMessageAssistant(content=answer.text, model=model_name, source="generate"),
            stop_reason="stop" if answer.finished else "max_tokens",
        )
        for answer in answers
    ]
    n_in, n_out = len(request.prompt), sum(len(answer.tokens) for answer in answers)
    usage = ModelUsage(input_tokens=n_in, output_tokens=n_out, total_tokens=n_in + n_out)
    return ModelOutput(model=model_name, choices=choices, usage=usage)
