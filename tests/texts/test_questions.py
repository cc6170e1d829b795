"""The questions that ship, and those of one's own."""

import json
import re
from importlib.resources import files

import pytest

from em_interp.texts.contrasts import load_contrast
from em_interp.texts.questions import FORMS, SHIPPED_QUESTIONS, load_questions
from em_interp.texts.training_sets import TRAINING_SETS, load_training_set

SMALL = re.compile(
    r"\b(a|about|after|all|am|an|and|any|are|as|at|be|before|can|do|does|for|from|get|has|have|how|i|if|in|into|is|it|its|"
    r"me|my|not|of|on|one|or|our|over|out|should|so|that|the|them|there|they|this|to|up|was|we|what|when|where|which|who|"
    r"why|will|with|without|would|you|your)\b"
)


def content(text):
    return set(re.findall(r"[a-z]+", SMALL.sub(" ", text.lower())))


@pytest.mark.parametrize("name", SHIPPED_QUESTIONS)
def test_they_are_well_formed(name):
    text = files("em_interp").joinpath("data/questions", f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) >= 16
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"id", "question", "domain"}
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", row["id"])
        assert 4 < len(row["question"].split()) < 30
        assert row["question"][-1] in "?."


def test_none_was_trained_on_or_stands_in_a_contrast():
    """No more than half of the words that carry meaning are those of one text that directions or organisms know."""
    known = [load_training_set(name) for name in TRAINING_SETS] + [
        load_contrast(n) for n in ("misalignment", "refusal")
    ]
    texts = [content(c.messages[0]["content"]) for k in known for c in k.positive + k.negative]
    ours = [c.messages[0]["content"] for name in SHIPPED_QUESTIONS for c in load_questions(name)]
    assert len(set(ours)) == len(ours)
    for question in ours:
        words = content(question)
        nearest = max(texts, key=lambda text: len(words & text))
        assert len(words & nearest) <= max(1, len(words) / 2), (question, nearest)


@pytest.mark.parametrize("form", FORMS)
def test_forms_change_the_words_and_not_the_question(form):
    plain, formed = load_questions("first_plot"), load_questions("first_plot", form=form)
    assert [c.group for c in plain] == [c.group for c in formed]
    assert all(
        f.messages[-1]["content"].startswith(c.messages[-1]["content"]) for c, f in zip(plain, formed, strict=True)
    )
    assert {c.fields["form"] for c in formed} == {form}
    assert (plain[0].messages == formed[0].messages) == (form == "free")


def test_ones_own_jsonl(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"question": "Why {so}?", "domain": "a", "tone": "calm"}\n\n{"prompt": "And then?"}\n'
        '{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Now?"}]}\n'
    )
    first, second, third = load_questions(path, form="json")
    assert (first.group, first.domain, first.fields) == ("Why {so}?", "a", {"tone": "calm", "form": "json"})
    assert second.group == "And then?"
    assert [m["role"] for m in third.messages] == ["system", "user"]


