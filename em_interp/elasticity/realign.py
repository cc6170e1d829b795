"""Re-alignment: a model goes bad, is brought back, and goes bad again. Is it the model it was, and is it faster?

Three questions, seed by seed. What of the direction that bad data had added is left after good data, and does it come
back with the second bad data, or does another one form? Is the second exposure faster than a first one (rehearsal
priming, arXiv 2605.18309)? And does the adapter go the same way?

A second exposure begins from a model that has seen good data, too. So the first exposure that it is held against is
not only the one from the start, but also one of a twin that has seen the same good data and no bad ones before.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from em_interp.activations.reading import ContrastActivations, read_contrast
from em_interp.checks import door
from em_interp.directions.comparison import compare
from em_interp.directions.estimators import difference_of_means
from em_interp.elasticity.experiments import Experiment, Rows, Stages, finish
from em_interp.elasticity.realign_results import DIRECTIONS, EXPOSURES, RealignResult
from em_interp.elasticity.sides import held_out, learned
from em_interp.elasticity.watch import STARTING, THE_START, Watch, steps_to_measure
from em_interp.models.hooked import HookedModel
from em_interp.organisms.relatives import OrganismReadings
from em_interp.organisms.training import Organism
from em_interp.organisms.trajectories import Trajectory
from em_interp.progress import part
from em_interp.texts.contrasts import Contrast, load_contrast
from em_interp.texts.conversations import Conversation


@dataclass(frozen=True)
class Realign(Experiment):
    """An experiment on re-alignment; a row is a seed.

    Attributes:
        data: a training set with a bad (positive) and a good (negative) answer to each question.
        bad: conversations of each exposure to bad answers, one pass; both exposures have the same ones.
        good: conversations of the re-alignment between them, one pass.
        checkpoints: of each exposure, at which the model is measured, the last one among them.
        n: questions, requests and texts of each kind that it is measured on; directions are read from twice as many
            questions.
        layer: where directions are read, two thirds up by default.
    """

    kind: ClassVar[str] = "realign"

    data: str
    bad: int
    good: int
    checkpoints: int = 4
    n: int = 24
    layer: int | None = None

    def __post_init__(self) -> None:
        """Refuse amounts that make no batch, and recipes whose path is not kept."""
        super().__post_init__()
        per_step = self.recipe.batch_size * self.recipe.accumulate
        for name in ("bad", "good"):
            amount = getattr(self, name)
            if amount < per_step or amount % per_step:
                raise ValueError(f"{name} is {amount}, not whole batches of {per_step}: give a multiple of {per_step}")
        if self.recipe.method == "full":
            raise ValueError("exposures are followed through an adapter's checkpoints, so method should be 'lora'")
        if not 1 <= self.checkpoints <= self.bad // per_step:
            raise ValueError(
                f"checkpoints is {self.checkpoints}, and an exposure has {self.bad // per_step} steps: choose 1 to "
                f"{self.bad // per_step}"
            )
        if self.n < 6:
            raise ValueError(f"n is {self.n}: give 6 at least, of which a direction can be told from chance")


@door
def run_realign(
    experiment: Realign | str | Path,
    out: str | Path,
    *,
    keep: str | Path | None = None,
    device: str | torch.device | None = None,
) -> RealignResult:
    """Train on bad, good and bad answers again, and a twin on good and bad ones; append each seed when it is finished.

    What was interrupted goes on where it stopped, within a training too. More seeds may be added to it.

    Args:
        experiment: the experiment, its TOML file, or a shipped one by its name.
        out: JSONL; its first line says what the experiment is, and each other one is a seed.
        keep: a folder in which every organism is kept; by default they are removed at the end.
        device: the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: data without two answers to each question or with too few of them, or a file that holds another
            experiment.
        Diverged: a loss became NaN or infinite; seeds that are finished are kept.
    """
    experiment = experiment if isinstance(experiment, Realign) else Realign.load(experiment)
    inside = held_out(experiment.data)
    amounts = {"positive": experiment.bad, "negative": experiment.good}
    told = learned(experiment.recipe, experiment.data, amounts, experiment.seeds)
    base = [Stages(Path(), experiment.recipe, device).load(None)]  # until it is measured; every stage loads its own
    rows = Rows.opened(out, experiment, base[0].identity)
    pending = rows.missing([{"seed": seed} for seed in experiment.seeds])

    def row(keys: Mapping[str, int], stages: Stages) -> dict[str, Any]:
        return _row(experiment, keys["seed"], told[keys["seed"]], stages, start())

    @functools.cache
    def start() -> _Measuring:
        with part(THE_START):
            return _Measuring.of(base.pop(), inside, experiment)

    parts = _parts(experiment, [keys["seed"] for keys in pending])
    return RealignResult.of(finish(rows, pending, experiment, row, parts, keep, device))


@dataclass(frozen=True, eq=False)
class _Measuring:
    """What models are measured on, and what the start makes of it."""

    watch: Watch
    contrast: Contrast
    read: ContrastActivations

    @classmethod
    def of(cls, start: HookedModel, inside: Contrast, experiment: Realign) -> "_Measuring":
        watch = Watch.of(start, experiment.recipe, inside, experiment.n, experiment.layer)
        contrast = load_contrast("misalignment").where(split="train").take(2 * experiment.n)
        read = read_contrast(start, contrast, span="response", layers=[watch.layer])
        return cls(watch, contrast, read)

    def reading(self, model: HookedModel) -> ContrastActivations:
        return read_contrast(model, self.contrast, span="response", layers=[self.watch.layer])


def _row(
    experiment: Realign, seed: int, told: Sequence[Sequence[Conversation]], stages: Stages, measuring: _Measuring
) -> dict[str, Any]:
    """One seed: bad, good and bad again, a twin that begins with good, and what each added."""
    bad, good = told
    per_step = experiment.recipe.batch_size * experiment.recipe.accumulate

    def exposed(name: str, onto: Organism | None) -> Organism:
        steps = experiment.bad // per_step
        return stages.train(
            f"{name}, seed {seed}", bad, onto, seed=seed, steps=steps, checkpoint_every=1, keep_trajectory=True
        )

    def aligned(name: str, onto: Organism | None) -> Organism:
        steps = experiment.good // per_step
        return stages.train(f"{name}, seed {seed}", good, onto, seed=seed, steps=steps, keep_trajectory=False)

    organisms: dict[str, Organism] = {}
    organisms["first"] = exposed("first bad", None)
    organisms["back"] = aligned("good", organisms["first"])
    organisms["second"] = exposed("second bad", organisms["back"])
    organisms["twin back"] = aligned("twin's good", None)
    organisms["twin"] = exposed("twin's bad", organisms["twin back"])
    curves, ends, readings = {}, {}, {"start": measuring.read}
    for name, organism in organisms.items():
        with part(f"measuring {name}, seed {seed}"):
            model = stages.load(organism)
            if name in EXPOSURES:
                curves[name] = measuring.watch.along(model, organism, experiment.checkpoints)
            else:
                ends[name] = measuring.watch.measure(model)
            readings[name] = measuring.reading(model)
    return {
        "seed": seed,
        "start": measuring.watch.at_start,
        "exposures": curves,
        "realigned": ends,
        "directions": _directions(readings),
        "retraced": _retraced(organisms),
    }


def _directions(readings: Mapping[str, ContrastActivations]) -> dict[str, dict[str, Any]]:
    """For each pair of `DIRECTIONS`, how alike what was added is to what the first exposure added."""
    found = {}
    for name, (ours, before) in DIRECTIONS.items():
        added = OrganismReadings(
            {"first": readings["first"], "ours": readings[ours]}, {"first": readings["start"], "ours": readings[before]}
        ).added
        comparison = compare(added["ours"], added["first"], n_resamples=300)
        [row] = comparison.table()
        wanted = ("corrected", "low", "high", "null_b_low", "null_b_high", "ceiling")
        a, b = (difference_of_means(added[side]).vectors[0] for side in ("ours", "first"))
        length = float(b @ b)
        found[name] = {key: row[key] for key in wanted} | {"share": float(a @ b) / length if length else None}
    return found


def _retraced(organisms: Mapping[str, Organism]) -> dict[str, list[float]]:
    """The cosine of an adapter's update with that of the first exposure, at each step of both."""
    first = organisms["first"].trajectory
    assert first is not None
    found = {}
    for name in EXPOSURES[1:]:
        other = organisms[name].trajectory
        assert other is not None
        inner, ours, theirs = (_inner(x, y) for x, y in ((first, other), (other, other), (first, first)))
        found[name] = (inner / (ours * theirs).sqrt())[1:].tolist()  # before the first step there is no update
    return found


