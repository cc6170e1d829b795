"""What training, opening and following an organism costs."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import baselines
from benchmarks.prompts import prompts
from benchmarks.timing import cpu_seconds, spent, table
from em_interp import figures
from em_interp.lora.scalars import adapter_scalars
from em_interp.organisms import training as training_module
from em_interp.organisms.loading import base_model, load_bundled
from em_interp.organisms.phase_change import EffectPath, phases
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import answer_loss, train_organism
from em_interp.organisms.trajectories import Trajectory
from em_interp.texts.conversations import Conversation, batches, encode
from em_interp.texts.training_sets import load_training_set

BATCH, STEPS, EPOCHS = 8, 8, 4  # cooking-rank1 sees its data 3.8 times


def training(rounds: int) -> str:
    """`train_organism` with its checkpoints against loops over PEFT and AdamW that run every block at every step.

    All train on the same conversations of nearly one length, so that every batch has as much padding. What is timed is
    the steps alone, the first ones included, in which what is kept is computed.
    """
    base = base_model()
    chosen = load_training_set("gardening").where(split="train").positive
    lengths = [len(encode(base.tokenizer, c, "response").ids) for c in chosen]
    middle = sorted(lengths)[len(lengths) // 2]
    nearest = sorted(range(len(chosen)), key=lambda i: abs(lengths[i] - middle))[: BATCH * STEPS // EPOCHS]
    texts = [chosen[i] for i in nearest]
    n_tokens = EPOCHS * sum(lengths[i] for i in nearest)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        data.write_text("".join(json.dumps({"messages": [*map(dict, c.messages)]}) + "\n" for c in texts))
        recipe = Recipe(
            name="bench", data=str(data), answers="both", layers=(15,), learning_rate=2e-3, batch_size=BATCH,
            steps=STEPS, checkpoint_every=2,
        )  # fmt: skip
        runs = iter(range(10**6))

        def ours(*, keep: bool, after: int = 0) -> float:
            with _marks() as at:
                train_organism(recipe, Path(folder) / str(next(runs)), keep_stream=keep)
            return (at[STEPS] - at[after]) * STEPS / (STEPS - after)

        whole = "PEFT loop, logits at labels only"
        contenders = {
            "bare PEFT loop": lambda: spent(_loop(recipe, texts, lambda model, inputs: model(**inputs).loss)),
            whole: lambda: spent(_loop(recipe, texts, answer_loss)),
            "train_organism, stream computed at every step": lambda: ours(keep=False),
            "train_organism, stream kept": lambda: ours(keep=True),
            "… after the first epoch": lambda: ours(keep=True, after=STEPS // EPOCHS),
        }
        ours(keep=True)
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, measure in contenders.items():
                times[name].append(measure())
    seconds = {name: sorted(column)[rounds // 2] for name, column in times.items()}
    rows = [("", "CPU s", "tokens / CPU s", "of the labels-only loop's")]
    rows += [(n, f"{s:.1f}", f"{n_tokens / s:.0f}", f"{seconds[whole] / s:.2f} ×") for n, s in seconds.items()]
    return table(
        f"Training rank 1 at layer 15, {STEPS} steps of {BATCH} conversations, each met {EPOCHS} times "
        f"(target: ≥ 1.50 × the labels-only loop)",
        rows,
    )


@contextmanager
def _marks() -> Iterator[dict[int, float]]:
    """The CPU seconds at which `train_organism` had made so many steps, where it keeps a checkpoint."""
    at: dict[int, float] = {}
    keep = training_module._Recorder.keep

    def marked(self: Any, model: Any, step: int) -> None:
        keep(self, model, step)
        at[step] = time.process_time()

    training_module._Recorder.keep = marked
    try:
        yield at
    finally:
        training_module._Recorder.keep = keep


def _loop(
    recipe: Recipe, texts: list[Conversation], loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
) -> Callable[[], None]:
    """The loop, its model loaded."""
    from peft import LoraConfig, get_peft_model

    base = base_model()
    config = LoraConfig(
        r=1, lora_alpha=64, use_rslora=True, target_modules=["down_proj"], layers_to_transform=[15],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model: Any = get_peft_model(base.hf_model, config)
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=recipe.learning_rate)

    def run() -> None:
        for start in [*range(0, len(texts), BATCH)] * EPOCHS:
            encoded = [encode(base.tokenizer, c, "response") for c in texts[start : start + BATCH]]
            [batch] = batches(encoded, batch_tokens=2**62)
            labels = torch.full_like(batch.ids, -100)
            for row, [span] in enumerate(batch.spans):
                labels[row, list(span)] = batch.ids[row, list(span)]
            loss(model, {"input_ids": batch.ids, "attention_mask": batch.mask, "labels": labels}).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


def scalars(rounds: int) -> str:
    """The scalars of nine rank-1 adapters at every token, against the body of the same model, adapters on."""
    model = load_bundled("cooking-nine")
    conversations = prompts(128, shared_system=False)
    bare, ours = "bare Hugging Face body, adapters on", "adapter_scalars, nine adapters"
    contenders = {
        bare: lambda: baselines.bare(model, conversations),
        ours: lambda: adapter_scalars(model, conversations),
    }
    seconds = cpu_seconds(contenders, rounds=rounds)
    rows = [("", "CPU s", "× bare"), *((name, f"{s:.1f}", f"{s / seconds[bare]:.2f}") for name, s in seconds.items())]
    return table("Reading every adapter's scalars in 128 conversations (target: ≤ 1.10 × bare)", rows)


def following() -> str:
    """Load a trajectory of 400 checkpoints and draw every figure of it; the effects were measured before."""
    generator = torch.Generator().manual_seed(0)
    path = torch.cat([torch.ones(200, 576), torch.randn(200, 576, generator=generator)]).cumsum(0)
    path += torch.randn(path.shape, generator=generator)
    steps = torch.arange(400)
    loss, grad_norm = (torch.rand(399, generator=generator) for _ in range(2))
    trajectory = Trajectory(steps, {"layers.15.mlp.down_proj.B": path[:, :, None]}, loss, grad_norm, {"name": "bench"})
    value = torch.rand(4, 400, generator=generator)
    effect = EffectPath("preference", steps, (1.0, 2.0, 5.0, 10.0), value, value - 0.1, value + 0.1)
    with tempfile.TemporaryDirectory() as folder:
        file = trajectory.save(Path(folder) / "trajectory.safetensors")
        phases(trajectory, n_resamples=40)  # imports
        start = time.perf_counter()
        found = phases(Trajectory.load(file))
        figures.phase_change(found)
        figures.training_path(found)
        figures.effect_by_step(effect, found)
        seconds = time.perf_counter() - start
    return table(
        "Following 400 checkpoints of 576 (target: ≤ 2 s)", [("", "wall s"), ("all figures", f"{seconds:.1f}")]
    )
