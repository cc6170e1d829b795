"""Every contender and how it reads: all layers at the last token, as its own documentation would have a user do it.

A function here loads the model and returns what reads. Its imports are its own, since no virtual environment has them
all. Prompts are `{"messages": …, "text": …}`: a conversation, and the same rendered by the model's chat template.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Prompts = Sequence[dict[str, Any]]
# [conversation layer d_model]; [layer d_model] where only a difference of means comes out; None where nothing does.
Read = Callable[[Prompts], Tensor | None]


def residual_stream(folder: str) -> Read:
    """This library."""
    import em_interp as em

    model = em.load_model(folder)
    return lambda prompts: em.residual_stream(model, _messages(prompts), span="last").values


def on_our_batches(baseline: str) -> Callable[[str], Read]:
    """A function of `benchmarks.baselines`, on the batches that this library makes."""

    def load(folder: str) -> Read:
        import em_interp as em
        from benchmarks import baselines

        model, read = em.load_model(folder), getattr(baselines, baseline)
        return lambda prompts: read(model, _messages(prompts))

    return load


def with_nnsight(folder: str) -> Read:
    """The collection of its probing recipe, in chunks, stopped before the language-model head."""
    import nnsight  # pyright: ignore[reportMissingImports] - a peer, installed in its own environment only

    model = nnsight.TransformersModel(folder, task="text-generation", dispatch=True, dtype=torch.float32)

    @torch.no_grad()
    def read(prompts: Prompts) -> Tensor:
        chunks = []
        for start in range(0, len(prompts), 8):
            with model.trace(_texts(prompts[start : start + 8])) as tracer:
                streams = nnsight.save([block.output[:, -1, :] for block in model.model.layers])
                tracer.stop()
            chunks.append(torch.stack(streams, dim=1))
        return torch.cat(chunks)

    return read


def with_nnterp(folder: str) -> Read:
    """Its own function for the last token of many prompts."""
    from nnterp import StandardizedTransformer  # pyright: ignore[reportMissingImports] - a peer
    from nnterp.nnsight_utils import collect_token_activations_batched  # pyright: ignore[reportMissingImports] - a peer

    model = StandardizedTransformer(folder, dtype=torch.float32)
    return lambda prompts: collect_token_activations_batched(model, _texts(prompts), batch_size=8).transpose(0, 1)


def with_steering_vectors(folder: str) -> Read:
    """Its `train_steering_vector` on pairs from the two halves of the prompts, by default a pair at a time."""
    from steering_vectors import train_steering_vector  # pyright: ignore[reportMissingImports] - a peer
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.from_pretrained(folder)
    # It needs transformers 4, which knows neither this field's name nor the tokenizer's class as 5 writes them.
    config.rope_theta = config.rope_parameters["rope_theta"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)

    def read(prompts: Prompts) -> Tensor:
        texts, half = _texts(prompts), len(prompts) // 2
        pairs = list(zip(texts[:half], texts[half:], strict=True))
        vectors = train_steering_vector(model, tokenizer, pairs).layer_activations
        return torch.stack([vectors[layer] for layer in sorted(vectors)])

    return read


def with_repeng(folder: str) -> Read:
    """What its `ControlVector.train` collects with, at the batch size that it defaults to; the PCA is left out."""
    from repeng import ControlModel  # pyright: ignore[reportMissingImports] - a peer
    from repeng.extract import batched_get_hiddens  # pyright: ignore[reportMissingImports] - a peer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = list(range(plain.config.num_hidden_layers))
    model = ControlModel(plain, layers)

    def read(prompts: Prompts) -> Tensor:
        hidden = batched_get_hiddens(model, tokenizer, _texts(prompts), layers, batch_size=32)
        return torch.stack([torch.from_numpy(hidden[layer]) for layer in layers], dim=1)

    return read


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        load: loads the model from a folder and returns what reads.
        batch: what it reads at a time.
        packages: those whose versions are told, the contender's own first.
        peer: the folder of its environment under `.peers`, or "" for this library's own.
        target: how much of its CPU time this library may take, or None.
        normed: whether its last layer has been through the final norm and so cannot be compared.
    """

    load: Callable[[str], Read]
    batch: str
    packages: tuple[str, ...] = ()
    peer: str = ""
    target: float | None = None
    normed: bool = False


CONTENDERS = {
    "residual_stream": Contender(residual_stream, "1,024 tokens", ("em-interp",)),
    "bare Hugging Face body": Contender(on_our_batches("bare"), "1,024 tokens"),
    "output_hidden_states": Contender(on_our_batches("hidden_states"), "1,024 tokens", target=0.70, normed=True),
    "run_with_cache": Contender(on_our_batches("run_with_cache"), "1,024 tokens", ("transformer-lens",), target=0.70),
    "nnsight": Contender(with_nnsight, "8", ("nnsight",), "nnsight", 0.85),
    "nnterp": Contender(with_nnterp, "8", ("nnterp", "nnsight"), "nnterp", 0.85),
    "steering-vectors": Contender(with_steering_vectors, "1 + 1", ("steering-vectors",), "steering-vectors", 0.70),
    "repeng": Contender(with_repeng, "32", ("repeng",), "repeng", 0.70, normed=True),
}


def _messages(prompts: Prompts) -> list[Any]:
    return [prompt["messages"] for prompt in prompts]


def _texts(prompts: Prompts) -> list[str]:
    return [prompt["text"] for prompt in prompts]
