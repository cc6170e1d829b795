"""What a model says, word by word: many answers at a time, hooks on, the same whatever the batch."""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_interp.activations.reading import Messages
from em_interp.behaviour.answers import Answer, AnswerFile, answer_key, in_order
from em_interp.checks import door
from em_interp.interventions import at_prompt_length, described
from em_interp.models.hooked import HookedModel, HookPairs, TransformerLensModel, attached
from em_interp.progress import bar
from em_interp.texts.conversations import Conversation, encode, encode_prefilled, prompt_text
from em_interp.texts.thoughts import begun_thought, marks_thought


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: where an answer is cut off.
        temperature: 0 for the likeliest token each time.
        seed: of the random numbers, together with the conversation and the number of the sample.
    """

    max_new_tokens: int = 256
    temperature: int | float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no answer can be drawn with."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: an answer needs one at least")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}: give 0 for greedy answers, or a positive number")


@door
def respond(  # noqa: PLR0913 - what is asked, what is done to the model, how it answers
    model: TransformerLensModel,
    conversations: Sequence[Messages],
    hooks: HookPairs = (),
    *,
    max_new_tokens: int = 256,
    temperature: int | float = 1.0,
    n_samples: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    file: str | Path | None = None,
) -> tuple[Answer, ...]:
    """Let the model answer the last user message of each conversation, `n_samples` times each.

    At temperature 0 the answers are those of Hugging Face's own greedy `generate`, one conversation at a time. Above
    it, tokens are drawn from the whole softmax (no top-k, no top-p) with random numbers that belong to the seed, the
    conversation and the sample: neither the batch size nor the company changes an answer, but that in half precision
    a batch of another shape rounds otherwise and may tip two tokens that are nearly as likely. An answer ends at the
    model's own end-of-text tokens and at the token with which the chat template closes an assistant's turn. Nothing
    else of the model's own generation settings takes part: no beams, no penalties, no stop strings, no forced tokens.

    Args:
        model: a `HookedModel` or a bridge.
        conversations: what to answer; an answer that stands there already is left off.
        hooks: interventions, or any hook functions. Those on a prompt or a response are told where it ends.
        max_new_tokens: answers are cut off there.
        temperature: 0 for greedy answers.
        n_samples: answers a conversation; they lie next to each other in what comes back.
        seed: of the samples.
        batch_size: answers at a time. Where a GPU runs out of memory it is halved until they fit.
        file: JSONL in which answers appear as they are finished. A run that was stopped goes on from there, and the
            finished file is the same; more samples are added to those that are there.

    Raises:
        ValueError: several greedy samples, which would be all the same; a prompt that leaves no room for an answer; a
            file that was begun with other settings.
    """
    hooked, sampling = HookedModel.of(model), Sampling(max_new_tokens, temperature, seed)
    if n_samples < 1 or batch_size < 1:
        raise ValueError(f"n_samples is {n_samples} and batch_size {batch_size}: both are one at least")
    if n_samples > 1 and not temperature:
        raise ValueError(f"{n_samples} greedy answers would be all the same: take n_samples=1, or a temperature")
    wanted = [Request.of(hooked, *w, sampling) for w in in_order([_asked(c) for c in conversations], n_samples)]
    store = AnswerFile(file, _settings(hooked, hooks, sampling)) if file is not None else None
    found = dict(store.done) if store else {}
    todo = sorted((r for r in wanted if r.key not in found), key=lambda r: (-len(r.prompt), r.key))
    with bar(total=len(wanted), initial=len(wanted) - len(todo), desc="answering", unit="answer") as progress:
        began, n_tokens = time.monotonic(), 0
        for answers in in_batches(hooked, todo, hooks, sampling, batch_size):
            if store:
                store.write(answers)
            found |= {a.key: a for a in answers}
            n_tokens += sum(len(a.tokens) for a in answers)
            progress.set_postfix_str(f"{n_tokens / (time.monotonic() - began):.0f} tokens/s", refresh=False)
            progress.update(len(answers))
    answers = tuple(found[r.key] for r in wanted)
    if store:
        store.finish({a.key: a for a in (*answers, *found.values())}.values())
    return answers


@door
def greedy_answers(
    model: TransformerLensModel, conversations: Sequence[Messages], hooks: HookPairs = (), *, max_new_tokens: int = 32
) -> list[str]:
    """The words alone of the likeliest answer to each conversation."""
    return [a.text for a in respond(model, conversations, hooks, max_new_tokens=max_new_tokens, temperature=0)]


@dataclass(frozen=True)
class Request:
    """One answer wanted: of which conversation, which sample, the prompt as token ids, the thought that this opens."""

    conversation: Conversation
    sample: int
    prompt: tuple[int, ...]
    thought: str = ""

    @classmethod
    def of(cls, hooked: HookedModel, conversation: Conversation, sample: int, sampling: Sampling) -> "Request":
        """The prompt by the model's chat template, with room for the answer; one that was begun is gone on with."""
        room = None if hooked.max_length is None else hooked.max_length - sampling.max_new_tokens
        if room is not None and room < 1:
            raise ValueError(
                f"max_new_tokens is {sampling.max_new_tokens} and the model takes {hooked.max_length} tokens in all: "
                f"ask for fewer"
            )
        if conversation.answered:
            return cls(conversation, sample, encode_prefilled(hooked.template, conversation, max_length=room))
        prompt, said = prompt_text(hooked.template, conversation)
        ids = encode(hooked.template, conversation, "last", max_length=room).ids
        return cls(conversation, sample, ids, begun_thought(prompt[said:]))

    @property
    def key(self) -> str:
        """The name of its answer."""
        return answer_key(self.conversation, self.sample)


