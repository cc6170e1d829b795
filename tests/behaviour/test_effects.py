"""What interventions do, against each behaviour; what follows from it in words; effect against strength."""

import math
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp import figures
from em_interp.behaviour.conclusions import standard_conclusions
from em_interp.behaviour.effects import (
    BITS,
    DIVERGENCE,
    IN_DOMAIN,
    JUDGED,
    PREFERENCE,
    REFUSES_HARMFUL,
    CrossEffects,
    Effect,
)
from em_interp.directions.estimators import random_like
from em_interp.statistics.estimates import Estimate, mean_by_question
from em_interp.texts.training_sets import load_training_set


@pytest.fixture(scope="module")
def directions(tiny_llama):
    read = [em.read_contrast(tiny_llama, em.load_contrast(name).take(8), span=span) for name, span in SPANS.items()]
    return [em.difference_of_means(r) for r in read]


SPANS = {"misalignment": "response", "refusal": "last"}
OWN = {"misalignment": PREFERENCE, "refusal": REFUSES_HARMFUL}


@pytest.fixture(scope="module")
def behaviours():
    return em.standard_behaviours(5, in_domain=load_training_set("cooking"))


@pytest.fixture(scope="module")
def effects(tiny_llama, directions, behaviours):
    return em.cross_effects(tiny_llama, directions, behaviours=behaviours, layer_added=1, scales=(0.3, -1), n_random=2)


@pytest.fixture(scope="module")
def curve(tiny_llama, directions):
    behaviours = em.standard_behaviours(4)
    scales = (0, 5, -0.01, 0.01)
    return em.steering_curve(tiny_llama, directions[0], layer=1, scales=scales, behaviours=behaviours, damage=0.1)


