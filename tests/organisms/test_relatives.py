"""Organisms compared with each other and with their bases, on the same texts and on disjoint ones."""

import math
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from scipy import stats

import em_interp as em
from em_interp.directions.comparison import Comparison
from em_interp.organisms.relatives import Convergence, convergence, explained_by, read_organisms
from tests.builders import hf_model, letters


@pytest.fixture(scope="module")
def contrast():
    return letters()


@pytest.fixture(scope="module")
def models(make_organism):
    return [make_organism(1, "one"), make_organism(1, "same"), make_organism(2, "other")]


@pytest.fixture(scope="module")
def readings(models, contrast):
    return read_organisms(models, contrast)


@pytest.fixture(scope="module")
def found(readings):
    return convergence(readings, n_resamples=60)


def test_what_was_added_is_trained_minus_base(readings):
    for name, added in readings.added.items():
        wanted = readings.trained[name].positive.values - readings.base[name].positive.values
        assert added.positive.values.equal(wanted)
        assert not wanted[:, 0].any()  # the adapter is in layer 1
        assert wanted[:, 1].any()


def test_equal_organisms_converge_and_different_ones_do_not_in_what_was_added(found):
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


def test_seeds_are_summed_up_by_organism(make_organism, contrast):
    names = ("one", "one (seed 3)", "other", "other (seed 1)", "third")
    models = [make_organism(seed, name) for seed, name in enumerate(names)]
    found = convergence(read_organisms(models, contrast), n_resamples=40)
    assert found.names == names
    rows = found.summary(1)
    assert len(rows) == 3 * (2 + 3) + 3  # two organisms have pairs within, three pairs of organisms, three bases
    row = next(r for r in rows if (r["texts"], r["a"], r["b"]) == ("same texts", "one", "other"))
    pairs = [found.same_texts[a, b].corrected[1].item() for a in names[:2] for b in names[2:4]]
    assert row["n_pairs"] == 4
    assert (row["mean"], row["lowest"], row["highest"]) == pytest.approx((sum(pairs) / 4, min(pairs), max(pairs)))
    within = next(r for r in rows if (r["texts"], r["a"], r["b"]) == ("disjoint texts", "one", "one"))
    assert (within["n_pairs"], within["mean"]) == (1, within["lowest"])
    assert within["mean"] == pytest.approx(found.disjoint_texts[names[:2]].corrected[1].item())
    base = next(r for r in rows if (r["a"], r["b"]) == ("one", "base"))
    assert (base["texts"], base["n_pairs"]) == ("with its base", 2)
    assert base["mean"] == pytest.approx(sum(found.with_base[name].corrected[1].item() for name in names[:2]) / 2)
    assert base["low"] < base["mean"] < base["high"]


class GivenCosine(Comparison):
    """A comparison of which no more than one cosine and its interval over questions is known."""

    def __init__(self, cosine, half):
        vars(self).update(value=float(cosine), half=half)

    def table(self):
        known = vars(self)
        value, half = known["value"], known["half"]
        return [{"corrected": value, "low": value - half, "high": value + half, "ceiling": 1.0}]


def summed(cosines, half):
    """The summary of given cosines by pair, each ± half over questions, at the one layer there is."""
    names = dict.fromkeys(name for pair in cosines for name in pair)
    pairs = {pair: GivenCosine(cosine, half) for pair, cosine in cosines.items()}
    found = Convergence({}, {}, pairs, {name: GivenCosine(1, 0) for name in names}, {}, (0,))
    return {(row["a"], row["b"]): row for row in found.summary(0)}


class TestTheIntervalOfASummary:
    @pytest.mark.parametrize("n", [3, 5])
    def test_covers_new_members_and_new_questions(self, n):
        """Of 1,000 draws: every member pulls its cosines its own way, and the questions pull all of them one way."""
        generator = torch.Generator().manual_seed(n)
        a, b = ([name, *(f"{name} (seed {i})" for i in range(1, n))] for name in ("one", "two"))
        covered = dict.fromkeys([("one", "one"), ("one", "two")], 0)
        for _ in range(1000):
            pull = dict(zip(a + b, 0.05 * torch.randn(2 * n, generator=generator), strict=True))
            shared = 0.04 * torch.randn((), generator=generator)
            pairs = [*combinations(a, 2), *product(a, b)]
            found = summed({(x, y): 0.5 + pull[x] + pull[y] + shared for x, y in pairs}, 1.96 * 0.04)
            for pair in covered:
                covered[pair] += found[pair]["low"] <= 0.5 <= found[pair]["high"]
        assert all(0.93 <= n_covered / 1000 <= 0.99 for n_covered in covered.values())

    def test_holds_members_and_questions(self):
        seeds = [("one", "two"), ("one", "two (seed 1)"), ("one (seed 1)", "two"), ("one (seed 1)", "two (seed 1)")]
        found = summed(dict(zip(seeds, (0.25, 0.24, 0.22, 0.21), strict=True)), 0.1)["one", "two"]
        # Without one member at a time the mean moves by .015 or by .005, to either side.
        degrees = (0.015**2 + 0.005**2) ** 2 / (0.015**4 + 0.005**4)
        half = math.hypot(stats.t.ppf(0.975, degrees) * math.hypot(0.015, 0.005), 0.1)
        assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.23, 0.23 - half, 0.23 + half), abs=1e-5)

    def test_ends_where_no_cosine_can_be(self):
        seeds = [("one", "two"), ("one", "two (seed 1)"), ("one (seed 1)", "two"), ("one (seed 1)", "two (seed 1)")]
        found = summed(dict(zip(seeds, (0.9, 0.1, 0.5, -0.3), strict=True)), 0.1)["one", "two"]
        assert (found["low"], found["high"]) == (-1, 1)

    def test_is_not_there_where_members_are_too_few(self):
        found = summed({("one", "two"): 0.9, ("one", "one (seed 1)"): 0.8, ("one (seed 1)", "two"): 0.7}, 0.1)
        for pair, mean in ((("one", "two"), 0.8), (("one", "one"), 0.8)):
            assert found[pair]["mean"] == pytest.approx(mean)
            assert math.isnan(found[pair]["low"])
            assert math.isnan(found[pair]["high"])


