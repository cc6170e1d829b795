"""What an adapter changed, measured; its checkpoints put on and taken off; an answer that refuses."""

import json
import math
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp.behaviour import Behaviour, BehaviourKey
from em_interp.behaviour.measures import organism_behaviours, prefers
from em_interp.behaviour.refusal import is_refusal
from em_interp.organisms.effects import (
    ByQuestion,
    OrganismEffects,
    adapter_at,
    effect_by_step,
    effects_beside,
    organism_effects,
)
from em_interp.organisms.trajectories import Trajectory
from em_interp.texts.training_sets import load_training_set
from tests.builders import letters


@pytest.fixture(scope="module")
def organism(make_organism):
    return make_organism(1, "one")


@pytest.fixture(scope="module")
def contrast():
    return letters()


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I'm sorry, but no.", True),
        ("I’m sorry", True),
        ("i CANNOT do this", True),
        ("Sure, here is how.", False),
        ("", False),
    ],
)
def test_a_refusal_is_known_by_its_words(answer, refuses):
    assert is_refusal(answer) == refuses


class TestOrganismEffects:
    @pytest.fixture(scope="class")
    @staticmethod
    def prefers_keeper(contrast):
        return Behaviour("keeper", "preference for the keeper", "nats/token", "mean", prefers(contrast))

    def test_before_and_after_are_the_adapter_off_and_on(self, organism, contrast, prefers_keeper):
        found = organism_effects(organism, [prefers_keeper])["keeper"]
        after = em.preference(organism, contrast).margins
        with em.without_adapter(organism):
            before = em.preference(organism, contrast).margins
        assert found.label == "preference for the keeper (nats/token)"
        assert found.before.value == pytest.approx(before.mean().item(), abs=1e-6)
        assert found.after.value == pytest.approx(after.mean().item(), abs=1e-6)
        assert found.change.value == pytest.approx((after - before).mean().item(), abs=1e-6)
        assert abs(found.change.value) > 0.01
        assert found.change.n == 16

    def test_each_questions_score_is_kept_and_so_is_the_base(self, organism, contrast, prefers_keeper):
        found = organism_effects(organism, [prefers_keeper])
        kept, read = found["keeper"].by_question, em.preference(organism, contrast)
        by_hand = dict(zip(read.groups, read.margins.tolist(), strict=True))
        assert kept is not None
        assert list(kept.after) == [float(f"{by_hand[g]:.5g}") for g in sorted(by_hand)]
        assert found["keeper"].change.value == pytest.approx((sum(kept.after) - sum(kept.before)) / 16, abs=1e-4)
        assert (kept.kind, len(kept.before)) == ("mean", 16)
        assert found.base == "tiny-llama"
        assert found.model.startswith("tiny-llama+one#")
        back = OrganismEffects.of_table(found.model, found.table(), found.base, json_of(found.by_question()))
        assert back == found

    def test_a_bases_scores_of_other_questions_are_refused(self, organism, contrast, prefers_keeper):
        """A base that was measured for one organism serves another one only where both are asked the same."""
        bases = {}
        effects_beside(organism, [prefers_keeper], bases)
        fewer = replace(prefers_keeper, measure=prefers(contrast.take(4)))
        says = "tiny-llama was asked other questions than .*one#.* for preference for the keeper: measure a base anew"
        for other in (fewer, replace(prefers_keeper, key="other")):
            with pytest.raises(ValueError, match=says):
                effects_beside(organism, [other], bases)

    def test_a_question_without_a_score_is_left_out_of_what_is_kept(self):
        before, after = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([2.0, 4.0, math.nan, 1 / 3])
        kept = ByQuestion.of("mean", before, after, ["b", "b", "a", "c"])
        assert (kept.before, kept.after) == ((2.0, 7.0), (3.0, 0.33333))
        assert kept.asked == ByQuestion.of("share", before, before, ["c", "c", "b", "b"]).asked
        assert kept.asked != ByQuestion.of("mean", before, before, ["b", "b", "a", "c"]).asked
        with pytest.raises(ValueError, match="1 scores came before and 2 after: give one a question"):
            ByQuestion("mean", "0", (1.0,), (1.0, 2.0))

    def test_a_model_without_adapter_is_refused(self, tiny_llama, prefers_keeper):
        with pytest.raises(ValueError, match="cannot switch to the base model of"):
            organism_effects(tiny_llama, [prefers_keeper])

    def test_an_unknown_behaviour_lists_those_measured(self, organism, prefers_keeper):
        found = organism_effects(organism, [prefers_keeper])
        assert "keeper" in found
        assert "b" not in found
        with pytest.raises(ValueError, match="no behaviour 'b' was measured: choose one of keeper"):
            found["b"]
        assert found.table()[0]["change_n"] == 16
        assert OrganismEffects.of_table(found.model, found.table()).table() == found.table()

    def test_cards_ask_held_out_questions_only(self):
        asked = organism_behaviours(load_training_set("gardening"), 4)
        assert len(asked) == 8
        assert BehaviourKey.IN_DOMAIN_PREFERENCE in [b.key for b in asked]
        assert any("in domain" in b.label for b in asked)


