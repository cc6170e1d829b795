"""Do different organisms converge to one direction, and how much of it does reading the texts alone explain?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.forward import first_adapted_block, keeping
from em_interp.activations.reading import Activations, ContrastActivations, read_contrast
from em_interp.checks import door, shown
from em_interp.directions.comparison import Comparison, compare
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import difference_of_means
from em_interp.models.hooked import HookedModel
from em_interp.organisms.loading import untuned
from em_interp.organisms.seeds import without_seed
from em_interp.progress import bar
from em_interp.statistics.estimates import student
from em_interp.texts.contrasts import Contrast
from em_interp.texts.conversations import Span

_WITH_BASE = "with its base"


@dataclass(frozen=True, eq=False, repr=False)
class OrganismReadings:
    """The same texts read by several organisms, and by each one's base.

    Attributes:
        trained: by organism.
        base: by organism, what the model read that it was trained on.
        folders: by organism, where its recipe and card lie; None where nobody knows.
    """

    trained: Mapping[str, ContrastActivations]
    base: Mapping[str, ContrastActivations]
    folders: Mapping[str, Path | None] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        return f"OrganismReadings({', '.join(self.trained)}; each beside its base)"

    @property
    def added(self) -> dict[str, ContrastActivations]:
        """What each fine-tune added to the stream on each text: trained minus base, conversation by conversation."""
        return {name: self.added_by(name) for name in self.trained}

    def added_by(self, name: str) -> ContrastActivations:
        """What one organism's fine-tune added."""
        return _minus(self.trained[name], self.base[name])


