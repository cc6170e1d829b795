"""The one reader and writer of JSON, TOML and safetensors: files appear whole or not at all, and are read strictly."""

import difflib
import json
import math
import os
import platform
import re
import tempfile
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import torch
from torch import Tensor

from em_interp.checks import SURROGATE, check_axes, check_kinds, path_of, shown

T = TypeVar("T")
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
_MOST_DIGITS = 400
_LONGEST = 80  # characters of what may be a misspelt name
_NOT_TEXT = {
    b"\x1f\x8b": "compressed with gzip",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
}


def write_atomically(path: Path, content: bytes | str) -> Path:
    """Write under a temporary name beside the target, then rename: a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """One JSON value a line, whatever is not ASCII as it is."""
    return write_atomically(path, "".join(json_line(row) for row in rows))


def json_line(row: Any) -> str:
    """One line of a JSONL file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def find_file(source: str | Path, what: str, shipped: Sequence[str], folder: Path, suffix: str = ".jsonl") -> Path:
    """The file at a path, or else the one that ships with the library under that name.

    Raises:
        ValueError: neither is there (the names that ship are listed), or the path is a folder.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"{shown(source)} is not a {what}: give its name or its file")
    path = Path(source)
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir() and str(source) not in ("", *shipped)
    except OSError:  # a whole text, where a path was wanted
        is_folder = False
    if is_folder:
        raise ValueError(f"{str(source)!r} is a folder: name the file in it that holds the {what}")
    if str(source) not in shipped:
        near = difflib.get_close_matches(str(source)[:_LONGEST], shipped, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no {what} {_brief(str(source))}: it is neither a file nor one of {', '.join(shipped)}{meant}"
        )
    return folder / f"{source}{suffix}"


def read_bytes(path: Path) -> bytes:
    """What a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, or cannot be read.
    """
    path = path_of(path, "file")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path.name} is a folder: name the file in it") from error
    except OSError as error:
        raise ValueError(f"{_brief(path.name)} cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, is compressed, or is not UTF-8 text (which line).
    """
    data = read_bytes(path)
    for beginning, kind in _NOT_TEXT.items():
        if data.startswith(beginning):
            raise ValueError(f"{path.name} is not UTF-8 text (it is {kind}): unpack it or convert it to UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"line {line_of(data, error.start)}: byte 0x{data[error.start]:02x}"
        raise ValueError(f"{path.name} is not UTF-8 text ({wrong}): unpack it or convert it to UTF-8") from error
    if "\0" in text:
        wrong = f"line {line_of(text, text.index(chr(0)))}: a zero byte, as in UTF-16 without a mark"
        raise ValueError(f"{path.name} is not UTF-8 text ({wrong}): unpack it or convert it to UTF-8")
    return text


class NotReadJSON(ValueError):
    """JSON that is broken or is not read: what is wrong, and at which character of the text it is."""

    def __init__(self, problem: str, at: int) -> None:
        """`at` counts from 0."""
        super().__init__(problem)
        self.at = at


def parse_json(text: str) -> Any:
    """A JSON value, read strictly: no NaN or Infinity, every key of an object once, no half of a surrogate pair.

    Raises:
        NotReadJSON: what is wrong, and where.
    """
    value, end = decode_json(text, len(text) - len(text.lstrip()))
    if text[end:].strip():
        raise NotReadJSON(f"not JSON: more text follows the value, character {_column(text, end)}", end)
    return value


def lone_surrogate(text: str) -> str:
    """Where a text holds half of a surrogate pair, in words; empty where it holds none."""
    found = SURROGATE.search(text)
    return f"{found[0]!r}, half of a surrogate pair, at character {found.start() + 1}" if found else ""


def decode_json(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at a character, and where it ends, read as strictly as `parse_json` does."""
    try:
        value, end = _JSON.raw_decode(text, at)
        _check_surrogates(value if _ESCAPED.search(text, at, end) else None)
    except json.JSONDecodeError as error:
        after_comma = text[at : error.pos].rstrip().endswith(",") and text[error.pos :].lstrip()[:1] in ("]", "}")
        problem = "a comma stands before the end" if after_comma else error.msg
        raise NotReadJSON(f"not JSON: {problem}, character {_column(text, error.pos)}", error.pos) from error
    except RecursionError as error:
        raise NotReadJSON("the JSON is nested too deeply", at) from error
    except ValueError as error:
        raise NotReadJSON(str(error), at) from error
    return value, end


def _column(text: str, at: int) -> int:
    """Which character of its line it is, from 1."""
    return at - text.rfind("\n", 0, at)


def _check_surrogates(value: Any) -> None:
    for words in _strings(value):
        if found := lone_surrogate(words):
            raise ValueError(f"a text holds {found}, which no tokenizer takes: repair the text")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, every key of which is there once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [key, *_] = [k for k, n in Counter(k for k, _ in pairs).items() if n > 1]
        raise ValueError(f"the key {key!r} is there twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number: write null")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{_brief(number)} is too large for a number")
    return value


def _whole(number: str) -> int:
    if len(number) > _MOST_DIGITS:
        raise ValueError(f"{_brief(number)} has too many digits for a number")
    return int(number)


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole)


def line_of(text: str | bytes, at: int) -> int:
    """The number of the line in which a character or a byte is, from 1."""
    return 1 + (text.count("\n", 0, at) if isinstance(text, str) else text.count(b"\n", 0, at))


def _brief(value: str) -> str:
    return repr(value if len(value) <= 80 else f"{value[:79]}…")


def write_tensors(
    path: Path, what: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any], *, key: str | None = None
) -> Path:
    """Tensors as safetensors, with what they are (`direction`) and a record of the rest as JSON metadata.

    `key` is the metadata's name for the record, `what` unless told.
    """
    from safetensors.torch import save

    # safetensors writes neither views nor one tensor under two names, so each is copied.
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    metadata = {"format": _format(what), key or what: json.dumps(dict(record)), "torch": torch.__version__}
    return write_atomically(path, save(copies, metadata=metadata))


def read_tensors(path: str | Path, what: str, *, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote: the tensors and the record, equal to the bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, is not safetensors, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    path = path_of(path, what)
    if not path.is_file():
        advice = ", which is a folder: name the file in it" if path.is_dir() else ""
        raise FileNotFoundError(f"no {what} at {path}{advice}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _format(what):
                raise ValueError(
                    f"{path} is a safetensors file but not a {what} (format {metadata.get('format')!r}, wanted "
                    f"{_format(what)!r}): this library writes them with .save"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, UnicodeError) as error:
        raise ValueError(
            f"{path} is truncated or is not a safetensors file ({error}): save the {what} again"
        ) from error
    try:
        record = parse_json(metadata[key or what])
        check_kinds({"the record": record}, {"the record": dict})
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} has no record of its {what} that can be read ({error}): save it again") from error
    return tensors, record


def read_object(path: str | Path, what: str, cls: type[T], *, derived: Collection[str] = ()) -> T:
    """An object of a dataclass from what `write_tensors` wrote, its fields tensors and record together.

    What is `derived` follows from the others, was written for other readers, and is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for `read_tensors`; a field that is missing, is not one of these, or is of another kind; or what
            the object itself refuses.
    """
    tensors, record = read_tensors(path, what)
    written = {name: value for name, value in {**record, **tensors}.items() if name not in derived}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
    optional = [field.name for field in fields(cast(Any, cls)) if field.default is not MISSING]
    check_fields(path, what, found, get_type_hints(cls), optional)
    with damaged(path):
        return cls(**found)


@contextmanager
def damaged(path: str | Path) -> Iterator[None]:
    """Inside, what an object refuses of its fields is said of the file that they come from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_fields(
    path: str | Path, what: str, found: Mapping[str, Any], hints: Mapping[str, Any], optional: Collection[str] = ()
) -> None:
    """Refuse the fields of a file that are missing, unknown or of another kind."""
    missing = [name for name in hints if name not in found and name not in optional]
    unknown = [name for name in found if name not in hints]
    if missing or unknown:
        said = f"has no {', '.join(missing)}" if missing else f"holds {shown(unknown[0])}, which no {what} has"
        raise ValueError(f"{path} {said}: it was not written by {what.capitalize()}.save, so save the {what} again")
    try:
        check_kinds(found, hints)
        check_axes(found, hints)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; save the {what} again") from error


def _format(what: str) -> str:
    return f"em_interp.{what}/1"


def read_toml(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """The values of a TOML file by key, arrays as tuples.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not TOML, or has a key that is not `known` (the nearest one is named).
    """
    text = read_text(path)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not TOML: {error}") from error
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise ValueError(f"{path.name} has an unknown key {key!r}: {advice}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def versions(*libraries: str) -> dict[str, str]:
    """The versions at work: of em_interp, of Python and of the named libraries, for a file to carry."""
    found = {"em_interp": _version("em-interp"), "python": platform.python_version()}
    return found | {name: _version(name) for name in libraries}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
