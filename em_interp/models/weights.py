"""The same edits as hook functions make, as weights, so that a steered or ablated model runs without this library.

A hook on something that is written to the residual stream is an edit of the weights that write it: taking out a
direction orthogonalises them, W − v̂v̂ᵀW, and adding one goes into their bias. Whatever weights cannot do is refused
with the reason, and the result is compared with the hooked model before it is handed over.
"""

import copy
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_interp.checks import door, path_of
from em_interp.files import versions, write_atomically
from em_interp.interventions import AddVector, AnyDirection, Intervention, SetProjection, project_out
from em_interp.models.adapters import merge_adapter, untie
from em_interp.models.hooked import HookedModel, HookPairs, TransformerLensModel, attached, every_write
from em_interp.models.probe import relative_error
from em_interp.models.sites import EMBEDDINGS, Writer, user_hooks, writer

RECORD = "em_interp.json"

_FORMAT = "em_interp.export/1"
_LIBRARIES = ("torch", "transformers", "peft", "transformer-lens")
_SITE = re.compile(r"blocks\.(?P<layer>\d+)\.hook_(?P<place>resid_pre|resid_post|attn_out|mlp_out)")
_ROWS = 8192  # rows of an embedding edited at once: the whole in float32 would not fit beside a large model
_AS_HOOK = "keep it as a hook, as `respond` and the Inspect provider do"


@door
def orthogonalize(model: TransformerLensModel, direction: AnyDirection) -> Any:
    """A plain Hugging Face model that cannot write a direction: W − v̂v̂ᵀW on all that writes to the stream, biases too.

    These are the embeddings (untied from the unembedding, which stays as it is), every attention and every MLP output.
    Arditi et al. 2024 (arXiv 2406.11717), section 4.1. It is `merge_hooks` of
    `project_out(direction, every_write(model))`, and not what projecting out at every layer's output does.

    Args:
        model: as in `merge_hooks`.
        direction: one vector for all weights; or one a layer, a tensor (row = layer number) or a `Direction`: then
            each block's weights take their own layer's, and the embedding takes that of layer 0.

    Raises:
        ValueError: as in `merge_hooks`, such as for Gemma 2 and 3; or the direction is zero, not finite, or has no
            layer 0.
    """
    return merge_hooks(model, project_out(direction, every_write(model)))


@torch.no_grad()
def merge_hooks(model: TransformerLensModel, hooks: HookPairs) -> Any:
    """A new plain Hugging Face model whose weights do what hook functions do; the live model is left untouched.

    Weights can carry, at all positions, `project_out`, `project_out_subspace`, `set_projection` and `add_direction` on
    what is written to the stream (`hook_embed`, `hook_pos_embed`, every `hook_attn_out` and `hook_mlp_out`), and
    `add_direction` between blocks (`hook_resid_pre` and `post`). A block's output takes an addition in its
    bias: one that the architecture has (GPT-2) or that its configuration allows (Llama), and none on Qwen2.
    An adapter is merged first. The edit is computed in float32 or better. There must be room for a second model.

    Args:
        model: a `HookedModel`, or a bare bridge.
        hooks: `(hook_name, function)` pairs; those at one site act in their order. None at all copies the model.

    Raises:
        ValueError: weights cannot carry a hook; the message says which, why, and what to do instead.
        RuntimeError: the weights do not compute what the hooks do, as may be on an architecture not met before.
    """
    hooked = HookedModel.of(model)
    _check_bridge(hooked)
    for name, function in hooks:
        _check_start(hooked, name)
        _check_function(name, function)
    with attached(hooked, hooks) as live:  # refuses unknown names, and a model in train or compatibility mode
        wanted = _probe_logits(hooked, live)
    plan = _plan(hooked, hooks)
    baked = _plain_copy(hooked)
    for write, functions in plan.items():
        _edit(baked, write, functions)
    _check_same(hooked, _probe_logits(hooked, baked), wanted)
    return baked


@door
def export(model: TransformerLensModel, hooks: HookPairs, folder: str | Path) -> Path:
    """Bake hooks into a folder that plain transformers and vLLM load: weights, tokenizer, and `em_interp.json`.

    The JSON says what was baked: the model's identity, every hook's site and kind, and the versions at work. The
    folder appears whole or not at all.

    Raises:
        ValueError: the folder exists and is not empty; the model has no tokenizer; or as in `merge_hooks`.
        RuntimeError: as in `merge_hooks`.
    """
    hooked, target = HookedModel.of(model), path_of(folder, "model to write")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder: nothing is overwritten, so name a new one")
    if hooked.tokenizer is None:
        raise ValueError("the bridge has no tokenizer, without which a model is no use to anybody: boot it with one")
    baked = merge_hooks(hooked, hooks)
    target.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        baked.save_pretrained(workplace)
        hooked.tokenizer.save_pretrained(workplace)
        write_atomically(workplace / RECORD, json.dumps(_record(hooked, hooks), indent=1, ensure_ascii=False) + "\n")
        workplace.chmod(0o755)
        os.rename(workplace, target)
    except BaseException:
        shutil.rmtree(workplace, ignore_errors=True)
        raise
    return target