@torch.inference_mode()
def answer_batch(
    hooked: HookedModel, requests: Sequence[Request], hooks: HookPairs, sampling: Sampling
) -> list[Answer]:
    """One batch through Hugging Face's `generate`, padded on the left, with a key-value cache and the hooks on."""
    batch = _left_padded(hooked, [r.prompt for r in requests])
    width = batch["input_ids"].shape[1]
    drawing = [_Draw.of(requests, sampling, width, hooked.device)] if sampling.temperature else []
    with attached(hooked, at_prompt_length(list(hooks), width)) as hf_model:
        stops = hooked.template.closing | end_of_text(hf_model)  # what `generate` writes after them is padding
        with _own_settings(hf_model, stops, sampling.max_new_tokens, _pad(hooked.tokenizer)):
            said = hf_model.generate(**batch, logits_processor=drawing)
    return [_answer(hooked, r, ids, stops) for r, ids in zip(requests, said[:, width:].tolist(), strict=True)]


@contextmanager
def _own_settings(hf_model: Any, stops: frozenset[int], max_new_tokens: int, pad: int) -> Iterator[None]:
    """Inside, the model has these generation settings and no others: `generate` takes from its own what is not told."""
    from transformers import GenerationConfig

    kept = hf_model.generation_config
    hf_model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(stops) or None, pad_token_id=pad
    )
    try:
        yield
    finally:
        hf_model.generation_config = kept


@dataclass(eq=False)
class _Draw:
    """A logits processor that leaves one token: the one whose stretch of the cumulated softmax holds a random number.

    Every row has random numbers of its own, so a row says the same in any batch.
    """

    uniform: Float[Tensor, "batch step"]
    temperature: int | float
    width: int

    @classmethod
    def of(cls, requests: Sequence[Request], sampling: Sampling, width: int, device: torch.device) -> "_Draw":
        rows = []
        for request in requests:
            seed = hashlib.sha256(f"{sampling.seed} {request.key}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "big", signed=True))
            rows.append(torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64))
        return cls(torch.stack(rows).to(device), sampling.temperature, width)

    def __call__(self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        cumulated = (scores.double() / self.temperature).softmax(-1).cumsum(-1)
        mark = self.uniform[:, input_ids.shape[1] - self.width, None] * cumulated[:, -1:]
        drawn = (cumulated <= mark).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def in_batches(
    hooked: HookedModel, todo: Sequence[Request], hooks: HookPairs, sampling: Sampling, batch_size: int
) -> Iterator[list[Answer]]:
    """Batch by batch, in order; where memory runs out, batches are halved until they fit."""
    done = 0
    while done < len(todo):
        try:
            answers = answer_batch(hooked, todo[done : done + batch_size], hooks, sampling)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            continue
        yield answers
        done += len(answers)


def _answer(hooked: HookedModel, request: Request, ids: list[int], stops: frozenset[int]) -> Answer:
    end = next((i + 1 for i, token in enumerate(ids) if token in stops), None)
    tokens = tuple(ids[:end])
    spoken = tokens[:-1] if end and tokens[-1] in hooked.template.closing else tokens
    if request.conversation.answered:  # blanks belong to what was begun, and decoders drop one before a first word
        begun, whole = (_words(hooked.tokenizer, t) for t in (request.prompt, request.prompt + spoken))
        text = whole[len(begun) :].rstrip()
    else:
        text = (request.thought + _words(hooked.tokenizer, spoken)).strip()
    return Answer(request.conversation, text, request.sample, tokens, end is not None)


def _words(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as text, without special tokens but for those that mark where a thought opens and closes."""
    special = {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    kept = [token for token in ids if token not in special or marks_thought(special[token])]
    return tokenizer.decode(kept, skip_special_tokens=False)


def end_of_text(hf_model: Any) -> frozenset[int]:
    """The ids at which a model ends a text, by its generation settings or else by its configuration."""
    ids = hf_model.generation_config.eos_token_id
    ids = hf_model.config.get_text_config().eos_token_id if ids is None else ids
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def _asked(messages: Messages) -> Conversation:
    c = Conversation.of(messages)
    return Conversation(c.messages[:-1], c.group, c.domain, c.fields) if c.answered else c


def _settings(hooked: HookedModel, hooks: HookPairs, sampling: Sampling) -> dict[str, Any]:
    return {"model": hooked.identity, "hooks": described(hooks), **asdict(sampling)}


def _left_padded(hooked: HookedModel, prompts: Iterable[Sequence[int]]) -> dict[str, Int[Tensor, "batch pos"]]:
    rows = list(prompts)
    width, pad = max(map(len, rows)), _pad(hooked.tokenizer)
    ids = torch.tensor([[pad] * (width - len(p)) + [*p] for p in rows], device=hooked.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in rows], device=hooked.device)
    return {"input_ids": ids, "attention_mask": mask}


def _pad(tokenizer: Any) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
