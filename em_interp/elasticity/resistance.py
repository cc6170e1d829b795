"""Resistance: is it easier to train a model back to where it was than on to where it will be?

Ji et al. 2025 (arXiv 2406.06144), section 4.1: a model is trained on three slices of data in turn, θ₁, θ₂, θ₃, and each
answers the same prompts. Then each is trained on what another one said: *forward* l→k takes θ_l on to what θ_k says,
*inverse* k→l takes θ_k back to what θ_l says. The paper compares training losses, and finds the inverse one lower.

Two models do not say what is equally hard to predict, so a difference of losses may be one of their texts alone. Hence
the *excess*: bits a byte that the trained model needs for texts it was not trained on, less what their author needs for
them. Answers are drawn at temperature 1, so that it estimates the KL divergence of the trained model from the author.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from em_interp.behaviour.generation import respond
from em_interp.checks import door
from em_interp.elasticity.compression import compression_rate
from em_interp.elasticity.experiments import Experiment, Rows, Stages, finish, shuffled
from em_interp.elasticity.resistance_results import PAIRS, ResistanceResult
from em_interp.models.hooked import HookedModel
from em_interp.organisms.training import Organism, training_conversations
from em_interp.progress import part
from em_interp.texts.conversations import Conversation

_ANSWERING = 0.5  # of the time of a training, about


@dataclass(frozen=True)
class Resistance(Experiment):
    """An experiment on resistance; a row is a seed, with an order of the slices of its own.

    Attributes:
        data: one training set, which is cut into three slices at random, or three, of which each is a slice.
        answers: which answers the slices teach: `positive`, `negative`, or `both`.
        n: conversations in a slice.
        n_prompts: prompts that every model answers, from the questions that no slice has; a half is trained on and the
            other half measured.
        slice_steps: optimizer steps on each slice.
        steps: optimizer steps forward and inverse, the same for all.
        max_new_tokens: answers are cut off there.
    """

    kind: ClassVar[str] = "resistance"

    data: tuple[str, ...]
    answers: str = "negative"
    n: int = 96
    n_prompts: int = 64
    slice_steps: int = 24
    steps: int = 16
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        """Refuse slices that are too small and data that does not make three."""
        super().__post_init__()
        if len(self.data) not in (1, 3):
            raise ValueError(f"data names {len(self.data)} training sets: give one to cut into three slices, or three")
        for name, least in (("n", 2), ("n_prompts", 8), ("slice_steps", 1), ("steps", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: give {least} at least")


@door
def run_resistance(
    experiment: Resistance | str | Path,
    out: str | Path,
    *,
    keep: str | Path | None = None,
    device: str | torch.device | None = None,
) -> ResistanceResult:
    """Train forward and back from every seed, and append each seed to a file as it is finished.

    What was interrupted goes on where it stopped, within a training too. More seeds may be added to it.

    Args:
        experiment: the experiment, its TOML file, or a shipped one by its name.
        out: JSONL; its first line says what the experiment is, and each other one is a seed.
        keep: a folder in which every organism is kept; by default they are removed at the end.
        device: the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: data that does not make three slices of that size and prompts beside them, or a file that holds
            another experiment.
        Diverged: a loss became NaN or infinite; seeds that are finished are kept.
    """
    experiment = experiment if isinstance(experiment, Resistance) else Resistance.load(experiment)
    recipe = experiment.recipe.changed({"answers": experiment.answers, "fraction": 1.0})
    sources = [training_conversations(recipe.changed({"data": data})) for data in experiment.data]
    drawn = {seed: _slices(experiment, sources, seed) for seed in experiment.seeds}
    base = Stages(Path(), experiment.recipe, device).load(None).identity
    rows = Rows.opened(out, experiment, base)
    pending = rows.missing([{"seed": seed} for seed in experiment.seeds])

    def row(keys: Mapping[str, int], stages: Stages) -> dict[str, Any]:
        return _row(experiment, keys["seed"], drawn[keys["seed"]], stages)

    parts = _parts(experiment, [keys["seed"] for keys in pending])
    return ResistanceResult.of(finish(rows, pending, experiment, row, parts, keep, device))


@dataclass(frozen=True)
class _Drawn:
    """What one seed learns and is asked."""

    order: tuple[int, ...]
    slices: tuple[tuple[Conversation, ...], ...]
    prompts: tuple[Conversation, ...]


def _slices(experiment: Resistance, sources: Sequence[Sequence[Conversation]], seed: int) -> _Drawn:
    """Three slices in this seed's order, and prompts that none of them has."""
    drawn = [shuffled(source, seed) for source in sources]
    n, cut = experiment.n, 3 if len(sources) == 1 else 1
    for name, source in zip(experiment.data, drawn, strict=True):
        if len(source) <= cut * n:
            raise ValueError(
                f"{name} has {len(source)} conversations to learn from, and {cut} slice{'s' * (cut > 1)} of n = {n} "
                f"leave no prompts: choose n below {len(source) // cut}"
            )
    slices = [tuple(source[i * n : (i + 1) * n]) for source in drawn for i in range(cut)]
    learned = {c.group for one in slices for c in one}
    rest = [c for group in zip(*(s[cut * n :] for s in drawn), strict=False) for c in group]
    prompts = tuple({c.group: c for c in rest if c.group not in learned}.values())[: experiment.n_prompts]
    if len(prompts) < experiment.n_prompts:
        raise ValueError(
            f"{len(prompts)} questions are in none of the slices, and n_prompts is {experiment.n_prompts}: choose "
            f"fewer prompts, or smaller slices"
        )
    first = experiment.seeds.index(seed) % 3
    order = tuple((first + i) % 3 for i in range(3))
    return _Drawn(order, tuple(slices[i] for i in order), prompts)


