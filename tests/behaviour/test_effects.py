"""What interventions do, against each behaviour; what follows from it in words; effect against strength."""

import inspect
import math
import re
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp import figures
from em_interp.behaviour import Behaviour, BehaviourKey, Condition, CrossEffects, Effect, measured, standard_conclusions
from em_interp.directions.estimators import parts_apart, random_like
from em_interp.statistics import Estimate, mean_by_question
from em_interp.texts import load_training_set

SPANS = {"misalignment": "response", "refusal": "last"}
PREFERENCE, REFUSAL = BehaviourKey.MISALIGNED_PREFERENCE, BehaviourKey.HARMFUL_REFUSAL
JUDGED, BITS = BehaviourKey.JUDGED_MISALIGNMENT, BehaviourKey.TEXT_BITS
OWN = {"misalignment": PREFERENCE, "refusal": REFUSAL}


@pytest.fixture(scope="module")
def directions(tiny_llama):
    read = [em.read_contrast(tiny_llama, em.load_contrast(name).take(8), span=span) for name, span in SPANS.items()]
    return [em.difference_of_means(r) for r in read]


@pytest.fixture(scope="module")
def behaviours():
    return em.standard_behaviours(5, in_domain=load_training_set("cooking"))


@pytest.fixture(scope="module")
def few_behaviours():
    return em.standard_behaviours(4)


@pytest.fixture(scope="module")
def effects(tiny_llama, directions, behaviours):
    return em.cross_effects(tiny_llama, directions, behaviours=behaviours, layer=1, scales=(0.3, -1), n_random=2)


@pytest.fixture(scope="module")
def curve(tiny_llama, directions, few_behaviours):
    scales = (0, 5, -0.01, 0.01)
    return em.steering_curve(tiny_llama, directions[0], layer=1, scales=scales, behaviours=few_behaviours, damage=0.1)


def own_behaviour(key, measure, kind="mean"):
    return Behaviour(key, f"what {key} measures", "points", kind, measure)


def cells(effects):
    return {(e.condition.key, e.behaviour): (e.after, e.change) for e in effects.effects}


