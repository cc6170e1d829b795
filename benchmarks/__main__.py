"""`make bench`: the library against bare Hugging Face and TransformerLens; `coverage`: whether intervals hold."""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain

import torch

import em_interp as em
from benchmarks import answers, baselines, elasticity, organisms
from benchmarks.coverage import coverage
from benchmarks.memory import peak_mib
from benchmarks.prompts import prompts
from benchmarks.rates import rates
from benchmarks.resuming import resuming
from benchmarks.seeds import seeds
from benchmarks.timing import cpu_seconds, table
from em_interp.models.hooked import HookedModel, attached
from em_interp.progress import quiet
from em_interp.texts.conversations import encode

Rows = list[tuple[str, ...]]


def reading(model: HookedModel, rounds: int) -> str:
    """All layers of 128 conversations, last token, against the bare body forward on the same length-sorted batches."""
    conversations = prompts(128, shared_system=False)
    contenders = {
        "bare Hugging Face body, same batches": lambda: baselines.bare(model, conversations),
        "residual_stream": lambda: em.residual_stream(model, conversations, span="last"),
        "residual_stream, system prompt shared": lambda: em.residual_stream(
            model, prompts(128, shared_system=True), span="last"
        ),
        "Hugging Face output_hidden_states": lambda: baselines.hidden_states(model, conversations),
        "TransformerLens run_with_cache, all resid_post": lambda: baselines.run_with_cache(model, conversations),
    }
    seconds = cpu_seconds(contenders, rounds=rounds)
    bare = seconds["bare Hugging Face body, same batches"]
    ours = seconds["residual_stream"]
    rows: Rows = [("", "CPU s", "× bare", "residual_stream is ×")]
    rows += [(name, f"{s:.1f}", f"{s / bare:.2f}", f"{ours / s:.2f}") for name, s in seconds.items()]
    return table("Reading 30 layers of 128 conversations (targets: ≤ 1.05 × bare; ≤ 0.70 × each peer)", rows)


