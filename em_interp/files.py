"""The one reader and writer of JSONL, TOML and safetensors: files appear whole or not at all, and are read strictly."""

import difflib
import json
import os
import platform
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Each value of a JSONL file with the number of its line; empty lines are passed over.

    Raises:
        ValueError: the file is not UTF-8, or a line is not JSON (which, and where).
    """
    try:
        # Not splitlines(), which also breaks at the line separators that JSON leaves as they are within its strings.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text ({error.reason}): unpack or convert it to JSONL") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                where = f"{path.name}, line {number}"
                raise ValueError(f"{where}: not JSON: {error.msg}, character {error.pos + 1}") from error


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

    if not Path(path).is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _format(what):
                raise ValueError(
                    f"{path} is a safetensors file but not a {what} (format {metadata.get('format')!r}, wanted "
                    f"{_format(what)!r}): this library writes them with .save"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or is not a safetensors file ({error}): save the {what} again"
        ) from error
    return tensors, json.loads(metadata[key or what])


def _format(what: str) -> str:
    return f"em_interp.{what}/1"


def read_toml(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """The values of a TOML file by key, arrays as tuples.

    Raises:
        ValueError: the file is not TOML, or has a key that is not `known` (the nearest one is named).
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
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
