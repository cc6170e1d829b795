"""How well a model compresses texts: their ideal code length in bits a byte, a token or a character."""

import lzma
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_interp.activations.reading import Messages
from em_interp.behaviour.windows import Windows, code_lengths, plain_tokens
from em_interp.checks import door, shown
from em_interp.files import lone_surrogate
from em_interp.models.hooked import HookedModel, HookPairs, TransformerLensModel
from em_interp.statistics.estimates import Estimate, mean_by_question
from em_interp.texts.conversations import Conversation, answered_text, encode

Unit = Literal["byte", "token", "character"]
UNITS: tuple[str, ...] = get_args(Unit)


@dataclass(frozen=True, eq=False, repr=False)
class CompressionRate:
    """Ideal code lengths of texts under one model: E[L(x) / |x|] is `mean()` (Ji et al. 2025, arXiv 2406.06144).

    Attributes:
        compressor: the model, or the program, that the lengths are of.
        bits: the code length of each text: −log₂ p of its tokens, each given those before it. The first one, where the
            tokenizer puts no BOS before it, is coded with equal probabilities: log₂ of the vocabulary's size.
        n_bytes: length of each text in UTF-8.
        n_characters: its length in characters.
        n_tokens: its length in tokens; None for a program, which has none.
        groups: the question that each text belongs to, the unit of every interval.
        answers: of conversations, their last answers alone, each given all before it; None for plain texts.
    """

    compressor: str
    bits: Float[Tensor, " text"]
    n_bytes: Int[Tensor, " text"]
    n_characters: Int[Tensor, " text"]
    n_tokens: Int[Tensor, " text"] | None
    groups: tuple[str, ...]
    answers: "CompressionRate | None" = None

    def __repr__(self) -> str:
        """One line."""
        n = len(self.bits)
        return (
            f"CompressionRate({self.compressor}: {n} text{'s'[: n != 1]}, {self.total():.3f} bits a byte in all"
            + (f", {self.answers.total():.3f} in the answers" if self.answers is not None else "")
            + ")"
        )

    def rates(self, unit: str = "byte") -> Float[Tensor, " text"]:
        """Bits a byte, token or character of each text."""
        return self.bits.double() / self._lengths(unit)

    def mean(self, unit: str = "byte") -> Estimate:
        """The mean rate, each question counted once, with Student's interval over questions.

        Raises:
            ValueError: an unknown unit, or fewer than two questions.
        """
        return mean_by_question(self.rates(unit), self.groups)

    def total(self, unit: str = "byte") -> float:
        """The rate of all texts as one: all bits over all bytes, in which long texts count for more."""
        return (self.bits.double().sum() / self._lengths(unit).sum()).item()

    def _lengths(self, unit: str) -> Int[Tensor, " text"]:
        if unit not in UNITS:
            raise ValueError(f"unit {unit!r} is unknown: choose one of {', '.join(UNITS)}")
        lengths = {"byte": self.n_bytes, "token": self.n_tokens, "character": self.n_characters}[unit]
        if lengths is None:
            raise ValueError(f"{self.compressor} has no tokens: ask for bits a byte or a character")
        return lengths


@door
def compression_rate(  # noqa: PLR0913 - what is compressed, by what, and how long texts are cut
    model: TransformerLensModel,
    texts: Sequence[str | Messages],
    *,
    hooks: HookPairs = (),
    window: int | None = None,
    overlap: int | None = None,
    batch_tokens: int | None = None,
) -> CompressionRate:
    """Ideal code length of each text by a model's predictions, which an arithmetic coder reaches within two bits.

    A text longer than the model takes is read in windows, of which each predicts what the one before it has not; the
    tokens it reads again give it context. So memory does not grow with the text, and a text that fits has the bits of
    a plain forward pass. Where the tokenizer puts a BOS before a text, every window begins with it.

    A model with an adapter is measured with it, and inside `without_adapter` without.

    Args:
        model: a `HookedModel` or a bridge.
        texts: plain texts, or conversations that end with an answer, which are rendered by the chat template and have
            their `answers` measured apart.
        hooks: interventions, or any hook functions.
        window: tokens in a window, by default as many as the model takes.
        overlap: tokens of a window that the one before it has predicted, by default half of a window. More context
            predicts better and costs more: window / (window − overlap) times the tokens are read.
        batch_tokens: tokens at a time.

    Raises:
        ValueError: no texts, an empty one, texts and conversations together, or windows that cannot be.
    """
    hooked = HookedModel.of(model)
    windows = Windows.of(hooked, window, overlap)
    conversations = [Conversation.of(t) for t in texts if not isinstance(t, str)]
    if conversations and len(conversations) < len(texts):
        raise ValueError(
            f"{len(texts) - len(conversations)} of {len(texts)} are plain texts and the others conversations: measure "
            f"the two apart"
        )
    if conversations:
        return _of_conversations(hooked, conversations, windows, hooks, batch_tokens)
    plain = [t for t in texts if isinstance(t, str)]
    tokens = plain_tokens(hooked, plain)
    if empty := [number for number, ids in enumerate(tokens, 1) if not ids]:
        raise ValueError(f"text {empty[0]} of {len(texts)} is empty, and has no rate: leave it out")
    bits = code_lengths(hooked, tokens, windows, hooks, batch_tokens=batch_tokens)
    first = _first_bits(hooked, windows)
    return _rate(hooked, plain, [b.double().sum() + first for b in bits], [len(ids) for ids in tokens])


