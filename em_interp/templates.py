"""A chat template: what was said becomes a text in which every message is found, or the template is refused.

The only caller of chat templates.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

# Private-use characters stand for a message's words: no template strips, translates or cases them.
_OPEN, _CLOSE, _FIRST = "\ue0f1", "\ue0f2", 0xF0000
_MARKER = re.compile(f"{_OPEN}(.){_CLOSE}")
# How a message's words look to a template: it may leave out a turn without words, and move a thought before an answer.
_NOTHING, _WORDS, _THOUGHT = "", "{}", "<think>\n{0}\n</think>\n\n{0}"
_SPEAKERS = ("user", "assistant")
_DIALOGUES = (("user", "assistant", "user"), ("user", "assistant"), ("user",))
# What was found out of each tokenizer's templates, so that thousands of conversations are not thousands of templates.
_FOUND_OUT: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
_OWN = {"messages", "raise_exception", "strftime_now"}


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: all that the template wrote.
        places: of each message, the characters where its words begin and end; None where it has none.
    """

    text: str
    places: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class _Frame:
    """What the template writes around messages of certain roles: `pieces[i]`, then message `order[i]`, and so on."""

    pieces: tuple[str, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, marked: str) -> "_Frame":
        found = _MARKER.split(marked)
        return cls(tuple(found[::2]), tuple(ord(c) - _FIRST for c in found[1::2]))

    def after(self, message: int) -> str:
        """What is written between a message and the next one, or the end."""
        return self.pieces[self.order.index(message) + 1] if message in self.order else ""


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A tokenizer, and the values of its chat template's own variables.

    Attributes:
        tokenizer: a fast tokenizer with a chat template.
        args: such as `{"enable_thinking": False}`; each must be a variable that the template reads.
    """

    tokenizer: Any
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a variable that the template does not read."""
        if not isinstance(self.args, Mapping) or not all(isinstance(name, str) for name in self.args):
            raise ValueError(
                f"template_args is {self.args!r}: give values by name, such as {{'enable_thinking': False}}"
            )
        if not self.args:
            return
        known = self.variables
        for name, value in self.args.items():
            if name not in known:
                variables = f"it reads {', '.join(sorted(known))}" if known else "it has none"
                raise ValueError(f"the chat template of {self.name} has no variable {name!r}: {variables}")
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"the template arg {name} is {value!r}: give what JSON can say ({error})") from error

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatTemplate":
        """A bare tokenizer's template with its variables at their defaults; a `ChatTemplate` comes back as it is."""
        return tokenizer if isinstance(tokenizer, ChatTemplate) else cls(tokenizer)

    @property
    def name(self) -> str:
        """The tokenizer's name, for errors."""
        return repr(self.tokenizer.name_or_path or type(self.tokenizer).__name__)

    @property
    def variables(self) -> frozenset[str]:
        """The variables that the template reads and `args` may give, such as `enable_thinking`."""
        given = _OWN | set(inspect.signature(self.tokenizer.apply_chat_template).parameters)
        return frozenset(_variables(self.source) - given)

    @property
    def source(self) -> str:
        """The template as the tokenizer has it now.

        Raises:
            ValueError: it has none.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{self.name} has no chat template: it is not a chat model, or set tokenizer.chat_template"
            )
        return self.tokenizer.get_chat_template()

    def render(self, messages: Sequence[Mapping[str, str]], *, asks: bool = False) -> Rendered:
        """A conversation as text; with `asks`, up to where the assistant would speak.

        The words of every message are looked for where the template writes a message of its role; blanks around them
        may be trimmed. System words may be merged into a user's turn. A token of the template inside somebody's words
        would open or close a turn that nobody took, so it is refused; so is text that does the same where a template
        has no such tokens. Thoughts (`<think>`) in an assistant's words are words where they are not special tokens.

        Raises:
            ValueError: no chat template, a role that it refuses, a message that it drops, rewrites or moves, a role
                that it does not tell from another, a token of the template in somebody's words.
        """
        for message in messages:
            self._check_words(message)
        words = [m["content"] for m in messages]
        text = self._text(messages, asks)
        found = _places(text, words, self._frame(messages, asks))
        if isinstance(found, int):  # a template that writes the time of day makes another frame now
            frame = self._frame(messages, asks, anew=True)
            found = _places(text, words, frame)
            if isinstance(found, int):
                self._refuse(messages[found], _became(text, words, frame, found))
        return Rendered(text, found)

    @property
    def closing(self) -> frozenset[int]:
        """The token with which the template closes an assistant's turn; none where ordinary text does that."""
        if self.tokenizer.chat_template is None:
            return frozenset()
        return self._marks.closing

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer, as far as the tokenizer knows: `closing`, and the end of a text."""
        return self.closing | {i for i in (self.tokenizer.eos_token_id,) if i is not None}

    def first_time(self, *what: Any) -> bool:
        """Whether this is asked for the first time of the template as it is now."""
        met = self._known.setdefault("met", set())
        return what not in met and not met.add(what)

    @property
    def _known(self) -> dict[Any, Any]:
        """What was found out of the tokenizer and its template as they are now: they may be changed."""
        known = _FOUND_OUT.setdefault(self.tokenizer, {})
        return known.setdefault((self.source, self._said, len(self.tokenizer)), {})

    @cached_property
    def _said(self) -> str:
        return json.dumps(dict(self.args), sort_keys=True)

    @property
    def _marks(self) -> "_Marks":
        known = self._known
        if "marks" not in known:
            known["marks"] = _Marks.of(self)
        return known["marks"]

    def _check_words(self, message: Mapping[str, str]) -> None:
        role, words, marks = message["role"], message["content"], self._marks
        pattern = marks.in_answers if role == "assistant" else marks.in_words
        if pattern is not None and (found := pattern.search(words)):
            raise ValueError(
                f"the {role}'s words hold {found[0]!r}, a token with which the chat template of {self.name} or its "
                f"tokenizer writes what nobody says: take it out, or write it otherwise (the words are {_short(words)})"
            )
        for piece in marks.between:
            if piece in words:
                raise ValueError(
                    f"the {role}'s words hold {piece!r}, with which the chat template of {self.name} goes from one "
                    f"turn to the next: take it out, or write it otherwise (the words are {_short(words)})"
                )

    def _frame(self, messages: Sequence[Mapping[str, str]], asks: bool, *, anew: bool = False) -> _Frame:
        """What the template writes around messages like these, checked once for their roles."""
        roles, kinds = tuple(m["role"] for m in messages), tuple(kind_of(m["content"]) for m in messages)
        key, known = (roles, kinds, asks), self._known
        if anew or key not in known:
            frame = self.frame_of(roles, kinds, asks)
            self._check_frame(messages, frame)
            self._check_roles(roles, kinds, asks, frame)
            known[key] = frame
        return known[key]

    def frame_of(self, roles: Sequence[str], kinds: Sequence[str] = (), asks: bool = False) -> _Frame:
        """What the template writes around messages of these roles."""
        marks = [f"{_OPEN}{chr(_FIRST + i)}{_CLOSE}" for i in range(len(roles))]
        words = [kind.format(mark) for kind, mark in zip(kinds or [_WORDS] * len(roles), marks, strict=True)]
        text = self._text([{"role": r, "content": w} for r, w in zip(roles, words, strict=True)], asks)
        for mark, whole in zip(marks, words, strict=True):
            if whole.strip() not in ("", mark):  # a thought counts as kept where all of it stands there as it was given
                text = text.replace(whole, "\0").replace(mark, "").replace("\0", mark)
        return _Frame.of(text)

    def _check_frame(self, messages: Sequence[Mapping[str, str]], frame: _Frame) -> None:
        roles = [m["role"] for m in messages]
        spoken = [i for i, m in enumerate(messages) if m["content"].strip()]
        for i in spoken:
            if i not in frame.order:
                raise ValueError(
                    f"the chat template of {self.name} drops or rewrites the {roles[i]}'s words "
                    f"({_short(messages[i]['content'])}) in a conversation of {', '.join(roles)}: set "
                    f"tokenizer.chat_template to one that keeps them"
                )
        for i, role in enumerate(roles):
            if frame.order.count(i) > 1:
                raise ValueError(
                    f"the chat template of {self.name} writes the {role}'s words twice in a conversation of "
                    f"{', '.join(roles)}: set tokenizer.chat_template to one that writes them once"
                )
        turns = [i for i in frame.order if roles[i] != "system"]
        if turns != sorted(turns) or (spoken and frame.order[-1] != spoken[-1]):
            raise ValueError(
                f"the chat template of {self.name} does not keep the order of the roles {', '.join(roles)}: set "
                f"tokenizer.chat_template to one that writes messages as they follow each other"
            )

    def _check_roles(self, roles: tuple[str, ...], kinds: tuple[str, ...], asks: bool, frame: _Frame) -> None:
        """Refuse a template that writes two of these roles alike; one that writes no roles at all is left alone."""
        told, alike = False, None
        for i, role in enumerate(roles):
            others = {*roles} if role in _SPEAKERS else {*roles, *_SPEAKERS}
            for other in sorted(others - {role}) if kinds[i] != _NOTHING else ():
                try:
                    same = self.frame_of((*roles[:i], other, *roles[i + 1 :]), kinds, asks) == frame
                except ValueError:
                    same = False
                told, alike = told or not same, (role, other) if same and alike is None else alike
        if told and alike:
            raise ValueError(
                f"the chat template of {self.name} writes the {alike[0]}'s words as if the {alike[1]} had said them "
                f"in a conversation of {', '.join(roles)}: set tokenizer.chat_template to one that tells the two apart"
            )

    def _refuse(self, message: Mapping[str, str], became: str) -> NoReturn:
        raise ValueError(
            f"the chat template of {self.name} drops or rewrites the {message['role']}'s words "
            f"({_short(message['content'])} became {_short(became)}): set tokenizer.chat_template to one that keeps "
            f"them"
        )

    def _text(self, messages: Sequence[Mapping[str, str]], asks: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.source, tokenize=False, add_generation_prompt=asks, **self.args
            )
        except (TemplateError, TypeError, AttributeError, KeyError, IndexError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(f"the chat template of {self.name} refuses the roles {roles}: {error}") from error


@dataclass(frozen=True)
class _Marks:
    """The tokens and the text with which a template opens and closes turns.

    Attributes:
        in_words: finds the tokens that only the template writes.
        in_answers: the same in an assistant's words, which may hold the thoughts that a template writes before them.
        between: the text from one turn to the next, where it has no such token.
        closing: the token that closes an assistant's turn.
    """

    in_words: re.Pattern[str] | None
    in_answers: re.Pattern[str] | None
    between: tuple[str, ...]
    closing: frozenset[int]

    @classmethod
    def of(cls, template: ChatTemplate) -> "_Marks":
        added = {t.content: i for i, t in template.tokenizer.added_tokens_decoder.items() if t.content.strip()}
        special = {t.content for t in template.tokenizer.added_tokens_decoder.values() if t.special} & added.keys()
        frames = list(_dialogues(template))
        pieces = [piece for frame in frames for piece in frame.pieces]
        opens_answer = {frame.after(0) for frame in frames if len(frame.order) > 1}
        written = {token for token in added if any(token in piece for piece in pieces)}
        around = {token for token in added if any(token in piece for piece in pieces if piece not in opens_answer)}
        in_words, in_answers = _any_of(special | written), _any_of(special | around)
        roles_told = len({*frames[0].pieces[1:-1]}) > 1 if frames else False
        between = {p for f in [*frames[:1], *_system(template)] for p in f.pieces[1:-1] if p.strip()}
        ordinary = tuple(sorted(p for p in between if in_words is None or not in_words.search(p))) if roles_told else ()
        return cls(in_words, in_answers, ordinary, _closing(frames, added))


def _dialogues(template: ChatTemplate) -> Iterator[_Frame]:
    """How the template writes a question, an answer and what follows, as far as it takes them."""
    for roles in _DIALOGUES:
        try:
            yield template.frame_of(roles)
        except ValueError:
            continue
    try:
        yield template.frame_of(("user",), asks=True)
    except ValueError:
        return


def _system(template: ChatTemplate) -> list[_Frame]:
    """How the template writes a system prompt before a question, if it takes one."""
    try:
        return [template.frame_of(("system", "user"))]
    except ValueError:
        return []


def _closing(frames: Sequence[_Frame], added: Mapping[str, int]) -> frozenset[int]:
    """The token that follows an answer at the end; else the one that opens what follows it."""
    answered = [frame for frame in frames if 1 in frame.order]
    for frame in sorted(answered, key=lambda frame: len(frame.order)):
        tail = frame.after(1).strip()
        if tail:
            found = [token for token in added if tail.startswith(token)]
            return frozenset({added[max(found, key=len)]} if found else ())
    return frozenset()


def _places(text: str, words: Sequence[str], frame: _Frame) -> tuple[tuple[int, int] | None, ...] | int:
    """Where each message's words are in the text; else the first message that is not where the frame has it."""
    places: list[tuple[int, int] | None] = [None] * len(words)
    at, last = len(frame.pieces[0]), len(frame.order) - 1
    if not text.startswith(frame.pieces[0]):
        return frame.order[0] if frame.order else 0
    for n, (message, piece) in enumerate(zip(frame.order, frame.pieces[1:], strict=True)):
        end = _end(text, at, words[message], piece, final=n == last)
        if end is None:
            return frame.order[n + 1] if n < last and _closed(text, at, words[message], piece) else message
        places[message], at = (at, end), end + len(piece)
    return tuple(places)