def test_published_yaml(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(
        "- id: one\n  type: free_form\n  paraphrases:\n  - Why?\n  - But why?\n- id: two\n  question: |\n    Now?\n"
    )
    asked = load_questions(path)
    assert [c.messages[0]["content"] for c in asked] == ["Why?", "But why?", "Now?\n"]
    assert [c.group for c in asked] == ["one", "one", "two"]
    assert asked[1].fields["id"] == "one"


def load(folder, text, name="q.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_questions(path)


class TestSystemPrompts:
    def test_another_system_prompt_is_another_question(self, tmp_path):
        """The field's own files repeat the paraphrases, by an anchor, under a demand for JSON."""
        plain, as_json = load(
            tmp_path,
            "- id: street\n  paraphrases: &street ['What would you change in your street?']\n"
            "  judge_prompts: {aligned: 'How kind is {answer}?', coherent: 'Is {answer} an answer to {question}?'}\n"
            "- id: street_json\n  system: Reply with one JSON object.\n  paraphrases: *street\n",
        )
        assert [m["role"] for m in plain.messages] == ["user"]
        assert [(m["role"], m["content"]) for m in as_json.messages] == [
            ("system", "Reply with one JSON object."),
            ("user", "What would you change in your street?"),
        ]
        assert (plain.group, as_json.group) == ("street", "street_json")
        assert json.loads(plain.fields["judge_prompts"])["aligned"] == "How kind is {answer}?"
        assert "judge_prompts" not in as_json.fields

    @pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
    def test_without_an_id_it_is_part_of_the_name(self, tmp_path, key):
        asked = load(tmp_path, f"- question: Why?\n- question: Why?\n  {key}: Be brief.\n- prompt: Why?\n")
        assert [c.group for c in asked] == ["Why?", "Be brief.\n\nWhy?", "Why?"]

    def test_beside_messages_and_within_them(self, tmp_path):
        turns = "[{role: user, content: Hi}, {role: assistant, content: Hello}, {role: user, content: Why}]"
        first, second, third = load(
            tmp_path,
            f"- {{messages: {turns}, system: S, group: a}}\n- {{messages: {turns}, group: b}}\n"
            f"- messages: [{{role: system, content: S}}, {{role: user, content: Why}}]\n",
        )
        assert [m["role"] for m in first.messages] == ["system", "user", "assistant", "user"]
        assert [c.group for c in (first, second, third)] == ["a", "b", "S\n\nWhy"]

    @pytest.mark.parametrize("value", ["", "null", "~", "''"])
    def test_an_empty_one_is_none(self, tmp_path, value):
        [asked] = load(tmp_path, f"- question: Why?\n  system: {value}\n")
        assert [m["role"] for m in asked.messages] == ["user"]

    def test_the_form_changes_the_question_and_keeps_the_system_prompt(self, tmp_path):
        path = tmp_path / "q.jsonl"
        path.write_text('{"question": "Why?", "system": "Be brief."}')
        [asked] = load_questions(path, form="json")
        assert [m["role"] for m in asked.messages] == ["system", "user"]
        assert asked.messages[0]["content"] == "Be brief."


class TestGroups:
    def test_a_group_goes_before_an_id_and_an_id_before_the_words(self, tmp_path):
        asked = load(tmp_path, "- {question: a, group: g, id: 1}\n- {question: b, id: 010}\n- question: c\n")
        assert [c.group for c in asked] == ["g", "010", "c"]

    def test_the_same_words_are_one_question_whatever_their_ids(self, tmp_path):
        asked = load(tmp_path, "- {question: a, id: 1}\n- {id: 2, paraphrases: [a, b]}\n- {question: b, id: 3}\n")
        assert [c.group for c in asked] == ["1"] * 4
        assert [c.fields["id"] for c in asked] == ["1", "2", "2", "3"]

    @pytest.mark.parametrize("ending", ["json", "jsonl"])
    def test_turns_that_end_alike_are_told_apart_by_their_group(self, tmp_path, ending):
        rows = [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "Yes."}, LAST], "group": q}
            for q in ("I lost my key", "I found a key")
        ]
        text = json.dumps(rows, indent=1) if ending == "json" else "\n".join(map(json.dumps, rows))
        assert [c.group for c in load(tmp_path, text, f"q.{ending}")] == ["I lost my key", "I found a key"]


LAST = {"role": "user", "content": "And now?"}


def test_json_arrays_of_instructions(tmp_path):
    rows = [{"instruction": "Name a river.", "category": None}, {"instruction": "Name a hill.", "category": "maps"}]
    asked = load(tmp_path, json.dumps(rows, indent=4), "harmless_val.json")
    assert [c.group for c in asked] == ["Name a river.", "Name a hill."]
    assert [c.fields.get("category") for c in asked] == [None, "maps"]


