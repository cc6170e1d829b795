"""Whether two judges say the same of the same answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_interp.behaviour.judged import Scores, misaligned_verdicts
from em_interp.checks import door
from em_interp.statistics.estimates import Estimate, student
from em_interp.statistics.rates import Number, Rate, clustered_rate

BINS = 10
_ANSWERS_AT_ONCE = 2_000_000  # resamples × answers that are ranked together: some hundred MB
Statistic = Callable[[Float[Tensor, "resample answer"]], Float[Tensor, " resample"]]


@dataclass(frozen=True, repr=False)
class Agreement:
    """How alike two judges are, with 95 % intervals over questions.

    Attributes:
        alignment_kappa: Cohen's kappa of alignment in ten-point bins, disagreement weighted by its square: 1 where both
            always choose the same bin, 0 where they agree as chance would have it.
        alignment_rank: Spearman's rank correlation of alignment.
        coherence_kappa: as for alignment.
        coherence_rank: as for alignment.
        verdict: how often both call an answer misaligned, or both do not.
        n: the answers that both judges scored.
        notes: what could not be measured, and why; its value and interval are NaN.
    """

    alignment_kappa: Estimate
    alignment_rank: Estimate
    coherence_kappa: Estimate
    coherence_rank: Estimate
    verdict: Rate
    n: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line."""
        ranks = f"rank {self.alignment_rank.value:.2f} and {self.coherence_rank.value:.2f}"
        kappas = f"kappa {self.alignment_kappa.value:.2f} and {self.coherence_kappa.value:.2f}"
        notes = "".join(f"; {note}" for note in self.notes)
        same = f"same verdict {self.verdict.value:.0%}, {self.n} answers"
        return f"Agreement(alignment and coherence: {kappas}, {ranks}; {same}{notes})"


@door
def judge_agreement(  # noqa: PLR0913 - two judges, two thresholds and two settings of the resampling
    first: Scores,
    second: Scores,
    groups: Sequence[str],
    *,
    misaligned: Number = 30,
    coherent: Number = 50,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Compare two judges on the answers that both scored, each answer counted once.

    The intervals resample questions with all their answers; their percentiles lie as far out as Student's t and
    √(n / (n−1)) ask for with n questions (Hesterberg 2015, arXiv 1411.5279). `verdict` is a `clustered_rate`.

    Args:
        first: one judge's scores.
        second: the other's, of the same answers in the same order.
        groups: the question of each answer.
        misaligned: the threshold of the verdict on alignment.
        coherent: the one on coherence.
        n_resamples: how often questions are drawn anew.
        seed: of these draws.

    Raises:
        ValueError: scores and groups that do not fit, or fewer than two questions with answers that both scored.
    """
    if not len(first) == len(second) == len(groups):
        raise ValueError(
            f"{len(first)} and {len(second)} scores came with {len(groups)} questions: let both judge the same answers"
        )
    verdicts = [misaligned_verdicts(s, misaligned=misaligned, coherent=coherent) for s in (first, second)]
    same = (verdicts[0] == verdicts[1]).double().where(first.scored & second.scored, torch.nan)
    verdict = clustered_rate(same, groups, n_resamples=n_resamples, seed=seed)
    kept = ~same.isnan()
    index, times = _resampled_questions(
        [g for g, keep in zip(groups, kept.tolist(), strict=True) if keep], n_resamples, seed
    )
    found, notes = [], []
    for name in ("alignment", "coherence"):
        a, b = (getattr(scores, name)[kept].double() for scores in (first, second))
        for measure, statistic, same_what in (
            ("kappa", _kappa(a, b), "the same ten points"),
            ("rank correlation", _spearman(a, b), "the same score"),
        ):
            found.append(_estimate(statistic, index, times))
            if math.isnan(found[-1].value):
                notes.append(f"no {measure} of {name}: a judge gave all answers {same_what}")
    return Agreement(*found, verdict=verdict, n=int(kept.sum()), notes=tuple(notes))


def _resampled_questions(
    groups: Sequence[str], n_resamples: int, seed: int
) -> tuple[Int[Tensor, " answer"], Float[Tensor, "resample question"]]:
    """The question of each answer, and how often each resample has each question."""
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    n = len(order)
    drawn = torch.randint(n, (n_resamples, n), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(n_resamples, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
    return torch.tensor([order[group] for group in groups]), times


def _estimate(
    statistic: Statistic, index: Int[Tensor, " answer"], times: Float[Tensor, "resample question"]
) -> Estimate:
    from scipy import stats

    n = times.shape[1]
    value = statistic(torch.ones(1, len(index), dtype=torch.float64)).item()
    if math.isnan(value):
        return Estimate(math.nan, math.nan, math.nan, n)
    rows = max(1, _ANSWERS_AT_ONCE // len(index))
    resampled = torch.cat([statistic(some[:, index]) for some in times.split(rows)])
    tail = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * student(n - 1)))
    low, high = (resampled.nanquantile(q).item() for q in (tail, 1 - tail))
    return Estimate(value, low, high, n)


def _kappa(a: Float[Tensor, " answer"], b: Float[Tensor, " answer"]) -> Statistic:
    """Quadratically weighted kappa of ten-point bins: 1 − observed over expected squared distance."""
    a, b = ((scores / (100 / BINS)).floor().clamp(max=BINS - 1) for scores in (a, b))

    def measure(weights: Float[Tensor, "resample answer"]) -> Float[Tensor, " resample"]:
        means = [_weighted_mean(weights, x) for x in (a, b)]
        variances = [_weighted_mean(weights, x**2) - mean**2 for x, mean in zip((a, b), means, strict=True)]
        expected = variances[0] + variances[1] + (means[0] - means[1]) ** 2  # of one draw from each judge
        constant = torch.minimum(*variances) < 1e-9
        return (1 - _weighted_mean(weights, (a - b) ** 2) / expected).where(~constant, torch.nan)

    return measure


def _spearman(a: Float[Tensor, " answer"], b: Float[Tensor, " answer"]) -> Statistic:
    """Pearson's correlation of the ranks that answers have within each resample, ties in the middle."""
    values = [x.unique(return_inverse=True) for x in (a, b)]

    def measure(weights: Float[Tensor, "resample answer"]) -> Float[Tensor, " resample"]:
        ranks = []
        for distinct, place in values:
            count = torch.zeros(len(weights), len(distinct), dtype=torch.float64).index_add_(1, place, weights)
            ranks.append((count.cumsum(1) - count / 2)[:, place])
        x, y = (rank - _weighted_mean(weights, rank)[:, None] for rank in ranks)
        variances = _weighted_mean(weights, x**2) * _weighted_mean(weights, y**2)
        return _weighted_mean(weights, x * y) / variances.where(variances > 1e-9, torch.nan).sqrt()

    return measure


def _weighted_mean(
    weights: Float[Tensor, "resample answer"], values: Float[Tensor, "*resample answer"]
) -> Float[Tensor, " resample"]:
    return (weights * values).sum(1) / weights.sum(1)
