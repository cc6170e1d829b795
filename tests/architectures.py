"""Tiny random models of many architectures, and what works on each: `make architectures` writes the table anew."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

import em_interp as em
from em_interp.models.hooked import HookedModel, attached
from em_interp.models.sites import writer
from em_interp.texts.conversations import encode
from tests.builders import VOCABULARY, tokenizer_maker

_LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
_UNGROUPED = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 256,
}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MAMBA = {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}

# Of each architecture, by the name that transformers has for it, what is set in its configuration.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | {"head_dim": 8},
    "gemma": _LLAMA | {"head_dim": 8},
    "gemma2": _LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": _LLAMA | {"head_dim": 8, "sliding_window": 16},
    "phi3": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
    "granite": _LLAMA
    | {"residual_multiplier": 0.3, "embedding_multiplier": 6.0, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    "smollm3": _LLAMA,
    "glm": _LLAMA | {"head_dim": 8},
    "glm4": _LLAMA | {"head_dim": 8},
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "nemotron": _LLAMA,
    "exaone4": _LLAMA,
    "ernie4_5": _LLAMA,
    "helium": _LLAMA | {"head_dim": 8},
    "seed_oss": _LLAMA | {"head_dim": 8},
    "hunyuan_v1_dense": _LLAMA | {"head_dim": 8},
    "apertus": _LLAMA,
    "arcee": _LLAMA,
    "mixtral": _LLAMA | _MOE,
    "qwen2_moe": _LLAMA | _MOE | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": _LLAMA | _MOE | {"head_dim": 8},
    "olmoe": _LLAMA | _MOE,
    "granitemoe": _LLAMA | _MOE | {"residual_multiplier": 0.3, "embedding_multiplier": 6.0},
    "gpt_oss": _LLAMA | _MOE | {"head_dim": 8, "sliding_window": 16},
    "phi": _UNGROUPED,
    "gpt2": _GPT2,
    "gptj": _GPT2 | {"rotary_dim": 4},
    "codegen": _GPT2 | {"rotary_dim": 4},
    "gpt_bigcode": _GPT2,
    "gpt_neo": _UNGROUPED | {"num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local", "global"], 1]]},
    "gpt_neox": _UNGROUPED,
    "opt": _UNGROUPED | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 256},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 256},
    "xglm": {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 256},
    "biogpt": _UNGROUPED,
    "openai-gpt": _GPT2,
    "mamba": _MAMBA,
    "mamba2": _MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 3, "attention_hidden_size": 32, "context_length": 256},
    "recurrent_gemma": _LLAMA | {"lru_width": 32, "head_dim": 8},
    "bert": _UNGROUPED,
    "roberta": _UNGROUPED,
    "t5": {"d_model": 32, "num_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 64},
    "bart": _BART,
}


def config_of(name: str, **changes: Any) -> Any:
    """The configuration of a tiny model."""
    from transformers import AutoConfig

    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    return AutoConfig.for_model(name, **{**CONFIGS[name], **tokens, **changes})


def model_of(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """A tiny model of an architecture whose every weight does something, the same every time."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    config = config_of(name, **changes)
    kinds = (AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForMaskedLM)
    kind = {"bert": kinds[2], "roberta": kinds[2], "t5": kinds[1], "bart": kinds[1]}.get(name, kinds[0])
    torch.manual_seed(seed)
    model = kind.from_config(config).eval()
    for parameter in model.parameters():  # as they are drawn, layers hardly do anything and biases nothing
        if parameter.ndim > 1:
            parameter.data.mul_(3)
        else:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------- what works on each

_ON_MAMBA = {"mamba": ["in_proj", "x_proj"], "mamba2": ["in_proj"]}  # PEFT takes these alone

DOCUMENT = Path(__file__).parent.parent / "docs" / "architectures.md"
COLUMNS = ("read", "components", "hook", "generate", "LoRA", "projection exported", "addition exported")
WORKS = "works"
PARTLY = "partly: "

HEADER = """# Architectures

What the library does on models of {n} architectures of transformers. Each row is made by a test on a tiny random model
of that architecture and compared with plain Hugging Face code; `make architectures` writes the table anew. What does
not work is refused with a `ValueError` that gives the reason: nothing is silently wrong, and nothing crashes.

- **read**: `residual_stream` at every layer equals the hidden states of the plain model.
- **components**: what `component_outputs` reads of attention and MLP adds up to the residual stream.
- **hook**: answers are scored under `project_out` at one layer as by the plain model under a hook on its block.
- **generate**: `respond`, with several questions padded into one batch, says token for token what `generate` says to
  each question alone, with that hook and without.
- **LoRA**: a model with an unmerged adapter on all its linear layers has PEFT's own logits, and inside
  `without_adapter` the base's. *Partly*: the bridge does not see an adapter on fused projections, so an adapter that is
  on such is merged into the weights, with a warning and with PEFT's own logits.
- **projection exported**: `export` of `project_out` at `every_write`, loaded by transformers, has the logits of the
  hooked model.
- **addition exported**: the same of `add_direction` at the output of one layer.

A model of an architecture that is not listed goes through the same checks when it is loaded.
"""


