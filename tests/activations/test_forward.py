"""Passes over many conversations: what they share is run once, and what conditions share is not run again."""

from functools import partial

import pytest
import torch

import em_interp as em
from em_interp.activations.forward import first_adapted_block, free_below, keeping, logits_in_parts, share_prefix
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
    shared = em.behaviour.answer_log_probs(tiny, long_winded, hooks, batch_tokens=150)
    unshared = em.behaviour.answer_log_probs(HookedModel.of(tiny.bridge), long_winded, hooks, batch_tokens=150)
    torch.testing.assert_close(shared, unshared, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(shared, em.behaviour.answer_log_probs(tiny, long_winded), atol=1e-3)


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


# ---------------------------------------------------------------- ending a pass where nobody reads any more


def blocks_run(model, conversations, hooks=(), **how):
    """Of each block, whether it ran in every batch; what all texts begin with goes through all blocks, once."""
    with Counted(model) as ran:
        em.residual_stream(model, conversations, hooks, batch_tokens=20, **how)
    assert ran.runs[0] > 2
    return [n == ran.runs[0] for n in ran.runs]


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "mlp_out"])
def test_blocks_above_what_is_read_are_not_run(tiny, conversations, site):
    few = em.residual_stream(tiny, conversations, site=site, layers=[1])
    every = em.residual_stream(tiny, conversations, site=site)
    assert torch.equal(few.values[:, 0], every.values[:, 1])
    assert blocks_run(tiny, conversations, site=site, layers=[1]) == [True, True, False]
    assert blocks_run(tiny, conversations, site=site) == [True, True, True]


def test_a_hook_above_is_called_all_the_same(tiny, conversations):
    seen = []
    hooks = [("blocks.2.hook_resid_post", lambda stream, hook: seen.append(stream))]
    assert blocks_run(tiny, conversations, hooks, layers=[0]) == [True, True, True]
    assert seen
    assert blocks_run(tiny, conversations, [(em.site(tiny, 1), lambda stream, hook: None)], layers=[0]) == [
        True,
        True,
        False,
    ]


def test_a_pass_that_ended_leaves_nothing_behind(tiny_llama, conversations):
    before = em.residual_stream(tiny_llama, conversations).values
    kept = keeping(tiny_llama, 2)
    n_kept = len(kept.kept.streams)
    em.residual_stream(kept, conversations, layers=[0])
    assert len(kept.kept.streams) == n_kept + 1  # of the prefix; no batch has entered block 2
    assert not any(module._forward_pre_hooks for module in tiny_llama.plain.modules())
    assert torch.equal(em.residual_stream(kept, conversations).values, before)


# ---------------------------------------------------------------- keeping the stream that enters a block

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))


class Counted:
    """How often each block of a model ran."""

    def __init__(self, model):
        self.runs = [0] * model.n_layers
        self.attentions = [
            model.plain.get_submodule(f"{block.name}.{block.submodules['attn'].name}") for block in model.bridge.blocks
        ]

    def __enter__(self):
        def count(number):
            return lambda *_: self.runs.__setitem__(number, self.runs[number] + 1)

        # Below a block, hooks of somebody else would have it run in full: so the forward function is counted.
        for number, module in enumerate(self.attentions):
            module.forward = self._counting(module.forward, count(number))
        return self

    @staticmethod
    def _counting(forward, tell):
        def counted(*args, **kwargs):
            tell()
            return forward(*args, **kwargs)

        return counted

    def __exit__(self, *_):
        for module in self.attentions:
            del module.forward


def at(model, layer):
    return em.add_direction(VECTOR, [em.site(model, layer)], raw=True)


def scores(model, conversations, hooks=(), **how):
    return em.behaviour.answer_log_probs(model, conversations, hooks, **how)


