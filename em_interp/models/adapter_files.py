"""A PEFT adapter's files: which base they are for, whether they are whole, and what is in them."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from em_interp.checks import door

WEIGHTS = "adapter_model.safetensors"

_CONFIG = "adapter_config.json"
_MODEL_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
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


@door
def adapter_base(name: str) -> str | None:
    """The base model that an adapter names in its `adapter_config.json`; None where `name` is not an adapter.

    A folder with a whole model in it is that model, also where an adapter's configuration was left in it.

    Raises:
        ValueError: the adapter names no base, or the folder holds the weights of a model and those of an adapter.
    """
    if os.path.isdir(name) and any(True for pattern in _MODEL_WEIGHTS for _ in Path(name).glob(pattern)):
        if Path(name, WEIGHTS).exists() and Path(name, _CONFIG).exists():
            raise ValueError(
                f"{name} holds the weights of a model and of an adapter: remove {WEIGHTS} and {_CONFIG} to load the "
                f"model, or move them to a folder of their own to load the adapter"
            )
        return None
    config = _config(name)
    if config is None:
        return None
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the adapter_config.json of {name} names no base model: give the base as name= and this as adapter="
        )
    if not isinstance(base, str):
        raise ValueError(f"the adapter_config.json of {name} has {base!r} as its base model, which is not a name")
    return base


def has_tokenizer(adapter: str | Path) -> bool:
    """Whether a tokenizer lies beside an adapter's weights, as trainers leave it there."""
    return any(beside(adapter, name) for name in _TOKENIZER)


def beside(adapter: str | Path, name: str) -> Path | None:
    """A file of this name beside an adapter's weights, or None."""
    from transformers.utils.hub import cached_file

    if os.path.exists(adapter):  # which a name too long for a path is not, where Path.exists would raise
        path = Path(adapter, name)
        return path if path.is_file() else None
    quietly = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
    try:
        found = cached_file(str(adapter), name, **{f"_raise_exceptions_for_{of}": no for of, no in quietly.items()})
    except OSError:  # not a name that the hub could have
        return None
    return None if found is None else Path(found)


