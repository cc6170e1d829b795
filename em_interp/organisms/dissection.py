"""An organism taken apart: its direction beside its bases', its adapter opened, its training, its relatives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from em_interp.activations.reading import ContrastActivations, read_contrast
from em_interp.checks import door
from em_interp.circuits.readout import TokenReadout, logit_lens
from em_interp.directions.comparison import Comparison, compare
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import difference_of_means
from em_interp.lora.modules import LoraModule, lora_modules
from em_interp.lora.scalars import (
    AdapterScalars,
    ClassScalars,
    ScalarProbe,
    adapter_scalars,
    class_scalars,
    probe_scalars,
)
from em_interp.lora.writes import Downstream, WriteCosines, propagate, write_cosines, write_directions
from em_interp.models.hooked import HookedModel, without_adapter
from em_interp.organisms.cards import load_card
from em_interp.organisms.effects import OrganismEffects
from em_interp.organisms.loading import load_base, organism_folder, seed_folders
from em_interp.organisms.phase_change import Phases, phases
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.relatives import Convergence, OrganismReadings, convergence, explained_by, organism_name
from em_interp.organisms.seeds import seed_of
from em_interp.organisms.trajectories import Trajectory
from em_interp.texts.contrasts import Contrast
from em_interp.texts.conversations import Conversation, Span

_SHOWN = 12  # components in a figure
_PROPAGATED = 24  # conversations through which a write is followed downstream
_COMPARISON_RESAMPLES = 200
_FOLDS = 5  # of the probe
_FEWEST = 12  # checkpoints, for a turn to be looked for


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """A LoRA adapter opened.

    Attributes:
        writes: what it writes along each direction, at its own layers.
        downstream: what the strongest write becomes, along each direction.
        strongest: the name of that write.
        readout: the tokens that it makes likelier and less likely.
        scalars: of held-out answers, the positive ones first.
        classes: how strongly the strongest components fire in both classes of answers.
        probe: how well the class can be read off the scalars.
        n_positive: how many of the conversations are of the positive class.
    """

    writes: tuple[WriteCosines, ...]
    downstream: tuple[Downstream, ...]
    strongest: str
    readout: TokenReadout
    scalars: AdapterScalars
    classes: tuple[ClassScalars, ...]
    probe: ScalarProbe | None
    n_positive: int

    def __repr__(self) -> str:
        """One line."""
        return f"Adapter({len(self.scalars.modules)} components, strongest {self.strongest})"


@dataclass(frozen=True, eq=False, repr=False)
class Dissection:
    """What is known of an organism beside its two directions. Parts that are None or empty could not be had.

    Attributes:
        organism: its name.
        by_model: first × second direction in each model, from the first base to the organism.
        same_texts: the organism's first direction with that of its base on the same texts.
        explained: by layer, the share of its squared length that lies along its base's.
        added: what the fine-tune added to the first direction, with the base's second direction.
        adapter: opened; None where it writes nothing to the residual stream.
        phases: its training.
        convergence: with the organisms beside it.
        effects: the measured cards of this organism, of what it was trained onto, and of those beside it, each over all
            the seeds that it comes in.
    """

    organism: str
    by_model: Mapping[str, Comparison]
    same_texts: Comparison
    explained: Float[Tensor, " layer"]
    added: Comparison
    adapter: Adapter | None
    phases: Phases | None
    convergence: Convergence | None
    effects: Mapping[str, OrganismEffects]

    def __repr__(self) -> str:
        """One line."""
        return f"Dissection({self.organism!r} in {' → '.join(self.by_model)})"


@door
def dissect(  # noqa: PLR0913 - a model, what was read, and what it is held against
    model: HookedModel,
    first: OrganismReadings,
    second: OrganismReadings,
    contrasts: tuple[Contrast, Contrast],
    *,
    spans: tuple[Span, Span] = ("response", "last"),
    controls: Sequence[Direction] = (),
    held_out: Contrast | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Dissection:
    """Take an organism apart.

    Args:
        model: with its adapter unmerged; its folder, if it has one, holds its recipe, trajectory and card.
        first: the first contrast read by this organism (the first of the readings) and by those beside it.
        second: the second contrast read by this organism.
        contrasts: the texts of both.
        spans: the tokens that both were read on.
        controls: directions of the base beside which the adapter's writes are shown. They and both contrasts' are the
            base's, since in the organism's own stream the adapter would meet again what it wrote.
        held_out: answers of both classes, of questions that the first direction was not read from: what the adapter's
            scalars are read on.
        n_resamples: permutations, halvings and draws of signs behind nulls, ceilings and intervals.
        seed: of all of them.
    """
    name, folder = organism_name(model), model.folder
    trained, base = (replace(read[name], name=contrasts[0].name) for read in (first.trained, first.base))
    trained_second, base_second = (replace(r[name], name=contrasts[1].name) for r in (second.trained, second.base))

    def compared(a: ContrastActivations, b: ContrastActivations) -> Comparison:
        return compare(a, b, n_resamples=n_resamples, seed=seed)

    own_added = replace(first.added_by(name), name=f"{contrasts[0].name}, added")
    onto = Recipe.load(folder / "recipe.toml").onto if folder else None
    by_model = {}
    if onto:
        under = load_base(onto)
        reads = [read_contrast(under, c, span=s) for c, s in zip(contrasts, spans, strict=True)]
        by_model[under.name] = compared(reads[0], reads[1])
    by_model[onto or "base"] = compared(base, base_second)
    by_model[name] = compared(trained, trained_second)
    of_base = (difference_of_means(base), difference_of_means(base_second))
    folders = [*([organism_folder(onto)] if onto else []), *(f for f in first.folders.values() if f)]
    return Dissection(
        organism=name,
        by_model=by_model,
        same_texts=compared(trained, replace(base, name=f"{base.name}, base")),
        explained=explained_by(difference_of_means(trained), of_base[0]),
        added=compared(own_added, base_second),
        adapter=open_adapter(model, of_base, controls, held_out, seed=seed),
        phases=_training(folder, seed) if folder else None,
        convergence=convergence(first, n_resamples=_COMPARISON_RESAMPLES, seed=seed)
        if len(first.trained) > 1
        else None,
        effects=_measured(folders),
    )


@door
def open_adapter(
    model: HookedModel,
    directions: Sequence[Direction],
    controls: Sequence[Direction] = (),
    held_out: Contrast | None = None,
    *,
    seed: int = 0,
) -> Adapter | None:
    """What an adapter writes, what becomes of it, what it promotes, and when it fires; None where it writes nothing."""
    modules = {module.name: module for module in lora_modules(model)}
    if held_out is None or not any(module.writes_to_stream for module in modules.values()):
        return None
    writes = write_directions(tuple(modules.values()))
    top = int(writes.strengths.argmax())
    answers: list[Conversation] = [*held_out.positive, *held_out.negative]
    scalars = adapter_scalars(model, answers, span="response")
    with without_adapter(model):
        after = propagate(
            model,
            writes.vectors[top],
            held_out.negative[:_PROPAGATED],
            layer=writes.layers[top],
            coefficient=usual_size(modules[writes.modules[top]], writes.vectors[top], scalars),
        )
    after = replace(after, name=writes.names[top])
    labels = [True] * len(held_out.positive) + [False] * len(held_out.negative)
    fired = class_scalars(scalars, labels)
    by_strength = list(dict.fromkeys(writes.modules[i] for i in writes.strengths.argsort(descending=True).tolist()))
    shown = [c for name in by_strength for module, c in zip(scalars.modules, fired, strict=True) if module == name]
    return Adapter(
        writes=tuple(write_cosines(writes, d, controls) for d in directions),
        downstream=tuple(after.along(d) for d in directions),
        strongest=writes.names[top],
        readout=logit_lens(model, writes.vectors[top]),
        scalars=scalars,
        classes=tuple(shown[:_SHOWN]),
        probe=probe_scalars(scalars, labels, seed=seed) if len(set(scalars.groups)) >= _FOLDS else None,
        n_positive=len(held_out.positive),
    )


def usual_size(module: LoraModule, unit: Float[Tensor, " d_model"], scalars: AdapterScalars) -> float:
    """Standard deviation, over the span's tokens, of what a module writes along a unit vector."""
    written = scalars.of(module.name)[scalars.in_span] @ (module.written.mT @ unit)
    return float(written.std(correction=0))


def _training(folder: Path, seed: int) -> Phases | None:
    path = folder / "trajectory.safetensors"
    trajectory = Trajectory.load(path) if path.is_file() else None
    return phases(trajectory, seed=seed) if trajectory is not None and len(trajectory) >= _FEWEST else None


def _measured(folders: Sequence[Path]) -> dict[str, OrganismEffects]:
    """The effects on each organism's card, over all its seeds, of those that have one."""
    tops = [folder if seed_of(folder) is None else folder.parent for folder in folders]
    known = [top for top in tops if all((path / "card.json").is_file() for path in seed_folders(top))]
    cards = [load_card(top) for top in dict.fromkeys(known)]
    return {card.name: card.effects for card in cards}
