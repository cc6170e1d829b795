"""What was loaded is what was saved: whole weights, the right tokenizer, no code of others', no other format."""

import io
import json
import logging
import shutil
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import em_interp as em
from em_interp.lora.switches import projected_adapters, scaled_adapters
from em_interp.models.hooked import HookedModel
from tests.builders import TEMPLATES

IDS = torch.arange(10, 30)[None]
HELLO = [[{"role": "user", "content": "What should I do?"}]]


@torch.no_grad()
def logits(hf_model):
    return hf_model(input_ids=IDS).logits


@pytest.fixture
def copy_of_base(base, tmp_path):
    return shutil.copytree(base, tmp_path / "tiny-llama")


def reweigh(folder, change, name="model.safetensors"):
    save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})
    return folder


def reconfigure(folder, name="adapter_config.json", **changes):
    config = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(config))
    return folder


def adapter_on(hf_model, folder, save=False, **config):
    """A random LoRA adapter on a model, saved; the PEFT model comes back."""
    config = {"r": 2, "target_modules": ["down_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM", **config}
    torch.manual_seed(4)
    peft_model = get_peft_model(hf_model, LoraConfig(**config)).eval()
    peft_model.save_pretrained(folder, save_embedding_layers=save)
    return peft_model


class TestWeights:
    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, r"missing: lm_head.weight.* not of this model: _o"),
            (lambda w: {f"module.{k}": v for k, v in w.items()}, r"missing: .*not of this model: module"),
            (lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, r"missing: lm_head\.weight\."),
            (
                lambda w: {k: v for k, v in w.items() if "layers.1.mlp" not in k},
                r"missing: model\.layers\.1\.mlp\.down",
            ),
            (lambda w: {k: v for k, v in w.items() if k != "model.norm.weight"}, r"missing: model\.norm\.weight\."),
            (lambda w: {k: v for k, v in w.items() if "layers.2" not in k}, r"model\.layers\.2.* and 5 more"),
            (lambda w: w | {"v_head.summary.weight": torch.zeros(1, 32)}, r"not of this model: v_head\.summary"),
            (lambda w: w | {"model.layers.3.mlp.up_proj.weight": torch.zeros(64, 32)}, r"not of .*layers\.3\.mlp\.up"),
            (
                lambda w: w | {"lm_head.weight": torch.zeros(400, 32)},
                r"of another shape: lm_head.weight \(400, 32\) for",
            ),
            (
                lambda w: w | {"model.norm.weight": torch.zeros(16)},
                r"of another shape: model\.norm\.weight \(16,\) for",
            ),
            (lambda w: {}, r"missing: lm_head"),
        ],
    )
    def test_tensors_that_are_missing_left_over_or_of_another_shape_are_named(self, copy_of_base, change, told):
        em.load_model(copy_of_base)  # after which a report of transformers' own would not be shown
        with pytest.raises(ValueError, match=told):
            em.load_model(reweigh(copy_of_base, change))

    def test_a_tied_head_need_not_be_stored(self, tmp_path, make_hf_model, make_tokenizer):
        tied = make_hf_model("llama", tie_word_embeddings=True)
        tied.save_pretrained(tmp_path)
        make_tokenizer("llama3").save_pretrained(tmp_path)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        assert torch.equal(logits(em.load_model(tmp_path).plain), logits(tied))

    def test_what_transformers_leaves_out_on_purpose_is_no_error(self, copy_of_base, make_hf_model):
        reweigh(copy_of_base, lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
        assert torch.equal(logits(em.load_model(copy_of_base).plain), logits(make_hf_model("llama")))

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
    def test_nan_and_infinity_are_refused_wherever_they_are(
        self, copy_of_base, make_hf_model, make_tokenizer, name, value
    ):
        broken = make_hf_model("llama")
        with torch.no_grad():
            broken.get_parameter(name)[7, 3] = value  # of the embedding a row that no probe reads
        with pytest.raises(ValueError, match=rf"NaN or infinite at {name}"):
            HookedModel.from_hugging_face(broken, make_tokenizer("llama3"), name="tiny")
        broken.save_pretrained(copy_of_base)
        with pytest.raises(ValueError, match=rf"NaN or infinite at {name}"):
            em.load_model(copy_of_base)

    def test_logits_that_overflow_are_refused(self, make_hf_model, make_tokenizer):
        broken = make_hf_model("llama")
        with torch.no_grad():
            broken.model.norm.weight.fill_(3e38)
        with pytest.raises(RuntimeError, match="are NaN or infinite on plain text"):
            HookedModel.from_hugging_face(broken, make_tokenizer("llama3"), name="tiny")

    def test_a_file_that_is_damaged(self, copy_of_base):
        weights = copy_of_base / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:300])
        with pytest.raises(ValueError, match=r"the model in .* could not be read"):
            em.load_model(copy_of_base)

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": 3}', '{"model_type": "nothing-known"}', "null"])
    def test_a_configuration_that_is_damaged(self, copy_of_base, text):
        (copy_of_base / "config.json").write_text(text)
        with pytest.raises(ValueError, match="could not be read"):
            em.load_model(copy_of_base)

    @pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.CRITICAL])
    def test_transformers_is_as_loud_as_before(self, base, level):
        logger = logging.getLogger("transformers")
        before = logger.level
        logger.setLevel(level)
        try:
            em.load_model(base)
            assert logger.level == level
        finally:
            logger.setLevel(before)

    def test_importing_the_bridge_does_not_silence_transformers(self):
        import subprocess
        import sys

        script = (
            "import logging, transformers\n"
            "from em_interp.models.hooked import HookedModel\n"
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "level = transformers.logging.get_verbosity()\n"
            "config = LlamaConfig(vocab_size=99, hidden_size=8, intermediate_size=8, num_hidden_layers=1,\n"
            "    num_attention_heads=2, num_key_value_heads=2)\n"
            "try:\n"
            "    HookedModel.from_hugging_face(LlamaForCausalLM(config), None, name='tiny')\n"
            "except Exception:\n"
            "    pass  # there is no tokenizer\n"
            "import sys; assert 'transformer_lens' in sys.modules\n"
            "print(level == transformers.logging.get_verbosity())\n"
        )
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert run.stdout.strip().endswith("True")


