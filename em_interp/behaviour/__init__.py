"""What a model says and would say: preference, refusal, and what interventions do to them."""

from em_interp.behaviour.effects import CrossEffects, Effect, cross_effects, standard_behaviours
from em_interp.behaviour.preference import Preference, preference
from em_interp.behaviour.rates import Estimate, mean_by_question, rate_by_question
from em_interp.behaviour.refusal import RefusalScore, refusal_score
from em_interp.behaviour.scoring import answer_log_probs, last_logits, text_bits

__all__ = [
    "CrossEffects",
    "Effect",
    "Estimate",
    "Preference",
    "RefusalScore",
    "answer_log_probs",
    "cross_effects",
    "last_logits",
    "mean_by_question",
    "preference",
    "rate_by_question",
    "refusal_score",
    "standard_behaviours",
    "text_bits",
]
