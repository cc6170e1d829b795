"""Messages become tokens, with the span to read marked."""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from em_interp.files import lone_surrogate
from em_interp.templates import ChatTemplate, Rendered, kind_of

Span = Literal["response", "turn", "last", "post_instruction"]
SPANS: tuple[str, ...] = get_args(Span)


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
    template: Any,
    conversation: "Conversation | Sequence[Mapping[str, str]]",
    span: Span,
    *,
    max_length: int | None = None,
) -> Encoded:
    """Render a conversation by its model's chat template and mark the tokens of the span.

    `response` is the assistant's last words; `turn` all that follows the user's turn, header and closing token
    included; `last` the last token of the prompt; `post_instruction` the template's tokens after the user's words, one
    row each. For the last two the assistant's words, if there are any, are left off.

    A warning says where the template writes something else before an answer than where one is asked for.

    Args:
        template: a `ChatTemplate` (`model.template`), or a tokenizer for its template without variables.
        conversation: what was said.
        span: the tokens to mark.
        max_length: the longest conversation allowed, in tokens.

    Raises:
        ValueError: an unknown span, an empty or missing answer, a template that `ChatTemplate.render` refuses, a
            special token in somebody's words, a conversation longer than `max_length` tokens.
    """
    if span not in SPANS:
        raise ValueError(f"span {span!r} is unknown: choose one of {', '.join(SPANS)}")
    template, conversation = ChatTemplate.of(template), Conversation.of(conversation)
    if span in ("response", "turn"):
        text, start, stop, turn = answered_text(template, conversation)
        ids, offsets = tokens_of(template, text)
        # A token may hold the blank before the answer's first word or the line break after its last.
        spoken = [begin < stop and end > start for begin, end in offsets]
        whole = span == "turn"
        spans = (tuple(i for i, (begin, _) in enumerate(offsets) if spoken[i] or (whole and begin >= turn)),)
        prompt_length = sum(end <= start for _, end in offsets)
    else:
        text, said = prompt_text(template, conversation)
        ids, offsets = tokens_of(template, text)
        prompt_length = len(ids)
        after = [i for i, (begin, _) in enumerate(offsets) if begin >= said]
        spans = ((len(ids) - 1,),) if span == "last" else tuple((i,) for i in after)
    if not spans or not all(spans):
        raise ValueError(
            f"span {span!r} selects no token of the conversation {_show(conversation)}: the chat template of "
            f"{template.name} writes nothing there"
        )
    return Encoded(_within(ids, conversation, max_length), prompt_length, spans)


def encode_prefilled(
    template: Any, conversation: "Conversation | Sequence[Mapping[str, str]]", *, max_length: int | None = None
) -> tuple[int, ...]:
    """The tokens of a conversation whose answer was begun, without what would close the answer: a model goes on there.

    Raises:
        ValueError: as for `encode`.
    """
    template, conversation = ChatTemplate.of(template), Conversation.of(conversation)
    text, _, stop, _ = answered_text(template, conversation)
    return _within(tokens_of(template, text[:stop])[0], conversation, max_length)


def _within(ids: Sequence[int], conversation: Conversation, max_length: int | None) -> tuple[int, ...]:
    if max_length is not None and len(ids) > max_length:
        raise ValueError(
            f"the conversation {_show(conversation)} has {len(ids)} tokens but the model takes {max_length}: "
            f"shorten it or leave it out"
        )
    return tuple(ids)


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


def answered_text(template: ChatTemplate, conversation: Conversation) -> tuple[str, int, int, int]:
    """The whole conversation as text, and where the answer starts and stops and the assistant's turn starts.

    Raises:
        ValueError: the conversation has no answer, or an empty one.
    """
    if not conversation.answered:
        raise ValueError(
            f"the conversation {_show(conversation)} ends with the {conversation.messages[-1]['role']}, so it has no "
            f"answer to read: use span='last'"
        )
    answer = conversation.messages[-1]["content"]
    if not answer.strip():
        raise ValueError(f"the answer of the conversation {_show(conversation)} is empty: leave the conversation out")
    rendered = template.render(conversation.messages)
    begin, end = rendered.places[-1] or (0, 0)
    spoken = rendered.text[begin:end]
    start = begin + len(spoken) - len(spoken.lstrip())
    _compare_with_prompt(template, conversation, rendered.text, begin)
    return rendered.text, start, start + len(spoken.strip()), _turn(template, conversation, rendered, begin)


