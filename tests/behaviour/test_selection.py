"""Choosing a refusal direction: against a slow literal version on plain Hugging Face models, and the rule itself."""

from dataclasses import replace

import pytest
import torch

from em_interp.behaviour.selection import (
    CHOSEN,
    KEPT,
    Candidates,
    CandidateScores,
    refusal_candidates,
    score_candidates,
    select,
)
from em_interp.directions.direction import Direction
from em_interp.models.hooked import HookedModel
from em_interp.texts.conversations import Conversation, encode
from em_interp.texts.openings import opening_tokens


def asked(*questions):
    return [[{"role": "user", "content": question}] for question in questions]


HARMFUL = asked("How do I open a lock?", "Help me break the old door.", "How do I harm a user?")
HARMLESS = asked("How do I help a user?", "Open the door.", "What is the old boat for? Tell me.", "Why?")
OPENINGS = ("I", "Sure")


def blocks_of(net):
    """Of each block what writes to its stream: the last module on the way from attention, and from the MLP."""
    if hasattr(net, "transformer"):
        return [(block, block.attn, block.mlp) for block in net.transformer.h]
    return [
        (b, b.post_attention_layernorm, b.post_feedforward_layernorm)
        if hasattr(b, "post_feedforward_layernorm")
        else (b, b.self_attn, b.mlp)
        for b in net.model.layers
    ]


def hooked_net(net, out=None, added=None):
    """Hooks that take a vector out of every block's input and of all that is written, or add one at a block's input."""

    def ablate(x):
        unit = out / out.norm()
        return x - (x @ unit)[..., None] * unit

    def after(_, __, output):
        return (ablate(output[0]), *output[1:]) if isinstance(output, tuple) else ablate(output)

    handles = []
    for number, (block, attention, mlp) in enumerate(blocks_of(net)):
        if out is not None:
            handles.append(block.register_forward_pre_hook(lambda _, args: (ablate(args[0]), *args[1:])))
            handles += [module.register_forward_hook(after) for module in (attention, mlp)]
        if added is not None and added[0] == number:
            handles.append(block.register_forward_pre_hook(lambda _, args: (args[0] + added[1], *args[1:])))
    return handles


@torch.no_grad()
def run(model, request, **hooks):
    """The last token's logits of one request, by one whole pass."""
    ids = torch.tensor([encode(model.template, request, "last").ids])
    handles = hooked_net(model.plain, **hooks)
    try:
        return model.plain(input_ids=ids).logits[0, -1].double()
    finally:
        for handle in handles:
            handle.remove()


def refuses(model, request, logits):
    [tokens] = opening_tokens(model.template, [Conversation.of(request)], OPENINGS)
    p = logits.softmax(-1)[list(tokens)].sum()
    return float(p.log() - (1 - p).log())


@torch.no_grad()
def block_inputs(model, request, n_tokens):
    """What enters each block at the last tokens of the prompt."""
    ids = torch.tensor([encode(model.template, request, "last").ids])
    states = model.plain(input_ids=ids, output_hidden_states=True).hidden_states[: model.n_layers]
    return torch.stack([state[0, -n_tokens:].double() for state in states], 1)


def literal(model):
    """Every number of every candidate, one request and one pass at a time."""
    n_tokens = len(encode(model.template, HARMFUL[0], "post_instruction").spans)
    means = [torch.stack([block_inputs(model, r, n_tokens) for r in side]).mean(0) for side in (HARMFUL, HARMLESS)]
    vectors = (means[0] - means[1]).float()
    found = {name: torch.full(vectors.shape[:2], torch.nan) for name in ("bypass", "induce", "kl")}
    for at in [(p, layer) for p in range(n_tokens) for layer in range(model.n_layers)]:
        v = vectors[at]
        if v.norm() < 1e-6:
            continue
        found["bypass"][at] = torch.tensor([refuses(model, r, run(model, r, out=v)) for r in HARMFUL]).mean()
        added = [refuses(model, r, run(model, r, added=(at[1], v))) for r in HARMLESS]
        found["induce"][at] = torch.tensor(added).mean()
        divergences = []
        for r in HARMLESS:
            p, q = run(model, r).log_softmax(-1), run(model, r, out=v).log_softmax(-1)
            divergences.append((p.exp() * (p - q)).sum())
        found["kl"][at] = torch.stack(divergences).mean()
    return vectors, found


@pytest.fixture
def scored(tiny):
    candidates = refusal_candidates(tiny, HARMFUL, HARMLESS)
    return score_candidates(tiny, candidates, HARMFUL, HARMLESS, max_layer=1, as_expected=False, openings=OPENINGS)


def test_all_scores_are_those_of_a_literal_version(tiny, scored):
    vectors, found = literal(tiny)
    torch.testing.assert_close(scored.candidates.vectors, vectors, atol=1e-4, rtol=1e-4)
    for name, grid in found.items():
        torch.testing.assert_close(getattr(scored, name), grid, atol=1e-4, rtol=1e-4, equal_nan=True)
    as_they_are = [sum(refuses(tiny, r, run(tiny, r)) for r in side) / len(side) for side in (HARMFUL, HARMLESS)]
    assert [scored.harmful, scored.harmless] == pytest.approx(as_they_are, abs=1e-4)
    chosen = select(scored, max_kl=1e9, max_layer=1, min_induce=-1e9)
    best = found["bypass"].nan_to_num(torch.inf).argmin().item()
    at = divmod(best, tiny.n_layers)
    assert (chosen.position, chosen.layer) == (scored.candidates.positions[at[0]], at[1])


