"""A name, with or without an adapter, becomes a hooked model that was checked against Hugging Face."""

import copy
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from em_interp.checks import door
from em_interp.interventions import Intervention
from em_interp.models.adapters import Untuned, check_base_kept, check_in_modules, merge_adapter
from em_interp.models.architectures import (
    architecture,
    booting,
    check_blocks,
    check_decoder,
    check_rows,
    context_length,
)
from em_interp.models.probe import check_weights_finite, eager_logits, relative_error
from em_interp.models.probe import tolerance as tolerance_of
from em_interp.models.sites import EMBEDDINGS, Sites, register, sites_of, user_hooks
from em_interp.templates import ChatTemplate

if TYPE_CHECKING:
    from transformer_lens.model_protocol import TransformerLensModel
else:  # by its name, since importing TransformerLens takes seconds
    TransformerLensModel = "transformer_lens.model_protocol.TransformerLensModel"

HookPairs = Sequence[tuple[str, Callable[..., Any]]]

PROBE = "The lighthouse keeper wrote three letters before the storm reached the harbour."


@dataclass(frozen=True, eq=False, repr=False)
class HookedModel:
    """A `TransformerBridge` with what this library must know about it: tokenizer, adapter, identity, a plain twin.

    `plain` is the same Hugging Face model on the same weights without the bridge's Python: what runs when many
    conversations are read or generated. `hooks`, `run_with_hooks`, `run_with_cache`, `cfg` and `to_tokens` are the
    bridge's own, so TransformerLens code takes a `HookedModel` as it is.

    Attributes:
        bridge: the hooked model, in raw mode (Hugging Face's own weights and basis).
        plain: the weight-sharing twin, or None where a bridge was wrapped that somebody else had booted.
        tokenizer: a fast tokenizer with a chat template.
        name: hub name or folder name of the base model.
        revision: commit of the weights where the hub told it.
        adapter: name and content hash of the LoRA adapter, or None.
        peft_models: the PEFT models around the bridge's and the twin's modules, where the adapter is unmerged.
        folder: where an organism's recipe, trajectory and card lie.
        untuned: what the base computed before the adapter went on it; None where somebody else had put it on.
        kept: streams of earlier passes, see `em_interp.activations.keeping`.
        template_args: the chat template's own variables, such as `{"enable_thinking": False}`, wherever it is used.
    """

    bridge: Any  # a TransformerBridge, whose attributes are made at run time and so known to no type checker
    plain: nn.Module | None
    tokenizer: Any
    name: str
    revision: str | None = None
    adapter: str | None = None
    peft_models: tuple[Any, ...] = ()
    folder: Path | None = None
    untuned: Untuned | None = None
    kept: Any = None
    template_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> "HookedModel":
        """Wrap a bridge that a user already has; a `HookedModel` comes back as it is."""
        if isinstance(model, HookedModel):
            return model
        if not hasattr(model, "hook_dict") or not hasattr(model, "original_model"):
            raise TypeError(
                f"a {type(model).__name__} is no hooked model: pass what load_model returns, or a TransformerBridge"
            )
        return cls(model, None, model.tokenizer, model.cfg.model_name)

    @classmethod
    def from_hugging_face(  # noqa: PLR0913 - a model and what is known of it
        cls,
        hf_model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        adapter: str | None = None,
        folder: Path | None = None,
        template_args: Mapping[str, Any] | None = None,
        untuned: Untuned | None = None,
    ) -> "HookedModel":
        """Bridge a Hugging Face (or PEFT) model in memory, after checking that the bridge computes what it computes.

        Where an unmerged adapter is lost in the bridge, as on fused projections, it is merged, with a warning.

        Raises:
            ValueError: an architecture that is not a causal decoder, that TransformerLens does not bridge, whose blocks
                are not a list on one residual stream, or whose logits depend on padding or batch; NaN or infinity in a
                weight; an adapter whose work is not in the model's modules; or a template arg that the chat template
                does not read.
            RuntimeError: the bridge's logits differ from Hugging Face's all the same, or are not finite.
        """
        args = ChatTemplate(tokenizer, template_args or {}).args
        check_decoder(_base_of(hf_model), name)
        check_weights_finite(hf_model, name)
        twin = weight_sharing_twin(hf_model.eval())
        peft_models = (hf_model, twin) if _is_peft(hf_model) else ()
        if peft_models:
            check_in_modules(twin, name)
        plain = _base_of(twin)
        check_rows(plain, f"{name} with its adapter" if peft_models else name)
        with booting(plain, name):
            bridge = _boot(hf_model, tokenizer, name)
        check_blocks(bridge, name, architecture(plain))
        of = (name, revision, adapter, peft_models, folder, untuned)
        hooked = cls(bridge, plain, tokenizer, *of, template_args=args)
        with booting(plain, name):
            error = _probe_error(hooked)
        if error <= tolerance(hooked):
            hooked.sites.check(every_layer(hooked))
            return hooked
        if peft_models and error > tolerance(hooked):
            warnings.warn(
                f"the bridge ignores part of the unmerged adapter on {name} (logits off by {error:.1%}, as happens on "
                f"fused projections): the adapter was merged, so without_adapter is not available",
                stacklevel=2,
            )
            merged = merge_adapter(twin)
            return cls.from_hugging_face(
                merged, tokenizer, name=name, revision=revision, adapter=adapter, folder=folder, template_args=args
            )
        reason = (
            f"differ from Hugging Face's by {error:.1%}: this architecture is not bridged faithfully"
            if math.isfinite(error)
            else "or Hugging Face's are NaN or infinite on plain text"
        )
        raise RuntimeError(f"the bridge's logits on {name} {reason}, so nothing read from it could be trusted")

    def __repr__(self) -> str:
        """One line."""
        return (
            f"HookedModel({self.identity}, {self.n_layers} layers, d_model {self.d_model}, {self.dtype}, {self.device})"
        )

    @property
    def cfg(self) -> Any:
        """The bridge's configuration."""
        return self.bridge.cfg

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.bridge.cfg.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.bridge.cfg.d_model

    @property
    def device(self) -> torch.device:
        """Where the embedding lies, and so where tokens go."""
        return next(self.bridge.original_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format inside the model."""
        return next(self.bridge.original_model.parameters()).dtype

    @property
    def max_length(self) -> int | None:
        """The longest conversation the model takes, in tokens; None where its configuration sets no limit."""
        return context_length(self.bridge.original_model.config)

    @property
    def architecture(self) -> str:
        """What the model is in transformers, such as `LlamaForCausalLM`."""
        return architecture(self.bridge.original_model if self.plain is None else self.plain)

    @property
    def sites(self) -> Sites:
        """Which of the places that hooks are named after are on this architecture what their names say."""
        return sites_of(self.bridge, self.plain, self.architecture)

    @property
    def template(self) -> ChatTemplate:
        """The tokenizer's chat template, with the values of its variables."""
        return ChatTemplate(self.tokenizer, self.template_args)

    @property
    def identity(self) -> str:
        """Name, revision, adapter and template args as provenance records them; inside `without_adapter` the base's."""
        base = self.name + (f"@{self.revision[:12]}" if self.revision else "")
        whole = f"{base}+{self.adapter}" if self.adapter and self.adapter_enabled else base
        told = ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(self.template_args.items()))
        return f"{whole}[{told}]" if told else whole

    @property
    def adapter_enabled(self) -> bool:
        """Whether the adapter takes part in the forward pass now."""
        return all(peft.get_model_status().enabled is True for peft in self.peft_models)

    def hooks(self, *args: Any, **kwargs: Any) -> Any:
        """`TransformerBridge.hooks`: a context in which hook functions are on the bridge."""
        return self.bridge.hooks(*args, **kwargs)

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """`TransformerBridge.run_with_hooks`."""
        return self.bridge.run_with_hooks(*args, **kwargs)

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """`TransformerBridge.run_with_cache`."""
        return self.bridge.run_with_cache(*args, **kwargs)

    def to_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """`TransformerBridge.to_tokens`; it prepends a BOS unless told `prepend_bos=False`."""
        return self.bridge.to_tokens(*args, **kwargs)


