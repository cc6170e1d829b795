"""The results that lie in a folder, whatever experiments they are of."""

import json
from pathlib import Path

from em_interp.checks import door, path_of
from em_interp.elasticity.law_results import LawResult
from em_interp.elasticity.realign_results import RealignResult
from em_interp.elasticity.rebound_results import ReboundResult
from em_interp.elasticity.resistance_results import ResistanceResult
from em_interp.elasticity.results import ExperimentResult

RESULTS: dict[str, type[ExperimentResult]] = {
    cls.kind: cls for cls in (ResistanceResult, ReboundResult, RealignResult, LawResult)
}


@door
def results_in(folder: str | Path) -> tuple[ExperimentResult, ...]:
    """All results of experiments on elasticity that lie in a folder, by experiment; other files are left out.

    Raises:
        ValueError: one of them was cut off, or holds a line that its experiment did not write.
    """
    kinds = {path: _kind(path) for path in sorted(path_of(folder, "results").glob("*.jsonl"))}
    return tuple(cls.load(path) for kind, cls in RESULTS.items() for path in kinds if kinds[path] == kind)


def _kind(path: Path) -> str | None:
    """The experiment that the first line of a file names; None where it names none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            header = json.loads(file.readline())
        except ValueError:
            return None
    return header.get("experiment") if isinstance(header, dict) else None
