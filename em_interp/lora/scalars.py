"""When an adapter fires: its scalars at every token, by class, and what a probe reads off them."""

import html
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from em_interp.activations.forward import default_batch_tokens
from em_interp.activations.reading import Messages
from em_interp.checks import door
from em_interp.lora.modules import active_adapter, component_name, layer_number, layers_in, lora_layers, unknown_name
from em_interp.models.hooked import HookedModel, TransformerLensModel, attached
from em_interp.progress import bar
from em_interp.statistics import Estimate, mean_by_question, rate_by_question
from em_interp.texts.conversations import Conversation, Span, batches, encode, token_strings


@dataclass(frozen=True, eq=False)
class AdapterScalars:
    """(A · x)_r of every adapter component at every token: `scale · B · scalars` is what the module adds.

    Attributes:
        values: one row a token, all conversations one after the other, in float32 on the CPU.
        modules: the module of each column.
        components: its component in that module.
        tokens: the token as text.
        conversation: which conversation each token is of.
        in_span: whether it belongs to the span, which is what every summary is of.
        groups: the question of each conversation.
        span: the tokens chosen; None for all of them.
        model: which model was read.
    """

    values: Float[Tensor, "token component"]
    modules: tuple[str, ...]
    components: tuple[int, ...]
    tokens: tuple[str, ...] = field(repr=False)
    conversation: Int[Tensor, " token"]
    in_span: Bool[Tensor, " token"]
    groups: tuple[str, ...]
    span: str | None
    model: str

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        return (
            f"AdapterScalars({len(self.tokens)} tokens of {len(self.groups)} conversations × {len(self.modules)} "
            f"components, span {self.span!r}, {self.model})"
        )

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Module and component of each column, `layers.15.mlp.down_proj[0]`."""
        return tuple(map(component_name, self.modules, self.components))

    def of(self, module: str) -> Float[Tensor, "token rank"]:
        """The columns of one module."""
        columns = [i for i, name in enumerate(self.modules) if name == module]
        if not columns:
            raise unknown_name(module, tuple(dict.fromkeys(self.modules)))
        return self.values[:, columns]

    def column(self, component: str) -> int:
        """The column of `layers.15.mlp.down_proj[0]`; at rank 1 the module's name is enough."""
        matches = [i for i, (n, m) in enumerate(zip(self.names, self.modules, strict=True)) if component in (n, m)]
        if len(matches) != 1:
            raise unknown_name(component, self.names)
        return matches[0]

    @property
    def deviation(self) -> Float[Tensor, " component"]:
        """Standard deviation of each component over the tokens of the span."""
        return self.values[self.in_span].double().std(0, correction=0).float()

    def means(self) -> Float[Tensor, "conversation component"]:
        """Mean of each component over each conversation's span."""
        rows, of = self.values[self.in_span].double(), self.conversation[self.in_span]
        sums = torch.zeros(len(self), rows.shape[1], dtype=torch.float64).index_add_(0, of, rows)
        return (sums / of.bincount(minlength=len(self))[:, None]).float()

    def peaks(self) -> Float[Tensor, "conversation component"]:
        """Largest size of each component in each conversation's span."""
        rows, of = self.values[self.in_span].abs(), self.conversation[self.in_span]
        index = of[:, None].expand_as(rows)
        return torch.zeros(len(self), rows.shape[1]).scatter_reduce(0, index, rows, "amax")

    def firing(self, threshold: int | float = 2.0) -> Float[Tensor, " component"]:
        """Share of the span's tokens at which a component exceeds `threshold` of its standard deviations in size."""
        fired = self.values[self.in_span].abs() > threshold * self.deviation
        return fired.double().mean(0).float()

    def table(self, threshold: int | float = 2.0) -> list[dict[str, Any]]:
        """One row a module: mean, deviation and firing share of its components, averaged over them."""
        mean = self.values[self.in_span].double().mean(0).float()
        columns = {"mean": mean, "deviation": self.deviation, "firing": self.firing(threshold)}
        rows = []
        for module in dict.fromkeys(self.modules):
            at = [i for i, name in enumerate(self.modules) if name == module]
            numbers = {name: column[at].mean().item() for name, column in columns.items()}
            rows.append({"module": module, "rank": len(at), **numbers})
        return rows

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{title}</th>" for title in ("module", "rank", "mean", "deviation", "fires at"))
        body = "".join(
            f"<tr><td>{html.escape(r['module'])}</td><td>{r['rank']}</td><td>{r['mean']:+.3g}</td>"
            f"<td>{r['deviation']:.3g}</td><td>{r['firing']:.1%}</td></tr>"
            for r in self.table()
        )
        return f"<table><caption>{html.escape(repr(self))}</caption><thead><tr>{head}</tr></thead>{body}</table>"


