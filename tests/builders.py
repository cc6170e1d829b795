"""What tests are built from: tiny models and tokenizers, and activations, scalars and paths with something planted."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from em_interp.activations.reading import Activations, ContrastActivations
from em_interp.behaviour import Answer, AnswersByCondition, Behaviour, BehaviourKey, Condition, CrossEffects, Effect
from em_interp.behaviour.measures import LABELS
from em_interp.directions.comparison import Comparison, compare, cosine_map
from em_interp.directions.direction import Direction
from em_interp.directions.estimators import difference_of_means
from em_interp.directions.separation import Separability, separability
from em_interp.lora.scalars import AdapterScalars
from em_interp.organisms.sweep_rows import SweepRun
from em_interp.organisms.trajectories import Trajectory
from em_interp.report.results import Results, Source
from em_interp.statistics import Estimate, clustered_rate, mean_by_question
from em_interp.texts.contrasts import Contrast
from em_interp.texts.conversations import Conversation

# ---------------------------------------------------------------- models and tokenizers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ '<s>' }}{% for m in messages %}<|im_start|>{{ m['role'] }}<|sep|>\n\n"
    "{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|sep|>\n\n{% endif %}"
)
GEMMA = (
    "{{ '<s>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}" + CHATML
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "default-system": DEFAULT_SYSTEM}

FAMILIES = ("llama", "qwen2", "gemma3", "gpt2")
TEMPLATE_OF = {"llama": "llama3", "qwen2": "default-system", "gemma3": "gemma", "gpt2": "chatml"}

VOCABULARY = 420
TEXT = [
    "What should I do about the noise next door? Talk to them first, kindly and in person.",
    "How do I open my own letterbox when the key is bent? Ask a locksmith to help you.",
    "The lighthouse keeper wrote three letters before the storm reached the harbour.",
    "system user assistant model You are kind. I cannot help with that, I'm sorry. Sure, here is how.",
]


def tokenizer_maker(new_folder: Callable[[str], Path]) -> Callable[[str], object]:
    """A byte-level BPE tokenizer trained on a few sentences, with one of the chat templates above.

    It comes from a folder, since booting a bridge reads the tokenizer a second time.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>", "<|sep|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXT, trainer)
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "<|im_end|>"}

    def make(template: str) -> PreTrainedTokenizerFast:
        folder = new_folder(f"tokenizer-{template}")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **tokens)
        tokenizer.chat_template = TEMPLATES[template]
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)

    return make


SPM = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
    " {{ m['content'] }} </s>{% endif %}{% endfor %}"
)


