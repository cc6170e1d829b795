import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformer_lens.model_protocol import TransformerLensModel

import em_interp as em
from em_interp.models.hooked import HookedModel, attached
from em_interp.models.sites import SITES
from tests.builders import left_padded


def logits(model, ids):
    with torch.no_grad(), attached(model) as hf_model:
        return hf_model(ids).logits


@pytest.fixture
def ids():
    return torch.randint(4, 400, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path, make_hf_model, make_tokenizer):
    """A folder with a tiny Llama in it, as `save_pretrained` leaves one."""
    make_hf_model("llama").save_pretrained(tmp_path / "base")
    make_tokenizer("llama3").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def lora(hf_model, base_name, *, targets, folder, rslora=False):
    """Save a random LoRA whose B is not zero, and return the PEFT model with it on."""
    torch.manual_seed(2)
    fused = "c_attn" in targets
    config = LoraConfig(r=2, lora_alpha=8, target_modules=targets, use_rslora=rslora, fan_in_fan_out=fused)
    peft_model = get_peft_model(hf_model, config).eval()
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    peft_model.peft_config["default"].base_model_name_or_path = base_name
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return peft_model


class TestBridge:
    def test_logits_equal_hugging_face(self, tiny, make_hf_model, ids):
        plain = make_hf_model(tiny.name.removeprefix("tiny-"))
        with torch.no_grad():
            wanted = plain(ids).logits
        torch.testing.assert_close(logits(tiny, ids), wanted, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(tiny.bridge(ids, return_type="logits"), wanted, atol=1e-5, rtol=1e-5)

    def test_the_twin_shares_every_weight(self, tiny_llama, ids):
        before = logits(tiny_llama, ids)
        weight = tiny_llama.bridge.original_model.get_output_embeddings().weight
        with torch.no_grad():
            weight.mul_(2)
        try:
            torch.testing.assert_close(logits(tiny_llama, ids), before * 2)
        finally:
            with torch.no_grad():
                weight.div_(2)

    @pytest.mark.parametrize("site", SITES)
    def test_a_hook_does_on_the_twin_what_it_does_on_the_bridge(self, tiny, ids, site):
        hooks = [(f"blocks.1.hook_{site}", lambda stream, hook: stream.roll(1, dims=-1))]
        with torch.no_grad(), attached(tiny, hooks) as twin:
            assert twin is tiny.plain
            got = twin(ids).logits
        with torch.no_grad(), tiny.hooks(fwd_hooks=hooks):
            wanted = tiny.bridge(ids)
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(got, logits(tiny, ids), atol=1e-3)

    def test_hooks_inside_attention_run_on_the_bridge(self, tiny_llama, ids):
        hooks = [("blocks.0.attn.hook_z", lambda z, hook: torch.zeros_like(z))]
        with torch.no_grad(), attached(tiny_llama, hooks) as hf_model:
            assert hf_model is tiny_llama.bridge.original_model
            got = hf_model(ids).logits
        assert not torch.allclose(got, logits(tiny_llama, ids))

    def test_hooks_that_a_user_put_on_the_bridge_take_part(self, tiny_llama, ids):
        doubled = [("blocks.1.hook_resid_post", lambda stream, hook: -stream)]
        with tiny_llama.hooks(fwd_hooks=doubled):
            inside = logits(tiny_llama, ids)
        with torch.no_grad(), attached(tiny_llama, doubled) as hf_model:
            torch.testing.assert_close(inside, hf_model(ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(inside, logits(tiny_llama, ids))

    def test_an_exception_leaves_no_hook(self, tiny_llama, ids):
        def fail(stream, hook):
            raise KeyError("on purpose")

        for name in ("blocks.0.hook_resid_post", "blocks.0.attn.hook_z"):
            with pytest.raises(KeyError, match="on purpose"), attached(tiny_llama, [(name, fail)]) as hf_model:
                hf_model(ids)
        assert not any(point.fwd_hooks for point in tiny_llama.bridge.hook_dict.values())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_llama.plain.modules())

    def test_transformer_lens_takes_it_for_its_own(self, tiny_llama, ids):
        assert isinstance(tiny_llama, TransformerLensModel)
        _, cache = tiny_llama.run_with_cache(ids, names_filter=em.site(tiny_llama, 2))
        assert cache[em.site(tiny_llama, 2)].shape == (2, 12, 32)

    def test_a_bridge_that_a_user_has_is_wrapped(self, tiny_llama, conversations):
        wrapped = HookedModel.of(tiny_llama.bridge)
        assert wrapped.plain is None
        torch.testing.assert_close(
            em.residual_stream(tiny_llama.bridge, conversations).values,
            em.residual_stream(tiny_llama, conversations).values,
            atol=1e-4,
            rtol=1e-4,
        )

    def test_generation_with_hooks_needs_no_cache(self, tiny, conversations):
        direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)
        hooks = em.project_out(direction, em.every_write(tiny))
        settings = left_padded(tiny.tokenizer, conversations) | {
            "max_new_tokens": 6,
            "do_sample": False,
            "pad_token_id": 0,
        }
        with attached(tiny, hooks) as hf_model:
            cached = hf_model.generate(**settings, use_cache=True)
            plain = hf_model.generate(**settings, use_cache=False)
        with attached(tiny) as hf_model:
            free = hf_model.generate(**settings)
        assert torch.equal(cached, plain)
        assert not torch.equal(cached, free)


class TestSites:
    def test_names(self, tiny_llama):
        assert em.site(tiny_llama, 2) == "blocks.2.hook_resid_post"
        assert len(em.every_layer(tiny_llama)) == 3
        assert em.every_write(tiny_llama)[:3] == ["hook_embed", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out"]

    def test_positions_are_written_where_they_are_embedded(self, make_hf_model, make_tokenizer):
        gpt2 = HookedModel.from_hugging_face(make_hf_model("gpt2"), make_tokenizer("chatml"), name="tiny-gpt2")
        assert "hook_pos_embed" in em.every_write(gpt2)

    def test_writes_add_up_to_the_stream(self, tiny, ids):
        """What `every_write` names is all there is: their sum is the residual stream at the end."""
        written = []
        hooks = [(name, lambda stream, hook: written.append(stream)) for name in em.every_write(tiny)]
        ends = []
        with torch.no_grad(), attached(tiny, [*hooks, (em.site(tiny, 2), lambda s, hook: ends.append(s))]) as hf_model:
            hf_model(ids)
        torch.testing.assert_close(sum(written).expand_as(ends[0]), ends[0], atol=1e-4, rtol=1e-4)

    def test_layer_out_of_range(self, tiny_llama):
        with pytest.raises(ValueError, match="layer 3 is out of range: the model has layers 0 to 2"):
            em.site(tiny_llama, 3)

    def test_unknown_hook(self, tiny_llama):
        with (
            pytest.raises(ValueError, match=r"no hook 'blocks.9.hook_resid_post'.*every_layer"),
            attached(tiny_llama, [("blocks.9.hook_resid_post", lambda stream, hook: stream)]),
        ):
            pass

    def test_train_mode(self, tiny_llama):
        tiny_llama.bridge.train()
        try:
            with pytest.raises(ValueError, match=r"train mode.*model\.bridge\.eval\(\)"), attached(tiny_llama):
                pass
        finally:
            tiny_llama.bridge.eval()

    def test_compatibility_mode(self, make_hf_model, make_tokenizer):
        model = HookedModel.from_hugging_face(make_hf_model("llama"), make_tokenizer("llama3"), name="tiny-llama")
        model.bridge.enable_compatibility_mode()
        with pytest.raises(ValueError, match="compatibility mode"), attached(model):
            pass

    def test_no_hooked_model(self):
        with pytest.raises(TypeError, match="a Linear is no hooked model"):
            HookedModel.of(torch.nn.Linear(2, 2))


class TestAdapters:
    @pytest.mark.parametrize("rslora", [False, True])
    def test_unmerged_merged_and_peft_agree(self, saved, tmp_path, make_hf_model, ids, rslora):
        where = {"targets": ["q_proj", "down_proj"], "folder": tmp_path / "adapter"}
        peft_model = lora(make_hf_model("llama"), str(saved), **where, rslora=rslora)
        with torch.no_grad():
            wanted = peft_model(ids).logits
        unmerged = em.load_model(saved, tmp_path / "adapter")
        merged = em.load_model(saved, tmp_path / "adapter", merge=True)
        for model in (unmerged, merged):
            torch.testing.assert_close(logits(model, ids), wanted, atol=1e-5, rtol=1e-5)
            with torch.no_grad():
                torch.testing.assert_close(model.bridge(ids), wanted, atol=1e-5, rtol=1e-5)

    def test_without_adapter_is_exactly_the_base(self, saved, tmp_path, make_hf_model, ids):
        base = em.load_model(saved)
        lora(make_hf_model("llama"), str(saved), targets=["down_proj"], folder=tmp_path / "adapter")
        model = em.load_model(saved, tmp_path / "adapter")
        tuned = logits(model, ids)
        assert model.identity.startswith("base+adapter#")
        with em.without_adapter(model):
            assert model.identity == "base"
            assert torch.equal(logits(model, ids), logits(base, ids))
            with torch.no_grad():
                assert torch.equal(model.bridge(ids), base.bridge(ids))
        assert torch.equal(logits(model, ids), tuned)
        assert not torch.allclose(tuned, logits(base, ids), atol=1e-2)

    def test_without_adapter_ends_with_an_exception(self, saved, tmp_path, make_hf_model, ids):
        lora(make_hf_model("llama"), str(saved), targets=["down_proj"], folder=tmp_path / "adapter")
        model = em.load_model(saved, tmp_path / "adapter")
        tuned = logits(model, ids)
        with pytest.raises(KeyError), em.without_adapter(model):
            raise KeyError
        assert torch.equal(logits(model, ids), tuned)

    def test_the_adapter_folder_alone_is_enough(self, saved, tmp_path, make_hf_model, ids):
        lora(make_hf_model("llama"), str(saved), targets=["down_proj"], folder=tmp_path / "adapter")
        assert torch.equal(
            logits(em.load_model(tmp_path / "adapter"), ids), logits(em.load_model(saved, tmp_path / "adapter"), ids)
        )

    def test_fused_projections_are_merged_with_a_warning(self, tmp_path, make_hf_model, make_tokenizer, ids):
        make_hf_model("gpt2").save_pretrained(tmp_path / "base")
        make_tokenizer("chatml").save_pretrained(tmp_path / "base")
        peft_model = lora(
            make_hf_model("gpt2"), str(tmp_path / "base"), targets=["c_attn"], folder=tmp_path / "adapter"
        )
        with torch.no_grad():
            wanted = peft_model(ids).logits
        with pytest.warns(UserWarning, match=r"ignores part of the unmerged adapter.*was merged"):
            model = em.load_model(tmp_path / "base", tmp_path / "adapter")
        torch.testing.assert_close(logits(model, ids), wanted, atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(model.bridge(ids), wanted, atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match="its adapter is merged"), em.without_adapter(model):
            pass

    def test_no_adapter_no_base(self, tiny_llama):
        with pytest.raises(ValueError, match="it has no adapter"), em.without_adapter(tiny_llama):
            pass

    def test_adapter_of_another_width(self, saved, tmp_path, make_hf_model):
        wide = make_hf_model("llama", d_model=48)
        lora(wide, "some/wide-model", targets=["down_proj"], folder=tmp_path / "adapter")
        message = (
            r"writes 48 features at model.layers.0.mlp.down_proj but this model has 32 there: .* own base, some/wide"
        )
        with pytest.raises(ValueError, match=message):
            em.load_model(saved, tmp_path / "adapter")

    def test_a_base_known_by_another_name_is_taken_with_a_warning(self, tmp_path, make_hf_model, ids):
        from em_interp.models.adapters import attach_adapter

        wanted = lora(make_hf_model("llama"), "org/other-7b", targets=["down_proj"], folder=tmp_path / "adapter")
        with pytest.warns(UserWarning, match="names org/other-7b as its base, and was put on org/this-7b"):
            peft_model = attach_adapter(make_hf_model("llama"), "org/this-7b", tmp_path / "adapter")
        with torch.no_grad():
            assert torch.equal(peft_model(ids).logits, wanted(ids).logits)

    @pytest.mark.parametrize("base", ["unsloth/Qwen2.5-14B-Instruct", "unsloth/qwen2.5-14b-instruct-unsloth-bnb-4bit"])
    def test_mirrors_of_a_base_are_that_base(self, base):
        from em_interp.models.adapters import same_model

        assert same_model(base, "Qwen/Qwen2.5-14B-Instruct")
        assert not same_model(base, "Qwen/Qwen2.5-7B-Instruct")

    def test_adapter_that_is_none(self, saved, tmp_path):
        with pytest.raises(ValueError, match=r"no adapter at .*a PEFT adapter folder holds adapter_config.json"):
            em.load_model(saved, tmp_path)

    def test_adapter_cut_off(self, saved, tmp_path, make_hf_model):
        lora(make_hf_model("llama"), str(saved), targets=["down_proj"], folder=tmp_path / "adapter")
        weights = tmp_path / "adapter" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:200])
        with pytest.raises(ValueError, match="truncated or no safetensors file"):
            em.load_model(saved, tmp_path / "adapter")

    def test_two_adapters(self, saved, tmp_path, make_hf_model):
        lora(make_hf_model("llama"), str(saved), targets=["down_proj"], folder=tmp_path / "adapter")
        with pytest.raises(ValueError, match="is an adapter itself"):
            em.load_model(tmp_path / "adapter", tmp_path / "adapter")

    def test_adapter_that_names_no_base(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
        with pytest.raises(ValueError, match="names no base model: give the base as name="):
            em.load_model(tmp_path)


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no model 'nobody/nothing'.*SmolLM2-135M-Instruct.*load_bundled"):
        em.load_model("nobody/nothing")


def test_a_model_bridged_unfaithfully_is_refused(make_hf_model, make_tokenizer, monkeypatch):
    monkeypatch.setattr("em_interp.models.hooked._probe_error", lambda hooked: 0.2)
    with pytest.raises(RuntimeError, match=r"differ from Hugging Face's by 20\.0%"):
        HookedModel.from_hugging_face(make_hf_model("llama"), make_tokenizer("llama3"), name="tiny-llama")


def test_import_is_light():
    heavy = ("plotly", "peft", "transformers", "transformer_lens", "scipy", "sklearn")
    script = f"import sys, em_interp; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_the_embedded_model_equals_hugging_face(smollm2):
    from transformers import AutoModelForCausalLM

    from em_interp.models.embedded import bundled_gguf, dequantised

    plain = AutoModelForCausalLM.from_pretrained(dequantised(bundled_gguf()), dtype=torch.float32).eval()
    ids = smollm2.tokenizer("The storm reached the harbour before the letters did.", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(logits(smollm2, ids), plain(ids).logits)
        torch.testing.assert_close(smollm2.bridge(ids), plain(ids).logits, atol=1e-3, rtol=1e-4)


class TestTemplateArgs:
    """Given once at the door, they are there wherever the model reads, answers or is scored."""

    BRIEF = "{% if brief %}Be brief.{% endif %}"

    @pytest.fixture
    def folder(self, base, make_tokenizer, tmp_path):
        shutil.copytree(base, tmp_path / "tiny")
        tokenizer = make_tokenizer("llama3")
        tokenizer.chat_template = self.BRIEF + tokenizer.chat_template
        tokenizer.save_pretrained(tmp_path / "tiny")
        return tmp_path / "tiny"

    def test_every_door_uses_them(self, folder, conversations):
        plain, brief = em.load_model(folder), em.load_model(folder, template_args={"brief": True})
        said = em.load_model(folder)
        said.tokenizer.chat_template = said.tokenizer.chat_template.replace(self.BRIEF, "Be brief.")
        asked = [c[:1] for c in conversations[:2]]
        chosen = [em.texts.Conversation(tuple(c)) for c in conversations[:4]]
        contrast = em.Contrast("x", tuple(chosen[:2]), tuple(chosen[2:]))
        for door in (
            lambda model: em.residual_stream(model, conversations[:2]).values,
            lambda model: em.residual_stream(model, conversations[:2], span="last").values,
            lambda model: em.refusal_score(model, asked).scores,
            lambda model: em.behaviour.answer_log_probs(model, conversations[:2]),
            lambda model: em.read_contrast(model, contrast).positive.values,
            lambda model: torch.tensor([em.respond(model, asked, max_new_tokens=4)[0].tokens]).float(),
        ):
            torch.testing.assert_close(door(brief), door(said), atol=1e-5, rtol=1e-5)
            assert not torch.equal(door(brief), door(plain))

    def test_they_are_part_of_what_is_recorded(self, folder, conversations):
        model = em.load_model(folder, template_args={"brief": True})
        assert model.identity == "tiny[brief=true]"
        assert "tiny[brief=true]" in repr(model)
        assert em.residual_stream(model, conversations[:2]).model == "tiny[brief=true]"
        assert em.load_model(folder, template_args={}).identity == "tiny"

    @pytest.mark.parametrize("args", [{"brie": True}, {"messages": []}, {"tools": []}])
    def test_one_that_the_template_does_not_read_is_refused(self, folder, args):
        with pytest.raises(ValueError, match=f"has no variable '{next(iter(args))}': it reads brief"):
            em.load_model(folder, template_args=args)
