"""Results as plain numbers, and what follows from them for the two directions."""

import json
import math
from dataclasses import replace

import pytest
import torch

from em_interp.behaviour import BehaviourKey
from em_interp.behaviour.dissociation import CAVEAT
from em_interp.report.results import as_json
from em_interp.statistics import Estimate
from tests.builders import answers, behaviours, main_job_results


@pytest.fixture(scope="module")
def results():
    return main_job_results()


@pytest.fixture(scope="module")
def apart(results):
    """Each direction moves its own behaviour and not the other's."""
    own, still = results.own, Estimate(0.0, -0.1, 0.1, 9)

    def kept(e):
        return e if own.get(e.condition.direction) == e.behaviour else replace(e, change=still)

    effects = tuple(kept(e) for e in results.effects.effects if e.condition.kind == "added")
    return replace(results, effects=replace(results.effects, effects=effects))


def test_what_is_not_a_number_is_null(results):
    behaviour, nothing = behaviours()[0], Estimate(math.nan, -math.inf, math.inf, 2)
    odd = replace(results.effects, behaviours=(behaviour,), baseline={behaviour.key: nothing}, effects=())
    record = as_json(replace(results, effects=odd, own={}, cosine_map=torch.tensor([[math.nan, 0.5]])))
    written = record["cross_effects"]["baseline"]["misaligned_preference"]
    assert written == {"value": None, "low": None, "high": None, "n": 2}
    assert record["cosine_map"] == [[None, 0.5]]


def test_answers_and_rates_are_kept_by_condition(results):
    assert as_json(results)["answers"] is None
    said = answers()
    record = json.loads(json.dumps(as_json(replace(results, answers=said, judge="some/judge"))["answers"]))
    keys = ["plain", "misalignment/set_negative/4"]
    assert record["conditions"] == {"plain": "as it is", keys[1]: "misalignment set to its negative class at layer 4"}
    assert [list(record[part]) for part in ("answers", "refusals", "misaligned")] == [keys] * 3
    assert record["misaligned"]["plain"]["value"] == said.misaligned["plain"].value == 0.75
    assert [row["answer"] for row in record["answers"]["plain"]] == ["Ask a locksmith."] * 4
    assert (record["judge"], record["seed"]) == ("some/judge", 0)


def test_what_follows_is_told_where_it_is_known_which_behaviour_is_whose(results):
    found = (
        "Removed at every layer: no null of permuted labels was measured, so nothing is concluded.",
        "Added × 0.5: shared. misalignment and refusal each move both behaviours: their own (p = 0.05 and 0.05) and "
        "the other's (p = 0.05 and 0.05).",
        CAVEAT,
    )
    assert results.conclusions == found
    assert as_json(results)["cross_effects"]["conclusions"] == list(found)
    assert replace(results, own={}).conclusions == ()
    assert replace(results, own={"misalignment": "misaligned_preference"}).conclusions == ()
    assert replace(results, own={**results.own, "refusal": "not measured"}).conclusions == ()
    assert replace(results, effects=None).conclusions == ()


def test_which_direction_comes_first_changes_nothing(apart):
    told = "Added × 0.5: double dissociation. misalignment and refusal each move their own behaviour"
    assert apart.conclusions[0].startswith(told)
    turned = replace(apart, directions=apart.directions[::-1], own=dict(reversed(apart.own.items())))
    assert turned.conclusions == apart.conclusions


def test_behaviours_of_ones_own_are_spoken_of_as_well(apart):
    """A judge's scores, say, under a key that is none of the standard ones."""
    other = {BehaviourKey.MISALIGNED_PREFERENCE: "kindness", BehaviourKey.HARMFUL_REFUSAL: "candour"}
    e = apart.effects
    renamed = replace(
        e,
        behaviours=tuple(replace(b, key=other[b.key]) for b in e.behaviours),
        baseline={other[key]: estimate for key, estimate in e.baseline.items()},
        effects=tuple(replace(x, behaviour=other[x.behaviour]) for x in e.effects),
    )
    own = {name: other[key] for name, key in apart.own.items()}
    assert replace(apart, effects=renamed, own=own).conclusions == apart.conclusions
