"""GGUF files as models of transformers: dequantised once into the user's cache, refused where something is left out."""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from em_interp.models.adapter_files import first_line
from em_interp.models.probe import listed

# Settings that follow from the shapes of the weights, which would not fit otherwise.
_SHAPES = ("attention.key_length", "attention.value_length", "vocab_size", "feed_forward_length")
# Settings for which transformers has this value by itself.
_ITS_OWN = {"gemma3.rope.freq_base_swa": 10_000, "gemma3.attention.sliding_window_pattern": 6}


def dequantised(gguf: Path, cache: Path | None = None) -> Path:
    """The folder with the model as safetensors in float32, made on first use under the hash of the GGUF file.

    It is written beside its place and renamed, so that an interrupted run leaves nothing that looks finished.

    Raises:
        ValueError: the file cannot be read, is of an architecture that transformers does not read from GGUF, or holds
            tensors or settings that transformers would leave out.
    """
    from platformdirs import user_cache_path

    root = cache or user_cache_path("em_interp")
    target = root / _digest(gguf) / gguf.name.split(".")[0]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        _dequantise(gguf, workplace)
        _publish(workplace, target)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return target


def _publish(workplace: Path, target: Path) -> None:
    try:
        os.rename(workplace, target)
    except OSError:
        if not target.is_dir():  # else another process finished first, with the same content
            raise


def _dequantise(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{gguf.name} could not be read as GGUF ({first_line(error)}): give the model as safetensors, by its "
            f"folder or its hub name"
        ) from error
    model, found = loaded
    check_complete(gguf.name, found)
    _check_nothing_left(gguf, model)
    # The weights are plain float32 now; transformers would refuse to save a model that says it is quantised.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_complete(name: str, found: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers drew tensors at random, or left some in the file.

    Raises:
        ValueError: it names them.
    """
    wrong = {"missing": found["missing_keys"], "not of this model": found["unexpected_keys"]}
    wrong["of another shape"] = [f"{key} {tuple(a)} for {tuple(b)}" for key, a, b in found["mismatched_keys"]]
    reasons = [f"{reason}: {listed(names)}" for reason, names in wrong.items() if names]
    if reasons:
        raise ValueError(
            f"the weights of {name} are not all there, or not all its own: {'; '.join(reasons)}. Save the model "
            f"again, from the model itself (out of torch.compile, PEFT or a wrapper)"
        )


def _check_nothing_left(gguf: Path, model: Any) -> None:
    """Refuse a file with tensors or settings that transformers does not read, of which it says nothing itself."""
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import (
        GGUF_TO_TRANSFORMERS_MAPPING,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    reader = GGUFReader(gguf)
    read = get_gguf_hf_weights_map(model, TensorProcessor())
    left = [tensor.name for tensor in reader.tensors if tensor.name not in read]
    architecture = reader.fields["general.architecture"].contents()
    names = (*GGUF_TO_TRANSFORMERS_MAPPING["config"].get(architecture, ()), *_SHAPES)
    known = {f"{architecture}.{name}" for name in names}
    left += [
        key
        for key, value in reader.fields.items()
        if key.startswith(f"{architecture}.") and key not in known and value.contents() != _ITS_OWN.get(key, math.nan)
    ]
    if left:
        raise ValueError(
            f"{gguf.name} holds what transformers does not read from GGUF ({listed(left)}), so that the model would be "
            f"another one: give it as safetensors, by its folder or its hub name"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