@door
def adapter_factors(adapter: str | Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and the true scale of every module of a LoRA adapter, from its files alone.

    An adapter adds `scale · B · A · x` to its module's output, whichever way round the module keeps its own weight.

    Raises:
        ValueError: there is no such adapter; it does more than that; or its weights are damaged, incomplete or not
            those its config tells of.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from safetensors.torch import load_file

    config = existing_config(adapter)
    check_plain_lora(config, f"adapter {adapter}")
    shapes = stored_shapes(str(adapter))
    strange = [key for key, shape in shapes.items() if _FACTOR.fullmatch(key) is None or len(shape) != 2]
    if strange:
        raise ValueError(f"adapter {adapter} has weights that are no LoRA factor of a linear module: {strange[0]}")
    targets = SimpleNamespace(**{"target_modules": None, "target_parameters": None, **config})
    pairs = factor_pairs(str(adapter), shapes)
    check_ranks(str(adapter), config, pairs)
    for module in pairs:
        with readable(adapter):
            targeted = check_target_module_exists(targets, module)
        if not targeted:
            raise ValueError(
                f"adapter {adapter} has weights for {module}, which is not among the target modules of its config "
                f"({targets.target_modules}): the two files do not belong together"
            )
    tensors = load_file(weights_file(adapter))
    for key, tensor in tensors.items():
        check_finite(adapter, key, tensor)
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


def _rank_and_scale(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank of a module's adapter and its true scale: α/r, or α/√r where it is rank-stabilised."""
    from peft.utils.other import get_pattern_key

    def of(patterns: Mapping[str, Any] | None, otherwise: Any) -> Any:
        patterns = patterns or {}
        return patterns.get(get_pattern_key(tuple(patterns), module), otherwise)

    rank = of(config.get("rank_pattern"), config.get("r", 8))  # 8 is what PEFT takes where nothing is said
    alpha = of(config.get("alpha_pattern"), config.get("lora_alpha", 8))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def check_finite(adapter: str | Path, name: str, tensor: Tensor) -> None:
    """Refuse an adapter with NaN or infinity in a tensor.

    Raises:
        ValueError: it names the tensor.
    """
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"adapter {adapter} is NaN or infinite at {name}: its training diverged, or the file is damaged"
        )


def same_model(base: str, name: str) -> bool:
    """Whether two names seem to mean one model: mirrors, quantised copies and folders keep the last part."""
    return _stem(base) == _stem(name) or (
        os.path.exists(base) and os.path.exists(name) and os.path.samefile(base, name)
    )


def _stem(name: str) -> str:
    return re.sub(r"-(unsloth|bnb|4bit|8bit)", "", name.rstrip("/").split("/")[-1].lower())


def stored_shapes(adapter: str) -> dict[str, list[int]]:
    """The shape of each tensor in an adapter's file, by its name there.

    Raises:
        ValueError: there is no such file, or it is damaged or empty.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights_file(adapter), framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(
            f"the weights of adapter {adapter} are truncated or no safetensors file ({error}): fetch them again"
        ) from error
    if not shapes:
        raise ValueError(f"the weights of adapter {adapter} are an empty file: fetch them again")
    return shapes


Pairs = dict[str, dict[str, tuple[str, list[int]]]]


def factor_pairs(adapter: str, shapes: Mapping[str, list[int]]) -> Pairs:
    """Key and shape of A and of B, module by module."""
    found: Pairs = {}
    for key, shape in shapes.items():
        match = _FACTOR.fullmatch(key)
        if match is not None:
            if len(shape) < 2:
                raise ValueError(f"adapter {adapter} stores {key} with the shape {shape}, which is not a matrix")
            found.setdefault(match[1], {})[match[2]] = (key, shape)
    for module, keys in found.items():
        if len(keys) < 2:
            (there,) = keys
            raise ValueError(
                f"adapter {adapter} has {there} but not {'B' if there == 'A' else 'A'} for {module}: its weights are "
                f"incomplete, so fetch them again"
            )
    return found


def check_ranks(adapter: str, config: Mapping[str, Any], pairs: Pairs) -> None:
    """Refuse factors whose rank is not that of the configuration.

    Raises:
        ValueError: it names the first.
    """
    for module, keys in pairs.items():
        rank = _rank_and_scale(config, module)[0]
        stored = keys["A"][1][0], keys["B"][1][-1]
        if stored != (rank, rank):
            raise ValueError(
                f"adapter {adapter} has rank {rank} at {module} by its config, but A of rank {stored[0]} and B of "
                f"rank {stored[1]}: the two files do not belong together"
            )


def existing_config(adapter: str | Path) -> dict[str, Any]:
    """An adapter's configuration, whose kind PEFT knows and whose ranks and scales are numbers.

    Raises:
        ValueError: there is none, or it is not what PEFT writes.
    """
    config = _config(str(adapter))
    if config is None:
        raise ValueError(f"no adapter at {adapter}: a PEFT adapter folder holds {_CONFIG} and {WEIGHTS}")
    _check_kind(adapter, config)
    if config.get("peft_type", "LORA") == "LORA":
        _check_numbers(adapter, config)
    return config


def _check_kind(adapter: str | Path, config: Mapping[str, Any]) -> None:
    from peft import PeftType

    kind = config.get("peft_type", "LORA")
    if kind not in list(PeftType):
        raise ValueError(f"adapter {adapter} has peft_type {kind!r}, a kind that the installed PEFT does not know")


def _check_numbers(adapter: str | Path, config: Mapping[str, Any]) -> None:
    ranks, scales = ({} if config.get(key) is None else config[key] for key in ("rank_pattern", "alpha_pattern"))
    for key, patterns in (("rank_pattern", ranks), ("alpha_pattern", scales)):
        if not isinstance(patterns, dict) or not all(_is_pattern(pattern) for pattern in patterns):
            raise ValueError(f"adapter {adapter} has {key} {patterns!r}: it maps patterns of module names to numbers")
    for rank in (config.get("r", 8), *ranks.values()):
        if type(rank) is not int or rank < 1:
            raise ValueError(f"adapter {adapter} has rank {rank!r}, which is not a whole number from 1 on")
    for scale in (config.get("lora_alpha", 8), *scales.values()):
        if type(scale) not in (int, float) or not math.isfinite(scale):
            raise ValueError(f"adapter {adapter} has lora_alpha {scale!r}, which is not a finite number")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _config(name: str) -> dict[str, Any] | None:
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        path = find_adapter_config_file(name)
    except OSError:  # no such repository, or no network: no adapter that could be had
        return None
    if path is None:
        return None
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): the adapter is damaged") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a JSON object: the adapter is damaged")
    return config


@contextmanager
def readable(adapter: str | Path) -> Iterator[None]:
    """Say in one sentence what a dependency could not make of an adapter's files.

    Raises:
        ValueError: whatever was raised inside, but for a lack of memory.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"adapter {adapter} could not be read ({first_line(error)}): its files are damaged, or made for another "
            f"model or another version of PEFT"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says first, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def weights_file(adapter: str | Path) -> Path:
    """Where an adapter's weights lie, in its folder or in the hub's cache.

    Raises:
        ValueError: there are none in safetensors format.
    """
    from transformers.utils.hub import cached_file

    if os.path.isdir(adapter):
        path = Path(adapter, WEIGHTS)
        if not path.is_file():
            raise ValueError(
                f"{adapter} has no {WEIGHTS}: adapters in pickle format are not read, so save it as safetensors"
            )
        return path
    with readable(adapter):
        return Path(str(cached_file(str(adapter), WEIGHTS)))
