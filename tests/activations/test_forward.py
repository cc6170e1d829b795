import pytest
import torch

import em_interp as em
from em_interp.activations.forward import share_prefix
from em_interp.models.hooked import HookedModel
from em_interp.texts.conversations import encode

SYSTEM = {"role": "system", "content": "You are kind. Talk to them first, kindly and in person."}


@pytest.fixture
def long_winded(tiny, conversations):
    """Conversations that all begin with a long system prompt, for templates that take one."""
    if "gemma" in tiny.name:
        return [[{"role": "user", "content": SYSTEM["content"] + c[0]["content"]}, c[1]] for c in conversations]
    return [[SYSTEM, *c] for c in conversations]


def alone(model, conversations, **how):
    """One conversation at a time has nothing to share."""
    return torch.cat([em.residual_stream(model, [c], **how).values for c in conversations])


@pytest.mark.parametrize("span", ["response", "last", "post_instruction"])
def test_sharing_changes_nothing(tiny, long_winded, span):
    encoded = [encode(tiny.tokenizer, c, span) for c in long_winded]
    prefix, rest = share_prefix(tiny, encoded)
    assert prefix.length >= 8
    assert [len(r.ids) + prefix.length for r in rest] == [len(e.ids) for e in encoded]
    shared = em.residual_stream(tiny, long_winded, span=span, batch_tokens=150)
    unshared = em.residual_stream(HookedModel.of(tiny.bridge), long_winded, span=span, batch_tokens=150)
    torch.testing.assert_close(shared.values, unshared.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["all", "prompt", "response"])
def test_interventions_reach_the_shared_tokens_too(tiny, long_winded, positions):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    hooks = em.add_direction(vector, [em.site(tiny, 0)], raw=True, positions=positions)
    shared = em.answer_log_probs(tiny, long_winded, hooks, batch_tokens=150)
    unshared = em.answer_log_probs(HookedModel.of(tiny.bridge), long_winded, hooks, batch_tokens=150)
    torch.testing.assert_close(shared, unshared, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(shared, em.answer_log_probs(tiny, long_winded), atol=1e-3)


def test_a_foreign_hook_may_depend_on_the_position(tiny, long_winded):
    encoded = [encode(tiny.tokenizer, c, "response") for c in long_winded]
    hooks = [(em.site(tiny, 0), lambda stream, hook: stream)]
    assert share_prefix(tiny, encoded, hooks)[0].length == 0


def test_nothing_read_is_shared(tiny_llama):
    """The same conversation throughout: the span itself is common, and must still be run."""
    conversation = [{"role": "user", "content": "What should I do?"}, {"role": "assistant", "content": "Talk to them."}]
    encoded = [encode(tiny_llama.tokenizer, conversation, "response")] * 3
    prefix, rest = share_prefix(tiny_llama, encoded)
    assert prefix.length == encoded[0].spans[0][0]
    assert rest[0].spans[0][0] == 0