class TestCrossEffects:
    def hooks(self, model, direction, other):
        unit = other.vectors / other.norm[:, None]
        apart = replace(direction, vectors=direction.vectors - (direction.vectors * unit).sum(-1, keepdim=True) * unit)
        return {
            ("misalignment", "removed"): em.project_out(direction, em.every_layer(model)),
            ("misalignment", "removed at layer 1"): em.project_out(direction[1], [em.site(model, 1)]),
            ("misalignment", "of layer 1 removed everywhere"): em.project_out(direction[1], em.every_layer(model)),
            ("misalignment", "added × 0.3"): em.add_direction(direction, [em.site(model, 1)], scale=0.3),
            ("misalignment", "added × -1"): em.add_direction(direction, [em.site(model, 1)], scale=-1),
            ("misalignment without refusal", "removed"): em.project_out(apart, em.every_layer(model)),
            ("misalignment without refusal", "added × 0.3"): em.add_direction(apart, [em.site(model, 1)], scale=0.3),
            ("random 2", "removed"): em.project_out(random_like(direction, 1, ""), em.every_layer(model)),
            ("misalignment", "set to its negative class at layer 1"): em.set_projection(
                direction[1], [em.site(model, 1)], float(direction.negative_projection[1])
            ),
            ("random 2", "subtracted at layer 1"): em.add_direction(
                -random_like(direction, 1, "")[1], [em.site(model, 1)], scale=1, raw=True
            ),
        }

    def test_every_cell_is_the_paired_difference(self, tiny_llama, directions, behaviours, effects):
        for (direction, kind), hooks in self.hooks(tiny_llama, *directions).items():
            for name, behaviour in behaviours.items():
                after, groups = behaviour(tiny_llama, hooks)
                before, _ = behaviour(tiny_llama, ())
                wanted = mean_by_question(after - before, groups)
                assert effects.change(direction, kind, name) == wanted, (direction, kind, name)

    def test_all_rows_and_columns_are_there(self, effects, behaviours):
        # Two directions with four removals and two additions each, their two parts with one removal less, for they have
        # no classes, and two random ones, projected out, subtracted, and added twice.
        assert len(effects.interventions) == 2 * (4 + 2) + 2 * (3 + 2) + 2 * (2 + 2)
        assert len(effects.effects) == len(effects.table()) == 30 * len(behaviours)
        assert list(effects.baseline) == list(behaviours)
        assert IN_DOMAIN in behaviours
        assert effects.baseline[DIVERGENCE].value == 0
        assert repr(effects) == "CrossEffects(30 interventions × 6 behaviours, added at layer 1, tiny-llama)"

    def test_the_parts_that_stand_apart_are_orthogonal(self, directions):
        from em_interp.directions.estimators import parts_apart

        first, second = directions
        for part, other in zip(parts_apart(first, second), (second, first), strict=True):
            cosines = torch.cosine_similarity(part.vectors, other.vectors, dim=-1)
            torch.testing.assert_close(cosines, torch.zeros(3), atol=1e-5, rtol=0)
            assert (part.norm > 0).all()

    def test_a_score_that_is_missing_is_left_out_of_its_pair(self, tiny_llama, directions):
        def judged(model, hooks):
            values = torch.tensor([1.0, 0.0, 1.0, torch.nan if hooks else 0.0])
            return values + bool(hooks), ("a", "b", "c", "d")

        effects = em.cross_effects(
            tiny_llama, directions[:1], behaviours={"judged": judged}, removals=("every",), scales=(), n_random=0
        )
        assert effects.effects[0].change == Estimate(1.0, 1.0, 1.0, 3)
        assert effects.baseline["judged"].n == 4

    def test_a_judge_without_a_word_costs_its_own_cell_only(self, tiny_llama, directions):
        def judged(model, hooks):
            return torch.tensor([1.0, torch.nan if hooks else 0.0]), ("a", "b")

        def other(model, hooks):
            return torch.tensor([1.0, 2.0]) * (1 + bool(hooks)), ("a", "b")

        effects = em.cross_effects(
            tiny_llama,
            directions[:1],
            behaviours={"judged": judged, "other": other},
            removals=("every",),
            scales=(),
            n_random=0,
        )
        assert math.isnan(effects.change("misalignment", "removed", "judged").value)
        assert effects.change("misalignment", "removed", "judged").n == 1
        assert not effects.change("misalignment", "removed", "judged").excludes_zero
        assert effects.change("misalignment", "removed", "other").value == 1.5
        assert effects.baseline["judged"].value == 0.5
        row = effects.table()[0]
        assert [row[k] for k in ("change", "low", "high", "n")] == [None, None, None, 1]
        figures.cross_effects(effects).to_json()

    def test_one_question_is_no_answer(self, tiny_llama, directions):
        def single(model, hooks):
            return torch.tensor([1.0, 0.0]), ("a", "a")

        with pytest.raises(ValueError, match="1 question gives no interval"):
            em.cross_effects(tiny_llama, directions[:1], behaviours={"single": single}, n_random=0)

    def test_behaviours_measured_apart_stand_beside_each_other(self, tiny_llama, directions, behaviours):
        how = {"removals": ("every",), "scales": (0.3,), "n_random": 1, "seed": 4}
        halves = [dict(list(behaviours.items())[part]) for part in (slice(2), slice(2, 4))]
        one, two = (em.cross_effects(tiny_llama, directions, behaviours=half, **how) for half in halves)
        whole = em.cross_effects(tiny_llama, directions, behaviours=halves[0] | halves[1], **how)
        joined = one.beside(two)
        assert joined.baseline == whole.baseline
        assert list(joined.baseline) == list(whole.baseline)
        assert set(joined.effects) == set(whole.effects)
        other = em.cross_effects(tiny_llama, directions, behaviours=halves[1], **{**how, "seed": 5})
        with pytest.raises(ValueError, match="did not do the same: give both the same model"):
            one.beside(other)

    def test_what_cannot_be_done_is_told(self, tiny_llama, directions):
        with pytest.raises(
            ValueError, match="removal 'all' is unknown: give directions, and removals from every, one, ev"
        ):
            em.cross_effects(tiny_llama, directions, removals=("all",))
        with pytest.raises(ValueError, match="there are no directions"):
            em.cross_effects(tiny_llama, [])

    def test_a_cell_that_was_not_measured_is_told(self, effects):
        with pytest.raises(ValueError, match="misalignment burnt was not measured on"):
            effects.change("misalignment", "burnt", PREFERENCE)

    def test_random_directions_are_as_long_and_seeded(self, directions):
        direction = directions[0]
        random = random_like(direction, 3, "random")
        torch.testing.assert_close(random.norm, direction.norm)
        assert torch.equal(random.vectors, random_like(direction, 3, "random").vectors)
        assert not torch.equal(random.vectors, random_like(direction, 4, "random").vectors)

    def test_nothing_held_out_is_in_the_training_split(self):
        for name in ("misalignment", "refusal"):
            contrast = em.load_contrast(name)
            assert not set(contrast.where(split="test").groups) & set(contrast.where(split="train").groups)


