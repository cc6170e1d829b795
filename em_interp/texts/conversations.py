"""Messages become tokens, with the span to read marked: the only caller of chat templates."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from em_interp.files import lone_surrogate

Span = Literal["response", "turn", "last", "post_instruction"]
SPANS: tuple[str, ...] = get_args(Span)

# Private-use characters: no template strips, translates or cases them, and no text of ours contains them.
_USER, _ASSISTANT = "\ue0f1\ue0f2\ue0f1", "\ue0f3\ue0f4\ue0f3"


@dataclass(frozen=True)
class Conversation:
    """Messages in the field's own form, and what is known of them.

    Attributes:
        messages: `{"role": …, "content": …}`, in order.
        group: the question this conversation belongs to, the unit of every resampling; what the user asked last,
            unless told. Conversations of several turns that end with the same words need one of their own each.
        domain: what it is about.
        fields: whatever else its line in a file said (tone, split, …).
    """

    messages: tuple[Mapping[str, str], ...]
    group: str = ""
    domain: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no conversation; name the group."""
        checked_messages(self.messages)
        for name, text in {"group": self.group, "domain": self.domain, **self.fields}.items():
            _check_characters(name, text)
        if not self.group:
            asked = [m["content"] for m in self.messages if m["role"] == "user"]
            object.__setattr__(self, "group", asked[-1] if asked else "")

    @classmethod
    def of(cls, messages: "Conversation | Sequence[Mapping[str, str]]") -> "Conversation":
        """A plain list of messages, wrapped."""
        return messages if isinstance(messages, Conversation) else cls(checked_messages(messages))

    @property
    def answered(self) -> bool:
        """Whether the last word is the assistant's."""
        return self.messages[-1]["role"] == "assistant"


def checked_messages(messages: Any) -> tuple[Mapping[str, str], ...]:
    """Messages from wherever they come, after a look at each: a role and its words."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"{messages!r} is no conversation: write a list of messages, one at least")
    for message in messages:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f"{message!r} is no message: write {{'role': 'user', 'content': 'words'}}")
        _check_characters(f"the {message['role']}'s message", message["content"])
    return tuple(messages)


def _check_characters(name: str, text: str) -> None:
    """Refuse what is no text: neither tokenizers nor files take it."""
    if found := lone_surrogate(text):
        raise ValueError(f"{name} holds {found}, which no tokenizer takes: repair the text")


@dataclass(frozen=True)
class Encoded:
    """One conversation as token ids; `spans` lists the tokens read: one list, or one a row for `post_instruction`."""

    ids: tuple[int, ...]
    prompt_length: int
    spans: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Conversations of like length, padded on the right.

    Attributes:
        index: which conversations of the list these are.
        ids: token ids; the padding is id 0 under a zero mask.
        mask: 1 at tokens, 0 at padding.
        prompt_length: how many tokens stand before the assistant's last words.
        spans: the tokens read, row by row.
    """

    index: tuple[int, ...]
    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    prompt_length: Int[Tensor, " batch"]
    spans: tuple[tuple[tuple[int, ...], ...], ...]


def encode(
    tokenizer: Any,
    conversation: "Conversation | Sequence[Mapping[str, str]]",
    span: Span,
    *,
    max_length: int | None = None,
) -> Encoded:
    """Render a conversation by its model's chat template and mark the tokens of the span.

    `response` is the assistant's last words; `turn` all that follows the user's turn, header and closing token
    included; `last` the last token of the prompt; `post_instruction` the template's tokens after the user's words, one
    row each. For the last two the assistant's words, if there are any, are left off.

    Raises:
        ValueError: an unknown span, an empty or missing answer, a template that drops or rewrites what was said, a
            conversation longer than `max_length` tokens.
    """
    if span not in SPANS:
        raise ValueError(f"span {span!r} is unknown: choose one of {', '.join(SPANS)}")
    conversation = Conversation.of(conversation)
    if span in ("response", "turn"):
        text, start, stop, turn = _with_answer(tokenizer, conversation)
        ids, offsets = _tokens(tokenizer, text)
        # A token may hold the blank before the answer's first word or the line break after its last.
        spoken = [begin < stop and end > start for begin, end in offsets]
        whole = span == "turn"
        spans = (tuple(i for i, (begin, _) in enumerate(offsets) if spoken[i] or (whole and begin >= turn)),)
        prompt_length = sum(end <= start for _, end in offsets)
    else:
        text, said = _prompt(tokenizer, conversation)
        ids, offsets = _tokens(tokenizer, text)
        prompt_length = len(ids)
        after = [i for i, (begin, _) in enumerate(offsets) if begin >= said]
        spans = ((len(ids) - 1,),) if span == "last" else tuple((i,) for i in after)
    if not spans or not all(spans):
        raise ValueError(
            f"span {span!r} selects no token of the conversation {_show(conversation)}: the chat template of "
            f"{_template_name(tokenizer)} writes nothing there"
        )
    if max_length is not None and len(ids) > max_length:
        raise ValueError(
            f"the conversation {_show(conversation)} has {len(ids)} tokens but the model takes {max_length}: "
            f"shorten it or leave it out"
        )
    return Encoded(tuple(ids), prompt_length, spans)