@door
@contextmanager
def without_adapter(model: HookedModel) -> Iterator[HookedModel]:
    """Inside, the model is exactly its base: the same texts, read by the model before fine-tuning.

    That it is, is checked each time against logits that the base gave before the adapter went on it.

    Raises:
        ValueError: the model has no adapter, a merged one, or one that cannot be taken off without a trace.
    """
    if not model.peft_models:
        reason = "its adapter is merged: load it with merge=False" if model.adapter else "it has no adapter"
        raise ValueError(f"cannot switch to the base model of {model!r}: {reason}")
    if model.untuned is None:
        check_base_kept(model.peft_models[-1])
    elif model.untuned.obstacle:
        raise ValueError(
            f"cannot switch to the base model of {model!r}: {model.untuned.obstacle}; load the base by itself"
        )
    with ExitStack() as stack:
        for peft_model in model.peft_models:
            stack.enter_context(_adapter_off(peft_model))
        if model.untuned is not None:
            stack.enter_context(model.untuned.restored())
            _check_untuned(model, model.untuned)
        yield model


@contextmanager
def _adapter_off(peft_model: Any) -> Iterator[None]:
    off = peft_model.disable_adapter()
    with warnings.catch_warnings():  # trained biases, of which PEFT warns, are put back here
        warnings.filterwarnings("ignore", "Careful, disabling adapter layers with bias")
        off.__enter__()
    try:
        yield
    finally:
        off.__exit__(None, None, None)