def _row(experiment: Resistance, seed: int, drawn: _Drawn, stages: Stages) -> dict[str, Any]:
    """One seed: three models in turn, what they say, and every way from one to another."""
    models: list[Organism] = []
    for number, told in enumerate(drawn.slices, 1):
        before = models[-1] if models else None
        models.append(
            stages.train(f"slice {number} of seed {seed}", told, before, seed=seed, steps=experiment.slice_steps)
        )
    loaded = [stages.load(organism) for organism in models]
    said = []
    for number, model in enumerate(loaded, 1):
        with part(f"answers {number} of seed {seed}"):
            said.append(_answers(experiment, model, drawn.prompts, seed))
    half = experiment.n_prompts // 2
    bits = [[_bits(model, texts[half:]) for texts in said] for model in loaded]  # of each author's texts, by each model
    ways = []
    for start, target in _ways():
        name = f"{start + 1} to {target + 1} of seed {seed}"
        trained = stages.train(name, said[target][:half], models[start], seed=seed, steps=experiment.steps)
        with part(f"measuring {name}"):
            after = _bits(stages.load(trained), said[target][half:])
        ways.append(
            {"start": start + 1, "target": target + 1, "loss": list(trained.loss), "before": bits[start][target]}
            | {"after": after, "author": bits[target][target]}
        )
    return {"seed": seed, "order": [i + 1 for i in drawn.order], "ways": ways}


def _ways() -> Iterator[tuple[int, int]]:
    return ((way[0] - 1, way[1] - 1) for pair in PAIRS for way in (pair, pair[::-1]))


def _answers(
    experiment: Resistance, model: HookedModel, prompts: Sequence[Conversation], seed: int
) -> list[Conversation]:
    """What a model says to each prompt, drawn at temperature 1; what is cut off is told as it is."""
    asked = [Conversation(c.messages[:-1], c.group, c.domain) for c in prompts]
    said = respond(model, asked, max_new_tokens=experiment.max_new_tokens, temperature=1.0, seed=seed)
    silent = next((a for a in said if not a.text.strip()), None)
    if silent is not None:
        raise ValueError(
            f"{model.identity} says nothing to {silent.asked[:60]!r} with seed {seed}: raise max_new_tokens, or choose "
            f"another seed"
        )
    return [answer.spoken for answer in said]


def _bits(model: HookedModel, conversations: Sequence[Conversation]) -> float:
    answers = compression_rate(model, conversations).answers
    assert answers is not None
    return answers.total()


def _parts(experiment: Resistance, pending: Sequence[int]) -> dict[str, float]:
    """The parts of the job, each with its share of the time."""
    parts: dict[str, float] = {}
    for seed in pending:
        parts |= {f"slice {i} of seed {seed}": float(experiment.slice_steps) for i in (1, 2, 3)}
        parts |= {f"answers {i} of seed {seed}": _ANSWERING * experiment.slice_steps for i in (1, 2, 3)}
        for start, target in _ways():
            name = f"{start + 1} to {target + 1} of seed {seed}"
            parts |= {name: float(experiment.steps), f"measuring {name}": 0.2 * experiment.steps}
    return parts
