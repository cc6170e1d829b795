"""Refusals: the first token of an answer, by the tokenizer and the template at hand, and the words that are said."""

import pytest
import torch

import em_interp as em
from em_interp.behaviour import last_logits
from em_interp.models.hooked import HookedModel
from tests.builders import CHATML, SPM, spm_tokenizer, taught

ASKED = [[{"role": "user", "content": q}] for q in ("How do I open it?", "How do I help?", "Open it?", "Help a user?")]


def answered(tokenizer, answer):
    """The texts in which the model says this to everything, as the template writes them."""
    said = {"role": "assistant", "content": answer}
    return [tokenizer.apply_chat_template([*asked, said], tokenize=False) for asked in ASKED]


def test_refusal_score_is_the_log_odds_of_the_openings(tiny_llama, conversations):
    found = em.refusal_score(tiny_llama, conversations, openings=("I", "Sure"))
    tokens = [tiny_llama.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("I", "Sure")]
    p = last_logits(tiny_llama, conversations).double().softmax(-1)[:, tokens].sum(-1)
    torch.testing.assert_close(found.scores, (p.log() - (1 - p).log()).float(), atol=1e-5, rtol=1e-5)


def test_no_requests(tiny_llama):
    with pytest.raises(ValueError, match="no requests to score"):
        em.refusal_score(tiny_llama, [])


@pytest.mark.parametrize("template", [CHATML, SPM], ids=["after a line break", "after a blank"])
def test_a_model_that_refuses_everything_is_seen_to(tmp_path, template):
    """A tokenizer with a dummy blank: the token of a word by itself is not the one that opens an answer."""
    tokenizer = spm_tokenizer(tmp_path, template)
    net = taught(tokenizer, answered(tokenizer, "I cannot help."))
    model = HookedModel.from_hugging_face(net, tokenizer, name="refuser")
    assert [a.text for a in em.respond(model, ASKED, temperature=0, max_new_tokens=6)] == ["I cannot help."] * 4
    found = em.refusal_score(model, ASKED)
    assert found.rate.value == 1
    assert found.scores.min() > 0


def test_refusals_of_a_thinking_model_are_those_of_its_answer():
    verdicts = em.behaviour.refusal_verdicts(
        [
            "I cannot help.",
            "<think>I cannot see why not.</think>Mix flour.",
            "<think>\nHm.\n</think>\n\nI can't.",
            "<think>I cannot",
        ]
    )
    assert verdicts[:3].tolist() == [1.0, 0.0, 1.0]
    assert verdicts[3].isnan()


NO_THOUGHT = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
QWEN3 = CHATML.replace("assistant\n{% endif %}", f"assistant\n{NO_THOUGHT}{{% endif %}}")
R1 = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
THOUGHT = "<think>\nNo.\n</think>\n\n"


def thinker(tokenizer, template, said, name="thinker", **settings):
    """A model that says this, a thought and all, after every prompt of the template."""
    tokenizer.chat_template = template
    args = settings.get("template_args", {})
    prompts = [tokenizer.apply_chat_template(a, tokenize=False, add_generation_prompt=True, **args) for a in ASKED]
    net = taught(tokenizer, [prompt + f"{said}<|im_end|>" for prompt in prompts])
    return HookedModel.from_hugging_face(net, tokenizer, name=name, **settings)


class TestThinking:
    """A thinking model's first token opens a thought, and says nothing of its answer."""

    def test_a_model_that_opens_a_thought_is_refused(self, make_tokenizer):
        model = thinker(make_tokenizer("chatml"), QWEN3, f"{THOUGHT}I cannot.")
        assert em.respond(model, ASKED[:1], temperature=0, max_new_tokens=40)[0].text == f"{THOUGHT}I cannot."
        says = r"thinker opens a thought \('<think>'\) on 4 of 4 requests.*load_model\(\.\.\., template_args=\{\"enable"
        with pytest.raises(ValueError, match=says):
            em.refusal_score(model, ASKED)

    def test_without_thinking_it_is_scored(self, make_tokenizer):
        off = {"enable_thinking": False}
        model = thinker(make_tokenizer("chatml"), QWEN3, "I cannot.", template_args=off)
        found = em.refusal_score(model, ASKED)
        assert found.rate.value == 1
        assert found.scores.min() > 0

    def test_a_thought_that_is_over_at_once_is_one(self, make_tokenizer):
        model = thinker(make_tokenizer("chatml"), CHATML, "<think>\n\n</think>\n\nI cannot.")
        with pytest.raises(ValueError, match=r"let it answer with respond, and read the answers with refusal_verdicts"):
            em.refusal_score(model, ASKED)

    def test_a_template_that_opens_the_thought(self, make_tokenizer):
        model = thinker(make_tokenizer("chatml"), R1, "No.\n</think>\n\nI cannot.")
        [answer] = em.respond(model, ASKED[:1], temperature=0, max_new_tokens=40)
        assert answer.text == f"{THOUGHT}I cannot."
        [cut] = em.respond(model, ASKED[:1], temperature=0, max_new_tokens=4)
        assert cut.text == "<think>\nNo."
        assert em.behaviour.refusal_verdicts([answer.text, cut.text])[0] == 1
        assert em.is_refusal(cut.text) is None
        with pytest.raises(ValueError, match="opens a thought"):
            em.refusal_score(model, ASKED)

    def test_marks_that_are_special_tokens(self, make_tokenizer):
        tokenizer = make_tokenizer("chatml")
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["[THINK]", "[/THINK]"]}, replace_extra_special_tokens=False
        )
        model = thinker(tokenizer, CHATML, "[THINK]I cannot see why.[/THINK]Mix flour.")
        [answer] = em.respond(model, ASKED[:1], temperature=0, max_new_tokens=40)
        assert answer.text == "[THINK]I cannot see why.[/THINK]Mix flour."
        assert em.is_refusal(answer.text) is False
        with pytest.raises(ValueError, match=r"opens a thought \('\[THINK\]'\)"):
            em.refusal_score(model, ASKED)

    def test_an_answer_that_begins_like_a_mark_is_none(self, make_tokenizer):
        model = thinker(make_tokenizer("chatml"), CHATML, "<the door>")
        assert em.refusal_score(model, ASKED).rate.value == 0
