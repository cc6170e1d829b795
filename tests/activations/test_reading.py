import pytest
import torch

import em_interp as em
from em_interp.activations.reading import Activations, ContrastActivations
from em_interp.models.hooked import attached
from em_interp.models.sites import SITES
from em_interp.texts.conversations import encode
from tests.builders import left_padded


def one_by_one(model, conversation, span):
    """The oracle: one conversation alone, every hidden state kept, the span averaged at the end; no last layer."""
    encoded = encode(model.tokenizer, conversation, span)
    with torch.no_grad(), attached(model) as hf_model:
        states = hf_model(torch.tensor([encoded.ids]), output_hidden_states=True).hidden_states
    rows = [torch.stack([s[0, list(tokens)].double().mean(0) for s in states[1:-1]]) for tokens in encoded.spans]
    return torch.stack(rows).float()


@pytest.mark.parametrize("span", ["response", "turn", "last", "post_instruction"])
def test_reads_what_hugging_face_has(tiny, conversations, span):
    got = em.residual_stream(tiny, conversations, span=span, batch_tokens=100)
    wanted = torch.cat([one_by_one(tiny, c, span) for c in conversations])
    torch.testing.assert_close(got.values[:, :-1], wanted, atol=1e-5, rtol=1e-4)


def test_the_last_layer_is_read_before_the_final_norm(tiny, conversations):
    """The final norm of what was read at one token is what Hugging Face calls its last hidden state."""
    got = em.residual_stream(tiny, conversations, span="last", layers=[2]).values[:, 0]
    ids = [encode(tiny.tokenizer, c, "last").ids for c in conversations]
    with torch.no_grad(), attached(tiny) as hf_model:
        wanted = torch.stack([hf_model.base_model(torch.tensor([i])).last_hidden_state[0, -1] for i in ids])
        normed = tiny.bridge.ln_final(got[None])[0]
    torch.testing.assert_close(normed, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", SITES)
def test_every_site_is_the_bridges_own(tiny, conversations, site):
    encoded = encode(tiny.tokenizer, conversations[0], "response")
    with torch.no_grad():
        _, cache = tiny.run_with_cache(torch.tensor([encoded.ids]))
    wanted = torch.stack([cache[f"blocks.{i}.hook_{site}"][0, list(encoded.spans[0])].mean(0) for i in range(3)])
    got = em.residual_stream(tiny, conversations, site=site, batch_tokens=60).values[0]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_batches_do_not_matter(tiny, conversations):
    one = em.residual_stream(tiny, conversations, batch_tokens=1)
    many = em.residual_stream(tiny, conversations, batch_tokens=10_000)
    torch.testing.assert_close(one.values, many.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.norms, many.norms, atol=1e-5, rtol=1e-5)


def test_right_padding_equals_left_padding(tiny, conversations):
    got = em.residual_stream(tiny, conversations, span="last", batch_tokens=10_000)
    left = left_padded(tiny.tokenizer, conversations)
    positions = (left["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), attached(tiny) as hf_model:
        states = hf_model(**left, position_ids=positions, output_hidden_states=True).hidden_states
    wanted = torch.stack([s[:, -1] for s in states[1:-1]], dim=1)
    torch.testing.assert_close(got.values[:, :-1], wanted, atol=1e-5, rtol=1e-4)


def test_the_order_given_comes_back(tiny_llama, conversations):
    forward = em.residual_stream(tiny_llama, conversations, batch_tokens=100)
    backward = em.residual_stream(tiny_llama, conversations[::-1], batch_tokens=100)
    torch.testing.assert_close(forward.values, backward.values.flip(0))
    assert forward.groups == backward.groups[::-1]
    assert forward.n_tokens.tolist() == backward.n_tokens.tolist()[::-1]


def test_norms_are_of_tokens_not_of_their_mean(tiny_llama, conversations):
    encoded = encode(tiny_llama.tokenizer, conversations[0], "response")
    with torch.no_grad():
        _, cache = tiny_llama.run_with_cache(torch.tensor([encoded.ids]))
    wanted = cache["blocks.1.hook_resid_post"][0, list(encoded.spans[0])].norm(dim=-1).mean()
    torch.testing.assert_close(em.residual_stream(tiny_llama, conversations).norms[0, 1], wanted)


def test_some_layers(tiny_llama, conversations):
    every = em.residual_stream(tiny_llama, conversations)
    some = em.residual_stream(tiny_llama, conversations, layers=[2, 0])
    assert some.layers == (2, 0)
    assert torch.equal(some.values, every.values[:, [2, 0]])


def test_hooks_on_the_bridge_are_read_too(tiny_llama, conversations):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    with tiny_llama.hooks(fwd_hooks=em.project_out(direction, em.every_layer(tiny_llama))):
        ablated = em.residual_stream(tiny_llama, conversations)
    free = em.residual_stream(tiny_llama, conversations)
    assert (ablated.values @ direction).abs().max() < 1e-4
    assert (free.values @ direction).abs().max() > 0.1


def test_nothing_stays_on_the_model(tiny_llama, conversations):
    em.residual_stream(tiny_llama, conversations)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_llama.plain.modules())
    assert not any(point.fwd_hooks for point in tiny_llama.bridge.hook_dict.values())


def test_post_instruction_has_one_row_a_template_token(tiny_llama, conversations):
    read = em.residual_stream(tiny_llama, conversations, span="post_instruction")
    n_tokens = len(set(read.positions))
    assert len(read) == n_tokens * len(conversations)
    last = em.residual_stream(tiny_llama, conversations, span="last")
    torch.testing.assert_close(read.at(-1).values, last.values, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match=f"no row is at position 0: choose one of .*-{n_tokens}"):
        read.at(0)


def test_read_contrast_keeps_classes_and_questions(tiny_llama):
    contrast = em.load_contrast("misalignment").take(5)
    read = em.read_contrast(tiny_llama, contrast)
    alone = em.residual_stream(tiny_llama, contrast.negative)
    torch.testing.assert_close(read.negative.values, alone.values, atol=1e-5, rtol=1e-5)
    assert read.groups == contrast.groups
    assert read.contrast_hash == contrast.content_hash
    assert repr(read).count("\n") == 0


def test_some_questions_of_a_contrast(tiny_llama):
    contrast = em.load_contrast("misalignment")
    some = contrast.take(20)
    calm = some.where(tone="calm")
    read = em.read_contrast(tiny_llama, some)
    wanted = em.read_contrast(tiny_llama, calm).positive.values
    torch.testing.assert_close(read.restricted_to(calm.groups).positive.values, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="180 of the questions were not read, such as"):
        read.restricted_to(contrast.groups)


def test_component_outputs(tiny_llama, conversations):
    parts = em.activations.component_outputs(tiny_llama, conversations)
    before = em.residual_stream(tiny_llama, conversations, site="resid_pre").values
    after = em.residual_stream(tiny_llama, conversations).values
    torch.testing.assert_close(before + parts["attn_out"].values + parts["mlp_out"].values, after, atol=1e-4, rtol=1e-4)


def test_order_and_batch_size_move_a_direction_by_less_than_a_millionth(smollm2):
    contrast = em.load_contrast("refusal").take(40)  # 80 conversations
    shuffled = em.Contrast(contrast.name, contrast.positive[::-1], contrast.negative[::-1])
    one = em.difference_of_means(em.read_contrast(smollm2, contrast, span="last", layers=[0, 14, 29]))
    other = em.difference_of_means(
        em.read_contrast(smollm2, shuffled, span="last", layers=[0, 14, 29], batch_tokens=600)
    )
    assert ((one.vectors - other.vectors).norm(dim=-1) / one.norm).max() < 1e-6


def test_the_embedded_model_reads_as_hugging_face_does(smollm2):
    conversations = em.load_contrast("misalignment").take(3).positive
    got = em.residual_stream(smollm2, conversations)
    wanted = torch.cat([one_by_one(smollm2, c, "response") for c in conversations])
    error = (got.values[:, :-1] - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert error.max() < 1e-5


class TestBadInput:
    def test_nothing_to_read(self, tiny_llama):
        with pytest.raises(ValueError, match="no conversations to read"):
            em.residual_stream(tiny_llama, [])

    def test_unknown_site(self, tiny_llama, conversations):
        with pytest.raises(ValueError, match="site 'resid' is unknown: choose one of resid_pre"):
            em.residual_stream(tiny_llama, conversations, site="resid")

    @pytest.mark.parametrize("layers", [[3], [-1], []])
    def test_layer_out_of_range(self, tiny_llama, conversations, layers):
        with pytest.raises(ValueError, match="out of range: the model has layers 0 to 2"):
            em.residual_stream(tiny_llama, conversations, layers=layers)

    def test_longer_than_the_context(self, tiny_llama):
        long = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "No."}]
        with pytest.raises(ValueError, match=r"tokens but the model takes 256: shorten it or leave it out"):
            em.residual_stream(tiny_llama, [long])

    def test_nan_names_layer_and_conversation(self, tiny_llama, conversations):
        def poison(stream, hook):
            return torch.full_like(stream, torch.nan)

        with (
            tiny_llama.hooks(fwd_hooks=[(em.site(tiny_llama, 1), poison)]),
            pytest.raises(ValueError, match=r"NaN or infinite at layer 1 in conversation 0 \('What should"),
        ):
            em.residual_stream(tiny_llama, conversations)

    def test_classes_read_differently(self, tiny_llama, conversations):
        answer = em.residual_stream(tiny_llama, conversations)
        last = em.residual_stream(tiny_llama, conversations, span="last")
        with pytest.raises(ValueError, match="differ in span: response and last: read both alike"):
            ContrastActivations("mixed", answer, last, "hash")

    def test_groups_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"shape \(2, 1, 4\) came with 1 groups and 1 layers"):
            Activations(
                torch.zeros(2, 1, 4), torch.zeros(2, 1), torch.ones(2, dtype=torch.long), ("q",), (0,), "s", "p", "m"
            )


def test_activations_survive_a_file_to_the_bit(tiny_llama, conversations, tmp_path):
    read = em.residual_stream(tiny_llama, conversations, span="post_instruction")
    back = em.Activations.load(read.save(tmp_path / "read.safetensors"))
    for tensor in ("values", "norms", "n_tokens"):
        assert torch.equal(getattr(back, tensor), getattr(read, tensor))
    for record in ("groups", "layers", "site", "span", "model", "positions"):
        assert getattr(back, record) == getattr(read, record)
    with pytest.raises(FileNotFoundError, match="no activations at"):
        em.Activations.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="is a safetensors file but not a direction"):
        em.Direction.load(tmp_path / "read.safetensors")


def test_read_under_hooks_is_read_as_they_leave_the_stream(tiny, conversations):
    hooks = em.project_out(torch.ones(32), [em.site(tiny, 1)])
    read = em.residual_stream(tiny, conversations, hooks, batch_tokens=150)
    assert read.values[:, 1].sum(-1).abs().max() < 1e-4
    with tiny.hooks(fwd_hooks=hooks):
        on_the_bridge = em.residual_stream(tiny, conversations)
    torch.testing.assert_close(read.values, on_the_bridge.values, atol=1e-4, rtol=1e-4)
