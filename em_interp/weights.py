"""The edits of interventions.py as weights: how steered and ablated models reach vLLM and plain transformers.

What is written to the residual stream is an affine map of what was computed, W·x + b. A projection or an addition
behind it is another affine map, so the two are one: W ← (I − VᵀV) W and b ← (I − VᵀV) b + v. What acts on the sum of
writes, on some positions only, or behind a norm, is no such map, and is refused.
"""

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_interp.interventions import AddVector, AnyDirection, Intervention, SetProjection, described, project_out
from em_interp.models import HookedModel, HookPairs, every_write, plain_target

_FORMAT = "em_interp.export/1"
_SITE = re.compile(r"blocks\.(?P<layer>\d+)\.hook_(?P<place>attn_out|mlp_out|resid_pre|resid_post)")
_EMBEDDINGS = ("hook_embed", "hook_pos_embed")


def orthogonalize(model: Any, direction: AnyDirection) -> nn.Module:
    """A plain Hugging Face model that cannot write a direction: W ← W − r̂r̂ᵀW on all that is ever added to the stream.

    Embeddings, attention outputs, MLP outputs and their biases; a tied unembedding is untied first and stays as it was
    (Arditi et al. 2024, arXiv 2406.11717, appendix on weight orthogonalisation). The same as baking
    `project_out(direction, every_write(model))`; the model itself is left untouched.

    Raises:
        ValueError: as for `bake`.
    """
    return bake(model, project_out(direction, every_write(model)))


def bake(model: Any, hooks: HookPairs) -> nn.Module:
    """A new plain Hugging Face model, adapters merged, whose weights do what these hooks do; the model stays untouched.

    Weights can carry projections on `hook_embed`, `hook_pos_embed`, `hook_attn_out` and `hook_mlp_out`, as
    `every_write` lists them, and additions there, at `hook_resid_pre` and at `hook_resid_post`, where the architecture
    has a bias or its settings allow one (Llama's do).

    Raises:
        ValueError: a hook that weights cannot carry (which one, why, and what to do instead), or a bare bridge, whose
            weights belong to somebody else.
    """
    hooked = HookedModel.of(model)
    if hooked.plain is None:
        raise ValueError("a bare bridge has no plain model to copy: load it with load_model")
    checked = [_checked(hooked, name, function) for name, function in hooks]
    baked = _copy(hooked)
    # Within a block the writes come before the sum at its end; at one place the hooks act in their order.
    for name, function in sorted(checked, key=lambda hook: "resid" in hook[0]):
        _write(hooked, baked, name, function)
    return baked