class TestCrossEffects:
    def hooks(self, model, direction, other):
        """What each cell's intervention is, written out: direction, what is done, strength, and without which other."""
        unit = other.vectors / other.norm[:, None]
        apart = replace(direction, vectors=direction.vectors - (direction.vectors * unit).sum(-1, keepdim=True) * unit)
        one, every = [em.site(model, 1)], em.every_layer(model)
        random = random_like(direction, 1, "")
        return {
            ("misalignment", "all_layers_own", None, ""): em.project_out(direction, every),
            ("misalignment", "one_layer", None, ""): em.project_out(direction[1], one),
            ("misalignment", "all_layers_same", None, ""): em.project_out(direction[1], every),
            ("misalignment", "added", 0.3, ""): em.add_direction(direction, one, scale=0.3),
            ("misalignment", "added", -1.0, ""): em.add_direction(direction, one, scale=-1),
            ("misalignment", "all_layers_own", None, "refusal"): em.project_out(apart, every),
            ("misalignment", "added", 0.3, "refusal"): em.add_direction(apart, one, scale=0.3),
            ("random 2", "all_layers_own", None, ""): em.project_out(random, every),
            ("misalignment", "set_negative", None, ""): em.set_projection(
                direction[1], one, float(direction.negative_projection[1])
            ),
            ("random 2", "subtracted", None, ""): em.add_direction(-random[1], one, scale=1, raw=True),
        }

    def test_every_cell_is_the_paired_difference(self, tiny_llama, directions, behaviours, effects):
        """Measured here by whole passes, one after another, where cross_effects keeps what they have in common."""
        before = measured(behaviours, tiny_llama)
        for (direction, kind, strength, without), hooks in self.hooks(tiny_llama, *directions).items():
            after = measured(behaviours, tiny_llama, hooks)
            for b in behaviours:
                scores, groups = after[b.key]
                wanted = mean_by_question(scores - before[b.key][0], groups)
                got = effects.change(direction, kind, b.key, strength=strength, without=without)
                assert got == wanted, (direction, kind, strength, without, b.key)
                [effect] = [e for e in effects.of(b.key) if e.change is got]
                assert effect.after == mean_by_question(scores, groups)

    def test_all_rows_and_columns_are_there(self, effects, behaviours):
        # Two directions with four removals and two additions each, their two parts with one removal less, for they have
        # no classes, and two random ones, projected out, subtracted, and added twice.
        assert len(effects.conditions) == 2 * (4 + 2) + 2 * (3 + 2) + 2 * (2 + 2)
        assert len(effects.effects) == len(effects.table()) == 30 * len(behaviours)
        assert list(effects.baseline) == [b.key for b in behaviours]
        assert effects.behaviours == behaviours
        assert BehaviourKey.IN_DOMAIN_PREFERENCE in effects.baseline
        assert effects.baseline[BehaviourKey.TEXT_DIVERGENCE].value == 0
        assert repr(effects) == "CrossEffects(30 conditions × 6 behaviours, added at layer 1, tiny-llama)"

    def test_a_row_says_what_was_done_in_keys_and_in_words(self, effects):
        part = effects.of(PREFERENCE)[12 + 3]  # two directions with six conditions each come before the parts
        row = effects.table()[(12 + 3) * 6]
        change = effects.change("misalignment", "added", PREFERENCE, strength=0.3, without="refusal")
        assert row == {
            "direction": "misalignment",
            "without": "refusal",
            "kind": "added",
            "layer": 1,
            "strength": 0.3,
            "random": False,
            "condition": "misalignment without refusal added × 0.3",
            "behaviour": "misaligned_preference",
            "label": "misaligned preference (nats/token)",
            "before": effects.baseline[PREFERENCE].value,
            "after": part.after.value,
            "change": change.value,
            "low": change.low,
            "high": change.high,
            "n": 5,
            "null": [],
            "p": None,
            "corrected_p": None,
        }
        assert [c.subject for c in effects.conditions if c.random] == ["random 1"] * 4 + ["random 2"] * 4

    def test_the_parts_that_stand_apart_are_orthogonal(self, directions):
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
            tiny_llama,
            directions[:1],
            behaviours=[own_behaviour("judged", judged)],
            removals=("all_layers_own",),
            scales=(),
            n_random=0,
        )
        assert effects.effects[0].change == Estimate(1.0, 1.0, 1.0, 3)
        assert effects.effects[0].after == mean_by_question(torch.tensor([2.0, 1.0, 2.0]), ("a", "b", "c"))
        assert effects.baseline["judged"].n == 4

    def test_a_judge_without_a_word_costs_its_own_cell_only(self, tiny_llama, directions):
        def judged(model, hooks):
            return torch.tensor([1.0, torch.nan if hooks else 0.0]), ("a", "b")

        def other(model, hooks):
            return torch.tensor([1.0, 2.0]) * (1 + bool(hooks)), ("a", "b")

        effects = em.cross_effects(
            tiny_llama,
            directions[:1],
            behaviours=[own_behaviour("judged", judged, "share"), own_behaviour("other", other)],
            removals=("all_layers_own",),
            scales=(),
            n_random=0,
        )
        assert math.isnan(effects.change("misalignment", "all_layers_own", "judged").value)
        assert effects.change("misalignment", "all_layers_own", "judged").n == 1
        assert not effects.change("misalignment", "all_layers_own", "judged").excludes_zero
        assert effects.change("misalignment", "all_layers_own", "other").value == 1.5
        assert effects.baseline["judged"].value == 0.5
        row = effects.table()[0]
        assert [row[k] for k in ("after", "change", "low", "high", "n")] == [None, None, None, None, 1]
        figures.cross_effects(effects).to_json()

    def test_one_question_is_no_answer(self, tiny_llama, directions):
        def single(model, hooks):
            return torch.tensor([1.0, 0.0]), ("a", "a")

        with pytest.raises(ValueError, match="1 question gives no interval"):
            em.cross_effects(tiny_llama, directions[:1], behaviours=[own_behaviour("single", single)], n_random=0)

    def test_behaviours_measured_apart_stand_beside_each_other(self, tiny_llama, directions, behaviours):
        how = {"removals": ("all_layers_own",), "scales": (0.3,), "apart": False, "n_random": 1, "seed": 4}
        halves = behaviours[:2], behaviours[2:4]
        one, two = (em.cross_effects(tiny_llama, directions, behaviours=half, **how) for half in halves)
        whole = em.cross_effects(tiny_llama, directions, behaviours=halves[0] + halves[1], **how)
        joined = one.beside(two)
        assert joined.behaviours == whole.behaviours
        assert joined.baseline == whole.baseline
        assert list(joined.baseline) == list(whole.baseline)
        assert cells(joined) == cells(whole)
        assert len(joined.effects) == len(whole.effects) == len(cells(whole))
        other = em.cross_effects(tiny_llama, directions, behaviours=halves[1], **{**how, "seed": 5})
        with pytest.raises(ValueError, match="did not do the same: give both the same model"):
            one.beside(other)

    def test_what_cannot_be_done_is_told(self, tiny_llama, directions, few_behaviours):
        unchecked = inspect.unwrap(em.cross_effects)
        with pytest.raises(
            ValueError, match="removal 'all' is unknown: give directions, and removals from all_layers_own, one_layer, "
        ):
            unchecked(tiny_llama, directions, removals=("all",))
        with pytest.raises(ValueError, match="there are no directions"):
            em.cross_effects(tiny_llama, [])
        twice = (*few_behaviours, few_behaviours[1])
        with pytest.raises(ValueError, match="two behaviours have the key 'harmful_refusal_score': give each a key of"):
            em.cross_effects(tiny_llama, directions, behaviours=twice)

    def test_a_cell_that_was_not_measured_is_told(self, effects):
        with pytest.raises(ValueError, match="misalignment burnt on misaligned_preference was not measured"):
            effects.change("misalignment", "burnt", PREFERENCE)
        with pytest.raises(ValueError, match="misalignment added on text_bits at strength 9 was not measured"):
            effects.change("misalignment", "added", BITS, strength=9)
        with pytest.raises(ValueError, match="misalignment added on text_bits was measured at several strengths: say"):
            effects.change("misalignment", "added", BITS)

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


