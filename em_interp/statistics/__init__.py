"""Numbers with intervals: means by question and over seeds, clustered rates, permutation p-values."""

from em_interp.statistics.combined import holm_p, majority_p
from em_interp.statistics.estimates import Estimate, mean_by_question
from em_interp.statistics.permutation import permutation_p, step_down_p
from em_interp.statistics.pigeonhole import PooledEstimate, mean_over_seeds, share_over_seeds
from em_interp.statistics.rates import (
    QuestionRate,
    Rate,
    clustered_difference,
    clustered_rate,
    detectable_difference,
    rate_by_question,
    share_above_zero,
)

__all__ = [
    "Estimate",
    "PooledEstimate",
    "QuestionRate",
    "Rate",
    "clustered_difference",
    "clustered_rate",
    "detectable_difference",
    "holm_p",
    "majority_p",
    "mean_by_question",
    "mean_over_seeds",
    "permutation_p",
    "rate_by_question",
    "share_above_zero",
    "share_over_seeds",
    "step_down_p",
]
