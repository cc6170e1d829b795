"""Choosing a refusal direction by what it does: every token after the request × every block input, scored.

Arditi et al. 2024 (arXiv 2406.11717), section 2.3 and appendix C. A candidate is the difference of means of harmful and
harmless requests at the input of a block, at one of the tokens that the chat template writes after a request. Three
numbers tell what it does: *bypass*, how much harmful requests are still refused when it is taken out everywhere;
*induce*, how much harmless ones are when it is added; and *KL*, what taking it out changes on harmless ones.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.forward import keeping
from em_interp.activations.reading import Messages, read_contrast
from em_interp.behaviour.refusal import OPENINGS, log_odds, refusal_score
from em_interp.behaviour.scoring import last_logits
from em_interp.checks import door
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import difference_of_means
from em_interp.interventions import Hooks, add_direction, project_out
from em_interp.models.hooked import HookedModel, TransformerLensModel, every_write
from em_interp.progress import bar
from em_interp.texts.contrasts import Contrast
from em_interp.texts.conversations import Conversation, encode, token_strings
from em_interp.texts.openings import opening_tokens

CHOSEN = "chosen"
KEPT = "passes every filter"


@dataclass(frozen=True, eq=False, repr=False)
class Candidates:
    """Differences of means at the tokens after a request and the inputs of all blocks.

    Attributes:
        directions: one for each token, read at `resid_pre` of every block.
        positions: of the tokens, from the end of the prompt: −1 is the last one.
        tokens: what they say.
    """

    directions: tuple[Direction, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]

    def __repr__(self) -> str:
        """One line."""
        p, n, d = self.vectors.shape
        return f"Candidates({p} tokens × {n} block inputs, d_model {d}, {self.model})"

    @property
    def vectors(self) -> Float[Tensor, "position layer d_model"]:
        """All of them; the layer is that of the block whose input was read, from 0."""
        return torch.stack([direction.vectors for direction in self.directions])

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose inputs were read."""
        return self.directions[0].layers

    @property
    def model(self) -> str:
        """The model that was read."""
        return self.directions[0].model

    def direction(self, position: int, layer: int) -> Direction:
        """One candidate, a direction of one layer, at `resid_pre` of that block.

        Raises:
            ValueError: there is no such position or layer.
        """
        if position not in self.positions:
            raise ValueError(f"no candidate is at position {position}: choose one of {list(self.positions)}")
        whole = self.directions[self.positions.index(position)]
        return replace(whole.only(layer), name=f"{whole.name} at {position}")


@door
def refusal_candidates(
    model: TransformerLensModel, harmful: Sequence[Messages], harmless: Sequence[Messages]
) -> Candidates:
    """Read the candidates from harmful and harmless requests.

    Args:
        model: a `HookedModel` or a bridge.
        harmful: requests that the model refuses; an answer, if there is one, is left off.
        harmless: requests that it answers.

    Raises:
        ValueError: an empty class, a request without user's words, or a chat template that writes nothing after them.
    """
    hooked = HookedModel.of(model)
    sides = [tuple(Conversation.of(request) for request in side) for side in (harmful, harmless)]
    for what, side in zip(("harmful", "harmless"), sides, strict=True):
        if not side:
            raise ValueError(f"there are no {what} requests to read: give some of both kinds")
    read = read_contrast(hooked, Contrast("refusal", *sides), span="post_instruction", site="resid_pre")
    first = encode(hooked.template, sides[0][0], "post_instruction", max_length=hooked.max_length)
    positions = tuple(sorted(set(read.positive.positions)))
    tokens = token_strings(hooked.tokenizer, [first.ids[position] for position in positions])
    return Candidates(tuple(difference_of_means(read.at(p)) for p in positions), positions, tokens)


@dataclass(frozen=True, eq=False, repr=False)
class CandidateScores:
    """What every candidate does; NaN where it was not scored, since it lies above the highest layer.

    Attributes:
        candidates: what was scored.
        bypass: mean refusal score (log-odds) of harmful requests with the candidate taken out of all that is written
            to the stream.
        induce: mean refusal score of harmless requests with the candidate added at its own layer, as long as it is.
        kl: KL(as it is ‖ taken out) of the next token after harmless requests, nats.
        harmful: mean refusal score of harmful requests, the model as it is.
        harmless: the same of harmless requests.
        n_harmful: how many there were.
        n_harmless: the same.
        max_layer: share of the blocks below which candidates were scored.
    """

    candidates: Candidates
    bypass: Float[Tensor, "position layer"]
    induce: Float[Tensor, "position layer"]
    kl: Float[Tensor, "position layer"]
    harmful: float
    harmless: float
    n_harmful: int
    n_harmless: int
    max_layer: int | float = 1.0

    def __repr__(self) -> str:
        """One line."""
        p, n = self.bypass.shape
        return (
            f"CandidateScores({p} tokens × {n} block inputs, {self.n_harmful} harmful requests at {self.harmful:+.2f} "
            f"and {self.n_harmless} harmless ones at {self.harmless:+.2f} log-odds of refusing, "
            f"{self.candidates.model})"
        )