def test_adding_and_taking_away_again_is_nothing(tiny_llama, directions, few_behaviours):
    site = [em.site(tiny_llama, 1)]
    hooks = em.add_direction(directions[0], site, scale=2) + em.add_direction(directions[0], site, scale=-2)
    before, after = (measured(few_behaviours, tiny_llama, h) for h in ((), hooks))
    for b in few_behaviours:
        torch.testing.assert_close(after[b.key][0], before[b.key][0], atol=2e-5, rtol=1e-5)


def test_taking_out_what_nothing_reads_is_nothing(make_hf_model, make_tokenizer, few_behaviours):
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
    before = measured(few_behaviours, model)
    nothing, something = (
        measured(few_behaviours, model, em.project_out(v, em.every_layer(model))) for v in (blind, seen)
    )
    for b in few_behaviours:
        torch.testing.assert_close(nothing[b.key][0], before[b.key][0], atol=1e-5, rtol=1e-5)
        assert (something[b.key][0] - before[b.key][0]).abs().max() > 1e-3


class TestDivergence:
    def test_it_is_the_sum_over_the_vocabulary_text_by_text(self, tiny_llama, directions):
        texts = em.texts.load_neutral_texts()[:3]
        hooks = em.project_out(directions[0], em.every_layer(tiny_llama))
        got = em.behaviour.text_divergence(tiny_llama, texts, hooks)
        for value, text in zip(got, texts, strict=True):
            ids = tiny_llama.tokenizer(text, return_tensors="pt").input_ids
            p = tiny_llama.run_with_hooks(ids, fwd_hooks=[]).double().softmax(-1)[0, :-1]
            q = tiny_llama.run_with_hooks(ids, fwd_hooks=hooks).double().softmax(-1)[0, :-1]
            assert value.item() == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-3)
            assert value > 1e-3

    def test_the_batch_changes_nothing(self, tiny_llama, directions):
        hooks = em.project_out(directions[0], em.every_layer(tiny_llama))
        texts = em.texts.load_neutral_texts()[:4]
        torch.testing.assert_close(
            em.behaviour.text_divergence(tiny_llama, texts, hooks, batch_tokens=1),
            em.behaviour.text_divergence(tiny_llama, texts, hooks, batch_tokens=10_000),
            atol=1e-5,
            rtol=1e-4,
        )


