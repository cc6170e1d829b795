"""A name, with or without an adapter, becomes a checked `HookedModel`: from the hub, a folder or a GGUF file."""

import copy
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from em_interp.checks import door
from em_interp.models.adapter_files import adapter_base, beside, first_line, has_tokenizer
from em_interp.models.adapters import adapted, adapter_digest, merge_adapter, warn_of_another_name
from em_interp.models.gguf_files import check_complete, dequantised
from em_interp.models.hooked import HookedModel

KNOWN = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct … Qwen/Qwen2.5-32B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "google/gemma-3-1b-it",
)


@door
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
        name: a hub name, a local folder, a GGUF file, which is dequantised once into the user's cache, or an adapter
            folder, whose `adapter_config.json` names its base.
        adapter: hub name or folder of a PEFT adapter; unmerged, so that `without_adapter` gives the exact base. The
            tokenizer and the chat template that lie beside it are used.
        device: the first CUDA device if there is one, else the CPU.
        dtype: the checkpoint's own on a GPU; float32 on a CPU.
        merge: merge the adapter into the weights.
        revision: branch, tag or commit of the base model.
        template_args: variables of the chat template, such as `{"enable_thinking": False}`, used wherever the model
            reads, answers or is scored.

    Raises:
        ValueError: no such model; weights that are missing, left over, of another shape or not finite; code of its
            own, which is never run; an adapter that does not fit, is not whole, or acts outside of the modules; or a
            template arg that the chat template does not read.
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
        if adapter_base(base) is not None:
            raise ValueError(f"{base}, the base of the adapter {name}, is an adapter itself: merge it into its base")
        name, adapter = base, name
    if adapter is None:
        hf_model, tokenizer = hugging_face_model(name, device, dtype, revision)
        return HookedModel.from_hugging_face(
            hf_model,
            tokenizer,
            name=display_name(name),
            revision=_commit(hf_model) or revision,
            template_args=template_args,
        )
    try:
        tokenizer = adapter_tokenizer(adapter, name, _tokenizer_if_any(adapter, name, revision))
        hf_model = _weights(name, device, dtype, revision)
    except ValueError as error:
        if base is None:
            raise
        raise ValueError(
            f"adapter {adapter} names {base} as its base, which could not be loaded: give the base by hand, "
            f"load_model(BASE, adapter={adapter!r}) ({error})"
        ) from error
    commit = _commit(hf_model) or revision
    peft_model, untuned = adapted(hf_model, name, adapter)
    warn_of_another_name(name, adapter)
    check_tokens(adapter, tokenizer, hf_model)
    return HookedModel.from_hugging_face(
        merge_adapter(peft_model) if merge else peft_model,
        tokenizer,
        name=display_name(name),
        revision=commit,
        adapter=f"{Path(adapter).name}#{adapter_digest(adapter)}",
        untuned=None if merge else untuned,
        template_args=template_args,
    )


def hugging_face_model(
    name: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None, revision: str | None = None
) -> tuple[Any, Any]:
    """The bare Hugging Face model and its tokenizer; device and dtype default as in `load_model`."""
    tokenizer = _tokenizer(name, revision)
    return _weights(name, device, dtype, revision), tokenizer


def adapter_tokenizer(adapter: str | Path, base: str, others: Any) -> Any:
    """The tokenizer that lies beside an adapter, which is the one it was trained with; else the base's.

    A chat template is taken from the same place, or where there is none from the other. A difference between the two
    is told in a warning.

    Args:
        adapter: hub name or folder of the adapter.
        base: what its base is called.
        others: the base's tokenizer, which is left as it is; None where the base has none.
    """
    file = beside(adapter, "chat_template.jinja")
    if file is None and not has_tokenizer(adapter):
        return others
    own = _tokenizer(str(adapter), None) if has_tokenizer(adapter) else copy.deepcopy(others)
    if file is not None:
        own.chat_template = file.read_text(encoding="utf-8")
    if others is None:
        return own
    own.chat_template = own.chat_template or others.chat_template
    differs = [] if own.get_vocab() == others.get_vocab() else ["other tokens"]
    if others.chat_template not in (None, own.chat_template):
        differs.append("another chat template")
    if differs:
        warnings.warn(
            f"what lies beside adapter {adapter} is used, which is not as in {base} ({', '.join(differs)}): to use the "
            f"base's template set model.tokenizer.chat_template",
            stacklevel=3,
        )
    return own


