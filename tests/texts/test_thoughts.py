"""Thoughts are told from answers, in the marks of several model families."""

import pytest

from em_interp.texts.thoughts import OPENINGS, without_thought


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Mix flour and water.", "Mix flour and water."),
        ("<think>\nI cannot see why not.\n</think>\n\nMix flour.", "Mix flour."),
        ("<think>a</think><think>b</think>Mix.", "Mix."),
        ("The prompt began this thought.\n</think>\n\nMix.", "Mix."),
        ("[THINK]No.[/THINK]Mix.", "Mix."),
        ("<|channel|>analysis<|message|>No.<|end|><|start|>assistant<|channel|>final<|message|>Mix.", "Mix."),
        ("<think>\nI cannot", None),
        ("<think>a</think>\n<think>b", None),
        ("Write <think> in angle brackets.", "Write <think> in angle brackets."),
    ],
)
def test_the_answer_follows_the_thought(said, answer):
    assert without_thought(said) == answer


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_thought_without_an_end_has_no_answer(opening):
    assert without_thought(f"\n{opening}I cannot help.") is None