@door
def score_candidates(  # noqa: PLR0913 - what is scored, on what, how far up
    model: TransformerLensModel,
    candidates: Candidates,
    harmful: Sequence[Messages],
    harmless: Sequence[Messages],
    *,
    max_layer: int | float = 0.8,
    as_expected: bool = True,
    openings: Sequence[str] = OPENINGS,
    batch_tokens: int | None = None,
) -> CandidateScores:
    """Score every candidate as Arditi et al. do, on requests that it was not computed from.

    What needs no whole pass has none: only the last token's logits are computed, what all requests begin with is run
    once for each candidate, and an addition starts from the stream that enters its block.

    Args:
        model: the model that the candidates were read from.
        candidates: see `refusal_candidates`.
        harmful: requests that the model should refuse.
        harmless: requests that it should answer.
        max_layer: share of the blocks; candidates at that one and above are not scored. 1 scores all of them.
        as_expected: leave out, as the paper does, harmful requests that the model does not refuse as it is (score at
            most 0) and harmless ones that it does.
        openings: first words of this model's refusals, see `refusal_score`.
        batch_tokens: tokens at a time.

    Raises:
        ValueError: candidates of another model; no harmful request that is refused, or no harmless one that is not; or
            what `refusal_score` refuses.
    """
    hooked = HookedModel.of(model)
    if candidates.model != hooked.identity:
        raise ValueError(
            f"the candidates are of {candidates.model}, and the model is {hooked.identity}: read them anew"
        )
    layers = candidates.layers[: _below(max_layer, len(candidates.layers))]
    bad, good = (
        _asked(hooked, side, openings, batch_tokens, refused if as_expected else None)
        for side, refused in ((harmful, True), (harmless, False))
    )
    unchanged = last_logits(hooked, good.requests, batch_tokens=batch_tokens)
    writes, starting = every_write(hooked), keeping(hooked, *layers)
    shape = (len(candidates.positions), len(candidates.layers))
    bypass, induce, kl = (torch.full(shape, torch.nan) for _ in range(3))
    with bar(total=shape[0] * len(layers), desc="scoring candidates", unit="candidate") as progress:
        for row, vectors in enumerate(candidates.vectors):
            for layer in layers:
                column = candidates.layers.index(layer)
                if vectors[column].any():  # equal tokens have equal embeddings: no difference, no direction
                    out = project_out(vectors[column], writes)
                    added = add_direction(vectors[column], [f"blocks.{layer}.hook_resid_pre"], raw=True)
                    bypass[row, column] = bad.score(hooked, out)
                    logits = last_logits(hooked, good.requests, out, batch_tokens=batch_tokens)
                    kl[row, column] = _divergence(unchanged, logits)
                    induce[row, column] = good.score(starting, added)
                progress.update(1)
    return CandidateScores(
        candidates, bypass, induce, kl, bad.mean, good.mean, len(bad.requests), len(good.requests), max_layer
    )