class TestKeeping:
    @pytest.mark.parametrize("batch_tokens", [60, 150, 10_000])
    @pytest.mark.parametrize("layer", [0, 1])
    def test_a_resumed_pass_is_a_whole_pass(self, tiny, long_winded, conversations, layer, batch_tokens):
        kept = keeping(tiny, layer + 1, 3)
        assert kept.kept is not None
        for texts in (long_winded, conversations):
            for hooks in ((), at(tiny, layer), at(tiny, 2), em.project_out(VECTOR, [em.site(tiny, layer)]), ()):
                wanted = scores(tiny, texts, hooks, batch_tokens=batch_tokens)
                got = scores(kept, texts, hooks, batch_tokens=batch_tokens)
                torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)

    def test_gemma_with_windows_that_alternate(self, make_hf_model, make_tokenizer, conversations):
        hf_model = make_hf_model("gemma3")
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        hf_model.config.layer_types = kinds
        alternating = type(hf_model)(hf_model.config).eval()
        alternating.load_state_dict(hf_model.state_dict())
        model = HookedModel.from_hugging_face(alternating, make_tokenizer("gemma"), name="tiny-gemma3")
        assert {block.self_attn.is_sliding for block in model.plain.model.layers} == {True, False}
        kept = keeping(model, 2)
        for hooks in ((), at(model, 1), at(model, 2)):
            wanted = scores(model, conversations, hooks)
            torch.testing.assert_close(scores(kept, conversations, hooks), wanted, atol=1e-5, rtol=1e-5)

    def test_what_is_kept_is_the_stream_before_any_hook_at_that_place(self, tiny, conversations):
        kept = keeping(tiny, 2)
        scores(kept, conversations, at(tiny, 1))
        torch.testing.assert_close(scores(kept, conversations), scores(tiny, conversations), atol=1e-5, rtol=1e-5)

    def test_blocks_below_are_run_once(self, tiny, conversations):
        kept = keeping(tiny, 2)
        with Counted(tiny) as ran:
            scores(kept, conversations, at(tiny, 1), batch_tokens=10_000)
            once = list(ran.runs)
            scores(kept, conversations, at(tiny, 2), batch_tokens=10_000)
        assert once == [once[0]] * 3
        assert ran.runs == [once[0], once[0], 2 * once[0]]

    def test_a_second_untouched_pass_costs_the_head_alone(self, tiny, conversations):
        kept = keeping(tiny, 3)
        wanted = scores(kept, conversations)
        with Counted(tiny) as ran:
            assert torch.equal(scores(kept, conversations), wanted)
        assert ran.runs == [0, 0, 0]

    def test_a_hook_below_has_everything_run(self, tiny, conversations):
        kept = keeping(tiny, 2)
        scores(kept, conversations)
        for hooks in (
            at(tiny, 0),
            em.project_out(VECTOR, em.every_layer(tiny)),
            em.project_out(VECTOR, ["hook_embed"]),
            [("blocks.1.hook_attn_out", lambda stream, hook: stream * 1.5)],
        ):
            wanted = scores(tiny, conversations, hooks)
            torch.testing.assert_close(scores(kept, conversations, hooks), wanted, atol=1e-5, rtol=1e-5)

    def test_hooks_of_somebody_else_on_the_bridge_or_a_module_below_take_part(self, tiny, conversations):
        kept = keeping(tiny, 2)
        before = scores(kept, conversations)
        with tiny.hooks(fwd_hooks=at(tiny, 0)):
            changed = scores(kept, conversations)
            torch.testing.assert_close(changed, scores(tiny, conversations), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(changed, before, atol=1e-3)
        module = tiny.plain.get_submodule(tiny.bridge.blocks[0].name)
        handle = module.register_forward_hook(lambda _, __, output: output * 1.5)
        try:
            changed = scores(kept, conversations)
            torch.testing.assert_close(changed, scores(tiny, conversations), atol=1e-5, rtol=1e-5)
        finally:
            handle.remove()
        assert not torch.allclose(changed, before, atol=1e-3)
        torch.testing.assert_close(scores(kept, conversations), before, atol=1e-5, rtol=1e-5)

    def test_a_weight_that_was_changed_below_is_noticed(self, make_hf_model, make_tokenizer, conversations):
        model = HookedModel.from_hugging_face(make_hf_model("llama"), make_tokenizer("llama3"), name="tiny-llama")
        kept = keeping(model, 2)
        before = scores(kept, conversations)
        with torch.no_grad():
            model.plain.model.layers[0].mlp.down_proj.weight.mul_(2)
        after = scores(kept, conversations)
        torch.testing.assert_close(after, scores(model, conversations), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after, before, atol=1e-3)

    def test_an_adapter_above_is_switched_and_one_below_is_noticed(self, make_peft, organism_of, conversations):
        model = organism_of(make_peft(layers_to_transform=[1]))
        assert first_adapted_block(model) == 1
        for block in (1, 2):  # in the second case the adapter is below what is kept
            kept = keeping(model, block)
            for _ in range(2):
                torch.testing.assert_close(scores(kept, conversations), scores(model, conversations))
                with em.without_adapter(kept):
                    base = scores(kept, conversations)
                    torch.testing.assert_close(base, scores(model, conversations))
            assert not torch.allclose(base, scores(model, conversations), atol=1e-4)

    @pytest.mark.parametrize("site", ["resid_post", "resid_pre", "attn_out"])
    def test_what_was_read_below_is_not_read_again(self, make_peft, organism_of, conversations, site):
        model = organism_of(make_peft(layers_to_transform=[1], targets=("down_proj",)))
        kept = keeping(model, 1)
        em.residual_stream(kept, conversations, site=site)
        with em.without_adapter(kept):
            wanted = em.residual_stream(model, conversations, site=site)
            with Counted(model) as ran:
                got = em.residual_stream(kept, conversations, site=site)
        assert ran.runs[0] == 0 < ran.runs[1]
        torch.testing.assert_close(got.values, wanted.values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.norms, wanted.norms, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(
            got.values, em.residual_stream(model, conversations, site=site).values, atol=1e-4
        ) or (
            site == "attn_out"  # whose layers are before the adapter, or hardly see it
        )

    def test_another_fine_tune_of_the_same_base_goes_on_from_the_same_stream(self, make_organism, conversations):
        first, second = make_organism(1, "one"), make_organism(2, "two")
        kept = keeping(first, 1)
        scores(kept, conversations)
        like = keeping(second, 1, like=kept.kept)
        with Counted(second) as ran:
            got = scores(like, conversations)
        assert ran.runs[0] == 0 < ran.runs[1]
        torch.testing.assert_close(got, scores(second, conversations), atol=1e-5, rtol=1e-5)

    def test_of_another_base_nothing_is_taken(self, make_hf_model, make_tokenizer, conversations):
        models = [
            HookedModel.from_hugging_face(make_hf_model("llama", seed=s), make_tokenizer("llama3"), name=f"tiny-{s}")
            for s in (0, 1)
        ]
        kept = keeping(models[0], 1)
        scores(kept, conversations)
        other = keeping(models[1], 1, like=kept.kept)
        torch.testing.assert_close(scores(other, conversations), scores(models[1], conversations))

    def test_what_has_no_room_is_computed_again(self, tiny, conversations):
        kept = keeping(tiny, 2, budget=10_000)
        for hooks in ((), at(tiny, 1), ()):
            wanted = scores(tiny, conversations, hooks, batch_tokens=60)
            torch.testing.assert_close(
                scores(kept, conversations, hooks, batch_tokens=60), wanted, atol=1e-5, rtol=1e-5
            )
        assert sum(s.numel() * 4 for s in kept.kept.streams.values()) <= 10_000

    def test_where_resuming_gives_something_else_all_passes_are_whole(self, tiny, monkeypatch, conversations):
        from em_interp.activations import forward

        monkeypatch.setattr(forward, "_unpacked", lambda stream, mask: stream.new_ones(*mask.shape, stream.shape[-1]))
        kept = keeping(tiny, 2)
        assert kept.kept is None
        torch.testing.assert_close(scores(kept, conversations), scores(tiny, conversations))

    def test_nothing_stays_behind_on_the_model(self, tiny_llama, conversations):
        kept = keeping(tiny_llama, 2)
        scores(kept, conversations)

        def failing(stream, hook):
            raise KeyError("on purpose")

        with pytest.raises(KeyError):
            scores(kept, conversations, [(em.site(tiny_llama, 2), failing)])
        for block in tiny_llama.plain.model.layers:
            assert "forward" not in vars(block)
            assert not block._forward_hooks

    def test_a_bare_bridge_keeps_nothing(self, tiny_llama, conversations):
        kept = keeping(tiny_llama.bridge, 2)
        assert kept.kept is None
        torch.testing.assert_close(scores(kept, conversations), scores(tiny_llama, conversations), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.1.hook_resid_post", 2),
        ("blocks.1.hook_resid_pre", 1),
        ("blocks.1.hook_mlp_out", 1),
        ("blocks.1.attn.hook_z", 1),
        ("hook_embed", 0),
        ("ln_final.hook_normalized", 0),
    ],
)
def test_where_a_hook_first_makes_a_difference(tiny_llama, name, block):
    assert free_below(tiny_llama, [(name, None)]) == block
    assert free_below(tiny_llama, []) == 3


class TestLogitsInParts:
    """However a model gets from its body to its logits, parts are what the whole is."""

    @pytest.fixture(params=["plain", "capped", "something between", "body not called as a module"])
    def passes(self, request):
        """A model of its own, the call that runs it on a batch, and how often its body runs whole."""
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.modeling_outputs import CausalLMOutputWithPast

        kind = request.param

        class Model(LlamaForCausalLM):
            def forward(self, input_ids, logits_to_keep=0, use_cache=False, **_):
                run = self.model.forward if kind == "body not called as a module" else self.model
                states = run(input_ids=input_ids).last_hidden_state
                kept = states[:, logits_to_keep] if isinstance(logits_to_keep, torch.Tensor) else states
                logits = self.lm_head(2 * kept if kind == "something between" else kept)
                return CausalLMOutputWithPast(logits=5 * (logits / 5).tanh() if kind == "capped" else logits)

        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        torch.manual_seed(0)
        model = Model(LlamaConfig(**shape, vocab_size=50)).eval()
        ids = torch.randint(50, (3, 11), generator=torch.Generator().manual_seed(1))
        return model, partial(model, input_ids=ids), kind

    @torch.no_grad()
    def test_they_are_the_logits_of_the_whole(self, passes):
        model, run, kind = passes
        ran = []
        model.model.layers[0].register_forward_hook(lambda *_: ran.append(1))
        rows, tokens = zip(*[(row, token) for row in range(3) for token in range(0, 11, 2)], strict=True)
        wanted = run().logits[list(rows), list(tokens)]
        ran.clear()
        got = list(logits_in_parts(model, run, list(rows), list(tokens), 5))
        assert [len(part) for part in got] == [5, 5, 5, 3]
        torch.testing.assert_close(torch.cat(got), wanted)
        assert len(ran) == (1 if kind in ("plain", "capped") else 4)
        assert "forward" not in vars(model.model)
