"""The null of permuted labels: the same done with other directions, rarely false, and passed by what is there."""

import math
import re
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp import figures
from em_interp.activations import Activations, ContrastActivations
from em_interp.behaviour import Behaviour, BehaviourKey, measured
from em_interp.directions import difference_of_means, parts_apart, permuted_directions
from em_interp.statistics import mean_by_question, permutation_p

SPANS = {"misalignment": "response", "refusal": "last"}
PREFERENCE, REFUSAL = BehaviourKey.MISALIGNED_PREFERENCE, BehaviourKey.HARMFUL_REFUSAL
OWN = {"misalignment": PREFERENCE, "refusal": REFUSAL}
SCALE = 0.3


@pytest.fixture(scope="module")
def read(tiny_llama):
    return [em.read_contrast(tiny_llama, em.load_contrast(name).take(8), span=span) for name, span in SPANS.items()]


@pytest.fixture(scope="module")
def behaviours():
    return em.standard_behaviours(3, keys=[PREFERENCE, REFUSAL, BehaviourKey.HARMLESS_REFUSAL])


@pytest.fixture(scope="module")
def effects(tiny_llama, read, behaviours):
    directions = [em.difference_of_means(r) for r in read]
    return em.cross_effects(
        tiny_llama, directions, contrasts=read, behaviours=behaviours, layer=1, scales=(SCALE,), n_random=1, n_null=3,
        seed=5,
    )  # fmt: skip


