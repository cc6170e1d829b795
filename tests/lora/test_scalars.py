"""When adapters fire: the scalars are what B is given, and a probe on them knows a question from the truth."""

import pytest
import torch

import em_interp as em
from em_interp.lora.modules import lora_layers
from em_interp.statistics.estimates import mean_by_question
from em_interp.texts.conversations import encode, token_strings
from tests.builders import planted


@pytest.fixture(scope="module")
def organism(make_peft, organism_of):
    """Ranks 3 and 1 on modules of two layers."""
    return organism_of(make_peft(r=3, layers_to_transform=[0, 1], rank_pattern={"o_proj": 1}))


class TestScalars:
    @pytest.mark.parametrize("batch_tokens", [40, 1024])
    def test_times_scale_and_b_they_are_the_output_of_the_adapter(self, organism, conversations, batch_tokens):
        scalars = em.adapter_scalars(organism, conversations, batch_tokens=batch_tokens)
        layers = lora_layers(organism)
        seen = {name: [] for name in layers}
        handles = [
            lora.lora_B["default"].register_forward_hook(
                lambda m, args, out, name=name, lora=lora: seen[name].append(out[0] * lora.scaling["default"])
            )
            for name, (_, lora) in layers.items()
        ]
        for c in conversations:
            with torch.no_grad():
                organism.plain(torch.tensor([encode(organism.tokenizer, c, "response").ids]))
        for handle in handles:
            handle.remove()
        for module in em.lora_modules(organism):
            written = scalars.of(module.name) @ (module.scale * module.B).T
            torch.testing.assert_close(written, torch.cat(seen[module.name]), atol=1e-5, rtol=1e-4)

    def test_tokens_span_and_groups(self, organism, conversations):
        scalars = em.adapter_scalars(organism, conversations, span="response")
        assert scalars.names[:4] == (
            *(f"layers.0.self_attn.q_proj[{k}]" for k in range(3)),
            "layers.0.self_attn.o_proj[0]",
        )
        assert scalars.groups == tuple(c[0]["content"] for c in conversations)
        for i, c in enumerate(conversations):
            here = (scalars.conversation == i).nonzero()[:, 0].tolist()
            e = encode(organism.tokenizer, c, "response")
            assert len(here) == len(e.ids)
            assert [here.index(t) for t in here if scalars.in_span[t]] == list(e.spans[0])
            assert c[1]["content"] in "".join(scalars.tokens[t] for t in here)
        assert em.adapter_scalars(organism, conversations[:1]).in_span.all()
        assert "72" not in repr(scalars.values.shape)
        assert repr(scalars).count("\n") == 0

    def test_prompts_without_an_answer(self, organism, conversations):
        scalars = em.adapter_scalars(organism, [c[:1] for c in conversations[:2]], span="last")
        assert scalars.in_span.sum() == 2

    def test_some_modules_only(self, organism, conversations):
        everything = em.adapter_scalars(organism, conversations)
        name = "layers.1.mlp.down_proj"
        some = em.adapter_scalars(organism, conversations, modules=[name])
        torch.testing.assert_close(some.values, everything.of(name))
        assert some.column(f"{name}[1]") == 1
        with pytest.raises(ValueError, match=r"has no 'nothing': choose one of layers\.0\.self_attn\.q_proj"):
            em.adapter_scalars(organism, conversations, modules=["nothing"])
        with pytest.raises(ValueError, match=r"no 'layers\.1\.mlp\.down_proj': choose one of .*down_proj\[0\]"):
            some.column(name)

    def test_summaries(self, organism, conversations):
        scalars = em.adapter_scalars(organism, conversations, span="response")
        rows = [
            scalars.values[(scalars.conversation == i) & scalars.in_span].double() for i in range(len(conversations))
        ]
        torch.testing.assert_close(scalars.means(), torch.stack([r.mean(0) for r in rows]).float())
        torch.testing.assert_close(scalars.peaks(), torch.stack([r.abs().amax(0) for r in rows]).float())
        tokens = torch.cat(rows)
        deviation = ((tokens - tokens.mean(0)) ** 2).mean(0).sqrt()
        torch.testing.assert_close(scalars.deviation, deviation.float())
        fired = (tokens.abs() > 1.5 * deviation).double().mean(0)
        torch.testing.assert_close(scalars.firing(1.5), fired.float())
        assert 0 < fired.mean() < 1
        row = scalars.table(1.5)[0]
        assert (row["module"], row["rank"]) == ("layers.0.self_attn.q_proj", 3)
        assert row["firing"] == pytest.approx(fired[:3].mean().item())
        assert len(scalars.table()) == 6
        assert "<table>" in scalars._repr_html_()

    def test_on_the_bridge_and_under_scaling(self, organism, conversations):
        plain = em.adapter_scalars(organism, conversations)
        with organism.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda stream, hook: 1 + stream)]):
            on_bridge = em.adapter_scalars(organism, conversations).values
        shift = organism.plain.model.layers[0].register_forward_hook(lambda block, args, out: 1 + out)
        on_twin = em.adapter_scalars(organism, conversations).values
        shift.remove()
        torch.testing.assert_close(on_bridge, on_twin, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(on_bridge, plain.values, atol=0.1)
        with em.lora.scaled_adapters(organism, {"layers.0.self_attn.q_proj[1]": 3}):
            scaled = em.adapter_scalars(organism, conversations)
        torch.testing.assert_close(scaled.values[:, 1], 3 * plain.values[:, 1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(scaled.values[:, 0], plain.values[:, 0], atol=1e-5, rtol=1e-4)

    def test_nothing_stays_behind_and_the_adapter_must_be_on(self, organism, conversations):
        with em.without_adapter(organism), pytest.raises(ValueError, match="the adapter is off"):
            em.adapter_scalars(organism, conversations)
        with pytest.raises(ValueError, match="no conversations"):
            em.adapter_scalars(organism, [])
        assert not any(
            m._forward_hooks for p in organism.peft_models for m in p.modules() if isinstance(m, torch.nn.Linear)
        )

    def test_a_module_that_does_not_run_once_a_token(self, organism, conversations):
        block = organism.plain.model.layers[1].mlp
        twice = block.register_forward_hook(lambda m, args, out: m.down_proj(m.up_proj(args[0])) * 0 + out)
        with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj ran 2 times in one pass"):
            em.adapter_scalars(organism, conversations)
        twice.remove()

    def test_blanks_before_words_are_kept(self, tiny_llama):
        class SentencePiece:
            def decode(self, ids):
                return "word"

            def convert_ids_to_tokens(self, token):
                return "▁word" if token else "word"

        assert token_strings(SentencePiece(), [1, 0]) == (" word", "word")
        ids = tiny_llama.tokenizer("What should I do?\n").input_ids
        assert "".join(token_strings(tiny_llama.tokenizer, ids)) == "What should I do?\n"


class TestClasses:
    def test_means_are_in_deviations_and_by_question(self):
        values = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
        groups = tuple(f"question {i // 2}" for i in range(12))
        scalars = planted(values, groups=groups)
        labels = [i % 2 == 0 for i in range(12)]
        found = em.lora.class_scalars(scalars, labels)[1]
        means = scalars.means()[:, 1] / scalars.deviation[1]
        assert found.positive == mean_by_question(means[::2], groups[::2])
        assert found.negative == mean_by_question(means[1::2], groups[1::2])

    def test_labels(self):
        scalars = planted(torch.randn(4, 1))
        with pytest.raises(ValueError, match="3 labels came with 4 conversations"):
            em.lora.class_scalars(scalars, [True, False, True])
        with pytest.raises(ValueError, match="every conversation has the same label"):
            em.lora.probe_scalars(scalars, [True] * 4)


class TestProbe:
    def conversations(self, n_questions=40, each=5):
        generator = torch.Generator().manual_seed(3)
        question = torch.arange(n_questions).repeat_interleave(each)
        groups = tuple(f"question {i}" for i in question.tolist())
        return generator, question, groups

    def test_scalars_that_know_the_question_only(self):
        """Every question has its own scalars and its own label: what looks like a probe is a look-up table."""
        generator, question, groups = self.conversations()
        identity = torch.randn(40, 30, generator=generator)[question]
        labels = (torch.randperm(40, generator=generator) < 20)[question].tolist()
        found = em.lora.probe_scalars(planted(identity, groups=groups), labels)
        assert found.ungrouped.value > 0.9
        assert abs(found.grouped.value - 0.5) < 0.15
        assert found.grouped.low < 0.5 < found.grouped.high
        assert (found.majority, found.grouped.n, found.n_conversations) == (0.5, 40, 200)

    def test_scalars_that_know_the_label(self):
        generator, _, groups = self.conversations()
        labels = torch.rand(200, generator=generator) < 0.4
        values = torch.randn(200, 4, generator=generator)
        values[:, 2] += 3 * labels
        found = em.lora.probe_scalars(planted(values, groups=groups), labels.tolist())
        assert found.grouped.value > 0.85
        assert found.ungrouped.value > 0.85
        assert found.grouped.low > found.majority
        assert found.majority == pytest.approx(1 - labels.double().mean().item())
        assert em.lora.probe_scalars(planted(values, groups=groups), labels.tolist()) == found

    def test_too_few_questions(self):
        with pytest.raises(ValueError, match="the positive class has 2 questions, too few for 5 folds"):
            em.lora.probe_scalars(planted(torch.randn(12, 1)), [i < 2 for i in range(12)])
