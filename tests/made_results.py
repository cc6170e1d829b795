"""Results of experiments on elasticity, made up so that what follows from them is known."""

from pathlib import Path

from em_interp.elasticity import ExperimentResult, LawResult, RealignResult, ReboundResult, ResistanceResult
from em_interp.elasticity.realign_results import DIRECTIONS, EXPOSURES, REALIGNED
from em_interp.elasticity.resistance_results import PAIRS
from em_interp.elasticity.watch import WATCHED
from em_interp.files import json_line

SETTINGS = {"name": "made", "n_symbols": 16}


def resistance(n_seeds: int = 3) -> ResistanceResult:
    """Seeds in which going back ends .1 lower than going on, and .01 more with every seed."""
    rows = tuple(
        {
            "seed": seed,
            "order": [1, 2, 3],
            "ways": [
                {"start": j, "target": k, "loss": [2.0, 1.5 - 0.2 * (j > k)], "before": 2.0, "author": 1.0}
                | {"after": 1.5 - (0.1 + 0.01 * seed) * (j > k)}
                for pair in PAIRS
                for j, k in (pair, pair[::-1])
            ],
        }
        for seed in range(n_seeds)
    )
    return ResistanceResult("made", "tiny-llama", SETTINGS, rows)


def rebound(sizes: tuple[int, ...] = (8, 16), n_seeds: int = 3, times: float = 1.0) -> ReboundResult:
    """Every size falls from itself, and a ninth more with every seed, to nothing."""
    rows = []
    for size in sizes:
        for seed in range(n_seeds):
            points = [dict.fromkeys(WATCHED, times * size * share + seed / 9) for share in (1.0, 0.5, 0.0)]
            curve = [{"samples": 8 * i, **point} for i, point in enumerate(points)]
            row = {"size": size, "seed": seed, "start": dict.fromkeys(WATCHED, 1.5), "curve": curve}
            rows.append(row | {"loss_first": [], "loss_then": []})
    return ReboundResult("made", "tiny-llama", SETTINGS, tuple(rows))


def realign(cosine: float | None = 0.9, n_seeds: int = 2) -> RealignResult:
    """Every exposure is the same path, and every direction has this cosine with the first one's."""
    rows = []
    for seed in range(n_seeds):
        path = [{"samples": 8 * i} | dict.fromkeys(WATCHED, float(i) + seed / 9) for i in range(3)]
        direction = {"corrected": cosine, "low": 0.8, "high": 0.95, "null_b_low": -0.2, "null_b_high": 0.3}
        start = dict.fromkeys(WATCHED, 0.5)
        rows.append(
            {"seed": seed, "start": start, "exposures": dict.fromkeys(EXPOSURES, path)}
            | {"directions": dict.fromkeys(DIRECTIONS, direction | {"ceiling": 0.9, "share": 0.4})}
            | {"realigned": dict.fromkeys(REALIGNED, start), "retraced": {}}
        )
    return RealignResult("made", "tiny-llama", SETTINGS, tuple(rows))


def law(ratios: tuple[int, ...] = (1, 4, 16), n_seeds: int = 2) -> LawResult:
    """The small set's rate falls as many times as fast as the large one's rises as the ratio says, and more by seed."""
    rows = [
        {"ratio": k, "seed": seed, "entropy": dict.fromkeys(("large", "small", "perturbing"), 2.0)}
        | {"before": dict.fromkeys(("large", "small", "perturbing"), 3.0)}
        | {"after": [{"samples": 8, "large": 3.008, "small": 3 - 0.008 * (1 + seed) * k, "perturbing": 2.9}]}
        for k in ratios
        for seed in range(n_seeds)
    ]
    return LawResult("made", "tiny", SETTINGS, tuple(rows))


def written(result: ExperimentResult, path: Path) -> Path:
    """The file that an experiment with this result would have left."""
    header = {"experiment": result.kind, "base": result.base, "settings": result.settings, "versions": {}}
    path.write_text("".join(map(json_line, [header, *result.rows])))
    return path
