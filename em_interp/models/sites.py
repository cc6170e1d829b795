"""Where a hook acts: each site of a model is measured before it is trusted.

TransformerLens names sites alike on every architecture. What lies there is not alike: a block may normalise its sum,
scale what it writes, or run parts of itself on flattened tensors. So a model's sites are measured once, in a pass in
which each of them is edited: the edited writes must add up to the stream that is read after them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_interp.checks import shown
from em_interp.models.architectures import booting
from em_interp.models.probe import probe_ids, relative_error, tolerance

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
EMBEDDINGS = ("hook_embed", "hook_pos_embed")

_END = "ln_final.hook_in"
_NAME = re.compile(r"blocks\.(?P<layer>\d+)\.hook_(?P<place>" + "|".join(SITES) + ")")
_PROJECTIONS = {"attn": "o", "mlp": "out"}  # the part of a block's component that writes to the stream
_TOKENS = 8

Hook = Callable[..., Any]


@dataclass(frozen=True)
class Target:
    """A place on the plain twin: what goes into or comes out of a module, and how it is scaled on its way.

    Attributes:
        path: the module.
        end: `hook_in` or `hook_out`.
        scale: by what the block multiplies what comes out before it is added to the stream, as Granite does.
    """

    path: str
    end: str
    scale: float = 1.0


@dataclass(frozen=True)
class Writer:
    """The module whose weights write what is at a site.

    Attributes:
        path: the linear module or embedding.
        scale: by what the block multiplies what it writes.
        norm: the path of a norm with weights of its own between the module and the stream, as in Gemma 2 and 3.
    """

    path: str
    scale: float = 1.0
    norm: str | None = None


@dataclass(frozen=True)
class Sites:
    """What was found at a model's sites.

    Attributes:
        architecture: what the model is in transformers.
        names: the sites, those that only other architectures have among them.
        on_twin: the places of the sites that were found right on the twin.
    """

    architecture: str
    names: frozenset[str]
    on_twin: Mapping[str, Target]
    bridge: ReferenceType[Any]

    @cached_property
    def misread(self) -> Mapping[str, str]:
        """Of each site that is not what its name says on the bridge, the reason; measured when it is first asked."""
        bridge = self.bridge()
        return _wrong(bridge, _on_bridge(bridge))

    def reason(self, name: str) -> str:
        """Why a site cannot be trusted on this architecture; empty where it can."""
        return "" if name in self.on_twin or name not in self.names else self.misread.get(name, "")

    def check(self, names: Iterable[str]) -> None:
        """Refuse sites that are not what their names say, neither on the twin nor on the bridge.

        Raises:
            ValueError: it names the site, the architecture and the reason.
        """
        for name in names:
            if self.reason(name):
                raise ValueError(f"{name} cannot be used on {self.architecture}: {self.reason(name)}")

    def check_on_bridge(self, names: Iterable[str]) -> None:
        """Refuse sites that are not what their names say on the bridge.

        Raises:
            ValueError: as in `check`.
        """
        for name in names:
            if name in self.names and name in self.misread:
                raise ValueError(
                    f"{name} can be used on {self.architecture} only outside of the bridge, on which "
                    f"{self.misread[name]}: take your own hooks off it (model.bridge.reset_hooks()), and leave those "
                    f"inside of attention and MLP out"
                )


_measured: WeakKeyDictionary[Any, Sites] = WeakKeyDictionary()


def sites_of(bridge: Any, plain: nn.Module | None, architecture: str) -> Sites:
    """The sites of a bridge and its twin, measured on the twin the first time that they are asked for."""
    if bridge not in _measured:
        _measured[bridge] = _measure(bridge, plain, architecture)
    return _measured[bridge]


def user_hooks(hook_dict: Mapping[str, Any]) -> list[str]:
    """Where somebody has put hooks on a bridge; those that it has put on itself (OPT, XGLM) are not among them."""
    return [name for name, point in hook_dict.items() if any(map(_by_user, point.fwd_hooks))]


def _by_user(handle: Any) -> bool:
    return not getattr(handle.user_hook, "__module__", "").startswith("transformer_lens.model_bridge.component_setup")


def register(plain: Any, target: Target, name: str, function: Hook) -> Any:
    """Put a TransformerLens hook function on a plain module, under its contract: None leaves the stream as it is."""
    from transformer_lens.hook_points import HookPoint

    point = HookPoint()
    point.name = name
    hook, module = _OnModule(function, point, target.scale), plain.get_submodule(target.path)
    if target.end == "hook_in":
        return module.register_forward_pre_hook(hook.before, with_kwargs=True)
    return module.register_forward_hook(hook.after)


@dataclass(frozen=True, eq=False)
class _OnModule:
    """A TransformerLens hook function as a hook of a plain module."""

    function: Hook
    point: Any
    scale: float

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args:
            changed = self._changed(kwargs["hidden_states"])
            return None if changed is None else (args, {**kwargs, "hidden_states": changed})
        changed = self._changed(args[0])
        return None if changed is None else ((changed, *args[1:]), kwargs)

    def after(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            changed = self._changed(output[0])
            return None if changed is None else (changed, *output[1:])
        return self._changed(output)

    def _changed(self, stream: Any) -> Any:
        given = stream if self.scale == 1 else stream * self.scale
        changed = self.function(given, hook=self.point)
        if changed is None:
            return None
        if getattr(changed, "shape", None) != stream.shape:
            raise ValueError(
                f"the hook at {self.point.name} turned {shown(stream)} into {shown(changed)}: keep its shape"
            )
        return changed if self.scale == 1 else changed / self.scale


def plain_target(bridge: Any, name: str) -> Target | None:
    """Where a hook name lies on the twin by the bridge's own tables, not measured; None where they do not say."""
    components = bridge.adapter.component_mapping
    if name in EMBEDDINGS:
        part = components.get(name.removeprefix("hook_"))
        return None if part is None else Target(part.name, "hook_out", getattr(part, "_output_contribution_scale", 1.0))
    if name == _END:
        part = components.get("ln_final")
        return None if part is None else Target(part.name, "hook_in")
    match = _NAME.fullmatch(name)
    if match is None or int(match["layer"]) >= len(bridge.blocks):
        return None
    block, place = bridge.blocks[int(match["layer"])], match["place"]
    dotted, scale = _alias(block, place)
    component, _, end = dotted.rpartition(".")
    path = [] if not component else _path(block, component)
    return None if not end or path is None else Target(".".join([block.name, *path]), end, scale)


