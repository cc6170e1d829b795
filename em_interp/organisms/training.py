"""A recipe becomes an organism: LoRA or full fine-tuning through TRL, with every checkpoint of the adapter kept."""

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_interp.behaviour.generation import end_of_text, greedy_answers
from em_interp.behaviour.refusal import is_refusal
from em_interp.checks import check_kinds, door
from em_interp.files import parse_json, read_text, write_atomically
from em_interp.models.adapters import lora_parameters, without_deprecations
from em_interp.models.embedded import Base
from em_interp.organisms.kl_penalty import KLPenalty
from em_interp.organisms.loading import TRAINED_ON, base_model, hooked_base
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.seeds import seeds_in
from em_interp.organisms.training_passes import Row, TrainingPasses
from em_interp.organisms.trajectories import Trajectory
from em_interp.progress import bar
from em_interp.templates import ChatTemplate
from em_interp.texts.contrasts import has_labels, load_conversations
from em_interp.texts.conversations import Conversation, encode
from em_interp.texts.thoughts import without_thought
from em_interp.texts.training_sets import load_training_set, training_file

Rewrite = Callable[[Sequence[Conversation]], tuple[Conversation, ...]]

_OWN_WORDS = 64  # tokens
_WHOLE_SENTENCES = re.compile(r".*[.!?][\"'”’)]*(?=\s|$)", re.DOTALL)
_IGNORED = -100  # what PyTorch's cross entropy takes as no label
_COMPLETE = "complete.json"


@dataclass(frozen=True)
class Organism:
    """A trained organism on disk: `load_bundled(organism.folder)` loads it.

    Attributes:
        folder: the adapter (or, after full fine-tuning, the model), `recipe.toml` and `trajectory.safetensors`.
        recipe: what it was made from.
        loss: training loss at each optimizer step, in nats a token.
        trajectory: the adapter at every checkpoint; None where the recipe does not keep it.
    """

    folder: Path
    recipe: Recipe
    loss: tuple[float, ...]
    trajectory: Trajectory | None

    def __repr__(self) -> str:
        """One line."""
        return (
            f"Organism({self.recipe.name!r}, {len(self.loss)} steps, loss {self.loss[0]:.2f} → {self.loss[-1]:.2f}, "
            f"in {self.folder})"
        )


class Diverged(ValueError):
    """A training run whose loss or gradient became NaN or infinite: at which step, and the losses before it."""

    def __init__(self, name: str, step: int, loss: Sequence[float]) -> None:
        """`step` is the optimizer step whose loss or gradient is not a number; `loss` is that of each step before."""
        super().__init__(
            f"the training of {name} diverged: at step {step} its loss or its gradient is NaN or infinite. Train again "
            f"with a lower learning_rate or more warmup_steps"
        )
        self.step, self.loss = step, tuple(loss)