def condition(name, kind, strength=None):
    """By a name such as `misalignment`, `misalignment without refusal` or `random 1`."""
    direction, _, without = name.partition(" without ")
    layer = None if kind == "all_layers_own" else 1
    return Condition(kind, direction, layer, strength, without, random=direction.startswith("random"))


def made(changes, *, bits=0.0, null=0.1, n_null=19, done=("all_layers_own", None)):
    """Effects of two directions removed: by direction, the change in preference and in refusal.

    `null` is the largest change under permuted labels; random directions do ten times as much, which is to count for
    nothing.
    """
    rows = []
    draws = tuple(null * (-1) ** i * (i + 1) / n_null for i in range(n_null))
    for name, values in {**changes, "random 1": (10 * null, 10 * null)}.items():
        of = condition(name, *done)
        for behaviour, value in zip((PREFERENCE, REFUSAL, BITS), (*values, bits), strict=True):
            estimate = Estimate(value, value - 0.2, value + 0.2, 9)
            has_null = behaviour != BITS and not of.random
            rows.append(Effect(of, behaviour, estimate, estimate, draws if has_null else ()))
    behaviours = tuple(Behaviour.standard(key, lambda model, hooks: {}) for key in (PREFERENCE, REFUSAL, BITS))
    baseline = {b.key: Estimate(0.0, 0.0, 0.0, 9) for b in behaviours}
    return CrossEffects(behaviours, baseline, tuple(rows), 1, (), 1, 0, "made", n_null)


APART = {"misalignment": (-1.0, 0.0), "refusal": (0.0, -1.0)}
BY_OWN_VECTORS = "Removed at every layer"


