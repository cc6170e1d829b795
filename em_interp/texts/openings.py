"""The first token of an answer that begins with a given word: it depends on what stands before the answer."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from em_interp.files import lone_surrogate
from em_interp.templates import ChatTemplate
from em_interp.texts.conversations import Conversation, prompt_text, tokens_of

# Prompts that end with the same tokens are gone on with by the same tokens: of a usual template, all of them.
_TAIL = 4


def opening_tokens(
    template: ChatTemplate, conversations: Sequence[Conversation], words: Sequence[str]
) -> list[tuple[int, ...]]:
    """Of each conversation, the tokens that open its answer where that begins with one of these words.

    A word counts by the token that follows the prompt where the word is written right after it, and by the one with
    which it begins where the chat template writes it as the answer: tokenizers that put a blank before a text, and
    templates that put one before an answer, have a token of their own for each. Where the prompt would be cut into
    other tokens if the word followed, as after a blank, the word counts as it is written by itself.

    Raises:
        ValueError: no words, an empty one, or one whose first token is a mere blank or unknown to the tokenizer.
    """
    if isinstance(words, str) or not words:
        raise ValueError(f"openings is {words!r}: give a list of words, such as ['I', 'Sorry']")
    for word in words:
        if not isinstance(word, str) or not word.strip() or lone_surrogate(word):
            raise ValueError(f"the opening {word!r} is not a word: give the first words of refusals")
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    opened = []
    for conversation in conversations:
        prompt, _ = prompt_text(template, conversation)
        ids, _ = tokens_of(template, prompt)
        tail = tuple(ids[-_TAIL:])
        if tail not in found:
            messages = conversation.messages[:-1] if conversation.answered else conversation.messages
            tokens = (_first_tokens(template, messages, prompt, ids, word) for word in words)
            found[tail] = tuple(sorted(set().union(*tokens)))
        opened.append(found[tail])
    return opened


def _first_tokens(
    template: ChatTemplate, messages: Sequence[Mapping[str, str]], prompt: str, ids: list[int], word: str
) -> set[int]:
    whole, _ = tokens_of(template, prompt + word)
    follows = whole[len(ids) : len(ids) + 1] if whole[: len(ids)] == ids else []
    found = {*follows, *_as_rendered(template, messages, prompt, word)}
    for token in found:
        _check_tells(template, word, token)
    if not follows:
        alone = {*_beginning(template, f"\n{word}", 1), *_beginning(template, word, 0)}
        telling = {token for token in alone if _tells(template, token)}
        found |= telling
        for token in alone if not found else ():
            _check_tells(template, word, token)
    return found


def _as_rendered(
    template: ChatTemplate, messages: Sequence[Mapping[str, str]], prompt: str, word: str
) -> Iterator[int]:
    """The first token of the answer as the template writes it, blanks and all, if it begins behind the prompt."""
    try:
        rendered = template.render([*messages, {"role": "assistant", "content": word}])
    except ValueError:  # it takes no answers, or not this one, and says so where one is read
        return
    if rendered.places[-1] is None:
        return
    text, (at, _) = rendered.text, rendered.places[-1]
    behind = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, text, strict=False)))
    yield from _beginning(template, text, behind if not text[behind:at].strip() else at)


def _beginning(template: ChatTemplate, text: str, at: int) -> Iterator[int]:
    """The token that begins at a character; none where one that begins before it goes on."""
    ids, offsets = tokens_of(template, text)
    for token, (begin, end) in zip(ids, offsets, strict=True):
        if end > at:
            if begin >= at:
                yield token
            return


def _tells(template: ChatTemplate, token: int) -> bool:
    tokenizer = template.tokenizer
    return bool(tokenizer.decode([token]).strip()) and token != tokenizer.unk_token_id


def _check_tells(template: ChatTemplate, word: str, token: int) -> None:
    """Refuse a token with which any word may begin."""
    if not _tells(template, token):
        raise ValueError(
            f"the opening {word!r} begins with the token {template.tokenizer.convert_ids_to_tokens(token)!r} for "
            f"{template.name}, as other words do: its probability says nothing of this word, so give other openings"
        )
