"""Adapters of every kind that PEFT has: what PEFT computes, apart and merged, and the base without; or one refusal."""

import json
import math
import shutil
import warnings
from dataclasses import fields
from types import SimpleNamespace

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

import em_interp as em
from em_interp.models.adapters import attach_adapter, merge_adapter
from em_interp.models.hooked import HookedModel, weight_sharing_twin

IDS = torch.arange(10, 30)[None]

# What each kind needs beside its target modules, on a model this small.
NEEDED = {
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "ADALORA": {"total_step": 10},
    "OFT": {"oft_block_size": 4},
    "C3A": {"block_size": 16},
    "MISS": {"r": 4},
    "SHIRA": {"r": 2},
    "ROAD": {"group_size": 4},
    "VBLORA": {"vector_length": 8, "num_vectors": 16, "topk": 2},
    "WAVEFT": {"n_frequency": 8},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [12, 15]},
    "ADAPTION_PROMPT": {"target_modules": None, "adapter_len": 4, "adapter_layers": 2},
}
OUTSIDE = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT", "PREFIX_TUNING", "CARTRIDGE", "ADAPTION_PROMPT"),
    *("POLY", "SHADOW", "XLORA"),
}
ACROSS_TOKENS = {"LILY"}
UNMERGEABLE = {"BEFT", "lora_bias"}
VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "head saved": {"modules_to_save": ["lm_head"]},
    "norm saved": {"modules_to_save": ["norm"]},
    "embeddings saved": {"modules_to_save": ["embed_tokens"]},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved as one": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [12, 15]},
    "on the head": {"target_modules": ["lm_head", "down_proj"]},
    "on the embeddings": {"target_modules": ["embed_tokens"]},
    "on both as one": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "all biases": {"bias": "all"},
    "its biases": {"bias": "lora_only"},
    "all biases and a head": {"bias": "all", "modules_to_save": ["lm_head"]},
    "patterns": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 3}},
    "a regular expression": {"target_modules": r".*\.(q|v)_proj"},
    "all linear": {"target_modules": "all-linear"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}


@torch.no_grad()
def logits(hf_model):
    return hf_model(input_ids=IDS).logits