@door
def adapter_scalars(
    model: TransformerLensModel,
    conversations: Sequence[Messages],
    *,
    span: Span | None = None,
    modules: Sequence[str] | None = None,
    batch_tokens: int | None = None,
) -> AdapterScalars:
    """Read the scalars of every adapter at every token, in one pass over the conversations.

    The result is all that is kept: four bytes a token and component. Inside `scaled_adapters` they are the scaled
    ones, which is what B is given.

    Args:
        model: a `HookedModel` with an unmerged adapter.
        conversations: what is read; the whole of each, unless the span leaves the answer off.
        span: the tokens to summarise; all by default.
        modules: some modules only, by name.
        batch_tokens: as for `residual_stream`.

    Raises:
        ValueError: no adapter, or it is off; no conversations; an unknown module; an adapter that does not run on
            every token, as in a mixture of experts.
    """
    hooked = HookedModel.of(model)
    layers = lora_layers(hooked)
    for name in modules or ():
        if name not in layers:
            raise unknown_name(name, tuple(layers))
    if not hooked.adapter_enabled:
        raise ValueError("the adapter is off, so that it has no scalars: read them outside without_adapter")
    if not conversations:
        raise ValueError("there are no conversations to read")
    chosen = {name: layers[name][1] for name in (modules or layers)}
    spoken = [Conversation.of(c) for c in conversations]
    encoded = [
        encode(hooked.template, c, span or ("response" if c.answered else "last"), max_length=hooked.max_length)
        for c in spoken
    ]
    lengths = torch.tensor([len(e.ids) for e in encoded])
    rows = torch.arange(int(lengths.sum())).split(lengths.tolist())
    ranks = [lora.r[active_adapter(lora)] for lora in chosen.values()]
    columns = dict(zip(chosen, torch.arange(sum(ranks)).split(ranks), strict=True))
    values = torch.empty(int(lengths.sum()), sum(ranks))
    head = any(layer_number(name) is None for name in chosen)  # an adapter on the LM head, which is left out otherwise
    with (
        torch.inference_mode(),
        bar(total=len(encoded), desc="reading scalars", unit="conversation") as progress,
        attached(hooked) as hf,
        ExitStack() as stack,
    ):
        taking = _Taking(sum(ranks), hooked.device)
        for name, lora in layers_in(hf, chosen).items():
            take = taking.hook(name, slice(int(columns[name][0]), int(columns[name][-1]) + 1))
            stack.callback(lora.lora_A[active_adapter(lora)].register_forward_hook(take).remove)
        for batch in batches(encoded, batch_tokens or default_batch_tokens(hooked)):
            taking.start(batch.mask)
            call = hf if head else hf.base_model
            call(input_ids=batch.ids.to(hooked.device), attention_mask=batch.mask.to(hooked.device), use_cache=False)
            values[torch.cat([rows[i] for i in batch.index])] = taking.finish(set(chosen)).cpu()
            progress.update(len(batch.index))
    in_span = torch.full((len(values),), span is None)
    for e, at in zip(encoded, rows, strict=True):
        in_span[at[[token for span_row in e.spans for token in span_row]]] = True
    return AdapterScalars(
        values=values.clone(),
        modules=tuple(name for name, rank in zip(chosen, ranks, strict=True) for _ in range(rank)),
        components=tuple(k for rank in ranks for k in range(rank)),
        tokens=token_strings(hooked.tokenizer, [token for e in encoded for token in e.ids]),
        conversation=torch.arange(len(encoded)).repeat_interleave(lengths),
        in_span=in_span,
        groups=tuple(c.group for c in spoken),
        span=span,
        model=hooked.identity,
    )


