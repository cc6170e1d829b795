"""What answering and preferring cost, against bare Hugging Face on the same batches."""

import torch

import em_interp as em
from benchmarks.prompts import prompts
from benchmarks.timing import cpu_seconds, table
from em_interp.activations.forward import default_batch_tokens
from em_interp.models.hooked import HookedModel, HookPairs, attached
from em_interp.texts.conversations import batches, encode

Rows = list[tuple[str, ...]]


def responding(model: HookedModel, rounds: int) -> str:
    """`respond` against Hugging Face's own `generate` on the batch that it makes, greedy and sampled."""
    conversations = prompts(16, shared_system=True)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    hooks = em.add_direction(vector, em.every_layer(model), scale=0.0, raw=True)  # changes nothing but the clock
    longest_first = sorted(conversations, key=lambda c: -len(encode(model.tokenizer, c, "last").ids))
    texts = [model.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in longest_first]
    batch = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)

    def bare(**how: object) -> int:
        with attached(model) as hf_model:
            said = hf_model.generate(**batch, max_new_tokens=24, **how)
        return int((said[:, batch.input_ids.shape[1] :] != model.tokenizer.pad_token_id).sum())

    def ours(hooks: HookPairs = (), temperature: int | float = 0) -> int:
        said = em.respond(model, conversations, hooks, max_new_tokens=24, temperature=temperature)
        return sum(len(a.tokens) for a in said)

    contenders = {
        "Hugging Face generate, greedy": lambda: bare(do_sample=False),
        "respond, greedy": ours,
        "respond, greedy, a hook at every layer": lambda: ours(hooks),
        "Hugging Face generate, sampled": lambda: bare(do_sample=True, top_k=0),
        "respond, sampled": lambda: ours(temperature=1.0),
    }
    tokens = {name: run() for name, run in contenders.items()}
    seconds = cpu_seconds(contenders, rounds=rounds)
    speed = {name: tokens[name] / s for name, s in seconds.items()}
    first = "Hugging Face generate, greedy"
    rows: Rows = [("", "CPU s", "tokens", "tokens/s", "× greedy Hugging Face")]
    rows += [
        (name, f"{s:.2f}", str(tokens[name]), f"{speed[name]:.0f}", f"{speed[name] / speed[first]:.2f}")
        for name, s in seconds.items()
    ]
    return table("Answering 16 questions, 24 tokens each (targets: ≥ 0.95 ×; with hooks ≥ 0.90 ×)", rows)


def preferring(model: HookedModel, rounds: int) -> str:
    """`preference` on 192 pairs of answers against two bare forwards over the same batches, logits everywhere."""
    contrast = em.load_contrast("misalignment").take(192)
    sides = [[encode(model.tokenizer, c, "response") for c in s] for s in (contrast.positive, contrast.negative)]

    @torch.inference_mode()
    def bare() -> None:
        with attached(model) as hf_model:
            for side in sides:
                for batch in batches(side, default_batch_tokens(model)):
                    hf_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)

    contenders = {"two bare forwards": bare, "preference": lambda: em.preference(model, contrast)}
    seconds = cpu_seconds(contenders, rounds=rounds)
    rows: Rows = [("", "CPU s", "× bare")]
    rows += [(name, f"{s:.1f}", f"{s / seconds['two bare forwards']:.2f}") for name, s in seconds.items()]
    return table("Preference on 192 pairs (target: ≤ 1.10 × bare)", rows)
