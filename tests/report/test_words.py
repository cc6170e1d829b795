"""What the numbers say in sentences: no more than they carry, and beside the null and the controls."""

import math
from dataclasses import replace

import pytest
import torch

from em_interp.report.words import effect_findings, findings
from tests.builders import comparison, effects, without_directions


def test_a_clear_finding_stands_beside_its_null_and_controls():
    c = comparison()
    c = replace(
        c,
        controls_a=torch.tensor([[0.9] * 5, [-0.2] * 5]),
        controls_b=torch.tensor([[0.1] * 5, [-0.2] * 5]),
        null_a=torch.tensor([[-0.11] * 5, [0.12] * 5]),
        null_b=torch.tensor([[-0.13] * 5, [0.10] * 5]),
        p_anywhere_a=0.001,
        p_anywhere_b=0.012,
    )
    first, null, controls = findings(c)
    assert first == (
        "At 3 of 5 layers the corrected cosine's interval excludes zero; it stays farthest from zero with "
        "0.52 [0.32, 0.62] at layer 7."
    )
    assert "lies between −0.13 and 0.12 (95 %)" in null
    assert f"with the true ones it is {c.cosine[3]:.2f}".replace("-", "−") in null
    assert null.endswith("1.2 % of permutations reach the data's largest plug-in cosine at some layer or other.")
    assert controls == (
        "Put in the place of misalignment, the control contrasts reach −0.20 (control 1) with refusal, smaller than "
        "anything in the interval. Misalignment itself lies closest to control 0 (0.90)."
    )


def test_a_finding_within_the_null_says_that_chance_is_not_excluded():
    first, reached = findings(replace(comparison(), p_anywhere_a=0.06, p_anywhere_b=0.01))
    assert first == (
        "Both contrasts have a direction at 4 of 5 layers, but at none of them can their cosine be told from chance."
    )
    assert reached == "6.0 % of permutations reach the data's largest plug-in cosine at some layer or other."


def test_layers_that_few_dimensions_rule_are_no_headline():
    c = comparison()
    first, *_ = findings(replace(c, dominated=torch.tensor([False, False, False, True, False])))
    assert first.endswith("it stays farthest from zero with 0.35 [0.25, 0.45] at layer 4.")
    nowhere, _ = findings(replace(c, dominated=torch.ones(5, dtype=torch.bool)))
    assert nowhere.endswith(
        "be told from chance, or from what few dimensions do: three of them hold more than half of a direction at 5."
    )


@pytest.mark.parametrize(
    ("standardised", "said"),
    [
        ((0.41, 0.36, 0.46), "it is 0.41 [0.36, 0.46] there: a few dimensions that vary much do not make it."),
        ((0.11, -0.02, 0.24), "it is 0.11 [−0.02, 0.24] there, so it hangs on dimensions that vary much."),
        ((-0.41, -0.46, -0.36), "it is −0.41 [−0.46, −0.36] there, so it hangs on dimensions that vary much."),
        ((math.nan,) * 3, "there is no direction to compare at that layer, so the cosine hangs on dimensions that"),
    ],
)
def test_the_other_metric_is_said_beside_it(standardised, said):
    c = comparison()
    corrected, low, high = (torch.full((5,), value) for value in standardised)
    _, _, units, _ = findings(c, replace(c, metric="standardised", corrected=corrected, low=low, high=high))
    assert units.startswith("With every dimension in units of its own deviation within the classes ")
    assert said in units


@pytest.mark.parametrize(
    ("size", "verdict"),
    [
        (0.31, "smaller than anything in the interval"),
        (-0.33, "smaller, but as large as the interval allows this one to be"),
        (0.53, "as much as misalignment does, so the cosine says little about misalignment in particular"),
        (math.nan, "None of the control contrasts has a direction at that layer"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_controls_that_are_as_large_are_said_to_be(size, verdict, sign):
    c = comparison()
    c = replace(c, controls_a=torch.full((2, 5), 0.1), controls_b=torch.full((2, 5), size))
    if sign < 0:
        c = replace(c, corrected=-c.corrected, low=-c.high, high=-c.low)
    assert verdict in findings(c)[-1]


def test_nothing_that_excludes_zero_is_no_finding():
    c = comparison()
    first, second = findings(replace(c, low=c.corrected - 1))
    assert first.startswith("Both contrasts have a direction at 4 of 5 layers, but at none of them")
    assert "the largest is 0.52 [−0.48, 0.62] at layer 7" in first
    assert "room for cosines from −0.48 to 0.62" in second


def test_no_direction_is_no_evidence():
    first, second = findings(without_directions())
    assert first.startswith("At none of the 5 layers do both contrasts have a direction")
    assert "misalignment: 5 layers; refusal: 0 layers" in first
    assert "no evidence" in second


def test_no_controls_leave_the_scale_open():
    assert "No control contrasts were read" in findings(comparison(n_controls=0))[-1]


def test_effects_are_counted_beside_the_random_ones_and_held_against_permuted_labels():
    found = effects()
    assert effect_findings(found) == (
        "Of 8 changes that the directions make, 6 have an interval that excludes zero; of 4 that random directions of "
        "the same length make, 0. 4 were held against 19 directions of permuted labels, and 4 of them move their "
        "behaviour: interval and p-value, corrected for the cells measured alike, exclude chance."
    )
    as_large = tuple(replace(e, null=(9.0, *e.null[1:]) if e.null else ()) for e in found.effects)
    assert "19 directions of permuted labels, and 0 of them move" in effect_findings(replace(found, effects=as_large))
    ours = tuple(replace(e, null=()) for e in found.effects if not e.condition.random)
    assert effect_findings(replace(found, effects=ours)) == (
        "Of 8 changes that the directions make, 6 have an interval that excludes zero. None was held against permuted "
        "labels, so that none has a p-value."
    )
