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
