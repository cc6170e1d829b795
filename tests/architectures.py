"""Tiny random models of many architectures, all of one shape as far as their configurations allow."""

from collections.abc import Mapping
from typing import Any

import torch

from tests.builders import VOCABULARY

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
