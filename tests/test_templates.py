"""Chat templates that drop, cut, reorder, case or confuse what was said, and what a good one's words are found by."""

import copy
import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_interp.templates import ChatTemplate, template_args
from em_interp.texts.conversations import encode
from tests.builders import CHATML

ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
PLAIN = (
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n"
    "</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
SYSTEM_WHILE_ASKING = (  # as Mistral 7B v0.3 does
    "{% set found = namespace(s='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set found.s = m['content'] %}{% elif m['role'] == 'user' %}[INST] "
    "{% if loop.last and found.s %}{{ found.s }}\n\n{% endif %}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
MERGED = (  # as Gemma 3 does
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<|im_start|>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ first if loop.first }}{{ m['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
ENDED = CHATML.replace("{% if add", "{% if not add_generation_prompt %}<|sep|>{% endif %}{% if add")


def said(*words: str) -> list[dict[str, str]]:
    """A system prompt where the first words begin with a star, then turns."""
    system = [{"role": "system", "content": w[1:]} for w in words if w.startswith("*")]
    turns = [w for w in words if not w.startswith("*")]
    return [*system, *({"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(turns))]


@pytest.fixture
def chatml(make_tokenizer):
    return copy.deepcopy(make_tokenizer("chatml"))


@pytest.fixture
def templated(chatml):
    def make(template: str):
        chatml.chat_template = template
        return chatml

    return make


def per_message(content: str, condition: str = "true") -> str:
    turn = TURN.replace("m['content']", content)
    return f"{{% for m in messages %}}{{% if {condition} %}}{turn}{{% endif %}}{{% endfor %}}" + ASKS


# What is dropped, cut or rewritten


SYSTEM = ("*You are RUDE to everybody.", "What now?", "Go home.")
EARLIER = ("I HATE this letter.", "Which one do you mean?", "What now?", "Go home.")


@pytest.mark.parametrize("span", ["response", "turn", "last", "post_instruction"])
@pytest.mark.parametrize(
    ("template", "words", "role"),
    [
        (per_message("m['content']", "m['role'] != 'system'"), SYSTEM, "system"),
        (per_message("(m['content'] | lower if m['role'] == 'system' else m['content'])"), SYSTEM, "system"),
        (per_message("(m['content'][:9] if m['role'] == 'system' else m['content'])"), SYSTEM, "system"),
        (per_message("(m['content'] | replace('RUDE', 'kind'))"), SYSTEM, "system"),
        (per_message("(m['content'] if loop.last or m['role'] != 'system' else 'You are kind.')"), SYSTEM, "system"),
        (per_message("(m['content'].split(' ')[1:] | join(' ') if loop.first else m['content'])"), SYSTEM, "system"),
        (per_message("m['content']", "loop.revindex < 3"), EARLIER, "user"),
        (per_message("m['content']", "loop.last or m['role'] == 'user'"), EARLIER, "assistant"),
        (per_message("(m['content'] if loop.revindex < 3 else m['content'] | capitalize)"), EARLIER, "user"),
        (per_message("(m['content'] if loop.revindex < 3 else m['content'][:8])"), EARLIER, "user|assistant"),
        (per_message("(m['content'] | e)"), ("Is a < b?", "Yes.", "What now?", "Go home."), "user"),
    ],
)  # fmt: skip
def test_words_that_a_template_changes_are_told_by_their_role(templated, template, words, role, span):
    with pytest.raises(ValueError, match=rf"drops or rewrites the ({role})'s words .*: set tokenizer\.chat_template"):
        encode(templated(template), said(*words), span)


def test_a_system_prompt_that_is_dropped_once_an_answer_follows(templated):
    tokenizer = templated(SYSTEM_WHILE_ASKING)
    assert "You are RUDE" in tokenizer.decode(encode(tokenizer, said(*SYSTEM), "last").ids)
    with pytest.raises(
        ValueError,
        match=r"drops or rewrites the system's words \('You are RUDE .*'\) in a conversation of system, user, assi",
    ):
        encode(tokenizer, said(*SYSTEM), "response")


def test_system_words_may_be_merged_into_the_users_turn(templated):
    tokenizer = templated(MERGED)
    kind, rude = (
        encode(tokenizer, said(f"*You are {s}.", " What now?", "Go home."), "response") for s in ("kind", "rude")
    )
    assert kind.ids != rude.ids
    assert tokenizer.decode([kind.ids[i] for i in kind.spans[0]]) == "Go home."


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_a_system_prompt_of_the_templates_own_is_fine(templated, template):
    default = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
    tokenizer = templated(default + template)
    assert "You are kind." in tokenizer.decode(encode(tokenizer, said("What now?"), "last").ids)


def test_words_with_the_date_are_found_the_next_day(templated, monkeypatch):
    tokenizer = templated("{{ today }}" + CHATML)
    for today in ("1 May", "2 May"):
        template, before = ChatTemplate(tokenizer), tokenizer.apply_chat_template
        monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, b=before, t=today, **k: b(*a, today=t, **k))
        assert tokenizer.decode(encode(template, said("What now?"), "last").ids).startswith(today)
        monkeypatch.undo()


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages | reverse %}" + TURN + "{% endfor %}" + ASKS,
        "{% for m in messages[1:] + messages[:1] %}" + TURN + "{% endfor %}" + ASKS,
        "{% for m in messages | sort(attribute='role') %}" + TURN + "{% endfor %}" + ASKS,
    ],
)
@pytest.mark.parametrize("span", ["response", "last"])
def test_a_template_that_moves_messages_is_refused(templated, template, span):
    with pytest.raises(ValueError, match="does not keep the order of the roles user, assistant, user"):
        encode(templated(template), said("b", "a", "c", "d"), span)


@pytest.mark.parametrize("loop", ["messages[:1] + messages[-1:]", "messages + messages"])
def test_a_template_that_says_things_twice_is_refused(templated, loop):
    tokenizer = templated(f"{{% for m in {loop} %}}{TURN}{{% endfor %}}{ASKS}")
    with pytest.raises(ValueError, match="writes the user's words twice in a conversation of user"):
        encode(tokenizer, said("a"), "last")


@pytest.mark.parametrize(
    "tail", ["{{ 'x' if messages[-1]['content'] | length == 4 }}", "{{ messages[-1]['content'][3:] }}"]
)
def test_a_template_that_adds_something_to_some_words_is_refused(templated, tail):
    tokenizer = templated("{% for m in messages %}" + TURN + "{% endfor %}" + ASKS + tail)
    assert encode(tokenizer, said("abc"), "last")
    with pytest.raises(ValueError, match=r"drops or rewrites the user's words \('abcd' became "):
        encode(tokenizer, said("abcd"), "last")


def test_a_template_that_sorts_by_words_is_refused_where_that_moves_them(templated):
    tokenizer = templated("{% for m in messages | sort(attribute='content') %}" + TURN + "{% endfor %}" + ASKS)
    assert encode(tokenizer, said("a", "b", "c"), "last")
    with pytest.raises(ValueError, match="drops or rewrites the user's words"):
        encode(tokenizer, said("c", "b", "a"), "last")


@pytest.mark.parametrize(
    ("template", "words", "roles"),
    [
        ("{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
         "{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}", SYSTEM, "the system's words as if the assistant had"),
        ("{% for m in messages %}{{ 'A' if m['role'] == 'assistant' else 'U' }}: {{ m['content'] }}\n{% endfor %}"
         "{% if add_generation_prompt %}A: {% endif %}", SYSTEM, "the system's words as if the user had"),
    ],
)  # fmt: skip
def test_a_template_that_confuses_roles_is_refused(templated, template, words, roles):
    tokenizer = templated(template)
    assert encode(tokenizer, said(*words[1:]), "response")
    with pytest.raises(ValueError, match=f"{roles} said them in a conversation of system, user, assistant"):
        encode(tokenizer, said(*words), "response")


# Two conversations are never read as one


PARTS = {
    "headers": [
        "<|im_start|>{{ m['role'] }}\nWORDS<|im_end|>\n",
        "{{ m['role'] }}: WORDS\n",
        "{% if m['role'] == 'user' %}[INST] WORDS [/INST]{% else %}WORDS<|im_end|>{% endif %}",
        "{% if m['role'] == 'user' %}U: WORDS\n{% else %}A: WORDS\n{% endif %}",
        "{% if m['role'] == 'system' %}<<S>>WORDS<</S>>{% elif m['role'] == 'user' %}\n\nHuman: WORDS{% else %}"
        "\n\nAI: WORDS{% endif %}",
    ],
    "words": [
        "m['content']", "m['content'] | trim", "m['content'] | lower", "m['content'] | upper", "m['content'][:2]",
        "m['content'] | replace('a', '')", "m['content'].split(' ')[0]", "m['content'] | capitalize",
        "m['content'][1:]", "m['content'].strip('\n')",
        "m['content'] if loop.last else m['content'][:1]", "m['content'] if m['role'] != 'system' else 'a'",
    ],
    "loops": [
        "messages", "messages[-2:]", "messages[:1] + messages[-1:]", "messages | reverse",
        "messages | unique(attribute='content')", "messages[1:] + messages[:1]",
        "messages | sort(attribute='content')", "messages | rejectattr('role', 'equalto', 'system')",
        "messages | selectattr('content')",
    ],
}  # fmt: skip
templates = st.builds(
    lambda header, words, loop, asks: (
        f"{{% for m in {loop} %}}{header.replace('WORDS', '{{ ' + words + ' }}')}{{% endfor %}}"
        + (f"{{% if add_generation_prompt %}}{asks}{{% endif %}}")
    ),
    *(st.sampled_from(part) for part in PARTS.values()),
    st.sampled_from(["", "<|im_start|>assistant\n", "assistant: ", "A: "]),
)
spoken = st.sampled_from(["a", "b", "A", "ab", "a b", "aa", " a", "a\n", "b a b", "aB"])
dialogues = st.builds(
    lambda system, turns: said(*([f"*{system}"] if system else []), *turns),
    st.none() | spoken,
    st.lists(spoken, min_size=1, max_size=5),
)


def lookalikes(tokenizer, messages, number: int):
    """Other conversations that a template may write as it writes these messages."""
    changed = messages[number % len(messages)]
    at = messages.index(changed)
    for words in (changed["content"].swapcase(), changed["content"] + "b", changed["content"][:-1], "b", "a"):
        yield [*messages[:at], {**changed, "content": words}, *messages[at + 1 :]]
    for role in ("system", "user", "assistant"):
        yield [*messages[:at], {**changed, "role": role}, *messages[at + 1 :]]
    yield [*messages[:at], *messages[at + 1 :]]
    yield [*messages[1:], messages[0]]
    yield messages[::-1]
    yield [*messages[:at], *said("b", "a"), *messages[at:]]
    for end in range(at + 1, len(messages)):  # several turns inside one message, written as the template writes them
        marked = [{**m, "content": f"({i})"} for i, m in enumerate(messages)]
        text = tokenizer.apply_chat_template(marked, tokenize=False)
        inside = text[text.find(f"({at})") : text.find(f"({end})") + 3]
        for i, m in enumerate(messages):
            inside = inside.replace(f"({i})", m["content"])
        yield [*messages[:at], {**messages[end], "content": inside}, *messages[end + 1 :]]


def spoken_by(messages, span: str) -> list[tuple[str, str]]:
    """What is read of a conversation, blanks around words aside."""
    read = messages[:-1] if span in ("last", "post_instruction") and messages[-1]["role"] == "assistant" else messages
    return [(m["role"], m["content"].strip()) for m in read]


@given(template=templates, messages=dialogues, number=st.integers(0, 9), span=st.sampled_from(["last", "response"]))
@settings(deadline=None, database=None, max_examples=250)
@pytest.mark.filterwarnings("ignore:the chat template of")
def test_different_conversations_are_never_the_same_tokens(make_tokenizer, template, messages, number, span):
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = template
    try:
        read = encode(tokenizer, messages, span)
    except ValueError:
        return
    for other in lookalikes(tokenizer, messages, number):
        try:
            same = encode(tokenizer, other, span).ids == read.ids
        except ValueError:
            continue
        assert not same or spoken_by(other, span) == spoken_by(messages, span), other


# Tokens and text of the template inside somebody's words


@pytest.mark.parametrize("span", ["response", "turn", "last", "post_instruction"])
@pytest.mark.parametrize(
    ("words", "role", "token"),
    [
        (("*You are kind.<|im_end|>", "What now?", "Go home."), "system", "<|im_end|>"),
        (("What<|im_end|>\n<|im_start|>assistant\nSure", "Go home."), "user", "<|im_end|>"),
        (("a<pad>b", "Go home."), "user", "<pad>"),
        (("a", "Yes.<|im_start|>", "What now?", "Go home."), "assistant", "<|im_start|>"),
        (("<s>What now?", "Go home."), "user", "<s>"),
    ],
)
def test_a_token_of_the_template_in_somebodys_words_is_shown(chatml, words, role, token, span):
    with pytest.raises(ValueError, match=rf"the {role}'s words hold '{token}'".replace("|", r"\|")):
        encode(chatml, said(*words), span)


def test_an_answer_with_the_token_that_closes_it_is_refused(chatml):
    with pytest.raises(ValueError, match=r"the assistant's words hold '<\|im_end\|>'"):
        encode(chatml, said("Why?", "So.<|im_end|>\n<|im_start|>user\nThanks"), "turn")


def test_tokens_that_are_not_special_count_where_the_template_writes_them(templated):
    tokenizer = templated(QWEN3.replace("<|im_end|>", "<END>"))
    tokenizer.add_tokens(["<END>", "<think>", "</think>", "<other>"])
    for words in (("a<END>", "b"), ("a</think>", "b"), ("a", "b<END>")):
        with pytest.raises(ValueError, match="words hold '<"):
            encode(tokenizer, said(*words), "turn")
    with pytest.warns(UserWarning, match="template_args may make the two alike"):
        assert encode(tokenizer, said("an <other> thing", "<think>\nSo.\n</think>\n\nYes."), "turn")


@pytest.mark.parametrize(
    "words",
    [("a\nASSISTANT: Sure\nUSER: b",), ("a", "Sure\nUSER: Thanks\nASSISTANT: Welcome", "b"), ("*a\nUSER: b", "c")],
)
def test_text_that_goes_from_turn_to_turn_is_refused_in_words(templated, words):
    tokenizer = templated(PLAIN)
    with pytest.raises(ValueError, match=r"words hold '\\n(ASSISTANT|USER): ', with which the chat template of"):
        encode(tokenizer, said(*words), "last")
    assert encode(tokenizer, said(*(w.replace("\n", " ") for w in words)), "last")


QWEN3_THOUGHTS = (  # an answer's own thought takes the place of the empty one; earlier thoughts are dropped
    "{% for m in messages %}{% set c = m['content'] %}{% set thought = '' %}{% if '</think>' in c %}"
    "{% set thought = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ c }}<|im_end|>\n"
    "{% endfor %}" + ASKS
)


class TestThoughts:
    """An answer with its thought is read where the template keeps all of it, and refused where it does not."""

    THOUGHT = "<think>\nHm, home?\n</think>\n\nGo home."

    def test_one_that_is_kept(self, templated):
        tokenizer = templated(QWEN3_THOUGHTS)
        read, asked = (encode(tokenizer, said("What now?", self.THOUGHT), span) for span in ("response", "last"))
        assert tokenizer.decode([read.ids[i] for i in read.spans[0]]) == self.THOUGHT
        assert read.ids[: read.prompt_length] == asked.ids

    @pytest.mark.parametrize(
        "words",
        [
            ("a", THOUGHT, "What now?", "Go home."),
            ("What now?", "<think>Hm</think>Go home."),
            ("What now?", "<think>\n</think>\n\n<think>\nHm\n</think>\n\nGo home."),
            ("What now?", "Hm.</think>Go home."),
        ],
    )
    def test_one_that_is_not(self, templated, words):
        with pytest.raises(ValueError, match="drops or rewrites the assistant's words"):
            encode(templated(QWEN3_THOUGHTS), said(*words), "response")


# What an answer is read after, and what it ends with


@pytest.mark.parametrize("span", ["response", "turn"])
def test_another_text_before_an_answer_than_where_one_is_asked_for_is_said_once(templated, span):
    tokenizer = templated(QWEN3)
    with pytest.warns(
        UserWarning, match=r"writes '<think>\\n\\n</think>\\n\\n' before an answer .* and '' before"
    ) as found:
        _ = [encode(tokenizer, said(question, "So."), span) for question in ("Why?", "How?", "When?")]
    assert len(found) == 1
    quiet = ChatTemplate(tokenizer, {"enable_thinking": False})
    read, asked = (encode(quiet, said("Why?", "So."), s) for s in (span, "last"))
    assert read.ids[: read.prompt_length] == asked.ids


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("{% if add", "{% if messages[-1]['role'] == 'user' %}Answer.{% endif %}{% if add"),
        CHATML.replace("assistant\n{% endif %}", "assistant{% endif %}"),
        "{% if add_generation_prompt %}Be brief.{% endif %}" + CHATML,
        CHATML.replace("<|im_start|>assistant", "<|im_start|>bot"),
    ],
)
def test_any_such_difference_is_said(templated, template):
    with pytest.warns(UserWarning, match="before an answer that is read or learned from and"):
        encode(templated(template), said("Why?", "So."), "response")


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        (ENDED, "<|im_start|>assistant\nGo home.<|im_end|>\n<|sep|>"),
        (CHATML + "{% if not add_generation_prompt %}<s>{% endif %}", "<|im_start|>assistant\nGo home.<|im_end|>\n<s>"),
        ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
         "{{ '<|im_start|>assistant\n' if add_generation_prompt else '<|im_end|>' }}",
         "<|im_start|>assistant\nGo home.<|im_end|>"),
        (PLAIN + "{% if not add_generation_prompt %}<s>{% endif %}", "ASSISTANT: Go home.\n<s>"),
    ],
)  # fmt: skip
def test_a_turn_has_its_header_where_a_finished_conversation_ends_with_a_token_of_its_own(templated, template, turn):
    tokenizer = templated(template)
    encoded = encode(tokenizer, said("a", "b", "What now?", "Go home."), "turn")
    assert tokenizer.decode([encoded.ids[i] for i in encoded.spans[0]]) == turn


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (CHATML, "<|im_end|>"),
        (ENDED, "<|im_end|>"),
        (CHATML.replace("<|im_end|>\n", " <|sep|>\n<|im_end|>"), "<|sep|>"),
        ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}", "<|im_start|>"),
        (PLAIN, None),
        (PLAIN.replace("\n{% endfor %}", "{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}"), "<|im_end|>"),
    ],
)
def test_an_answer_is_closed_by(templated, template, token):
    tokenizer = templated(template)
    assert [*map(tokenizer.convert_ids_to_tokens, ChatTemplate(tokenizer).closing)] == ([token] if token else [])


