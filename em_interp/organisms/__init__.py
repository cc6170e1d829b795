"""Fine-tuned models: made from recipes, loaded, measured, compared with each other and taken apart."""

from em_interp.organisms.all_cards import overview
from em_interp.organisms.cards import Card, SeedsCard, load_card, measure_card, measure_cards, pool_cards, write_card
from em_interp.organisms.dissection import Adapter, Dissection, dissect, open_adapter
from em_interp.organisms.effects import Change, OrganismEffects, adapter_at, effect_by_step, organism_effects
from em_interp.organisms.loading import (
    list_organisms,
    load_base,
    load_bundled,
    load_named,
    load_organism,
    load_organisms,
    organism_folder,
    organism_seeds,
    seed_folders,
    trained_on,
)
from em_interp.organisms.phase_change import EffectPath, Phases, local_cosine, phases
from em_interp.organisms.rebuilding import train_seeds
from em_interp.organisms.recipes import Recipe, bundled_recipes, shipped_recipes
from em_interp.organisms.relatives import Convergence, OrganismReadings, convergence, explained_by, read_organisms
from em_interp.organisms.seeds import parse_seeds
from em_interp.organisms.sweep_results import Frontier, PointTurn, SweepResult
from em_interp.organisms.sweep_rows import SweepRun
from em_interp.organisms.sweep_running import run_sweep
from em_interp.organisms.sweeps import Sweep, SweepQuestions, shipped_sweeps
from em_interp.organisms.training import Diverged, Organism, train_organism, training_conversations
from em_interp.organisms.trajectories import Trajectory
from em_interp.organisms.turning_points import ChangePoint, change_point

__all__ = [
    "Adapter",
    "Card",
    "Change",
    "ChangePoint",
    "Convergence",
    "Dissection",
    "Diverged",
    "EffectPath",
    "Frontier",
    "Organism",
    "OrganismEffects",
    "OrganismReadings",
    "Phases",
    "PointTurn",
    "Recipe",
    "SeedsCard",
    "Sweep",
    "SweepQuestions",
    "SweepResult",
    "SweepRun",
    "Trajectory",
    "adapter_at",
    "bundled_recipes",
    "change_point",
    "convergence",
    "dissect",
    "effect_by_step",
    "explained_by",
    "list_organisms",
    "load_base",
    "load_bundled",
    "load_card",
    "load_named",
    "load_organism",
    "load_organisms",
    "local_cosine",
    "measure_card",
    "measure_cards",
    "open_adapter",
    "organism_effects",
    "organism_folder",
    "organism_seeds",
    "overview",
    "parse_seeds",
    "phases",
    "pool_cards",
    "read_organisms",
    "run_sweep",
    "seed_folders",
    "shipped_recipes",
    "shipped_sweeps",
    "train_organism",
    "train_seeds",
    "trained_on",
    "training_conversations",
    "write_card",
]