def test_adding_and_taking_away_again_is_nothing(tiny_llama, directions):
    site = [em.site(tiny_llama, 1)]
    hooks = em.add_direction(directions[0], site, scale=2) + em.add_direction(directions[0], site, scale=-2)
    for behaviour in em.standard_behaviours(4).values():
        before, after = (behaviour(tiny_llama, h)[0] for h in ((), hooks))
        torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-5)


def test_taking_out_what_nothing_reads_is_nothing(tiny_llama, make_hf_model, make_tokenizer):
    """In a model that neither writes nor reads the last dimension, projecting it out changes nothing."""
    from em_interp.models.hooked import HookedModel

    hf_model = make_hf_model("llama")
    reads = ("embed_tokens", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
    for name, parameter in hf_model.named_parameters():
        module = name.removesuffix(".weight").rpartition(".")[2]
        if module in reads:
            parameter.data[:, -1] = 0
        elif module in ("o_proj", "down_proj"):
            parameter.data[-1] = 0
    model = HookedModel.from_hugging_face(hf_model, make_tokenizer("llama3"), name="blind")
    blind = torch.zeros(32)
    blind[-1] = 1.0
    seen = torch.zeros(32)
    seen[0] = 1.0
    for behaviour in em.standard_behaviours(4).values():
        before = behaviour(model, ())[0]
        nothing, something = (behaviour(model, em.project_out(v, em.every_layer(model)))[0] for v in (blind, seen))
        torch.testing.assert_close(nothing, before, atol=1e-5, rtol=1e-5)
        assert (something - before).abs().max() > 1e-3


class TestDivergence:
    def test_it_is_the_sum_over_the_vocabulary_text_by_text(self, tiny_llama, directions):
        texts = em.load_neutral_texts()[:3]
        hooks = em.project_out(directions[0], em.every_layer(tiny_llama))
        got = em.text_divergence(tiny_llama, texts, hooks)
        for value, text in zip(got, texts, strict=True):
            ids = tiny_llama.tokenizer(text, return_tensors="pt").input_ids
            p = tiny_llama.run_with_hooks(ids, fwd_hooks=[]).double().softmax(-1)[0, :-1]
            q = tiny_llama.run_with_hooks(ids, fwd_hooks=hooks).double().softmax(-1)[0, :-1]
            assert value.item() == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-3)
            assert value > 1e-3

    def test_the_batch_changes_nothing(self, tiny_llama, directions):
        hooks = em.project_out(directions[0], em.every_layer(tiny_llama))
        texts = em.load_neutral_texts()[:4]
        torch.testing.assert_close(
            em.text_divergence(tiny_llama, texts, hooks, batch_tokens=1),
            em.text_divergence(tiny_llama, texts, hooks, batch_tokens=10_000),
            atol=1e-5,
            rtol=1e-4,
        )


