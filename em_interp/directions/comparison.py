"""Compare two differences of means layer by layer: noise-corrected cosine, interval, null and ceiling."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from em_interp.activations.reading import ContrastActivations
from em_interp.checks import door
from em_interp.directions.direction import Direction, dominance, dominated
from em_interp.directions.estimators import deviations
from em_interp.directions.intervals import Noisy, cosine_interval
from em_interp.statistics.resampling import (
    class_sums,
    mean_weights,
    numbered,
    permuted_labels,
    random_halves,
)
from em_interp.statistics.wild_bootstrap import Signs

Metric = Literal["plain", "standardised"]

_TINY = 1e-30
_SIGN = torch.tensor([1.0, -1.0], dtype=torch.float64)  # of the positive and of the negative class
_TIE = 1 - 1e-5  # permutations that give the labels back must count as ties in spite of float32


@dataclass(frozen=True, eq=False)
class Comparison:
    """How two directions relate at every layer: cosine with interval, null, ceiling and controls.

    Every tensor has one entry a layer. Entries of `corrected`, `low`, `high` and `standard_error` are NaN where
    either side has no direction.

    Attributes:
        a: name of the first contrast.
        b: name of the second contrast.
        metric: `plain`, or `standardised`: dimensions in units of their deviation within the classes of both.
        cosine: plug-in cosine of the two differences of means, as published; noise pulls it towards zero.
        corrected: the noise-corrected cosine, an unbiased inner product over the root of two unbiased squared norms.
            Noise can carry it past ±1.
        low: lower end of its 95 % interval, −1 where the data exclude no cosine; the estimate where that is lower.
        high: upper end, 1 where the data exclude no cosine; the estimate where that is higher.
        standard_error: of the corrected cosine, by the jackknife over questions, products of two questions' noise
            counted once. The interval is not made from it.
        found_a: whether a has a direction there: its norm exceeds that of permuted labels (5 %, one layer at a time).
        found_b: the same of b.
        null_a: 2.5 % and 97.5 % quantiles of the plug-in cosine when a's labels are permuted.
        null_b: the same for b's labels.
        p_a: two-sided permutation p-value of the plug-in cosine against `null_a`.
        p_b: the same against `null_b`.
        p_anywhere_a: p-value of the largest |cosine| of all layers, a's labels permuted at every layer alike.
        p_anywhere_b: the same for b's labels.
        ceiling_a: mean plug-in cosine between the directions of random halves of a's questions.
        ceiling_b: the same of b.
        dominance_a: share of the squared length of a's difference of means that lies in three dimensions.
        dominance_b: the same of b.
        dominated: whether that is more than half of either, beyond what any three dimensions hold: the cosine there
            says what a few dimensions do, and not what the directions do.
        controls: names of the control contrasts.
        controls_a: corrected cosine of a with each control, NaN where either has no direction.
        controls_b: the same of b.
        controls_a_plug_in: plug-in cosine of a with each control.
        controls_b_plug_in: the same of b.
    """

    a: str
    b: str
    layers: tuple[int, ...]
    n_questions_a: int
    n_questions_b: int
    n_resamples: int
    seed: int
    metric: Metric
    cosine: Float[Tensor, " layer"]
    corrected: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    standard_error: Float[Tensor, " layer"]
    found_a: Bool[Tensor, " layer"]
    found_b: Bool[Tensor, " layer"]
    null_a: Float[Tensor, "2 layer"]
    null_b: Float[Tensor, "2 layer"]
    p_a: Float[Tensor, " layer"]
    p_b: Float[Tensor, " layer"]
    p_anywhere_a: float
    p_anywhere_b: float
    ceiling_a: Float[Tensor, " layer"]
    ceiling_b: Float[Tensor, " layer"]
    dominance_a: Float[Tensor, " layer"]
    dominance_b: Float[Tensor, " layer"]
    dominated: Bool[Tensor, " layer"]
    controls: tuple[str, ...]
    controls_a: Float[Tensor, "control layer"]
    controls_b: Float[Tensor, "control layer"]
    controls_a_plug_in: Float[Tensor, "control layer"]
    controls_b_plug_in: Float[Tensor, "control layer"]

    @property
    def reliability_a(self) -> Float[Tensor, " layer"]:
        """Share of the squared length of a's full-data direction that is signal: 2c/(1 + c) of the halves' cosine c."""
        return _spearman_brown(self.ceiling_a)

    @property
    def reliability_b(self) -> Float[Tensor, " layer"]:
        """Share of the squared length of b's full-data direction that is signal."""
        return _spearman_brown(self.ceiling_b)

    @property
    def ceiling(self) -> Float[Tensor, " layer"]:
        """The plug-in cosine that two equal true directions would show with this much independent noise.

        The root of the product of the reliabilities. Contrasts that share questions share noise and can exceed it.
        """
        return (self.reliability_a * self.reliability_b).sqrt()

    def table(self) -> list[dict[str, Any]]:
        """One dict a layer, of plain numbers, ready for JSON: None where there is no direction."""
        columns: dict[str, Any] = {"layer": self.layers}
        for name in _COLUMNS:
            columns[name] = _plain(getattr(self, name))
        for side in "ab":
            low, high = getattr(self, f"null_{side}")
            columns |= {f"null_{side}_low": _plain(low), f"null_{side}_high": _plain(high)}
            for control, row in zip(self.controls, getattr(self, f"controls_{side}"), strict=True):
                columns[f"control_{side}: {control}"] = _plain(row)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        here, row = self.found_a & self.found_b, clearest(self)
        if not here.any():
            peak = "no direction here at any layer"
        elif row is None:
            peak = "none told from chance"
        else:
            peak = (
                f"clearest at layer {self.layers[row]}: {self.corrected[row]:.2f} "
                f"[{self.low[row]:.2f}, {self.high[row]:.2f}]"
            )
        if here.any() and not here.all():
            peak += f", no direction at {int((~here).sum())}"
        if self.dominated.any():
            peak += f", three dimensions dominate at {int(self.dominated.sum())}"
        metric = f", {self.metric}" * (self.metric != "plain")
        return (
            f"Comparison({self.a!r} × {self.b!r}{metric}, {len(self.layers)} layers, {self.n_questions_a} and "
            f"{self.n_questions_b} questions, {peak})"
        )

    def _repr_html_(self) -> str:
        a, b = html.escape(self.a), html.escape(self.b)
        titles = (
            "layer",
            "cosine",
            "noise-corrected",
            "95 % interval",
            "plug-in ceiling",
            "in three dimensions",
            f"null of {a}",
            f"null of {b}",
        )
        body = "".join(_html_row([str(layer), *self._cells(row)]) for row, layer in enumerate(self.layers))
        head = "".join(f"<th>{title}</th>" for title in titles)
        return f"<table><caption>{a} × {b}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _cells(self, row: int) -> list[str]:
        found = bool(self.found_a[row] & self.found_b[row])
        return [
            f"{self.cosine[row]:.2f}",
            f"{self.corrected[row]:.2f}" if found else "no direction here",
            f"{self.low[row]:.2f} … {self.high[row]:.2f}" if found else "",
            f"{self.ceiling[row]:.2f}",
            f"{self.dominance_a[row]:.0%}, {self.dominance_b[row]:.0%}",
            *(f"{null[0, row]:.2f} … {null[1, row]:.2f}" for null in (self.null_a, self.null_b)),
        ]