def _check_untuned(model: HookedModel, untuned: Untuned) -> None:
    """Compare both twins with what the base gave, but for one that hooks of a caller further out are on now."""
    twins = [] if user_hooks(model.bridge.hook_dict) else [model.bridge.original_model]
    if model.plain is not None and not any(m._forward_hooks or m._forward_pre_hooks for m in model.plain.modules()):
        twins.append(model.plain)
    for hf_model in twins:
        error = relative_error(eager_logits(hf_model, untuned.ids.to(model.device)), untuned.logits)
        if not error <= tolerance(model):
            raise ValueError(
                f"{model!r} is not its base when its adapter is off, logits differ by {error:.1%}: weights of the base "
                f"were changed after loading, so load the base by itself, load_model({model.name!r})"
            )


@door
def site(model: TransformerLensModel, layer: int) -> str:
    """The hook name of the residual stream at the output of block `layer`."""
    n_layers = HookedModel.of(model).n_layers
    if not 0 <= layer < n_layers:
        raise ValueError(f"layer {layer} is out of range: the model has layers 0 to {n_layers - 1}")
    return f"blocks.{layer}.hook_resid_post"


@door
def every_layer(model: TransformerLensModel) -> list[str]:
    """The hook names of the residual stream at the output of every block."""
    return [site(model, layer) for layer in range(HookedModel.of(model).n_layers)]


@door
def every_write(model: TransformerLensModel) -> list[str]:
    """The hook names of all that is ever added to the residual stream: embeddings, and each block's two outputs.

    A direction projected out here cannot be written at all, as if the weights were orthogonalised to it. Where
    something lies between embeddings and blocks, such as Bloom's norm, what enters the first block stands for them.

    Raises:
        ValueError: on this architecture some block writes to the stream elsewhere.
    """
    hooked = HookedModel.of(model)
    embeddings = [name for name in EMBEDDINGS if name.removeprefix("hook_") in hooked.bridge.adapter.component_mapping]
    if any(hooked.sites.reason(name) for name in embeddings):
        embeddings = ["blocks.0.hook_resid_pre"]
    blocks = [f"blocks.{number}.hook_{write}" for number in range(hooked.n_layers) for write in ("attn_out", "mlp_out")]
    hooked.sites.check(blocks)
    return embeddings + blocks


