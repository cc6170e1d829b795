"""LoRA adapters taken apart: the matrices are what PEFT computes with, and nothing else is taken for LoRA."""

import itertools
import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

import em_interp as em
from em_interp.activations.forward import share_prefix
from em_interp.directions.direction import Direction
from em_interp.lora.modules import lora_layers
from em_interp.models.adapters import attach_adapter
from em_interp.models.hooked import attached
from em_interp.texts.conversations import encode

IDS = torch.randint(4, 400, (2, 12), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad(), attached(model) as hf_model:
        return hf_model(IDS).logits


@pytest.fixture(scope="module")
def organism(make_peft, organism_of):
    """Rank 3 on modules of two layers."""
    return organism_of(make_peft(r=3, layers_to_transform=[0, 1]))


@pytest.fixture
def folder(make_peft, tmp_path):
    """An adapter as PEFT saves it."""
    save(make_peft(layers_to_transform=[1]), tmp_path / "adapter")
    return tmp_path / "adapter"


def save(peft_model, path):
    peft_model.peft_config["default"].base_model_name_or_path = "some/base"
    peft_model.save_pretrained(path, save_embedding_layers=False)


def rewrite(folder, **config):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def reweigh(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def direction(seed=0, d_model=32, layers=(0, 1, 2), name="planted"):
    n = len(layers)
    vectors = torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(
        vectors=vectors,
        residual_norm=torch.ones(n),
        positive_projection=torch.ones(n),
        negative_projection=-torch.ones(n),
        layers=tuple(layers),
        name=name,
        site="resid_post",
        span="response",
        pooling="conversation",
        model="tiny",
        contrast_hash="0" * 64,
        n_positive=1,
        n_negative=1,
    )


class TestModules:
    @pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
    @pytest.mark.parametrize(("rank", "rslora"), list(itertools.product([1, 4, 32], [False, True])))
    def test_peft_unmerged_merged_and_by_hand_agree(  # noqa: PLR0913 - three fixtures and what is crossed
        self, make_peft, make_hf_model, organism_of, family, rank, rslora
    ):
        peft_model = make_peft(family, r=rank, use_rslora=rslora, layers_to_transform=[0, 2])
        for name, parameter in peft_model.named_parameters():
            if "post_" in name:  # Gemma's, as they are in a fresh model
                parameter.data.zero_() if family == "gemma3" else parameter.data.fill_(1)
        with torch.no_grad():
            wanted = peft_model(IDS).logits
        model = organism_of(peft_model, family)
        modules = em.lora_modules(model)
        by_hand = make_hf_model(family)
        with torch.no_grad():
            for module in modules:
                weight = by_hand.model.get_submodule(module.name).weight
                weight += module.scale * module.B @ module.A
                assert module.scale == pytest.approx(8 / math.sqrt(rank) if rslora else 8 / rank)
                torch.testing.assert_close(module.factored.AB, module.scale * module.B @ module.A)
            torch.testing.assert_close(by_hand(IDS).logits, wanted, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(model.bridge(IDS), wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-4)
        merged = model.peft_models[-1].merge_and_unload()
        with torch.no_grad():
            torch.testing.assert_close(merged(IDS).logits, wanted, atol=1e-5, rtol=1e-4)

    def test_model_peft_model_and_folder_tell_the_same(self, make_peft, organism_of, tmp_path):
        peft_model = make_peft("qwen2", r=4, use_rslora=True, rank_pattern={"o_proj": 2}, alpha_pattern={"q_proj": 3})
        save(peft_model, tmp_path)
        from_peft, from_folder = em.lora_modules(peft_model), em.lora_modules(tmp_path)
        from_model = em.lora_modules(organism_of(peft_model, "qwen2"))
        assert len(from_model) == 9
        scales = {"q_proj": 3 / 2, "o_proj": 8 / math.sqrt(2), "down_proj": 8 / 2}
        for other in (from_peft, from_folder):
            for a, b in zip(sorted(from_model, key=repr), sorted(other, key=repr), strict=True):
                assert (a.name, a.layer, a.writes_to_stream) == (b.name, b.layer, b.writes_to_stream)
                assert a.scale == b.scale == pytest.approx(scales[a.name.split(".")[-1]])
                assert torch.equal(a.A, b.A)
                assert torch.equal(a.B, b.B)
        assert {m.name for m in from_model if m.writes_to_stream} == {
            f"layers.{i}.{m}" for i in range(3) for m in ("self_attn.o_proj", "mlp.down_proj")
        }

    def test_they_are_copies_and_print_as_one_line(self, organism):
        module = em.lora_modules(organism)[0]
        before = module.A.clone()
        (_, lora), *_ = lora_layers(organism).values()
        weight = lora.lora_A["default"].weight
        with torch.no_grad():
            weight.add_(1)
        assert torch.equal(module.A, before)
        with torch.no_grad():
            weight.sub_(1)
        assert repr(module) == "LoraModule('layers.0.self_attn.q_proj', rank 3, 32 → 32, scale 2.66667)"
        assert "writes to the stream" in repr(em.lora_modules(organism)[1])

    @pytest.mark.parametrize("targets", [("c_attn",), ("c_proj",), ("c_fc",)])
    def test_transposed_and_fused_projections(self, make_peft, make_hf_model, tmp_path, targets):
        """Conv1D keeps its weight the other way round; A reads and B writes all the same."""
        peft_model = make_peft("gpt2", targets=targets)
        save(peft_model, tmp_path)
        with torch.no_grad():
            wanted = peft_model(IDS).logits
        for source in (peft_model, tmp_path):
            by_hand = make_hf_model("gpt2")
            for module in em.lora_modules(source):
                conv = by_hand.transformer.get_submodule(module.name)
                conv.weight.data += (module.scale * module.B @ module.A).T
                assert module.writes_to_stream == (targets == ("c_proj",))
            with torch.no_grad():
                torch.testing.assert_close(by_hand(IDS).logits, wanted, atol=1e-5, rtol=1e-4)

    def test_an_unmerged_adapter_of_gpt2_is_read_off_the_model(self, make_peft, organism_of):
        model = organism_of(make_peft("gpt2", targets=["c_proj", "c_fc"], layers_to_transform=[1]), "gpt2")
        flags = {m.name: m.writes_to_stream for m in em.lora_modules(model)}
        assert flags == {"h.1.attn.c_proj": True, "h.1.mlp.c_fc": False, "h.1.mlp.c_proj": True}
        plain = logits(model)
        with em.lora.scaled_adapters(model, {"h.1.attn.c_proj": 0.0}):
            on_twin = logits(model)
            with torch.no_grad():
                torch.testing.assert_close(model.bridge(IDS), on_twin, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(on_twin, plain, atol=1e-3)

    def test_outside_the_layers(self, make_peft, tmp_path, organism_of, conversations):
        peft_model = make_peft(targets=["lm_head", "down_proj"], layers_to_transform=None)
        model = organism_of(peft_model)
        head = em.lora_modules(model)[-1]
        assert (head.name, head.layer, head.writes_to_stream) == ("lm_head", None, False)
        assert "lm_head[0]" in em.adapter_scalars(model, conversations[:2]).names


class TestRefusals:
    def test_no_adapter(self, tiny_llama, tmp_path):
        with pytest.raises(ValueError, match="it has no adapter"):
            em.lora_modules(tiny_llama)
        with pytest.raises(ValueError, match=r"no adapter at .*adapter_config\.json"):
            em.lora_modules(tmp_path)
        with pytest.raises(TypeError, match="a Linear has no adapter to take apart"):
            em.lora_modules(torch.nn.Linear(2, 2))

    def test_merged(self, make_peft, organism_of):
        with pytest.warns(UserWarning, match="was merged"):
            model = organism_of(make_peft("gpt2", targets=["c_attn"]), "gpt2")
        with pytest.raises(ValueError, match="its adapter is merged: pass the adapter's folder"):
            em.lora_modules(model)
        peft_model = make_peft()
        peft_model.merge_adapter()
        with pytest.raises(ValueError, match="is merged: unmerge it first"):
            em.lora_modules(peft_model)

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"use_dora": True}, "it is a DoRA"),
            ({"modules_to_save": ["lm_head"]}, r"replaces whole modules \(modules_to_save\)"),
            ({"bias": "lora_only"}, r"it changes biases \(bias='lora_only'\)"),
            ({"alora_invocation_tokens": [5], "task_type": "CAUSAL_LM"}, r"invocation tokens on only \(aLoRA\)"),
            ({"trainable_token_indices": [5]}, "it changes embeddings"),
        ],
    )
    def test_what_is_more_than_lora(self, make_peft, tmp_path, config, reason):
        peft_model = make_peft(layers_to_transform=[1], **config)
        save(peft_model, tmp_path)
        for source in (peft_model, tmp_path):
            with pytest.raises(ValueError, match=rf"B·A·x is not the whole of what it does: .*{reason}"):
                em.lora_modules(source)

    @pytest.mark.parametrize(
        ("config", "reason"), [({"lora_bias": True}, "a bias of its own"), ({"arrow_config": {"a": 1}}, "arrow_config")]
    )
    def test_what_a_config_tells_of(self, folder, config, reason):
        rewrite(folder, **config)
        with pytest.raises(ValueError, match=reason):
            em.lora_modules(folder)

    def test_embeddings(self, make_peft, tmp_path):
        peft_model = make_peft(targets=["embed_tokens", "down_proj"], layers_to_transform=None)
        save(peft_model, tmp_path)
        with pytest.raises(ValueError, match=r"adapter on model\.embed_tokens \(Embedding\) is not linear"):
            em.lora_modules(peft_model)
        with pytest.raises(ValueError, match=r"no LoRA factor of a linear module: .*embed_tokens"):
            em.lora_modules(tmp_path)

    def test_two_adapters_at_once(self, make_peft):
        peft_model = make_peft()
        peft_model.add_adapter("second", LoraConfig(r=2, target_modules=["down_proj"]))
        peft_model.base_model.set_adapter(["default", "second"])
        with pytest.raises(ValueError, match=r"2 active adapters \(default, second\)"):
            em.lora_modules(peft_model)

    def test_another_kind_of_adapter(self, folder):
        rewrite(folder, peft_type="LOHA")
        with pytest.raises(ValueError, match="is a LOHA: only LoRA adapters"):
            em.lora_modules(folder)

    def test_target_modules_that_are_not_there(self, folder, make_hf_model):
        rewrite(folder, target_modules=["gate_proj"])
        with pytest.raises(ValueError, match=r"which is not among the target modules .*gate_proj.*not belong"):
            em.lora_modules(folder)
        rewrite(folder, target_modules=["q_proj", "o_proj", "down_proj", "strange_proj"])
        reweigh(folder, lambda t: t | {k.replace("q_proj", "strange_proj"): v.clone() for k, v in t.items()})
        with pytest.raises(ValueError, match=r"weights for .*strange_proj, which this model does not have"):
            attach_adapter(make_hf_model("llama"), "some/base", folder)

    def test_a_without_b(self, folder, make_hf_model):
        reweigh(folder, lambda t: {k: v for k, v in t.items() if not ("o_proj" in k and "lora_B" in k)})
        for read in (em.lora_modules, lambda f: attach_adapter(make_hf_model("llama"), "some/base", f)):
            with pytest.raises(ValueError, match=r"has A but not B for .*o_proj: its weights are incomplete"):
                read(folder)

    def test_a_module_without_weights(self, folder, make_hf_model):
        reweigh(folder, lambda t: {k: v for k, v in t.items() if "o_proj" not in k})
        with pytest.raises(ValueError, match="lacks weights for modules that its config names"):
            attach_adapter(make_hf_model("llama"), "some/base", folder)

    def test_another_rank_than_the_config_says(self, folder, make_hf_model):
        rewrite(folder, r=4)
        for read in (em.lora_modules, lambda f: attach_adapter(make_hf_model("llama"), "some/base", f)):
            with pytest.raises(ValueError, match=r"has rank 4 at .* by its config, but A of rank 2 and B of rank 2"):
                read(folder)

    def test_nan(self, folder, make_hf_model):
        reweigh(folder, lambda t: {k: v * (math.nan if "down_proj.lora_B" in k else 1) for k, v in t.items()})
        for read in (em.lora_modules, lambda f: attach_adapter(make_hf_model("llama"), "some/base", f)):
            with pytest.raises(ValueError, match=r"is NaN or infinite at .*down_proj.lora_B"):
                read(folder)

    def test_pickle(self, folder):
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        with pytest.raises(ValueError, match="adapters in pickle format are not read"):
            em.lora_modules(folder)


