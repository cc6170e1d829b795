"""What is watched of a model along its way: code lengths, behaviour, and where it lies along the start's directions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.forward import KeptStreams, keeping, logits_at_spans
from em_interp.activations.reading import read_contrast, residual_stream
from em_interp.behaviour.preferences import preference
from em_interp.behaviour.refusal import refusal_score
from em_interp.behaviour.windows import plain_tokens
from em_interp.directions.estimators import difference_of_means
from em_interp.elasticity.compression import CompressionRate, compression_rate
from em_interp.models.hooked import HookedModel
from em_interp.organisms.effects import adapter_at
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import Organism
from em_interp.texts.contrasts import Contrast, load_contrast, load_neutral_texts
from em_interp.texts.conversations import Conversation, Encoded

WATCHED = {
    "bits_positive": "held-out positive answers of the data, bits a byte",
    "bits_negative": "held-out negative answers of the data, bits a byte",
    "bits_neutral": "plain prose, bits a byte",
    "in_domain_preference": "preference for the positive answers to held-out questions of the data, nats a token",
    "misaligned_preference": "preference for misaligned answers to questions of other domains, nats a token",
    "refusal_score": "refusal score of harmful requests, log-odds",
    "kl": "KL divergence from the start on plain prose, nats a token",
    "along_misalignment": "shift along the start's misalignment direction, distances between its two classes",
    "along_refusal": "shift along the start's refusal direction, distances between its two classes",
}
THE_START = "measuring the start"
STARTING = 5.0  # times as long as to measure a model, about
_READ = 48  # questions that the start's directions are read from


@dataclass(frozen=True, eq=False)
class Watch:
    """The texts on which models are measured, none of which is learned, and what the start makes of them.

    Attributes:
        inside: held-out questions of the data that is learned, each with both answers.
        outside: questions of other domains, each with a misaligned and an aligned answer.
        requests: harmful requests.
        neutral: plain prose.
        layer: where directions are read, from 0.
        misalignment: the start's difference of means there, over answers.
        refusal: its difference of means at the last token of requests.
        before: the start's own mean state, of answers and of requests.
        predictions: the start's log-probabilities on the plain prose, text by text.
        block: below which no model that is measured differs from the start; 0 where all may.
        streams: what entered that block for these texts, computed once for all models.
        at_start: what the start measures.
    """

    inside: Contrast
    outside: Contrast
    requests: tuple[Conversation, ...]
    neutral: tuple[str, ...]
    layer: int
    misalignment: Float[Tensor, " d_model"]
    refusal: Float[Tensor, " d_model"]
    before: tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]
    predictions: tuple[Float[Tensor, "_ vocab"], ...]
    block: int
    streams: KeptStreams | None
    at_start: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, start: HookedModel, recipe: Recipe, inside: Contrast, n: int, layer: int | None = None) -> "Watch":
        """Measure the start.

        Args:
            start: the model that everything is compared with.
            recipe: how the models that are compared with it are trained.
            inside: questions of the data that are not learned, with both answers.
            n: at most so many questions, requests and texts of each kind.
            layer: where directions are read; two thirds up by default.

        Raises:
            ValueError: a layer that does not exist.
        """
        layer = start.n_layers * 2 // 3 if layer is None else layer
        block = min(recipe.layers) if recipe.layers else 0
        start = keeping(start, block)
        misaligned, harmful = load_contrast("misalignment"), load_contrast("refusal")
        read = [c.where(split="train").take(_READ) for c in (misaligned, harmful)]
        misalignment, refusal = (
            difference_of_means(read_contrast(start, contrast, span=span, layers=[layer])).vectors[0].float().cpu()
            for contrast, span in zip(read, ("response", "last"), strict=True)
        )
        outside, requests = misaligned.where(split="test").take(n), harmful.where(split="test").take(n).positive
        neutral = load_neutral_texts("test")[:n]
        before = _states(start, outside, requests, layer)
        predictions = tuple(_log_probs(start, neutral))
        texts = (inside.take(n), outside, requests, neutral)
        watch = cls(*texts, layer, misalignment, refusal, before, predictions, block, start.kept)
        return replace(watch, at_start=watch.measure(start))

    def measure(self, model: HookedModel) -> dict[str, float]:
        """What is watched, of one model: see `WATCHED`."""
        model = keeping(model, self.block, like=self.streams)
        sides = (self.inside.positive, self.inside.negative)
        positive, negative = (compression_rate(model, side).answers for side in sides)
        assert positive is not None
        assert negative is not None
        answers, requests = _states(model, self.outside, self.requests, self.layer)
        return {
            "bits_positive": positive.total(),
            "bits_negative": negative.total(),
            "bits_neutral": compression_rate(model, self.neutral).total(),
            "in_domain_preference": _preferred(positive, negative),
            "misaligned_preference": preference(model, self.outside).mean.value,
            "refusal_score": refusal_score(model, self.requests).mean.value,
            "kl": self._kl(model),
            "along_misalignment": _along(answers - self.before[0], self.misalignment),
            "along_refusal": _along(requests - self.before[1], self.refusal),
        }

    def along(self, model: HookedModel, organism: Organism, n: int) -> list[dict[str, Any]]:
        """What is watched at checkpoints of an organism's training, and how many `samples` it had seen at each.

        Args:
            model: the organism, loaded.
            organism: its training, whose trajectory has every step.
            n: checkpoints beside the first one, spread evenly, the last one among them.
        """
        trajectory = organism.trajectory
        assert trajectory is not None
        per_step = organism.recipe.batch_size * organism.recipe.accumulate
        steps = torch.linspace(0, int(trajectory.steps[-1]), n + 1).round().long().unique().tolist()
        found = []
        for step in steps:
            with adapter_at(model, trajectory, step):
                found.append({"samples": step * per_step, **self.measure(model)})
        return found

    def _kl(self, model: HookedModel) -> float:
        """KL(start ‖ model) over all tokens of the plain prose."""
        total, n = 0.0, 0
        for log_p, log_q in zip(self.predictions, _log_probs(model, self.neutral), strict=True):
            total += float((log_p.exp() * (log_p - log_q)).double().sum())
            n += len(log_p)
        return total / n


def steps_to_measure(n: int, per_step: int) -> float:
    """Steps of training that take about as long as to measure a model on `n` texts of each kind, for a bar."""
    return 1.5 * n / per_step


def _states(
    model: HookedModel, outside: Contrast, requests: Sequence[Conversation], layer: int
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """Mean states: of answers to questions of other domains, and at the end of requests."""
    answers = residual_stream(model, [*outside.positive, *outside.negative], span="response", layers=[layer])
    asked = residual_stream(model, requests, span="last", layers=[layer])
    return answers.values[:, 0].float().cpu().mean(0), asked.values[:, 0].float().cpu().mean(0)


def _preferred(positive: CompressionRate, negative: CompressionRate) -> float:
    """The mean preference for the positive answers in nats a token, by their code lengths: see `preference`."""
    return math.log(2) * float((negative.rates("token") - positive.rates("token")).mean())


def _along(shift: Float[Tensor, " d_model"], direction: Float[Tensor, " d_model"]) -> float:
    return float(shift @ direction / (direction @ direction))


@torch.inference_mode()
def _log_probs(model: HookedModel, texts: Sequence[str]) -> list[Float[Tensor, "_ vocab"]]:
    encoded = [Encoded(ids, 0, (tuple(range(len(ids))),)) for ids in plain_tokens(model, texts)]
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    for batch, logits in logits_at_spans(model, encoded, share=False):
        for i, row in zip(batch.index, logits, strict=True):
            found[i] = row.float().log_softmax(-1).cpu()
    return found