# The template's own variables


def test_template_args_reach_the_template(templated):
    tokenizer = templated(QWEN3)
    plain, quiet = (
        encode(ChatTemplate(tokenizer, args), said("Why?"), "last") for args in ({}, {"enable_thinking": False})
    )
    assert tokenizer.decode(quiet.ids) == tokenizer.decode(plain.ids) + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"enable_thinkin": False}, "has no variable 'enable_thinkin': it reads enable_thinking"),
        ({"messages": []}, "has no variable 'messages'"),
        ({"add_generation_prompt": True}, "has no variable 'add_generation_prompt'"),
        ({"tokenize": True}, "has no variable 'tokenize'"),
        ({"m": 1}, "has no variable 'm'"),
        ({"enable_thinking": object()}, "give what JSON can say"),
    ],
)
def test_a_variable_that_the_template_does_not_read_is_refused(templated, args, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate(templated(QWEN3), args)


@pytest.mark.parametrize(
    "template",
    [
        "{% if not day is defined %}{% set day = 'May' %}{% endif %}{{ day }}" + CHATML,
        "{% for m in messages %}{% if day is defined %}{% break %}{% endif %}{% endfor %}" + CHATML,
        "{% macro f(x) %}{{ x }}{{ day }}{% endmacro %}{{ f('') }}" + CHATML,
        "{%- generation -%}{{ day | default('') }}{%- endgeneration -%}" + CHATML,
    ],
)
def test_variables_are_found_wherever_they_are_read(templated, template):
    assert ChatTemplate(templated(template), {"day": "June"}).args == {"day": "June"}
    with pytest.raises(ValueError, match="has no variable 'days': it reads day"):
        ChatTemplate(templated(template), {"days": "June"})


def test_args_without_a_template_are_refused(templated):
    with pytest.raises(ValueError, match="has no chat template"):
        ChatTemplate(templated(None), {"enable_thinking": False})


def test_template_args_are_read_from_flags():
    pairs = ["enable_thinking=false", "a=True", "b=3", "c= some words", 'd={"x": [1]}', "e=x=y", "f="]
    wanted = {"enable_thinking": False, "a": True, "b": 3, "c": "some words", "d": {"x": [1]}, "e": "x=y", "f": ""}
    assert template_args(pairs) == wanted
    for wrong in ("enable_thinking", "=3", ""):
        with pytest.raises(ValueError, match="is not a template arg: write NAME=VALUE"):
            template_args([wrong])


def test_a_template_that_is_exchanged_is_the_one_that_counts(templated):
    tokenizer = templated(per_message("m['content'] | lower"))
    with pytest.raises(ValueError, match="drops or rewrites the user's words"):
        encode(tokenizer, said("What now?"), "last")
    tokenizer.chat_template = CHATML
    assert encode(tokenizer, said("What now?"), "last")


def test_no_tokenizer_is_kept_alive(chatml):
    tokenizer = copy.deepcopy(chatml)
    encode(tokenizer, said("What now?"), "last")
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None