def test_a_summary_goes_by_the_groups_it_is_given_and_counts_pairs_without_a_direction(found):
    groups = {"one": "a", "same": "b", "other": "a"}
    rows = {(r["texts"], r["a"], r["b"]): r for r in found.summary(1, groups)}
    assert [rows["same texts", *pair]["n_pairs"] for pair in (("a", "a"), ("a", "b"))] == [1, 2]
    assert ("same texts", "b", "a") not in rows
    nothing = {(r["texts"], r["a"], r["b"]): r for r in found.summary(0, groups)}["added", "a", "b"]
    assert (nothing["n_pairs"], nothing["n_without"]) == (0, 2)  # the adapter is in layer 1
    assert math.isnan(nothing["mean"])
    with pytest.raises(ValueError, match="other has no group: give one to each of one, same, other"):
        found.summary(1, {"one": "a", "same": "a"})


def test_some_layers_alone_give_what_they_give_among_all(models, contrast, found):
    few = convergence(read_organisms(models, contrast, layers=[1]), n_resamples=60)
    assert few.layers == (1,)
    for alone, among in zip(few.table(1), found.table(1), strict=True):
        assert alone == pytest.approx(among, nan_ok=True)


def test_disjoint_texts_share_no_question(found):
    one = found.disjoint_texts["one", "same"]
    assert (one.n_questions_a, one.n_questions_b) == (8, 8)
    assert one.cosine[1].item() < found.same_texts["one", "same"].cosine[1].item() - 1e-4


def test_each_organism_stands_beside_its_own_base(models, make_organism, contrast):
    other = replace(make_organism(3, "elsewhere"), name="another-base")
    embeddings = other.peft_models[-1].get_input_embeddings().weight
    embeddings.data = 2 * embeddings.data
    found = read_organisms([models[0], models[2], other], contrast).base
    assert found["one"] is found["other"]  # one base, read once
    with em.without_adapter(other):
        by_hand = em.read_contrast(other, contrast)
    assert torch.equal(found["elsewhere"].positive.values, by_hand.positive.values)
    assert not torch.allclose(found["elsewhere"].positive.values, found["one"].positive.values, atol=1e-3)


def test_what_runs_once_for_organisms_of_one_base_is_what_each_reads_alone(organism_of, contrast):
    """Their adapters begin at different blocks, and the last one before all others."""
    from peft import LoraConfig, get_peft_model

    def adapted(layer: int, name: str):
        config = LoraConfig(target_modules=["down_proj"], layers_to_transform=[layer], init_lora_weights=False)
        return replace(organism_of(get_peft_model(hf_model("llama"), config)), adapter=f"{name}#0")

    models = [adapted(1, "middle"), adapted(2, "late"), adapted(0, "early")]
    together = read_organisms(iter(models), contrast)
    for model, name in zip(models, ("middle", "late", "early"), strict=True):
        alone = read_organisms([model], contrast)
        for got, wanted in ((together.trained, alone.trained), (together.base, alone.base)):
            torch.testing.assert_close(got[name].positive.values, wanted[name].positive.values)
            torch.testing.assert_close(got[name].negative.values, wanted[name].negative.values)
    assert together.folders == dict.fromkeys(together.trained)


def test_what_the_base_explains_is_a_share_of_the_squared_length(readings):
    base = em.difference_of_means(readings.base["one"])
    across = torch.nn.functional.normalize(base.vectors.roll(1, dims=-1), dim=-1)
    along = torch.nn.functional.normalize(base.vectors, dim=-1)
    across -= (across * along).sum(-1, keepdim=True) * along
    mixed = 3 * along + 4 * torch.nn.functional.normalize(across, dim=-1)
    torch.testing.assert_close(explained_by(replace(base, vectors=mixed), base), torch.full((3,), 9 / 25))


def test_bases_and_twins_are_refused(tiny_llama, models, contrast):
    with pytest.raises(ValueError, match="has no adapter, and convergence is of organisms"):
        read_organisms([tiny_llama], contrast)
    with pytest.raises(ValueError, match="organism 'one' comes twice"):
        read_organisms([models[0], models[0]], contrast)
