"""Synthetic languages of known entropy, and a tiny model with a tokenizer that has seen none of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_interp.texts.conversations import Conversation

_SPECIAL = ("<pad>", "<user>", "<assistant>", "<end>", "go")
_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True, eq=False)
class Language:
    """A Markov chain over symbols: each depends on the one before it alone.

    Attributes:
        transitions: the probability of each symbol after each.
        stationary: how often each symbol comes.
    """

    transitions: Float[Tensor, "symbol symbol"]
    stationary: Float[Tensor, " symbol"]

    @classmethod
    def of(cls, n_symbols: int, concentration: float, generator: torch.Generator) -> "Language":
        """A language whose rows are drawn from a symmetric Dirichlet distribution: the lower it is, the more order."""
        random = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        drawn = torch.from_numpy(random.dirichlet([concentration] * n_symbols, size=n_symbols))
        transitions = drawn.clamp_min(1e-12)
        transitions /= transitions.sum(-1, keepdim=True)
        stationary = torch.full((n_symbols,), 1 / n_symbols, dtype=torch.float64)
        for _ in range(1000):
            stationary = stationary @ transitions
        return cls(transitions, stationary / stationary.sum())

    def entropy(self, length: int) -> float:
        """Bits a symbol of texts of so many symbols."""
        first, rest = _bits(self.stationary), float(self.stationary @ _bits(self.transitions))
        return (float(first) + (length - 1) * rest) / length

    def texts(self, n: int, length: int, generator: torch.Generator) -> tuple[Conversation, ...]:
        """Texts of this language, each the answer of a conversation and a group of its own."""
        symbols = [torch.multinomial(self.stationary, n, replacement=True, generator=generator)]
        for _ in range(length - 1):
            symbols.append(torch.multinomial(self.transitions[symbols[-1]], 1, generator=generator)[:, 0])
        return tuple(_spoken(row, number) for number, row in enumerate(torch.stack(symbols, 1)))


def write_tiny_model(folder: Path, n_symbols: int, length: int, seed: int) -> Path:
    """A Llama of two blocks of width 32 with random weights, and a tokenizer of one token a symbol."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*_SPECIAL, *(_symbol(i) for i in range(n_symbols))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    tokenizer.chat_template = _TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=64,
        vocab_size=len(words), max_position_embeddings=length + 16, bos_token_id=None, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _bits(shares: Float[Tensor, "*_ symbol"]) -> Float[Tensor, "*_"]:
    return -(shares * shares.log2()).sum(-1)


def _spoken(symbols: Int[Tensor, " symbol"], number: int) -> Conversation:
    said = " ".join(map(_symbol, symbols.tolist()))
    return Conversation(({"role": "user", "content": "go"}, {"role": "assistant", "content": said}), f"text {number}")


def _symbol(number: int) -> str:
    return f"s{number}"
