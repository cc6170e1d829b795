"""Where the seeds of an organism lie: each in a subfolder `seed-0`, `seed-1` and so on, or one in the folder itself."""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from em_interp.checks import door, shown

_FOLDER = re.compile(r"seed-(0|[1-9][0-9]{0,17})")
_NAMED = re.compile(r" \(seed [1-9][0-9]*\)$")
_RANGE = re.compile(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?")
_MOST = 1000


def seed_folder(folder: Path, seed: int) -> Path:
    """The subfolder of a seed."""
    return folder / f"seed-{seed}"


def seed_of(folder: Path) -> int | None:
    """The seed whose subfolder this is; None where it is not one."""
    found = _FOLDER.fullmatch(folder.name)
    return int(found[1]) if found else None


def seeds_in(folder: Path) -> tuple[int, ...]:
    """The seeds whose subfolders hold an organism, in order; none where there is one organism or none."""
    if not os.path.isdir(folder):
        return ()
    seeds = [seed_of(path) for path in folder.iterdir() if is_organism(path)]
    return tuple(sorted(seed for seed in seeds if seed is not None))


def is_organism(folder: Path) -> bool:
    """Whether an organism lies in the folder itself."""
    return os.path.isfile(folder / "recipe.toml")


def name_of_seed(name: str, folder: Path) -> str:
    """What an organism is called: its recipe's name; of a seed other than 0 of several, `name (seed 3)`."""
    seed = seed_of(folder)
    return f"{name} (seed {seed})" if seed else name


def without_seed(name: str) -> str:
    """The name that all seeds of an organism have in common, from what `name_of_seed` gave one of them."""
    return _NAMED.sub("", name)


@door
def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds as a flag names them: `0-4`, `0,2,5`, or both, `0-2,7`.

    Raises:
        ValueError: it is neither, a seed is there twice, or there are more than a thousand.
    """
    found: list[int] = []
    for part in text.split(","):
        ends = _RANGE.fullmatch(part)
        if not ends:
            raise ValueError(f"{shown(text)} names no seeds: write a range such as 0-4, or a list such as 0,2,5")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not first <= last < first + _MOST or len(found) > _MOST:
            raise ValueError(f"{shown(text)} runs backwards or names too many seeds: name at most {_MOST}, as in 0-4")
        found += range(first, last + 1)
    return check_seeds(found)


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Refuse no seeds, a seed that is there twice, and one below zero."""
    found = tuple(seeds)
    if not found:
        raise ValueError("no seed was named: name one at least")
    twice = next((seed for i, seed in enumerate(found) if seed in found[:i]), None)
    if twice is not None:
        raise ValueError(f"seed {twice} is named twice: name each one once")
    if min(found) < 0:
        raise ValueError(f"seed {min(found)} is below zero: name seeds from 0 on")
    return found


def check_there(organism: str, seed: int, there: Collection[int]) -> None:
    """Refuse a seed that an organism does not come in."""
    if seed not in there:
        known = ", ".join(map(str, there))
        raise ValueError(f"{organism} has no seed {seed}: choose one of {known}")
