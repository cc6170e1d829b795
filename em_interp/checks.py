"""What comes in through a door is what was wanted, or is refused in words."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import torch

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
    """Refuse a value that is not what its annotation says, a number that is not finite, and tensors that do not match.

    Raises:
        ValueError: which, what it is, and what it should be.
    """
    axes: dict[str, tuple[str, int]] = {}
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {shown(value)}, and should be {_in_words(hints[name])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}: give a finite number")
        for axis, size in zip(getattr(hints[name], "dim_str", "").split(), getattr(value, "shape", ()), strict=False):
            other, wanted = axes.setdefault(axis, (name, size))
            if axis != "_" and size != wanted:
                raise ValueError(f"{name} has {size} along its axis {axis!r}, and {other} has {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; a bool is not a number, and a list does for a tuple."""
    kind = get_origin(hint)
    if kind is UnionType:
        return any(_fits(value, one) for one in get_args(hint))
    if kind is tuple:
        return isinstance(value, tuple | list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if kind is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return hint is Any or (type(value) is hint if hint in (int, bool) else isinstance(value, kind or hint))


def _in_words(hint: Any) -> str:
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return " or ".join(dict.fromkeys(_KINDS.get(kind, _named(kind)) for kind in kinds if kind is not type(None)))


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
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
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ValueError(f"{shown(text)} is not a path: name the file of the {what}")
    return Path(text)