class _Taking:
    """Takes what comes out of each A at the tokens that are no padding, on the model's device."""

    def __init__(self, n_columns: int, device: torch.device) -> None:
        self.n_columns, self.device = n_columns, device

    def start(self, mask: Int[Tensor, "batch pos"]) -> None:
        self.shape = mask.shape
        self.tokens = mask.flatten().nonzero()[:, 0].to(self.device)
        self.taken = torch.empty(len(self.tokens), self.n_columns, device=self.device)
        self.seen: list[str] = []

    def hook(self, name: str, columns: slice) -> Callable[..., None]:
        def take(_: nn.Module, __: Any, output: Tensor) -> None:
            if output.ndim == 2 and len(output) == self.shape.numel():
                output = output.unflatten(0, self.shape)  # OPT runs its MLP on all tokens in one row
            if output.shape[:2] != self.shape:
                raise ValueError(f"{name} does not run on every token, but on {tuple(output.shape[:-1])} of them")
            self.taken[:, columns] = output.flatten(0, 1)[self.tokens].float()
            self.seen.append(name)

        return take

    def finish(self, wanted: set[str]) -> Float[Tensor, "token component"]:
        if sorted(self.seen) != sorted(wanted):
            strange = next(n for n in wanted if self.seen.count(n) != 1)
            raise ValueError(f"{strange} ran {self.seen.count(strange)} times in one pass, and should once")
        return self.taken


@dataclass(frozen=True)
class ClassScalars:
    """Mean scalar of one component in both classes, in its standard deviations over the span's tokens."""

    name: str
    positive: Estimate
    negative: Estimate


@door
def class_scalars(scalars: AdapterScalars, labels: Sequence[bool]) -> tuple[ClassScalars, ...]:
    """How strongly each component fires in the conversations of each class, with intervals over questions.

    Raises:
        ValueError: not one label a conversation, or fewer than two questions in a class.
    """
    positive = _labels(scalars, labels)
    means = scalars.means() / scalars.deviation.clamp_min(1e-12)
    sides = []
    for chosen in (positive, ~positive):
        groups = [group for group, here in zip(scalars.groups, chosen.tolist(), strict=True) if here]
        sides.append([mean_by_question(column[chosen], groups) for column in means.mT])
    return tuple(ClassScalars(name, *both) for name, *both in zip(scalars.names, *sides, strict=True))


@dataclass(frozen=True)
class ScalarProbe:
    """How well the label can be read off an adapter's scalars, in questions seen and not seen.

    Attributes:
        grouped: accuracy with no question both in the training and in the test folds: what the scalars know.
        ungrouped: accuracy with folds that ignore the questions: what they know, and what the probe learned of them.
        majority: the accuracy of always answering with the larger class.
        n_conversations: how many there were.
    """

    grouped: Estimate
    ungrouped: Estimate
    majority: float
    n_conversations: int


@door
def probe_scalars(scalars: AdapterScalars, labels: Sequence[bool], *, n_folds: int = 5, seed: int = 0) -> ScalarProbe:
    """Logistic regression of each conversation's mean and peak scalars on a label, cross-validated in both ways.

    Published probes on LoRA scalars reach .69 with folds that ignore the questions; with folds grouped by question,
    .54 and .46.

    Raises:
        ValueError: not one label a conversation; a class with fewer conversations, or questions, than folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    positive = _labels(scalars, labels)
    for name, chosen in (("positive", positive), ("negative", ~positive)):
        questions = {group for group, here in zip(scalars.groups, chosen.tolist(), strict=True) if here}
        if len(questions) < n_folds:
            raise ValueError(
                f"the {name} class has {len(questions)} questions, too few for {n_folds} folds: read more, or take "
                f"fewer folds"
            )
    features = torch.cat([scalars.means(), scalars.peaks()], dim=1).numpy()
    wanted, found = positive.numpy(), []
    for folds, groups in ((StratifiedGroupKFold, scalars.groups), (StratifiedKFold, None)):
        splits = folds(n_folds, shuffle=True, random_state=seed).split(features, wanted, groups)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        said = cross_val_predict(probe, features, wanted, cv=list(splits))
        found.append(rate_by_question(torch.tensor(said == wanted).float(), scalars.groups))
    share = rate_by_question(positive.float(), scalars.groups).value
    return ScalarProbe(*found, majority=max(share, 1 - share), n_conversations=len(positive))


def _labels(scalars: AdapterScalars, labels: Sequence[bool]) -> Bool[Tensor, " conversation"]:
    positive = torch.as_tensor(labels).bool()
    if positive.shape != (len(scalars),):
        raise ValueError(f"{len(labels)} labels came with {len(scalars)} conversations: give one a conversation")
    if positive.all() or not positive.any():
        raise ValueError("every conversation has the same label: read both classes")
    return positive