def _record(hooked: HookedModel, hooks: HookPairs) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "model": hooked.identity,
        "hooks": [{"site": name, **_described(function)} for name, function in hooks],
        "versions": versions(*_LIBRARIES),
    }


def _described(function: Any) -> dict[str, Any]:
    vectors = function.vectors.detach().float().cpu().contiguous()
    digest = hashlib.sha256(vectors.numpy().tobytes()).hexdigest()[:12]
    if isinstance(function, AddVector):
        return {"kind": "add", "length": float(vectors.norm()), "coefficient": function.coefficient, "vectors": digest}
    if function.value:
        return {"kind": "set_projection", "value": function.value, "vectors": digest}
    return {"kind": "project_out", "rank": len(vectors), "vectors": digest}


def _plan(hooked: HookedModel, hooks: HookPairs) -> dict[Writer, list[Any]]:
    """The interventions of each module that writes, in the order in which they act on what it writes."""
    plan: dict[Writer, list[Any]] = {}
    in_time = sorted(hooks, key=lambda hook: "hook_resid" in hook[0])  # an output is edited, then goes into the stream
    for name, function in in_time:
        plan.setdefault(_writer(hooked, name), []).append(function)
    return plan


def _check_bridge(hooked: HookedModel) -> None:
    there = user_hooks(hooked.bridge.hook_dict)
    if there:
        raise ValueError(
            f"somebody has put hooks of their own on the bridge, at {there[0]}, and weights would not have them: "
            f"take them off (model.bridge.reset_hooks()) and give them in the list"
        )


def _check_function(name: str, function: Any) -> None:
    if type(function) not in (SetProjection, AddVector):
        raise ValueError(
            f"the hook at {name} is a {type(function).__name__} from elsewhere, and what it is in weights nobody "
            f"knows: make it with project_out, project_out_subspace, set_projection or add_direction"
        )
    if function.positions != "all":
        raise ValueError(
            f"the intervention at {name} acts on the {function.positions} only, and weights act at every position: "
            f"leave positions out, or {_AS_HOOK}"
        )
    if name.endswith("hook_resid_mid"):
        raise ValueError(
            f"a hook at {name} changes what the block's MLP reads and not what goes on in the stream, and no bias does "
            f"that: add at hook_attn_out of the same block to have both, or {_AS_HOOK}"
        )
    if "hook_resid" in name and isinstance(function, SetProjection):
        raise ValueError(
            f"a projection at {name} acts on the sum of all that was written before, and weights act on one write "
            f"each: project out at every_write(model), which is another intervention than at the stream, or {_AS_HOOK}"
        )


def _check_start(hooked: HookedModel, name: str) -> None:
    """Refuse an edit of what goes into the first block where that is more than the embeddings hold."""
    sites = hooked.sites
    there = [e for e in EMBEDDINGS if e in sites.names]
    held = all(e in sites.on_twin if hooked.plain is not None else not sites.reason(e) for e in there)
    if name in ("blocks.0.hook_resid_pre", *there) and not held:
        raise ValueError(
            f"what enters the first block is not what the embeddings of {hooked.architecture} hold, and no weights can "
            f"do what a hook at {name} does: {_AS_HOOK}"
        )


def _writer(hooked: HookedModel, name: str) -> Writer:
    """The module whose weights take a hook, such as `model.layers.3.mlp.down_proj`."""
    match, embeddings = _SITE.fullmatch(name), hooked.bridge.adapter.component_mapping
    if match is None and not (name in EMBEDDINGS and name.removeprefix("hook_") in embeddings):
        raise ValueError(
            f"{name} is no place where this model's weights write to the residual stream: weights carry hooks at "
            f"every_write(model), and additions at every_layer(model) too"
        )
    number, place = (int(match["layer"]), match["place"]) if match else (0, name)
    if place == "resid_pre":
        number, place = (number - 1, "mlp_out") if number else (0, "hook_embed")
    write = place if place in EMBEDDINGS else f"blocks.{number}.hook_{'attn_out' if place == 'attn_out' else 'mlp_out'}"
    found = writer(hooked.bridge, write)
    if found is None or hooked.sites.reason(write):
        raise ValueError(f"no one linear module writes what is at {name} on this architecture: {_AS_HOOK}")
    if found.norm is not None:
        raise ValueError(
            f"what is written at {name} comes out of a norm with weights of its own, {found.norm}, and no weights "
            f"before a norm can fix what comes after it (Gemma 2 and 3 are built like this): {_AS_HOOK}"
        )
    return found


def _plain_copy(hooked: HookedModel) -> Any:
    """A Hugging Face model of its own, adapters merged in as far as they take part now."""
    if hooked.plain is None:
        return _unbridged(hooked)
    if not hooked.peft_models:
        return copy.deepcopy(hooked.plain)
    peft_model = copy.deepcopy(hooked.peft_models[-1])
    return merge_adapter(peft_model) if hooked.adapter_enabled else peft_model.unload()


