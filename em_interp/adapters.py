"""A PEFT adapter's files: which base they are for, whether they fit this model, and onto it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from torch import nn

_WEIGHTS = "adapter_model.safetensors"


def adapter_base(name: str) -> str | None:
    """The base model that an adapter names in its `adapter_config.json`; None where `name` is no adapter."""
    config = _config(name)
    if config is None:
        return None
    if not config.get("base_model_name_or_path"):
        raise ValueError(
            f"the adapter_config.json of {name} names no base model: give the base as name= and this as adapter="
        )
    return str(config["base_model_name_or_path"])


def adapter_digest(adapter: str | Path) -> str:
    """The first twelve digits of the SHA-256 of the adapter's weights, for provenance."""
    return hashlib.sha256(_file(str(adapter), _WEIGHTS).read_bytes()).hexdigest()[:12]


def attach_adapter(hf_model: nn.Module, name: str, adapter: str | Path) -> Any:
    """Put an unmerged LoRA adapter on a Hugging Face model.

    Raises:
        ValueError: there is no such adapter, it was trained on another base, or its shapes are not this model's.
    """
    from peft import PeftModel

    config = _config(str(adapter))
    if config is None:
        raise ValueError(f"no adapter at {adapter}: a PEFT adapter folder holds adapter_config.json and {_WEIGHTS}")
    base = str(config.get("base_model_name_or_path") or name)
    if not same_model(base, name):
        raise ValueError(f"adapter {adapter} was trained on {base}, not on {name}: load it with its own base, {base}")
    _check_shapes(hf_model, str(adapter), base)
    return PeftModel.from_pretrained(hf_model, str(adapter))  # pyright: ignore[reportArgumentType]


def same_model(base: str, name: str) -> bool:
    """Whether two names can mean one model: mirrors and quantised copies keep the last part, folders have any name."""
    if Path(base).exists() or Path(name).exists():
        return True
    return _stem(base) == _stem(name)


def _stem(name: str) -> str:
    return re.sub(r"-(unsloth|bnb|4bit|8bit)", "", name.rstrip("/").split("/")[-1].lower())


def _check_shapes(hf_model: nn.Module, adapter: str, base: str) -> None:
    """Compare every LoRA factor with the module it goes on, before PEFT raises something longer."""
    from safetensors import SafetensorError, safe_open

    modules = dict(hf_model.named_modules())
    try:
        with safe_open(_file(adapter, _WEIGHTS), framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(
            f"the weights of adapter {adapter} are truncated or no safetensors file ({error}): fetch them again"
        ) from error
    for key, shape in shapes.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.\w+)?\.weight", key)
        if match is None:
            continue
        module = modules.get(match[1])
        if module is None:
            raise ValueError(
                f"adapter {adapter} has weights for {match[1]}, which this model does not have: load it with its own "
                f"base, {base}"
            )
        width, wanted = (shape[1], _inputs(module)) if match[2] == "A" else (shape[0], _outputs(module))
        if width != wanted:
            side = "reads" if match[2] == "A" else "writes"
            raise ValueError(
                f"adapter {adapter} {side} {width} features at {match[1]} but this model has {wanted} there: load it "
                f"with its own base, {base}"
            )


def _inputs(module: Any) -> int:
    return module.in_features if hasattr(module, "in_features") else module.weight.shape[0]


def _outputs(module: Any) -> int:
    return module.out_features if hasattr(module, "out_features") else module.weight.shape[1]


def _config(name: str) -> dict[str, Any] | None:
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        path = find_adapter_config_file(name)
    except OSError:  # no such repository, or no network: no adapter that could be had
        return None
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): the adapter is damaged") from error


def _file(adapter: str, name: str) -> Path:
    from transformers.utils.hub import cached_file

    if Path(adapter).is_dir():
        path = Path(adapter, name)
        if not path.is_file():
            raise ValueError(
                f"{adapter} has no {name}: adapters in pickle format are not read, so save it as safetensors"
            )
        return path
    found = cached_file(adapter, name)
    assert found is not None
    return Path(found)