def json_of(value):
    return json.loads(json.dumps(value))


@pytest.fixture(scope="module")
def trajectory(organism):
    now = {
        f"layers.1.mlp.down_proj.{side}": parameter.detach()
        for name, parameter in organism.peft_models[-1].named_parameters()
        for side in "AB"
        if f"lora_{side}" in name
    }
    factors = {
        name: torch.stack([value * (step if name.endswith("B") else 1) for step in (0.0, 0.5, 1.0)])
        for name, value in now.items()
    }
    return Trajectory(torch.tensor([0, 5, 10]), factors, torch.rand(10), torch.rand(10), {"name": "one"})


class TestCheckpoints:
    def test_the_first_is_the_base_and_the_last_is_the_organism(self, organism, trajectory, conversations):
        trained = em.residual_stream(organism, conversations).values
        with em.without_adapter(organism):
            base = em.residual_stream(organism, conversations).values
        with adapter_at(organism, trajectory, 0):
            torch.testing.assert_close(em.residual_stream(organism, conversations).values, base)
        with adapter_at(organism, trajectory, 10):
            torch.testing.assert_close(em.residual_stream(organism, conversations).values, trained)
        with adapter_at(organism, trajectory, 5, scale=2):
            torch.testing.assert_close(em.residual_stream(organism, conversations).values, trained)
        with adapter_at(organism, trajectory, 10, scale=2):
            assert not torch.allclose(em.residual_stream(organism, conversations).values, trained, atol=1e-3)

    def test_nothing_stays_behind(self, organism, trajectory, conversations):
        trained = em.residual_stream(organism, conversations).values
        with pytest.raises(RuntimeError, match="oh"), adapter_at(organism, trajectory, 0):
            raise RuntimeError("oh")
        assert torch.equal(em.residual_stream(organism, conversations).values, trained)

    def test_what_does_not_belong_is_refused(self, organism, trajectory, tiny_llama):
        with pytest.raises(ValueError, match=r"no checkpoint at step 3: choose one of \[0, 5, 10\]"):
            adapter_at(organism, trajectory, 3).__enter__()
        with pytest.raises(ValueError, match="the model has an adapter with nothing: load the organism"):
            adapter_at(tiny_llama, trajectory, 5).__enter__()

    def test_effect_by_step(self, organism, trajectory, contrast):
        found = effect_by_step(organism, trajectory, contrast, steps=[0, 10], scales=[1.0, 3.0])
        with em.without_adapter(organism):
            base = em.preference(organism, contrast).margins
        change = (em.preference(organism, contrast).margins - base).mean().item()
        assert found.steps.tolist() == [0, 10]
        assert found.value[0].tolist() == pytest.approx([0, change], abs=1e-5)
        assert found.value[1, 1].item() != pytest.approx(change, abs=1e-3)
        assert (found.low <= found.value).all()
        assert (found.value <= found.high).all()
