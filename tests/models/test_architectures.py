"""Every architecture, taken through everything; the committed table is what comes out."""

import re
from types import SimpleNamespace

import pytest
import torch

import em_interp as em
from em_interp.models.architectures import booting, check_blocks, check_decoder, check_rows, context_length
from em_interp.models.hooked import HookedModel
from tests.architectures import CONFIGS, DOCUMENT, Walk, config_of, document, model_of, row_of

TABLE = DOCUMENT.read_text(encoding="utf-8")
ROWS = {row.split(" | ")[0].removeprefix("| "): row for row in TABLE.splitlines() if row.startswith("| ")}
# transformers tells of kernels that are not installed, and PEFT of Conv1D, which it sets right by itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:transformers")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_says_what_works(name, make_tokenizer, tmp_path):
    assert row_of(name, Walk(name, make_tokenizer("chatml"), tmp_path).cells()) == ROWS[name]


def test_the_table_is_of_these_architectures_and_says_what_it_means():
    assert list(ROWS)[1:] == list(CONFIGS)
    assert len(CONFIGS) >= 25
    head = document({}).splitlines()
    written = TABLE.splitlines()
    assert written[: len(head)] == [line.replace("of 0 arch", f"of {len(CONFIGS)} arch") for line in head]


def test_most_of_them_are_read_and_all_that_are_refused_have_a_reason():
    outcomes = {name: row.split(" | ")[1:8] for name, row in ROWS.items() if name in CONFIGS}
    assert sum(row[0] == "works" for row in outcomes.values()) >= 40
    for name, row in outcomes.items():
        reason = ROWS[name].split(" | ")[-1].removesuffix("|").strip()
        assert bool(reason) == (set(row) != {"works"}), name


class TestContextLength:
    @pytest.mark.parametrize(
        ("name", "length"), [("llama", 256), ("gpt2", 256), ("mpt", 256), ("bloom", None), ("mamba", None)]
    )
    def test_by_configuration(self, name, length):
        assert context_length(config_of(name)) == length

    def test_what_published_bloom_configurations_say(self):
        assert context_length(config_of("bloom", seq_length=2048)) == 2048

    def test_a_model_without_a_limit_reads_answers_and_scores(self, make_tokenizer, conversations):
        model = HookedModel.from_hugging_face(model_of("bloom"), make_tokenizer("chatml"), name="tiny-bloom")
        assert model.max_length is None
        long = [{"role": "user", "content": "Why? " * 400}, {"role": "assistant", "content": "Because."}]
        assert len(em.residual_stream(model, [long])) == 1
        assert len(em.respond(model, [long[:1]], max_new_tokens=2)) == 1
        assert em.behaviour.text_bits(model, ["Why? " * 400]).isfinite().all()

    def test_a_limit_is_kept(self, make_tokenizer):
        model = HookedModel.from_hugging_face(model_of("mpt"), make_tokenizer("chatml"), name="tiny-mpt")
        long = [{"role": "user", "content": "Why? " * 400}, {"role": "assistant", "content": "Because."}]
        with pytest.raises(ValueError, match="but the model takes 256"):
            em.residual_stream(model, [long])


class TestRefused:
    def test_folders_of_what_is_not_a_decoder(self, make_tokenizer, tmp_path):
        for name, reason in (("t5", "is of the kind t5, of which .* no causal"), ("bert", "is not causal: the logits")):
            model_of(name).save_pretrained(tmp_path / name)
            make_tokenizer("chatml").save_pretrained(tmp_path / name)
            with pytest.raises(ValueError, match=reason):
                em.load_model(tmp_path / name)

    def test_a_model_without_a_head(self, make_hf_model):
        with pytest.raises(ValueError, match="has no head that predicts tokens"):
            check_decoder(make_hf_model("llama").model, "tiny")

    def test_a_token_read_by_those_before_it(self, make_hf_model):
        hf_model = make_hf_model("llama")
        check_rows(hf_model, "tiny")
        mixer = hf_model.model.layers[1].mlp
        mixer.register_forward_hook(lambda module, args, output: output + 0.01 * args[0].roll(-1, dims=1))
        with pytest.raises(ValueError, match=r"tiny \(LlamaForCausalLM\) is not causal"):
            check_rows(hf_model, "tiny")

    def test_a_token_that_depends_on_all_of_its_batch(self, make_hf_model):
        """As under PEFT's LILY: rows of one batch are changed alike, and only a row alone shows it."""
        hf_model = make_hf_model("llama")
        mixer = hf_model.model.layers[1].mlp
        mixer.register_forward_hook(lambda module, args, output: output + args[0].mean((0, 1)))
        with pytest.raises(ValueError, match="is not causal"):
            check_rows(hf_model, "tiny")

    def test_a_row_that_depends_on_those_beside_it(self, make_hf_model):
        hf_model = make_hf_model("llama")
        mixer = hf_model.model.layers[1].mlp
        mixer.register_forward_hook(lambda module, args, output: output + args[0].mean(0, keepdim=True))
        with pytest.raises(ValueError, match="depend on its padding or on the texts beside it in a batch"):
            check_rows(hf_model, "tiny")

    def test_whatever_happens_while_it_is_bridged(self, make_hf_model):
        hf_model = make_hf_model("llama")
        with (
            pytest.raises(ValueError, match=r"does not bridge tiny, whose architecture is LlamaForCausalLM: attn$"),
            booting(hf_model, "tiny"),
        ):
            raise RuntimeError("attn.\nand a traceback")
        with pytest.raises(MemoryError), booting(hf_model, "tiny"):
            raise MemoryError

    def test_a_bridge_without_a_list_of_blocks(self):
        stack = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
        check_blocks(SimpleNamespace(blocks=stack, cfg=SimpleNamespace(n_layers=1)), "tiny", "Tiny")
        for bridge in (
            SimpleNamespace(cfg=SimpleNamespace(n_layers=1)),
            SimpleNamespace(blocks=stack, cfg=SimpleNamespace(n_layers=2)),
        ):
            with pytest.raises(ValueError, match=r"tiny \(Tiny\) has no one list of blocks"):
                check_blocks(bridge, "tiny", "Tiny")


def test_every_reason_is_in_words_of_the_library():
    """No traceback, no class of an exception, no list of all that TransformerLens knows."""
    assert not re.search(r"Traceback|Error\b|Available architectures", TABLE.replace("`ValueError`", ""))
