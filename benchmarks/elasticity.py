"""What code lengths and coding cost, against the model's own forwards on the same tokens."""

import subprocess
import sys

import torch

import em_interp as em
from benchmarks.memory import peak_mib
from benchmarks.timing import cpu_seconds, table
from em_interp.activations.forward import default_batch_tokens
from em_interp.behaviour.windows import plain_tokens
from em_interp.elasticity import compression_rate, decode, encode
from em_interp.models.hooked import HookedModel, attached
from em_interp.progress import quiet
from em_interp.texts.conversations import Encoded, batches

Rows = list[tuple[str, ...]]


def compressing(model: HookedModel, rounds: int) -> str:
    """`compression_rate` of 96 plain texts against a bare forward over the same batches, logits everywhere."""
    texts = [t for split in ("validation", "test") for t in em.texts.load_neutral_texts(split)]
    encoded = [Encoded(ids, 0, ((0,),)) for ids in plain_tokens(model, texts)]
    n_tokens = sum(len(e.ids) for e in encoded)

    @torch.inference_mode()
    def bare() -> None:
        with attached(model) as hf_model:
            for batch in batches(encoded, default_batch_tokens(model)):
                hf_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)

    contenders = {"bare forward with logits": bare, "compression_rate": lambda: compression_rate(model, texts)}
    seconds = cpu_seconds(contenders, rounds=rounds)
    slow = seconds["bare forward with logits"]
    rows: Rows = [("", "CPU s", "tokens/s", "× tokens/s of bare")]
    rows += [(name, f"{s:.1f}", f"{n_tokens / s:.0f}", f"{slow / s:.2f}") for name, s in seconds.items()]
    return table(f"Compression rate of {len(texts)} texts (target: ≥ 0.9 ×)", rows)


def coding(model: HookedModel, rounds: int) -> str:
    """`encode` and `decode` of 96 tokens against the model's own cached decoding, a token at a time."""
    [ids] = plain_tokens(model, [" ".join(em.texts.load_neutral_texts("test"))])
    ids = ids[:96]
    text = model.tokenizer.decode(ids)
    [ids] = plain_tokens(model, [text])

    @torch.inference_mode()
    def bare() -> None:
        cache = None
        with attached(model) as hf_model:
            for token in ids:
                output = hf_model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                cache = output.past_key_values

    data = encode(model, text)
    contenders = {
        "cached decoding": bare,
        "encode": lambda: encode(model, text),
        "decode": lambda: decode(model, data),
    }
    seconds = cpu_seconds(contenders, rounds=rounds)
    slow = seconds["cached decoding"]
    rows: Rows = [("", "CPU s", "tokens/s", "× cached decoding")]
    rows += [(name, f"{s:.2f}", f"{len(ids) / s:.0f}", f"{slow / s:.2f}") for name, s in seconds.items()]
    return table(f"Coding {len(ids)} tokens (target: encode ≥ 0.5 ×)", rows)


def memory() -> str:
    """Peak memory above the loaded model of one text, each in a process of its own."""
    rows: Rows = [("tokens in the text", "peak above the model, MiB")]
    for n in (2_000, 16_000):
        script = f"from benchmarks.elasticity import _peak; _peak({n})"
        rows.append((f"{n:,}", subprocess.check_output([sys.executable, "-c", script], text=True).split()[-1]))
    return table("Memory of the compression rate of one text, windows of 512 (target: the same)", rows)


def _peak(n: int) -> None:
    """Print by how much the rate of one text of some `n` tokens raises the resident set at its peak."""
    with quiet():
        model = em.load_bundled()
        text = " ".join(em.texts.load_neutral_texts("test"))
        text = text * (n // len(model.tokenizer(text).input_ids) + 1)
        compression_rate(model, [text[:4000]], window=512)
        peak, _ = peak_mib(lambda: compression_rate(model, [text], window=512))
    print(peak)