def _tokenizer_if_any(adapter: str | Path, base: str, revision: str | None) -> Any | None:
    """A base's tokenizer; None where it has none and the adapter has."""
    try:
        return _tokenizer(base, revision)
    except ValueError:
        if has_tokenizer(adapter):
            return None
        raise


def check_tokens(adapter: str | Path, tokenizer: Any, hf_model: Any) -> None:
    """Refuse a tokenizer beside an adapter whose tokens go beyond the model's embeddings.

    Raises:
        ValueError: it has more, for which the adapter brings no embeddings.
    """
    rows = len(hf_model.get_input_embeddings().weight)
    last = max(tokenizer.get_vocab().values())
    if has_tokenizer(adapter) and last >= rows:
        raise ValueError(
            f"the tokenizer beside adapter {adapter} has tokens up to {last}, and the model has {rows} embeddings: the "
            f"adapter stores none for those that were added, so save it again with its embedding layers"
        )


def _tokenizer(name: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    folder = _unpacked(name)
    with _told(name):
        return AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)


def _unpacked(name: str) -> str:
    """A GGUF file's folder in the cache; any other name as it is."""
    bare = os.path.isdir(name) and not os.path.exists(os.path.join(name, "config.json"))
    inside = sorted(path.name for path in Path(name).glob("*.gguf")) if bare else []
    if inside:
        raise ValueError(f"{name} is a folder of GGUF files: name the file itself, such as {Path(name) / inside[0]}")
    if Path(name).suffix.lower() != ".gguf":
        return name
    if not os.path.isfile(name):
        raise ValueError(f"there is no GGUF file {name}: give its path, or a folder or hub name")
    return str(dequantised(Path(name)))


def _weights(name: str, device: str | torch.device | None, dtype: torch.dtype | None, revision: str | None) -> Any:
    """A model whose every tensor came from its file.

    Raises:
        ValueError: there is none, or tensors are missing, left over or of another shape.
    """
    from transformers import AutoModelForCausalLM

    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"no device {device!r} ({first_line(error)})") from error
    wanted = dtype or ("auto" if device.type == "cuda" else torch.float32)
    placement = {"device_map": {"": device}} if device.type == "cuda" else {}
    folder = _unpacked(name)
    with _told(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=wanted,
            revision=revision,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            adapter_kwargs={"subfolder": ".no-adapter"},  # else an adapter's file left in the folder is loaded too
            **placement,
        )
    hf_model, found = loaded
    check_complete(name, found)
    return hf_model.to(device)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Say in one sentence why transformers could not load what has this name."""
    from transformers import AutoConfig

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name} comes with Python code of its own, and such code is never run here (trust_remote_code stays "
                f"off): load a version in an architecture of transformers"
            ) from error
        if "Unrecognized configuration class" in str(error):
            kind = getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "model_type", "unknown")
            raise ValueError(
                f"{name} is of the kind {kind}, of which transformers has no causal language model: only decoders, "
                f"which continue a text, are read here"
            ) from error
        if os.path.isfile(os.path.join(name, "config.json")):
            raise ValueError(f"the model in {name} could not be read ({first_line(error)})") from error
        raise ValueError(
            f"no model {name!r}: it is neither a folder with a model in it nor a name the hub answers to "
            f"({first_line(error)}). Known to work: {', '.join(KNOWN)}; with no network, load_bundled()"
        ) from error


def _commit(hf_model: Any) -> str | None:
    return getattr(hf_model.config, "_commit_hash", None)


def display_name(name: str) -> str:
    """A folder is known by its last part, so that no report tells where somebody keeps their models."""
    return Path(name).name if os.path.exists(name) else name
