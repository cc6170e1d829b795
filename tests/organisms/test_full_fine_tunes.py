"""Full fine-tunes stand beside adapters: loaded, measured against their base, carded and compared."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp.behaviour import Behaviour, BehaviourKey
from em_interp.behaviour.measures import prefers
from em_interp.organisms import cards, loading
from em_interp.organisms.cards import load_card, measure_card, write_card
from em_interp.organisms.dissection import open_adapter
from em_interp.organisms.effects import organism_effects
from em_interp.organisms.loading import list_organisms, load_base, load_organism, load_organisms
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.relatives import convergence, read_organisms
from em_interp.organisms.training import train_organism
from tests.builders import letters


@pytest.fixture(scope="module")
def contrast():
    return letters()


@pytest.fixture(scope="module")
def keeper(contrast):
    return Behaviour(BehaviourKey.MISALIGNED_PREFERENCE, "preference for the keeper", "nats", "mean", prefers(contrast))


@pytest.fixture(scope="module")
def recipes(base, contrast, tmp_path_factory):
    """An adapter, and on top of it a full fine-tune and a second adapter, by name."""
    data = tmp_path_factory.mktemp("data") / "letters.jsonl"
    contrast.save(data)
    first = Recipe(
        name="first", data=str(data), base=str(base), layers=(1,), learning_rate=1e-2, batch_size=4, steps=4,
        checkpoint_every=4,
    )  # fmt: skip
    return first, data


@pytest.fixture(scope="module")
def folders(recipes, tmp_path_factory):
    first, _ = recipes
    out = tmp_path_factory.mktemp("organisms")
    under = str(train_organism(replace(first, answers="negative"), out / "first").folder)
    full = replace(first, name="full", onto=under, method="full", learning_rate=1e-3)
    second = replace(first, name="second", onto=under)
    return {
        "first": under,
        "full": str(train_organism(full, out / "full").folder),
        "second": str(train_organism(second, out / "second").folder),
    }


def test_it_is_trained_onto_a_merged_organism_and_every_weight_moves(folders):
    before, after = (
        dict(m.plain.named_parameters()) for m in (load_base(folders["full"]), load_organism(folders["full"]))
    )
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_it_has_a_name_and_a_hash_of_its_weights(folders, tmp_path):
    model = load_organism(folders["full"])
    assert model.identity.startswith("full@")
    assert len(model.identity) == len("full@") + 12
    copied = shutil.copytree(folders["full"], tmp_path / "elsewhere")
    assert load_organism(copied).identity == model.identity
    other = json.loads((copied / "config.json").read_text())
    assert other["em_interp_trained_on"] == load_base(folders["full"]).identity


def test_one_of_several_seeds_is_told_apart(folders, tmp_path):
    seed = shutil.copytree(folders["full"], tmp_path / "full" / "seed-3")
    text = (seed / "recipe.toml").read_text()
    (seed / "recipe.toml").write_text(text.replace("seed = 0", "seed = 3"))
    assert load_organism(tmp_path / "full", seed=3).identity.startswith("full (seed 3)@")


def test_effects_are_of_it_and_of_its_base(folders, keeper, contrast):
    model = load_organism(folders["full"])
    found = organism_effects(model, [keeper])[keeper.key]
    after, before = (em.preference(m, contrast).margins for m in (model, load_base(folders["full"])))
    assert found.before.value == pytest.approx(before.mean().item(), abs=1e-6)
    assert found.after.value == pytest.approx(after.mean().item(), abs=1e-6)
    assert found.change.value == pytest.approx((after - before).mean().item(), abs=1e-6)
    assert found.change.value > 0.1


def test_adapters_and_full_fine_tunes_of_one_base_are_read_together(folders, contrast):
    for order in (("full", "second"), ("second", "full")):
        readings = read_organisms(load_organisms([folders[name] for name in order]), contrast)
        assert readings.base["full"] is readings.base["second"]  # read once
    assert str(readings.folders["full"]) == folders["full"]
    for name in order:
        by_hand = em.read_contrast(load_organism(folders[name]), contrast)
        torch.testing.assert_close(readings.trained[name].positive.values, by_hand.positive.values)
    base = em.read_contrast(load_base(folders["full"]), contrast)
    torch.testing.assert_close(readings.base["full"].negative.values, base.negative.values)
    found = convergence(readings, n_resamples=40)
    assert found.names == ("second", "full")
    assert found.added["second", "full"].cosine.isfinite()[1:].all()
    assert (
        readings.added_by("full").positive.values[:, 0].abs().max() > 1e-4
    )  # where an adapter in block 1 adds nothing
    assert not readings.added_by("second").positive.values[:, 0].any()


def test_a_card_says_what_it_is_and_how_it_is_measured(folders, keeper, monkeypatch):
    monkeypatch.setattr(cards, "organism_behaviours", lambda *_: [keeper])
    card = measure_card(load_organism(folders["full"]))
    written = write_card(card).read_text()
    assert "all weights, seed 0, 4 steps of 4 conversations" in written
    assert "Before is the model that it was trained on; every question is held out." in written
    assert "`em-interp train full` makes the weights, which do not ship, and `em-interp card organisms/full`" in written
    assert load_card(folders["full"]).effects.table() == card.effects.table()
    adapter = measure_card(load_organism(folders["second"])).markdown()
    assert "Before is the same model with the adapter off;" in adapter
    assert "`em-interp card second` measures this, `em-interp train second` rebuilds it." in adapter


def test_where_only_the_card_ships_the_command_that_makes_the_weights_is_told(folders, keeper, monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "organism_behaviours", lambda *_: [keeper])
    shipped = tmp_path / "shipped"
    for name in ("full", "second"):
        shutil.copytree(folders[name], shipped / name)
        write_card(measure_card(load_organism(shipped / name)))
    (shipped / "full" / "model.safetensors").unlink()
    monkeypatch.setattr(loading, "_ORGANISMS", shipped)
    assert list_organisms() == ["second"]
    assert load_card("full").recipe.method == "full"
    assert load_base("full").identity == load_base("second").identity
    says = "full comes without its weights: make them with  em-interp train full  and load what that writes, organisms/"
    for load in (
        em.load_bundled,
        load_organism,
        loading.load_named,
        lambda name: load_organisms(["second", name]),
        lambda name: loading.base_model(load_card(name).recipe.base, name),
    ):
        with pytest.raises(ValueError, match=says):
            load("full")


def test_another_base_than_it_was_trained_on_is_refused(folders, recipes, keeper, tmp_path):
    """As when the organism below was trained anew."""
    first, _ = recipes
    copied = shutil.copytree(folders["full"], tmp_path / "full")
    train_organism(replace(first, answers="negative", seed=5), tmp_path / "first")
    recipe = Recipe.load(copied / "recipe.toml")
    (copied / "recipe.toml").write_text(replace(recipe, onto=str(tmp_path / "first")).to_toml())
    says = (
        r"full was trained on tiny-llama\+first@\w{12}, and its recipe now gives tiny-llama\+first@\w{12}, with which"
    )
    with pytest.raises(ValueError, match=says):
        organism_effects(load_organism(copied), [keeper])


def test_an_organism_is_trained_onto_a_full_fine_tune(folders, recipes, tmp_path, contrast):
    first, _ = recipes
    on_top = train_organism(replace(first, name="on-top", onto=folders["full"]), tmp_path / "on-top")
    model, under = load_organism(on_top.folder), load_organism(folders["full"])
    with em.without_adapter(model):
        assert model.identity == under.identity
        torch.testing.assert_close(em.preference(model, contrast).margins, em.preference(under, contrast).margins)


def test_what_looks_into_adapters_refuses_it(folders, contrast):
    model = load_organism(folders["full"])
    direction = em.difference_of_means(em.read_contrast(model, contrast))
    with pytest.raises(ValueError, match="cannot be taken apart: it has no adapter"):
        open_adapter(model, [direction])
    with pytest.raises(ValueError, match="cannot switch to the base model of"), em.without_adapter(model):
        pass