def off(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture(params=[False, True], ids=["untied", "tied"], scope="module")
def tied(request):
    return request.param


@pytest.fixture(scope="module")
def bases(make_hf_model, make_tokenizer, tmp_path_factory):
    """Folders with a Llama that has biases, its embeddings untied and tied."""
    found = {}
    for tied in (False, True):
        folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
        make_hf_model("llama", attention_bias=True, tie_word_embeddings=tied).save_pretrained(folder)
        make_tokenizer("llama3").save_pretrained(folder)
        found[tied] = folder
    return found


@pytest.fixture(scope="module")
def plain(make_hf_model):
    return lambda tied: make_hf_model("llama", attention_bias=True, tie_word_embeddings=tied)


def trained(hf_model, base, folder, config):
    """An adapter whose every trained number has moved, biases of the base among them; its PEFT model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(hf_model, config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in peft_model.parameters():
                if parameter.requires_grad and parameter.is_floating_point():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for part in peft_model.peft_config.values():
            part.base_model_name_or_path = str(base)
        peft_model.save_pretrained(folder, save_embedding_layers=False)
    return peft_model


def config_of(kind: str):
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    options = {field.name for field in fields(cls)}
    usual = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"], "num_virtual_tokens": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(**{name: value for name, value in (usual | NEEDED.get(kind, {})).items() if name in options})


def check(kind, hf_model, base, adapter, wanted):
    """Apart, without and merged against PEFT's own logits and the base's."""
    alone = logits(hf_model)
    assert off(wanted, alone) > 1e-3
    model = em.load_model(base, adapter)
    assert off(logits(model.plain), wanted) < 1e-5
    with torch.no_grad():
        assert off(model.bridge(IDS, return_type="logits"), wanted) < 1e-5
    if kind not in ("pissa", "olora"):
        for _ in range(2):  # and nothing stays behind
            with em.without_adapter(model):
                assert torch.equal(logits(model.plain), alone)
                with em.without_adapter(model):
                    assert torch.equal(logits(model.plain), alone)
                assert torch.equal(logits(model.plain), alone)
            assert off(logits(model.plain), wanted) < 1e-5
    if kind in UNMERGEABLE:
        with pytest.raises(ValueError, match=r"cannot be merged into the weights .*merge=False"):
            em.load_model(base, adapter, merge=True)
        return
    assert off(logits(em.load_model(base, adapter, merge=True).plain), wanted) < 1e-4


@pytest.mark.parametrize("kind", [kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind not in OUTSIDE])
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_every_kind_of_adapter(kind, bases, plain, tmp_path):
    wanted = logits(trained(plain(False), bases[False], tmp_path, config_of(kind)))
    if kind in ACROSS_TOKENS:
        with pytest.raises(ValueError, match=r"with its adapter \(LlamaForCausalLM\) is not causal"):
            em.load_model(bases[False], tmp_path)
        return
    check(kind.value, plain(False), bases[False], tmp_path, wanted)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_every_kind_of_lora(variant, tied, bases, plain, tmp_path):
    if "as one" in variant and not tied:
        pytest.skip("they are two")
    config = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | VARIANTS[variant]
    wanted = logits(trained(plain(tied), bases[tied], tmp_path, LoraConfig(**config)))
    check(variant, plain(tied), bases[tied], tmp_path, wanted)


@pytest.mark.parametrize("kind", sorted(OUTSIDE - {"XLORA"}))
def test_kinds_that_act_outside_of_the_modules_are_refused(kind, bases, plain, tmp_path, make_tokenizer):
    peft_model = trained(plain(False), bases[False], tmp_path, config_of(kind))
    with pytest.raises(
        ValueError, match=rf"is of the kind {kind}, which .*: only adapters that act in the model's mod"
    ):
        em.load_model(bases[False], tmp_path)
    with pytest.raises(ValueError, match=rf"adapter on tiny is of the kind {kind}"):
        HookedModel.from_hugging_face(peft_model, make_tokenizer("llama3"), name="tiny")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"alora_invocation_tokens": [12]}, "from its invocation tokens on"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "repeats layers"),
    ],
)
def test_lora_that_acts_outside_of_the_modules_is_refused(config, reason, bases, plain, tmp_path):
    trained(
        plain(False), bases[False], tmp_path, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **config)
    )
    with pytest.raises(ValueError, match=reason):
        em.load_model(bases[False], tmp_path)


def test_work_outside_of_the_modules_is_found_whatever_does_it(bases, plain, tmp_path, make_tokenizer, monkeypatch):
    peft_model = trained(plain(False), bases[False], tmp_path, config_of("LORA"))
    inner = peft_model.forward

    def forward(*args, **kwargs):
        answer = inner(*args, **kwargs)
        return SimpleNamespace(logits=answer.logits * 1.01)

    monkeypatch.setattr(peft_model, "forward", forward)
    with pytest.raises(ValueError, match=r"part of its work outside of the model's modules \(logits are off by 1\.0%"):
        HookedModel.from_hugging_face(peft_model, make_tokenizer("llama3"), name="tiny")


class TestWithoutAdapter:
    @pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_4"])
    def test_factors_out_of_the_bases_weights_leave_no_base(self, start, bases, plain, tmp_path):
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=start)
        trained(plain(False), bases[False], tmp_path, config)
        model = em.load_model(bases[False], tmp_path)
        with pytest.raises(ValueError, match=rf"out of the base's own weights .*{start}"), em.without_adapter(model):
            pass

    @pytest.mark.parametrize("bias", ["all", "lora_only"])
    def test_biases_of_a_model_that_was_made_elsewhere(self, bias, bases, plain, tmp_path, make_tokenizer):
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", bias=bias)
        peft_model = trained(plain(False), bases[False], tmp_path, config)
        model = HookedModel.from_hugging_face(peft_model, make_tokenizer("llama3"), name="tiny", adapter="a#0")
        with (
            pytest.raises(ValueError, match=rf"has trained the base's biases \(bias='{bias}'\)"),
            em.without_adapter(model),
        ):
            pass

    def test_a_base_that_was_changed_since_is_an_error(self, bases, plain, tmp_path):
        trained(plain(False), bases[False], tmp_path, config_of("LORA"))
        model = em.load_model(bases[False], tmp_path)
        weight = model.plain.get_parameter("model.norm.weight")
        with torch.no_grad():
            weight.mul_(1.001)
        message = r"not its base when its adapter is off, logits differ by 0\.1%"
        with pytest.raises(ValueError, match=message), em.without_adapter(model):
            pass
        assert model.adapter_enabled
        with torch.no_grad():
            weight.fill_(math.nan)
        with pytest.raises(ValueError, match="logits differ by nan%"), em.without_adapter(model):
            pass

    def test_the_bridge_is_checked_too(self, bases, plain, tmp_path):
        trained(plain(False), bases[False], tmp_path, config_of("LORA"))
        model = em.load_model(bases[False], tmp_path)

        def louder(_, __, output):
            output.logits = 1.01 * output.logits
            return output

        model.bridge.original_model.register_forward_hook(louder)
        with pytest.raises(ValueError, match=r"logits differ by 1\.0%"), em.without_adapter(model):
            pass

    def test_hooks_of_a_caller_do_not_count(self, bases, plain, tmp_path):
        trained(plain(False), bases[False], tmp_path, config_of("LORA"))
        model = em.load_model(bases[False], tmp_path)
        hooks = [(em.site(model, 1), lambda stream, hook: -stream)]
        with em.models.attached(model, hooks) as hf_model, em.without_adapter(model):
            assert off(logits(hf_model), logits(plain(False))) > 0.1

    @pytest.mark.parametrize(
        "config", [{"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}]
    )
    @pytest.mark.filterwarnings("ignore::UserWarning:peft")
    def test_a_base_that_several_share_does_not_change(self, config, bases, plain, tmp_path):
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **config)
        trained(plain(False), bases[False], tmp_path, lora)
        shared = plain(False)
        peft_model = attach_adapter(weight_sharing_twin(shared), "tiny-llama", tmp_path)
        assert torch.equal(logits(shared), logits(plain(False)))
        merge_adapter(peft_model)
        assert torch.equal(logits(shared), logits(plain(False)))


class TestMerging:
    def test_what_is_exported_is_what_was_read(self, tied, bases, plain, tmp_path):
        config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM", bias="all")
        wanted = logits(trained(plain(tied), bases[tied], tmp_path / "adapter", config))
        model = em.load_model(bases[tied], tmp_path / "adapter")
        em.export(model, [], tmp_path / "merged")
        assert off(logits(em.load_model(tmp_path / "merged").plain), wanted) < 1e-4
        with em.without_adapter(model):
            em.export(model, [], tmp_path / "base")
        assert off(logits(em.load_model(tmp_path / "base").plain), logits(plain(tied))) < 1e-6

    @pytest.mark.filterwarnings("ignore::UserWarning:peft")
    def test_embeddings_that_were_trained_as_one_are_exported_whole(self, bases, plain, tmp_path):
        config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], **VARIANTS["saved as one"])
        wanted = logits(trained(plain(True), bases[True], tmp_path / "adapter", config))
        em.export(em.load_model(bases[True], tmp_path / "adapter"), [], tmp_path / "merged")
        assert off(logits(em.load_model(tmp_path / "merged").plain), wanted) < 1e-4

    def test_a_merge_that_does_something_else_is_an_error(self, bases, plain, tmp_path, monkeypatch):
        trained(plain(False), bases[False], tmp_path, config_of("LORA"))
        merge = peft.PeftModel.merge_and_unload if hasattr(peft.PeftModel, "merge_and_unload") else None
        assert merge is None  # it is the tuner's
        monkeypatch.setattr("peft.tuners.lora.LoraModel.merge_and_unload", lambda self: self.unload())
        with pytest.raises(ValueError, match="does something else than it did"):
            em.load_model(bases[False], tmp_path, merge=True)


# ---------------------------------------------------------------- files that are not what PEFT writes


@pytest.fixture(scope="module")
def sound(bases, plain, tmp_path_factory):
    """The folder of an adapter that loads, its configuration and its tensors."""
    folder = tmp_path_factory.mktemp("sound")
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", bias="lora_only")
    trained(plain(False), bases[False], folder, config)
    return folder, json.loads((folder / "adapter_config.json").read_text())


def attached_or_refused(hf_model, folder):
    """Whether an adapter was taken; anything but a ValueError comes through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            attach_adapter(hf_model, "tiny-llama", folder)
        except ValueError as error:
            told = str(error)
        else:
            return True
    assert str(folder) in told
    assert "\n" not in told
    return False


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(list(PeftType)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
OFTEN = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@OFTEN
@given(data=st.data())
def test_configurations_are_taken_or_refused(data, sound, plain, tmp_path):
    folder, config = sound
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    keys = data.draw(
        st.lists(st.sampled_from([*sorted(config), "target_parameters", "strange"]), min_size=1, max_size=2)
    )
    text = json.dumps(config | {key: data.draw(ANYTHING, label=key) for key in keys})
    (tmp_path / "adapter_config.json").write_text(text)
    attached_or_refused(plain(False), tmp_path)


@OFTEN
@given(text=st.one_of(ANYTHING.map(json.dumps).map(str.encode), st.binary(max_size=40)))
def test_what_is_not_a_configuration_is_refused(text, sound, plain, tmp_path):
    shutil.copytree(sound[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_bytes(text)
    try:
        kept = json.loads(text) == {}
    except ValueError:
        kept = False
    assert not attached_or_refused(plain(False), tmp_path) or kept or isinstance(json.loads(text), dict)


CHANGES = {
    "left out": lambda tensors, key: tensors.pop(key),
    "renamed": lambda tensors, key: tensors.update({key + ".strange": tensors.pop(key)}),
    "under torch.compile": lambda tensors, key: tensors.update({"_orig_mod." + key: tensors.pop(key)}),
    "too long": lambda tensors, key: tensors.update({key: torch.cat([tensors[key]] * 2)}),
    "flat": lambda tensors, key: tensors.update({key: tensors[key].flatten()[:1].clone()}),
    "a number": lambda tensors, key: tensors.update({key: tensors[key].sum()}),
    "empty": lambda tensors, key: tensors.update({key: torch.zeros(0)}),
    "NaN": lambda tensors, key: tensors.update({key: tensors[key] * math.nan}),
    "infinite": lambda tensors, key: tensors.update({key: tensors[key] + math.inf}),
    "of a value head": lambda tensors, key: tensors.update({"v_head.summary.weight": torch.zeros(1, 32)}),
    "of a bias": lambda tensors, key: tensors.update({"base_model.model.lm_head.bias": torch.zeros(420)}),
    "one more": lambda tensors, key: tensors.update({key.replace("layers.0", "layers.9"): tensors[key].clone()}),
}


@OFTEN
@given(change=st.sampled_from(sorted(CHANGES)), which=st.integers(0, 100))
def test_tensors_that_are_not_the_adapters_are_refused(change, which, sound, plain, tmp_path):
    shutil.copytree(sound[0], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    keys = sorted(key for key in tensors if change != "one more" or "layers.0" in key)
    CHANGES[change](tensors, keys[which % len(keys)])
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert not attached_or_refused(plain(False), tmp_path)


@OFTEN
@given(cut=st.integers(0, 5000), noise=st.binary(max_size=9))
def test_weights_cut_off_or_overwritten_are_refused(cut, noise, sound, plain, tmp_path):
    shutil.copytree(sound[0], tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[: min(cut, len(whole) - 1)] + noise)
    assert cut + len(noise) >= len(whole) or not attached_or_refused(plain(False), tmp_path)


def test_a_sound_one_is_taken(sound, plain):
    assert attached_or_refused(plain(False), sound[0])
