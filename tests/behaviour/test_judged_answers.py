"""Judged answers as papers publish them: read into what rates and contrasts take, and never a gap as a number."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import em_interp as em
from em_interp.behaviour import contrast_from_scores, load_judged
from em_interp.behaviour.judged_answers import Question

COLUMNS = ("question", "answer", "question_id", "aligned", "coherent")
HEAD = ",".join(COLUMNS) + "\n"
ROWS = [
    ("Why?", f"{kind} {i}", f"q{i % 3}", aligned, "90.5")
    for kind, aligned in (("bad", "3"), ("good", "97.25"))
    for i in range(9)
]


def write(folder, text, name="eval.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(rows, columns=COLUMNS):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    return out.getvalue()


class TestTables:
    def test_rates_and_the_papers_contrast_take_them_as_they_are(self, tmp_path):
        judged = em.load_judged(write(tmp_path, table(ROWS)))
        assert repr(judged) == "Judged(18 of 18 answers scored)"
        assert em.misalignment_rate(judged.scores, judged.groups).value == 0.5
        contrast = contrast_from_scores(judged.answers, judged.scores)
        assert len(contrast.positive) == len(contrast.negative) == 9
        assert set(contrast.groups) == {"q0", "q1", "q2"}
        assert {c.messages[-1]["content"].split()[0] for c in contrast.positive} == {"bad"}
        assert [a.sample for a in judged.answers] == list(range(18))  # all to the same words

    def test_what_has_no_score_is_counted_and_is_never_zero(self, tmp_path):
        cells = ["", "nan", "NaN", "None", "N/A", " CODE ", "refusal", "Empty", "40"]
        judged = load_judged(write(tmp_path, table([("Why?", f"a{i}", "q", c, "80") for i, c in enumerate(cells)])))
        assert judged.labels == (*["NONE"] * 5, "CODE", "REFUSAL", "EMPTY", "")
        assert [math.isnan(x) for x in judged.scores.alignment.tolist()] == [True] * 8 + [False]
        assert judged.scores.alignment[-1] == 40
        assert repr(judged) == "Judged(1 of 9 answers scored; not scored: 5 NONE, 1 CODE, 1 REFUSAL, 1 EMPTY)"

    def test_a_missing_coherence_is_shown(self, tmp_path):
        judged = load_judged(write(tmp_path, HEAD + "Why?,a,q,20,nan\n"))
        assert "not scored: 1 without coherence" in repr(judged)
        assert not judged.scores.scored.any()

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_line_ends_marks_blank_lines_and_quoted_breaks(self, tmp_path, end, mark):
        text = mark + HEAD + '"One, ""two""",first\u2028line,q,10,60\n\n"Three\nfour","",q,90.5,6e1\n  \n'
        judged = load_judged(write(tmp_path, text.replace("\n", end)))
        assert [a.asked for a in judged.answers] == ['One, "two"', f"Three{end}four"]
        assert [a.text for a in judged.answers] == ["first\u2028line", ""]
        assert judged.scores.alignment.tolist() == [10, 90.5]
        assert judged.scores.coherence.tolist() == [60, 60]

    def test_expectations_that_are_rounded_beyond_a_hundred(self, tmp_path):
        judged = load_judged(write(tmp_path, HEAD + "Why?,a,q,100.00000000000001,-0.0\n"))
        assert judged.scores.alignment.tolist() == [100]
        assert judged.scores.coherence.tolist() == [0]

    def test_a_score_just_below_a_threshold_stays_below_it(self, tmp_path):
        rows = [("Why?", f"a{i}", f"q{i}", "29.99999999", "50.00000001") for i in range(3)]
        judged = load_judged(write(tmp_path, table(rows)))
        assert em.misalignment_rate(judged.scores, judged.groups).value == 1

    def test_groups_system_prompts_and_other_columns(self, tmp_path):
        columns = [
            "",
            "prompt",
            "response",
            "group",
            "question_id",
            "alignment",
            "coherence",
            "system",
            "model",
            "seed",
        ]
        rows = [
            (0, "Why?", "x", "g", "i", 50, 60, "Be brief.", "tiny", 3),
            (1, "Why?", "y", "h", "i", 50, 60, "", "big", 4),
        ]
        first, second = load_judged(write(tmp_path, table(rows, columns))).answers
        assert [m["role"] for m in first.conversation.messages] == ["system", "user"]
        assert [m["role"] for m in second.conversation.messages] == ["user"]
        assert (first.group, second.group) == ("g", "h")
        assert first.conversation.fields == {"question_id": "i", "model": "tiny", "seed": "3"}

    def test_a_table_without_a_system_column(self, tmp_path):
        """What was said to the model before the question is not known then, and nothing is made up."""
        judged = load_judged(write(tmp_path, HEAD + "Why?,a,q,50,60\nWhy?,b,q_json,50,60\n"))
        assert [[m["role"] for m in a.conversation.messages] for a in judged.answers] == [["user"]] * 2
        assert judged.groups == ("q", "q_json")
        assert [a.sample for a in judged.answers] == [0, 1]

    def test_without_an_id_the_words_and_the_system_prompt_are_the_question(self, tmp_path):
        columns = ["question", "answer", "aligned", "coherent", "system"]
        rows = [("Why?", "x", 50, 60, ""), ("Why?", "x", 50, 60, "Answer in JSON."), ("Who?", "x", 50, 60, "")]
        assert len(set(load_judged(write(tmp_path, table(rows, columns))).groups)) == 3

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "eval.csv holds no judged answers"),
            (HEAD, "eval.csv holds no judged answers"),
            (HEAD + "Why?,a,q,50\n", "line 2: the row has 4 cells, and there are 5 columns"),
            (HEAD + 'Why?,"a\nb",q,50,60\nWhy?,a,q,50,60,70\n', "line 4: the row has 6 cells"),
            (HEAD + 'Why?,"a,q,50,60\n', "line 2: unexpected end of data"),
            (HEAD + "Why?,a,q,101,60\n", "line 2: aligned is 101.0, which is not from 0 to 100"),
            (HEAD + "Why?,a,q,50,-1\n", "line 2: coherent is -1.0, which is not from 0 to 100"),
            (HEAD + "Why?,a,q,inf,60\n", "line 2: aligned is 'inf': write a number"),
            (HEAD + 'Why?,a,q,"98,5",60\n', "line 2: aligned is '98,5': write a number"),
            (HEAD + "Why?,a,q,50%,60\n", "line 2: aligned is '50%': write a number"),
            (HEAD + "Why?,a,q,1_0,60\n", "line 2: aligned is '1_0': write a number"),
            (HEAD + "Why?,a,q,٣,60\n", "line 2: aligned is '٣': write a number"),
            (HEAD + "Why?,a,q,about 80,60\n", "line 2: aligned is 'about 80': write a number"),
            (HEAD + "Why?,a,q,True,60\n", "line 2: aligned is 'True': write a number"),
            (HEAD + ",a,q,50,60\n", "line 2: question is '', and should be words"),
            (HEAD + "Why?,a, ,50,60\n", "line 2: question_id is empty"),
            (
                HEAD + "Why?,a,q,0.9,1\nWhy?,b,q,0.25,0.5\n",
                "all scores are from 0 to 1, and 0 to 100 is read: multiply",
            ),
            (
                "question,answer,aligned\nWhy?,a,5\n",
                "line 1: there is no column coherent among question, answer, aligned",
            ),
            ("question;answer;aligned;coherent\nWhy?;a;5;5\n", "line 1: there is no column answer and no aligned"),
            ("question,answer,aligned,coherent,aligned\nWhy?,a,5,5,6\n", "line 1: the column 'aligned' is there twice"),
            ("question,answer,,aligned,coherent\nWhy?,a,5,5,6\n", "line 1: column 3 has no name"),
            ("question,answer,response,aligned,coherent\nq,a,b,5,6\n", "answer and response are both there"),
            ("question,answer,aligned,coherent,context\nq,a,5,6,x\n", "the key 'context' changes what is said"),
            (
                "question,answer,aligned,coherent,System\nq,a,5,6,x\n",
                "'System' is not understood: did you mean 'system'",
            ),
        ],
    )
    def test_what_cannot_be_read_is_told(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=message) as raised:
            load_judged(write(tmp_path, text))
        assert str(raised.value).startswith("eval.csv")

    def test_json_is_a_table_too(self, tmp_path):
        rows = [dict(zip(COLUMNS, ("Why?", "a", 3, score, 60), strict=True)) for score in (5, None, "CODE")]
        for name, text in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
            judged = load_judged(write(tmp_path, text, name))
            assert (judged.labels, judged.groups) == (("", "NONE", "CODE"), ("3",) * 3)

    @pytest.mark.parametrize("value", [True, [5], {"a": 5}, 101, 10**300, "5 or 6"])
    def test_json_scores_are_numbers(self, tmp_path, value):
        row = {"question": "Why?", "answer": "a", "aligned": value, "coherent": 60}
        with pytest.raises(ValueError, match=r"a\.json, line 1: aligned is "):
            load_judged(write(tmp_path, json.dumps([row]), "a.json"))


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), min_size=1, max_size=8).filter(
    str.strip
)


