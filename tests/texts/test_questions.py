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
