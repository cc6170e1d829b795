"""Rebound: what a training has taught is taken back by training on the opposite, and how fast that goes.

Ji et al. 2025 (arXiv 2406.06144), section 4.2: a model learns from positive data of several amounts, and then from
negative data. The more positive data there were, the faster it falls, and then it stays at a floor. Here the two are
both answers to the same questions, what is watched is the code length of both and of plain prose, behaviour, the
divergence from the start, and where the model lies along the start's two directions.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from em_interp.checks import door, shown
from em_interp.elasticity.experiments import Experiment, Rows, Stages, finish
from em_interp.elasticity.rebound_results import ReboundResult
from em_interp.elasticity.sides import held_out, learned
from em_interp.elasticity.watch import STARTING, THE_START, Watch, steps_to_measure
from em_interp.organisms.training import Organism
from em_interp.progress import part
from em_interp.texts.conversations import Conversation


@dataclass(frozen=True)
class Rebound(Experiment):
    """An experiment on rebound; a row is an amount of data that is learned first, and a seed.

    Attributes:
        data: a training set with two answers to each question.
        first: which of them is learned first, `positive` or `negative`; then the other one is.
        sizes: conversations that are learned first, one pass; 0 leaves the first training out.
        then: conversations that are learned after them, one pass.
        checkpoints: of the second training, at which the model is measured, the last one among them.
        n: questions, requests and texts of each kind that it is measured on.
        layer: where directions are read, two thirds up by default.
    """

    kind: ClassVar[str] = "rebound"

    data: str
    sizes: tuple[int, ...]
    then: int
    first: str = "negative"
    checkpoints: int = 6
    n: int = 24
    layer: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that make no batch, and recipes whose path is not kept."""
        super().__post_init__()
        if self.first not in ("positive", "negative"):
            raise ValueError(f"first is {self.first!r}: choose positive or negative")
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes are {shown(list(self.sizes))}: give one at least, each once, the smallest first")
        per_step = self.recipe.batch_size * self.recipe.accumulate
        for size in (*self.sizes, self.then):
            if size % per_step or size < 0:
                raise ValueError(
                    f"{size} conversations are not whole batches of {per_step}: give multiples of {per_step}"
                )
        if self.then < 1:
            raise ValueError("then is 0, so there is nothing to rebound by: give the size of the second training")
        if self.recipe.method == "full":
            raise ValueError("a rebound is followed through an adapter's checkpoints, so method should be 'lora'")
        if not 1 <= self.checkpoints <= self.then // per_step:
            raise ValueError(
                f"checkpoints is {self.checkpoints}, and the second training has {self.then // per_step} steps: choose "
                f"1 to {self.then // per_step}"
            )
        if self.n < 2:
            raise ValueError(f"n is {self.n}: give 2 at least")


@door
def run_rebound(
    experiment: Rebound | str | Path,
    out: str | Path,
    *,
    keep: str | Path | None = None,
    device: str | torch.device | None = None,
) -> ReboundResult:
    """Train on the one kind of answers and then on the other, and append each size and seed to a file when finished.

    What was interrupted goes on where it stopped, within a training too. More seeds may be added to it.

    Args:
        experiment: the experiment, its TOML file, or a shipped one by its name.
        out: JSONL; its first line says what the experiment is, and each other one is a size and a seed.
        keep: a folder in which every organism is kept; by default they are removed at the end.
        device: the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: data without two answers to each question or with too few of them, or a file that holds another
            experiment.
        Diverged: a loss became NaN or infinite; what is finished is kept.
    """
    experiment = experiment if isinstance(experiment, Rebound) else Rebound.load(experiment)
    inside = held_out(experiment.data)
    other = "negative" if experiment.first == "positive" else "positive"
    amounts = {experiment.first: max(experiment.sizes), other: experiment.then}
    told = learned(experiment.recipe, experiment.data, amounts, experiment.seeds)
    base = [Stages(Path(), experiment.recipe, device).load(None)]  # until it is measured; every stage loads its own
    rows = Rows.opened(out, experiment, base[0].identity)
    pending = rows.missing([{"size": size, "seed": seed} for seed in experiment.seeds for size in experiment.sizes])

    def row(keys: Mapping[str, int], stages: Stages) -> dict[str, Any]:
        return _row(experiment, keys["size"], keys["seed"], told[keys["seed"]], stages, start())

    @functools.cache
    def start() -> Watch:
        with part(THE_START):
            return Watch.of(base.pop(), experiment.recipe, inside, experiment.n, experiment.layer)

    return ReboundResult.of(finish(rows, pending, experiment, row, _parts(experiment, pending), keep, device))


def _row(  # noqa: PLR0913 - what one row is made of
    experiment: Rebound, size: int, seed: int, told: Sequence[Sequence[Conversation]], stages: Stages, watch: Watch
) -> dict[str, Any]:
    """One size and seed: the first training, the second one, and what is watched along the second."""
    recipe = experiment.recipe
    per_step = recipe.batch_size * recipe.accumulate
    first, then = told
    before: Organism | None = None
    if size:
        before = stages.train(
            f"first {size}, seed {seed}", first[:size], seed=seed, steps=size // per_step, keep_trajectory=False
        )
    steps = experiment.then // per_step
    rebounding = stages.train(
        f"then {size}, seed {seed}", then[: experiment.then], before, seed=seed, steps=steps, checkpoint_every=1,
        keep_trajectory=True,
    )  # fmt: skip
    with part(f"measuring {size}, seed {seed}"):
        curve = watch.along(stages.load(rebounding), rebounding, experiment.checkpoints)
    losses = {"loss_first": list(before.loss) if before else [], "loss_then": list(rebounding.loss)}
    return {"size": size, "seed": seed, "start": watch.at_start, "curve": curve, **losses}


def _parts(experiment: Rebound, pending: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """The parts of the job, each with its share of the time."""
    per_step = experiment.recipe.batch_size * experiment.recipe.accumulate
    measured = steps_to_measure(experiment.n, per_step)
    parts: dict[str, float] = {THE_START: STARTING * measured}
    for size, seed in ((keys["size"], keys["seed"]) for keys in pending):
        parts |= {f"first {size}, seed {seed}": size / per_step} if size else {}
        parts[f"then {size}, seed {seed}"] = experiment.then / per_step
        parts[f"measuring {size}, seed {seed}"] = measured * (experiment.checkpoints + 1)
    return parts