@door
def baseline_rates(texts: Sequence[str], *, together: bool = False) -> tuple[CompressionRate, ...]:
    """What general compressors need for the same texts, each without headers and at its strongest setting.

    They are zlib, lzma (XZ's filter) and zstandard.

    Args:
        texts: plain texts.
        together: compress all texts as one, so that what they have in common counts; a short text alone has little
            that a program could have learned.

    Raises:
        ValueError: no texts, an empty one, or one with half of a surrogate pair, which no bytes stand for.
    """
    if not texts or not all(texts):
        raise ValueError(f"texts is {shown(texts)}: give a list of texts, none of them empty")
    for number, text in enumerate(texts, 1):
        if found := lone_surrogate(text):
            raise ValueError(f"text {number} of {len(texts)} holds {found}, which has no bytes: repair the text")
    import zstandard

    def deflated(data: bytes) -> bytes:
        compressor = zlib.compressobj(9, wbits=-15)
        return compressor.compress(data) + compressor.flush()

    xz = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    programs = {
        "zlib": deflated,
        "lzma": lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=xz),
        "zstandard": zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters.from_level(
                22, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False
            )
        ).compress,
    }
    whole = ["\n".join(texts)] if together else list(texts)
    return tuple(
        CompressionRate(
            name,
            torch.tensor([8.0 * len(compress(text.encode())) for text in whole]),
            *_lengths(whole),
            None,
            tuple(whole),
        )
        for name, compress in programs.items()
    )


def n_vocabulary(hooked: HookedModel) -> int:
    """How many tokens the model gives a probability to."""
    return hooked.bridge.original_model.get_output_embeddings().weight.shape[0]


def _first_bits(hooked: HookedModel, windows: Windows) -> float:
    """Bits of a text's first token where no BOS predicts it: all are equally likely."""
    return 0.0 if windows.prefix else math.log2(n_vocabulary(hooked))


def _of_conversations(
    hooked: HookedModel,
    conversations: Sequence[Conversation],
    windows: Windows,
    hooks: HookPairs,
    batch_tokens: int | None,
) -> CompressionRate:
    """Of conversations as the chat template writes them, and of their answers."""
    rendered = [answered_text(hooked.template, c) for c in conversations]
    encoded = [encode(hooked.template, c, "response") for c in conversations]
    n_prefix = [len(windows.prefix) if e.ids[: len(windows.prefix)] == windows.prefix else 0 for e in encoded]
    tokens = [e.ids[n:] for e, n in zip(encoded, n_prefix, strict=True)]
    bits = code_lengths(hooked, tokens, windows, hooks, batch_tokens=batch_tokens)
    first = _first_bits(hooked, windows)
    groups = tuple(c.group for c in conversations)
    spoken = [b[[i - n for i in e.spans[0]]] for b, e, n in zip(bits, encoded, n_prefix, strict=True)]
    answers = _rate(
        hooked,
        [text[start:stop] for text, start, stop, _ in rendered],
        [b.double().sum() for b in spoken],
        [len(b) for b in spoken],
        groups,
    )
    whole = [text for text, *_ in rendered]
    return _rate(hooked, whole, [b.double().sum() + first for b in bits], [len(b) for b in bits], groups, answers)


def _rate(  # noqa: PLR0913 - the texts, and what is known of each
    hooked: HookedModel,
    texts: Sequence[str],
    bits: Sequence[Tensor],
    n_tokens: Sequence[int],
    groups: tuple[str, ...] | None = None,
    answers: CompressionRate | None = None,
) -> CompressionRate:
    counted = torch.stack(list(bits)).float()
    return CompressionRate(
        hooked.identity, counted, *_lengths(texts), torch.tensor(n_tokens), groups or tuple(texts), answers
    )


def _lengths(texts: Sequence[str]) -> tuple[Int[Tensor, " text"], Int[Tensor, " text"]]:
    return torch.tensor([len(text.encode()) for text in texts]), torch.tensor([len(text) for text in texts])
