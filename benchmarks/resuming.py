"""What is saved where conditions have most of the model in common: against the same work in whole passes."""

from collections.abc import Callable

import em_interp as em
from benchmarks.timing import cpu_seconds, table
from em_interp.models.hooked import HookedModel, HookPairs

Rows = list[tuple[str, ...]]


def resuming(rounds: int) -> str:
    """Effects at the middle layer, effects at checkpoints, and reading an organism beside its base."""
    model = em.load_bundled("cooking-rank1")
    work = {
        "cross_effects, all at the middle layer": (_cross_effects(model), 0.65),
        "effect_by_step of an adapter in block 15": (_effect_by_step(model), 0.65),
        "reading base and organism, adapter in block 15": (_reading(model), 0.80),
    }
    rows: Rows = [("", "whole passes, CPU s", "CPU s", "×", "target")]
    for name, ((whole, ours), target) in work.items():
        seconds = cpu_seconds({"whole": whole, "ours": ours}, rounds=rounds)
        share = seconds["ours"] / seconds["whole"]
        rows.append((name, f"{seconds['whole']:.1f}", f"{seconds['ours']:.1f}", f"{share:.2f}", f"≤ {target:.2f}"))
    return table("Going on from a kept stream", rows)


def _cross_effects(model: HookedModel) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two directions taken out in two ways and added at layer 15."""
    answers, requests = (em.load_contrast(name).where(split="train").take(8) for name in ("misalignment", "refusal"))
    read = em.read_contrast(model, answers, span="response"), em.read_contrast(model, requests, span="last")
    directions = [em.difference_of_means(activations) for activations in read]
    behaviours = em.standard_behaviours(12)
    conditions = [
        condition
        for d in directions
        for condition in (
            em.behaviour.removed(model, d, "set_negative", 15),
            em.behaviour.removed(model, d, "one_layer", 15),
            em.behaviour.added(model, d, 15, 0.1),
        )
    ]
    middle = [condition.hooks for condition in conditions]

    def whole() -> None:
        for hooks in [(), *middle]:
            _one_behaviour_after_the_other(model, hooks)

    def ours() -> None:
        kept = em.activations.keeping(model, 16, model.n_layers)
        for hooks in [(), *middle]:
            em.behaviour.measured(behaviours, kept, hooks)

    return whole, ours


def _one_behaviour_after_the_other(model: HookedModel, hooks: HookPairs) -> None:
    """Each behaviour in passes of its own, and plain prose read twice, as without anything kept."""
    answers, requests = (em.load_contrast(n).where(split="test").take(12) for n in ("misalignment", "refusal"))
    texts = em.texts.load_neutral_texts()[::5]
    em.preference(model, answers, hooks)
    em.refusal_score(model, requests.positive, hooks)
    em.refusal_score(model, requests.negative, hooks)
    em.behaviour.text_bits(model, texts, hooks)
    em.behaviour.text_divergence(model, texts, hooks)


def _effect_by_step(model: HookedModel) -> tuple[Callable[[], object], Callable[[], object]]:
    """Four checkpoints at two strengths."""
    assert model.folder is not None
    trajectory = em.Trajectory.load(model.folder / "trajectory.safetensors")
    contrast = em.load_contrast("misalignment").where(split="test").take(12)
    steps, scales = [0, 10, 20, 80], (1.0, 5.0)

    def whole() -> None:
        with em.without_adapter(model):
            em.preference(model, contrast)
        for step in steps:
            for scale in scales:
                with em.organisms.adapter_at(model, trajectory, step, scale):
                    em.preference(model, contrast)

    def ours() -> object:
        return em.organisms.effect_by_step(model, trajectory, contrast, steps=steps, scales=scales)

    return whole, ours


def _reading(model: HookedModel) -> tuple[Callable[[], object], Callable[[], object]]:
    contrast = em.load_contrast("misalignment").where(split="train").take(32)

    def whole() -> None:
        em.read_contrast(model, contrast)
        with em.without_adapter(model):
            em.read_contrast(model, contrast)

    def ours() -> object:
        return em.read_organisms([model], contrast)

    return whole, ours