class TestWrites:
    def test_they_span_what_is_written(self, organism):
        writes = em.lora.write_directions(organism)
        assert set(writes.modules) == {m.name for m in em.lora_modules(organism) if m.writes_to_stream}
        assert len(writes) == 12
        for module in em.lora_modules(organism):
            if module.writes_to_stream:
                rows = [i for i, name in enumerate(writes.modules) if name == module.name]
                u, s = writes.vectors[rows], writes.strengths[rows]
                update = module.scale * module.B @ module.A
                torch.testing.assert_close(u @ u.mT, torch.eye(3), atol=1e-5, rtol=0)
                torch.testing.assert_close(s, torch.linalg.svdvals(update)[:3], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(u.mT @ u @ update, update, atol=1e-5, rtol=1e-4)
                assert writes.layers[rows[0]] == module.layer

    def test_at_rank_one_it_is_b_with_its_sign(self, make_peft):
        peft_model = make_peft(r=1)
        writes = em.lora.write_directions(peft_model)
        modules = [m for m in em.lora_modules(peft_model) if m.writes_to_stream]
        for row, module in zip(writes.vectors, modules, strict=True):
            torch.testing.assert_close(row, torch.nn.functional.normalize(module.B[:, 0], dim=0))

    def test_cosines_are_of_each_modules_own_layer(self, make_peft):
        peft_model = make_peft(r=1, targets=["down_proj"])
        planted, other = direction(0), direction(1, name="other")
        modules = em.lora_modules(peft_model)
        found = em.write_cosines(peft_model, planted, [other])
        for i, module in enumerate(modules):
            for d, cosine in ((planted, found.cosine), (other, found.control_cosines[0])):
                v = d[i]
                assert cosine[i].item() == pytest.approx(
                    (module.B[:, 0] @ v / module.B.norm() / v.norm()).item(), abs=1e-5
                )
        assert found.chance == pytest.approx(1.96 / math.sqrt(32))
        assert found.table()[2]["layer"] == 2
        assert found.table()[2]["control: other"] == pytest.approx(found.control_cosines[0, 2].item())
        planted.vectors[1] = -modules[1].B[:, 0]
        assert em.write_cosines(modules, planted).cosine[1].item() == pytest.approx(-1, abs=1e-5)
        assert em.write_cosines(modules[1], planted).cosine.shape == (1,)

    def test_what_writes_nothing_is_left_out(self, make_peft):
        peft_model = make_peft(targets=["down_proj"])
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name and ".0." in name:
                parameter.data[:, 1] = 0
            if "lora_B" in name and ".1." in name:
                parameter.data.zero_()
        assert em.lora.write_directions(peft_model).layers == (0, 2, 2)
        with pytest.raises(ValueError, match="nothing is written to the residual stream"):
            em.lora.write_directions(make_peft(targets=["q_proj"]))

    def test_direction_of_another_model(self, make_peft):
        with pytest.raises(ValueError, match="has d_model 16 but 32 features are written"):
            em.write_cosines(make_peft(), direction(d_model=16))
        with pytest.raises(ValueError, match="layer 2 is not in direction"):
            em.write_cosines(make_peft(), direction(layers=(0, 1)))

    def test_behind_a_norm_the_gain_counts(self, make_peft, organism_of):
        model = organism_of(
            make_peft("gemma3", r=1, targets=["down_proj", "o_proj"], layers_to_transform=[1]), "gemma3"
        )
        block = model.plain.model.layers[1]
        norms = {"o_proj": block.post_attention_layernorm, "down_proj": block.post_feedforward_layernorm}
        modules = em.lora_modules(model)
        for row, module in zip(em.lora.write_directions(model).vectors, modules, strict=True):
            gain = 1 + norms[module.name.split(".")[-1]].weight
            assert gain.std() > 0.1
            torch.testing.assert_close(module.gain, gain.detach(), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(row, torch.nn.functional.normalize(gain * module.B[:, 0], dim=0).detach())


class TestPropagated:
    def test_it_is_the_change_that_a_hook_makes(self, organism, conversations):
        vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
        found = em.lora.propagate(organism, vector, conversations, layer=1, coefficient=2.5)
        assert found.layers == (1, 2)
        torch.testing.assert_close(found.changes[:, 0], (2.5 * vector).expand(3, -1), atol=1e-4, rtol=1e-4)
        first, last = organism.plain.model.layers[1:]
        ends, rows = [], {}
        reads = last.register_forward_hook(lambda block, args, out: ends.append(out))
        for c in conversations:
            e = encode(organism.tokenizer, c, "response")
            with torch.no_grad():
                organism.plain(torch.tensor([e.ids]))
                adds = first.register_forward_hook(lambda block, args, out: out + 2.5 * vector)
                organism.plain(torch.tensor([e.ids]))
            adds.remove()
            before, after = (end[0, list(e.spans[0])].mean(0) for end in ends[-2:])
            rows.setdefault(c[0]["content"], []).append(after - before)
        reads.remove()
        wanted = torch.stack([torch.stack(r).mean(0) for r in rows.values()])
        torch.testing.assert_close(found.changes[:, 1], wanted, atol=1e-4, rtol=1e-4)

    def test_nothing_added_changes_nothing(self, organism, conversations):
        module = em.lora_modules(organism)[-1]
        assert not em.lora.propagate(organism, module, conversations, coefficient=0).changes.any()

    def test_a_module_is_added_at_its_own_layer(self, organism, conversations):
        module = next(m for m in em.lora_modules(organism) if m.name == "layers.1.mlp.down_proj")
        found = em.lora.propagate(organism, module, conversations, component=2)
        assert found.layers[0] == 1
        torch.testing.assert_close(found.change[0], module.scale * module.B[:, 2], atol=1e-4, rtol=1e-4)
        assert found.name == "layers.1.mlp.down_proj[2]"

    def test_the_cosine_has_a_jackknife_interval(self, organism, conversations):
        found = em.lora.propagate(organism, torch.ones(32), conversations, layer=0)
        planted = direction()
        along = found.along(planted)
        n = len(found.changes)
        for row, layer in enumerate(found.layers):
            cosine = lambda x, v=planted[layer]: torch.cosine_similarity(x, v, dim=0)  # noqa: E731
            left_out = torch.stack(
                [cosine(found.changes[[j for j in range(n) if j != i], row].mean(0)) for i in range(n)]
            )
            error = ((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()).sqrt().item()
            value = cosine(found.changes[:, row].mean(0)).item()
            assert along.cosine[row].item() == pytest.approx(value, abs=1e-5)
            assert along.high[row].item() == pytest.approx(min(1, value + 4.302653 * error), abs=1e-4)
            assert along.low[row].item() == pytest.approx(max(-1, value - 4.302653 * error), abs=1e-4)
        planted.vectors[:] = found.change
        torch.testing.assert_close(found.along(planted).cosine, torch.ones(3), atol=1e-5, rtol=0)

    def test_bad_questions(self, organism, conversations):
        reads, writes = em.lora_modules(organism)[:2]
        with pytest.raises(ValueError, match="does not write to the residual stream"):
            em.lora.propagate(organism, reads, conversations)
        with pytest.raises(ValueError, match="has no component 3: it has 3, counted from 0"):
            em.lora.propagate(organism, writes, conversations, component=3)
        with pytest.raises(ValueError, match="writes at layer 0, not 2"):
            em.lora.propagate(organism, writes, conversations, layer=2)
        with pytest.raises(ValueError, match="give layer="):
            em.lora.propagate(organism, torch.ones(32), conversations)


def test_readout_is_norm_and_unembedding(organism):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4))
    found = em.logit_lens(organism, vector, k=5)
    with torch.no_grad():
        wanted = organism.plain.lm_head(organism.plain.model.norm(vector))
    assert [logit for _, logit in found.top] == pytest.approx(wanted.topk(5).values.tolist(), abs=1e-4)
    assert [logit for _, logit in found.bottom] == pytest.approx(wanted.sort().values[:5].tolist(), abs=1e-4)
    assert found.top[0][0] == organism.tokenizer.decode([int(wanted.argmax())])
    assert "<table>" in found._repr_html_()


class TestScaled:
    def names(self, model):
        return [m.name for m in em.lora_modules(model)]

    def test_zero_is_exactly_the_base(self, organism, conversations):
        with em.without_adapter(organism):
            base, stream = logits(organism), em.residual_stream(organism, conversations).values
            with torch.no_grad():
                bridge = organism.bridge(IDS)
        with em.lora.scaled_adapters(organism, dict.fromkeys(self.names(organism), 0)):
            assert torch.equal(logits(organism), base)
            assert torch.equal(em.residual_stream(organism, conversations).values, stream)
            with torch.no_grad():
                assert torch.equal(organism.bridge(IDS), bridge)
        assert not torch.allclose(logits(organism), base, atol=1e-2)

    def test_one_changes_nothing(self, organism):
        plain = logits(organism)
        with em.lora.scaled_adapters(organism, {}):
            assert torch.equal(logits(organism), plain)

    @pytest.mark.parametrize("where", ["twin", "bridge"])
    def test_it_is_as_if_b_were_scaled(self, make_peft, organism_of, where):
        model = organism_of(make_peft(r=3, layers_to_transform=[0, 1]))
        name = "layers.1.mlp.down_proj"
        run = (lambda: logits(model)) if where == "twin" else (lambda: model.bridge(IDS).detach())
        with em.lora.scaled_adapters(model, {name: 0.5, f"{name}[2]": -2}, default=3):
            got = run()
        with torch.no_grad():
            for module, (_, lora) in lora_layers(model).items():
                b = lora.lora_B["default"].weight
                b.mul_(torch.tensor([0.5, 0.5, -2]) if module == name else 3)
        torch.testing.assert_close(got, run(), atol=1e-4, rtol=1e-4)

    def test_readings_share_a_prefix_under_the_same_context(self, make_peft, organism_of, conversations):
        model = organism_of(make_peft("qwen2", r=2), "qwen2")
        encoded = [encode(model.tokenizer, c, "response") for c in conversations]
        assert share_prefix(model, encoded)[0].length > 8
        with em.lora.scaled_adapters(model, {}, default=-1):
            together = em.residual_stream(model, conversations).values
        with torch.no_grad():
            for _, lora in lora_layers(model).values():
                lora.lora_B["default"].weight.neg_()
        rows = []
        for e in encoded:
            with torch.no_grad():
                states = model.plain(torch.tensor([e.ids]), output_hidden_states=True).hidden_states
            rows.append(torch.stack([s[0, list(e.spans[0])].mean(0) for s in states[1:3]]))
        torch.testing.assert_close(together[:, :2], torch.stack(rows), atol=1e-4, rtol=1e-4)

    def test_an_exception_leaves_nothing_behind(self, organism):
        plain = logits(organism)
        for context in (
            em.lora.scaled_adapters(organism, {}, default=0),
            em.lora.projected_adapters(organism, direction()),
        ):
            with pytest.raises(KeyError), context:
                raise KeyError(torch.allclose(logits(organism), plain, atol=1e-4))
            assert torch.equal(logits(organism), plain)
        for peft_model in organism.peft_models:
            assert not any(m._forward_hooks for m in peft_model.modules() if isinstance(m, torch.nn.Linear))

    def test_unknown_names(self, organism):
        for name, message in (
            ("layers.9.mlp.down_proj", r"no 'layers\.9\.mlp\.down_proj': choose one of layers\.0\.self_attn\.q_proj, "),
            ("layers.9.mlp.down_proj[0]", "choose one of layers"),
            ("layers.1.mlp.down_proj[3]", "has no component 3: it has 3"),
        ):
            with pytest.raises(ValueError, match=message), em.lora.scaled_adapters(organism, {name: 0}):
                pass
        with (
            pytest.raises(ValueError, match="is nan: give a finite number"),
            em.lora.scaled_adapters(organism, {"layers.1.mlp.down_proj": math.nan}),
        ):
            pass


class TestProjected:
    def test_nothing_is_written_along_it(self, organism, conversations):
        planted = direction()
        module = {m.name: m for m in em.lora_modules(organism)}["layers.1.mlp.down_proj"]
        _, lora = lora_layers(organism)[module.name]
        seen = []
        handle = lora.register_forward_hook(lambda m, args, out: seen.append((args[0], out - m.base_layer(args[0]))))
        free = logits(organism)
        with em.lora.projected_adapters(organism, planted):
            got = logits(organism)
        with em.lora.projected_adapters(organism, planted[1]):
            one_vector = logits(organism)
        handle.remove()
        unit = planted[1] / planted[1].norm()
        (_, before), (y, after), _ = seen
        assert (before @ unit).abs().max() > 0.1
        assert (after @ unit).abs().max() < 1e-5
        written = y @ (module.scale * module.B @ module.A).T
        torch.testing.assert_close(after, written - (written @ unit)[..., None] * unit, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(got, free, atol=1e-3)
        assert not torch.allclose(got, one_vector, atol=1e-4)

    def test_behind_a_norm(self, make_peft, organism_of):
        """What Gemma adds to the stream is the norm's weights times this: that must have nothing along it."""
        model = organism_of(make_peft("gemma3", targets=["down_proj"], layers_to_transform=[1]), "gemma3")
        unit = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)
        norm = model.plain.model.layers[1].post_feedforward_layernorm
        inputs = []
        handle = norm.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
        with em.lora.projected_adapters(model, unit):
            logits(model)
        with em.without_adapter(model):
            logits(model)
        handle.remove()
        written = (1 + norm.weight.detach()) * (inputs[0] - inputs[1])
        assert written.norm(dim=-1).mean() > 0.1
        assert (written @ unit).abs().max() < 1e-5

    def test_bad_directions(self, organism, make_peft, organism_of):
        cases = (
            (organism, direction(d_model=16), "has d_model 16 but layers.0.self_attn.o_proj writes 32"),
            (organism, torch.zeros(32), "the direction is zero at"),
            (organism_of(make_peft(targets=["q_proj"])), direction(), "nothing to project"),
        )
        for model, bad, message in cases:
            with pytest.raises(ValueError, match=message), em.lora.projected_adapters(model, bad):
                pass


def test_the_adapter_that_peft_loads_is_the_one_in_the_folder(folder, make_hf_model):
    loaded = {m.name: m for m in em.lora_modules(PeftModel.from_pretrained(make_hf_model("llama"), folder))}
    stored = em.lora_modules(folder)
    assert len(stored) == len(loaded) == 3
    for module in stored:
        assert module.scale == loaded[module.name].scale
        assert torch.equal(module.B, loaded[module.name].B)
