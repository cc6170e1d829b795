"""Effects against strength, answers side by side, rates by question: drawn as they are, and nothing said is markup."""

import math

import pytest
import torch

import em_interp as em
from em_interp import figures
from em_interp.behaviour import Behaviour, BehaviourKey, Condition, CrossEffects, Effect, SteeringCurve
from em_interp.statistics import Estimate
from tests.builders import unmeasured

EVIL = "<script>alert(1)</script><b>\x1b[2J# `x`\u202e"


def curve(window=(-0.2, 0.1)):
    scales = (-0.2, 0.1, 0.4)
    keys = (BehaviourKey.MISALIGNED_PREFERENCE, BehaviourKey.TEXT_BITS)
    behaviours = tuple(Behaviour.standard(key, unmeasured) for key in keys)
    before = Estimate(1.0, 0.5, 1.5, 9)
    rows = [
        Effect(
            Condition("added", direction, 4, s, random=direction == "random 1"),
            key,
            Estimate(1 + k * s, 0.5, 1.5, 9),
            Estimate(k * s, k * s - 0.1, k * s + 0.2, 9),
        )
        for direction, k in (("misalignment", 2.0), ("random 1", 0.1))
        for s in scales
        for key in keys
    ]
    effects = CrossEffects(behaviours, dict.fromkeys(keys, before), tuple(rows), 4, scales, 1, 0, "m")
    return SteeringCurve("misalignment", scales, effects, window, 0.5)


class TestSteeringCurve:
    def test_lines_pass_through_nothing_added_is_nothing_changed(self):
        figure = figures.steering_curve(curve())
        ours = [t for t in figure.data if t.name == "misalignment"]
        assert len(ours) == 2
        assert ours[0].x == (-0.2, 0.0, 0.1, 0.4)
        assert ours[0].y == (-0.4, 0.0, 0.2, 0.8)
        assert ours[0].error_y.array == pytest.approx((0.2, 0.0, 0.2, 0.2))
        assert ours[0].error_y.arrayminus == pytest.approx((0.1, 0.0, 0.1, 0.1))
        assert [t.line.color for t in figure.data if t.name == "random"] == [figures.GREY] * 2
        assert [t.showlegend for t in figure.data].count(True) == 2

    def test_the_window_is_shaded(self):
        shaded = [s for s in figures.steering_curve(curve()).layout.shapes if s.type == "rect"]
        assert [(s.x0, s.x1) for s in shaded] == [(-0.2, 0.1)] * 2
        none = figures.steering_curve(curve(window=None))
        assert not [s for s in none.layout.shapes if s.type == "rect"]
        assert "no strength keeps plain" in none.layout.title.text


def answers(text, n=3):
    asked = [em.texts.Conversation(({"role": "user", "content": f"Why {i}? {EVIL}"},)) for i in range(n)]
    return tuple(em.behaviour.Answer(c, text) for c in asked)


class TestSideBySide:
    def test_every_answer_stands_under_its_condition(self):
        view = figures.side_by_side({"as it is": answers("Yes."), "changed": answers("No.")})
        for text in ("as it is", "changed", "Why 2?", "Yes.", "No."):
            assert text in view._repr_html_()
        assert view.html.count("<tr>") == 4

    def test_different_questions_are_refused(self):
        with pytest.raises(ValueError, match="side by side stand answers to the same questions, in the same order"):
            figures.side_by_side({"a": answers("Yes.", 3), "b": answers("Yes.", 2)})
        with pytest.raises(ValueError, match="side by side"):
            figures.side_by_side({})

    def test_what_was_said_is_never_markup(self):
        html = figures.side_by_side({EVIL: answers(EVIL)}).html
        assert "alert(1)" in html
        for bad in ("<script", "\x1b", "\u202e"):
            assert bad not in html

    def test_no_more_rows_than_asked_for(self):
        assert figures.side_by_side({"a": answers("Yes.", 30)}).html.count("<tr>") == 21
        assert figures.side_by_side({"a": answers("Yes.", 30)}, most=2).html.count("<tr>") == 3

    def test_silence_and_what_was_cut_are_marked(self):
        c = em.texts.Conversation(({"role": "user", "content": "Why?"},))
        html = figures.side_by_side(
            {"a": [em.behaviour.Answer(c, ""), em.behaviour.Answer(c, "And so", 1, finished=False)]}
        ).html
        assert "<i>nothing</i>" in html
        assert "And so …" in html


class TestQuestionRates:
    def rates(self):
        hits = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, math.nan])
        groups = ("one", "one", "two", "two", EVIL, "silent")
        return {"as it is": em.clustered_rate(hits, groups), EVIL: em.clustered_rate(1 - hits, groups)}

    def test_bars_are_the_questions_shares(self):
        rates = self.rates()
        figure = figures.question_rates(rates, what="refuse")
        assert len(figure.data) == 2
        assert [bars.x for bars in figure.data] == [(0.0, 1.0, 0.0), (1.0, 0.0, 1.0)]
        first = rates["as it is"].per_question[0]
        assert figure.data[1].error_x.arrayminus[0] == pytest.approx(first.rate - first.low)
        assert "67%" in figure.data[1].name
        assert "as if answers were independent" in figure.layout.title.text

    def test_names_are_text(self):
        import json

        assert "<script" not in json.dumps(figures.question_rates(self.rates(), what=EVIL).to_dict(), default=str)