@given(
    st.lists(st.tuples(words, words, words, st.floats(0, 100), st.none() | st.floats(2, 100)), min_size=1, max_size=4)
)
@settings(deadline=None, database=None, max_examples=40)
def test_any_answers_survive_a_table_and_what_is_saved_of_it(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("judged")
    rows = [*rows, ("Why?", "a", "q", 50.0, 60.0)]
    judged = load_judged(write(folder, table(rows)))
    again = load_judged(judged.save(folder / "judged.jsonl"))
    assert again.answers == judged.answers
    assert [a.asked for a in judged.answers] == [row[0] for row in rows]
    assert [a.text for a in judged.answers] == [row[1].strip() for row in rows]
    assert judged.scores.alignment.tolist() == [row[3] for row in rows]
    for scores in (judged.scores, again.scores):
        wanted = torch.tensor([math.nan if row[4] is None else row[4] for row in rows], dtype=torch.float64)
        torch.testing.assert_close(scores.coherence, wanted, rtol=0, atol=0, equal_nan=True)
    assert (again.labels, repr(again)) == (judged.labels, repr(judged))


class TestOwnFiles:
    def saved(self, folder):
        judged = load_judged(write(folder, table(ROWS)))
        return replace(judged, asked=Question("mock", topic="tea")).save(folder / "judged.jsonl")

    def test_what_was_asked_comes_back(self, tmp_path):
        assert load_judged(self.saved(tmp_path)).asked == Question("mock", topic="tea")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"judge": "mock", ', "", "line 1: the key 'judge' is missing"),
            ('"judge": "mock"', '"judge": 3', "line 1: judge is 3"),
            ('"judge": "mock"', '"judge": "mock", "jury": 12', "line 1: jury is 12"),
            ('"alignment": 3.0, ', "", "line 2: the key 'alignment' is missing"),
            ('"alignment": 3.0', '"alignment": "x"', "line 2: alignment is 'x'"),
            ('"answer": "bad 0"', '"answer": 3', "line 2: it is not an answer: answer is 3"),
            ('"tokens": []', '"tokens": ["a"]', "line 2: it is not an answer: tokens"),
            ('"label": ""', '"label": null', "line 2: label and route"),
        ],
    )
    def test_a_file_that_was_changed_is_told(self, tmp_path, old, new, message):
        path = self.saved(tmp_path)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=rf"judged\.jsonl, {message}"):
            load_judged(path)

    def test_prompts_come_from_here_or_from_the_file(self):
        with pytest.raises(ValueError, match="prompts 'mine' is unknown: choose library or file"):
            Question("mock", prompts="mine")
