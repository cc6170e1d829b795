"""Finished numbers → Plotly figures: nothing here computes a statistic, shows a figure or saves one."""

from em_interp.figures.adapters import adapter_writes, firing
from em_interp.figures.answers import AnswerView, question_rates, side_by_side
from em_interp.figures.candidates import selection
from em_interp.figures.directions import (
    cosine_by_layer,
    cosine_by_metric,
    cosine_map,
    norms_and_separability,
    projections,
)
from em_interp.figures.effects import cross_effects, steering_curve
from em_interp.figures.elasticity import law, realign, rebound, resistance
from em_interp.figures.organisms import (
    added_by_layer,
    convergence_map,
    models_by_layer,
    organism_effects,
)
from em_interp.figures.phases import effect_by_step, phase_change, training_path
from em_interp.figures.rival_estimators import estimators
from em_interp.figures.style import (
    CEILING,
    COLORS,
    FIRST,
    FOUND,
    GREY,
    GRID,
    INK,
    MUTED,
    SECOND,
    TEMPLATE,
    interval,
    number,
    short,
    untitled,
)
from em_interp.figures.sweeps import frontier, turn_map
from em_interp.figures.tokens import TokenView, token_scalars, tokens_html

__all__ = [
    "CEILING",
    "COLORS",
    "FIRST",
    "FOUND",
    "GREY",
    "GRID",
    "INK",
    "MUTED",
    "SECOND",
    "TEMPLATE",
    "AnswerView",
    "TokenView",
    "adapter_writes",
    "added_by_layer",
    "convergence_map",
    "cosine_by_layer",
    "cosine_by_metric",
    "cosine_map",
    "cross_effects",
    "effect_by_step",
    "estimators",
    "firing",
    "frontier",
    "interval",
    "law",
    "models_by_layer",
    "norms_and_separability",
    "number",
    "organism_effects",
    "phase_change",
    "projections",
    "question_rates",
    "realign",
    "rebound",
    "resistance",
    "selection",
    "short",
    "side_by_side",
    "steering_curve",
    "token_scalars",
    "tokens_html",
    "training_path",
    "turn_map",
    "untitled",
]
