"""A PEFT adapter's files: which base they are for, whether they are whole and fit this model, and onto it."""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

_WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.\w+)?\.weight")

# What an adapter may do beside adding scale · B · A · x to a module's output.
_BEYOND_LORA = {
    "use_dora": "it is a DoRA, which scales the whole weight",
    "lora_bias": "it adds a bias of its own",
    "modules_to_save": "it replaces whole modules (modules_to_save)",
    "trainable_token_indices": "it changes embeddings (trainable_token_indices)",
    "target_parameters": "it changes bare parameters (target_parameters)",
    "layer_replication": "it repeats layers (layer_replication)",
    "use_qalora": "it pools its input (QA-LoRA)",
    "alora_invocation_tokens": "it acts from its invocation tokens on only (aLoRA)",
}


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

    config = _existing_config(adapter)
    base = str(config.get("base_model_name_or_path") or name)
    if not same_model(base, name):
        raise ValueError(f"adapter {adapter} was trained on {base}, not on {name}: load it with its own base, {base}")
    _check_shapes(hf_model, str(adapter), config, base)
    with without_deprecations():
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            peft_model = PeftModel.from_pretrained(hf_model, str(adapter))  # pyright: ignore[reportArgumentType]
        except UserWarning as warning:
            raise ValueError(
                f"adapter {adapter} lacks weights for modules that its config names: fetch it again ({warning})"
            ) from warning
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            _check_finite(adapter, name, parameter)
    return peft_model


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Inside, no word of what PEFT and TRL use of transformers that is deprecated: a user can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*gradient_checkpointing.* is deprecated", FutureWarning)
        yield