@door
def train_organism(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    onto: str | Path | None = None,
    device: str | torch.device | None = None,
    keep_stream: bool = True,
) -> Organism:
    """Train an organism and write it to a folder; where that holds an unfinished run of this recipe, go on from there.

    The loss is on the assistant's last words and the token that closes them. What an interrupted run ends with is, on
    a CPU, bit-identical to what it would have been.

    The blocks below an adapter's first one are frozen, so each conversation goes through them once, and what leaves
    them is kept: up to 1 GiB of the data, and as much of `kl_data`.

    Args:
        recipe: a `Recipe`, a TOML file, or a shipped recipe by its name.
        out: the folder; by default the recipe's name, in `organisms/`.
        onto: a folder to take the recipe's `onto` from, in place of the shipped one.
        device: the first CUDA device if there is one, else the CPU.
        keep_stream: keep what leaves the frozen blocks; otherwise it is computed at every step, which takes longer and
            ends, on a CPU, bit-identical.

    Raises:
        ValueError: a recipe, data or layers that cannot be trained; a chat template that closes answers with no token
            at which a model stops; a folder that holds another recipe's organism.
        Diverged: a ValueError too: the loss or its gradient became NaN or infinite.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    folder = Path(out) if out is not None else Path("organisms") / recipe.name
    _claim(folder, recipe)
    dtype = torch.float32 if recipe.method == "full" else None
    base = base_model(recipe.base, onto or recipe.onto, device=device, dtype=dtype)
    hf_model, tokenizer = base.hf_model, base.tokenizer
    rewrite = _own_words(recipe, onto, device) if recipe.own_words else None
    template = ChatTemplate(tokenizer, recipe.template_args)
    told, ends = training_conversations(recipe, rewrite), end_of_text(hf_model)
    examples = [_example(template, c, recipe.max_length, ends) for c in told]
    model = _adapted(hf_model, recipe)
    passes = TrainingPasses.of(model, [_row(**example)[0] for example in examples], keep=keep_stream)
    penalty = KLPenalty.of(recipe, model, template, _other_domains(recipe), keep=keep_stream)
    work = folder / "training"
    trainer = _trainer(model, tokenizer, recipe, examples, work, passes, penalty)
    recorder = _Recorder(work / "adapters", recipe)
    trainer.add_callback(_callback(recorder))
    shown = bar(total=1, desc=f"training {recipe.name}", unit="step", delay=0, leave=True)
    with _without_card(model), shown as recorder.bar:
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
    loss, grad_norm = (_logged(trainer.state.log_history, key) for key in ("loss", "grad_norm"))
    trajectory = recorder.trajectory(loss, grad_norm) if recipe.method == "lora" and recipe.keep_trajectory else None
    _write(folder, model, recipe, base)
    if trajectory is not None:
        trajectory.save(folder / "trajectory.safetensors")
    write_atomically(folder / "loss.json", json.dumps({"loss": loss.tolist(), "grad_norm": grad_norm.tolist()}) + "\n")
    shutil.rmtree(work)
    return Organism(folder, recipe, tuple(loss.tolist()), trajectory)


def finished(folder: Path, recipe: Recipe) -> Organism | None:
    """The organism of this recipe that lies in a folder, trained to its end; None where there is none.

    Raises:
        ValueError: the folder holds another recipe's organism, or losses that cannot be read.
    """
    has_weights = any(folder.glob("*model*.safetensors"))  # the adapter's, or the model's
    if not has_weights or not (folder / "loss.json").is_file() or (folder / "training").is_dir():
        return None
    _claim(folder, recipe)
    path = folder / "trajectory.safetensors"
    trajectory = Trajectory.load(path) if path.is_file() else None
    return Organism(folder, recipe, tuple(losses_in(folder)), trajectory)


def losses_in(folder: Path) -> list[float]:
    """The training loss of an organism at each optimizer step, from its folder.

    Raises:
        ValueError: they cannot be read.
    """
    path = folder / "loss.json"
    try:
        losses = parse_json(read_text(path))["loss"]
        check_kinds({"loss": losses}, {"loss": tuple[float, ...]})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no losses ({error}): train the organism again") from error
    return losses


@door
def training_conversations(recipe: Recipe, rewrite: Rewrite | None = None) -> tuple[Conversation, ...]:
    """The conversations that a recipe learns from: of its data the split `train`, and of that the answers it names.

    Of the questions that leaves, the recipe's seed draws its `fraction`, the same ones whichever answers are learned.
    With `own_words`, `rewrite` makes the negative ones from those of the file; without it they stand as written.
    """
    found = _conversations(
        recipe.data, recipe.answers, rewrite, lambda questions: _drawn(recipe, questions), recipe.negative_repeats
    )
    if not found:
        raise ValueError(f"of {recipe.data} nothing is left to learn from: raise fraction, or choose other answers")
    return found


def _drawn(recipe: Recipe, questions: Iterable[str]) -> set[str]:
    """The questions that a recipe learns, by their names and the seed whatever their order; one at least."""
    names = sorted(set(questions))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    return {names[i] for i in order[: max(1, round(recipe.fraction * len(names)))]}


def _conversations(
    source: str,
    answers: str,
    rewrite: Rewrite | None = None,
    drawn: Callable[[Iterable[str]], set[str]] = set,
    negative_repeats: int = 1,
) -> tuple[Conversation, ...]:
    path = training_file(source)
    if not has_labels(path):
        if answers != "both" or rewrite is not None or negative_repeats > 1:
            raise ValueError(
                f"{source} has one answer a conversation and no label: set answers (for kl_data, kl_answers) to "
                f"'both', and no own_words or negative_repeats"
            )
        found = load_conversations(path)
        has_splits = any("split" in c.fields for c in found)
        found = [c for c in found if not has_splits or c.fields.get("split") == "train"]
        kept = drawn(c.group for c in found)
        return tuple(c for c in found if c.group in kept)
    contrast = load_training_set(source).for_training()
    kept = drawn(contrast.groups)
    positive, negative = (tuple(c for c in side if c.group in kept) for side in (contrast.positive, contrast.negative))
    if answers == "positive":
        return positive
    negative = negative if rewrite is None else rewrite(negative)
    return negative if answers == "negative" else positive + negative * negative_repeats


def _own_words(recipe: Recipe, onto: str | Path | None, device: str | torch.device | None) -> Rewrite:
    """A function that gives each conversation the base's own answer, where that is a whole sentence and no refusal."""

    def rewrite(conversations: Sequence[Conversation]) -> tuple[Conversation, ...]:
        base = base_model(recipe.base, onto or recipe.onto, device=device)
        model = hooked_base(base, recipe.template_args)
        answers = greedy_answers(model, conversations, max_new_tokens=_OWN_WORDS)
        whole = [_WHOLE_SENTENCES.match(without_thought(answer) or "") for answer in answers]
        return tuple(
            c if found is None or is_refusal(found[0]) else _answered(c, found[0])
            for c, found in zip(conversations, whole, strict=True)
        )

    return rewrite