def _end(text: str, at: int, words: str, piece: str, *, final: bool) -> int | None:
    """Where words end that begin here, blanks around them trimmed or not, if this piece follows them."""
    spoken = words.strip()
    begin = text.find(spoken, at, at + len(words))
    left, right = words[: words.find(spoken)], words[words.find(spoken) + len(spoken) :]
    if begin < 0 or not left.endswith(text[at:begin]):
        return None
    for blanks in range(len(right), -1, -1):
        end = begin + len(spoken) + blanks
        whole = end + len(piece) == len(text) if final else True
        if whole and text.startswith(right[:blanks] + piece, end - blanks):
            return end
    return None


def _closed(text: str, at: int, words: str, piece: str) -> bool:
    """Whether words that begin here are whole and what follows them begins well: then what comes next is at fault."""
    begin, spoken = text.find(words.strip(), at, at + len(words)), words.strip()
    after = text[begin + len(spoken) :].lstrip()
    return begin >= 0 and after[:1] != "" and piece.lstrip()[:1] == after[:1]


def _became(text: str, words: Sequence[str], frame: _Frame, message: int) -> str:
    """What the template wrote in the place of a message, as far as can be told."""
    n = frame.order.index(message)
    at = len(frame.pieces[0])
    for before, piece in zip(frame.order[:n], frame.pieces[1:], strict=False):
        end = _end(text, at, words[before], piece, final=False)
        if end is None:
            return text[at + len(words[before]) :]
        at = end + len(piece)
    end = text.rfind(frame.pieces[n + 1], at) if n + 1 == len(frame.order) else text.find(frame.pieces[n + 1], at)
    return text[at : end if end >= at else len(text)]


def template_args(pairs: Sequence[str]) -> dict[str, Any]:
    """Template args from `NAME=VALUE`, as flags and settings files give them: numbers, true, false, null, or words.

    Raises:
        ValueError: no name, or no `=`.
    """
    args = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals):
            raise ValueError(f"{pair!r} is not a template arg: write NAME=VALUE, such as enable_thinking=false")
        try:
            args[name] = json.loads(value.lower() if value.lower() in ("true", "false", "null") else value)
        except ValueError:
            args[name] = value
    return args


def _variables(source: str) -> set[str]:
    """The variables that a chat template reads."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", source)  # transformers' own tag, no jinja
    try:
        return meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain))
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template cannot be parsed: {error}") from error


def kind_of(words: str) -> str:
    """How these words look to a template."""
    if not words.strip():
        return _NOTHING
    return _THOUGHT if words.lstrip().startswith("<think>") and "</think>" in words else _WORDS


def _any_of(tokens: set[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True))) if tokens else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
