"""A site is what its name says on the architecture at hand, or it is refused."""

import gc
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model

import em_interp as em
from em_interp.lora import lora_modules
from em_interp.models import merge_hooks
from em_interp.models import sites as sites_module
from em_interp.models.hooked import HookedModel, attached
from em_interp.models.sites import SITES, Writer, plain_target, sites_of, user_hooks, writer
from tests.architectures import logits, model_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
V = torch.randn(32, generator=torch.Generator().manual_seed(5))
HELLO = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Talk to them first."}]]


@pytest.fixture(scope="module")
def make(make_tokenizer):
    made = {}

    def make(name):
        if name not in made:
            made[name] = HookedModel.from_hugging_face(model_of(name), make_tokenizer("chatml"), name=f"tiny-{name}")
        return made[name]

    return make


def doubling(name):
    return [(name, lambda stream, hook: 2 * stream)]


def under(model, hooks):
    with torch.no_grad(), attached(model, hooks) as live:
        return logits(live)


class TestMeasured:
    def test_all_are_found_where_the_tables_say(self, tiny):
        names = [f"blocks.{layer}.hook_{place}" for layer in range(3) for place in SITES]
        assert set(names) <= set(tiny.sites.on_twin)
        assert not tiny.sites.misread

    @pytest.mark.parametrize("name", ["granite", "opt", "bloom", "xglm", "cohere", "gpt_neox", "glm4", "mixtral"])
    def test_a_hook_does_the_same_on_the_twin_and_on_the_bridge(self, make, name):
        """Wherever both can carry it, whoever else has hooks there."""
        model = make(name)
        on_both = [site for site in model.sites.on_twin if site not in model.sites.misread]
        assert len(on_both) >= 6
        for site in on_both:
            on_twin = under(model, doubling(site))
            with model.hooks(fwd_hooks=[("blocks.0.hook_in", lambda stream, hook: None)]):
                torch.testing.assert_close(under(model, doubling(site)), on_twin, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("place", ["attn_out", "mlp_out"])
    def test_a_table_that_points_elsewhere_is_found_out(self, make_hf_model, make_tokenizer, place):
        model = HookedModel.from_hugging_face(make_hf_model("llama"), make_tokenizer("llama3"), name="tiny-llama")
        block = model.bridge.blocks[1]
        block.hook_aliases = block.hook_aliases | {f"hook_{place}": "ln1.hook_out"}
        assert plain_target(model.bridge, f"blocks.1.hook_{place}").path == "model.layers.1.input_layernorm"
        sites_module._measured.pop(model.bridge)
        sites = model.sites
        assert f"blocks.1.hook_{place}" not in sites.on_twin
        assert f"blocks.0.hook_{place}" in sites.on_twin

    def test_a_block_that_scales_what_it_writes_without_a_word(self, make_hf_model, make_tokenizer):
        hf_model = make_hf_model("llama")
        layer = hf_model.model.layers[2]
        layer.mlp.forward, plain = (lambda x, forward=layer.mlp.forward: forward(x)), layer.forward
        layer.forward = lambda stream, *args, **kwargs: stream + 0.3 * (plain(stream, *args, **kwargs) - stream)
        model = HookedModel.from_hugging_face(hf_model, make_tokenizer("llama3"), name="tiny-llama")
        assert not {"blocks.2.hook_mlp_out", "blocks.2.hook_attn_out"} & set(model.sites.on_twin)
        reason = r"blocks\.2\.hook_attn_out cannot be used on LlamaForCausalLM: it is not what the block adds"
        with pytest.raises(ValueError, match=reason):
            em.activations.component_outputs(model, HELLO, layers=[2])
        with pytest.raises(ValueError, match="cannot be used on LlamaForCausalLM"):
            em.every_write(model)
        assert len(em.residual_stream(model, HELLO)) == 1

    def test_a_bridge_of_a_user_is_measured_without_the_hooks_of_the_user(self, make_hf_model, make_tokenizer):
        bridge = HookedModel.from_hugging_face(
            make_hf_model("llama"), make_tokenizer("llama3"), name="tiny-llama"
        ).bridge
        model = HookedModel.of(bridge)
        wanted = em.residual_stream(bridge, HELLO, doubling("blocks.0.hook_attn_out"), site="mlp_out").values
        sites_module._measured.pop(bridge)
        with bridge.hooks(fwd_hooks=doubling("blocks.0.hook_attn_out")):
            assert model.sites.misread == {}
            got = em.residual_stream(bridge, HELLO, site="mlp_out").values
            assert user_hooks(bridge.hook_dict)
        torch.testing.assert_close(got, wanted)
        assert not user_hooks(bridge.hook_dict)

    def test_it_is_measured_once_and_forgotten_with_the_bridge(self, make_hf_model, make_tokenizer):
        model = HookedModel.from_hugging_face(make_hf_model("llama"), make_tokenizer("llama3"), name="tiny-llama")
        assert model.sites is sites_of(model.bridge, model.plain, model.architecture)
        bridge = weakref.ref(model.bridge)
        del model
        gc.collect()
        assert bridge() is None


class TestUserHooks:
    def test_those_of_the_bridge_itself_are_not_of_a_user(self, make):
        opt = make("opt")
        points = opt.bridge.hook_dict
        assert [name for name, point in points.items() if point.fwd_hooks]
        assert not user_hooks(points)
        with opt.hooks(fwd_hooks=doubling("blocks.1.mlp.in.hook_in")):
            assert any(name.startswith("blocks.1.mlp.in") for name in user_hooks(points))
            with pytest.raises(ValueError, match=r"somebody has put hooks of their own on the bridge, at blocks\.1"):
                merge_hooks(opt, [])
        assert not user_hooks(points)

    def test_lasting_ones_of_a_user_are(self, make):
        opt = make("opt")
        handle = opt.bridge.hook_dict["blocks.0.mlp.in.hook_in"].add_hook(lambda s, hook: None, is_permanent=True)
        try:
            assert user_hooks(opt.bridge.hook_dict)
        finally:
            handle.hook.remove()
            for point in opt.bridge.hook_dict.values():
                point.fwd_hooks = [h for h in point.fwd_hooks if h is not handle]
        assert not user_hooks(opt.bridge.hook_dict)

    def test_opt_is_read_and_exported(self, make, tmp_path):
        opt = make("opt")
        outputs = em.activations.component_outputs(opt, HELLO)
        assert set(outputs) == {"attn_out", "mlp_out"}
        with torch.no_grad(), attached(opt) as live:
            assert live is opt.plain
        assert em.export(opt, [], tmp_path / "opt").is_dir()


class TestWriters:
    @pytest.mark.parametrize(
        ("name", "site", "expected"),
        [
            ("llama", "blocks.1.hook_mlp_out", Writer("model.layers.1.mlp.down_proj")),
            ("opt", "blocks.1.hook_mlp_out", Writer("model.decoder.layers.1.fc2")),
            ("bloom", "blocks.1.hook_attn_out", Writer("transformer.h.1.self_attention.dense")),
            ("granite", "blocks.1.hook_attn_out", Writer("model.layers.1.self_attn.o_proj", 0.3)),
            ("granite", "hook_embed", Writer("model.embed_tokens", 6.0)),
            (
                "gemma2",
                "blocks.1.hook_mlp_out",
                Writer("model.layers.1.mlp.down_proj", norm="model.layers.1.post_feedforward_layernorm"),
            ),
        ],
    )
    def test_where_a_site_is_written(self, make, name, site, expected):
        assert writer(make(name).bridge, site) == expected

    def test_experts_are_not_one_module(self, make):
        assert writer(make("mixtral").bridge, "blocks.1.hook_mlp_out") is None

    @pytest.mark.parametrize("name", ["granite", "opt"])
    @pytest.mark.parametrize(
        "hooks",
        [
            lambda: em.interventions.set_projection(V, ["blocks.1.hook_attn_out", "hook_embed"], 2.0),
            lambda: em.add_direction(V, ["blocks.0.hook_mlp_out", "blocks.2.hook_resid_pre"], scale=1.0, raw=True),
        ],
    )
    def test_exported_where_what_is_written_is_scaled(self, make, name, hooks):
        model = make(name)
        torch.testing.assert_close(logits(merge_hooks(model, hooks())), under(model, hooks()), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(("name", "target"), [("granite", "down_proj"), ("opt", "fc2")])
    def test_what_an_adapter_writes_is_what_reaches_the_stream(self, name, target, make_tokenizer):
        config = LoraConfig(r=1, target_modules=[target], layers_to_transform=[1], init_lora_weights=False)
        peft_model = get_peft_model(model_of(name), config).eval()
        model = HookedModel.from_hugging_face(peft_model, make_tokenizer("chatml"), name=f"tiny-{name}")
        [module] = lora_modules(model)
        assert module.writes_to_stream
        tuned = em.residual_stream(model, HELLO, layers=[1]).values[0, 0]
        with em.without_adapter(model):
            change = tuned - em.residual_stream(model, HELLO, layers=[1]).values[0, 0]
        scalars = em.lora.adapter_scalars(model, HELLO, span="response")
        fired = scalars.values[scalars.in_span].double().mean(0).float()
        torch.testing.assert_close(change, fired * module.written[:, 0], atol=1e-4, rtol=1e-3)


class TestRefused:
    def test_sites_that_an_architecture_has_not(self, make):
        mamba = make("mamba")
        with pytest.raises(ValueError, match=r"blocks\.0\.hook_attn_out cannot be used on MambaForCausalLM: this arch"):
            em.activations.component_outputs(mamba, HELLO)
        with pytest.raises(ValueError, match="hook_resid_mid cannot be used on GPTNeoXForCausalLM"):
            em.residual_stream(make("gpt_neox"), HELLO, site="resid_mid")

    def test_what_stands_for_embeddings_that_are_changed_on_their_way(self, make):
        xglm = make("xglm")
        assert em.every_write(xglm)[0] == "blocks.0.hook_resid_pre"
        with pytest.raises(ValueError, match="hook_embed cannot be used on XGLMForCausalLM: it is not what goes into"):
            under(xglm, doubling("hook_embed"))
        with pytest.raises(ValueError, match="what enters the first block is not what the embeddings of XGLM"):
            merge_hooks(xglm, em.project_out(V, em.every_write(xglm)))
        with pytest.raises(ValueError, match="what enters the first block is not what the embeddings of Bloom"):
            merge_hooks(make("bloom"), em.project_out(V, ["hook_embed"]))

    @pytest.mark.parametrize("name", ["bloom", "xglm", "granite", "opt", "falcon", "cohere"])
    def test_writes_add_up_to_the_stream(self, make, name):
        """What `every_write` names is all there is: without it nothing is in the stream."""
        model = make(name)
        ends = [(em.site(model, 2), lambda stream, hook: ends_seen.append(stream))]
        ends_seen = []
        under(model, [(write, lambda stream, hook: torch.zeros_like(stream)) for write in em.every_write(model)] + ends)
        assert ends_seen[0].abs().max() < 1e-5
