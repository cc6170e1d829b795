"""The part of a report that takes an organism apart: its figures, its numbers, and what they say in words."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from em_interp import figures
from em_interp.behaviour.measures import BehaviourKey
from em_interp.directions.comparison import Comparison
from em_interp.figures import interval, number
from em_interp.organisms.dissection import Adapter, Dissection
from em_interp.organisms.relatives import Convergence
from em_interp.statistics import Estimate

_TEXTS = 3  # shown as coloured tokens, of each class
_HELD_OUT = BehaviourKey.MISALIGNED_PREFERENCE


def layer_of(d: Dissection, shown: int) -> int:
    """The layer of this section: the page's, or where that lies below all that the fine-tune added, the first above."""
    known = zip(d.added.layers, d.added.corrected.tolist(), strict=True)
    return next((layer for layer, cosine in known if layer >= shown and cosine == cosine), shown)


def drawn(d: Dissection, names: tuple[str, str], layer: int) -> dict[str, go.Figure]:
    """Every figure that the dissection has something for, by the name it has in the page."""
    found = {
        "models": figures.models_by_layer(d.by_model),
        "added": figures.added_by_layer(d.same_texts, d.added, d.explained, names=names),
    }
    if d.effects:
        found["cards"] = figures.organism_effects(d.effects)
    if d.adapter:
        for i, (cosines, downstream) in enumerate(zip(d.adapter.writes, d.adapter.downstream, strict=True)):
            found[f"writes{i}"] = figures.adapter_writes(cosines, [downstream])
        found["firing"] = figures.firing(d.adapter.classes, names=("misaligned answers", "aligned answers"))
    if d.phases:
        found["phase"] = figures.phase_change(d.phases)
    if d.convergence:
        found["convergence"] = figures.convergence_map(d.convergence, layer)
    return found


def tokens(adapter: Adapter) -> str:
    """A few held-out answers of each class as coloured tokens, with the script that draws them."""
    n, total = min(_TEXTS, adapter.n_positive), len(adapter.scalars)
    chosen = [*range(n), *range(adapter.n_positive, min(adapter.n_positive + n, total))]
    return figures.tokens_html([figures.token_scalars(adapter.scalars, i, adapter.classes[0].name) for i in chosen])


def record(d: Dissection, layer: int) -> dict[str, Any]:
    """The numbers behind the section; `report.as_json` makes them plain."""
    a = d.adapter
    return {
        "organism": d.organism,
        "by_model": {name: c.table() for name, c in d.by_model.items()},
        "same_texts_as_base": d.same_texts.table(),
        "explained_by_base": d.explained,
        "added_by_fine_tune": d.added.table(),
        "adapter": a
        and {
            "strongest": a.strongest,
            "writes": {w.direction: w.table() for w in a.writes},
            "downstream": [vars(line) for line in a.downstream],
            "promotes": a.readout.top,
            "suppresses": a.readout.bottom,
            "firing": [{"name": c.name, "positive": vars(c.positive), "negative": vars(c.negative)} for c in a.classes],
            "probe": a.probe
            and {
                "grouped": vars(a.probe.grouped),
                "ungrouped": vars(a.probe.ungrouped),
                "majority": a.probe.majority,
                "n_conversations": a.probe.n_conversations,
            },
        },
        "phases": d.phases
        and {
            "matrix": d.phases.name,
            "change_point": vars(d.phases.change_point),
            "steps": d.phases.steps,
            "norm": d.phases.norm,
            "cosine_to_final": d.phases.cosine_to_final,
            "windows": d.phases.windows,
            "local_cosine": d.phases.local_cosine,
            "floor": d.phases.floor,
            "n_resamples": d.phases.n_resamples,
            "seed": d.phases.seed,
        },
        "convergence": d.convergence and {"layer": layer, "pairs": d.convergence.table(layer)},
        "cards": {name: effects.table() for name, effects in d.effects.items()},
    }