def batches(encoded: Sequence[Encoded], batch_tokens: int) -> Iterator[Batch]:
    """Pad conversations into batches of at most `batch_tokens` tokens, padding counted, the longest first.

    Sorted by length there is next to no padding, and what would run out of memory does so in the first batch.
    """
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i].ids), encoded[i].ids))
    while order:
        width = len(encoded[order[0]].ids)
        count = max(1, batch_tokens // width)
        yield _pad([encoded[i] for i in order[:count]], tuple(order[:count]), width)
        order = order[count:]


def _pad(encoded: Sequence[Encoded], index: tuple[int, ...], width: int) -> Batch:
    ids = torch.zeros(len(encoded), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(encoded):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        mask[row, : len(item.ids)] = 1
    lengths = torch.tensor([item.prompt_length for item in encoded])
    return Batch(index, ids, mask, lengths, tuple(item.spans for item in encoded))


def _with_answer(tokenizer: Any, conversation: Conversation) -> tuple[str, int, int, int]:
    """The whole conversation as text, and where the answer starts and stops and the assistant's turn starts."""
    if not conversation.answered:
        raise ValueError(
            f"the conversation {_show(conversation)} ends with the {conversation.messages[-1]['role']}, so it has no "
            f"answer to read: use span='last'"
        )
    answer = conversation.messages[-1]["content"]
    if not answer.strip():
        raise ValueError(f"the answer of the conversation {_show(conversation)} is empty: leave the conversation out")
    before = list(conversation.messages[:-1])
    text = _render(tokenizer, list(conversation.messages))
    marked = _render(tokenizer, [*before, {"role": "assistant", "content": _ASSISTANT}])
    head, found, tail = marked.rpartition(_ASSISTANT)
    spoken = text[len(head) : len(text) - len(tail)]
    if not found or not text.startswith(head) or not text.endswith(tail) or spoken.strip() != answer.strip():
        raise ValueError(
            f"the chat template of {_template_name(tokenizer)} drops or rewrites the assistant's words "
            f"({answer[:40]!r} became {spoken[:40]!r}): set tokenizer.chat_template to one that keeps them"
        )
    start = len(head) + len(spoken) - len(spoken.lstrip())
    user_turn = _render(tokenizer, before) if before else ""
    # A template that changes the user's turn once an answer follows has no boundary there: the answer's start is it.
    turn = len(user_turn) if text.startswith(user_turn) else len(head)
    return text, start, start + len(spoken.strip()), turn


def _prompt(tokenizer: Any, conversation: Conversation) -> tuple[str, int]:
    """The conversation up to where the assistant would speak, and where the user's words end."""
    messages = list(conversation.messages[:-1] if conversation.answered else conversation.messages)
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError(
            f"the conversation {_show(conversation)} has no user's words last before the answer: spans of the "
            f"prompt need them"
        )
    words = messages[-1]["content"]
    text = _render(tokenizer, messages, add_generation_prompt=True)
    marked = _render(tokenizer, [*messages[:-1], {"role": "user", "content": _USER}], add_generation_prompt=True)
    head, found, tail = marked.rpartition(_USER)
    said = text[len(head) : len(text) - len(tail)]
    if not found or not text.startswith(head) or not text.endswith(tail) or said.strip() != words.strip():
        raise ValueError(
            f"the chat template of {_template_name(tokenizer)} drops or rewrites the user's words: set "
            f"tokenizer.chat_template to one that keeps them"
        )
    return text, len(text) - len(tail)


def _render(tokenizer: Any, messages: list[Mapping[str, str]], *, add_generation_prompt: bool = False) -> str:
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{_template_name(tokenizer)} has no chat template: it is no chat model, or set tokenizer.chat_template"
        )
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the chat template of {_template_name(tokenizer)} refuses the roles {roles}: {error}"
        ) from error


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and the characters where each begins and ends. The template wrote the BOS itself, so none is added."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{_template_name(tokenizer)} has a slow tokenizer, which tells no offsets: load it with use_fast=True"
        )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    # Many tokenizers leave blanks out of the offsets: a token begins where the one before it ended, at the latest.
    before = itertools.accumulate((end for _, end in encoding.offset_mapping), max, initial=0)
    offsets = [(min(begin, last), end) for (begin, end), last in zip(encoding.offset_mapping, before, strict=False)]
    return encoding.input_ids, offsets


def _template_name(tokenizer: Any) -> str:
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)


def _show(conversation: Conversation) -> str:
    text = conversation.group or conversation.messages[0]["content"]
    return repr(text if len(text) < 60 else text[:57] + "…")


def token_strings(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token as the text it stands for, the blank before a word kept."""
    texts = {}
    for token in set(ids):
        text, piece = tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token)
        texts[token] = f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text
    return tuple(texts[token] for token in ids)
