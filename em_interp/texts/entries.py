"""What an entry of a file says: words that are asked, the question they belong to, and remarks; no more is read."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from em_interp.texts.conversations import checked_messages
from em_interp.texts.records import Unquoted

# What changes the text that a model reads, or what it is said to have answered, and is not read from a file.
_READ = "put it into the words or the messages"
_ANSWERS = "answers are read from messages, or from positive and negative"
_CHANGES_WHAT_IS_READ = {
    **dict.fromkeys(("input", "context", "history", "few_shot", "examples", "document", "documents"), _READ),
    **dict.fromkeys(("developer", "prefill", "assistant_prefix", "prefix", "suffix"), _READ),
    **dict.fromkeys(
        ("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"), "tools are not read"
    ),
    **dict.fromkeys(("image", "images", "audio", "video", "videos"), "only text is read"),
    **dict.fromkeys(("template", "chat_template", "chat_template_kwargs", "template_args"), "say it where it is read"),
    **dict.fromkeys(("output", "response", "completion", "answer", "answers", "chosen", "rejected"), _ANSWERS),
    "conversations": _ANSWERS,
    "weight": "every conversation weighs the same here",
}
ASK = ("messages", "question", "prompt", "instruction", "paraphrases")
_SYSTEM = ("system", "system_prompt", "system_message")
# How a model is made to answer, which a question file cannot say: see `respond`.
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_new_tokens", "seed", "stop", "logit_bias"),
    *("num_samples", "n_samples", "n", "frequency_penalty", "presence_penalty", "repetition_penalty"),
)
_STRUCTURE = (*ASK, *_SYSTEM, "positive", "negative", "label", "group", "domain", "split", "pair")


def checked_keys(entry: Any, *, wanted: str, remarks: Sequence[str] | None = None) -> dict[str, Any]:
    """An entry as a mapping whose keys are understood, those that say nothing (null) left out.

    `remarks` are all the keys that are understood beside those of the structure; where it is None any other key is a
    remark, unless it changes what is said or nearly is a key of the structure.

    Raises:
        ValueError: not a mapping, or a key that is not understood (it is named).
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"{shown(entry)} is not an object: write {{…}} with {wanted}")
    for key, value in entry.items():
        if not isinstance(key, str) or isinstance(key, Unquoted):
            raise ValueError(f"the key {key!r} is not a word: write it in quotes")
        if key in _CHANGES_WHAT_IS_READ:
            if value not in (None, "", [], {}):
                raise ValueError(f"the key {key!r} changes what is said and is not read: {_CHANGES_WHAT_IS_READ[key]}")
        elif key not in _STRUCTURE:
            _check_remark(key, remarks)
    said = {key: value for key, value in entry.items() if value is not None and key not in _CHANGES_WHAT_IS_READ}
    return said | {key: None for key in ("positive", "negative") if key in entry and key not in said}


def _check_remark(key: str, remarks: Sequence[str] | None) -> None:
    known = tuple(dict.fromkeys((*_STRUCTURE, *(remarks or ()))))
    plain = key.casefold().strip().replace("-", "_").replace(" ", "_")
    # Compound names such as question_id are names of their own, near as they may be.
    near = [plain] if plain in known else [] if "_" in plain else difflib.get_close_matches(plain, known, 1, 0.82)
    if remarks is None and not near:
        return
    if remarks is not None and key in _SAMPLING:
        raise ValueError(f"the key {key!r} changes how it is answered: say that to respond(…), and take it out")
    if remarks is None or key not in remarks:
        advice = f"did you mean {near[0]!r}?" if near else "put remarks under 'metadata'"
        listed = f" (understood are {', '.join(known)})" if remarks else ""
        raise ValueError(f"the key {key!r} is not understood: {advice}{listed}")


def asks_by(entry: Mapping[str, Any], keys: Sequence[str] = ASK) -> str:
    """The key under which an entry asks; empty where there is none.

    Raises:
        ValueError: two keys ask, and not for the same.
    """
    found = [key for key in keys if key in entry]
    if found[:1] == ["messages"] and isinstance(entry["messages"], list):
        said = [m.get("content") for m in entry["messages"] if isinstance(m, Mapping)]
        found = ["messages", *(key for key in found[1:] if entry[key] not in said)]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found)} both ask: keep one of them")
    return found[0] if found else ""


def messages(entry: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """The messages of an entry, after its system prompt where one stands beside them.

    Raises:
        ValueError: they cannot be read, or there are two system prompts.
    """
    found, said = checked_messages(entry["messages"]), system(entry)
    for message in found:
        more = [key for key in message if key not in ("role", "content") and message[key] not in (None, "", [], {})]
        if more:
            raise ValueError(f"a message has the key {more[0]!r}, and only role and content are read: take it out")
        as_words(message["role"], "role")
        if isinstance(message["content"], Unquoted):
            as_words(message["content"], "content")
    if said and found[0]["role"] == "system":
        raise ValueError("there is a system prompt in the messages and one beside them: keep one of them")
    return ({"role": "system", "content": said}, *found) if said else found


def system(entry: Mapping[str, Any]) -> str:
    """The system prompt of an entry; empty where there is none.

    Raises:
        ValueError: it is not words, or there are two.
    """
    found = [key for key in _SYSTEM if entry.get(key, "") != ""]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found)} are both there: keep one of them")
    return words(entry, found[0]) if found else ""


def words(entry: Mapping[str, Any], key: str) -> str:
    """What stands under a key, which has to be words.

    Raises:
        ValueError: it is something else, or blank.
    """
    return as_words(entry[key], key)


def as_words(value: Any, key: str) -> str:
    """A value that has to be words."""
    if isinstance(value, Unquoted):
        raise ValueError(f"{key} is {str(value)!r} without quotes, which YAML does not read as words: put it in quotes")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is {shown(value)}, and should be words")
    return value


def text_of(entry: Mapping[str, Any], key: str) -> str:
    """What an entry says under a key, as text: a list or an object as JSON; empty where it says nothing."""
    value = entry.get(key)
    if value is None:
        return ""
    return str(value) if isinstance(value, str | int | float) else as_json(value)


def fields_of(entry: Mapping[str, Any], *known: str) -> dict[str, str]:
    """Every remark of an entry as text: what is neither `known` nor its system prompt."""
    return {key: text_of(entry, key) for key in entry if key not in (*known, *_SYSTEM)}


def asked(words: str, system: str = "", answer: str | None = None) -> tuple[Mapping[str, str], ...]:
    """The messages of one turn."""
    said = (("system", system), ("user", words), ("assistant", answer))
    return tuple({"role": role, "content": content} for role, content in said if content)


def question(words: str, system: str = "") -> str:
    """What names a question where nothing else does: its words, after the system prompt, since another is another."""
    return f"{system}\n\n{words}" if system else words


def shown(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value) if isinstance(value, str) else as_json(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def listed(keys: Mapping[str, Any]) -> str:
    """The keys of an entry as an error lists them, in one line."""
    text = " ".join(", ".join(keys).split())
    return (text if len(text) <= 200 else f"{text[:199]}…") or "none"


def as_json(value: Any) -> str:
    """A value of a file as JSON.

    Raises:
        ValueError: it is nested too deeply.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:
        raise ValueError("the value is nested too deeply") from error
