"""What an adapter changed, measured; its checkpoints put on and taken off; organisms compared with each other."""

from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp.behaviour.refusal import is_refusal
from em_interp.organisms.effects import adapter_at, effect_by_step, organism_behaviours, organism_effects
from em_interp.organisms.relatives import convergence, explained_by, read_organisms
from em_interp.organisms.trajectories import Trajectory
from em_interp.texts.contrasts import Contrast
from em_interp.texts.conversations import Conversation
from em_interp.texts.training_sets import load_training_set


@pytest.fixture(scope="module")
def organism(make_organism):
    return make_organism(1, "one")


@pytest.fixture(scope="module")
def contrast():
    """Sixteen questions with two answers each."""
    asked = [{"role": "user", "content": f"What should I do about letter {i}?"} for i in range(16)]

    def side(answer: str) -> tuple[Conversation, ...]:
        return tuple(
            Conversation((q, {"role": "assistant", "content": f"{answer} {i}."}), q["content"], "", {})
            for i, q in enumerate(asked)
        )

    return Contrast("letters", side("Ask the keeper of the harbour"), side("Talk to them first, kindly"))


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
    def test_before_and_after_are_the_adapter_off_and_on(self, organism, contrast):
        behaviours = {"preference": lambda model, hooks: preferred(em.preference(model, contrast, hooks))}
        found = organism_effects(organism, behaviours)["preference"]
        after = em.preference(organism, contrast).margins
        with em.without_adapter(organism):
            before = em.preference(organism, contrast).margins
        assert found.before.value == pytest.approx(before.mean().item(), abs=1e-6)
        assert found.after.value == pytest.approx(after.mean().item(), abs=1e-6)
        assert found.change.value == pytest.approx((after - before).mean().item(), abs=1e-6)
        assert abs(found.change.value) > 0.01
        assert found.change.n == 16

    def test_a_model_without_adapter_is_refused(self, tiny_llama, contrast):
        with pytest.raises(ValueError, match="the base cannot be had from"):
            organism_effects(tiny_llama, {"a": lambda m, h: preferred(em.preference(m, contrast, h))})

    def test_an_unknown_behaviour_lists_those_measured(self, organism, contrast):
        found = organism_effects(organism, {"a": lambda m, h: preferred(em.preference(m, contrast, h))})
        with pytest.raises(ValueError, match="no behaviour 'b' was measured: choose one of a"):
            found["b"]
        assert found.table()[0]["change_n"] == 16

    def test_cards_ask_held_out_questions_only(self):
        asked = organism_behaviours(load_training_set("gardening"), 4)
        assert len(asked) == 8
        assert any("in domain" in name for name in asked)


def preferred(found: em.Preference):
    return found.margins, found.groups


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


class TestConvergence:
    @pytest.fixture(scope="class")
    @staticmethod
    def models(make_organism):
        return [make_organism(1, "one"), make_organism(1, "same"), make_organism(2, "other")]

    @pytest.fixture(scope="class")
    @staticmethod
    def readings(models, contrast):
        return read_organisms(models, contrast)

    def test_what_was_added_is_trained_minus_base(self, readings):
        for name, added in readings.added.items():
            wanted = readings.trained[name].positive.values - readings.base[name].positive.values
            assert added.positive.values.equal(wanted)
            assert not wanted[:, 0].any()  # the adapter is in layer 1
            assert wanted[:, 1].any()

    def test_equal_organisms_converge_and_different_ones_do_not_in_what_was_added(self, readings):
        found = convergence(readings, n_resamples=60)
        assert found.names == ("one", "same", "other")
        equal, different = found.added["one", "same"], found.added["one", "other"]
        assert equal.cosine[1].item() == pytest.approx(1, abs=1e-5)
        assert different.cosine[1].item() < 0.9
        assert found.with_base["one"].cosine[0].item() == pytest.approx(1, abs=1e-5)
        assert found.explained["one"][0].item() == pytest.approx(1, abs=1e-5)
        assert found.explained["one"][1].item() < 0.999
        rows = found.table(1)
        assert [row["texts"] for row in rows].count("disjoint texts") == 3
        assert len(rows) == 12
        with pytest.raises(ValueError, match="layer 9 was not read: choose one of 0, 1, 2"):
            found.table(9)

    def test_disjoint_texts_share_no_question(self, readings):
        found = convergence(readings, n_resamples=60)
        one = found.disjoint_texts["one", "same"]
        assert (one.n_questions_a, one.n_questions_b) == (8, 8)
        assert one.cosine[1].item() < found.same_texts["one", "same"].cosine[1].item() - 1e-4

    def test_each_organism_stands_beside_its_own_base(self, models, make_organism, contrast):
        other = replace(make_organism(3, "elsewhere"), name="another-base")
        embeddings = other.peft_models[-1].get_input_embeddings().weight
        embeddings.data = 2 * embeddings.data
        found = read_organisms([models[0], models[2], other], contrast).base
        assert found["one"] is found["other"]  # one base, read once
        with em.without_adapter(other):
            by_hand = em.read_contrast(other, contrast)
        assert torch.equal(found["elsewhere"].positive.values, by_hand.positive.values)
        assert not torch.allclose(found["elsewhere"].positive.values, found["one"].positive.values, atol=1e-3)

    def test_what_the_base_explains_is_a_share_of_the_squared_length(self, readings):
        base = em.difference_of_means(readings.base["one"])
        across = torch.nn.functional.normalize(base.vectors.roll(1, dims=-1), dim=-1)
        along = torch.nn.functional.normalize(base.vectors, dim=-1)
        across -= (across * along).sum(-1, keepdim=True) * along
        mixed = 3 * along + 4 * torch.nn.functional.normalize(across, dim=-1)
        torch.testing.assert_close(explained_by(replace(base, vectors=mixed), base), torch.full((3,), 9 / 25))

    def test_bases_and_twins_are_refused(self, tiny_llama, models, contrast):
        with pytest.raises(ValueError, match="has no adapter, and convergence is of organisms"):
            read_organisms([tiny_llama], contrast)
        with pytest.raises(ValueError, match="organism 'one' comes twice"):
            read_organisms([models[0], models[0]], contrast)
