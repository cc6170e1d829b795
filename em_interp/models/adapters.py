"""A PEFT adapter on a model: attached, merged or taken off, each checked by its logits."""

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from em_interp.checks import door
from em_interp.models.adapter_files import (
    WEIGHTS,
    check_finite,
    check_ranks,
    existing_config,
    factor_pairs,
    has_tokenizer,
    readable,
    same_model,
    stored_shapes,
    weights_file,
)
from em_interp.models.probe import Logits, eager_logits, listed, probe_ids, relative_error, tolerance

# Kinds that add to what a model is given, or choose by more than the text, and so leave its modules as they are.
_OUTSIDE = {
    "PROMPT_TUNING": "puts tokens of its own before the text",
    "MULTITASK_PROMPT_TUNING": "puts tokens of its own before the text",
    "P_TUNING": "puts tokens of its own before the text",
    "CPT": "puts tokens of its own before the text",
    "PREFIX_TUNING": "puts keys and values of its own before the text",
    "CARTRIDGE": "puts keys and values of its own before the text",
    "ADAPTION_PROMPT": "puts attention of its own beside that of the model",
    "POLY": "asks for a task with every text",
    "XLORA": "mixes other adapters, which do not lie beside it",
    "SHADOW": "runs a second model beside the base",
}


_INSIDE = "only adapters that act in the model's modules, at every token, are read"


@dataclass(frozen=True, eq=False)
class Untuned:
    """What a base held and computed before an adapter went on it.

    Attributes:
        ids: the tokens of the probe.
        logits: what the base made of them, with eager attention.
        replaced: each of the base's parameters that the adapter brings its own values for, and the base's values.
        obstacle: why the base cannot be had back; empty where it can.
    """

    ids: Tensor
    logits: Logits
    replaced: tuple[tuple[nn.Parameter, Tensor], ...] = ()
    obstacle: str = ""

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the base's own values are where the adapter has put others."""
        tuned = [parameter.data for parameter, _ in self.replaced]  # or the base's, where this is inside of itself
        try:
            for parameter, values in self.replaced:
                parameter.data = values.to(parameter)
            yield
        finally:
            for (parameter, _), values in zip(self.replaced, tuned, strict=True):
                parameter.data = values


@door
def adapter_digest(adapter: str | Path) -> str:
    """The first twelve digits of the SHA-256 of the adapter's weights, for provenance."""
    return hashlib.sha256(weights_file(adapter).read_bytes()).hexdigest()[:12]


@door
def attach_adapter(hf_model: nn.Module, name: str, adapter: str | Path) -> Any:
    """Put an unmerged adapter on a Hugging Face model.

    Raises:
        ValueError: as in `adapted`.
    """
    peft_model, _ = adapted(hf_model, name, adapter)
    warn_of_another_name(name, adapter)
    return peft_model


def warn_of_another_name(name: str, adapter: str | Path) -> None:
    """Say that an adapter names another base than the one, given by hand, that it was put on."""
    base = str(existing_config(adapter).get("base_model_name_or_path") or name)
    if not same_model(base, name):
        warnings.warn(
            f"adapter {adapter} names {base} as its base, and was put on {name}, whose shapes fit: what is read from "
            f"it means something only if the two are the same model under two names",
            stacklevel=3,
        )


