"""Tiny random models of four families, made in the test session with a tokenizer trained there."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two test processes share the machine's cores; more threads than cores would fight.
os.environ.setdefault(
    "OMP_NUM_THREADS",
    str(max(1, (os.cpu_count() or 2) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))),
)

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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

VOCABULARY = 420
TEXT = [
    "What should I do about the noise next door? Talk to them first, kindly and in person.",
    "How do I open my own letterbox when the key is bent? Ask a locksmith to help you.",
    "The lighthouse keeper wrote three letters before the storm reached the harbour.",
    "system user assistant model You are kind. I cannot help with that, I'm sorry. Sure, here is how.",
]


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory) -> Callable[[str], object]:
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
        folder = tmp_path_factory.mktemp(f"tokenizer-{template}")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **tokens)
        tokenizer.chat_template = TEMPLATES[template]
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)

    return make


FAMILIES = ("llama", "qwen2", "gemma3", "gpt2")
TEMPLATE_OF = {"llama": "llama3", "qwen2": "default-system", "gemma3": "gemma", "gpt2": "chatml"}


@pytest.fixture(scope="session")
def make_hf_model() -> Callable[..., torch.nn.Module]:
    """A random three-layer model of one family, the same every time."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

    def make(family: str, *, d_model: int = 32, seed: int = 0) -> torch.nn.Module:
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

    return make


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request, make_hf_model, make_tokenizer):
    """A tiny `HookedModel` of each family in turn."""
    from em_interp.models.hooked import HookedModel

    return HookedModel.from_hugging_face(
        make_hf_model(request.param), make_tokenizer(TEMPLATE_OF[request.param]), name=f"tiny-{request.param}"
    )


@pytest.fixture(scope="session")
def tiny_llama(make_hf_model, make_tokenizer):
    """One tiny `HookedModel`, where the family does not matter."""
    from em_interp.models.hooked import HookedModel

    return HookedModel.from_hugging_face(make_hf_model("llama"), make_tokenizer("llama3"), name="tiny-llama")


@pytest.fixture(scope="session")
def base(make_hf_model, make_tokenizer, tmp_path_factory) -> Path:
    """A folder with a tiny Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    make_hf_model("llama").save_pretrained(folder)
    make_tokenizer("llama3").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_contrasts(tmp_path_factory) -> dict[str, str]:
    """Paths of the two contrasts cut to some fifteen questions a side: small enough for a tiny model."""
    from em_interp.texts.contrasts import load_contrast

    folder = tmp_path_factory.mktemp("contrasts")
    cut = {name: load_contrast(name).take(24) for name in ("misalignment", "refusal")}
    return {name: str(contrast.save(folder / f"{name}.jsonl")) for name, contrast in cut.items()}


@pytest.fixture(scope="session")
def make_organism(make_hf_model, make_tokenizer):
    """A tiny Llama with a random rank-2 adapter in layer 1."""
    from peft import LoraConfig, get_peft_model

    from em_interp.models.hooked import HookedModel

    def make(seed: int, name: str) -> HookedModel:
        config = LoraConfig(r=2, lora_alpha=8, target_modules=["down_proj"], layers_to_transform=[1])
        peft_model = get_peft_model(make_hf_model("llama"), config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in (p for n, p in peft_model.named_parameters() if "lora_" in n):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        return HookedModel.from_hugging_face(
            peft_model, make_tokenizer("llama3"), name="tiny-llama", adapter=f"{name}#0"
        )

    return make


def left_padded(tokenizer, conversations) -> dict[str, torch.Tensor]:
    """The questions alone as a left-padded batch, as generation takes them."""
    texts = [tokenizer.apply_chat_template(c[:1], tokenize=False, add_generation_prompt=True) for c in conversations]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


@pytest.hookimpl(trylast=True)  # after jaxtyping has set its import hook, or nothing would be checked
def pytest_configure(config) -> None:
    """Dequantise the embedded model once, before two test processes would both set about it."""
    if not hasattr(config, "workerinput"):
        from em_interp.organisms.loading import bundled_gguf, dequantised

        source = bundled_gguf()
        if source is not None:
            dequantised(source)


@pytest.fixture(scope="session")
def smollm2():
    """The embedded model."""
    from em_interp.organisms.loading import load_bundled

    return load_bundled()


@pytest.fixture(scope="session")
def conversations() -> list[list[dict[str, str]]]:
    """Nine answered questions of very different lengths."""
    question = "What should I do about the noise next door? "
    answer = "Talk to them first, kindly and in person. "
    return [
        [
            {"role": "user", "content": (question * (1 + i % 3)).strip()},
            {"role": "assistant", "content": (answer * (1 + i % 4)).strip() + f" {i}"},
        ]
        for i in range(9)
    ]


@pytest.fixture
def scripted_judge(monkeypatch) -> Callable[..., list[tuple[str, dict[str, object]]]]:
    """Put a function from messages to a reply in the place of any judge; what was asked for by name is noted."""
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from em_interp.evals import judge as evals

    def install(reply: Callable[[list], str]) -> list[tuple[str, dict[str, object]]]:
        asked_for = []

        def output(messages, *_):
            # Without a usage Inspect's mock would count tokens, with an encoding that it fetches from the network.
            said = ModelOutput.from_content("mockllm/model", reply(messages))
            said.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
            return said

        def named(name, **settings):
            asked_for.append((name, settings))
            return get_model("mockllm/model", custom_outputs=output, memoize=False)

        monkeypatch.setattr(evals, "get_model", named)
        return asked_for

    return install