def thin(rounds: int) -> str:
    """Where Python and kernel launches dominate: 32 layers of width 64, batches of four."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = em.load_bundled().tokenizer
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=len(tokenizer), max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HookedModel.from_hugging_face(AutoModelForCausalLM.from_config(config), tokenizer, name="thin")
    conversations = prompts(32, shared_system=False)
    budget = 4 * max(len(encode(tokenizer, c, "last").ids) for c in conversations)
    wrapped = HookedModel.of(model.bridge)
    contenders = {
        "bare Hugging Face body": lambda: baselines.bare(model, conversations, budget),
        "residual_stream": lambda: em.residual_stream(model, conversations, span="last", batch_tokens=budget),
        "residual_stream through the bridge": lambda: em.residual_stream(
            wrapped, conversations, span="last", batch_tokens=budget
        ),
    }
    seconds = cpu_seconds(contenders, rounds=max(rounds, 5))
    bare = seconds["bare Hugging Face body"]
    rows: Rows = [("", "CPU s", "× bare"), *((n, f"{s:.2f}", f"{s / bare:.2f}") for n, s in seconds.items())]
    return table("Where launches dominate: 32 layers of width 64, batch 4 (target: ≤ 1.15 × bare)", rows)


def generation(model: HookedModel, rounds: int) -> str:
    """Greedy generation with a projection at every layer, against Hugging Face without hooks, as many tokens."""
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    hooks = em.add_direction(vector, em.every_layer(model), scale=0.0, raw=True)  # changes nothing but the clock
    texts = [
        model.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)
        for c in prompts(8, shared_system=True)
    ]
    batch = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    said: dict[str, torch.Tensor] = {}

    def generate(name: str, hooks: list) -> Callable[[], None]:
        def run() -> None:
            with attached(model, hooks) as hf_model:
                said[name] = hf_model.generate(**batch, max_new_tokens=24, min_new_tokens=24, do_sample=False)

        return run

    bare, ours = "Hugging Face generate", "with a hook at every layer"
    seconds = cpu_seconds({bare: generate(bare, []), ours: generate(ours, hooks)}, rounds=rounds)
    same = "yes" if torch.equal(said[bare], said[ours]) else "NO"
    rows: Rows = [("", "CPU s", "× bare", "same tokens")]
    rows += [(name, f"{s:.2f}", f"{s / seconds[bare]:.2f}", same) for name, s in seconds.items()]
    return table("Generating 8 × 24 tokens (target: ≤ 1.30 × bare, same tokens)", rows)


def comparing() -> str:
    """`compare` on synthetic activations: 30 layers, 400 conversations, 1,000 resamples and permutations."""
    generator = torch.Generator().manual_seed(0)

    def contrast(name: str) -> em.activations.ContrastActivations:
        classes = [
            em.Activations(
                values=torch.randn(200, 30, 576, generator=generator) + sign * 0.1,
                norms=torch.ones(200, 30),
                n_tokens=torch.ones(200, dtype=torch.long),
                groups=tuple(f"{name} {i}" for i in range(200)),
                layers=tuple(range(30)),
                site="resid_post",
                span="last",
                model="synthetic",
            )
            for sign in (1, -1)
        ]
        return em.activations.ContrastActivations(name, *classes, contrast_hash="")

    a, b = contrast("a"), contrast("b")
    start = time.perf_counter()
    em.compare(a, b, n_resamples=1000)
    rows: Rows = [("", "wall s"), ("compare", f"{time.perf_counter() - start:.1f}")]
    return table("Comparing 30 layers, 400 + 400 conversations, 1,000 resamples (target: ≤ 5 s)", rows)


def memory() -> str:
    """Peak memory above the loaded model, each in a process of its own."""
    rows: Rows = [("conversations", "peak above the model, MiB", "of it the result, MiB")]
    for n in (128, 1024):
        script = f"from benchmarks.__main__ import _peak; _peak({n})"
        peak, result = subprocess.check_output([sys.executable, "-c", script], text=True).split()[-2:]
        rows.append((str(n), peak, result))
    return table("Memory of reading 30 layers (target: ≤ 64 MiB beyond the result)", rows)


def _peak(n: int) -> None:
    """Print by how much reading `n` conversations raises the resident set at its peak, and the size of the result."""
    with quiet():
        model = em.load_bundled()
        em.residual_stream(model, prompts(1, shared_system=False), span="last")
        peak, read = peak_mib(lambda: em.residual_stream(model, prompts(n, shared_system=False), span="last"))
    print(peak, read.values.numel() * 4 // 2**20)


def main() -> None:
    """Run every benchmark and print its table, or simulate how often intervals hold the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["costs", "coverage"], default="costs")
    parser.add_argument("--rounds", type=int, default=3, help="times each contender runs; the median counts")
    parser.add_argument("--simulations", type=int, default=300, help="of each cell of `coverage`")
    arguments = parser.parse_args()
    if arguments.what == "coverage":
        for found in chain(seeds(arguments.simulations), coverage(arguments.simulations)):
            print(found, flush=True)
    else:
        costs(arguments.rounds)


def costs(rounds: int) -> None:
    """Print the tables of what everything costs."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {rounds}\n")
    with quiet():
        model = em.load_bundled()
        for table_of in (reading, generation, answers.responding, answers.preferring):
            print(table_of(model, rounds), flush=True)
        print(resuming(rounds), flush=True)
        print(thin(rounds), comparing(), rates(), memory(), sep="\n", flush=True)
        print(elasticity.compressing(model, rounds), elasticity.coding(model, rounds), sep="\n", flush=True)
        print(elasticity.memory(), flush=True)
        print(organisms.training(rounds), flush=True)
        print(organisms.scalars(rounds), flush=True)
        print(organisms.following(), flush=True)


if __name__ == "__main__":
    main()