class TestEveryDraw:
    def hooks(self, model, read, kind, without):
        """What is done with the second permuted direction of misalignment, or with its part without refusal."""
        true, other = (em.difference_of_means(r) for r in read)
        draw = permuted_directions(read[0], 3, seed=5)[1]
        if without:
            part, of_draw = parts_apart(true, other)[0], parts_apart(draw, other)[0]
            draw = replace(of_draw, vectors=of_draw.unit * part.norm[:, None])
        site = [em.site(model, 1)]
        return {
            "one_layer": lambda: em.project_out(draw[1], site),
            "set_negative": lambda: em.add_direction(-draw[1], site, raw=True),
            "added": lambda: em.add_direction(draw[1], site, scale=SCALE, residual_norm=float(true.residual_norm[1])),
        }[kind]()

    @pytest.mark.parametrize(
        "done", [("one_layer", ""), ("set_negative", ""), ("added", ""), ("one_layer", "refusal"), ("added", "refusal")]
    )
    def test_is_the_same_done_with_a_permuted_direction(self, tiny_llama, read, behaviours, effects, done):
        kind, without = done
        before = measured(behaviours, tiny_llama)
        after = measured(behaviours, tiny_llama, self.hooks(tiny_llama, read, kind, without))
        for key in (PREFERENCE, REFUSAL):
            [effect] = [
                e for e in effects.of(key)
                if (e.condition.direction, e.condition.kind, e.condition.without) == ("misalignment", kind, without)
            ]  # fmt: skip
            change = mean_by_question(after[key][0] - before[key][0], after[key][1])
            assert effect.null[1] == pytest.approx(change.value, rel=1e-4, abs=1e-6)
            assert len(effect.null) == 3
            assert effect.p == permutation_p(effect.change.value, effect.null)

    def test_only_what_conclusions_rest_on_has_one(self, effects):
        have = {(e.condition.kind, e.behaviour) for e in effects.effects if e.null}
        assert have == {(kind, key) for kind in ("one_layer", "set_negative", "added") for key in (PREFERENCE, REFUSAL)}
        assert not any(e.null for e in effects.effects if e.condition.random)
        assert {c.direction for c in effects.conditions} == {"misalignment", "refusal", "random 1"}  # no draw is a row
        assert "3 permuted directions of each contrast" in repr(effects)
        assert "only 3 permuted directions" in em.conclusions(effects, OWN)[1]

    def test_other_conditions_and_behaviours_have_one_where_asked(self, tiny_llama, read, behaviours):
        directions = [em.difference_of_means(r) for r in read]
        done = {"behaviours": behaviours, "removals": ("all_layers_own",), "scales": (), "n_random": 0, "n_null": 2}
        key = BehaviourKey.HARMLESS_REFUSAL
        found = em.cross_effects(
            tiny_llama, directions, contrasts=read, null_of=("all_layers_own",), null_behaviours=(key,), **done
        )
        assert {e.behaviour for e in found.effects if e.null} == {key}
        draw = permuted_directions(read[1], 2, seed=1)[0]  # each contrast has a seed of its own
        hooks = em.project_out(draw, em.every_layer(tiny_llama))
        before, after = (measured(behaviours, tiny_llama, h)[key] for h in ((), hooks))
        [effect] = [e for e in found.of(key) if e.condition.key == "refusal/all_layers_own"]
        assert effect.null[0] == pytest.approx((after[0] - before[0]).double().mean().item(), rel=1e-4, abs=1e-6)
        none = em.cross_effects(tiny_llama, directions, **done)
        assert none.n_null == 0
        assert not any(e.null for e in none.effects)

    def test_a_row_and_a_mark_show_it(self, effects):
        rows = {(r["condition"], r["behaviour"]): r for r in effects.table()}
        row = rows["refusal added × 0.3", PREFERENCE]
        assert len(row["null"]) == 3
        assert row["p"] in (1 / 4, 2 / 4, 3 / 4, 1)
        assert row["p"] <= row["corrected_p"] <= 1
        assert rows["random 1 added × 0.3", PREFERENCE]["p"] is None
        [effect] = [e for e in effects.of(PREFERENCE) if e.condition.key == "refusal/added/1/0.3"]
        assert repr(effect).startswith("Effect(refusal added × 0.3 on misaligned_preference: ")
        assert repr(effect).endswith(f"p = {effect.p:.2g} of 3 permuted directions)")
        bands = [t for t in figures.cross_effects(effects).data if t.name == "permuted labels"]
        assert len(bands) == 2 * 4  # two behaviours, two directions and their parts
        ends = dict(zip(bands[1].y, bands[1].x, strict=True))
        assert ends["refusal added × 0.3"] == max(map(abs, effect.null))

    def test_halves_of_one_null_stand_beside_each_other(self, tiny_llama, read, behaviours, effects):
        directions = [em.difference_of_means(r) for r in read]
        done = {"layer": 1, "removals": (), "scales": (SCALE,), "n_random": 0, "seed": 5, "contrasts": read}
        one, two, none, more = (
            em.cross_effects(tiny_llama, directions, behaviours=[b], n_null=n, **done)
            for b, n in ((behaviours[0], 3), (behaviours[1], 3), (behaviours[1], 0), (behaviours[1], 2))
        )
        both = one.beside(two)
        for e in both.effects:
            [same] = [x for x in effects.of(e.behaviour) if x.condition.key == e.condition.key]
            assert e.null == pytest.approx(same.null, rel=1e-4, abs=1e-6)
        assert one.beside(none).n_null == none.beside(one).n_null == 3
        with pytest.raises(ValueError, match=r"did not do the same: .* n_null and seed"):
            one.beside(more)

    def test_what_cannot_be_a_null_is_told(self, tiny_llama, read, behaviours):
        directions = [em.difference_of_means(r) for r in read]
        for given, message in (
            (read[:1], "1 contrasts came with the directions misalignment, refusal: give each direction a name of its"),
            (read[::-1], "'misalignment' is not the difference of means of the contrast 'refusal' that came with it"),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                em.cross_effects(tiny_llama, directions, contrasts=given, behaviours=behaviours)
        unchecked = getattr(em.cross_effects, "__wrapped__", em.cross_effects)
        with pytest.raises(ValueError, match="null_of has 'subtracted': choose from all_layers_own, "):
            unchecked(tiny_llama, directions, contrasts=read, behaviours=behaviours, null_of=("subtracted",))
        with pytest.raises(ValueError, match="n is -1: ask for one permuted direction or more"):
            em.cross_effects(tiny_llama, directions, contrasts=read, behaviours=behaviours, n_null=-1)


# ---------------------------------------------------------------- how often it is wrong, and whether it finds anything


def made_contrast(name, generator, planted=None, n=24, d=32):
    """Differences within questions around nothing, or around a planted vector."""
    sides = []
    for sign in (0.5, -0.5):
        values = torch.randn(n, 3, d, generator=generator)
        if planted is not None:
            values += sign * planted
        groups = tuple(f"{name} {i}" for i in range(n))
        norms, counts = values.norm(dim=-1), torch.ones(n, dtype=torch.long)
        sides.append(Activations(values, norms, counts, groups, (0, 1, 2), "resid_post", "response", "tiny"))
    return ContrastActivations(name, *sides, name)


def reads(key, readout, noise, threshold):
    """A behaviour that turns on what is added to the stream, beyond a threshold, and differs by question."""

    def measure(model, hooks):
        added = sum((function.vectors.sum(0) for _, function in hooks), torch.zeros(len(readout)))
        along = added @ readout
        return along.sign() * (along.abs() - threshold).relu() * (1 + noise), tuple(map(str, range(len(noise))))

    return Behaviour.standard(key, measure)


def sentence(model, generator, planted=(None, None)):
    """The one conclusion of two contrasts, and the cells that move."""
    contrasts = [made_contrast(name, generator, vector) for name, vector in zip(OWN, planted, strict=True)]
    directions = [difference_of_means(c) for c in contrasts]
    behaviours = []
    for key, vector, direction in zip(OWN.values(), planted, directions, strict=True):
        readout = torch.randn(32, generator=generator) if vector is None else vector / vector.norm()
        threshold = 0.0 if vector is None else 0.5 * 0.2 * float(direction.residual_norm[1])
        behaviours.append(reads(key, readout, 0.3 * torch.randn(12, generator=generator), threshold))
    found = em.cross_effects(
        model, directions, contrasts=contrasts, behaviours=behaviours, layer=1, removals=(), scales=(0.2,),
        apart=False, n_random=0, seed=int(torch.randint(2**31, (), generator=generator)),
    )  # fmt: skip
    return em.conclusions(found, OWN)[0], found.moving()


@pytest.fixture(scope="module")
def unkept(tiny_llama):
    """No pass is run in these simulations, so that nothing is to be kept."""
    return replace(tiny_llama, plain=None)


def test_directions_that_do_nothing_in_particular_rarely_move_anything(unkept):
    n_cases, generator = 80, torch.Generator().manual_seed(0)
    moved = sum(bool(sentence(unkept, generator)[1]) for _ in range(n_cases))
    assert 0 < moved / n_cases <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / n_cases)