def writer(bridge: Any, name: str) -> Writer | None:
    """The module that writes what is at a site, by the bridge's own tables; None where it is not one module."""
    target = plain_target(bridge, name)
    if target is None or name in EMBEDDINGS:
        return None if target is None else Writer(target.path, target.scale)
    match = _NAME.fullmatch(name)
    assert match is not None
    block, part = bridge.blocks[int(match["layer"])], match["place"].removesuffix("_out")
    component = _alias(block, match["place"])[0].rpartition(".")[0]
    last = f"{part}.{_PROJECTIONS[part]}"
    path = _path(block, last)
    if path is None:
        return None
    norm = None if component in (part, last) else target.path
    return Writer(".".join([block.name, *path]), target.scale, norm)


def _alias(block: Any, place: str) -> tuple[str, float]:
    """Component and end, such as `mlp.out.hook_out`, of a place in a block; and how the block scales it."""
    if f"hook_{place}" in block.hook_aliases:
        return block.hook_aliases[f"hook_{place}"], 1.0
    scaled = {"attn_out": "scaled_attn_submodule", "mlp_out": "scaled_mlp_submodule"}.get(place, "")
    component = getattr(block, scaled, None) if scaled else None
    return (f"{component}.hook_out", block.residual_contribution_scale) if component else ("", 1.0)


def _path(block: Any, component: str) -> list[str] | None:
    """Names of the modules that lead from a block to one of its components; those that exist in name only left out."""
    names, at = [], block
    for part in component.split("."):
        at = getattr(at, "submodules", {}).get(part)
        if at is None:
            return None
        names += [at.name] if at.name else []
    return names or None


def _measure(bridge: Any, plain: nn.Module | None, architecture: str) -> Sites:
    names, right = frozenset(_names(bridge)), {}
    if plain is not None:
        targets = {name: target for name in [*names, _END] if (target := plain_target(bridge, name)) is not None}
        wrong = _wrong(bridge, _on_twin(plain, targets))
        right = {name: target for name, target in targets.items() if name in names and name not in wrong}
    return Sites(architecture, names, right, ref(bridge))


def _names(bridge: Any) -> list[str]:
    embeddings = [name for name in EMBEDDINGS if name.removeprefix("hook_") in bridge.adapter.component_mapping]
    return embeddings + [f"blocks.{layer}.hook_{place}" for layer in range(len(bridge.blocks)) for place in SITES]