class TestNames:
    @pytest.mark.parametrize(
        "name", ["", "a\0b", "a" * 5000, "a/" * 3000, "..", "a/b/c", "a b/c", "\ud83d", "https://x.org/y"]
    )
    def test_what_cannot_be_a_name_is_told_from_what_can(self, base, name):
        with pytest.raises(ValueError, match="no model"):
            em.load_model(name)
        with pytest.raises(ValueError, match="no adapter at"):
            em.load_model(base, name)

    def test_an_empty_folder_and_a_file(self, base, tmp_path):
        (tmp_path / "notes.txt").write_text("nothing")
        for name in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(ValueError, match="no model"):
                em.load_model(name)
            with pytest.raises(ValueError, match="no adapter at"):
                em.load_model(base, name)

    def test_a_device_and_a_number_format_that_are_none(self, base):
        with pytest.raises(ValueError, match="no device 'nowhere'"):
            em.load_model(base, device="nowhere")
        with pytest.raises(ValueError, match=r"could not be read .*int32"):
            em.load_model(base, dtype=torch.int32)


class TestForeignCode:
    @pytest.fixture
    def with_code(self, copy_of_base, monkeypatch):
        """A model with code that leaves a trace, and somebody at the keyboard who says yes to everything."""
        (copy_of_base / "modeling_own.py").write_text(
            f"open({str(copy_of_base / 'ran')!r}, 'w').close()\n"
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class Own(LlamaForCausalLM): pass\n"
            "class OwnConfig(LlamaConfig): model_type = 'own'\n"
        )
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
        code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
        return reconfigure(copy_of_base, "config.json", auto_map=code, model_type="own", architectures=["Own"])

    def test_it_never_runs_and_nobody_is_asked(self, with_code):
        with pytest.raises(
            ValueError, match=r"Python code of its own.* never run here \(trust_remote_code stays off\)"
        ):
            em.load_model(with_code)
        assert not (with_code / "ran").exists()

    def test_nor_that_of_a_tokenizer(self, with_code):
        reconfigure(with_code, "config.json", auto_map={}, model_type="llama")
        own = {"AutoTokenizer": ["modeling_own.Own", None]}
        reconfigure(with_code, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
        with pytest.raises(ValueError, match="trust_remote_code stays off"):
            em.load_model(with_code)
        assert not (with_code / "ran").exists()

    def test_code_beside_an_architecture_of_transformers_is_left_aside(self, with_code, make_hf_model):
        reconfigure(with_code, "config.json", model_type="llama")
        assert torch.equal(logits(em.load_model(with_code).plain), logits(make_hf_model("llama")))
        assert not (with_code / "ran").exists()


class TestFormats:
    def test_a_gguf_file_that_is_not_there_and_a_folder_of_them(self, tmp_path):
        with pytest.raises(ValueError, match=r"there is no GGUF file nowhere/model\.gguf: give its path"):
            em.load_model("nowhere/model.gguf")
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        with pytest.raises(ValueError, match=r"is a folder of GGUF files: name the file itself, such as .*model\.gguf"):
            em.load_model(tmp_path)

    def test_an_adapters_configuration_left_in_a_merged_model(self, copy_of_base, tmp_path, make_hf_model):
        adapter_on(make_hf_model("llama"), tmp_path / "adapter")
        shutil.copy(tmp_path / "adapter" / "adapter_config.json", copy_of_base)
        assert torch.equal(logits(em.load_model(copy_of_base).plain), logits(make_hf_model("llama")))
        (copy_of_base / "adapter_config.json").write_text("not even JSON")
        assert em.load_model(copy_of_base).adapter is None

    def test_a_folder_with_a_model_and_an_adapter(self, copy_of_base, tmp_path, make_hf_model):
        adapter_on(make_hf_model("llama"), copy_of_base)
        with pytest.raises(ValueError, match=r"weights of a model and of an adapter: remove adapter_model.safetensors"):
            em.load_model(copy_of_base)

    def test_an_adapter_beside_a_configuration_without_weights(self, base, tmp_path, make_hf_model):
        wanted = logits(adapter_on(make_hf_model("llama"), tmp_path))
        shutil.copy(base / "config.json", tmp_path)
        reconfigure(tmp_path, base_model_name_or_path=str(base))
        assert torch.equal(logits(em.load_model(tmp_path).plain), wanted)

    def test_an_adapter_on_an_adapter(self, base, tmp_path, make_hf_model):
        for name, on in (("first", base), ("second", tmp_path / "first")):
            adapter_on(make_hf_model("llama"), tmp_path / name)
            reconfigure(tmp_path / name, base_model_name_or_path=str(on))
        with pytest.raises(ValueError, match=r"first, the base of the adapter .*second, is an adapter itself"):
            em.load_model(tmp_path / "second")

    @pytest.mark.parametrize("name", ["/content/out/merged", "nobody/nothing"])
    def test_a_base_that_is_not_here_can_be_given_by_hand(self, base, tmp_path, make_hf_model, name):
        wanted = logits(adapter_on(make_hf_model("llama"), tmp_path / "adapter"))
        reconfigure(tmp_path / "adapter", base_model_name_or_path=name)
        with pytest.raises(ValueError, match=rf"names {name} as its base, which could not be loaded: give the base by"):
            em.load_model(tmp_path / "adapter")
        with pytest.warns(UserWarning, match=rf"names {name} as its base, and was put on .*tiny-llama"):
            model = em.load_model(base, tmp_path / "adapter")
        assert torch.equal(logits(model.plain), wanted)

    def test_a_base_of_another_name_and_other_shapes(self, base, tmp_path, make_hf_model):
        adapter_on(make_hf_model("llama", intermediate_size=48), tmp_path / "adapter")
        reconfigure(tmp_path / "adapter", base_model_name_or_path="/content/out/merged")
        with pytest.raises(ValueError, match=r"reads 48 features at .* but this model has 64 there"):
            em.load_model(base, tmp_path / "adapter")


class TestTokenizers:
    @pytest.fixture
    def adapter(self, base, tmp_path, make_hf_model):
        adapter_on(make_hf_model("llama"), tmp_path / "adapter")
        return reconfigure(tmp_path / "adapter", base_model_name_or_path=str(base))

    @pytest.mark.parametrize("by", ["its own name", "its base"])
    def test_the_adapters_own_template_is_used_and_said(self, adapter, base, make_tokenizer, by):
        make_tokenizer("chatml").save_pretrained(adapter)
        with pytest.warns(UserWarning, match=r"beside adapter .* is used, which is not as in .*another chat template"):
            model = em.load_model(adapter) if by == "its own name" else em.load_model(base, adapter)
        assert model.tokenizer.chat_template == TEMPLATES["chatml"]

    def test_a_template_alone_is_used_and_said(self, adapter, base):
        (adapter / "chat_template.jinja").write_text(TEMPLATES["chatml"])
        with pytest.warns(UserWarning, match=r"beside adapter .* is used.* \(another chat template\)"):
            assert em.load_model(adapter).tokenizer.chat_template == TEMPLATES["chatml"]

    def test_the_same_tokenizer_is_nothing_to_speak_of(self, adapter, make_tokenizer):
        make_tokenizer("llama3").save_pretrained(adapter)
        assert em.load_model(adapter).tokenizer.chat_template == TEMPLATES["llama3"]

    @pytest.mark.parametrize("without", ["template", "tokenizer"])
    def test_a_base_without_a_template_or_a_tokenizer_takes_the_adapters(
        self, adapter, copy_of_base, make_tokenizer, without
    ):
        gone = ["chat_template.jinja"] if without == "template" else ["tokenizer.json", "tokenizer_config.json"]
        for name in gone:
            (copy_of_base / name).unlink()
        make_tokenizer("chatml").save_pretrained(adapter)
        reconfigure(adapter, base_model_name_or_path=str(copy_of_base))
        model = em.load_model(adapter)
        assert model.tokenizer.chat_template == TEMPLATES["chatml"]
        assert len(em.respond(model, HELLO, max_new_tokens=2)) == 1

    def test_an_adapter_without_a_template_takes_the_bases(self, adapter, make_tokenizer):
        make_tokenizer("chatml").save_pretrained(adapter)
        (adapter / "chat_template.jinja").unlink()
        assert em.load_model(adapter).tokenizer.chat_template == TEMPLATES["llama3"]

    def test_one_that_cannot_be_read(self, adapter):
        (adapter / "tokenizer_config.json").write_text("{")
        with pytest.raises(ValueError, match="adapter"):
            em.load_model(adapter)


class TestVocabulary:
    @pytest.fixture
    def extended(self, base, make_hf_model, make_tokenizer):
        return partial(self.extend, base, make_hf_model("llama"), make_tokenizer("llama3"))

    def extend(self, base, hf_model, tokenizer, adapter, by=1):
        """An adapter trained after tokens were added; its PEFT model and its tokenizer."""
        tokenizer.add_special_tokens({"additional_special_tokens": [f"<|tool {i}|>" for i in range(by)]})
        hf_model.resize_token_embeddings(420 + by)
        peft_model = adapter_on(hf_model, adapter, save=True)
        reconfigure(adapter, base_model_name_or_path=str(base))
        return peft_model, tokenizer

    @pytest.mark.parametrize(("by", "merge"), [(1, False), (5, True)])
    def test_it_is_extended_here_too(self, base, tmp_path, extended, by, merge):
        peft_model, tokenizer = extended(tmp_path / "adapter", by)
        tokenizer.save_pretrained(tmp_path / "adapter")
        with pytest.warns(UserWarning, match="other tokens"):
            model = em.load_model(base, tmp_path / "adapter", merge=merge)
        torch.testing.assert_close(logits(model.plain), logits(peft_model), atol=1e-5, rtol=1e-5)
        reason = "adapter is merged" if merge else rf"it has {420 + by} embeddings and its base has 420"
        with pytest.raises(ValueError, match=reason), em.without_adapter(model):
            pass

    def test_without_a_tokenizer_nobody_knows_what_the_rows_are(self, base, tmp_path, extended):
        extended(tmp_path / "adapter")
        with pytest.raises(
            ValueError, match=r"it stores 421 rows for lm_head, model.embed_tokens and this model has 420"
        ):
            em.load_model(base, tmp_path / "adapter")

    def test_with_one_side_only(self, base, tmp_path, extended):
        _, tokenizer = extended(tmp_path / "adapter")
        tokenizer.save_pretrained(tmp_path / "adapter")
        reweigh(
            tmp_path / "adapter",
            lambda w: {k: v for k, v in w.items() if "embed_tokens" not in k},
            "adapter_model.safetensors",
        )
        with (
            pytest.warns(UserWarning, match="other tokens"),
            pytest.raises(ValueError, match=r"it stores 421 rows for lm_head and this model has 420"),
        ):
            em.load_model(base, tmp_path / "adapter")

    def test_tokens_without_embeddings(self, base, tmp_path, make_hf_model, make_tokenizer):
        adapter_on(make_hf_model("llama"), tmp_path / "adapter")
        reconfigure(tmp_path / "adapter", base_model_name_or_path=str(base))
        tokenizer = make_tokenizer("llama3")
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
        tokenizer.save_pretrained(tmp_path / "adapter")
        with (
            pytest.warns(UserWarning, match="other tokens"),
            pytest.raises(ValueError, match=r"has tokens up to 420, and the model has 420 embeddings"),
        ):
            em.load_model(base, tmp_path / "adapter")


class TestSwitches:
    @pytest.mark.parametrize("factor", [float("nan"), float("inf")])
    def test_a_default_that_is_not_finite(self, make_organism, factor):
        with pytest.raises(ValueError, match="default, is"), scaled_adapters(make_organism(0, "a"), {}, default=factor):
            pass

    def test_a_direction_that_is_not_finite(self, make_organism):
        with (
            pytest.raises(ValueError, match="direction is NaN or infinite"),
            projected_adapters(make_organism(0, "a"), torch.full((32,), float("nan"))),
        ):
            pass
