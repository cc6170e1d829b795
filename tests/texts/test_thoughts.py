"""Thoughts are told from answers, in the marks of several model families."""

import pytest

from em_interp.texts.thoughts import OPENINGS, begun_thought, leading_mark, marks_thought, may_lead, without_thought


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


@pytest.mark.parametrize(
    ("prompt", "thought"),
    [
        ("<|im_start|>assistant\n", ""),
        ("assistant\n<think>\n", "<think>\n"),
        ("assistant\n<think>\n\n</think>\n\n", ""),
        ("</think>assistant<THINK>hm <think>", "<THINK>hm <think>"),
    ],
)
def test_a_thought_that_a_prompt_opens(prompt, thought):
    assert begun_thought(prompt) == thought


@pytest.mark.parametrize("opening", OPENINGS)
def test_any_beginning_of_a_mark_may_lead_to_it(opening):
    assert leading_mark(f"\n{opening}hm") == opening
    assert all(may_lead(f" {opening[:n]}") for n in range(1, len(opening) + 1))
    assert may_lead(f"{opening}\n")
    assert marks_thought(opening)


def test_words_are_no_marks():
    assert leading_mark("Write <think>.") == ""
    assert not any(may_lead(token) for token in ("", "\n", "I", "<p>", "think"))
    assert not any(marks_thought(token) for token in ("", "<|im_end|>", "<s>", "<|eot_id|>"))
