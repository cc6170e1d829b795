"""Files appear whole or not at all and say what wrote them; settings are read strictly."""

import difflib
import os
import platform
import tempfile
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


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