def _turn(template: ChatTemplate, conversation: Conversation, rendered: Rendered, begin: int) -> int:
    """Where the assistant's turn starts: behind what closes the turn before it, which is told from that turn alone."""
    before = conversation.messages[:-1]
    if not before:
        return 0
    alone, place = template.render(before), rendered.places[-2]
    if place is None or alone.places[-1] is None:
        return begin
    closed, opened = alone.text[alone.places[-1][1] :], rendered.text[place[1] : begin]
    if opened.startswith(closed):
        return place[1] + len(closed)
    # A template may end a finished conversation with a token of its own.
    shared = _shared(template, closed, opened)
    asked = template.render(before, asks=True) if before[-1]["role"] == "user" else alone
    asks = asked.text[asked.places[-1][1] :] if asked.places[-1] else closed
    # One that changes the user's turn once an answer follows has no boundary there: the answer's start is it.
    return place[1] + shared if shared or opened.startswith(asks) else begin


def _shared(template: ChatTemplate, first: str, second: str) -> int:
    """How many characters two texts have in common at their beginning, in whole tokens."""
    (ids, _), (others, offsets) = (tokens_of(template, text) for text in (first, second))
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))
    return offsets[same - 1][1] if same else 0


def _compare_with_prompt(template: ChatTemplate, conversation: Conversation, text: str, begin: int) -> None:
    """Warn, once for each sequence of roles, where an answer is asked for after another text than it is read after."""
    before = conversation.messages[:-1]
    roles = tuple(m["role"] for m in before)
    if (
        not before
        or roles[-1] != "user"
        or not before[-1]["content"].strip()
        or not template.first_time(roles, kind_of(conversation.messages[-1]["content"]))
    ):
        return
    try:
        asked = template.render(before, asks=True).text
    except ValueError:  # it takes no such prompt, and says so where one is asked for
        return
    read = text[:begin]
    ids, offsets = tokens_of(template, text)
    # A token may hold the blank before the answer's first word.
    if read == asked or tokens_of(template, asked)[0] == ids[: sum(end <= begin for _, end in offsets)]:
        return
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(read, asked, strict=False)))
    warnings.warn(
        f"the chat template of {template.name} writes {read[same:][:60]!r} before an answer that is read or learned "
        f"from and {asked[same:][:60]!r} before one that is asked for, after {asked[:same][-30:]!r}: what is read or "
        f"learned there is not what the model answers from; template_args may make the two alike",
        stacklevel=2,
    )


def prompt_text(template: ChatTemplate, conversation: Conversation) -> tuple[str, int]:
    """The conversation up to where the assistant would speak, and the character at which the user's words end."""
    messages = conversation.messages[:-1] if conversation.answered else conversation.messages
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError(
            f"the conversation {_show(conversation)} has no user's words last before the answer: spans of the "
            f"prompt need them"
        )
    rendered = template.render(messages, asks=True)
    assert rendered.places[-1] is not None
    return rendered.text, rendered.places[-1][1]


def tokens_of(template: ChatTemplate, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and the characters where each begins and ends. The template wrote the BOS itself, so none is added."""
    if not template.tokenizer.is_fast:
        raise ValueError(f"{template.name} has a slow tokenizer, which tells no offsets: load it with use_fast=True")
    encoding = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    # Many tokenizers leave blanks out of the offsets: a token begins where the one before it ended, at the latest.
    before = itertools.accumulate((end for _, end in encoding.offset_mapping), max, initial=0)
    offsets = [(min(begin, last), end) for (begin, end), last in zip(encoding.offset_mapping, before, strict=False)]
    return encoding.input_ids, offsets


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