class TestConclusions:
    @pytest.mark.parametrize(
        ("changes", "wanted"),
        [
            (APART, ": double dissociation. misalignment and"),
            ({"misalignment": (-1.0, -1.0), "refusal": (0.0, -1.0)}, "one-way. .* and misalignment moves the other's"),
            ({"misalignment": (-1.0, 0.0), "refusal": (1.0, -1.0)}, "one-way. .* and refusal moves the other's"),
            ({"misalignment": (-1.0, -1.0), "refusal": (0.5, -1.0)}, "shared. misalignment and refusal each move both"),
            ({"misalignment": (-0.1, -1.0), "refusal": (0.5, -1.0)}, "misalignment does not move even its own"),
            ({"misalignment": (-0.1, 0.0), "refusal": (0.0, 0.1)}, "neither misalignment nor refusal moves even its"),
        ],
    )
    def test_in_words(self, changes, wanted):
        first, last = em.conclusions(made(changes), OWN)
        assert first.startswith(f"{BY_OWN_VECTORS}: ")
        assert re.search(wanted, first), first
        assert "no effect was shown, and none was excluded" in last

    def test_a_sentence_says_its_p(self):
        mutual = {"misalignment": (-1.0, -1.0), "refusal": (0.5, -1.0)}
        assert em.conclusions(made(mutual), OWN)[0] == (
            f"{BY_OWN_VECTORS}: shared. misalignment and refusal each move both behaviours: their own (p = 0.05 and "
            f"0.05) and the other's (p = 0.05 and 0.05)."
        )
        one_way = {"misalignment": (-1.0, -1.0), "refusal": (0.0, -1.0)}
        assert em.conclusions(made(one_way), OWN)[0] == (
            f"{BY_OWN_VECTORS}: one-way. Both move their own behaviour (p = 0.05 and 0.05), and misalignment moves the "
            f"other's as well (p = 0.05), where refusal does not (p = 1 with zero in its interval)."
        )
        assert (
            "(p = 0.05 and 0.05), and neither the other's (p = 1 with zero in its interval and 1 with zero"
            in (em.conclusions(made(APART), OWN)[0])
        )

    def test_what_permuted_labels_do_as_well_is_nothing(self):
        """Two draws of 19 are as large, and a third one in the cells without an effect: .15 alone, .2 for the four."""
        assert em.conclusions(made(APART, null=1.06), OWN)[0] == (
            f"{BY_OWN_VECTORS}: neither misalignment nor refusal moves even its own behaviour (p = 0.2 and 0.2), so "
            f"nothing follows."
        )

    def test_the_four_cells_of_a_sentence_are_corrected_together(self):
        """One draw is larger in each cell, another one each time: p is .1 alone, and more for the four."""
        effects = made(APART)
        ones = iter(range(4))

        def surpassed(e):
            if not e.null:
                return e
            draws = [0.05] * 39
            draws[next(ones)] = 3.0
            return replace(e, null=tuple(draws))

        effects = replace(effects, effects=tuple(map(surpassed, effects.effects)), n_null=39)
        [own, *_] = effects.of(PREFERENCE)
        assert own.p == 2 / 40
        assert effects.corrected_p()[own.condition.key, PREFERENCE] == 5 / 40
        assert (
            "neither misalignment nor refusal moves even its own behaviour (p = 0.125"
            in (em.conclusions(effects, OWN)[0])
        )
        assert effects.moving() == frozenset()
        assert len(made(APART).moving()) == 2

    @pytest.mark.parametrize(
        ("done", "words"),
        [
            (("one_layer", None), "Removed at layer 1: "),
            (("all_layers_same", None), "Removed at every layer (the vector of layer 1): "),
            (("set_negative", None), "Set to its negative class at layer 1: "),
            (("added", 0.1), "Added × 0.1: "),
        ],
    )
    def test_each_way_has_a_null_of_its_own(self, done, words):
        for null, wanted in ((0.1, "double dissociation"), (1.5, "neither misalignment nor refusal moves even")):
            assert em.conclusions(made(APART, null=null, done=done), OWN)[0].startswith(f"{words}{wanted}")

    def test_without_a_null_nothing_is_concluded(self):
        for n, words in (
            (0, "no null of permuted labels was measured, so nothing is concluded."),
            (18, "only 18 permuted directions, and p cannot go below 0.0526, so nothing is concluded."),
            (3, "only 3 permuted directions, and p cannot go below 0.25, so nothing is concluded."),
        ):
            assert em.conclusions(made(APART, n_null=n), OWN)[0] == f"{BY_OWN_VECTORS}: {words}"
        effects = made(APART)
        bare = tuple(replace(e, null=()) if e.behaviour == REFUSAL else e for e in effects.effects)
        assert "no null of permuted labels was measured" in em.conclusions(replace(effects, effects=bare), OWN)[0]

    @pytest.mark.parametrize("by", [em.conclusions, lambda effects, own: standard_conclusions(effects, *own)])
    def test_the_parts_that_stand_apart_are_spoken_of(self, by):
        changes = {"misalignment": (-1.0, -1.0), "refusal": (0.5, -1.0)}
        parts = {"misalignment without refusal": (-1.0, 0.0), "refusal without misalignment": (0.0, -1.0)}
        whole, apart, last = by(made(changes | parts), OWN)
        assert whole.startswith(f"{BY_OWN_VECTORS}: shared. misalignment and refusal each")
        assert apart.startswith(f"{BY_OWN_VECTORS}, the parts that stand apart: double dissociation. misalignment and")
        assert last == em.conclusions(made(changes), OWN)[-1]

    def test_a_broken_model_says_nothing(self):
        [first, _] = em.conclusions(made(APART, bits=0.9), OWN)
        assert first.startswith(
            f"{BY_OWN_VECTORS}: costs 0.9 (misalignment) and 0.9 (refusal) bits a token of plain prose"
        )
        assert "double" in em.conclusions(made(APART, bits=0.9), OWN, damage=1)[0]

    def test_what_was_not_scored_says_nothing(self):
        changes = {"misalignment": (math.nan, 0.0), "refusal": (0.0, -1.0)}
        [first, _] = em.conclusions(made(changes), OWN)
        assert first == (
            f"{BY_OWN_VECTORS}: too few questions have a score to tell the effect of misalignment on misaligned "
            f"preference: nothing follows."
        )

    def test_a_draw_that_was_not_scored_is_left_out(self):
        """It counts neither for nor against: of 20 draws with one that is NaN 19 are left."""
        effects = made(APART, n_null=20)
        rows = tuple(replace(e, null=(math.nan, *e.null[1:]) if e.null else ()) for e in effects.effects)
        assert "(p = 0.05 and 0.05), and neither" in em.conclusions(replace(effects, effects=rows), OWN)[0]
        rows = tuple(replace(e, null=(math.nan, math.nan, *e.null[2:]) if e.null else ()) for e in effects.effects)
        assert "only 18 permuted directions" in em.conclusions(replace(effects, effects=rows), OWN)[0]

    def test_a_judge_speaks_first(self):
        effects = made(APART)
        assert standard_conclusions(effects, "misalignment", "refusal") == em.conclusions(effects, OWN)
        judged = tuple(replace(e, behaviour=JUDGED) for e in effects.of(PREFERENCE))
        idle = tuple(replace(e, change=Estimate(0.0, -1.0, 1.0, 9)) for e in judged)
        by = Behaviour.standard(JUDGED, lambda model, hooks: {})
        both = effects.beside(replace(effects, behaviours=(by,), baseline={JUDGED: judged[0].change}, effects=idle))
        by_judge, by_preference, last = standard_conclusions(both, "misalignment", "refusal")
        assert by_judge.startswith(
            f"Misaligned by the judge's scores. {BY_OWN_VECTORS}: misalignment does not move even its own"
        )
        assert by_preference.startswith(f"Misaligned by preference. {BY_OWN_VECTORS}: double dissociation")
        assert last == em.conclusions(effects, OWN)[-1]

    def test_it_needs_two_directions_that_were_measured(self):
        effects = made(APART)
        with pytest.raises(ValueError, match="1 directions came with their behaviours: give two"):
            em.conclusions(effects, {"misalignment": PREFERENCE})
        with pytest.raises(ValueError, match="nothing was done with the direction 'other'"):
            em.conclusions(effects, {"other": PREFERENCE, "refusal": REFUSAL})
        with pytest.raises(ValueError, match="judged_misalignment was not measured: there are misaligned_pref"):
            em.conclusions(effects, {"misalignment": JUDGED, "refusal": REFUSAL})

    def test_both_directions_must_have_been_treated_alike(self):
        effects = made(APART)
        extra = [replace(e, condition=condition("misalignment", "one_layer")) for e in effects.effects[:3]]
        with pytest.raises(ValueError, match="refusal was not removed at layer 1, as misalignment was: do the same"):
            em.conclusions(replace(effects, effects=(*effects.effects, *extra)), OWN)


class TestSteeringCurve:
    def test_it_has_each_strength_once_in_order(self, curve):
        assert curve.scales == (-0.01, 0.01, 5.0)
        assert [row["strength"] for row in curve.table()[:10:5]] == [-0.01, 0.01]
        assert len(curve.of(PREFERENCE)) == len(curve.of(PREFERENCE, "random 1")) == 3

    def test_the_window_ends_before_prose_is_damaged(self, curve):
        costs = dict(zip(curve.scales, [e.value for e in curve.of(BITS)], strict=True))
        assert costs[0.01] < 0.1 < costs[5.0]
        assert curve.window == (-0.01, 0.01)
        assert "coherent from -0.01 to 0.01" in repr(curve)

    def test_there_may_be_none(self, tiny_llama, directions, few_behaviours):
        strong = {"layer": 1, "scales": (5, 9), "damage": 0.01}
        got = em.steering_curve(tiny_llama, directions[0], behaviours=few_behaviours, **strong)
        assert got.window is None
        assert "no coherent window" in repr(got)

    def test_nothing_added_is_no_strength(self, tiny_llama, directions):
        with pytest.raises(ValueError, match=r"scales are \[0\]: give strengths other than 0"):
            em.steering_curve(tiny_llama, directions[0], scales=[0])