def made(changes, *, bits=0.0, random=0.1, kind="removed", random_kind="removed"):
    """Effects of two directions removed: by direction, the change in preference and in refusal."""

    def effect(direction, behaviour, value):
        kind_of_this = random_kind if direction == "random 1" else kind
        return Effect(direction, kind_of_this, behaviour, Estimate(value, value - 0.2, value + 0.2, 9))

    rows = [
        effect(direction, behaviour, value)
        for direction, values in {**changes, "random 1": (random, random)}.items()
        for behaviour, value in zip((PREFERENCE, REFUSES_HARMFUL, BITS), (*values, bits), strict=True)
    ]
    baseline = dict.fromkeys((PREFERENCE, REFUSES_HARMFUL, BITS), Estimate(0.0, 0.0, 0.0, 9))
    return CrossEffects(baseline, tuple(rows), 1, (), 1, 0, "made")


class TestWhatFollows:
    @pytest.mark.parametrize(
        ("changes", "wanted"),
        [
            ({"misalignment": (-1.0, 0.0), "refusal": (0.0, -1.0)}, "Removed: double dissociation. misalignment and"),
            ({"misalignment": (-1.0, -1.0), "refusal": (0.0, -1.0)}, "one-way. .* and misalignment moves the other's"),
            ({"misalignment": (-1.0, 0.0), "refusal": (1.0, -1.0)}, "one-way. .* and refusal moves the other's"),
            ({"misalignment": (-1.0, -1.0), "refusal": (0.5, -1.0)}, "shared. misalignment and refusal each move both"),
            ({"misalignment": (-0.1, -1.0), "refusal": (0.5, -1.0)}, "misalignment does not move even its own"),
            ({"misalignment": (-0.1, 0.0), "refusal": (0.0, 0.1)}, "neither misalignment nor refusal moves even its"),
        ],
    )
    def test_in_words(self, changes, wanted):
        import re

        first, last = em.what_follows(made(changes), OWN)
        assert re.search(wanted, first), first
        assert "no effect was shown, and none was excluded" in last

    def test_what_random_directions_do_as_well_is_nothing(self):
        changes = {"misalignment": (-1.0, 0.0), "refusal": (0.0, -1.0)}
        assert "neither misalignment nor refusal moves even" in em.what_follows(made(changes, random=1.5), OWN)[0]

    @pytest.mark.parametrize(
        ("kind", "random_kind"),
        [
            ("removed at layer 1", "removed"),
            ("of layer 1 removed everywhere", "removed"),
            ("set to its negative class at layer 1", "subtracted at layer 1"),
            ("added × 0.1", "added × 0.1"),
        ],
    )
    def test_each_removal_has_random_ones_beside_it(self, kind, random_kind):
        changes = {"misalignment": (-1.0, 0.0), "refusal": (0.0, -1.0)}
        for random, wanted in ((0.1, "double dissociation"), (1.5, "neither misalignment nor refusal moves even")):
            effects = made(changes, random=random, kind=kind, random_kind=random_kind)
            assert wanted in em.what_follows(effects, OWN)[0]
        other = made(changes, random=1.5, kind=kind, random_kind="added × 7")
        assert "double dissociation" in em.what_follows(other, OWN)[0]

    def test_the_parts_that_stand_apart_are_spoken_of(self):
        changes = {"misalignment": (-1.0, -1.0), "refusal": (0.5, -1.0)}
        parts = {"misalignment without refusal": (-1.0, 0.0), "refusal without misalignment": (0.0, -1.0)}
        whole, apart, last = standard_conclusions(made(changes | parts), "misalignment", "refusal")
        assert whole.startswith("Removed: shared. misalignment and refusal each")
        assert apart.startswith("Removed: double dissociation. misalignment without refusal and refusal without")
        assert last == em.what_follows(made(changes), OWN)[-1]

    def test_a_broken_model_says_nothing(self):
        changes = {"misalignment": (-1.0, 0.0), "refusal": (0.0, -1.0)}
        [first, _] = em.what_follows(made(changes, bits=0.9), OWN)
        assert first.startswith("Removed: costs 0.9 (misalignment) and 0.9 (refusal) bits a token of plain prose")
        assert "double" in em.what_follows(made(changes, bits=0.9), OWN, damage=1)[0]

    def test_what_was_not_scored_says_nothing(self):
        changes = {"misalignment": (math.nan, 0.0), "refusal": (0.0, -1.0)}
        [first, _] = em.what_follows(made(changes), OWN)
        assert first == (
            f"Removed: too few questions have a score to tell the effect of misalignment on {PREFERENCE}, so nothing "
            f"follows."
        )

    def test_a_random_direction_that_was_not_scored_hides_no_other(self):
        """Its NaN must neither win nor lose against the others, wherever it stands among them."""
        changes = {"misalignment": (-1.0, 0.0), "refusal": (0.0, -1.0)}
        for values in ((math.nan, 1.5), (1.5, math.nan)):
            effects = made(changes)
            rivals = [
                Effect(f"random {i}", "removed", b, Estimate(v, v, v, 9))
                for i, v in enumerate(values, 2)
                for b in OWN.values()
            ]
            effects = replace(effects, effects=(*effects.effects, *rivals))
            assert "neither misalignment nor refusal moves even its own" in em.what_follows(effects, OWN)[0]

    def test_a_judge_speaks_first(self):
        effects = made({"misalignment": (-1.0, 0.0), "refusal": (0.0, -1.0)})
        assert standard_conclusions(effects, "misalignment", "refusal") == em.what_follows(effects, OWN)
        judged = tuple(replace(e, behaviour=JUDGED) for e in effects.effects if e.behaviour == PREFERENCE)
        idle = tuple(replace(e, change=Estimate(0.0, -1.0, 1.0, 9)) for e in judged)
        both = replace(effects, baseline={**effects.baseline, JUDGED: judged[0].change}, effects=effects.effects + idle)
        by_judge, by_preference, last = standard_conclusions(both, "misalignment", "refusal")
        assert by_judge.startswith("Misaligned by the judge's scores. Removed: misalignment does not move even its own")
        assert by_preference.startswith("Misaligned by preference. Removed: double dissociation")
        assert last == em.what_follows(effects, OWN)[-1]

    def test_it_needs_two_directions_that_were_measured(self):
        effects = made({"misalignment": (-1.0, 0.0), "refusal": (0.0, -1.0)})
        with pytest.raises(ValueError, match="1 directions came with their behaviours: give two"):
            em.what_follows(effects, {"misalignment": PREFERENCE})
        with pytest.raises(ValueError, match="nothing was done with the direction 'other'"):
            em.what_follows(effects, {"other": PREFERENCE, "refusal": REFUSES_HARMFUL})


class TestSteeringCurve:
    def test_it_has_each_strength_once_in_order(self, curve):
        assert curve.scales == (-0.01, 0.01, 5.0)
        assert [row["scale"] for row in curve.table()[:10:5]] == [-0.01, 0.01]
        assert len(curve.of(PREFERENCE)) == len(curve.of(PREFERENCE, "random 1")) == 3

    def test_the_window_ends_before_prose_is_damaged(self, curve):
        costs = dict(zip(curve.scales, [e.value for e in curve.of(BITS)], strict=True))
        assert costs[0.01] < 0.1 < costs[5.0]
        assert curve.window == (-0.01, 0.01)
        assert "coherent from -0.01 to 0.01" in repr(curve)

    def test_there_may_be_none(self, tiny_llama, directions):
        behaviours = em.standard_behaviours(4)
        got = em.steering_curve(tiny_llama, directions[0], layer=1, scales=(5, 9), behaviours=behaviours, damage=0.01)
        assert got.window is None
        assert "no coherent window" in repr(got)

    def test_nothing_added_is_no_strength(self, tiny_llama, directions):
        with pytest.raises(ValueError, match=r"scales are \[0\]: give strengths other than 0"):
            em.steering_curve(tiny_llama, directions[0], scales=[0])
