"""Numbers with intervals: means by question, clustered rates, resampling of questions, permutation p-values."""

from em_interp.statistics.combined import holm_p, majority_p
from em_interp.statistics.estimates import Estimate, mean_by_question
from em_interp.statistics.permutation import permutation_p, step_down_p
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
    "QuestionRate",
    "Rate",
    "clustered_difference",
    "clustered_rate",
    "detectable_difference",
    "holm_p",
    "majority_p",
    "mean_by_question",
    "permutation_p",
    "rate_by_question",
    "share_above_zero",
    "step_down_p",
]