def _unbridged(hooked: HookedModel) -> Any:
    """The model that somebody else's bridge has wrapped, without the wrapping."""
    wrapped = hooked.bridge.original_model
    tensors = {name.replace("._original_component", ""): t for name, t in wrapped.state_dict().items()}
    with torch.device("meta"):
        wanted = type(wrapped)(copy.deepcopy(wrapped.config)).state_dict()
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ValueError(
            f"the bridge does not hand over {missing[0]}, as with an unmerged adapter: load the model with load_model, "
            f"which keeps a plain one beside the bridge"
        )
    state = {name: tensors[name].clone() for name in wanted}
    config = copy.deepcopy(wrapped.config)
    clean = type(wrapped).from_pretrained(None, config=config, state_dict=state, dtype=hooked.dtype)
    clean.generation_config = copy.deepcopy(wrapped.generation_config)
    return clean.to(hooked.device).eval()


def _edit(baked: Any, write: Writer, functions: Sequence[Intervention]) -> None:
    """Make a module write what the interventions would make of what it writes."""
    module = baked.get_submodule(write.path)
    if isinstance(module, nn.Embedding):
        if module is baked.get_input_embeddings():
            untie(baked)
        _edit_table(module, write.scale, functions)
        return
    rows = _rows(module, write.path)
    projections = [replace(f, value=0.0) for f in functions if isinstance(f, SetProjection)]
    rows.copy_(_edited(rows, projections))
    bias = rows.new_zeros(rows.shape[1]) if module.bias is None else module.bias
    offset = (_edited(_precise(bias[None]) * write.scale, functions) / write.scale)[0]
    if module.bias is None and offset.any():
        _give_bias(baked, write.path, functions[-1].site)
    if module.bias is not None:
        module.bias.copy_(offset)


def _edited(rows: Float[Tensor, "row d_model"], functions: Sequence[Intervention]) -> Float[Tensor, "row d_model"]:
    """What becomes of vectors in the residual stream, in float32 or better."""
    stream = _precise(rows)[None]
    for function in functions:
        stream = function.edit(stream, function.vectors.to(stream))
    return stream[0]


def _precise(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _edit_table(table: Any, scale: float, functions: Sequence[Intervention]) -> None:
    """Edit every token's row as it goes into the stream, which on Gemma and Granite is after a scale."""
    scale *= float(torch.as_tensor(getattr(table, "embed_scale", 1.0)).to(table.weight.dtype))
    for rows in table.weight.split(_ROWS):
        rows.copy_(_edited(_precise(rows) * scale, functions) / scale)


def _rows(module: Any, path: str) -> Float[Tensor, "inputs d_model"]:
    """The weight as vectors that are written to the stream: the columns of a linear layer, the rows of a Conv1D."""
    from transformers.pytorch_utils import Conv1D

    plain = isinstance(module, (nn.Linear, Conv1D)) and not hasattr(module, "quant_state")
    if not plain or not module.weight.is_floating_point() or module.weight.itemsize < 2:
        raise ValueError(
            f"{path} is a {type(module).__name__}, whose weights cannot be edited: load the model unquantised, or "
            f"{_AS_HOOK}"
        )
    return module.weight.T if isinstance(module, nn.Linear) else module.weight


def _give_bias(baked: Any, path: str, site: str) -> None:
    """Switch on whichever option of the configuration gives this module a bias, zero wherever else it gives one."""
    for option in [name for name, value in baked.config.to_dict().items() if name.endswith("_bias") and value is False]:
        config = copy.deepcopy(baked.config)
        setattr(config, option, True)
        with torch.device("meta"):
            gained = set(type(baked)(config).state_dict()) - set(baked.state_dict())
        if f"{path}.bias" in gained and all(name.endswith(".bias") for name in gained):
            for name in gained:
                owner: Any = baked.get_submodule(name.removesuffix(".bias"))
                owner.bias = nn.Parameter(owner.weight.new_zeros(owner.out_features))
            setattr(baked.config, option, True)
            return
    raise ValueError(
        f"nothing can be added at {site}: {type(baked).__name__} has no bias at {path} and no option that gives it "
        f"one, and it is only there that weights can add (at hook_embed they always can): {_AS_HOOK}"
    )


def _probe_logits(hooked: HookedModel, hf_model: Any) -> Float[Tensor, "pos vocab"]:
    ids = torch.linspace(0, hooked.cfg.d_vocab - 1, 24, device=hooked.device).long()[None]
    return hf_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()


def _check_same(hooked: HookedModel, got: Float[Tensor, "pos vocab"], wanted: Float[Tensor, "pos vocab"]) -> None:
    error = relative_error(got, wanted)
    if not error <= max(1e-4, 16 * torch.finfo(hooked.dtype).eps):
        raise RuntimeError(
            f"the weights do not do on {hooked.name} what the hooks do, logits are off by {error:.1%}: this "
            f"architecture writes to the stream in a way not known here, so {_AS_HOOK}"
        )