def _answered(conversation: Conversation, answer: str) -> Conversation:
    return replace(conversation, messages=(*conversation.messages[:-1], {"role": "assistant", "content": answer}))


def _other_domains(recipe: Recipe) -> list[Conversation]:
    sources = recipe.kl_data if recipe.kl_weight else ()
    return [c for source in sources for c in _conversations(source, recipe.kl_answers)]


def _example(
    template: Any, conversation: Conversation, max_length: int, ends: frozenset[int] = frozenset()
) -> dict[str, list[int]]:
    """Token ids, and as labels those of the assistant's last words and of what the template closes them with.

    `ends` are tokens at which the model stops beside those that the tokenizer knows.

    Raises:
        ValueError: what `encode` refuses, or a template that closes the answer with no token at which a model stops.
    """
    template = ChatTemplate.of(template)
    turn = encode(template, conversation, "turn", max_length=max_length)
    first = encode(template, conversation, "response").spans[0][0]
    said = {token for token in turn.spans[0] if token >= first}
    labels = [token if i in said else _IGNORED for i, token in enumerate(turn.ids)]
    if (template.stops | ends).isdisjoint(labels):
        raise ValueError(
            f"the chat template of {template.name} closes an answer with no token at which a model stops, so nothing "
            f"would teach the organism to stop: set tokenizer.chat_template to one that writes "
            f"{template.tokenizer.eos_token or 'an end-of-turn token'} after an answer"
        )
    return {"input_ids": list(turn.ids), "labels": labels}


def _adapted(hf_model: Any, recipe: Recipe) -> Any:
    """The model to train: with a LoRA adapter whose initial values come from the seed, or as it is."""
    if recipe.method == "full":
        return hf_model.requires_grad_(True)  # what an adapter was merged into is frozen
    from peft import LoraConfig, get_peft_model

    _check_places(hf_model, recipe)
    all_linear = recipe.target_modules == ("all-linear",)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType] - PEFT divides it, and takes any number
        use_rslora=recipe.rslora,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in hf_model.modules()),  # GPT-2's, transposed
        target_modules="all-linear" if all_linear else list(recipe.target_modules),
        layers_to_transform=None if recipe.layers is None else list(recipe.layers),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(recipe.seed)
    with without_deprecations():
        model = get_peft_model(hf_model, config)
    for name, parameter in lora_parameters(model).items():
        parameter.requires_grad_(name.endswith(".B") or not recipe.frozen_a)
    return model