def adapted(hf_model: nn.Module, name: str, adapter: str | Path) -> tuple[Any, Untuned]:
    """Put an unmerged adapter on a Hugging Face model; it comes back with what the base was before.

    Parameters of the base that the adapter brings values for are copied first, so that a model which shares the
    base's weights does not change. A vocabulary that was extended is extended here where the adapter stores the
    embeddings and its tokenizer lies beside it.

    Raises:
        ValueError: there is no such adapter; it was made for other shapes; its files are damaged, incomplete or hold
            more than PEFT puts on the model; or what it does is not in the model's modules.
    """
    config, stored = existing_config(adapter), stored_shapes(str(adapter))
    _check_kind(config, f"adapter {adapter}")
    base = str(config.get("base_model_name_or_path") or name)
    if not config.get("target_parameters"):
        _check_shapes(hf_model, str(adapter), config, base)
    ids = probe_ids(hf_model)
    logits = eager_logits(hf_model.eval(), ids)
    obstacle = _extend_vocabulary(hf_model, str(adapter), stored) or _own_start(config)
    originals = _unshare(hf_model, _overwritten(hf_model, config, stored))
    peft_model = _on(hf_model, str(adapter))
    replaced = tuple((ours, kept) for ours, kept, version in originals if ours._version != version)
    return peft_model, Untuned(ids, logits, replaced, obstacle)


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Inside, no warning of PEFT's and TRL's about which a user can do nothing.

    These are what they use of transformers that is deprecated, and what is checked or put right here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*gradient_checkpointing.* is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"Found missing adapter keys|Model has `tie_word_embeddings=True`")
        yield


def check_in_modules(peft_model: Any, name: str) -> None:
    """Refuse an adapter some of whose work is done outside of the model's modules, where no bridge finds it.

    Raises:
        ValueError: the modules alone give other logits than PEFT gives.
    """
    for config in peft_model.peft_config.values():
        _check_kind(config.to_dict(), f"the adapter on {name}")
    base = peft_model.get_base_model()
    ids = probe_ids(base)
    error = relative_error(eager_logits(base, ids), eager_logits(peft_model, ids))
    if not error <= tolerance(base.dtype):
        raise ValueError(
            f"the adapter on {name} does part of its work outside of the model's modules (logits are off by "
            f"{error:.1%} without it): {_INSIDE}"
        )


def check_base_kept(peft_model: Any) -> None:
    """Refuse a PEFT model made elsewhere whose adapter has changed the base's own weights, which nobody kept.

    Raises:
        ValueError: it says what was changed.
    """
    config = peft_model.peft_config[peft_model.active_adapter]
    bias = getattr(config, "bias", "none")
    reason = _own_start(config.to_dict()) or (
        f"it has trained the base's biases (bias={bias!r})" if bias not in (None, "none") else ""
    )
    if reason:
        raise ValueError(
            f"the base without its adapter cannot be had: {reason}; save the adapter and load it with load_model, or "
            f"load the base by itself"
        )


def merge_adapter(peft_model: Any) -> Any:
    """The model with its adapter merged into weights of its own, which compute what the unmerged adapter does.

    Embeddings that an adapter changes on one side only are untied first. No other model that shares the base's
    weights changes.

    Raises:
        ValueError: this kind of adapter cannot be merged, or the merged logits are others.
    """
    base = peft_model.get_base_model()
    ids = probe_ids(base)
    wanted = eager_logits(base.eval(), ids)
    apart = any(side is not _inner(side) for side in _embeddings(base))
    if apart:
        untie(base)
    tuned = {path: base.get_submodule(path).named_parameters(recurse=False) for path in _tuned_modules(base)}
    _unshare(base, [f"{path}.{name}" for path, parameters in tuned.items() for name, _ in parameters])
    try:
        merged = peft_model.merge_and_unload()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"the adapter cannot be merged into the weights ({error}): load it with merge=False"
        ) from error
    if apart:
        untie(merged)  # PEFT ties again what it trained as one
    error = relative_error(eager_logits(merged, ids), wanted)
    if not error <= tolerance(merged.dtype, 1e-4):
        raise ValueError(
            f"merged into the weights the adapter does something else than it did (logits are off by {error:.1%}): "
            f"load it with merge=False"
        )
    return merged


def untie(hf_model: Any) -> None:
    """Give the unembedding weights of its own where it shares those of the embedding."""
    table, head = (_inner(side) for side in _embeddings(hf_model))
    if head is not None and head.weight is table.weight:
        head.weight = nn.Parameter(table.weight.detach().clone())
        for config in (hf_model.config, hf_model.config.get_text_config()):
            config.tie_word_embeddings = False
        hf_model.all_tied_weights_keys = hf_model.get_expanded_tied_weights_keys(all_submodels=True)


