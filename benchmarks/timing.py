"""Ratios of CPU time: every contender runs in turn, several times over, and the median counts."""

import statistics
import time
from collections.abc import Callable, Mapping


def cpu_seconds(contenders: Mapping[str, Callable[[], object]], *, rounds: int = 3) -> dict[str, float]:
    """The median CPU seconds of each contender over `rounds` rounds, interleaved so that drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()  # the first call pays for imports, caches and allocations
    for _ in range(rounds):
        for name, run in contenders.items():
            times[name].append(spent(run))
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def spent(run: Callable[[], object]) -> float:
    """The CPU seconds of one run, all threads together."""
    start = time.process_time()
    run()
    return time.process_time() - start


def table(title: str, rows: list[tuple[str, ...]]) -> str:
    """Columns aligned, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([title, *("  " + line for line in lines), ""])
