"""How many bits a model needs for plain texts of any length: cross entropy over windows that slide along the text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.activations.forward import log_probs_at_spans
from em_interp.checks import shown
from em_interp.files import lone_surrogate
from em_interp.models.hooked import HookedModel, HookPairs
from em_interp.progress import bar
from em_interp.texts.conversations import Encoded


@dataclass(frozen=True)
class Windows:
    """How a text longer than a model takes is cut: each window predicts what the one before it has not.

    Attributes:
        width: tokens in a window; None for the whole text at once.
        overlap: tokens at the beginning of every window but the first that are read again, and not predicted.
        prefix: tokens that every window begins with: those that the tokenizer puts before a text, such as a BOS.
    """

    width: int | None
    overlap: int
    prefix: tuple[int, ...] = ()

    @classmethod
    def of(cls, hooked: HookedModel, width: int | None = None, overlap: int | None = None) -> "Windows":
        """The widest windows that the model takes, which overlap by half, unless told.

        Raises:
            ValueError: windows wider than the model takes, or an overlap that leaves nothing to predict.
        """
        prefix = prefix_of(hooked)
        if width is not None and hooked.max_length is not None and width > hooked.max_length:
            raise ValueError(f"window is {width} tokens but the model takes {hooked.max_length}: choose a smaller one")
        width = hooked.max_length if width is None else width
        if width is not None and width < len(prefix) + 2:
            raise ValueError(
                f"window is {width} tokens: give {len(prefix) + 2} at least, one to read and one to predict"
            )
        room = math.inf if width is None else width - len(prefix)
        if overlap is None:
            overlap = 0 if width is None else max(1, int(room) // 2)
        if not (1 <= overlap < room or (width is None and overlap == 0)):
            raise ValueError(f"overlap is {overlap} tokens: give 1 to {room - 1:g}, fewer than a window has")
        return cls(width, overlap, prefix)

    def over(self, ids: Sequence[int]) -> list[tuple[int, int, Encoded]]:
        """Windows over a text's tokens, its prefix left off, each with the range of tokens that it predicts."""
        n, room = len(ids), len(ids) if self.width is None else self.width - len(self.prefix)
        found, begin = [], min(1, n) if not self.prefix else 0  # nothing predicts the first token of all
        while begin < n:
            start = 0 if not found else begin - self.overlap
            end = min(start + room, n)
            before = len(self.prefix) - start
            window = Encoded((*self.prefix, *ids[start:end]), 0, (tuple(range(before + begin, before + end)),))
            found.append((begin, end, window))
            begin = end
        return found


def prefix_of(hooked: HookedModel) -> tuple[int, ...]:
    """The tokens that a model's tokenizer puts before every text: a BOS, or none."""
    whole, plain = (hooked.tokenizer("a", add_special_tokens=special).input_ids for special in (True, False))
    starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return tuple(whole[: next(starts, 0)])


def plain_tokens(hooked: HookedModel, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of plain texts, without those that the tokenizer puts around them.

    Raises:
        ValueError: no texts, or one with half of a surrogate pair, which no tokenizer takes.
    """
    if not texts:
        raise ValueError(f"texts is {shown(texts)}: give a list of texts, one at least")
    for number, text in enumerate(texts, 1):
        if found := lone_surrogate(text):
            raise ValueError(f"text {number} of {len(texts)} holds {found}, which no tokenizer takes: repair the text")
    return [tuple(hooked.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


@torch.inference_mode()
def code_lengths(
    hooked: HookedModel,
    texts: Sequence[Sequence[int]],
    windows: Windows,
    hooks: HookPairs = (),
    *,
    batch_tokens: int | None = None,
) -> list[Float[Tensor, " token"]]:
    """Bits of each token of each text, given those before it in its window; 0 for a first one that nothing predicts.

    Args:
        hooked: the model.
        texts: token ids, as from `plain_tokens`.
        windows: how long texts are cut.
        hooks: interventions, or any hook functions.
        batch_tokens: tokens at a time.
    """
    bits = [torch.zeros(len(ids)) for ids in texts]
    cut = [(number, *window) for number, ids in enumerate(texts) for window in windows.over(ids)]
    if not cut:
        return bits
    with bar(total=len(cut), desc="scoring", unit="window") as progress:
        passes = log_probs_at_spans(hooked, [encoded for *_, encoded in cut], hooks, batch_tokens=batch_tokens)
        for batch, log_probs in passes:
            for i, row in zip(batch.index, log_probs, strict=True):
                number, begin, end, _ = cut[i]
                bits[number][begin:end] = -row.cpu() / math.log(2)
            progress.update(len(batch.index))
    return bits