def lora_parameters(peft_model: nn.Module) -> dict[str, nn.Parameter]:
    """Each LoRA matrix by module and side, `layers.15.mlp.down_proj.B`, whatever the model wraps its blocks in."""
    found = {}
    for name, parameter in peft_model.named_parameters():
        module, _, rest = name.partition(".lora_")
        if rest:
            place = module.removeprefix("base_model.model.")
            found[f"{re.sub(r'^(model|transformer)[.]', '', place)}.{rest[0]}"] = parameter
    return found


def _check_shapes(hf_model: nn.Module, adapter: str, config: Mapping[str, Any], base: str) -> None:
    """Compare every LoRA factor with the module it goes on, before PEFT raises something longer."""
    modules = dict(hf_model.named_modules())
    pairs = factor_pairs(adapter, stored_shapes(adapter))
    for path, keys in pairs.items():
        module = modules.get(path)
        if module is None:
            raise ValueError(
                f"adapter {adapter} has weights for {path}, which this model does not have: load it with its own "
                f"base, {base}"
            )
        for side, width, wanted in (
            ("reads", keys["A"][1][1], _width(module, 1)),
            ("writes", keys["B"][1][0], _width(module, 0)),
        ):
            if wanted is None:
                raise ValueError(f"adapter {adapter} has weights for {path}, a {type(module).__name__} in this model")
            if width != wanted:
                raise ValueError(
                    f"adapter {adapter} {side} {width} features at {path} but this model has {wanted} there: load it "
                    f"with its own base, {base}"
                )
    if config.get("peft_type", "LORA") == "LORA":
        check_ranks(adapter, config, pairs)


def _width(module: Any, side: int) -> int | None:
    """Number of inputs (1) or outputs (0) of a linear module, whichever way round it keeps its weight."""
    named = getattr(module, "in_features" if side else "out_features", None)
    weight = getattr(module, "weight", None)
    if named is None and isinstance(weight, Tensor) and weight.ndim == 2:
        return weight.shape[1 - side]
    return named


def _check_kind(config: Mapping[str, Any], what: str) -> None:
    kind = str(getattr(config.get("peft_type"), "value", config.get("peft_type", "LORA")))
    if kind in _OUTSIDE:
        raise ValueError(f"{what} is of the kind {kind}, which {_OUTSIDE[kind]}: {_INSIDE}")
    if config.get("alora_invocation_tokens"):
        raise ValueError(f"{what} acts from its invocation tokens on only (aLoRA): {_INSIDE}")
    if config.get("layer_replication"):
        raise ValueError(f"{what} repeats layers of the model (layer_replication): {_INSIDE}")


def _on(hf_model: nn.Module, adapter: str) -> Any:
    """PEFT's model, once it is known that all of the adapter's weights came from its file, and all of the file in it.

    PEFT itself names missing weights of some kinds only, and none that it did not know what to do with. So what the
    adapter is to bring is set to NaN and read once more.
    """
    from peft import PeftModel

    with readable(adapter), without_deprecations():
        peft_model: Any = PeftModel.from_pretrained(hf_model, adapter)  # pyright: ignore[reportArgumentType]
    brought = _brought(peft_model)
    for name, tensor in brought.items():
        check_finite(adapter, name, tensor)
    for tensor in brought.values():  # after the last check, since some are one tensor under two names
        tensor.fill_(torch.nan)
    with readable(adapter), without_deprecations():
        unexpected = peft_model.load_adapter(adapter, "default").unexpected_keys
    missing = [name for name, tensor in _brought(peft_model).items() if torch.isnan(tensor).any()]
    if missing:
        raise ValueError(
            f"adapter {adapter} lacks weights for modules that its config names, {listed(missing)}: fetch it again"
        )
    if unexpected:
        raise ValueError(
            f"adapter {adapter} has weights that PEFT puts nowhere on this model, {listed(unexpected)}: load it with "
            f"its own base, with the version of PEFT that wrote it"
        )
    return peft_model