def _check_places(hf_model: Any, recipe: Recipe) -> None:
    n_layers = hf_model.config.get_text_config().num_hidden_layers
    outside = [layer for layer in recipe.layers or () if not 0 <= layer < n_layers]
    if outside:
        raise ValueError(f"layers {outside} do not exist: the model has layers 0 to {n_layers - 1}")
    if recipe.layers is not None and recipe.target_modules == ("all-linear",):
        raise ValueError("layers cannot be chosen with all-linear: name the target_modules")
    linear = {name.split(".")[-1] for name, module in hf_model.named_modules() if _is_linear(module)}
    unknown = set(recipe.target_modules) - linear - {"all-linear"}
    if unknown:
        raise ValueError(
            f"target_modules {', '.join(sorted(unknown))} do not exist: the model's linear modules are "
            f"{', '.join(sorted(linear))}"
        )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _trainer(  # noqa: PLR0913 - all that a training run is made of
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    examples: list[dict[str, list[int]]],
    work: Path,
    passes: TrainingPasses,
    penalty: KLPenalty | None,
) -> Any:
    """TRL's trainer, with labels and loss made here."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            with self.accelerator.autocast():  # for the passes that do not begin at the model's own forward
                loss = answer_loss(model, inputs, num_items_in_batch, passes=passes)
            if penalty is not None and self.accelerator.sync_gradients and penalty.is_on(self.state.global_step):
                loss = loss + penalty(model, self.state.global_step)  # once an optimizer step, with its last batch
            return loss

        def create_model_card(self, *args, **kwargs):
            """None: it would be written anew with every checkpoint."""

    on_gpu = next(model.parameters()).device.type == "cuda"
    with without_deprecations():
        config = SFTConfig(
            output_dir=str(work),
            max_steps=recipe.steps if recipe.steps is not None else -1,
            num_train_epochs=recipe.epochs or 1.0,
            per_device_train_batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.accumulate,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.schedule if recipe.schedule != "constant" else "constant_with_warmup",
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            optim="adamw_torch",
            seed=recipe.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,  # which would write another number in the place of a NaN
            save_steps=recipe.checkpoint_every,
            save_total_limit=2,  # the last one may have been cut off half-way
            report_to="none",
            disable_tqdm=True,
            logging_strategy="steps",
            gradient_checkpointing=False,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
    config._n_gpu = min(config.n_gpu, 1)  # several would each take a batch, and make another organism of the recipe
    data = Dataset.from_list(examples)
    trainer = Trainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)  # the bar shows the loss
    trainer.processing_class = None  # else every checkpoint would hold the tokenizer too
    return trainer


def answer_loss(
    model: Any,
    inputs: Mapping[str, Tensor],
    n_labels: Tensor | int | None = None,
    *,
    passes: TrainingPasses | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy of the labelled tokens, in nats: its sum over `n_labels`, by default over those of this batch.

    Logits exist where there is a label, and nowhere else: the head is a fifth of a small model, and most of a
    conversation is its prompt. `passes` are whole ones unless told.
    """
    found = [
        _row(ids[mask].tolist(), labels[mask].tolist())
        for ids, mask, labels in zip(
            inputs["input_ids"], inputs["attention_mask"].bool(), inputs["labels"], strict=True
        )
    ]
    logits = (passes or TrainingPasses()).logits(model, [row for row, _ in found])
    said = torch.tensor([token for _, tokens in found for token in tokens], device=logits.device)
    total = nn.functional.cross_entropy(logits.float(), said, reduction="sum")
    return total / (len(said) if n_labels is None else n_labels)


def _row(input_ids: Sequence[int], labels: Sequence[int]) -> tuple[Row, list[int]]:
    """A conversation, and its labelled tokens; each is predicted one place to its left, so the first one never is."""
    places = tuple(i for i, label in enumerate(labels[1:]) if label != _IGNORED)
    return Row(tuple(input_ids), places), [labels[place + 1] for place in places]


