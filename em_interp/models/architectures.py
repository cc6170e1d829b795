"""What an architecture must be like for this library: each condition is asked of the model, or measured on it."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from em_interp.models.probe import probe_ids, tolerance

# What configurations call the most tokens that a model takes.
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "context_length",
)
_TEXT, _PAD, _MORE = 6, 2, 2  # tokens of the text that is read alone, padded, and with more after it


def context_length(config: Any) -> int | None:
    """The most tokens that a model takes, by its configuration; None where it sets no limit, as Bloom."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    found = (getattr(text, name, None) for name in _LENGTHS)
    return next((length for length in found if isinstance(length, int) and length > 0), None)


def architecture(hf_model: Any) -> str:
    """What a model is in transformers, such as `LlamaForCausalLM`."""
    return type(hf_model).__name__


def check_decoder(hf_model: Any, name: str) -> None:
    """Refuse whatever does not continue a text from its own last token.

    Raises:
        ValueError: an encoder-decoder, a masked language model, or a model without a head for tokens.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    kind = architecture(hf_model)
    if hf_model.config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder ({kind}), whose answers are written by another stack of blocks than the one "
            f"that reads: only decoders, which continue a text, are read here"
        )
    if kind in MASKED.values() and kind not in CAUSAL.values():
        raise ValueError(
            f"{name} is a masked language model ({kind}), which fills gaps and continues no text: only decoders are "
            f"read here"
        )
    if hf_model.get_output_embeddings() is None:
        raise ValueError(f"{name} ({kind}) has no head that predicts tokens: load the model with its language head")


@contextmanager
def booting(hf_model: Any, name: str) -> Iterator[None]:
    """Inside, whatever TransformerLens raises on an architecture becomes one sentence.

    Raises:
        ValueError: it names the architecture and the reason.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0].partition(". Available architectures")[0].strip() or type(error).__name__
        raise ValueError(
            f"TransformerLens does not bridge {name}, whose architecture is {architecture(hf_model)}: "
            f"{reason.rstrip('.')}"
        ) from error


def check_blocks(bridge: Any, name: str, kind: str) -> None:
    """Refuse a bridge without a list of blocks through which one residual stream goes.

    Raises:
        ValueError: there is no such list.
    """
    blocks = getattr(bridge, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != bridge.cfg.n_layers or not bridge.cfg.n_layers:
        raise ValueError(f"{name} ({kind}) has no one list of blocks in TransformerLens, so it has no layers to read")


@torch.no_grad()
def check_rows(hf_model: Any, name: str) -> None:
    """Refuse a model in which a token is read by those before it, or a text by what shares a batch with it.

    Six tokens are read alone, behind padding, and with two more after them: their logits must be the same.

    Raises:
        ValueError: they are not.
    """
    ids = probe_ids(hf_model)[:, : _TEXT + _MORE]
    text = ids[:, :_TEXT]
    whole = torch.ones_like(ids)
    padded, mask = torch.cat([ids[:, -_PAD:], text], 1), whole.clone()
    mask[:, :_PAD] = 0
    alone = _logits(hf_model, text, whole[:, :_TEXT])[0]
    behind, longer = _logits(hf_model, torch.cat([padded, ids]), torch.cat([mask, whole]))
    if not torch.isfinite(alone).all():
        return  # it is refused where it is compared with the bridge
    if _same(behind[_PAD:], alone) and _same(longer[:_TEXT], alone):
        return
    kind = architecture(hf_model)
    if not _same(_logits(hf_model, ids, whole)[0, :_TEXT], alone):
        raise ValueError(
            f"{name} ({kind}) is not causal: the logits of a token change with the tokens after it, so it is read in "
            f"another way than it writes; only decoders are read here"
        )
    raise ValueError(
        f"the logits of {name} ({kind}) on a text depend on its padding or on the texts beside it in a batch, so what "
        f"is read in batches would be wrong"
    )


def _logits(
    hf_model: Any, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    """As `generate` calls a model: positions are counted from the first token that is not padding."""
    positions = {}
    if "position_ids" in inspect.signature(hf_model.forward).parameters:
        positions["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return hf_model(input_ids=ids, attention_mask=mask, use_cache=False, **positions).logits


def _same(got: Float[Tensor, "pos vocab"], wanted: Float[Tensor, "pos vocab"]) -> bool:
    """At every token; in half precision at most of them, since a router of experts may then decide otherwise."""
    errors = (got.double() - wanted.double()).norm(dim=-1) / wanted.double().norm(dim=-1).mean()
    error = errors.max() if got.dtype in (torch.float32, torch.float64) else errors.median()
    return bool(error <= tolerance(got.dtype, 1e-4))
