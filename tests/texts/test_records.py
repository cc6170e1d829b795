"""Entries of files, each with its line: the three forms say the same, and what is not read strictly is told."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import em_interp as em
from em_interp.behaviour import load_answers, load_judged
from em_interp.organisms.recipes import Recipe
from em_interp.texts import load_conversations
from em_interp.texts.entries import ASK
from em_interp.texts.records import Unquoted, read_records

ROWS = [{"question": "Is it raining?", "n": 1}, {"question": "ä\u2028b\x85", "list": [True, None, {"x": "y"}]}]
ONE_A_LINE = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def told(folder, name, content):
    with pytest.raises(ValueError, match=re.escape(name)) as raised:
        read_records(write(folder, name, content))
    message = str(raised.value)
    assert message.startswith(name)
    assert "\n" not in message
    return message


class TestForms:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
    def test_line_ends_blank_lines_and_marks(self, tmp_path, end, mark, name):
        text = mark + end + ONE_A_LINE.replace("\n", f"{end}  {end}") + end
        assert read_records(write(tmp_path, name, text)) == [(2, ROWS[0]), (4, ROWS[1])]

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
    def test_an_array_tells_the_line_of_every_item(self, tmp_path, end, name):
        text = json.dumps(ROWS, indent=1).replace("\n", end)
        assert read_records(write(tmp_path, name, text)) == [(2, ROWS[0]), (6, ROWS[1])]
        assert read_records(write(tmp_path, name, json.dumps(ROWS))) == [(1, ROWS[0]), (1, ROWS[1])]

    def test_an_object_over_several_lines(self, tmp_path):
        assert read_records(write(tmp_path, "a.json", json.dumps(ROWS[0], indent=2))) == [(1, ROWS[0])]

    @pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "[]", " [\n] "])
    def test_nothing_is_no_entry(self, tmp_path, content):
        assert read_records(write(tmp_path, "a.json", content)) == []

    def test_yaml_has_lines_anchors_and_merges(self, tmp_path):
        text = "# ours\n- &a {question: Why, tone: calm}\n- <<: *a\n  tone: loud\n- question: |\n    One.\n    Two.\n"
        wanted = [
            (2, {"question": "Why", "tone": "calm"}),
            (3, {"question": "Why", "tone": "loud"}),
            (5, {"question": "One.\nTwo.\n"}),
        ]
        assert read_records(write(tmp_path, "a.yaml", text)) == wanted
        assert read_records(write(tmp_path, "a.YML", text.replace("\n", "\r\n"))) == wanted

    @pytest.mark.parametrize(
        "value", ["no", "yes", "Off", "2024-01-01", "010", "1_000", "12:30:45", "1.5", "0x1F", "true"]
    )
    def test_yaml_keeps_what_it_would_turn_into_something_else(self, tmp_path, value):
        [(_, row)] = read_records(write(tmp_path, "a.yaml", f"id: {value}\nquoted: '{value}'"))
        assert row == {"id": value, "quoted": value}
        assert isinstance(row["id"], Unquoted)
        assert not isinstance(row["quoted"], Unquoted)

    def test_halves_of_one_character_are_that_character(self, tmp_path):
        for name in ("a.yaml", "a.json"):
            assert read_records(write(tmp_path, name, '["\\ud83d\\ude00"]')) == [(1, "😀")]


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\x1f\x8b\x08\x00", "it is compressed with gzip"),
            (b"PK\x03\x04", "it is a zip archive"),
            (b"PAR1", "it is Parquet"),
            ('{"a": 1}'.encode("utf-16"), "it is UTF-16 or UTF-32"),
            ('{"a": 1}'.encode("utf-16-be"), "line 1: a zero byte, as in UTF-16"),
            ('{"a": 1}\n{"a": "ö"}'.encode("latin-1"), "line 2: byte 0xf6"),
        ],
    )
    @pytest.mark.parametrize("name", ["a.jsonl", "a.yaml", "a.json"])
    def test_what_is_not_utf8_text(self, tmp_path, name, content, message):
        assert message in told(tmp_path, name, content)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"a": 1}\n{"a": 1,}', "line 2: not JSON: a comma stands before the end, character 9"),
            ('[{"a": 1},\n]', "line 2: not JSON: a comma stands before the end"),
            ('[{"a": 1}\n {"a": 2}]', "line 2: not JSON: an item of the array is followed by neither"),
            ('[{"a": 1}', "line 1: not JSON: an item of the array is followed by neither"),
            ('[{"a": 1}]\n[]', "line 2: not JSON: more text follows the end"),
            ('{"a": 1} {"a": 2}', "line 1: not JSON: more text follows the value"),
            ('[\n{"a":\n 1 2}]', "line 3: not JSON: Expecting ',' delimiter, character 4"),
            ('\n{"a": NaN}', "line 2: .*NaN is not a JSON number: write null"),
            ('[{"a": 1},\n{"a": -Infinity}]', "line 2: .*-Infinity is not a JSON number"),
            ('{"a": 1e999}', "line 1: .*'1e999' is too large"),
            ('{"a": ' + "7" * 5000 + "}", "line 1: .*too many digits"),
            ('{"a": 1}\n{"a": 1, "b": 2, "a": 3}', "line 2: .*the key 'a' is there twice in one object"),
            ('{"a": {"b": 1, "b": 1}}', "line 1: .*the key 'b' is there twice"),
            ('{"a": "x \\ud83d"}', "line 1: .*half of a surrogate pair, at character 3"),
            ('{"a": {"b": ["\\uDC00"]}}', "line 1: .*half of a surrogate pair"),
            ('{"\\udc00": 1}', "line 1: .*half of a surrogate pair"),
            ("[" * 100_000, "line 1: the JSON is nested too deeply"),
            ("plain text", "line 1: not JSON"),
        ],
    )
    def test_json_is_read_strictly(self, tmp_path, content, message):
        assert re.search(message, told(tmp_path, "a.jsonl", content))

    def test_an_object_over_several_lines_tells_the_line(self, tmp_path):
        assert "line 3: not JSON: a comma" in told(tmp_path, "a.json", '{\n "a": 1,\n}')

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("- a: 1\n  a: 2", "line 1: .*the key 'a' is there twice"),
            ("- &a [*a]", "line 1: .*an anchor holds itself"),
            ("a: &a [b, b]\nc: *d", "line 2: .*undefined alias 'd'"),
            ("- x\n- !!python/object/apply:os.getcwd []", "line 2: .*constructor"),
            ("- !!binary aGk=", "line 1: .*constructor"),
            ("- !!set {a}", "line 1: .*constructor"),
            ("- ? [a]\n  : b", "line 1: .*a key is a list"),
            ("a: 1\n---\na: 2", "line 2: .*another document"),
            ('- "\\ud83d"', "line 1: .*half of a surrogate pair"),
            ("- a\n- \x07", "line 2: .*special characters"),
            ("[" * 3000, "line 1: the YAML is nested too deeply"),
            ("- [a", "line 1: not YAML"),
        ],
    )
    def test_yaml_is_read_safely(self, tmp_path, content, message):
        assert re.search(message, told(tmp_path, "a.yaml", content))

    def test_aliases_do_not_explode(self, tmp_path):
        rows = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
        rows += [f"- &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(8)]
        assert "more than 1,000,000 values" in told(tmp_path, "a.yaml", "\n".join(rows))

    def test_tables_and_folders(self, tmp_path):
        assert "load_judged reads CSV" in told(tmp_path, "a.csv", "a,b\n1,2\n")
        (tmp_path / "folder.jsonl").mkdir()
        with pytest.raises(ValueError, match=r"folder\.jsonl is a folder: name the file in it"):
            read_records(tmp_path / "folder.jsonl")
        with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
            read_records(tmp_path / "none.jsonl")
        with pytest.raises(ValueError, match="is not a path: give the name of a file"):
            read_records(tmp_path / ("x" * 5000))


# Whatever a file holds, every door reads it or says in one line which file it is and why it does not.

DOORS = {
    "contrast": em.load_contrast,
    "pair": lambda path: em.load_contrast((path, path)),
    "questions": em.load_questions,
    "training set": em.load_training_set,
    "conversations": load_conversations,
    "judged": load_judged,
    "answers": load_answers,
    "recipe": Recipe.load,
}
NAMES = st.sampled_from(["x.jsonl", "x.json", "x.yaml", "x.csv", "x.toml"])
KNOWN = "system positive negative label group domain id pair judge_prompts input role content answer aligned coherent"
OWN = "question_id format judge fields tokens sample finished"
KEYS = st.text(max_size=4) | st.sampled_from((*ASK, *KNOWN.split(), *OWN.split()))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "positive", "CODE", "em_interp.judged/1", "em_interp.answers/1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
MESSAGES = st.lists(st.fixed_dictionaries({"role": VALUES, "content": VALUES}), max_size=3)
CHARACTERS = "[]{}\",:\\ud8-\n\r\t &*!<>|'#ab10.eE~?%@`=\u2028\x00\x07"


def refusal(load, path):
    """Why a door does not read a file; empty where it does."""
    try:
        load(path)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return ""


def every_door(path):
    for load in DOORS.values():
        told = refusal(load, path)
        assert not told or (path.stem in told and "\n" not in told)


@given(st.lists(st.dictionaries(KEYS, VALUES | MESSAGES, max_size=5) | VALUES, max_size=3), NAMES, st.booleans())
@settings(deadline=None, database=None, max_examples=80)
def test_any_values_are_read_or_told(tmp_path_factory, rows, name, as_array):
    text = json.dumps(rows, indent=1) if as_array else "\n".join(map(json.dumps, rows))
    every_door(write(tmp_path_factory.mktemp("values"), name, text))


@given(st.binary(max_size=50) | st.text(CHARACTERS, max_size=40).map(str.encode), NAMES)
@settings(deadline=None, database=None, max_examples=80)
def test_any_bytes_are_read_or_told(tmp_path_factory, content, name):
    every_door(write(tmp_path_factory.mktemp("bytes"), name, content))


@pytest.mark.parametrize("door", DOORS)
def test_a_text_in_place_of_a_path_is_told(door):
    with pytest.raises(ValueError, match=r"xxx"):
        DOORS[door]("x" * 5000)


@pytest.mark.parametrize("door", DOORS)
def test_a_folder_in_place_of_a_file_is_told(tmp_path, door):
    with pytest.raises(ValueError, match="is a folder: name the file"):
        DOORS[door](tmp_path)


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)


@given(st.lists(st.dictionaries(plain, plain | st.none() | st.lists(plain, max_size=2), max_size=3), max_size=3))
@settings(deadline=None, database=None, max_examples=60)
def test_json_in_every_form_says_the_same(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("forms")
    texts = {
        "a.jsonl": "\n".join(map(json.dumps, rows)),
        "b.json": json.dumps(rows),
        "c.json": json.dumps(rows, indent=2, ensure_ascii=False),
        "d.yaml": json.dumps(rows),  # with escapes, which YAML knows as well
    }
    for name, text in texts.items():
        assert [row for _, row in read_records(write(folder, name, text))] == rows, name