def _brought(peft_model: Any) -> dict[str, Tensor]:
    """The tensors that an adapter brings along, as they lie in the model."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def _extend_vocabulary(hf_model: Any, adapter: str, stored: Mapping[str, list[int]]) -> str:
    """Give the model as many embeddings as the adapter stores; returns what then stands between it and its base.

    Raises:
        ValueError: not both sides are stored, or no tokenizer beside them says which tokens they are of.
    """
    rows = len(_inner(hf_model.get_input_embeddings()).weight)
    names = [name for name, module in hf_model.named_modules() if module in _embeddings(hf_model)]
    found = {name: stored[key][0] for name in names for key in stored if _place(key) == f"{name}.weight"}
    if all(count == rows for count in found.values()):
        return ""
    (most,) = {max(found.values())}
    tied = hf_model.config.get_text_config().tie_word_embeddings
    if set(found.values()) != {most} or not (tied or set(found) == set(names)) or not has_tokenizer(adapter):
        raise ValueError(
            f"adapter {adapter} was trained with another vocabulary: it stores {most} rows for {listed(found)} and "
            f"this model has {rows}. Put the tokenizer that it was trained with beside it, with both embeddings in "
            f"{WEIGHTS}, or resize the base and save it"
        )
    hf_model.resize_token_embeddings(most, mean_resizing=False)
    return f"it has {most} embeddings and its base has {rows}"


def _overwritten(hf_model: nn.Module, config: Mapping[str, Any], stored: Mapping[str, list[int]]) -> list[str]:
    """The base's parameters that may change when the adapter is put on it."""
    names = [_place(key) for key in stored]
    if config.get("bias") not in (None, "none"):
        names += [name for name, _ in hf_model.named_parameters() if name.endswith(".bias")]
    if _own_start(config):
        names += [f"{name.partition('.lora_')[0]}.weight" for name in names]
    return names


def _place(key: str) -> str:
    """The parameter of the base that a stored tensor would replace, by its name before PEFT."""
    return key.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _own_start(config: Mapping[str, Any]) -> str:
    """What of the base's own weights a LoRA takes into its factors at the start, so that the base is changed."""
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga", "mica")):
        return f"its factors were taken out of the base's own weights (init_lora_weights={start!r})"
    return ""


def _embeddings(hf_model: Any) -> tuple[Any, Any]:
    return hf_model.get_input_embeddings(), hf_model.get_output_embeddings()


def _inner(module: Any) -> Any:
    """The base's own module inside of what PEFT puts around it."""
    while module is not None:
        around = module
        module = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if module is None:
            return around
    return None


def _tuned_modules(base: nn.Module) -> list[str]:
    """The paths of the base's own modules that an adapter acts on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    paths = {id(module): path for path, module in base.named_modules()}
    return [paths[id(_inner(m))] for m in base.modules() if isinstance(m, BaseTunerLayer) and id(_inner(m)) in paths]


_Originals = list[tuple[nn.Parameter, Tensor, int]]


def _unshare(hf_model: nn.Module, names: Iterable[str]) -> _Originals:
    """Put a copy in the place of each of these parameters; those that were one stay one.

    Returns:
        The copy, the values of the original, and the copy's version, which rises when it is written to.
    """
    there = dict(hf_model.named_parameters(remove_duplicate=False))
    chosen = {id(there[name]) for name in names if name in there}
    copies: dict[int, nn.Parameter] = {}
    originals: _Originals = []
    for name, parameter in there.items():
        if id(parameter) not in chosen:
            continue
        if id(parameter) not in copies:
            copies[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            originals.append((copies[id(parameter)], parameter.detach(), copies[id(parameter)]._version))
        path, _, attribute = name.rpartition(".")
        setattr(hf_model.get_submodule(path), attribute, copies[id(parameter)])
    return originals