def export(model: Any, hooks: HookPairs, folder: str | Path) -> Path:
    """Bake hooks into a copy and write it with its tokenizer as a folder that transformers and vLLM load.

    `em_interp.json` in it tells which model it was and what was done to it. The folder appears whole or not at all.

    Raises:
        ValueError: as for `bake`; or the folder exists and holds something.
    """
    hooked, target = HookedModel.of(model), Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already: choose another folder")
    baked: Any = bake(hooked, hooks)
    target.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        baked.save_pretrained(workplace)
        hooked.tokenizer.save_pretrained(workplace)
        record = {"format": _FORMAT, "model": hooked.identity, "hooks": described(hooks)}
        record["em_interp"] = metadata.version("em-interp")
        (workplace / "em_interp.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.chmod(workplace, 0o755)
        os.replace(workplace, target)
    except BaseException:
        shutil.rmtree(workplace, ignore_errors=True)
        raise
    return target


def _checked(hooked: HookedModel, name: str, function: Callable[..., Any]) -> tuple[str, Intervention]:
    """The hook, if it is one that weights can carry at all."""
    reason = _refusal(hooked, name, function)
    if reason:
        raise ValueError(f"weights cannot carry the hook at {name}: {reason}")
    assert isinstance(function, Intervention)
    return name, function


def _refusal(hooked: HookedModel, name: str, function: Callable[..., Any]) -> str:
    """Why a hook cannot be had as weights, and what to do instead; empty where it can."""
    match = _SITE.fullmatch(name)
    if not isinstance(function, SetProjection | AddVector):
        return "it is a function of somebody else's; bake projections and additions of this library"
    if function.positions != "all":
        return f"it acts on the {function.positions} only, and weights act on every position"
    if match is None and name not in _EMBEDDINGS:
        return "it is none of what is written to the stream; see every_write"
    if match and match["place"].startswith("resid") and isinstance(function, SetProjection):
        return "a projection there acts on the sum of all writes; project out of each of them, with every_write(model)"
    place = _written_by(name)
    path, _ = plain_target(hooked, place) or ("", "")
    if place not in _EMBEDDINGS and "norm" in path.rpartition(".")[2]:
        return "this architecture has a norm with a gain of its own behind that output; use the hooks"
    return ""


def _written_by(name: str) -> str:
    """The last write before a place in the stream: what is added there can be added to that."""
    match = _SITE.fullmatch(name)
    if match is None or not match["place"].startswith("resid"):
        return name
    layer = int(match["layer"]) - (match["place"] == "resid_pre")
    return f"blocks.{layer}.hook_mlp_out" if layer >= 0 else "hook_embed"


def _copy(hooked: HookedModel) -> Any:
    if not hooked.peft_models:
        return copy.deepcopy(hooked.plain)
    twin: Any = copy.deepcopy(hooked.peft_models[-1])
    return twin.merge_and_unload() if hooked.adapter_enabled else twin.unload()


@torch.no_grad()
def _write(hooked: HookedModel, baked: Any, name: str, function: Intervention) -> None:
    place = _written_by(name)
    if place in _EMBEDDINGS:
        _edit_embedding(hooked, baked, place, function)
        return
    module = _output(hooked, baked, place)
    moved = isinstance(function, AddVector) or (isinstance(function, SetProjection) and function.value != 0)
    if moved and module.bias is None:
        _give_biases(baked)
        if module.bias is None:
            raise ValueError(
                f"weights cannot carry the hook at {name}: {type(baked).__name__} has no bias there and no setting for "
                f"one; use the hooks"
            )
    # Columns of a weight [d_model, d_in] are vectors of the stream; GPT-2 keeps its weights transposed, as rows.
    weight = module.weight.double() if _is_conv1d(module) else module.weight.double().mT
    edited = _edited(function, weight, offset=False)
    module.weight.copy_((edited if _is_conv1d(module) else edited.mT).to(module.weight.dtype))
    if module.bias is not None:
        module.bias.copy_(_edited(function, module.bias.double(), offset=True).to(module.bias.dtype))


def _edited(
    function: Intervention, written: Float[Tensor, "*vector d_model"], *, offset: bool
) -> Float[Tensor, "*vector d_model"]:
    """The affine map on vectors of the stream: its linear part, or all of it where the offset belongs."""
    vectors = function.vectors.double().to(written.device)
    stream = written.reshape(1, -1, written.shape[-1])  # as [batch pos d_model], which is what interventions edit
    edited = function.edit(stream, vectors)
    if not offset:
        edited = edited - function.edit(torch.zeros_like(stream), vectors)
    return edited.reshape(written.shape)


def _edit_embedding(hooked: HookedModel, baked: Any, place: str, function: Intervention) -> None:
    embedding = baked.get_submodule((plain_target(hooked, place) or ("", ""))[0])
    unembedding = baked.get_output_embeddings()
    if unembedding is not None and unembedding.weight is embedding.weight:
        unembedding.weight = nn.Parameter(embedding.weight.detach().clone())
        baked.config.tie_word_embeddings = False
    scale = float(getattr(embedding, "embed_scale", 1.0))  # Gemma multiplies behind the table
    rows = _edited(function, embedding.weight.double() * scale, offset=True) / scale
    embedding.weight.copy_(rows.to(embedding.weight.dtype))


def _output(hooked: HookedModel, baked: Any, place: str) -> Any:
    """The linear layer that writes at a place, by the bridge's own tables."""
    block: Any = hooked.bridge.blocks[int(place.split(".")[1])]
    part, inner = ("attn", "o") if place.endswith("attn_out") else ("mlp", "out")
    component = block.submodules[part]
    return baked.get_submodule(f"{block.name}.{component.name}.{component.submodules[inner].name}")


def _give_biases(baked: Any) -> None:
    """Switch on the biases that the architecture's settings allow, all zero, so that the folder loads as it is."""
    config = baked.config
    settings = [name for name in ("mlp_bias", "attention_bias") if getattr(config, name, None) is False]
    for name in settings:
        setattr(config, name, True)
    with torch.device("meta"):
        like = type(baked)(config)
    for path, module in like.named_modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            ours: Any = baked.get_submodule(path)
            if ours.bias is None:
                ours.bias = nn.Parameter(
                    torch.zeros(ours.out_features, dtype=ours.weight.dtype, device=ours.weight.device)
                )


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