@dataclass(frozen=True, eq=False, repr=False)
class Convergence:
    """How alike the organisms' directions are, each pair with its interval, null and ceiling.

    Attributes:
        same_texts: pairs of organisms whose directions come from the same texts.
        disjoint_texts: the same pairs, one organism reading half of the questions and the other the other half.
        added: the same pairs, of what the fine-tunes added to the direction on the same texts (trained minus base).
        with_base: each organism's direction with its own base's on the same texts.
        explained: by organism and layer, the share of the direction's squared length that lies along its base's.
        layers: the layer axis.
    """

    same_texts: Mapping[tuple[str, str], Comparison]
    disjoint_texts: Mapping[tuple[str, str], Comparison]
    added: Mapping[tuple[str, str], Comparison]
    with_base: Mapping[str, Comparison]
    explained: Mapping[str, Float[Tensor, " layer"]]
    layers: tuple[int, ...]

    def __repr__(self) -> str:
        """One line."""
        return f"Convergence({', '.join(self.with_base)}; {len(self.same_texts)} pairs, {len(self.layers)} layers)"

    @property
    def names(self) -> tuple[str, ...]:
        """The organisms."""
        return tuple(self.with_base)

    def table(self, layer: int) -> list[dict[str, Any]]:
        """One row a pair at one layer: corrected cosine, interval and ceiling, for each way to read the texts."""
        if layer not in self.layers:
            raise ValueError(f"layer {layer} was not read: choose one of {', '.join(map(str, self.layers))}")
        kinds = {"same texts": self.same_texts, "disjoint texts": self.disjoint_texts, "added": self.added}
        rows = [(kind, a, b, c) for kind, pairs in kinds.items() for (a, b), c in pairs.items()]
        rows += [(_WITH_BASE, name, "base", c) for name, c in self.with_base.items()]
        wanted = ("corrected", "low", "high", "ceiling")
        found = []
        for kind, a, b, comparison in rows:
            row = comparison.table()[self.layers.index(layer)]
            found.append({"texts": kind, "a": a, "b": b, **{key: row[key] for key in wanted}})
        return found

    def summary(self, layer: int, groups: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Corrected cosines at one layer, over all pairs within a group of organisms and between two groups.

        With organisms in several seeds a group is an organism: pairs within it show what another seed changes (another
        start of A, another order of the data), and pairs between two organisms what other data change.

        Args:
            layer: one that was read.
            groups: the group of each organism; by default its name without the seed.

        Returns:
            A row for each way to read the texts (`texts`, as in `table`) and each two groups `a` and `b`, of which a
            group with itself is one where it has two members, and a row for each group with its base: the `mean` over
            pairs, its 95 % interval `low` to `high` over members and questions both, the `lowest` and `highest` pair,
            the number of pairs behind them (`n_pairs`), and of those left out since one of the two has no direction
            there that the noise does not drown (`n_without`). All five are NaN where no pair is left; the interval is
            where a pair was left out, and where members are too few to tell how others would differ: two in each group,
            three for pairs within one.

        The interval's part over members is Student's (of two groups Welch's), by the jackknife of a U-statistic, which
        leaves out one member at a time; simulated with 3 and 5 members it covers in 94 to 98 % of the cases.
        Its part over questions is the mean of the pairs' own, as if they erred alike, which models that read the same
        questions nearly do. Their half-widths are added in squares, each side for itself (Zou and Donner 2008).

        Raises:
            ValueError: the layer was not read, or an organism has no group.
        """
        if groups is None:
            groups = {name: without_seed(name) for name in self.names}
        missing = [name for name in self.names if name not in groups]
        if missing:
            raise ValueError(f"{missing[0]} has no group: give one to each of {', '.join(self.names)}")
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in self.table(layer):
            texts, a = row["texts"], groups[row["a"]]
            b = row["b"] if texts == _WITH_BASE else groups[row["b"]]
            found.setdefault((texts, b, a) if (texts, b, a) in found else (texts, a, b), []).append(row)
        return [
            {"texts": texts, "a": a, "b": b, **_over_pairs(rows, _members(rows, groups))}
            for (texts, a, b), rows in found.items()
        ]


def _members(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, str]) -> list[list[str]]:
    """Of each group, those that are in the pairs; a base is what it is, and no member of any."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name in (row["a"],) if row["texts"] == _WITH_BASE else (row["a"], row["b"]):
            found.setdefault(groups[name], []).append(name)
    return [sorted(set(names)) for names in found.values()]


def _over_pairs(rows: Sequence[Mapping[str, Any]], members: Sequence[Sequence[str]]) -> dict[str, float | int]:
    known = [row for row in rows if row["corrected"] is not None]
    counts = {"n_pairs": len(known), "n_without": len(rows) - len(known)}
    cosines = [row["corrected"] for row in known]
    if not known:
        return dict.fromkeys(("mean", "low", "high", "lowest", "highest"), math.nan) | counts
    mean = fmean(cosines)
    of_members = _half_width_over_members(known, members) if len(known) == len(rows) else math.nan
    below, above = (fmean(abs(row[end] - row["corrected"]) for row in known) for end in ("low", "high"))
    low, high = mean - math.hypot(of_members, below), mean + math.hypot(of_members, above)
    if not math.isnan(of_members):
        low, high = max(low, min(mean, -1.0)), min(high, max(mean, 1.0))
    return {"mean": mean, "low": low, "high": high, "lowest": min(cosines), "highest": max(cosines)} | counts


def _half_width_over_members(rows: Sequence[Mapping[str, Any]], members: Sequence[Sequence[str]]) -> float:
    """Of the mean over all pairs of members: Student's, by leaving out one member at a time; NaN where that takes more.

    The variances that two groups' members give the mean are independent, and add up.
    """
    variances = []
    for names in members:
        kept = [[row["corrected"] for row in rows if name not in (row["a"], row["b"])] for name in names]
        if not all(kept):
            return math.nan
        variances.append(((len(names) - 1) * pvariance([fmean(cosines) for cosines in kept]), len(names) - 1))
    total = sum(variance for variance, _ in variances)
    if not total:
        return 0.0
    degrees = total**2 / sum(variance**2 / free for variance, free in variances)  # Welch and Satterthwaite's
    return student(degrees) * math.sqrt(total)


@door
def read_organisms(
    organisms: Iterable[HookedModel],
    contrast: Contrast,
    *,
    span: Span = "response",
    layers: Sequence[int] | None = None,
) -> OrganismReadings:
    """Read one contrast with every organism and with each one's base.

    Blocks below an adapter compute the same with it and without, and the same in all organisms of one base, so they run
    once. A full fine-tune's base is loaded beside it. Several seeds of one organism are told apart by their names,
    `name` and `name (seed 3)`.

    Args:
        organisms: loaded organisms, adapters unmerged. `map(load_bundled, names)` loads one at a time.
        contrast: the texts.
        span: the tokens read.
        layers: all by default. With many organisms, comparing them at one layer takes a fraction of the time.

    Raises:
        ValueError: a model that is not an organism, one that comes twice, or a layer that is not there.
    """
    trained, base, folders = {}, {}, {}
    bases: dict[tuple[str, str | None], tuple[ContrastActivations, Any]] = {}
    for model in bar(iterable=organisms, desc="reading organisms", unit="organism"):
        name, of = organism_name(model), (model.name, model.revision)
        if name in trained:
            raise ValueError(f"organism {name!r} comes twice: name each one once")
        kept = keeping(model, first_adapted_block(model), like=bases[of][1] if of in bases else None)
        trained[name] = replace(read_contrast(kept, contrast, span=span, layers=layers), name=name)
        if of not in bases:
            with untuned(kept) as untuned_model:
                of = untuned_model.name, untuned_model.revision  # a full fine-tune's own are others
                if of not in bases:
                    read = read_contrast(untuned_model, contrast, span=span, layers=layers)
                    bases[of] = replace(read, name="base"), untuned_model.kept
        base[name], folders[name] = bases[of][0], model.folder
    return OrganismReadings(trained, base, folders)


@door
def convergence(readings: OrganismReadings, *, n_resamples: int = 200, seed: int = 0) -> Convergence:
    """Compare every pair of organisms: on the same texts, on disjoint texts, and in what their fine-tunes added.

    Texts that two models both read make their directions alike whatever the fine-tunes did (Soligo et al. 2025, arXiv
    2506.11618, report such cosines; their base model alone reaches .49 to .68). So each pair stands beside the same
    pair on disjoint texts and beside what was added, and each organism beside its own base.
    """
    halves = _halves(next(iter(readings.trained.values())).groups, seed)
    pairs = list(combinations(readings.trained, 2))
    added = readings.added

    def compared(a: ContrastActivations, b: ContrastActivations) -> Comparison:
        return compare(a, b, n_resamples=n_resamples, seed=seed)

    same, disjoint, gained = {}, {}, {}
    for a, b in bar(iterable=pairs, desc="comparing organisms", unit="pair"):
        first, second = readings.trained[a], readings.trained[b]
        same[a, b] = compared(first, second)
        disjoint[a, b] = compared(first.restricted_to(halves[0]), second.restricted_to(halves[1]))
        gained[a, b] = compared(added[a], added[b])
    return Convergence(
        same_texts=same,
        disjoint_texts=disjoint,
        added=gained,
        with_base={name: compared(read, readings.base[name]) for name, read in readings.trained.items()},
        explained={
            name: explained_by(difference_of_means(read), difference_of_means(readings.base[name]))
            for name, read in readings.trained.items()
        },
        layers=next(iter(readings.trained.values())).layers,
    )


@door
def explained_by(trained: Direction, base: Direction) -> Float[Tensor, " layer"]:
    """The share of a direction's squared length that lies along another, layer by layer."""
    along = (trained.vectors * torch.nn.functional.normalize(base.vectors, dim=-1)).sum(-1)
    return (along / trained.norm).square()


def organism_name(model: HookedModel) -> str:
    """The name by which a reading, a card or a figure knows an organism."""
    if not isinstance(model, HookedModel):
        raise TypeError(f"{shown(model)} is not an organism: give what load_bundled or load_organism returns")
    if model.adapter is None and model.folder is None:
        raise ValueError(f"{model!r} has no adapter, and convergence is of organisms: load one")
    return model.adapter.partition("#")[0] if model.adapter else model.name


def _minus(trained: ContrastActivations, base: ContrastActivations) -> ContrastActivations:
    def side(a: Activations, b: Activations) -> Activations:
        if a.groups != b.groups:
            raise ValueError("an organism and its base did not read the same texts: read both with read_organisms")
        return replace(a, values=a.values - b.values)

    return replace(
        trained, positive=side(trained.positive, base.positive), negative=side(trained.negative, base.negative)
    )


def _halves(groups: tuple[str, ...], seed: int) -> tuple[list[str], list[str]]:
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    middle = len(groups) // 2
    return [groups[i] for i in order[:middle]], [groups[i] for i in order[middle:]]
