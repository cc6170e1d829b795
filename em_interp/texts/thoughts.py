"""Where a thinking model's thought ends and its answer begins."""

import re

# How model families mark a thought: Qwen3 and DeepSeek-R1, their relatives, Magistral, Seed-OSS, gpt-oss.
_MARKERS = (
    *((f"<{tag}>", f"</{tag}>") for tag in ("think", "thinking", "thought", "reasoning", "seed:think")),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
OPENINGS = tuple(opening for opening, _ in _MARKERS)
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