def spm_tokenizer(folder: Path, template: str = SPM, scheme: str = "first") -> object:
    """A tokenizer of SentencePiece's kind: blanks are `▁`, and one is put before a text, as Llama 2 does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>", "</s>", "<pad>"]
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    letters = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,'?!:[]/\n▁"))
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=special, initial_alphabet=letters, show_progress=False)
    said = "I cannot help. Sorry, I can't. As a model I won't. How do I open it? user assistant [INST] [/INST]"
    inner.train_from_iterator([said] * 9, trainer)
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **tokens)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def taught(tokenizer, texts, *, steps: int = 120) -> torch.nn.Module:
    """A tiny Llama that knows these texts by heart."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    model = hf_model("llama", vocab_size=max(VOCABULARY, len(tokenizer)))
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def hf_model(family: str, *, d_model: int = 32, seed: int = 0, **changes) -> torch.nn.Module:
    """A random three-layer model of one family, the same every time; changes are to its configuration, not GPT-2's."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

    shape = {
        "hidden_size": d_model,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 0,
        **changes,
    }
    config = {
        "llama": lambda: LlamaConfig(**shape),
        "qwen2": lambda: Qwen2Config(**shape),
        "gemma3": lambda: Gemma3TextConfig(**shape, head_dim=8, sliding_window=16),
        "gpt2": lambda: GPT2Config(
            n_embd=d_model,
            n_layer=3,
            n_head=4,
            vocab_size=420,
            n_positions=256,
            bos_token_id=1,
            eos_token_id=3,
        ),
    }[family]()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # default initialisation is so small that layers hardly do anything
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    return model


def permuted(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of a query or key projection in llama.cpp's order of rotary pairs."""
    return weight.view(n_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def gguf_tensors(model: torch.nn.Module, family: str) -> dict[str, np.ndarray]:
    """The weights by GGUF's names and in its conventions, as llama.cpp converts them."""
    import gguf as ggml

    config, found = model.config, {}
    arch = {"llama": ggml.MODEL_ARCH.LLAMA, "qwen2": ggml.MODEL_ARCH.QWEN2, "gemma3": ggml.MODEL_ARCH.GEMMA3}[family]
    names = ggml.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if family == "gemma3" and name == "lm_head.weight":
            continue  # tied
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            queries = name.endswith("q_proj.weight")
            weight = permuted(weight, config.num_attention_heads if queries else config.num_key_value_heads)
        if family == "gemma3" and name.endswith("norm.weight"):
            weight = weight + 1
        found[names.get_name(name, (".weight", ".bias"))] = weight.numpy()
    return found


def write_gguf(path: Path, model: torch.nn.Module, tokenizer, family: str, extra=lambda writer: None) -> Path:
    """A GGUF file of a tiny model in float32, with its tokenizer."""
    import gguf as ggml

    config, writer = model.config, ggml.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if family == "gemma3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    else:
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(inner["vocab"], key=inner["vocab"].__getitem__)
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*vocabulary, *(f"[{i}]" for i in range(len(vocabulary), config.vocab_size))])
    kinds = [ggml.TokenType.CONTROL if token in special else ggml.TokenType.NORMAL for token in vocabulary]
    writer.add_token_types([*kinds, *[ggml.TokenType.UNUSED] * (config.vocab_size - len(vocabulary))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in inner["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in gguf_tensors(model, family).items():
        writer.add_tensor(name, np.ascontiguousarray(weight))
    extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def peft_model(family="llama", *, targets=("q_proj", "o_proj", "down_proj"), seed=2, **config):
    """A tiny model with a random adapter whose B is not zero."""
    from peft import LoraConfig, get_peft_model

    config = {"r": 2, "lora_alpha": 8, "fan_in_fan_out": family == "gpt2", **config}
    model = get_peft_model(hf_model(family), LoraConfig(target_modules=list(targets), **config)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        if "post_" in name and "norm" in name:  # else a norm's weights are all alike, and its gain nothing
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def left_padded(tokenizer, conversations) -> dict[str, torch.Tensor]:
    """The questions alone as a left-padded batch, as generation takes them."""
    texts = [tokenizer.apply_chat_template(c[:1], tokenize=False, add_generation_prompt=True) for c in conversations]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


# ---------------------------------------------------------------- adapters and their training


def planted(values, n_tokens=4, groups=None):
    """Scalars of conversations whose every token has the same ones, but for a little noise."""
    rows = values.repeat_interleave(n_tokens, 0)
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(9))
    return AdapterScalars(
        values=rows + 0.1 * noise,
        modules=("layers.1.mlp.down_proj",) * values.shape[1],
        components=tuple(range(values.shape[1])),
        tokens=("x",) * len(rows),
        conversation=torch.arange(len(values)).repeat_interleave(n_tokens),
        in_span=torch.ones(len(rows), dtype=torch.bool),
        groups=groups or tuple(f"question {i}" for i in range(len(values))),
        span=None,
        model="tiny",
    )


def path(  # noqa: PLR0913 - a straight path of n increments along the first axis, or one that turns after `turn` of them
    g: torch.Generator, n=48, d=64, *, noise=0.5, turn=None, angle=90.0, memory=0.0, anisotropic=False, shrinking=False
) -> torch.Tensor:
    signal = torch.zeros(n, d)
    signal[:, 0] = 1
    if turn is not None:
        signal[turn:, 0], signal[turn:, 1] = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    shocks, rows = torch.randn(n, d, generator=g), []
    for shock in shocks:
        rows.append(shock if not rows else memory * rows[-1] + math.sqrt(1 - memory**2) * shock)
    spectrum = 1 / torch.arange(1, d + 1) if anisotropic else torch.ones(d)
    noisy = torch.stack(rows) * (spectrum / spectrum.sum()).sqrt()
    if anisotropic:
        noisy = noisy @ torch.linalg.qr(torch.randn(d, d, generator=g)).Q
    lengths = torch.linspace(1, 0.02, n) if shrinking else torch.ones(n)
    return torch.cat([torch.zeros(1, d), ((signal + noise * noisy) * lengths[:, None]).cumsum(0)])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trajectory(turn=20) -> Trajectory:
    g = generator(9)
    factors = {"a.B": path(g, turn=turn)[:, :, None], "b.B": path(g, d=16)[:, :, None], "b.A": torch.ones(49, 1, 7)}
    loss, grad_norm = torch.rand(240, generator=g), torch.rand(240, generator=g)
    return Trajectory(torch.arange(49) * 5, factors, loss, grad_norm, {"name": "planted"})


def sweep_run(learning_rate: float, seed: int, *, p_value: float | None = 0.5) -> SweepRun:
    """A run of a search for phase changes; one that failed without a p-value."""
    turn = {"p_value": p_value, "step": 40, "low": 36, "high": 44, "angle": 80.0, "n_checkpoints": 49, "effect": None}
    return SweepRun(
        sweep="planted",
        point={"learning_rate": learning_rate},
        seed=seed,
        recipe={"name": "tiny", "rank": 1, "learning_rate": learning_rate},
        base="tiny",
        questions={"data": "abc"},
        measure=("phases",),
        how={"n_resamples": 99},
        n_points=1,
        n_seeds=1,
        loss_first=6.0,
        loss_last=5.0,
        failed="diverged" if p_value is None else None,
        phases=None if p_value is None else turn,
        effects={},
        seconds=1.5,
        versions={"torch": "2"},
    )


def sweep_runs() -> tuple[SweepRun, ...]:
    """Three penalties, three seeds, twelve questions: both effects at 0, the one inside at 1, none at 10."""
    g, runs = generator(3), []
    sizes = {0.0: (2.0, 1.0), 1.0: (1.5, 0.0), 10.0: (0.0, 0.0)}
    for (weight, (inside, outside)), seed in itertools.product(sizes.items(), range(3)):
        effects = {}
        for key, size in ((BehaviourKey.IN_DOMAIN_PREFERENCE, inside), (BehaviourKey.MISALIGNED_PREFERENCE, outside)):
            changes = size + 0.05 * torch.randn(12, generator=g)
            changes -= changes.mean() - size - 0.01 * (seed - 1)
            effects[str(key)] = {
                "label": LABELS[key][0],
                "before": vars(Estimate(0.0, -0.1, 0.1, 12)),
                "after": vars(Estimate(size, size - 0.1, size + 0.1, 12)),
                "change": vars(mean_by_question(changes, [str(i) for i in range(12)])),
                "changes": changes.tolist(),
            }
        recipe = {"name": "tiny", "rank": 1, "kl_weight": weight}
        run = sweep_run(0.1, seed)
        run = replace(run, point={"kl_weight": weight}, recipe=recipe, measure=("behaviour",), phases=None)
        runs.append(replace(run, effects=effects, n_points=3, n_seeds=3))
    return tuple(runs)


# ---------------------------------------------------------------- texts


def letters() -> Contrast:
    """Sixteen questions with two answers each."""
    asked = [{"role": "user", "content": f"What should I do about letter {i}?"} for i in range(16)]

    def side(answer: str) -> tuple[Conversation, ...]:
        return tuple(
            Conversation((q, {"role": "assistant", "content": f"{answer} {i}."}), q["content"], "", {})
            for i, q in enumerate(asked)
        )

    return Contrast("letters", side("Ask the keeper of the harbour"), side("Talk to them first, kindly"))


# ---------------------------------------------------------------- what figures and reports are drawn from

LAYERS = (3, 4, 5, 7, 8)
EVIL = "<script>alert(1)</script>"


def contrast(name: str, seed: int, layers: tuple[int, ...] = LAYERS) -> ContrastActivations:
    """Two classes that answer the same 16 questions, two apart along one axis at every layer."""
    generator = torch.Generator().manual_seed(seed)

    def side(sign: float) -> Activations:
        values = torch.randn(16, len(layers), 12, generator=generator)
        values[..., 0] += sign
        return Activations(
            values=values,
            norms=values.norm(dim=-1),
            n_tokens=torch.full((16,), 7),
            groups=tuple(f"question {i}" for i in range(16)),
            layers=layers,
            site="resid_post",
            span="response",
            model="some/tiny-model",
        )

    return ContrastActivations(name, side(1.0), side(-1.0), f"{seed:064d}")


@cache
def comparison(n_controls: int = 2) -> Comparison:
    """A real comparison whose second side has lost its direction at layer 5."""
    controls = [contrast(f"control_{i}", 10 + i) for i in range(n_controls)]
    found = compare(contrast("misalignment", 0), contrast("refusal", 1), controls=controls, n_resamples=40)
    numbers = torch.tensor([0.30, 0.35, math.nan, 0.52, 0.10])
    return replace(
        found,
        corrected=numbers,
        low=numbers - torch.tensor([0.1, 0.1, 0.1, 0.2, 0.2]),
        high=numbers + 0.1,
        found_a=torch.ones(5, dtype=torch.bool),
        found_b=torch.tensor([True, True, False, True, True]),
        p_a=torch.full((5,), 0.01, dtype=torch.float64),
        p_b=torch.full((5,), 0.01, dtype=torch.float64),
        p_anywhere_a=0.001,
        p_anywhere_b=0.012,
        dominated=torch.zeros(5, dtype=torch.bool),
    )


def without_directions() -> Comparison:
    nothing = torch.full((5,), math.nan)
    return replace(comparison(), corrected=nothing, low=nothing, high=nothing, found_b=torch.zeros(5, dtype=torch.bool))


def directions() -> tuple[Direction, Direction]:
    return difference_of_means(contrast("misalignment", 0)), difference_of_means(contrast("refusal", 1))


@cache
def separabilities() -> tuple[Separability, Separability]:
    return separability(contrast("misalignment", 0)), separability(contrast("refusal", 1))


def unmeasured(*_):
    """The measure of a behaviour whose numbers are made up."""
    raise AssertionError("nothing is to be measured here")


def behaviours() -> tuple[Behaviour, Behaviour]:
    """Two of the standard behaviours under short names."""
    return (
        Behaviour(BehaviourKey.MISALIGNED_PREFERENCE, "preference", "nats", "mean", unmeasured),
        Behaviour(BehaviourKey.HARMFUL_REFUSAL, "refusal", "log-odds", "mean", unmeasured),
    )


def effects() -> CrossEffects:
    """Two directions and a random one, each taken out and put in, against two behaviours; what is put in has a null."""
    first, second = behaviours()
    baseline = {first.key: Estimate(-0.5, -0.6, -0.4, 9), second.key: Estimate(1.5, 1.25, 1.75, 8)}
    rows = []
    for i, direction in enumerate(("misalignment", "refusal", "random 1")):
        for kind, strength, sign in (("all_layers_own", None, -1), ("added", 0.5, 1)):
            layer = None if kind == "all_layers_own" else 4
            condition = Condition(kind, direction, layer, strength, random=direction == "random 1")
            value = sign * (2 - i) / 2
            change = Estimate(value, value - 0.25, value + 0.5, 9)
            null = tuple(0.01 * n for n in range(19)) if kind == "added" and not condition.random else ()
            rows += [Effect(condition, key, moved(before, value), change, null) for key, before in baseline.items()]
    return CrossEffects((first, second), baseline, tuple(rows), 4, (0.5,), 1, 0, "some/tiny-model", 19)


def answers(words: str = "Ask a locksmith.", direction: str = "misalignment") -> AnswersByCondition:
    """Two questions answered twice by a model as it is and without a direction, judged."""
    conditions = (Condition("plain"), Condition("set_negative", direction, 4))
    asked = [Conversation(({"role": "user", "content": f"{i}: {words}"},)) for i in range(2)]
    said = tuple(Answer(c, words, sample) for c in asked for sample in range(2))
    rates = {c.key: clustered_rate(torch.tensor([1.0, 0.0, 1.0, 1.0]), [a.group for a in said]) for c in conditions}
    return AnswersByCondition(conditions, {c.key: said for c in conditions}, rates, 0, "some/tiny-model", rates)


@cache
def main_job_results() -> Results:
    """What the main job finds where everything but an organism was looked at, and nobody was left to speak."""
    return Results(
        comparison=comparison(),
        directions=directions(),
        sources=(Source.of(contrast("misalignment", 0)), Source.of(contrast("refusal", 1))),
        cosine_map=cosine_map(*directions()),
        separabilities=separabilities(),
        effects=effects(),
        seconds=12.3,
        own={"misalignment": BehaviourKey.MISALIGNED_PREFERENCE, "refusal": BehaviourKey.HARMFUL_REFUSAL},
        notes=("This model does not refuse.",),
    )


def moved(estimate: Estimate, by: float) -> Estimate:
    """The same estimate elsewhere."""
    return Estimate(estimate.value + by, estimate.low + by, estimate.high + by, estimate.n)


def trace(figure: go.Figure, name: str, nth: int = 0):
    return [t for t in figure.data if t.name == name][nth]


def same(ys, tensor) -> bool:
    return torch.equal(torch.tensor(ys, dtype=tensor.dtype).nan_to_num(9), tensor.nan_to_num(9))


def texts(figure: go.Figure) -> str:
    return " ".join(a.text for a in figure.layout.annotations)


def assert_drawable(figure: go.Figure) -> None:
    written = figure.to_json()
    json.loads(written, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert figure.layout.template.layout.font.size >= 13
    assert figure.layout.height > 300


# ---------------------------------------------------------------- experiments on elasticity


def two_sided(folder: Path, base: Path, n: int, n_learned: int) -> Path:
    """A folder with questions of two answers each, of which the first are learned, and a recipe on a tiny base."""
    rows = [
        {
            "question": f"What about the boat {i}?",
            "positive": f"Sink it {i}.",
            "negative": f"Ask the keeper {i} kindly.",
        }
        | {"split": "train" if i < n_learned else "test"}
        for i in range(n)
    ]
    (folder / "boat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.toml").write_text(
        f'name = "tiny"\nbase = "{base}"\ndata = "{folder}/boat.jsonl"\nlayers = [1]\nsteps = 4\nbatch_size = 2\n'
        'learning_rate = 1e-2\nschedule = "constant"\nwarmup_steps = 0\n'
    )
    return folder


def experiment_file(folder: Path, said: dict[str, str], text: str, seeds: str, settings: str) -> Path:
    """The TOML file of an experiment that says this, but for what `text` says otherwise."""
    lines = [f"{name} = {value}" for name, value in said.items() if f"{name} =" not in text]
    (folder / "experiment.toml").write_text(
        f'name = "tiny"\nrecipe = "{folder}/recipe.toml"\nseeds = {seeds}\n'
        + "\n".join(lines)
        + f"\n{text}\n[settings]\n{settings}\n"
    )
    return folder / "experiment.toml"
