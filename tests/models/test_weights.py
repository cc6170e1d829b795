"""Weights against hooks: the same logits, from the copy and from its folder, and the live model as it was."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import em_interp as em
from em_interp.interventions import project_out_subspace, set_projection
from em_interp.models import weights
from em_interp.models.hooked import HookedModel, attached
from em_interp.models.weights import export, merge_hooks, orthogonalize

POST, MID, ATTN, MLP = (f"blocks.1.hook_{place}" for place in ("resid_post", "resid_mid", "attn_out", "mlp_out"))
IDS = torch.randint(4, 400, (2, 9), generator=torch.Generator().manual_seed(1))


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


V, W = draw(2, 32), draw(3, 32)


@torch.no_grad()
def logits(hf_model):
    return hf_model(IDS).logits


def under(model, hooks):
    with attached(model, hooks) as live:
        return logits(live)


def same(got, wanted):
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def plain(model: HookedModel) -> Any:
    return model.plain


def state(model):
    return {name: tensor.clone() for name, tensor in plain(model).state_dict().items()}


def equal(these, those):
    return these.keys() == those.keys() and all(torch.equal(these[name], those[name]) for name in these)


def family(model) -> str:
    return model.name.removeprefix("tiny-")


@pytest.fixture(scope="module")
def make(make_hf_model, make_tokenizer):
    def make(name):
        return HookedModel.from_hugging_face(make_hf_model(name), make_tokenizer("chatml"), name=f"tiny-{name}")

    return make


@pytest.fixture(scope="module")
def gpt2(make):
    return make("gpt2")


@pytest.fixture(scope="module")
def qwen2(make):
    return make("qwen2")


@pytest.fixture(scope="module")
def gemma3(make):
    return make("gemma3")


class TestOrthogonalize:
    @pytest.mark.parametrize("direction", [V, draw(4, 3, 32)], ids=["one vector", "one a layer"])
    def test_equals_hooks_in_memory_and_from_its_folder(self, tiny, direction, tmp_path):
        hooks = em.project_out(direction, em.every_write(tiny))
        if family(tiny) == "gemma3":
            with pytest.raises(ValueError, match="comes out of a norm with weights of its own"):
                orthogonalize(tiny, direction)
            return
        wanted = under(tiny, hooks)
        same(logits(orthogonalize(tiny, direction)), wanted)
        same(logits(AutoModelForCausalLM.from_pretrained(export(tiny, hooks, tmp_path / "ablated"))), wanted)
        assert (under(tiny, []) - wanted).abs().max() > 1e-2

    def test_it_is_a_projector_on_each_writing_weight_and_nothing_else(self, gpt2):
        projector = torch.eye(32) - torch.outer(V, V) / V.dot(V)
        writes = ("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "wte", "wpe")
        before, after = state(gpt2), orthogonalize(gpt2, V).state_dict()
        for name, tensor in before.items():
            if any(write in name for write in writes):
                torch.testing.assert_close(after[name], tensor @ projector)
                assert "bias" in name or not torch.equal(after[name], tensor)
            else:
                assert torch.equal(after[name], tensor), name

    def test_biases_are_orthogonalised(self, make_hf_model, make_tokenizer):
        hf_model = make_hf_model("gpt2")
        for name, parameter in hf_model.named_parameters():
            if name.endswith("c_proj.bias"):
                parameter.data.copy_(W)
        model = HookedModel.from_hugging_face(hf_model, make_tokenizer("chatml"), name="tiny-gpt2")
        same(logits(orthogonalize(model, V)), under(model, em.project_out(V, em.every_write(model))))

    def test_twice_is_once(self, tiny_llama):
        once = orthogonalize(tiny_llama, V).state_dict()
        hooks = em.project_out(V, em.every_write(tiny_llama))
        twice = merge_hooks(tiny_llama, hooks + hooks).state_dict()
        for name in once:
            torch.testing.assert_close(twice[name], once[name], atol=1e-6, rtol=0)

    def test_a_direction_of_layers_gives_each_write_its_own(self, tiny_llama):
        vectors = draw(5, 3, 32)
        baked = orthogonalize(tiny_llama, vectors)
        for number, block in enumerate(baked.model.layers):
            assert (vectors[number] @ block.mlp.down_proj.weight).abs().max() < 1e-5
            assert (vectors[(number + 1) % 3] @ block.mlp.down_proj.weight).abs().max() > 1e-2
        assert (baked.model.embed_tokens.weight @ vectors[0]).abs().max() < 1e-5

    def test_the_embedded_model(self, smollm2, tmp_path):
        vector = draw(6, smollm2.d_model)
        hooks = em.project_out(vector, em.every_write(smollm2))
        before, wanted = under(smollm2, []), under(smollm2, hooks)
        folder = export(smollm2, hooks, tmp_path / "ablated")
        got = logits(AutoModelForCausalLM.from_pretrained(folder))
        assert (got - wanted).norm() < 1e-5 * wanted.norm()
        assert (got - wanted).abs().max() < 2e-4  # logits of some 25: five decimal places
        assert (before - wanted).abs().max() > 0.1
        assert torch.equal(under(smollm2, []), before)
        steered = em.add_direction(vector, [em.site(smollm2, 15)], residual_norm=30)
        difference = logits(merge_hooks(smollm2, steered)) - under(smollm2, steered)
        assert difference.norm() < 1e-5 * wanted.norm()


class TestLiveModel:
    def test_it_is_untouched_and_shares_nothing(self, tiny):
        before, said = state(tiny), under(tiny, [])
        head, table = plain(tiny).get_output_embeddings().weight, plain(tiny).get_input_embeddings().weight
        tied, config = head is table, plain(tiny).config.to_dict()
        baked = merge_hooks(tiny, set_projection(V, ["hook_embed"], 2.0))
        for parameter in baked.parameters():
            parameter.data.zero_()
        assert equal(state(tiny), before)
        assert torch.equal(under(tiny, []), said)
        assert (plain(tiny).get_output_embeddings().weight is plain(tiny).get_input_embeddings().weight) == tied
        assert plain(tiny).config.to_dict() == config
        assert tied == (family(tiny) in ("gpt2", "gemma3"))

    def test_the_unembedding_is_untied_and_stays_what_it_was(self, gpt2, tmp_path):
        hooks, table = em.project_out(V, ["hook_embed"]), plain(gpt2).transformer.wte.weight
        assert not merge_hooks(gpt2, hooks).all_tied_weights_keys
        baked: Any = AutoModelForCausalLM.from_pretrained(export(gpt2, hooks, tmp_path / "untied"))
        assert torch.equal(baked.lm_head.weight, table)
        assert not torch.equal(baked.transformer.wte.weight, table)
        assert baked.config.tie_word_embeddings is False

    def test_it_stays_tied_where_the_embedding_is_not_edited(self, gpt2, tmp_path):
        for hooks in ([], em.project_out(V, [MLP, "hook_pos_embed"])):
            baked = merge_hooks(gpt2, hooks)
            assert baked.lm_head.weight is baked.transformer.wte.weight
            assert baked.config.tie_word_embeddings


class TestBake:
    def test_the_embedding_takes_any_intervention_in_every_family(self, tiny):
        basis = torch.linalg.qr(torch.stack([V, W]).mT).Q.mT
        table = ["hook_embed"]
        for hooks in (
            set_projection(V, table, 3.0),
            em.add_direction(V, table, raw=True) + project_out_subspace(basis, table),
            em.add_direction(V, ["blocks.0.hook_resid_pre"], raw=True),
        ):
            same(logits(merge_hooks(tiny, hooks)), under(tiny, hooks))
            assert (under(tiny, hooks) - under(tiny, [])).abs().max() > 1e-2

    @pytest.mark.parametrize(
        "site", [POST, ATTN, MLP, "blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre", "hook_embed"]
    )
    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_additions_go_where_the_hook_puts_them(self, name, site, tiny_llama, gpt2, tmp_path):
        model = {"llama": tiny_llama, "gpt2": gpt2}[name]
        hooks = em.add_direction(V, [site], raw=True, scale=-2)
        wanted = under(model, hooks)
        same(logits(AutoModelForCausalLM.from_pretrained(export(model, hooks, tmp_path / "steered"))), wanted)
        assert (under(model, []) - wanted).abs().max() > 1e-2

    def test_positional_embeddings_take_them_too(self, gpt2):
        hooks = set_projection(V, ["hook_pos_embed"], 3.0) + em.add_direction(W, ["hook_pos_embed"], raw=True)
        same(logits(merge_hooks(gpt2, hooks)), under(gpt2, hooks))
        assert (under(gpt2, hooks) - under(gpt2, [])).abs().max() > 1e-2

    def test_llama_is_given_biases_that_are_zero_elsewhere(self, tiny_llama):
        baked = merge_hooks(tiny_llama, em.add_direction(V, [POST], raw=True))
        biases = {name: bias for name, bias in baked.named_parameters() if name.endswith("bias")}
        assert baked.config.mlp_bias is True
        assert baked.config.attention_bias is False
        torch.testing.assert_close(biases.pop("model.layers.1.mlp.down_proj.bias"), V, check_device=False)
        assert len(biases) == 3 * 3 - 1
        assert not any(bias.any() for bias in biases.values())

    @pytest.mark.parametrize("site", [ATTN, MLP])
    def test_a_projection_is_set_in_a_bias(self, tiny_llama, site):
        hooks = set_projection(V, [site], 3.0)
        baked = merge_hooks(tiny_llama, hooks)
        same(logits(baked), under(tiny_llama, hooks))
        assert (baked.config.attention_bias, baked.config.mlp_bias) == (site == ATTN, site == MLP)

    def test_hooks_at_one_site_act_in_their_order(self, tiny_llama):
        first, then = em.add_direction(V, [MLP], raw=True, scale=3), em.project_out(V + W, [MLP])
        there, back = under(tiny_llama, first + then), under(tiny_llama, then + first)
        same(logits(merge_hooks(tiny_llama, first + then)), there)
        same(logits(merge_hooks(tiny_llama, then + first)), back)
        assert (there - back).abs().max() > 1e-2

    def test_an_output_is_edited_before_it_goes_into_the_stream(self, tiny_llama):
        hooks = em.add_direction(V, [POST], raw=True, scale=3) + em.project_out(V, [MLP])
        same(logits(merge_hooks(tiny_llama, hooks)), under(tiny_llama, hooks))
        assert (under(tiny_llama, hooks) - under(tiny_llama, hooks[1:])).abs().max() > 1e-2

    def test_plus_and_minus_is_nothing(self, tiny):
        def to_and_fro(site):
            return em.add_direction(V, [site], raw=True) + em.add_direction(V, [site], raw=True, scale=-1)

        same(logits(merge_hooks(tiny, to_and_fro("hook_embed"))), under(tiny, []))
        if family(tiny) != "gemma3":  # whose blocks take no addition at all
            assert equal(merge_hooks(tiny, to_and_fro(POST)).state_dict(), state(tiny))

    def test_half_precision_is_rounded_once(self, make_hf_model, make_tokenizer):
        model = HookedModel.from_hugging_face(
            make_hf_model("llama").bfloat16(), make_tokenizer("llama3"), name="tiny-llama"
        )
        baked = orthogonalize(model, V)
        assert {parameter.dtype for parameter in baked.parameters()} == {torch.bfloat16}
        unit = V.double() / V.double().norm()
        for block, was in zip(baked.model.layers, plain(model).model.layers, strict=True):
            weight = was.mlp.down_proj.weight.double()
            exact = weight - torch.outer(unit, unit @ weight)
            error = (block.mlp.down_proj.weight.double() - exact).abs()
            assert (error <= exact.abs() * 2**-8 + 1e-6).all()


class TestAdapters:
    def test_an_adapter_is_merged_in_the_copy_only(self, make_organism, tmp_path):
        model = make_organism(3, "fine")
        hooks = em.project_out(V, em.every_write(model))
        before, said, wanted = state(model), under(model, []), under(model, hooks)
        baked = AutoModelForCausalLM.from_pretrained(export(model, hooks, tmp_path / "organism"))
        same(logits(baked), wanted)
        assert not any("lora" in name or "base_layer" in name for name in baked.state_dict())
        assert equal(state(model), before)
        assert torch.equal(under(model, []), said)
        with em.without_adapter(model):
            base = under(model, [])
            same(logits(merge_hooks(model, [])), base)
            assert (base - said).abs().max() > 1e-2
        assert torch.equal(under(model, []), said)

    def test_the_record_names_the_adapter_only_where_it_takes_part(self, make_organism, tmp_path):
        model = make_organism(3, "fine")
        export(model, [], tmp_path / "tuned")
        with em.without_adapter(model):
            export(model, [], tmp_path / "base")
        names = [json.loads((tmp_path / f / "em_interp.json").read_text())["model"] for f in ("tuned", "base")]
        assert names == ["tiny-llama+fine#0", "tiny-llama"]


class TestBareBridge:
    def test_a_plain_model_is_had_from_it(self, tiny, tmp_path):
        hooks = em.add_direction(V, ["hook_embed"], raw=True)
        if family(tiny) != "gemma3":
            hooks = hooks + em.project_out(W, em.every_write(tiny))
        generator = torch.get_rng_state()
        folder = export(tiny.bridge, hooks, tmp_path / "bare")
        assert torch.equal(torch.get_rng_state(), generator)
        same(logits(AutoModelForCausalLM.from_pretrained(folder)), under(tiny.bridge, hooks))

    def test_one_with_an_unmerged_adapter_is_refused(self, make_organism):
        with pytest.raises(ValueError, match=r"does not hand over model\.layers\.1\.mlp\.down_proj.*load_model"):
            merge_hooks(make_organism(3, "fine").bridge, [])

    def test_one_without_a_tokenizer_is_baked_but_not_exported(self, tiny_llama, tmp_path):
        bare = HookedModel(tiny_llama.bridge, None, None, "tiny-llama")
        same(logits(merge_hooks(bare, [])), under(tiny_llama, []))
        with pytest.raises(ValueError, match="has no tokenizer"):
            export(bare, [], tmp_path / "bare")


class TestRefused:
    @pytest.mark.parametrize(
        ("hooks", "message"),
        [
            (em.project_out(V, [POST]), r"projection at blocks\.1\.hook_resid_post acts on the sum .*every_write"),
            (set_projection(V, [POST], 2.0), r"projection at blocks\.1\.hook_resid_post acts on the sum"),
            (em.project_out(V, [MLP], positions="response"), r"blocks\.1\.hook_mlp_out acts on the response only"),
            (em.add_direction(V, [MLP], raw=True, positions="prompt", prompt_length=3), "acts on the prompt only"),
            ([(MLP, lambda stream, hook: stream)], r"hook at blocks\.1\.hook_mlp_out is a function from elsewhere"),
            (em.add_direction(V, [MID], raw=True), r"hook_resid_mid changes what the block's MLP reads.*hook_attn_out"),
            (em.add_direction(V, ["blocks.1.hook_in"], raw=True), r"blocks\.1\.hook_in is no place.*every_write\(mod"),
            (em.add_direction(V, ["blocks.9.hook_mlp_out"], raw=True), r"the model has no hook 'blocks\.9\.hook_mlp"),
            (em.project_out(V, ["hook_pos_embed"]), r"hook_pos_embed is no place where this model's weights write"),
            (em.project_out(V[:8], [MLP]), "direction has d_model 8 but the stream at .* is 32 wide"),
        ],
    )
    def test_what_weights_cannot_carry(self, tiny_llama, hooks, message):
        with pytest.raises(ValueError, match=message):
            merge_hooks(tiny_llama, hooks)

    @pytest.mark.parametrize("hooks", [em.add_direction(V, [POST], raw=True), set_projection(V, [MLP], 2.0)])
    def test_additions_where_there_is_no_bias(self, qwen2, hooks):
        with pytest.raises(
            ValueError, match=r"Qwen2ForCausalLM has no bias at model\.layers\.1\.mlp\.down_proj and no"
        ):
            merge_hooks(qwen2, hooks)

    @pytest.mark.parametrize("site", [POST, MLP, ATTN])
    def test_additions_after_a_norm(self, gemma3, site):
        with pytest.raises(ValueError, match=r"layers\.1\.post_(attention|feedforward)_layernorm.*Gemma 2 and 3"):
            merge_hooks(gemma3, em.add_direction(V, [site], raw=True))

    def test_why_weights_before_a_norm_cannot_take_a_direction_out_after_it(self, gemma3):
        """The positive control of that refusal: orthogonalised output projections leave the direction there."""
        block = merge_hooks(gemma3, []).model.layers[1]
        block.post_feedforward_layernorm.weight.data = draw(7, 32)
        unit = V / V.norm()
        block.mlp.down_proj.weight.data -= torch.outer(unit, unit @ block.mlp.down_proj.weight.data)
        stream = draw(8, 1, 5, 32)
        assert (block.mlp(stream) @ unit).abs().max() < 1e-4
        assert (block.post_feedforward_layernorm(block.mlp(stream)) @ unit).abs().max() > 0.1

    def test_hooks_of_somebody_else_on_the_bridge(self, tiny_llama):
        with (
            tiny_llama.hooks(fwd_hooks=em.project_out(V, [MLP])),
            pytest.raises(ValueError, match=r"hooks of their own on the bridge, at blocks\.1\.\S+out.*reset_hooks"),
        ):
            merge_hooks(tiny_llama, [])

    def test_weights_that_do_not_do_what_the_hooks_do(self, tiny_llama, monkeypatch):
        monkeypatch.setattr(weights, "_edit", lambda *_: None)
        with pytest.raises(RuntimeError, match=r"do not do on tiny-llama what the hooks do, logits are off by \d"):
            orthogonalize(tiny_llama, V)


class TestExport:
    def test_the_folder_holds_weights_tokenizer_and_a_record(self, tiny_llama, tmp_path):
        hooks = em.project_out(V, [ATTN]) + set_projection(V, ["hook_embed"], 2) + em.add_direction(V, [POST], raw=True)
        folder = export(tiny_llama, hooks, str(tmp_path / "new" / "steered"))
        assert folder == tmp_path / "new" / "steered"
        assert (folder / "model.safetensors").is_file()
        assert AutoTokenizer.from_pretrained(folder).chat_template == tiny_llama.tokenizer.chat_template
        record = json.loads((folder / "em_interp.json").read_text())
        assert record["model"] == tiny_llama.identity
        assert [(hook["site"], hook["kind"]) for hook in record["hooks"]] == [
            (ATTN, "project_out"),
            ("hook_embed", "set_projection"),
            (POST, "add"),
        ]
        assert record["hooks"][1]["value"] == 2
        assert record["hooks"][2]["length"] == pytest.approx(float(V.norm()))
        assert record["hooks"][0]["vectors"] == record["hooks"][1]["vectors"] != record["hooks"][2]["vectors"]
        assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
        assert [path.name for path in folder.parent.iterdir()] == ["steered"]

    def test_it_does_not_tell_where_the_model_lay(self, base, tmp_path):
        folder = export(em.load_model(base), [], tmp_path / "copy")
        assert json.loads((folder / "em_interp.json").read_text())["model"] == base.name
        assert not any(str(base.parent) in path.read_text() for path in folder.glob("*.json"))

    def test_nothing_is_overwritten_but_an_empty_folder_is_filled(self, tiny_llama, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("mine")
        for taken in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
            with pytest.raises(ValueError, match="exists and is not an empty folder: nothing is overwritten"):
                export(tiny_llama, [], taken)
        assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]
        (tmp_path / "empty").mkdir()
        assert (export(tiny_llama, [], tmp_path / "empty") / "config.json").is_file()

    def test_a_failure_leaves_nothing_behind(self, tiny_llama, tmp_path, monkeypatch):
        monkeypatch.setattr(weights, "_record", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(tiny_llama, [], tmp_path / "model")
        assert not list(tmp_path.iterdir())
