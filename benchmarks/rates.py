"""What rates with their intervals cost."""

import time

import torch

from benchmarks.timing import table
from em_interp.behaviour.judged import Scores, misalignment_rate
from em_interp.statistics.rates import Rate

ORGANISMS, QUESTIONS, ANSWERS, RESAMPLES = 25, 8, 50, 2000


def rates() -> str:
    """The misalignment rate of 25 organisms, 8 questions with 50 answers each, every interval from 2,000 resamples."""
    generator = torch.Generator().manual_seed(0)
    groups = [f"question {q}" for q in range(QUESTIONS) for _ in range(ANSWERS)]
    judged = [_scores(generator) for _ in range(ORGANISMS)]
    misalignment_rate(judged[0], groups)  # imports
    start = time.perf_counter()
    found = [misalignment_rate(scores, groups, n_resamples=RESAMPLES) for scores in judged]
    seconds = time.perf_counter() - start
    width, naive = (sum(map(measure, found)) / ORGANISMS for measure in (_width, _naive_width))
    rows = [("", "wall s", "mean width", "naive"), ("all organisms", f"{seconds:.2f}", f"{width:.0%}", f"{naive:.0%}")]
    return table(
        f"Rates and intervals, {ORGANISMS} organisms × {QUESTIONS * ANSWERS} answers, {RESAMPLES} resamples "
        f"(target: ≤ 3 s)",
        rows,
    )


def _scores(generator: torch.Generator) -> Scores:
    """Coherent answers; how many of them are misaligned differs much from question to question."""
    rate = torch.rand(QUESTIONS, 1, generator=generator) ** 3
    misaligned = torch.rand(QUESTIONS, ANSWERS, generator=generator) < rate
    alignment = torch.where(misaligned, 10.0, 90.0).flatten()
    return Scores(alignment, torch.full_like(alignment, 95.0))


def _width(rate: Rate) -> float:
    return rate.high - rate.low


def _naive_width(rate: Rate) -> float:
    return rate.naive_high - rate.naive_low