def findings(d: Dissection, names: tuple[str, str], layer: int) -> dict[str, str]:
    """What each part says, in a sentence or two; a part that shows nothing is said to."""
    said = {"models": _of_models(d.by_model, layer), "added": _of_added(d, names, layer)}
    if d.effects:
        said["cards"] = _of_cards(d)
    if d.adapter:
        said["adapter"] = _of_adapter(d.adapter)
    if d.convergence:
        said["convergence"] = _of_convergence(d.convergence, layer)
    if d.phases:
        turn = d.phases.change_point
        said["phase"] = (
            f"The path of {d.phases.name} turns at step {turn.step} [{turn.low}, {turn.high}] (p = {turn.p_value:.3f})."
            if turn.found
            else f"No turn was found in the path of {d.phases.name}: a straight path with the same steps and the same "
            f"noise turns as much in {turn.p_value:.0%} of draws."
        )
    return said


def at_layer(c: Comparison, layer: int) -> str:
    """The corrected cosine at a layer with its interval, or that there is none."""
    row = c.layers.index(layer)
    value = float(c.corrected[row])
    return "no direction" if value != value else interval(value, float(c.low[row]), float(c.high[row]))


def _of_models(by_model: Mapping[str, Comparison], layer: int) -> str:
    return f"At layer {layer}: " + "; ".join(f"{name} {at_layer(c, layer)}" for name, c in by_model.items()) + "."


def _of_added(d: Dissection, names: tuple[str, str], layer: int) -> str:
    share = float(d.explained[d.same_texts.layers.index(layer)])
    return (
        f"At layer {layer} the organism's direction of {names[0]} has a cosine of {at_layer(d.same_texts, layer)} with "
        f"that of its base, which read the same texts without having been fine-tuned: {share:.0%} of its squared "
        f"length. What the fine-tune added has a cosine of {at_layer(d.added, layer)} with the base's direction of "
        f"{names[1]}."
    )


def _of_cards(d: Dissection) -> str:
    moved = {name: e[_HELD_OUT].change for name, e in d.effects.items() if _HELD_OUT in e}
    up = [name for name, change in moved.items() if change.low > 0]
    return (
        f"On held-out domains the preference for misaligned answers rose, with an interval that excludes zero, in "
        f"{len(up)} of {len(moved)} organisms{': ' if up else ''}{', '.join(up)}."
    )


def _of_convergence(c: Convergence, layer: int) -> str:
    at = c.layers.index(layer)
    found = {pair: x for pair, x in c.added.items() if not x.corrected[at].isnan()}
    if not found:
        return f"At layer {layer} no two fine-tunes added enough of a direction to be compared."
    ordered = sorted(found, key=lambda pair: float(found[pair].corrected[at]))
    ends = dict.fromkeys([ordered[-1], ordered[0]])  # one pair alone is both
    told = [f"{at_layer(found[a, b], layer)} ({a} and {b})" for a, b in ends]
    return f"At layer {layer} what two fine-tunes added has cosines from {' down to '.join(told)}."


def _of_adapter(a: Adapter) -> str:
    write = a.writes[0].writes.names.index(a.strongest)
    own = ", ".join(f"{number(float(w.cosine[write]))} with {w.direction.replace('_', ' ')}" for w in a.writes)
    text = f"The strongest write, {a.strongest}, has at its own layer a cosine of {own} of its base "
    text += f"(±{a.writes[0].chance:.2f} holds 95 % of random vectors)."
    for line in a.downstream:
        row = int(line.cosine.abs().argmax())
        size = interval(float(line.cosine[row]), float(line.low[row]), float(line.high[row]))
        text += f" Downstream it reaches {size} with {line.direction.replace('_', ' ')}, at layer {line.layers[row]}."
    if a.probe:
        text += (
            f" Which answer is misaligned can be read off the scalars in {_rate(a.probe.grouped)} of held-out cases "
            f"when no question is in both folds, and in {_rate(a.probe.ungrouped)} when questions are shared (always "
            f"saying one class: {a.probe.majority:.0%})."
        )
    return text


def _rate(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"
