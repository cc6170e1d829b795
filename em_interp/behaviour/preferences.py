"""Which of two answers a model finds more likely: misaligned or aligned, refusing or complying."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from em_interp.behaviour.scoring import answer_log_probs
from em_interp.checks import door
from em_interp.models.hooked import HookPairs, TransformerLensModel
from em_interp.statistics import Estimate, mean_by_question, share_above_zero
from em_interp.texts.contrasts import Contrast


@dataclass(frozen=True, eq=False, repr=False)
class Preference:
    """How much likelier a model finds the positive answer of each question than its negative twin.

    Attributes:
        contrast: what was compared.
        margins: log-probability a token of the positive answer minus that of the negative one, in nats.
        groups: the question of each margin.
    """

    contrast: str
    margins: Float[Tensor, " question"]
    groups: tuple[str, ...]

    @property
    def mean(self) -> Estimate:
        """The mean margin in nats a token: positive where the model prefers the positive answers."""
        return mean_by_question(self.margins, self.groups)

    @property
    def rate(self) -> Estimate:
        """The share of questions on which the positive answer is the likelier one."""
        return share_above_zero(self.margins, self.groups)

    def __repr__(self) -> str:
        """One line."""
        if not self.margins.isfinite().all():
            broken = int((~self.margins.isfinite()).sum())
            return f"Preference({self.contrast!r}, NaN for {broken} of {len(self.margins)} questions)"
        rate = f"{self.rate.value:.0%} [{self.rate.low:.0%}, {self.rate.high:.0%}]"
        return f"Preference({self.contrast!r}, {self.mean} nats a token, positive preferred {rate})"


@door
def preference(
    model: TransformerLensModel, contrast: Contrast, hooks: HookPairs = (), *, batch_tokens: int | None = None
) -> Preference:
    """Compare how likely the model finds the two answers to each question, a token of each on average.

    Raises:
        ValueError: the contrast's classes do not pair up, one answer of each kind a question.
    """
    positive, negative = ({c.group: c for c in side} for side in (contrast.positive, contrast.negative))
    if (
        positive.keys() != negative.keys()
        or len(positive) != len(contrast.positive)
        or len(negative) != len(contrast.negative)
    ):
        raise ValueError(
            f"contrast {contrast.name!r} does not have exactly one positive and one negative answer to each question, "
            f"so there are no twins to compare: for requests use request_answers(contrast, harmful=…)"
        )
    groups = tuple(positive)
    conversations = [positive[g] for g in groups] + [negative[g] for g in groups]
    log_probs = answer_log_probs(model, conversations, hooks, batch_tokens=batch_tokens)
    return Preference(contrast.name, log_probs[: len(groups)] - log_probs[len(groups) :], groups)