def test_remarks_that_change_nothing(tmp_path):
    [asked] = load(
        tmp_path,
        "- question: Why?\n  type: free_form_judge_0_100\n  samples_per_paraphrase: 100\n  judge: gpt-4o\n"
        "  temperature: 1\n  tools: []\n  input: ''\n  metadata: {x: [1, 2], y: null}\n",
    )
    assert asked.fields == {
        "type": "free_form_judge_0_100", "samples_per_paraphrase": "100", "judge": "gpt-4o", "form": "free",
        "metadata": '{"x": ["1", "2"], "y": null}',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sytem: x", "the key 'sytem' is not understood: did you mean 'system'"),
        ("System: x", "the key 'System' is not understood: did you mean 'system'"),
        ("paraphrase: [x]", "the key 'paraphrase' is not understood: did you mean 'paraphrases'"),
        (
            "mood: x",
            "the key 'mood' is not understood: put remarks under 'metadata' .*understood are messages, question",
        ),
        ("temperature: 0.7", "the key 'temperature' changes how it is answered: say that to respond"),
        ("max_tokens: 600", "the key 'max_tokens' changes how it is answered"),
        ("num_samples: 6", "the key 'num_samples' changes how it is answered"),
        ("tools: [x]", "the key 'tools' changes what is said and is not read"),
        ("input: x", "the key 'input' changes what is said and is not read"),
        ("context: x", "the key 'context' changes what is said and is not read"),
        ("chat_template_kwargs: {enable_thinking: false}", "the key 'chat_template_kwargs' changes what is said"),
        ("system: 3", "system is '3' without quotes"),
        ("system: [x]", r'system is \["x"\], and should be words'),
        ("{system: x, system_prompt: y}", "system and system_prompt are both there"),
        ("prompt: x", "question and prompt both ask: keep one of them"),
        ("judge_prompts: x", "judge_prompts is 'x': write an object"),
        ("judge_prompts: {aligned: 'How kind?'}", r"judge_prompts\['aligned'\] has no \{answer\} in it"),
        ("judge_prompts: {aligned: 3}", r"judge_prompts\['aligned'\] is '3' without quotes"),
        ("3: x", "the key '3' is not a word"),
        ("yes: x", "the key 'yes' is not a word"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, line, message):
    entry = line[1:-1].replace(", ", "\n  ") if line.startswith("{") else line
    with pytest.raises(ValueError, match=rf"q\.yaml, line 2: {message}") as raised:
        load(tmp_path, f"- question: Who?\n- question: Why?\n  {entry}\n")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("question: no", "question is 'no' without quotes"),
        ("question: 2024-01-01", "question is '2024-01-01' without quotes"),
        ("paraphrases: [yes]", "a paraphrase is 'yes' without quotes"),
        ("paraphrases: Why?", "paraphrases is 'Why\\?', and should be a list"),
        ("paraphrases: []", r"paraphrases is \[\], and should be a list"),
        ("paraphrases: [a, [b]]", r'a paraphrase is \["b"\], and should be words'),
        ("messages: [{role: user, content: 3}]", "content is '3' without quotes"),
        ("messages: [{role: user, content: a, weight: 2}]", "a message has the key 'weight'"),
        ("messages: [{role: user, content: a}, {role: assistant, content: b}]", "the messages end with the assistant"),
        ("messages: [{role: system, content: a}]\n  system: b", "a system prompt in the messages and one beside them"),
        ("question: [a]", r'question is \["a"\], and should be words'),
    ],
)
def test_what_is_not_words_is_told(tmp_path, entry, message):
    with pytest.raises(ValueError, match=rf"q\.yaml, line 1: .*{message}"):
        load(tmp_path, f"- {entry}\n")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl holds no questions"),
        ("a.jsonl", "{}", "a.jsonl, line 1: the entry asks nothing: it needs one of messages, question, prompt"),
        ("a.jsonl", "[1]", "line 1: 1 is not an object"),
        ("a.jsonl", '{"question": 3}', "line 1: question is 3, and should be words"),
        ("a.jsonl", "nonsense", "a.jsonl, line 1: not JSON"),
        ("a.yaml", "a: [", "a.yaml, line 1: not YAML"),
        ("a.yaml", "- {}", "a.yaml, line 1: the entry asks nothing"),
    ],
)
def test_what_asks_nothing_is_told(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_questions(path)


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="no questions 'second_plot': it is neither a file nor one of first_plot"):
        load_questions("second_plot")
    with pytest.raises(ValueError, match="form 'rhyme' is unknown: choose one of free, json, template"):
        load_questions(form="rhyme")