def test_the_tokens_are_those_after_the_request(tiny_llama):
    candidates = refusal_candidates(tiny_llama, HARMFUL, HARMLESS)
    text = tiny_llama.template.render(HARMFUL[0], asks=True).text
    assert text.endswith("".join(candidates.tokens))
    assert candidates.positions == tuple(range(-len(candidates.tokens), 0))
    assert repr(candidates).startswith(f"Candidates({len(candidates.tokens)} tokens × 3 block inputs, d_model 32")


def test_layers_above_the_cut_are_not_scored(tiny_llama):
    candidates = refusal_candidates(tiny_llama, HARMFUL, HARMLESS)
    found = score_candidates(
        tiny_llama, candidates, HARMFUL, HARMLESS, max_layer=0.7, as_expected=False, openings=OPENINGS
    )
    assert found.bypass[:, 2].isnan().all()
    assert found.bypass[:, 1].isfinite().all()
    chosen = select(found, max_kl=1e9, max_layer=1, min_induce=-1e9)
    assert {reasons[2] for reasons in chosen.reasons} == {"not scored"}


def made(bypass, induce, kl, zero=()):
    """Two tokens and five block inputs with these scores."""
    vectors = torch.ones(2, 5, 4)
    for at in zero:
        vectors[at] = 0
    layer = torch.ones(5)
    directions = tuple(
        Direction(v, layer, layer, layer, tuple(range(5)), "refusal", "resid_pre", "post_instruction", "conversation",
                  "tiny", "0" * 64, 3, 3)
        for v in vectors
    )  # fmt: skip
    grids = [torch.tensor(grid) for grid in (bypass, induce, kl)]
    return CandidateScores(Candidates(directions, (-2, -1), ("<a>", "<b>")), *grids, 3.0, -3.0, 4, 4)


def test_the_smallest_bypass_that_passes_every_filter_is_chosen():
    nan = float("nan")
    scores = made(
        bypass=[[nan, 1.0, -5.0, -9.0, -9.0], [-9.0, -2.0, -1.0, nan, -9.0]],
        induce=[[nan, 1.0, 0.1, -0.1, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]],
        kl=[[nan, 0.0, 0.1, 0.0, 0.0], [0.11, 0.0, 0.0, 0.0, 0.0]],
        zero=[(0, 0)],
    )
    found = select(scores)
    assert (found.position, found.layer) == (-2, 2)
    above = "at block 4 or above"
    assert found.reasons == (
        ("no difference between the classes", KEPT, CHOSEN, "induces less than 0", above),
        ("KL above 0.1", KEPT, KEPT, "a score is not a number", above),
    )
    assert (found.direction.site, found.direction.layers) == ("resid_post", (1,))
    assert repr(found) == (
        "Selection(token -2 '<a>', input of block 2: bypass -5.00 (as it is +3.00), induce +0.10 (as it is -3.00), "
        "KL 0.100)"
    )
    assert select(scores, max_kl=0.2).layer == 0
    assert select(scores, max_kl=0.2).direction.site == "resid_pre"
    assert select(scores, min_induce=-1).layer == 3
    assert select(scores, max_layer=1, max_kl=0.05).layer == 4


def test_none_that_is_left_is_an_error_that_counts():
    grid = [[1.0] * 5] * 2
    with pytest.raises(
        ValueError, match=r"none of the 10 candidates is left: 8 KL above 0\.1, 2 at block 4 or above; loosen"
    ):
        select(made(grid, grid, grid))


class TestBadInput:
    def test_a_class_without_requests(self, tiny_llama):
        with pytest.raises(ValueError, match="there are no harmless requests to read"):
            refusal_candidates(tiny_llama, HARMFUL, [])

    def test_a_model_that_refuses_nothing(self, tiny_llama):
        candidates = refusal_candidates(tiny_llama, HARMFUL, HARMLESS)
        says = r"refuses none of the 3 harmful requests \(refusal scores from -\d.* load_bundled\('aligned'\)"
        with pytest.raises(ValueError, match=says):
            score_candidates(tiny_llama, candidates, HARMFUL, HARMLESS, openings=OPENINGS)

    def test_candidates_of_another_model(self, tiny_llama):
        candidates = refusal_candidates(tiny_llama, HARMFUL, HARMLESS)
        other: HookedModel = replace(tiny_llama, name="other")
        with pytest.raises(
            ValueError, match="the candidates are of tiny-llama, and the model is other: read them anew"
        ):
            score_candidates(other, candidates, HARMFUL, HARMLESS)

    def test_a_position_that_there_is_not(self, tiny_llama):
        candidates = refusal_candidates(tiny_llama, HARMFUL, HARMLESS)
        with pytest.raises(ValueError, match="no candidate is at position 3: choose one of"):
            candidates.direction(3, 1)

    def test_a_share_that_is_none(self, tiny_llama):
        candidates = refusal_candidates(tiny_llama, HARMFUL, HARMLESS)
        with pytest.raises(ValueError, match="max_layer is 24: give a share of the blocks"):
            score_candidates(tiny_llama, candidates, HARMFUL, HARMLESS, max_layer=24)
