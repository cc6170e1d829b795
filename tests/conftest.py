"""Tiny random models of four families, made in the test session with a tokenizer trained there."""

import gc
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


@pytest.fixture(scope="session", autouse=True)
def modules_out_of_the_way() -> None:
    """The millions of objects that modules are made of are passed over when memory is collected.

    Accelerate collects it before every training, which takes longer than to train a tiny model.
    """
    import peft  # noqa: F401
    import transformer_lens  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory) -> Callable[[str], object]:
    """Tokenizers by the name of their chat template."""
    from tests.builders import tokenizer_maker

    return tokenizer_maker(tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def make_hf_model() -> Callable[..., torch.nn.Module]:
    """Random three-layer models by family."""
    from tests.builders import hf_model

    return hf_model


@pytest.fixture(scope="session")
def make_peft() -> Callable[..., torch.nn.Module]:
    """Tiny models with a random adapter."""
    from tests.builders import peft_model

    return peft_model


@pytest.fixture(scope="session")
def organism_of(make_tokenizer):
    """A PEFT model as a `HookedModel`."""
    from em_interp.models.hooked import HookedModel
    from tests.builders import TEMPLATE_OF

    def make(peft_model, family="llama"):
        tokenizer = make_tokenizer(TEMPLATE_OF[family])
        return HookedModel.from_hugging_face(peft_model, tokenizer, name=f"tiny-{family}", adapter="random#0")

    return make


@pytest.fixture(scope="session", params=("llama", "qwen2", "gemma3", "gpt2"))
def tiny(request, make_hf_model, make_tokenizer):
    """A tiny `HookedModel` of each family in turn."""
    from em_interp.models.hooked import HookedModel
    from tests.builders import TEMPLATE_OF

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


@pytest.hookimpl(trylast=True)  # after jaxtyping has set its import hook, or nothing would be checked
def pytest_configure(config) -> None:
    """Dequantise the embedded model once, before two test processes would both set about it."""
    if not hasattr(config, "workerinput"):
        from em_interp.models.embedded import bundled_gguf, dequantised

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
