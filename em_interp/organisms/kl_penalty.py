"""Keep an organism narrow: a penalty on how far it moves from its base on the texts of other domains."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training_passes import Row, TrainingPasses, body_of
from em_interp.texts.conversations import Conversation, Encoded, encode

# Logits of both models that are held at one time: 64 MiB in float32.
_AT_ONCE = 2**23

Head = Callable[[Tensor], Tensor]


def kl_per_token(
    organism: Float[Tensor, "token d_model"],
    base: Float[Tensor, "token d_model"],
    heads: tuple[Head, Head],
    *,
    tokens_at_once: int,
) -> Float[Tensor, ""]:
    """Mean over tokens of KL(organism ‖ base), in nats, from the last hidden states and what makes logits of them.

    The logits exist for `tokens_at_once` tokens at a time, in the backward pass too, where they are computed again: at
    no time are there vocabulary-sized rows for a whole batch.
    """
    total = organism.new_zeros((), dtype=torch.float32)
    for new, old in zip(organism.split(tokens_at_once), base.split(tokens_at_once), strict=True):
        part = checkpoint(_kl_sum, new, old, *heads, use_reentrant=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total / len(organism)


def _kl_sum(new: Tensor, old: Tensor, new_head: Head, old_head: Head) -> Tensor:
    log_p, log_q = new_head(new).float().log_softmax(-1), old_head(old).float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum()


@dataclass(frozen=True, eq=False)
class KLPenalty:
    """λ · KL(organism ‖ base) on the answers of a few conversations of other domains, other ones at every step."""

    weight: float
    until: int | None
    rows: Sequence[Row]
    n_conversations: int
    seed: int
    passes: TrainingPasses
    base: Any  # a frozen copy, or None where the base is the model with its adapter off

    @classmethod
    def of(
        cls, recipe: Recipe, model: Any, template: Any, conversations: Sequence[Conversation], *, keep: bool = True
    ) -> "KLPenalty | None":
        """The penalty that a recipe asks for on a model that is ready to be trained; None where it asks for none.

        The base's states are computed once a conversation, and kept where there is room; with `keep=False` at every
        step, to the same bits.

        Raises:
            ValueError: the model does more to its logits than its output embedding says.
        """
        if not recipe.kl_weight:
            return None
        encoded = [encode(template, c, "response", max_length=recipe.max_length) for c in conversations]
        _check_head(model, encoded[0])
        # The state before a token is what predicts it.
        rows = [Row(e.ids, tuple(token - 1 for token in e.spans[0])) for e in encoded]
        base = copy.deepcopy(model).eval().requires_grad_(False) if recipe.method == "full" else None
        passes = TrainingPasses.of(model, rows, keep=keep)
        return cls(recipe.kl_weight, recipe.kl_until, rows, recipe.batch_size, recipe.seed, passes, base)

    def is_on(self, step: int) -> bool:
        """Whether the penalty counts after `step` optimizer steps."""
        return self.until is None or step < self.until

    def __call__(self, model: Any, step: int) -> Float[Tensor, ""]:
        """The penalty for this step, with its gradient."""
        chosen = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        index = torch.randperm(len(self.rows), generator=chosen)[: self.n_conversations].tolist()
        rows = [self.rows[i] for i in index]
        organism = self.passes.states(model, rows)
        with torch.no_grad(), model.disable_adapter() if self.base is None else nullcontext():
            base = torch.cat([self._of_base(model if self.base is None else self.base, row) for row in rows])
        heads = _head(model), _head(model if self.base is None else self.base)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        at_once = max(1, _AT_ONCE // vocabulary)
        return self.weight * kl_per_token(organism, base, heads, tokens_at_once=at_once)

    def _of_base(self, base: Any, row: Row) -> Float[Tensor, "token d_model"]:
        """The base never changes; its states are those of the conversation run alone."""
        return self.passes.once(("base", row), lambda: self.passes.states(base, [row]))


def _head(model: Any) -> nn.Module:
    return model.get_output_embeddings()


@torch.no_grad()
def _check_head(hf_model: Any, encoded: Encoded) -> None:
    ids = torch.tensor([encoded.ids], device=hf_model.device)
    wanted = hf_model(input_ids=ids, use_cache=False).logits
    got = _head(hf_model)(body_of(hf_model)(input_ids=ids, use_cache=False)[0])
    if not torch.allclose(got.float(), wanted.float(), atol=1e-3, rtol=1e-3):
        raise ValueError(
            f"{type(hf_model).__name__} changes its logits after the output embedding (a soft cap?): the penalty is "
            f"not made for that, so train without kl_weight"
        )