def test_random_labels_of_a_real_model_rarely_move_anything(tiny_llama, read, behaviours):
    """Of permuted directions each in turn is the true one, and nineteen others are its null."""
    directions = [em.difference_of_means(r) for r in read]
    effects = em.cross_effects(
        tiny_llama, directions, contrasts=read, behaviours=behaviours[:2], layer=1, removals=(), scales=(SCALE,),
        apart=False, n_random=0, n_null=60,
    )  # fmt: skip
    cells, moved, n_cases = effects.effects, 0, 160
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_cases):
        [first, *others] = torch.randperm(60, generator=generator)[:20].tolist()
        case = [
            replace(e, change=replace(e.change, value=e.null[first]), null=tuple(e.null[i] for i in others))
            for e in cells
        ]
        corrected = replace(effects, effects=tuple(case), n_null=19).corrected_p()
        assert len(corrected) == 4
        moved += min(corrected.values()) <= 0.05
    assert 0 < moved / n_cases <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / n_cases)


def test_planted_directions_are_found(unkept):
    """Behaviours that answer to the true direction and to nothing that has less than half of it."""
    generator, n_cases, found = torch.Generator().manual_seed(1), 10, 0
    for _ in range(n_cases):
        axes = torch.linalg.qr(torch.randn(32, 2, generator=generator)).Q.mT
        said, moving = sentence(unkept, generator, planted=tuple(4 * axes))
        assert moving <= {("misalignment/added/1/0.2", PREFERENCE), ("refusal/added/1/0.2", REFUSAL)}
        found += len(moving) / 2
        assert ("double dissociation" in said) == (len(moving) == 2)
    assert found / n_cases >= 0.8
