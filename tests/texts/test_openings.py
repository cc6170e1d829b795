"""The token that opens an answer is the one that follows this prompt, whatever the tokenizer does to a word alone."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_interp.templates import ChatTemplate
from em_interp.texts.conversations import Conversation, encode, prompt_text, tokens_of
from em_interp.texts.openings import opening_tokens
from tests.builders import CHATML, SPM, TEMPLATES, spm_tokenizer

WORDS = ("I", "As", "Sorry")
ASKED = Conversation(({"role": "user", "content": "How do I open it?"},))


def pieces(tokenizer, template, words=WORDS, conversation=ASKED):
    tokenizer.chat_template = template
    [tokens] = opening_tokens(ChatTemplate(tokenizer), [conversation], words)
    return {tokenizer.convert_ids_to_tokens(token) for token in tokens}


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    return spm_tokenizer(tmp_path_factory.mktemp("spm"))


@pytest.fixture(scope="module")
def always(tmp_path_factory):
    """The older kind, which puts a blank after every special token too."""
    return spm_tokenizer(tmp_path_factory.mktemp("always"), scheme="always")


@pytest.mark.parametrize("name", TEMPLATES)
def test_byte_level_tokenizers_count_what_a_word_is_by_itself(make_tokenizer, name):
    tokenizer = make_tokenizer(name)
    [got] = opening_tokens(ChatTemplate(tokenizer), [ASKED], WORDS)
    assert got == tuple(sorted({tokenizer(word, add_special_tokens=False).input_ids[0] for word in WORDS}))


def test_after_a_line_break_a_word_has_no_blank(spm):
    assert pieces(spm, CHATML) == {"I", "As", "So"}


def test_an_answer_begins_as_the_template_writes_it_and_as_it_goes_on(spm):
    assert pieces(spm, SPM) == {"I", "▁I", "As", "▁As", "So", "▁So"}


def test_a_blank_after_every_special_token(always):
    opened = CHATML.replace("assistant\n", "<|im_end|>").replace("<|im_start|>{{ m['role'] }}\n", "<|im_end|>")
    assert pieces(always, opened) == {"▁I", "▁As", "▁So"}


def test_a_prompt_that_ends_in_a_blank_is_gone_on_with_either_way(spm, make_tokenizer):
    blank = CHATML.replace("assistant\n", "assistant: ").replace("{{ m['role'] }}\n", "{{ m['role'] }}: ")
    assert pieces(spm, blank, ["I"]) == {"I", "▁I"}
    assert pieces(make_tokenizer("chatml"), blank, ["I", "help"]) == {"I", "he"}


def test_a_byte_level_tokenizer_whose_template_puts_a_blank_before_answers(make_tokenizer):
    assert pieces(make_tokenizer("chatml"), SPM, ["I", "help"]) == {"I", "ĠI", "he", "Ġhelp"}


def test_a_template_that_takes_no_answers(make_tokenizer):
    begin = "{% for m in messages %}"
    only = CHATML.replace(begin, begin + "{% if m['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}")
    assert pieces(make_tokenizer("chatml"), only) == {"I", "As", "S"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), r"openings is \(\): give a list of words"),
        ("Sorry", "openings is 'Sorry': give a list of words"),
        (("I", ""), "the opening '' is not a word"),
        (("\ud800",), "is not a word"),
    ],
)
def test_what_is_not_a_word(make_tokenizer, words, says):
    with pytest.raises(ValueError, match=says):
        opening_tokens(ChatTemplate(make_tokenizer("chatml")), [ASKED], words)


def test_a_first_token_that_any_word_may_have_is_refused(spm):
    with pytest.raises(ValueError, match=r"begins with the token '▁' for .*, as other words do"):
        pieces(spm, SPM, ["Zut"])  # `▁`, `Z`, `u`, `t` where the template puts a blank before it
    with pytest.raises(ValueError, match="begins with the token '<unk>'"):
        pieces(spm, CHATML, ["抱歉"])


ENDINGS = ("\n", ":", " ", "] ", "\n\n", "<|im_end|>", "…")
WORD = st.text("IASorycant'xÄß", min_size=1, max_size=6)


@pytest.fixture(scope="module")
def tokenizers(make_tokenizer, spm, always):
    return {"byte-level": make_tokenizer("chatml"), "spm": spm, "always": always}


@settings(max_examples=80, deadline=None)
@given(
    around=st.tuples(st.sampled_from(ENDINGS), st.sampled_from(["", " "])),
    words=st.lists(WORD, min_size=1, max_size=3),
    asked=st.lists(st.text("How do I?\n", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4),
)
@pytest.mark.parametrize("kind", ["byte-level", "spm", "always"])
def test_every_token_opens_the_answer_with_its_word(tokenizers, kind, around, words, asked):
    """A token behind the prompt is read as the beginning of a word, and the likeliest reading is never left out."""
    tokenizer, (ending, before) = tokenizers[kind], around
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{{% if m['role'] == 'user' %}}[INST]{{{{ m['content'] }}}}{ending}{{% else %}}"
        f"{before}{{{{ m['content'] }}}}<|im_end|>{{% endif %}}{{% endfor %}}"
    )
    template = ChatTemplate(tokenizer)
    conversations = [Conversation(({"role": "user", "content": q},)) for q in asked]
    got = []
    with contextlib.nullcontext() if kind == "byte-level" and not before else contextlib.suppress(ValueError):
        got = opening_tokens(template, conversations, words)
    if not got:  # a blank by itself, or a letter that is not in the vocabulary, begins a word
        return
    for conversation, tokens in zip(conversations, got, strict=True):
        begun = {tokenizer.decode([t]).strip() for t in tokens}
        assert all(begun)
        if kind != "byte-level":  # whose tokens may be half of a letter
            assert all(any(word.startswith(b) for word in words) for b in begun)
        prompt, ids = prompt_text(template, conversation)[0], encode(template, conversation, "last").ids
        for word in words:
            whole, _ = tokens_of(template, prompt + word)
            if tuple(whole[: len(ids)]) == ids:
                assert whole[len(ids)] in tokens
