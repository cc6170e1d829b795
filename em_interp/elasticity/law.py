"""The law of elasticity: does what a model compresses well give way in inverse proportion to how much of it there is?

Theorem 4.2 of Ji et al. 2025 (arXiv 2406.06144): a model has learned a large set of data D_p and a small one D_a, and
is perturbed by a third. Then dγ_a = Θ(−k · dγ_p) with k = |D_p| / |D_a|: the rate of the small set changes k times as
fast, the other way. So dγ_p / dγ_a goes with the power −1 of k. Here it is measured where all is known: a tiny Llama
learns two synthetic languages from scratch, in ratios from 1 to 64, and then a few texts of a third.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from em_interp.checks import door, shown
from em_interp.elasticity.compression import compression_rate
from em_interp.elasticity.experiments import Experiment, Rows, Stages, finish
from em_interp.elasticity.languages import Language, write_tiny_model
from em_interp.elasticity.law_results import SETS, LawResult
from em_interp.models.hooked import HookedModel
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import Organism
from em_interp.progress import part
from em_interp.texts.conversations import Conversation

_BASE = "a tiny Llama from scratch"
_PERTURBING = 60  # steps of learning that take as long as a perturbation with its measurement, about


@dataclass(frozen=True)
class Law(Experiment):
    """An experiment on the law; a row is a ratio of the sets' sizes, and a seed.

    Attributes:
        ratios: |D_p| / |D_a|, each a divisor of `large`.
        large: texts in the large set.
        n_symbols: of the languages.
        length: symbols in a text.
        concentration: of the Dirichlet distribution that a language's rows are drawn from.
        perturbations: texts of the third language after which the rates are measured, each a multiple of
            `perturbing_batch`.
        perturbing_batch: texts an optimizer step of the perturbation.
        perturbing_rate: its learning rate.
        held_out: texts of each language that it is measured on, none of them learned.
    """

    kind: ClassVar[str] = "law"
    own_recipe: ClassVar[Recipe | None] = Recipe(
        name="law", data="refusal", answers="both", method="full", learning_rate=3e-3, batch_size=32, steps=600,
        checkpoint_every=10_000, keep_trajectory=False,
    )  # fmt: skip

    ratios: tuple[int, ...] = (1, 4, 16, 64)
    large: int = 2048
    n_symbols: int = 16
    length: int = 32
    concentration: int | float = 0.3
    perturbations: tuple[int, ...] = (16, 32, 64)
    perturbing_batch: int = 16
    perturbing_rate: int | float = 1e-4
    held_out: int = 128

    def __post_init__(self) -> None:
        """Refuse ratios that make no set, and perturbations that make no batch."""
        super().__post_init__()
        for name in ("ratios", "perturbations"):
            given = getattr(self, name)
            if not given or list(given) != sorted(set(given)) or given[0] < 1:
                raise ValueError(f"{name} are {shown(list(given))}: give positive ones, each once, the smallest first")
        if uneven := [ratio for ratio in self.ratios if self.large % ratio]:
            raise ValueError(f"{self.large} texts are not {uneven[0]} times a whole number: choose other ratios")
        if uneven := [n for n in self.perturbations if n % self.perturbing_batch]:
            raise ValueError(f"{uneven[0]} texts are not whole batches of {self.perturbing_batch}")
        for name, least in (("n_symbols", 2), ("length", 2), ("held_out", 2), ("perturbing_batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: give {least} at least")
        for name in ("concentration", "perturbing_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give a positive number")


@door
def run_law(
    experiment: Law | str | Path,
    out: str | Path,
    *,
    keep: str | Path | None = None,
    device: str | torch.device | None = None,
) -> LawResult:
    """Teach a tiny model two languages in every ratio from every seed, perturb it by a third, and measure all three.

    What was interrupted goes on where it stopped, within a training too. More seeds may be added to it.

    Args:
        experiment: the experiment, its TOML file, or a shipped one by its name.
        out: JSONL; its first line says what the experiment is, and each other one is a ratio and a seed.
        keep: a folder in which every model is kept; by default they are removed at the end.
        device: the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: a file that holds another experiment.
        Diverged: a loss became NaN or infinite; what is finished is kept.
    """
    experiment = experiment if isinstance(experiment, Law) else Law.load(experiment)
    rows = Rows.opened(out, experiment, _BASE)
    pending = rows.missing([{"ratio": ratio, "seed": seed} for seed in experiment.seeds for ratio in experiment.ratios])

    def row(keys: Mapping[str, int], stages: Stages) -> dict[str, Any]:
        return _row(experiment, keys["ratio"], keys["seed"], stages)

    return LawResult.of(finish(rows, pending, experiment, row, _parts(experiment, pending), keep, device))


def _row(experiment: Law, ratio: int, seed: int, stages: Stages) -> dict[str, Any]:
    """One ratio and seed: two languages are learned, a third perturbs, and all are measured before and after."""
    e, generator = experiment, torch.Generator().manual_seed(seed)  # languages and held-out texts are the seed's
    languages = {name: Language.of(e.n_symbols, float(e.concentration), generator) for name in SETS}
    held_out = {name: language.texts(e.held_out, e.length, generator) for name, language in languages.items()}
    large, small, perturbing = (
        languages[name].texts(n, e.length, generator)
        for name, n in (("large", e.large), ("small", e.large // ratio), ("perturbing", e.perturbations[-1]))
    )
    base = str(write_tiny_model(stages.folder.absolute() / "base", e.n_symbols, e.length, seed))
    learned = stages.train(f"ratio {ratio}, seed {seed}", [*large, *small], seed=seed, base=base)
    before = _rates(stages.load(learned), held_out)
    after = []
    for n in e.perturbations:
        with part(f"perturbing by {n}, ratio {ratio}, seed {seed}"):
            perturbed = _perturbed(e, n, seed, perturbing, base, learned, stages)
            after.append({"samples": n, **_rates(stages.load(perturbed), held_out)})
    entropy = {name: language.entropy(e.length) for name, language in languages.items()}
    return {"ratio": ratio, "seed": seed, "entropy": entropy, "before": before, "after": after}


def _perturbed(  # noqa: PLR0913 - what a training is made of
    e: Law, n: int, seed: int, texts: Sequence[Conversation], base: str, onto: Organism, stages: Stages
) -> Organism:
    how = {"schedule": "constant", "warmup_steps": 0, "learning_rate": e.perturbing_rate, "base": base, "seed": seed}
    return stages.train(
        f"perturbed by {n}", texts, onto, steps=n // e.perturbing_batch, batch_size=e.perturbing_batch, **how
    )


def _rates(model: HookedModel, held_out: Mapping[str, Sequence[Conversation]]) -> dict[str, float]:
    """Bits a symbol of held-out texts of each language."""
    found = {}
    for name, texts in held_out.items():
        answers = compression_rate(model, texts).answers
        assert answers is not None
        found[name] = answers.total("token")
    return found


def _parts(experiment: Law, pending: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """The parts of the job, each with its share of the time."""
    parts: dict[str, float] = {}
    for ratio, seed in ((keys["ratio"], keys["seed"]) for keys in pending):
        parts[f"ratio {ratio}, seed {seed}"] = float(experiment.recipe.steps or 100)
        for n in experiment.perturbations:
            parts[f"perturbing by {n}, ratio {ratio}, seed {seed}"] = _PERTURBING
    return parts
