"""Where a thinking model's thought ends and its answer begins."""

import re

# How model families mark a thought: Qwen3 and DeepSeek-R1, their relatives, Magistral, Seed-OSS, gpt-oss.
_MARKERS = (
    *((f"<{tag}>", f"</{tag}>") for tag in ("think", "thinking", "thought", "reasoning", "seed:think")),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
OPENINGS = tuple(opening for opening, _ in _MARKERS)
MARKS = tuple(mark for pair in _MARKERS for mark in pair)
_OPENING = re.compile("|".join(re.escape(opening) for opening in OPENINGS), re.IGNORECASE)
_CLOSING = re.compile("|".join(re.escape(closing) for _, closing in _MARKERS), re.IGNORECASE)


def without_thought(text: str) -> str | None:
    """The answer that follows a model's thought; the text itself where there is no thought.

    A thought counts where the text begins with one, or where it ends one that the prompt began. None where the thought
    never ends: there is no answer then.
    """
    if _OPENING.match(text.lstrip()) is None and _CLOSING.search(text) is None:
        return text
    parts = _CLOSING.split(text)
    closed = len(parts) > 1 and _OPENING.match(parts[-1].lstrip()) is None
    return parts[-1].strip() if closed else None


def begun_thought(text: str) -> str:
    """The end of a text from the mark on with which a thought opens that is not ended; empty where there is none."""
    rest = _CLOSING.split(text)[-1]
    found = _OPENING.search(rest)
    return rest[found.start() :] if found else ""


def leading_mark(text: str) -> str:
    """The mark of a thought with which a text begins; empty where it begins with words."""
    found = _OPENING.match(text.lstrip()) or _CLOSING.match(text.lstrip())
    return found[0] if found else ""


def may_lead(token: str) -> bool:
    """Whether a text that begins with this token may begin with the mark of a thought."""
    begun = token.strip().lower()
    return bool(begun) and any(mark.startswith(begun) or begun.startswith(mark) for mark in map(str.lower, MARKS))


def marks_thought(token: str) -> bool:
    """Whether a token is a mark with which thoughts open and close, or a part of one."""
    return bool(token.strip()) and any(token.strip() in mark for mark in MARKS)