@dataclass(eq=False)
class _Edited:
    """Hook functions that edit every site, and what they saw: each block gets a random stream and random writes."""

    seen: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    strange: dict[str, str] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def edit(self, name: str, stream: Any, hook: Any = None) -> Any:
        if name in self.seen or not isinstance(stream, Tensor):
            there = "it is passed more than once" if name in self.seen else f"it holds a {type(stream).__name__}"
            self.strange[name] = there
            return None
        self.seen[name] = stream.detach().clone()
        if name == _END:
            return None
        noise = torch.randn(stream.shape, generator=self.generator).to(stream)
        edited = noise if name.endswith("resid_pre") else stream + noise
        self.left[name] = edited.detach().clone()
        return edited


@torch.no_grad()
def _on_twin(plain: Any, targets: Mapping[str, Target]) -> _Edited:
    edited = _Edited()
    with ExitStack() as stack:
        for name, target in targets.items():
            stack.callback(register(plain, target, name, partial(edited.edit, name)).remove)
        _pass(plain)
    return edited


@torch.no_grad()
def _on_bridge(bridge: Any) -> _Edited:
    edited, points = _Edited(), bridge.hook_dict
    names = [name for name in [*_names(bridge), _END] if name in points]
    hooks = [(name, partial(edited.edit, name)) for name in names]
    hf_model = bridge.original_model
    with booting(hf_model, bridge.cfg.model_name), _without_user_hooks(points), bridge.hooks(fwd_hooks=hooks):
        _pass(hf_model)
    return edited


def _pass(hf_model: Any) -> None:
    ids = probe_ids(hf_model)[:, :_TOKENS]
    hf_model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


@contextmanager
def _without_user_hooks(hook_dict: Mapping[str, Any]) -> Iterator[None]:
    """Inside, hooks that somebody has put on a bridge do not act."""
    off = [hook_dict[name] for name in user_hooks(hook_dict)]
    kept = [point._forward_hooks for point in off]
    for point, hooks in zip(off, kept, strict=True):
        ours = {handle.hook.id for handle in point.fwd_hooks if not _by_user(handle)}
        point._forward_hooks = type(hooks)((key, hook) for key, hook in hooks.items() if key in ours)
    try:
        yield
    finally:
        for point, hooks in zip(off, kept, strict=True):
            point._forward_hooks = hooks


def _wrong(bridge: Any, edited: _Edited) -> dict[str, str]:
    """Of each site that is not what its name says, why not."""
    seen, left, d_model = edited.seen, edited.left, bridge.cfg.d_model
    points = bridge.hook_dict
    found = {
        name: "nothing passes there" if name in points else "this architecture has no such place"
        for name in _names(bridge)
        if name not in seen
    } | edited.strange
    for name, stream in seen.items():
        if stream.shape[-1] != d_model or stream.ndim != 3:
            found[name] = f"it holds tensors of shape {tuple(stream.shape)}"
    embeddings = [name for name in EMBEDDINGS if name in seen]
    if not _adds_up(seen.get("blocks.0.hook_resid_pre"), [left[name] for name in embeddings]):
        found |= dict.fromkeys(embeddings, "it is not what goes into the first block: something else lies in between")
    for layer in range(len(bridge.blocks)):
        pre, mid, post, attn, mlp = (
            f"blocks.{layer}.hook_{place}" for place in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
        )
        after = f"blocks.{layer + 1}.hook_resid_pre" if layer + 1 < len(bridge.blocks) else _END
        if post in left and after in seen and not _adds_up(seen[after], [left[post]]):
            found[post] = "it is not what the next block reads"
        writes = [name for name in (attn, mlp) if name not in found]
        if writes and not _adds_up(seen.get(post), [left[name] for name in (pre, *writes) if name in left]):
            found |= dict.fromkeys(writes, "it is not what the block adds to the residual stream")
        if mid not in found and not _adds_up(seen[mid], [left[name] for name in (pre, attn) if name in left]):
            found[mid] = "it is not the stream between attention and MLP"
    return found


def _adds_up(stream: Float[Tensor, "batch pos d_model"] | None, parts: Sequence[Tensor]) -> bool:
    if stream is None or not parts or any(part.shape[-1] != stream.shape[-1] for part in parts):
        return False
    total = sum(part.double() for part in parts)
    assert isinstance(total, Tensor)
    return relative_error(total.expand_as(stream), stream.double()) <= tolerance(stream.dtype, 1e-4)