_COLUMNS = (
    *("cosine", "corrected", "low", "high", "standard_error", "found_a", "found_b", "p_a", "p_b"),
    *("ceiling_a", "ceiling_b", "ceiling", "dominance_a", "dominance_b", "dominated"),
)


@door
def compare(  # noqa: PLR0913 - what is compared, and how, all keyword-only
    a: ContrastActivations,
    b: ContrastActivations,
    *,
    controls: Sequence[ContrastActivations] = (),
    metric: Metric = "plain",
    n_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare the directions of two contrasts at every layer, with what noise alone and noise at best would show.

    Noise makes every difference of means longer and so every cosine of two of them smaller. The corrected cosine
    divides by lengths that are free of that: products of a question with itself are left out of inner product and
    squared norms, also between a and b where they share a question (two models reading the same texts).

    The 95 % interval is Fieller's (1954), for a ratio whose denominator is uncertain: all cosines c for which inner
    product − c · length, over its delete-one-question jackknife error, is as usual as in draws where the noise of each
    question has a random sign (a wild bootstrap). Simulated with 24, 48 and 128 questions, cosines of 0 to 0.98,
    isotropic, log-normal and heavy-tailed noise, separate and shared questions, one row a question and several, it
    covers the truth in 93 to 99 % of the cases with both directions found, on average in 96 %. Where few dimensions
    carry the noise it is rather too wide than too narrow: 98 % on average, 99.5 % at most. Where a direction is barely
    found, the estimates are a selection and can be far off, most of all when a and b share questions, so read the
    interval.

    A side has a direction at a layer when the norm of its difference of means is among the largest 5 % of those under
    permuted labels, whatever the shape of the noise, and stays positive when noise is taken out of it. With one pair of
    conversations a question this takes six questions.

    Labels are permuted within a question that has both classes. Questions that have one class only exchange their
    labels as whole units, all rows of a question together. Halves are drawn by question, separately from questions
    with both classes, with the positive one only and with the negative one only.

    Args:
        a: activations of the first contrast.
        b: activations of the second; its model may differ (base and organism), its span and texts too.
        controls: contrasts that should show no direction of interest, at any span, for scale.
        metric: `plain` takes the residual stream as it is, where a few massive dimensions can make up a cosine;
            `standardised` divides every dimension by its standard deviation within the classes of a and b first.
        n_resamples: how many permutations, halvings and draws of signs.
        seed: of both.

    Raises:
        ValueError: the metric is unknown; site, layers or width differ, several positions are in one contrast, there
            are fewer than three questions with rows of each class, or a dimension has no deviation to be divided by.
    """
    contrasts = (a, b, *controls)
    if metric not in get_args(Metric):
        raise ValueError(f"metric {metric!r} is unknown: choose one of {', '.join(get_args(Metric))}")
    _check(contrasts, n_resamples)
    units = deviations([a, b]) if metric == "standardised" else torch.ones(len(a.layers), 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    sides = [_side(contrast, n_resamples, generator) for contrast in contrasts]
    signs = Signs.drawn(a.groups + b.groups, n_resamples, seed=seed)
    blocks = [
        _compare_block([_read(side, layers, units[layers]) for side in sides], signs) for layers in _blocks(sides)
    ]
    found = {name: torch.cat([block[name] for block in blocks], -1) for name in blocks[0]}
    permuted = {side: found.pop(f"permuted_{side}") for side in "ab"}
    nulls: dict[str, Any] = {}
    for side, cosines in permuted.items():
        nulls |= {f"{name}_{side}": value for name, value in _null(cosines).items()}
    return Comparison(
        a=a.name,
        b=b.name,
        layers=a.layers,
        n_questions_a=len(a.groups),
        n_questions_b=len(b.groups),
        n_resamples=n_resamples,
        seed=seed,
        metric=metric,
        controls=tuple(control.name for control in controls),
        **found,
        **nulls,
    )


@door
def cosine_map(a: Direction, b: Direction) -> Float[Tensor, "layer_a layer_b"]:
    """Plug-in cosines of every layer of one direction with every layer of another."""
    if a.d_model != b.d_model:
        raise ValueError(
            f"direction {a.name!r} has d_model {a.d_model} and {b.name!r} has {b.d_model}: the cosine needs two "
            f"directions of one width, read from the same model or from a fine-tune of it"
        )
    return a.unit @ b.unit.T


# ---------------------------------------------------------------- resampling, the same at every layer


@dataclass(frozen=True, eq=False)
class _Side:
    """One contrast with the weights on its rows that give a difference of means.

    Row 0 of `weights` has the true labels; then come the permuted labels, the first halves and the second halves.
    """

    contrast: ContrastActivations
    n_resamples: int
    weights: Float[Tensor, "resample row"]
    positive: Bool[Tensor, " row"]
    questions: tuple[str, ...]
    question: Int[Tensor, " row"]
    counts: Float[Tensor, "2 question 1"]  # rows of each class, positive first, and question

    @property
    def shares(self) -> Float[Tensor, "2 question 1"]:
        """Each question's share in the mean of each class."""
        return self.counts / self.counts.sum(1, keepdim=True)


def _side(contrast: ContrastActivations, n_resamples: int, generator: torch.Generator) -> _Side:
    groups = contrast.positive.groups + contrast.negative.groups
    question = numbered(groups)
    positive = torch.arange(len(groups)) < len(contrast.positive)
    labels = torch.cat([positive[None], permuted_labels(positive, groups, n_resamples, generator)])
    half = random_halves(positive, groups, n_resamples, generator)
    plus = torch.cat([labels, half & positive, ~half & positive])
    minus = torch.cat([~labels, half & ~positive, ~half & ~positive])
    weights = (mean_weights(plus) - mean_weights(minus)).float()
    counts = class_sums(torch.ones(len(groups), 1).double(), positive, question)
    return _Side(contrast, n_resamples, weights, positive, contrast.groups, question, counts)


# ---------------------------------------------------------------- a block of layers


@dataclass(frozen=True, eq=False)
class _Read:
    """One side at a few layers, its rows centred between the class means so that every product is of differences."""

    side: _Side
    rows: Float[Tensor, "layer row d_model"]
    sums: Float[Tensor, "layer 2 question d_model"]  # of the rows of each class, positive first, and question
    direction: Float[Tensor, "layer d_model"]
    noise: Float[Tensor, "layer question d_model"]  # how far each question pulls the direction, its variance unbiased
    squared: Float[Tensor, " layer"]  # unbiased squared norm
    norms: Float[Tensor, "layer permutation"]  # of the difference of means under the true labels, then permuted ones
    found: Bool[Tensor, " layer"]
    ceiling: Float[Tensor, " layer"]

    def permuted_cosines(self, direction: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer permutation"]:
        inner = _dots(self.rows, direction[:, None]).float() @ self.side.weights[: self.norms.shape[1]].T
        cosines = inner / (self.norms * direction.norm(dim=-1, keepdim=True).float()).clamp_min(_TINY)
        return torch.where(self.norms > 0, cosines.clamp(-1, 1), 0)


def _blocks(sides: Sequence[_Side]) -> list[slice]:
    """Few enough layers at a time that what is held of them is a few hundred megabytes."""
    contrast, rows = sides[0].contrast, max(len(side.positive) for side in sides)
    held = rows * max(contrast.d_model, len(sides[0].weights), 4 * rows)
    n = max(1, 2**22 // held)
    return [slice(first, first + n) for first in range(0, len(contrast.layers), n)]


def _read(side: _Side, layers: slice, units: Float[Tensor, "*layer #d_model"]) -> _Read:
    values = [c.values[:, layers].transpose(0, 1) for c in (side.contrast.positive, side.contrast.negative)]
    rows = torch.cat(values, 1).double() / units[:, None]
    means = torch.stack([rows[:, side.positive].mean(1), rows[:, ~side.positive].mean(1)], 1)
    rows, direction = rows - means.mean(1, keepdim=True), means[:, 0] - means[:, 1]
    sums, total = class_sums(rows, side.positive, side.question), side.counts.sum(1, keepdim=True)
    # The class means lie at plus and minus half the direction now.
    residuals = (sums - side.counts * torch.stack([direction, -direction], 1)[:, :, None] / 2) / total
    # Means pass through their own rows, so residuals are too small by the share that a question has in them.
    residuals = residuals / (1 - side.shares).sqrt()
    squared = _inner_product((sums, side.counts), (sums, side.counts), torch.arange(len(side.questions)))
    n, applied = side.n_resamples, _times_gram(side.weights, rows)
    norms = _dots(applied, side.weights)
    # What float32 leaves of the length of two equal means is no length.
    norms = torch.where(norms > 1e-6 * rows.square().sum(-1).mean(-1, keepdim=True), norms, 0).sqrt()
    of_labels, of_halves, of_others = norms.split([n + 1, n, n], -1)
    between_halves = _dots(applied[:, n + 1 : 2 * n + 1], side.weights[2 * n + 1 :])
    ceiling = (between_halves / (of_halves * of_others).clamp_min(_TINY)).double().mean(-1)
    p = (of_labels >= of_labels[:, :1] * _TIE).double().mean(-1)
    found = (p <= 0.05) & (squared > 0)
    return _Read(side, rows, sums, direction, residuals[:, 0] - residuals[:, 1], squared, of_labels, found, ceiling)


def _dots(x: Float[Tensor, "*#vector dim"], y: Float[Tensor, "*#vector dim"]) -> Float[Tensor, "*vector"]:
    return (x * y).sum(-1)


def _times_gram(
    weights: Float[Tensor, "resample row"], rows: Float[Tensor, "layer row d_model"]
) -> Float[Tensor, "layer resample row"]:
    """`weights @ rows @ rows.T`, multiplied in the cheaper order, in float32."""
    x = rows.float()
    return weights @ (x @ x.mT) if x.shape[1] < 2 * x.shape[2] else weights @ x @ x.mT


def _pair(a: _Read, b: _Read) -> dict[str, Float[Tensor, " layer"]]:
    """Plug-in cosine and corrected cosine, which is NaN where either side has no direction."""
    lengths = a.direction.norm(dim=-1) * b.direction.norm(dim=-1)
    plug_in = (_dots(a.direction, b.direction) / lengths.clamp_min(_TINY)).clamp(-1, 1)
    n = len(a.side.questions)
    at_b = numbered(a.side.questions + b.side.questions)[n:]  # a's questions come first, in their own order
    inner = _inner_product((a.sums, a.side.counts), (b.sums, b.side.counts), at_b)
    corrected = inner / (a.squared * b.squared).sqrt()
    return {"cosine": plug_in, "corrected": torch.where(a.found & b.found, corrected, math.nan)}


def _interval(
    a: _Read, b: _Read, corrected: Float[Tensor, " layer"], signs: Signs
) -> dict[str, Float[Tensor, " layer"]]:
    """Both ends of the corrected cosine's interval and its standard error, NaN where it is."""
    found = corrected.isfinite()
    columns = torch.full((3, len(found)), math.nan, dtype=corrected.dtype)
    if found.any():
        noisy_a, noisy_b = (
            Noisy(x.direction[found], x.noise[found], x.squared[found], x.side.questions, x.side.shares.mean(0)[:, 0])
            for x in (a, b)
        )
        columns[:, found] = torch.stack(cosine_interval(noisy_a, noisy_b, corrected[found], signs))
    return dict(zip(("low", "high", "standard_error"), columns, strict=True))


def _inner_product(
    x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], at_y: Int[Tensor, " question_y"]
) -> Float[Tensor, " layer"]:
    """Unbiased inner product of two differences of means, each given as its sums and counts.

    Only products of two different questions count, so noise has no product with itself.
    """
    products = _between_questions(x[0], y[0], at_y) / _between_questions(x[1][None], y[1][None], at_y)
    return einsum(_SIGN, _SIGN, products, "class_x, class_y, layer class_x class_y -> layer")


def _between_questions(
    x: Float[Tensor, "layer 2 question_x dim"],
    y: Float[Tensor, "layer 2 question_y dim"],
    at_y: Int[Tensor, " question_y"],
) -> Float[Tensor, "layer 2 2"]:
    """Sum of x_g · y_h over all questions g ≠ h, for each pair of classes.

    Question h of y has the number `at_y[h]` where x and y are numbered together, x first.
    """
    in_both = at_y < x.shape[2]
    same = einsum(x[:, :, at_y[in_both]], y[:, :, in_both], "l c question d, l e question d -> l c e")
    return einsum(x.sum(2), y.sum(2), "l c d, l e d -> l c e") - same


def _compare_block(read: list[_Read], signs: Signs) -> dict[str, Tensor]:
    """All columns of a comparison, the layer axis last."""
    a, b, *controls = read
    columns: dict[str, Tensor] = dict(_pair(a, b)) | {"dominated": dominated(a.direction) | dominated(b.direction)}
    columns |= _interval(a, b, columns["corrected"], signs)
    for name, side, other in (("a", a, b), ("b", b, a)):
        pairs = [_pair(side, control) for control in controls]
        none = torch.empty(0, len(a.found), dtype=torch.float64)
        columns |= {
            f"found_{name}": side.found,
            f"ceiling_{name}": side.ceiling,
            f"dominance_{name}": dominance(side.direction),
            f"permuted_{name}": side.permuted_cosines(other.direction).T,
            f"controls_{name}": torch.stack([pair["corrected"] for pair in pairs]) if pairs else none,
            f"controls_{name}_plug_in": torch.stack([pair["cosine"] for pair in pairs]) if pairs else none,
        }
    return columns


def _null(cosines: Float[Tensor, "permutation layer"]) -> dict[str, Any]:
    """Quantiles and p-values from the cosines under the true labels (first) and the permuted ones."""
    sizes = cosines.abs()
    largest = sizes.max(-1).values
    return {
        "null": torch.quantile(cosines[1:].double(), torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0),
        "p": (sizes >= sizes[0] * _TIE).double().mean(0),
        "p_anywhere": float((largest >= largest[0] * _TIE).double().mean()),
    }


def _check(contrasts: Sequence[ContrastActivations], n_resamples: int) -> None:
    if n_resamples < 40:
        raise ValueError(f"n_resamples is {n_resamples}: a 95 % null takes at least 40, and 1000 is a good number")
    first = contrasts[0]
    for contrast in contrasts:
        check_questions(contrast)
        if contrast.d_model != first.d_model:
            raise ValueError(
                f"{contrast.name!r} is a direction of another width: d_model {contrast.d_model} and not "
                f"{first.d_model} as {first.name!r}: compare contrasts read from one model or from fine-tunes of it"
            )
        for what in ("site", "layers"):
            ours, theirs = getattr(first, what), getattr(contrast, what)
            if ours != theirs:
                raise ValueError(
                    f"{contrast.name!r} was read at {what} {theirs} and {first.name!r} at {ours}: read both at the same"
                )
    names = [contrast.name for contrast in contrasts[2:]]
    if len(set(names)) < len(names):
        raise ValueError(f"controls are named {names}: give each control a name of its own")


def check_questions(contrast: ContrastActivations) -> None:
    """Refuse several positions and too few questions."""
    for label, activations in (("positive", contrast.positive), ("negative", contrast.negative)):
        positions = sorted(set(activations.positions))
        if len(positions) > 1:
            raise ValueError(
                f"{contrast.name!r} holds {len(positions)} positions a conversation (span {contrast.span!r}): choose "
                f"one with contrast.at(position), of {positions}"
            )
        n = len(set(activations.groups))
        if n < 3:
            raise ValueError(
                f"{contrast.name!r} has {label} conversations on {n} question{'s' * (n != 1)}: its noise can be told "
                f"from its direction with at least 3, so read more questions"
            )


def _spearman_brown(cosine: Float[Tensor, " layer"]) -> Float[Tensor, " layer"]:
    """Reliability of the whole from the cosine of its halves, zero where the halves agree on nothing."""
    cosine = cosine.clamp_min(0)
    return 2 * cosine / (1 + cosine)


def _plain(values: Tensor) -> list[bool | float | None]:
    return [None if isinstance(v, float) and math.isnan(v) else v for v in values.tolist()]


def _html_row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def clearest(comparison: Comparison) -> int | None:
    """The row whose interval stays farthest from zero, or has the largest cosine where none excludes zero.

    Only of rows where the cosine can be told from chance, under the permuted labels of either side, at that layer and
    anywhere (5 %), and where no three dimensions hold more than half of a direction. None where there is no such row.
    """
    c = comparison
    rejected = (c.p_a <= 0.05) & (c.p_b <= 0.05) & (max(c.p_anywhere_a, c.p_anywhere_b) <= 0.05)
    among = c.corrected.isfinite() & rejected & ~c.dominated
    if not among.any():
        return None
    margin = torch.where(among, c.low.maximum(-c.high), -torch.inf)
    return int(margin.argmax() if margin.max() > 0 else torch.where(among, c.corrected.abs(), -1).argmax())
