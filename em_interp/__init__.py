"""em_interp: what narrow fine-tuning did to a model, and how the misalignment direction relates to refusal.

    model = em.load_bundled()
    harm = em.read_contrast(model, em.load_contrast("misalignment"), span="response")
    refuse = em.read_contrast(model, em.load_contrast("refusal"), span="last")
    em.compare(harm, refuse)

Figures are in `em_interp.figures`, the report in `em_interp.report`; neither is loaded until it is asked for.
"""

from em_interp.activations.reading import (
    Activations,
    ContrastActivations,
    component_outputs,
    read_contrast,
    residual_stream,
)
from em_interp.behaviour import (
    Agreement,
    Answer,
    CrossEffects,
    Estimate,
    Preference,
    Rate,
    RefusalScore,
    Scores,
    Spoken,
    SteeringCurve,
    answer_log_probs,
    clustered_rate,
    contrast_from_scores,
    cross_effects,
    detectable_difference,
    judge_agreement,
    load_answers,
    misalignment_rate,
    preference,
    rate_difference,
    refusal_score,
    respond,
    spoken,
    standard_behaviours,
    steering_curve,
    text_bits,
    text_divergence,
    what_follows,
)
from em_interp.circuits.readout import token_readout
from em_interp.directions.comparison import Comparison, compare, cosine_map
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import difference_of_means
from em_interp.directions.separability import Separability, separability
from em_interp.interventions import (
    add_direction,
    at_prompt_length,
    project_out,
    project_out_subspace,
    set_projection,
)
from em_interp.lora.modules import LoraModule, lora_modules
from em_interp.lora.scalars import AdapterScalars, adapter_scalars, class_scalars, probe_scalars
from em_interp.lora.switches import projected_adapters, scaled_adapters
from em_interp.lora.writes import propagated, write_cosines, write_directions
from em_interp.models.hooked import HookedModel, attached, every_layer, every_write, site, without_adapter
from em_interp.models.loading import load_model
from em_interp.models.weights import bake, export, orthogonalize
from em_interp.organisms.loading import load_bundled, organisms
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import Organism, train_organism
from em_interp.organisms.trajectories import Trajectory
from em_interp.texts.contrasts import Contrast, load_contrast, load_controls, load_neutral_texts, request_answers
from em_interp.texts.conversations import Conversation
from em_interp.texts.questions import load_questions

__version__ = "0.1.0"

__all__ = [
    "Activations",
    "AdapterScalars",
    "Agreement",
    "Answer",
    "Comparison",
    "Contrast",
    "ContrastActivations",
    "Conversation",
    "CrossEffects",
    "Direction",
    "Estimate",
    "HookedModel",
    "LoraModule",
    "Organism",
    "Preference",
    "Rate",
    "Recipe",
    "RefusalScore",
    "Scores",
    "Separability",
    "Spoken",
    "SteeringCurve",
    "Trajectory",
    "adapter_scalars",
    "add_direction",
    "answer_log_probs",
    "at_prompt_length",
    "attached",
    "bake",
    "class_scalars",
    "clustered_rate",
    "compare",
    "component_outputs",
    "contrast_from_scores",
    "cosine_map",
    "cross_effects",
    "detectable_difference",
    "difference_of_means",
    "every_layer",
    "every_write",
    "export",
    "judge_agreement",
    "load_answers",
    "load_bundled",
    "load_contrast",
    "load_controls",
    "load_model",
    "load_neutral_texts",
    "load_questions",
    "lora_modules",
    "misalignment_rate",
    "organisms",
    "orthogonalize",
    "preference",
    "probe_scalars",
    "project_out",
    "project_out_subspace",
    "projected_adapters",
    "propagated",
    "rate_difference",
    "read_contrast",
    "refusal_score",
    "request_answers",
    "residual_stream",
    "respond",
    "scaled_adapters",
    "separability",
    "set_projection",
    "site",
    "spoken",
    "standard_behaviours",
    "steering_curve",
    "text_bits",
    "text_divergence",
    "token_readout",
    "train_organism",
    "what_follows",
    "without_adapter",
    "write_cosines",
    "write_directions",
]