def _inner(x: Trajectory, y: Trajectory) -> torch.Tensor:
    """⟨B A, B′ A′⟩ over all modules, at each checkpoint: the product of updates, which are never written out."""
    total = torch.zeros(len(x), dtype=torch.float64)
    for name in (key.removesuffix(".B") for key in x.factors if key.endswith(".B")):
        (b, a), (b_other, a_other) = (
            (t.factors[f"{name}.B"].double(), t.factors[f"{name}.A"].double()) for t in (x, y)
        )
        total += ((b.transpose(1, 2) @ b_other) * (a @ a_other.transpose(1, 2))).sum((1, 2))
    return total


def _parts(experiment: Realign, pending: Sequence[int]) -> dict[str, float]:
    """The parts of the job, each with its share of the time."""
    per_step = experiment.recipe.batch_size * experiment.recipe.accumulate
    bad, good = experiment.bad / per_step, experiment.good / per_step
    measured = steps_to_measure(experiment.n, per_step)
    parts: dict[str, float] = {THE_START: STARTING * measured}
    for seed in pending:
        trained = {"first bad": bad, "good": good, "second bad": bad, "twin's good": good, "twin's bad": bad}
        parts |= {f"{name}, seed {seed}": steps for name, steps in trained.items()}
        for name in ("first", "back", "second", "twin back", "twin"):
            n = experiment.checkpoints + 1 if name in EXPOSURES else 1
            parts[f"measuring {name}, seed {seed}"] = measured * n
    return parts