@contextmanager
def attached(model: TransformerLensModel, hooks: HookPairs = ()) -> Iterator[Any]:
    """Yield the Hugging Face model to call while these `(hook_name, function)` pairs are on it.

    It is the plain twin where that can carry every hook, and the bridge's own model otherwise: where a hook is inside
    attention or the MLP, where somebody has put hooks on the bridge, or where there is no twin. Nothing stays behind.

    Raises:
        ValueError: an unknown hook name, one that is not on this architecture what it says, a model in train mode, or a
            bridge in compatibility mode.
    """
    hooked = HookedModel.of(model)
    _check_usable(hooked)
    hooks = [(name, f.to(hooked.device) if isinstance(f, Intervention) else f) for name, f in hooks]
    points = hooked.bridge.hook_dict  # gathered anew at every access
    sites, names = hooked.sites, [name for name, _ in hooks]
    unknown = [name for name in names if name not in points and name not in sites.names]
    if unknown:
        raise ValueError(
            f"the model has no hook {unknown[0]!r}: hook names look like {site(hooked, 0)!r}; see every_layer and "
            f"every_write"
        )
    sites.check(names)
    if hooked.plain is None or user_hooks(points) or not all(name in sites.on_twin for name in names):
        sites.check_on_bridge(names)
        with hooked.bridge.hooks(fwd_hooks=hooks):
            yield hooked.bridge.original_model
        return
    with ExitStack() as stack:
        for name, function in hooks:
            stack.callback(register(hooked.plain, sites.on_twin[name], name, function).remove)
        yield hooked.plain


def _check_usable(hooked: HookedModel) -> None:
    if getattr(hooked.bridge, "compatibility_mode", False):
        raise ValueError(
            "the bridge is in compatibility mode, whose basis is not the model's own: directions of the two bases must "
            "not be mixed, so load the model again and leave enable_compatibility_mode() out"
        )
    if hooked.bridge.training or (hooked.plain is not None and hooked.plain.training):
        raise ValueError(
            "the model is in train mode, where dropout makes every reading another one: call model.bridge.eval() first"
        )


def weight_sharing_twin(hf_model: nn.Module) -> Any:
    """A deep copy of every module but no tensor: the memo hands each parameter and buffer through."""
    return copy.deepcopy(hf_model, {id(tensor): tensor for tensor in [*hf_model.parameters(), *hf_model.buffers()]})


def _boot(hf_model: nn.Module, tokenizer: Any, name: str) -> Any:
    logger = logging.getLogger("transformers")
    level = logger.level
    from transformer_lens.model_bridge import TransformerBridge

    logger.setLevel(level)  # TransformerLens silences it when it is imported
    base = _base_of(hf_model)
    # Models made from a config name no architecture, and the bridge looks theirs up by name.
    base.config.architectures = base.config.architectures or [type(base).__name__]
    dtype = next(base.parameters()).dtype
    return TransformerBridge.boot_transformers(name, hf_model=base, tokenizer=tokenizer, dtype=dtype).eval()


def _base_of(hf_model: Any) -> Any:
    return hf_model.get_base_model() if _is_peft(hf_model) else hf_model


def _is_peft(hf_model: Any) -> bool:
    return hasattr(hf_model, "peft_config") and hasattr(hf_model, "get_base_model")


@torch.no_grad()
def _probe_error(hooked: HookedModel) -> float:
    """Relative difference of the bridge's logits from Hugging Face's on one text, both with eager attention."""
    assert hooked.plain is not None
    ids = hooked.tokenizer(PROBE, return_tensors="pt").input_ids.to(hooked.device)
    wanted = eager_logits(hooked.plain, ids)
    return relative_error(hooked.bridge(ids, return_type="logits").float(), wanted)


def tolerance(hooked: HookedModel) -> float:
    """How far logits may be off, relative to their size, for two ways of computing them to count as the same."""
    return tolerance_of(hooked.dtype)
