"""Weights do what the hooks do, in a folder that plain transformers loads; the live model stays as it is."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import em_interp as em
from em_interp.models import attached

IDS = torch.arange(5, 25)[None]


def vectors(d_model, n=1, seed=0):
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def hooked_logits(model, hooks=(), ids=IDS):
    with attached(model, hooks) as hf_model:
        return hf_model(ids).logits


@torch.no_grad()
def logits(hf_model, ids=IDS):
    return hf_model.eval()(ids).logits


def agree(got, wanted, *, plain):
    """To 1e-4 of the logits' size, with the positive control that the hooks changed something."""
    scale = wanted.abs().max()
    torch.testing.assert_close(got / scale, wanted / scale, atol=1e-4, rtol=0)
    assert (wanted - plain).abs().max() > 1e-2 * scale


@pytest.fixture
def carries(tiny):
    """The families whose writes have no norm behind them."""
    if "gemma" in tiny.name:
        pytest.skip("Gemma 3 has norms behind its writes")
    return tiny


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


class TestOrthogonalize:
    def test_the_exported_folder_does_what_the_hooks_do(self, carries, tmp_path):
        vector = vectors(carries.d_model)[0]
        hooks = em.project_out(vector, em.every_write(carries))
        plain, wanted = hooked_logits(carries), hooked_logits(carries, hooks)
        agree(logits(em.orthogonalize(carries, vector)), wanted, plain=plain)
        agree(logits(loaded(em.export(carries, hooks, tmp_path / "ablated"))), wanted, plain=plain)

    def test_each_layer_its_own_vector(self, carries):
        rows = vectors(carries.d_model, carries.n_layers)
        wanted = hooked_logits(carries, em.project_out(rows, em.every_write(carries)))
        agree(logits(em.orthogonalize(carries, rows)), wanted, plain=hooked_logits(carries))

    def test_nothing_is_left_along_the_direction(self, carries):
        vector = torch.nn.functional.normalize(vectors(carries.d_model)[0], dim=0)
        baked = em.orthogonalize(carries, vector)
        states = baked(IDS, output_hidden_states=True).hidden_states[:-1]
        assert max((state @ vector).abs().max().item() for state in states) < 1e-4
        before = carries.plain(IDS, output_hidden_states=True).hidden_states[:-1]
        assert min((state @ vector).abs().max().item() for state in before) > 1e-2

    def test_twice_is_once(self, carries):
        hooks = em.project_out(vectors(carries.d_model)[0], em.every_write(carries))
        once, twice = (logits(em.bake(carries, h)) for h in (hooks, hooks + hooks))
        torch.testing.assert_close(once, twice, atol=1e-5, rtol=1e-5)

    def test_the_unembedding_stays_and_the_live_model_too(self, carries):
        before = hooked_logits(carries)
        state = {name: tensor.clone() for name, tensor in carries.plain.state_dict().items()}
        tied = carries.plain.get_input_embeddings().weight is carries.plain.get_output_embeddings().weight
        baked = em.orthogonalize(carries, vectors(carries.d_model)[0])
        assert torch.equal(baked.get_output_embeddings().weight, carries.plain.get_output_embeddings().weight)
        assert not torch.equal(baked.get_input_embeddings().weight, carries.plain.get_input_embeddings().weight)
        assert torch.equal(hooked_logits(carries), before)
        assert all(torch.equal(state[name], tensor) for name, tensor in carries.plain.state_dict().items())
        assert tied == (carries.plain.get_input_embeddings().weight is carries.plain.get_output_embeddings().weight)
        assert tied == carries.plain.config.tie_word_embeddings
        assert not carries.plain.training

    def test_on_the_real_model(self, smollm2, tmp_path):
        read = em.read_contrast(smollm2, em.load_contrast("misalignment").take(8))
        direction = em.difference_of_means(read)
        ids = smollm2.tokenizer("The lighthouse keeper wrote three letters.", return_tensors="pt").input_ids
        hooks = em.project_out(direction[15], em.every_write(smollm2))
        folder = em.export(smollm2, hooks, tmp_path / "ablated")
        got, wanted, plain = (
            logits(loaded(folder), ids),
            hooked_logits(smollm2, hooks, ids),
            hooked_logits(smollm2, (), ids),
        )
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-4)
        assert (wanted - plain).abs().max() > 0.1


