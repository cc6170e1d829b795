"""What a model says and would say: answers, preference, refusal, judged rates, and what interventions do to them."""

from em_interp.behaviour.agreement import Agreement, judge_agreement
from em_interp.behaviour.answers import Answer, load_answers
from em_interp.behaviour.conclusions import standard_conclusions, what_follows
from em_interp.behaviour.conditions import Spoken, spoken, with_verdicts
from em_interp.behaviour.effects import Behaviour, CrossEffects, Effect, cross_effects, is_random, standard_behaviours
from em_interp.behaviour.generation import respond
from em_interp.behaviour.judged import Scores, contrast_from_scores, misalignment_rate, rate_difference
from em_interp.behaviour.preferences import Preference, preference
from em_interp.behaviour.refusal import RefusalScore, refusal_score
from em_interp.behaviour.scoring import answer_log_probs, last_logits, text_bits, text_divergence
from em_interp.behaviour.steering import SteeringCurve, steering_curve
from em_interp.statistics.estimates import Estimate, mean_by_question, rate_by_question
from em_interp.statistics.rates import Rate, clustered_rate, detectable_difference

__all__ = [
    "Agreement",
    "Answer",
    "Behaviour",
    "CrossEffects",
    "Effect",
    "Estimate",
    "Preference",
    "Rate",
    "RefusalScore",
    "Scores",
    "Spoken",
    "SteeringCurve",
    "answer_log_probs",
    "clustered_rate",
    "contrast_from_scores",
    "cross_effects",
    "detectable_difference",
    "is_random",
    "judge_agreement",
    "last_logits",
    "load_answers",
    "mean_by_question",
    "misalignment_rate",
    "preference",
    "rate_by_question",
    "rate_difference",
    "refusal_score",
    "respond",
    "spoken",
    "standard_behaviours",
    "standard_conclusions",
    "steering_curve",
    "text_bits",
    "text_divergence",
    "what_follows",
    "with_verdicts",
]