def adapter_factors(adapter: str | Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and the true scale of every module of a LoRA adapter, from its files alone.

    An adapter adds `scale · B · A · x` to its module's output, whichever way round the module keeps its own weight.

    Raises:
        ValueError: there is no such adapter; it does more than that; or its weights are damaged, incomplete or not
            those its config tells of.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from safetensors.torch import load_file

    config = _existing_config(adapter)
    check_plain_lora(config, f"adapter {adapter}")
    shapes = _shapes(str(adapter))
    strange = [key for key, shape in shapes.items() if _FACTOR.fullmatch(key) is None or len(shape) != 2]
    if strange:
        raise ValueError(f"adapter {adapter} has weights that are no LoRA factor of a linear module: {strange[0]}")
    targets = SimpleNamespace(**{"target_modules": None, "target_parameters": None, **config})
    pairs = _pairs(str(adapter), shapes)
    _check_ranks(str(adapter), config, pairs)
    for module in pairs:
        if not check_target_module_exists(targets, module):
            raise ValueError(
                f"adapter {adapter} has weights for {module}, which is not among the target modules of its config "
                f"({targets.target_modules}): the two files do not belong together"
            )
    tensors = load_file(_file(str(adapter), _WEIGHTS))
    for key, tensor in tensors.items():
        _check_finite(adapter, key, tensor)
    return {
        module: (tensors[keys["A"][0]], tensors[keys["B"][0]], _rank_and_scale(config, module)[1])
        for module, keys in pairs.items()
    }


def check_plain_lora(config: Mapping[str, Any], what: str) -> None:
    """Refuse an adapter that does more than add B·A·x, times a scale, to the outputs of linear modules.

    Raises:
        ValueError: it is no LoRA, or one of the kinds that do more; the message says which.
    """
    from peft import LoraConfig

    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{what} is a {config['peft_type']}: only LoRA adapters can be taken apart")
    reasons = [reason for key, reason in _BEYOND_LORA.items() if config.get(key)]
    variants = [f for f in fields(LoraConfig) if f.metadata.get("is_lora_variant") and f.name not in _BEYOND_LORA]
    reasons += [f"it is another kind of LoRA ({f.name})" for f in variants if config.get(f.name)]
    if config.get("bias", "none") != "none":
        reasons.append(f"it changes biases (bias={config['bias']!r})")
    if reasons:
        raise ValueError(
            f"{what} cannot be taken apart, since B·A·x is not the whole of what it does: {'; '.join(reasons)}"
        )


def lora_parameters(peft_model: nn.Module) -> dict[str, nn.Parameter]:
    """Each LoRA matrix by module and side, `layers.15.mlp.down_proj.B`, whatever the model wraps its blocks in."""
    found = {}
    for name, parameter in peft_model.named_parameters():
        module, _, rest = name.partition(".lora_")
        if rest:
            place = module.removeprefix("base_model.model.")
            found[f"{re.sub(r'^(model|transformer)[.]', '', place)}.{rest[0]}"] = parameter
    return found


def _rank_and_scale(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank of a module's adapter and its true scale: α/r, or α/√r where it is rank-stabilised."""
    from peft.utils.other import get_pattern_key

    def of(patterns: Mapping[str, Any] | None, otherwise: Any) -> Any:
        patterns = patterns or {}
        return patterns.get(get_pattern_key(tuple(patterns), module), otherwise)

    rank, alpha = of(config.get("rank_pattern"), config["r"]), of(config.get("alpha_pattern"), config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_finite(adapter: str | Path, name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"adapter {adapter} is NaN or infinite at {name}: its training diverged, or the file is damaged"
        )


def same_model(base: str, name: str) -> bool:
    """Whether two names can mean one model: mirrors and quantised copies keep the last part, folders have any name."""
    if Path(base).exists() or Path(name).exists():
        return True
    return _stem(base) == _stem(name)


def _stem(name: str) -> str:
    return re.sub(r"-(unsloth|bnb|4bit|8bit)", "", name.rstrip("/").split("/")[-1].lower())


def _shapes(adapter: str) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_file(adapter, _WEIGHTS), framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(
            f"the weights of adapter {adapter} are truncated or no safetensors file ({error}): fetch them again"
        ) from error


_Pairs = dict[str, dict[str, tuple[str, list[int]]]]


def _pairs(adapter: str, shapes: Mapping[str, list[int]]) -> _Pairs:
    """Key and shape of A and of B, module by module."""
    found: _Pairs = {}
    for key, shape in shapes.items():
        match = _FACTOR.fullmatch(key)
        if match is not None:
            found.setdefault(match[1], {})[match[2]] = (key, shape)
    for module, keys in found.items():
        if len(keys) < 2:
            (there,) = keys
            raise ValueError(
                f"adapter {adapter} has {there} but not {'B' if there == 'A' else 'A'} for {module}: its weights are "
                f"incomplete, so fetch them again"
            )
    return found


def _check_ranks(adapter: str, config: Mapping[str, Any], pairs: _Pairs) -> None:
    for module, keys in pairs.items():
        rank = _rank_and_scale(config, module)[0]
        stored = keys["A"][1][0], keys["B"][1][-1]
        if stored != (rank, rank):
            raise ValueError(
                f"adapter {adapter} has rank {rank} at {module} by its config, but A of rank {stored[0]} and B of "
                f"rank {stored[1]}: the two files do not belong together"
            )


def _check_shapes(hf_model: nn.Module, adapter: str, config: Mapping[str, Any], base: str) -> None:
    """Compare every LoRA factor with the module it goes on, before PEFT raises something longer."""
    modules = dict(hf_model.named_modules())
    pairs = _pairs(adapter, _shapes(adapter))
    for path, keys in pairs.items():
        module = modules.get(path)
        if module is None:
            raise ValueError(
                f"adapter {adapter} has weights for {path}, which this model does not have: load it with its own "
                f"base, {base}"
            )
        for side, width, wanted in (
            ("reads", keys["A"][1][1], _inputs(module)),
            ("writes", keys["B"][1][0], _outputs(module)),
        ):
            if width != wanted:
                raise ValueError(
                    f"adapter {adapter} {side} {width} features at {path} but this model has {wanted} there: load it "
                    f"with its own base, {base}"
                )
    if config.get("peft_type", "LORA") == "LORA":
        _check_ranks(adapter, config, pairs)


def _inputs(module: Any) -> int:
    return module.in_features if hasattr(module, "in_features") else module.weight.shape[0]


def _outputs(module: Any) -> int:
    return module.out_features if hasattr(module, "out_features") else module.weight.shape[1]


def _existing_config(adapter: str | Path) -> dict[str, Any]:
    config = _config(str(adapter))
    if config is None:
        raise ValueError(f"no adapter at {adapter}: a PEFT adapter folder holds adapter_config.json and {_WEIGHTS}")
    return config


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