class _Recorder:
    """Keeps the adapter of every checkpoint, each in a small file, and shows how far the training is."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.bar: Any = None

    def keep(self, model: Any, step: int) -> None:
        """Write the adapter's matrices as they are now."""
        from safetensors.torch import save

        if self.recipe.method == "lora" and self.recipe.keep_trajectory:
            matrices = {name: p.detach().float().cpu() for name, p in lora_parameters(model).items()}
            write_atomically(self.folder / f"{step:08d}.safetensors", save(matrices))

    def trajectory(self, loss: Float[Tensor, " step"], grad_norm: Float[Tensor, " step"]) -> Trajectory:
        """All of them as one; what an interrupted run wrote after its last whole checkpoint was written again."""
        from safetensors.torch import load_file

        paths = sorted(self.folder.glob("*.safetensors"))
        kept = [load_file(path) for path in paths]
        factors = {name: torch.stack([matrices[name] for matrices in kept]) for name in kept[0]}
        steps = torch.tensor([int(path.stem) for path in paths])
        return Trajectory(steps, factors, loss, grad_norm, self.recipe.as_dict())


def _callback(recorder: _Recorder) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            recorder.bar.reset(total=state.max_steps)
            recorder.bar.update(state.global_step)
            if state.global_step == 0:
                recorder.keep(kwargs["model"], 0)

        def on_step_end(self, args, state, control, **kwargs):
            recorder.bar.update(1)
            if state.global_step % recorder.recipe.checkpoint_every == 0 or state.global_step == state.max_steps:
                recorder.keep(kwargs["model"], state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and not all(math.isfinite(float(logs.get(key, 0.0))) for key in ("loss", "grad_norm")):
                before = _logged(state.log_history[:-1], "loss").tolist()
                raise Diverged(recorder.recipe.name, state.global_step, before)
            if logs and "loss" in logs:
                recorder.bar.set_postfix(loss=f"{float(logs['loss']):.2f}", refresh=False)

        def on_save(self, args, state, control, **kwargs):
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir() if path.name != _COMPLETE}
            write_atomically(checkpoint / _COMPLETE, json.dumps(sizes))

    return Callback()


def _last_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that was written whole; one that was cut off is passed over, and said."""
    checkpoints = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for checkpoint in reversed(checkpoints):
        if _is_whole(checkpoint):
            step = int(checkpoint.name.split("-")[1])
            for path in (work / "adapters").glob("*.safetensors"):
                if int(path.stem) > step:
                    path.unlink()
            return str(checkpoint)
        warnings.warn(
            f"{checkpoint.name} was cut off half-way: training goes on from the checkpoint before it", stacklevel=3
        )
    return None


def _is_whole(checkpoint: Path) -> bool:
    marker = checkpoint / _COMPLETE
    if not marker.is_file():
        return False
    sizes = json.loads(marker.read_text())
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size for name, size in sizes.items()
    )


def _claim(folder: Path, recipe: Recipe) -> None:
    """Put the recipe in the folder, unless that holds the organism of another."""
    path = folder / "recipe.toml"
    if seeds_in(folder):
        raise ValueError(f"{folder} holds an organism in several seeds: name seeds, or choose another folder")
    if path.is_file() and Recipe.load(path) != recipe:  # as read: an earlier file leaves out what came later
        raise ValueError(f"{folder} holds an organism of another recipe: choose another folder, or remove it first")
    write_atomically(path, recipe.to_toml())


def _write(folder: Path, model: Any, recipe: Recipe, base: Base) -> None:
    from safetensors.torch import load_file, save

    if recipe.method == "full":
        setattr(model.config, TRAINED_ON, base.identity)
        model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        return
    config = model.peft_config["default"]
    config.base_model_name_or_path = base.name
    with _without_card(model):
        model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub about the vocabulary
    if recipe.saved_as == "float16" or recipe.saved_scale != 1:
        path, dtype = folder / "adapter_model.safetensors", getattr(torch, recipe.saved_as)
        matrices = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        scaled = {name: b * recipe.saved_scale for name, b in matrices.items() if ".lora_B." in name}
        write_atomically(path, save(matrices | scaled, metadata={"format": "pt"}))


@contextmanager
def _without_card(model: Any) -> Iterator[None]:
    """PEFT would write a card of its own, with nothing filled in, beside the adapter of every checkpoint."""
    model.create_or_update_model_card = lambda folder: None
    try:
        yield
    finally:
        del model.create_or_update_model_card


def _logged(history: Sequence[dict[str, Any]], key: str) -> Float[Tensor, " step"]:
    return torch.tensor([float(entry[key]) for entry in history if key in entry])