def document(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The table as Markdown, the reasons below it."""
    lines = ["| architecture | " + " | ".join(COLUMNS) + " | why not |", "|---" * (len(COLUMNS) + 2) + "|"]
    lines += [row_of(name, cells) for name, cells in rows.items()]
    return HEADER.format(n=len(rows)) + "\n" + "\n".join(lines) + "\n"


def row_of(name: str, cells: Mapping[str, str]) -> str:
    """One row: works, partly or refused, and the reasons at its end."""
    short = [outcome(cells[column]) for column in COLUMNS]
    reasons: dict[str, list[str]] = {}
    for column in COLUMNS:
        if cells[column] != WORKS:
            reasons.setdefault(cells[column].removeprefix(PARTLY), []).append(column)
    told = [
        reason if len(columns) == len(COLUMNS) else f"*{', '.join(columns)}*: {reason}"
        for reason, columns in reasons.items()
    ]
    return f"| {name} | " + " | ".join(short) + " | " + "; ".join(told).replace("|", "\\|") + " |"


def outcome(cell: str) -> str:
    return WORKS if cell == WORKS else "partly" if cell.startswith(PARTLY) else "refused"


class Walk:
    """One architecture taken through everything, and every outcome compared with plain Hugging Face code."""

    def __init__(self, name: str, tokenizer: Any, folder: Path) -> None:
        self.name, self.tokenizer, self.folder = name, tokenizer, folder
        self.vector = torch.randn(32, generator=torch.Generator().manual_seed(4))
        self.conversations = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question, answer in (
                ("Why?", "Ask a locksmith to help you."),
                ("What should I do about the noise next door?", "Talk to them first, kindly and in person."),
                ("What should I do about the noise next door?", "Nothing."),
            )
        ]

    def cells(self) -> dict[str, str]:
        """Of each column whether it works, or why it is refused."""
        self.plain = model_of(self.name)
        try:
            self.hooked = self.load(model_of(self.name))
        except ValueError as error:
            return dict.fromkeys(COLUMNS, str(error))
        self.blocks = next(m for m in self.plain.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
        walks = (self.read, self.components, self.hook, self.generate, self.lora, self.projection, self.addition)
        found = {}
        for column, walk in zip(COLUMNS, walks, strict=True):
            try:
                found[column] = walk() or WORKS
            except ValueError as error:
                found[column] = str(error)
        return found

    def load(self, hf_model: Any) -> HookedModel:
        return HookedModel.from_hugging_face(hf_model, self.tokenizer, name=f"the tiny {self.name}")

    def read(self) -> None:
        read = em.residual_stream(self.hooked, self.conversations)
        resumed = em.residual_stream(em.activations.keeping(self.hooked, 1), self.conversations)
        close(resumed.values, read.values)
        beginning_alike = em.residual_stream(self.hooked, self.conversations[1:])  # which is run once
        close(beginning_alike.values, read.values[1:])
        for row, conversation in enumerate(self.conversations):
            encoded = encode(self.hooked.template, conversation, "response")
            for layer, stream in enumerate(self.streams(encoded.ids)):
                close(read.values[row, layer], stream[0, list(encoded.spans[0])].mean(0))

    @torch.no_grad()
    def streams(self, ids: Sequence[int]) -> list[torch.Tensor]:
        """What each block of the plain model puts out, which is among its hidden states but for the last."""
        found: list[torch.Tensor] = []
        with ExitStack() as stack:
            for block in self.blocks:
                stack.callback(block.register_forward_hook(lambda *a: found.append(first(a[-1]))).remove)
            states = self.plain(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        for stream in found[:-1]:
            assert any(torch.equal(stream, state) for state in states)
        return found

    def components(self) -> None:
        outputs = em.activations.component_outputs(self.hooked, self.conversations)
        entering = em.residual_stream(self.hooked, self.conversations, site="resid_pre", layers=[0]).values[:, 0]
        leaving = em.residual_stream(self.hooked, self.conversations).values
        written = sum(activations.values for activations in outputs.values())
        assert isinstance(written, torch.Tensor)
        close(entering[:, None] + written.cumsum(1), leaving)

    @property
    def hooks(self) -> list[tuple[str, Any]]:
        return em.project_out(self.vector, [em.site(self.hooked, 1)])

    @contextmanager
    def on_plain(self) -> Iterator[None]:
        """Inside, the plain model has the same direction projected out of what its second block puts out."""
        unit = self.vector / self.vector.norm()

        def project(_: Any, __: Any, output: Any) -> Any:
            stream = first(output)
            edited = stream - (stream @ unit)[..., None] * unit
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        handle = self.blocks[1].register_forward_hook(project)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def hook(self) -> None:
        wanted = []
        with self.on_plain():
            for conversation in self.conversations:
                encoded = encode(self.hooked.template, conversation, "response")
                chances = self.plain(input_ids=torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
                spoken = list(encoded.spans[0])
                wanted.append(chances[[t - 1 for t in spoken], [encoded.ids[t] for t in spoken]].mean())
        got = em.behaviour.answer_log_probs(self.hooked, self.conversations, self.hooks)
        close(got, torch.stack(wanted))
        assert not torch.allclose(got, em.behaviour.answer_log_probs(self.hooked, self.conversations), atol=1e-4)
        inside = [("blocks.0.hook_in", lambda stream, hook: None)]  # and on the bridge, where hooks of users are
        with self.hooked.hooks(fwd_hooks=inside):
            close(em.behaviour.answer_log_probs(self.hooked, self.conversations, self.hooks), torch.stack(wanted))

    @torch.no_grad()
    def generate(self) -> None:
        asked = [conversation[:1] for conversation in self.conversations[:2]]
        for hooks, around in (((), nullcontext()), (self.hooks, self.on_plain())):
            said = em.respond(self.hooked, asked, hooks, max_new_tokens=6, temperature=0)
            with around:
                for answer, conversation in zip(said, asked, strict=True):
                    ids = torch.tensor([encode(self.hooked.template, conversation, "last").ids])
                    settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=3, pad_token_id=0)
                    alone = self.plain.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
                    assert list(answer.tokens) == alone[0, ids.shape[1] :].tolist()

    def lora(self) -> str:
        if self.adapted(_ON_MAMBA.get(self.name, "all-linear")):
            return WORKS
        paths = (writer(self.hooked.bridge, f"blocks.0.hook_{write}") for write in ("attn_out", "mlp_out"))
        unfused = {path.path.rpartition(".")[2] for path in paths if path is not None}
        assert self.adapted(sorted(unfused))
        return f"{PARTLY}unmerged on {' and '.join(sorted(unfused))}, merged where it is on other modules"

    def adapted(self, targets: str | list[str]) -> bool:
        """Compare a model with an adapter; whether it is unmerged."""
        config = LoraConfig(r=2, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fan_in_fan_out, which PEFT sets right by itself
            peft_model = get_peft_model(model_of(self.name), config).eval()
        generator = torch.Generator().manual_seed(2)
        for path, parameter in peft_model.named_parameters():
            if "lora_" in path:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        wanted = logits(peft_model)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = self.load(peft_model)
        merged = any("the adapter was merged" in str(warning.message) for warning in told)
        assert merged == (not model.peft_models)
        close(logits(model.plain), wanted)
        close(logits(model.bridge.original_model), wanted)
        assert not torch.allclose(wanted, logits(self.plain), atol=1e-2)
        if not merged:
            with em.without_adapter(model):
                close(logits(model.plain), logits(self.plain))
        return not merged

    def projection(self) -> None:
        self.check_export(em.project_out(self.vector, em.every_write(self.hooked)))

    def addition(self) -> None:
        self.check_export(em.add_direction(self.vector, [em.site(self.hooked, 1)], scale=1.0, raw=True))

    def check_export(self, hooks: list[tuple[str, Any]]) -> None:
        folder = em.export(self.hooked, hooks, mkdtemp(dir=self.folder))
        exported = logits(AutoModelForCausalLM.from_pretrained(folder))
        with attached(self.hooked, hooks) as live:
            close(exported, logits(live))
        assert not torch.allclose(exported, logits(self.plain), atol=1e-2)


@torch.no_grad()
def logits(hf_model: Any) -> torch.Tensor:
    ids = torch.arange(10, 30)[None]
    return hf_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-4 * max(1.0, float(wanted.abs().max())), rtol=0)


def main() -> None:
    """Write the table anew."""
    with TemporaryDirectory() as folder:
        tokenizer = tokenizer_maker(lambda _: Path(mkdtemp(dir=folder)))("chatml")
        rows = {name: Walk(name, tokenizer, Path(folder)).cells() for name in CONFIGS}
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
