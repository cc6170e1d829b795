"""What a model says and would say: answers, preference, refusal, judged rates, and what interventions do to them."""

from em_interp.behaviour.agreement import Agreement, judge_agreement
from em_interp.behaviour.answers import Answer, load_answers
from em_interp.behaviour.conditions import (
    AnswersByCondition,
    Condition,
    added,
    answers_by_condition,
    removed,
    subtracted,
    with_verdicts,
)
from em_interp.behaviour.dissociation import conclusions, standard_conclusions
from em_interp.behaviour.effects import CrossEffects, Effect, cross_effects
from em_interp.behaviour.generation import greedy_answers, respond
from em_interp.behaviour.judged import Scores, contrast_from_scores, misalignment_rate, rate_difference
from em_interp.behaviour.judged_answers import Judged, load_judged
from em_interp.behaviour.measures import (
    Behaviour,
    BehaviourKey,
    measured,
    organism_behaviours,
    prefers,
    prose,
    refusal_scores,
    refuses,
    standard_behaviours,
)
from em_interp.behaviour.preferences import Preference, preference
from em_interp.behaviour.refusal import RefusalScore, is_refusal, refusal_score, refusal_verdicts
from em_interp.behaviour.rival_estimators import EstimatorsCompared, estimators_compared
from em_interp.behaviour.scoring import (
    TextEffects,
    answer_log_probs,
    last_logits,
    text_bits,
    text_divergence,
    text_effects,
)
from em_interp.behaviour.selection import (
    Candidates,
    CandidateScores,
    Selection,
    refusal_candidates,
    score_candidates,
    select,
)
from em_interp.behaviour.steering import SteeringCurve, steering_curve

__all__ = [
    "Agreement",
    "Answer",
    "AnswersByCondition",
    "Behaviour",
    "BehaviourKey",
    "CandidateScores",
    "Candidates",
    "Condition",
    "CrossEffects",
    "Effect",
    "EstimatorsCompared",
    "Judged",
    "Preference",
    "RefusalScore",
    "Scores",
    "Selection",
    "SteeringCurve",
    "TextEffects",
    "added",
    "answer_log_probs",
    "answers_by_condition",
    "conclusions",
    "contrast_from_scores",
    "cross_effects",
    "estimators_compared",
    "greedy_answers",
    "is_refusal",
    "judge_agreement",
    "last_logits",
    "load_answers",
    "load_judged",
    "measured",
    "misalignment_rate",
    "organism_behaviours",
    "preference",
    "prefers",
    "prose",
    "rate_difference",
    "refusal_candidates",
    "refusal_score",
    "refusal_scores",
    "refusal_verdicts",
    "refuses",
    "removed",
    "respond",
    "score_candidates",
    "select",
    "standard_behaviours",
    "standard_conclusions",
    "steering_curve",
    "subtracted",
    "text_bits",
    "text_divergence",
    "text_effects",
    "with_verdicts",
]
