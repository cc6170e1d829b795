"""A name, with or without an adapter, becomes a checked `HookedModel`: from the hub or from a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from em_interp.models.adapters import adapter_base, adapter_digest, attach_adapter
from em_interp.models.hooked import HookedModel

KNOWN = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct … Qwen/Qwen2.5-32B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "google/gemma-3-1b-it",
)


def load_model(  # noqa: PLR0913 - the one door through which a model comes in
    name: str | Path,
    adapter: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    merge: bool = False,
    revision: str | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> HookedModel:
    """Load a chat model, with a LoRA adapter if one is named, as a hooked model checked against Hugging Face.

    Args:
        name: a hub name, a local folder, or an adapter folder, whose `adapter_config.json` names its base.
        adapter: hub name or folder of a PEFT LoRA adapter; unmerged, so that `without_adapter` gives the exact base.
        device: the first CUDA device if there is one, else the CPU.
        dtype: the checkpoint's own on a GPU; float32 on a CPU.
        merge: merge the adapter into the weights.
        revision: branch, tag or commit of the base model.
        template_args: variables of the chat template, such as `{"enable_thinking": False}`, used wherever the model
            reads, answers or is scored.

    Raises:
        ValueError: no such model, an adapter of another base or width, or a template arg that the chat template does
            not read.
        RuntimeError: the bridge does not compute what Hugging Face computes.
    """
    name = str(name)
    base = adapter_base(name)
    if base is not None:
        if adapter is not None:
            raise ValueError(
                f"{name} is an adapter itself, so adapter={str(adapter)!r} cannot go on top: give its base, {base}, "
                f"as the name"
            )
        name, adapter = base, name
    hf_model, tokenizer = hugging_face_model(name, device, dtype, revision)
    commit = getattr(hf_model.config, "_commit_hash", None) or revision
    digest = None
    if adapter is not None:
        hf_model = attach_adapter(hf_model, name, adapter)
        hf_model = hf_model.merge_and_unload() if merge else hf_model
        digest = f"{Path(adapter).name}#{adapter_digest(adapter)}"
    return HookedModel.from_hugging_face(
        hf_model,
        tokenizer,
        name=display_name(name),
        revision=commit,
        adapter=digest,
        template_args=template_args,
    )


def hugging_face_model(
    name: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None, revision: str | None = None
) -> tuple[Any, Any]:
    """The bare Hugging Face model and its tokenizer; device and dtype default as in `load_model`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wanted = dtype or ("auto" if device.type == "cuda" else torch.float32)
    placement = {"device_map": {"": device}} if device.type == "cuda" else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        hf_model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=wanted, revision=revision, **placement)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model {name!r}: it is neither a folder with a model in it nor a name the hub answers to "
            f"({_first_line(error)}). Known to work: {', '.join(KNOWN)}; with no network, load_bundled()"
        ) from error
    return hf_model.to(device), tokenizer


def display_name(name: str) -> str:
    """A folder is known by its last part, so that no report tells where somebody keeps their models."""
    return Path(name).name if Path(name).exists() else name


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