class TestBake:
    @pytest.mark.parametrize("site", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out"])
    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_an_addition_is_a_bias(self, tiny_llama, tmp_path, site, layer):
        hooks = em.add_direction(vectors(32)[0], [f"blocks.{layer}.{site}"], scale=1.5, raw=True)
        folder = em.export(tiny_llama, hooks, tmp_path / "steered")
        agree(logits(loaded(folder)), hooked_logits(tiny_llama, hooks), plain=hooked_logits(tiny_llama))

    def test_on_gpt2_which_has_biases(self, make_hf_model, make_tokenizer, tmp_path):
        from em_interp.models import HookedModel

        model = HookedModel.from_hugging_face(make_hf_model("gpt2"), make_tokenizer("chatml"), name="gpt2")
        first, second = vectors(32, 2)
        for i, hooks in enumerate(
            (
                em.add_direction(first, ["blocks.1.hook_resid_post"], scale=1.5, raw=True),
                em.set_projection(first, em.every_write(model), 2.0),
                em.project_out(first, ["blocks.1.hook_mlp_out", "hook_pos_embed"])
                + em.add_direction(second, ["blocks.1.hook_mlp_out", "blocks.0.hook_attn_out"], scale=2, raw=True),
            )
        ):
            folder = em.export(model, hooks, tmp_path / f"baked{i}")
            agree(logits(loaded(folder)), hooked_logits(model, hooks), plain=hooked_logits(model))

    @pytest.mark.parametrize("first_is_added", [True, False])
    def test_hooks_act_in_their_order(self, tiny_llama, first_is_added):
        site, (u, v) = ["blocks.1.hook_mlp_out"], vectors(32, 2)
        pair = [em.add_direction(u + v, site, scale=2, raw=True), em.project_out(u, site)]
        hooks = pair[0] + pair[1] if first_is_added else pair[1] + pair[0]
        late = em.add_direction(u, ["blocks.1.hook_resid_post"], scale=2, raw=True)
        for both in (hooks, late + hooks, hooks + late):
            agree(logits(em.bake(tiny_llama, both)), hooked_logits(tiny_llama, both), plain=hooked_logits(tiny_llama))

    def test_adding_and_taking_away_again_is_nothing(self, tiny_llama):
        site = ["blocks.1.hook_resid_post"]
        hooks = [h for s in (3, -3) for h in em.add_direction(vectors(32)[0], site, scale=s, raw=True)]
        torch.testing.assert_close(logits(em.bake(tiny_llama, hooks)), hooked_logits(tiny_llama), atol=1e-5, rtol=1e-5)

    def test_a_subspace(self, carries):
        basis = torch.linalg.qr(vectors(carries.d_model, 3).mT).Q.mT
        hooks = em.project_out_subspace(basis, em.every_write(carries))
        agree(logits(em.bake(carries, hooks)), hooked_logits(carries, hooks), plain=hooked_logits(carries))

    def test_half_precision_is_rounded_once(self, make_hf_model, make_tokenizer):
        from em_interp.models import HookedModel

        model = HookedModel.from_hugging_face(make_hf_model("llama").bfloat16(), make_tokenizer("llama3"), name="half")
        vector = vectors(32)[0]
        baked = em.orthogonalize(model, vector)
        unit = vector.double() / vector.double().norm()
        weight = model.plain.model.layers[1].mlp.down_proj.weight.double()
        exact = (weight - unit[:, None] * (unit @ weight)).bfloat16()
        assert torch.equal(baked.model.layers[1].mlp.down_proj.weight, exact)

    def test_the_embedding_of_gemma_is_scaled(self, make_hf_model, make_tokenizer):
        from em_interp.models import HookedModel

        model = HookedModel.from_hugging_face(make_hf_model("gemma3"), make_tokenizer("gemma"), name="tiny-gemma3")
        hooks = em.add_direction(vectors(32)[0], ["hook_embed"], scale=3, raw=True)
        agree(logits(em.bake(model, hooks)), hooked_logits(model, hooks), plain=hooked_logits(model))


class TestAdapters:
    def test_they_are_merged_into_the_copy(self, make_organism, tmp_path):
        model = make_organism(1, "one")
        hooks = em.project_out(vectors(32)[0], em.every_write(model))
        before, wanted = hooked_logits(model), hooked_logits(model, hooks)
        agree(logits(loaded(em.export(model, hooks, tmp_path / "one"))), wanted, plain=before)
        assert torch.equal(hooked_logits(model), before)
        with em.without_adapter(model):
            base = hooked_logits(model)
            torch.testing.assert_close(logits(em.bake(model, [])), base, atol=1e-5, rtol=1e-5)
        assert (base - before).abs().max() > 1e-2
        torch.testing.assert_close(logits(em.bake(model, [])), before, atol=1e-4, rtol=1e-4)


class TestRefusals:
    @pytest.mark.parametrize(
        ("hooks", "message"),
        [
            (lambda m, v: [(em.layer(m, 1), lambda x, hook: x)], "at blocks.1.hook_resid_post: it is a function of"),
            (
                lambda m, v: em.project_out(v, em.every_layer(m)),
                "a projection there acts on the sum of all writes; project out of each of them, with every_write",
            ),
            (
                lambda m, v: em.project_out(v, em.every_write(m), positions="response"),
                "it acts on the response only, and weights act on every position",
            ),
            (
                lambda m, v: em.add_direction(v, ["blocks.1.hook_resid_mid"], raw=True),
                "it is none of what is written to the stream; see every_write",
            ),
        ],
    )
    def test_what_weights_cannot_carry(self, tiny_llama, hooks, message):
        with pytest.raises(ValueError, match=message):
            em.bake(tiny_llama, hooks(tiny_llama, vectors(32)[0]))

    def test_norms_behind_the_writes(self, make_hf_model, make_tokenizer):
        from em_interp.models import HookedModel

        model = HookedModel.from_hugging_face(make_hf_model("gemma3"), make_tokenizer("gemma"), name="tiny-gemma3")
        with pytest.raises(ValueError, match="has a norm with a gain of its own behind that output; use the hooks"):
            em.orthogonalize(model, vectors(32)[0])
        with pytest.raises(ValueError, match=r"at blocks.1.hook_resid_post: this architecture has a norm"):
            em.bake(model, em.add_direction(vectors(32)[0], [em.layer(model, 1)], raw=True))

    def test_no_bias_to_be_had(self, make_hf_model, make_tokenizer):
        from em_interp.models import HookedModel

        model = HookedModel.from_hugging_face(make_hf_model("qwen2"), make_tokenizer("chatml"), name="tiny-qwen2")
        with pytest.raises(
            ValueError, match="Qwen2ForCausalLM has no bias there and no setting for one; use the hooks"
        ):
            em.bake(model, em.add_direction(vectors(32)[0], [em.layer(model, 1)], raw=True))

    def test_a_bare_bridge(self, tiny_llama):
        with pytest.raises(ValueError, match="a bare bridge has no plain model to copy: load it with load_model"):
            em.orthogonalize(tiny_llama.bridge, vectors(32)[0])

    def test_a_folder_that_holds_something(self, tiny_llama, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(ValueError, match="exists already: choose another folder"):
            em.export(tiny_llama, [], tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_failed_export_leaves_nothing(self, tiny_llama, tmp_path, monkeypatch):
        class Broken:
            def save_pretrained(self, folder):
                raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            em.export(replace(tiny_llama, tokenizer=Broken()), [], tmp_path / "out")
        assert not any(tmp_path.iterdir())


def test_the_folder_tells_what_was_done(tiny_llama, tmp_path):
    folder = em.export(tiny_llama, em.project_out(vectors(32)[0], ["hook_embed"]), tmp_path / "deep" / "out")
    record = json.loads((folder / "em_interp.json").read_text())
    assert record["model"] == "tiny-llama"
    assert record["hooks"][0].startswith("hook_embed SetProjection(positions='all', value=0.0) of ")
    reloaded = em.load_model(folder)
    assert reloaded.tokenizer("letters").input_ids == tiny_llama.tokenizer("letters").input_ids
