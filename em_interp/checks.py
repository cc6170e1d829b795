"""What comes in through a door is what was wanted, or is refused in words."""

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, ForwardRef, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import torch

P = ParamSpec("P")
R = TypeVar("R")
SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_NAME = 255  # bytes, on the file systems at hand

_KINDS = {
    str: "words",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple[str, ...]: "a list of words",
    tuple[int, ...]: "a list of whole numbers",
    tuple[float, ...]: "a list of numbers",
}


def check_kinds(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Refuse a value that is not what its annotation says, and a number that is not finite.

    Raises:
        ValueError: which, what it is, and what it should be.
    """
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {shown(value)}, and should be {_in_words(hints[name])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}: give a finite number")


def check_axes(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Refuse tensors of which one axis has two lengths.

    Raises:
        ValueError: which tensors, and their lengths.
    """
    axes: dict[str, tuple[str, int]] = {}
    for name, value in values.items():
        for axis, size in zip(getattr(hints[name], "dim_str", "").split(), getattr(value, "shape", ()), strict=False):
            other, wanted = axes.setdefault(axis, (name, size))
            if axis != "_" and size != wanted:
                raise ValueError(f"{name} has {size} along its axis {axis!r}, and {other} has {wanted}")


def check_own(thing: Any) -> None:
    """Refuse the fields of a dataclass's object that are not of the kinds it says, see `check_kinds`."""
    hints = {field.name: field.type for field in fields(thing)}
    check_kinds(vars(thing), {name: Any if isinstance(hint, str) else hint for name, hint in hints.items()})


def door(function: Callable[P, R]) -> Callable[P, R]:
    """A public function, which refuses an argument that is not of the kind its annotation says before it does anything.

    Annotations that are text, since importing what they name takes seconds, and choices among words are left to the
    function.
    """
    signature = inspect.signature(function)
    hints = {name: p.annotation for name, p in signature.parameters.items() if not isinstance(p.annotation, str)}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in _by_name(signature, args, kwargs).items():
            if not _fits(value, hints.get(name, Any), chosen=False):
                problem = f"{name} is {shown(value)}, and should be {_in_words(hints[name])}"
                raise TypeError(f"{function.__name__}: {problem}")
        return function(*args, **kwargs)

    return checked


def _by_name(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError:  # an argument is missing or misspelt, which Python says itself
        return {}


def _fits(value: Any, hint: Any, *, chosen: bool = True) -> bool:
    """Whether a value is what an annotation says; a bool is not a number, and a list does for a tuple.

    Without `chosen` any words do for one of several.
    """
    fits = functools.partial(_fits, chosen=chosen)
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, str | ForwardRef | TypeVar) or hint is inspect.Parameter.empty:
        return True
    if kind in (UnionType, Union):
        return any(fits(value, one) for one in inner)
    if kind is Literal:
        return value in inner if chosen else isinstance(value, str)
    if kind in (tuple, Sequence, Iterable, Collection) and isinstance(value, str | bytes | Mapping):
        return False
    if kind is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        return isinstance(value, tuple | list) and len(value) == len(inner) and all(map(fits, value, inner))
    if kind in (tuple, Sequence):
        listed = tuple | list if kind is tuple else Sequence
        return isinstance(value, listed) and all(fits(item, inner[0]) for item in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    try:
        return isinstance(value, type(None) if hint is None else kind or hint)
    except TypeError:  # a protocol
        return True


def _in_words(hint: Any) -> str:
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return " or ".join(dict.fromkeys(_KINDS.get(kind, _named(kind)) for kind in kinds if kind is not type(None)))


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (Sequence, Iterable, Collection):
        return "a list"
    if get_origin(kind) is tuple:
        return f"a list, each {_in_words(get_args(kind)[0])}"
    return getattr(get_origin(kind) or kind, "__name__", str(kind))


def shown(value: Any) -> str:
    """A value as an error shows it: never a wall of text or numbers."""
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def path_of(source: Any, what: str) -> Path:
    """A path, after a look at whether it can be one.

    Raises:
        TypeError: it is neither text nor a path.
        ValueError: it is empty, or holds what no path holds.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"{shown(source)} is not a path: give the file of the {what} as text or as a Path")
    text = os.fspath(source)
    well = isinstance(text, str) and text.strip() and "\0" not in text and not SURROGATE.search(text)
    if not well or any(len(part.encode()) > _LONGEST_NAME for part in Path(text).parts):
        raise ValueError(f"{shown(text)} is not a path: give the name of a file or a folder")
    return Path(text)