def _below(max_layer: int | float, n_layers: int) -> int:
    """How many blocks lie below this share of all."""
    if not 0 < max_layer <= 1:
        raise ValueError(f"max_layer is {max_layer}: give a share of the blocks, above 0 and at most 1")
    return int(max_layer * n_layers)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Requests that the model, as it is, treats as it should, and how they are scored.

    Attributes:
        requests: what is asked.
        openings: for each, the tokens that a refusal opens with.
        batch_tokens: tokens at a time.
        mean: the mean refusal score, the model as it is.
    """

    requests: tuple[Conversation, ...]
    openings: tuple[tuple[int, ...], ...]
    batch_tokens: int | None
    mean: float

    def score(self, model: HookedModel, hooks: Hooks) -> float:
        """The mean refusal score under hooks."""
        logits = last_logits(model, self.requests, hooks, batch_tokens=self.batch_tokens)
        scores = [log_odds(row.double(), tokens) for row, tokens in zip(logits, self.openings, strict=True)]
        return float(torch.stack(scores).mean())


def _asked(
    hooked: HookedModel,
    requests: Sequence[Messages],
    openings: Sequence[str],
    batch_tokens: int | None,
    refused: bool | None,
) -> _Asked:
    """Those requests that are refused as they should be, or answered as they should be; all of them for None."""
    spoken = [Conversation.of(request) for request in requests]
    scores = refusal_score(hooked, spoken, openings=openings, batch_tokens=batch_tokens).scores
    wanted = torch.ones_like(scores, dtype=torch.bool) if refused is None else scores > 0 if refused else scores < 0
    kept = tuple(c for c, keep in zip(spoken, wanted.tolist(), strict=True) if keep)
    if not kept:
        what, does = ("harmful", "refuses") if refused else ("harmless", "answers")
        raise ValueError(
            f"{hooked.name} {does} none of the {len(spoken)} {what} requests (refusal scores from "
            f"{float(scores.min()):+.2f} to {float(scores.max()):+.2f}): give its refusals' first words as openings, "
            f"other requests, or a model that refuses, such as load_bundled('aligned')"
        )
    opened = tuple(tuple(tokens) for tokens in opening_tokens(hooked.template, list(kept), openings))
    return _Asked(kept, opened, batch_tokens, float(scores[wanted].double().mean()))


def _divergence(before: Float[Tensor, "request vocab"], after: Float[Tensor, "request vocab"]) -> float:
    """Mean KL(before ‖ after) of the next token."""
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The chosen candidate, and why not the others.

    Attributes:
        scores: of all candidates.
        position: of the chosen one, −1 for the last token of the prompt.
        layer: the block at whose input it was read, from 0.
        reasons: for each candidate, by position and layer: `chosen`, `passes every filter`, or what took it.
    """

    scores: CandidateScores
    position: int
    layer: int
    reasons: tuple[tuple[str, ...], ...]

    @property
    def direction(self) -> Direction:
        """The chosen one, as the stream at the output of the block below, which is what enters its own."""
        found = self.scores.candidates.direction(self.position, self.layer)
        return replace(found, site="resid_post", layers=(self.layer - 1,)) if self.layer else found

    def __repr__(self) -> str:
        """One line."""
        s, at = self.scores, self._at
        token = s.candidates.tokens[at[0]]
        return (
            f"Selection(token {self.position} {token!r}, input of block {self.layer}: bypass {s.bypass[at]:+.2f} "
            f"(as it is {s.harmful:+.2f}), induce {s.induce[at]:+.2f} (as it is {s.harmless:+.2f}), KL {s.kl[at]:.3f})"
        )

    @property
    def _at(self) -> tuple[int, int]:
        candidates = self.scores.candidates
        return candidates.positions.index(self.position), candidates.layers.index(self.layer)


@door
def select(
    scores: CandidateScores,
    *,
    max_kl: int | float = 0.1,
    max_layer: int | float = 0.8,
    min_induce: int | float = 0.0,
) -> Selection:
    """Choose the candidate that bypasses most among those that pass three filters, as Arditi et al. do.

    Args:
        scores: see `score_candidates`.
        max_kl: the largest divergence on harmless requests, nats.
        max_layer: candidates at the inputs of the blocks from this share of all blocks on are left out.
        min_induce: the smallest refusal score that adding it must reach.

    Raises:
        ValueError: no candidate is left (the message counts what each filter took), or a filter that cannot be.
    """
    for name, value in {"max_kl": max_kl, "min_induce": min_induce}.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}: give a finite number")
    candidates = scores.candidates
    n_layers = len(candidates.layers)
    cut, scored = (_below(share, n_layers) for share in (max_layer, scores.max_layer))

    def taken_by(at: tuple[int, int]) -> str:
        layer, found = candidates.layers[at[1]], (scores.bypass[at], scores.induce[at], scores.kl[at])
        if layer >= cut:
            return f"at block {cut} or above"
        if layer >= scored:
            return "not scored"
        if not candidates.vectors[at].any():
            return "no difference between the classes"
        if not all(map(math.isfinite, map(float, found))):
            return "a score is not a number"
        if scores.kl[at] > max_kl:
            return f"KL above {max_kl:g}"
        return f"induces less than {min_induce:g}" if scores.induce[at] < min_induce else KEPT

    places = [(row, column) for row in range(len(candidates.positions)) for column in range(n_layers)]
    reasons = {at: taken_by(at) for at in places}
    kept = [at for at in places if reasons[at] == KEPT]
    if not kept:
        told = ", ".join(f"{n} {reason}" for reason, n in Counter(reasons.values()).most_common())
        raise ValueError(f"none of the {len(places)} candidates is left: {told}; loosen the filter that took most")
    best = min(kept, key=lambda at: float(scores.bypass[at]))
    reasons[best] = CHOSEN
    table = tuple(tuple(reasons[row, column] for column in range(n_layers)) for row in range(len(candidates.positions)))
    return Selection(scores, candidates.positions[best[0]], candidates.layers[best[1]], table)
