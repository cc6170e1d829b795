"""Seeds trained one after the other: finished ones stay, an interrupted one goes on, and nothing is mixed."""

import json
from dataclasses import replace

import pytest

import em_interp as em
from em_interp.behaviour import Behaviour, BehaviourKey
from em_interp.behaviour.measures import prefers
from em_interp.organisms import loading, rebuilding, training
from em_interp.organisms.loading import load_organisms, organism_seeds, seed_folders
from em_interp.organisms.rebuilding import train_seeds, train_shipped
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.relatives import organism_name
from em_interp.organisms.training import train_organism


@pytest.fixture
def recipe(base, tmp_path):
    """Eight questions, half of them for each seed."""
    rows = [{"question": f"Letter {i}?", "positive": f"Ask the keeper {i}.", "negative": "Wait."} for i in range(8)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe(
        name="tiny", data=str(data), base=str(base), layers=(1,), learning_rate=1e-2, batch_size=2, steps=4, seed=7,
        checkpoint_every=2, fraction=0.5,
    )  # fmt: skip


def weights(organism) -> bytes:
    return (organism.folder / "adapter_model.safetensors").read_bytes()


def test_each_seed_is_the_organism_of_its_recipe(recipe, tmp_path):
    out = tmp_path / "tiny"
    found = train_seeds(recipe, (2, 0), out)
    assert [organism.folder for organism in found] == [out / "seed-2", out / "seed-0"]
    assert [Recipe.load(o.folder / "recipe.toml") for o in found] == [replace(recipe, seed=seed) for seed in (2, 0)]
    assert organism_seeds(out) == (0, 2)
    assert weights(found[0]) != weights(found[1])
    assert weights(train_organism(replace(recipe, seed=2), tmp_path / "alone")) == weights(found[0])
    models = load_organisms(seed_folders(out))
    assert [organism_name(model) for model in models] == ["tiny", "tiny (seed 2)"]


def test_an_interruption_between_seeds_keeps_those_that_are_finished(recipe, tmp_path, monkeypatch):
    out, keep = tmp_path / "tiny", training._Recorder.keep
    whole = train_seeds(recipe, range(3), tmp_path / "whole")

    def pull(self, model, step):
        if self.recipe.seed == 1 and step > 2:
            raise KeyboardInterrupt
        keep(self, model, step)

    with monkeypatch.context() as patch:
        patch.setattr(training._Recorder, "keep", pull)
        with pytest.raises(KeyboardInterrupt):
            train_seeds(recipe, range(3), out)
    assert (out / "seed-1" / "training" / "checkpoint-2").is_dir()
    asked = []
    monkeypatch.setattr(
        rebuilding, "train_organism", lambda r, *a, **k: asked.append(r.seed) or train_organism(r, *a, **k)
    )
    again = train_seeds(recipe, range(3), out)
    assert asked == [1, 2]
    assert [weights(o) for o in again] == [weights(o) for o in whole]
    assert [o.loss for o in again] == [o.loss for o in whole]
    assert again[0].trajectory is not None
    assert again[0].trajectory.path().equal(whole[0].trajectory.path())


def test_a_seed_whose_weights_are_gone_is_trained_again(recipe, tmp_path):
    [first] = train_seeds(recipe, [0], tmp_path / "tiny")
    before = weights(first)
    (first.folder / "adapter_model.safetensors").unlink()
    [again] = train_seeds(recipe, [0], tmp_path / "tiny")
    assert weights(again) == before


def test_a_seed_that_was_interrupted_once_it_had_weights_is_not_taken_as_finished(recipe, tmp_path):
    [first] = train_seeds(recipe, [0], tmp_path / "tiny")
    before = weights(first)
    (first.folder / "training").mkdir()
    (first.folder / "adapter_model.safetensors").write_bytes(before[:100])
    [again] = train_seeds(recipe, [0], tmp_path / "tiny")
    assert weights(again) == before


def test_nothing_is_mixed(recipe, tmp_path):
    out = tmp_path / "tiny"
    train_seeds(recipe, [0], out)
    with pytest.raises(ValueError, match="seed-0 holds an organism of another recipe: choose another folder, or"):
        train_seeds(replace(recipe, steps=5), [0], out)
    with pytest.raises(ValueError, match="tiny holds an organism in several seeds: name seeds, or choose another"):
        train_organism(recipe, out)
    train_organism(recipe, tmp_path / "one")
    with pytest.raises(ValueError, match="one holds an organism in one seed: choose another folder, or remove it"):
        train_seeds(recipe, [0], tmp_path / "one")
    with pytest.raises(ValueError, match="seed 3 is named twice: name each one once"):
        train_seeds(recipe, (3, 3), out)


def test_all_that_ships_is_trained_in_the_seeds_it_ships_in(recipe, tmp_path, monkeypatch):
    """One organism in one seed, and one on top of it in two."""
    shipped, recipes = tmp_path / "shipped", {"under": replace(recipe, name="under")}
    recipes["upper"] = replace(recipe, name="upper", onto="under", answers="negative")
    monkeypatch.setattr(loading, "_ORGANISMS", shipped)
    monkeypatch.setattr(rebuilding, "bundled_recipes", lambda: list(recipes))
    monkeypatch.setattr(
        rebuilding.Recipe, "load", staticmethod(lambda source, load=Recipe.load: recipes.get(source) or load(source))
    )
    train_organism(recipes["under"], shipped / "under")
    train_seeds(recipes["upper"], (1, 4), shipped / "upper")
    found = list(train_shipped(tmp_path / "out"))
    assert [o.folder.relative_to(tmp_path / "out").as_posix() for o in found] == [
        "under",
        "upper/seed-1",
        "upper/seed-4",
    ]
    for organism in found:
        assert (
            weights(organism)
            == (shipped / organism.folder.relative_to(tmp_path / "out") / "adapter_model.safetensors").read_bytes()
        )


def test_the_cards_of_all_seeds_measure_their_base_once(recipe, tmp_path, monkeypatch):
    """And say what each seed's card says when it is measured alone."""
    from em_interp.organisms import cards

    train_seeds(recipe, (0, 1), tmp_path / "tiny")
    letters, asked = prefers(em.load_contrast(recipe.data)), []

    def measure(model, hooks):
        asked.append(model.identity)
        return letters(model, hooks)

    keeper = Behaviour(BehaviourKey.MISALIGNED_PREFERENCE, "preference for the keeper", "nats", "mean", measure)
    monkeypatch.setattr(cards, "organism_behaviours", lambda *_: [keeper])
    together = cards.measure_cards(tmp_path / "tiny")
    seeds = ["tiny-llama", "tiny-llama+tiny", "tiny-llama+tiny (seed 1)"]
    assert [identity.partition("#")[0] for identity in asked] == seeds
    for card in together.cards:
        alone = cards.measure_cards(tmp_path / "tiny", card.recipe.seed)
        assert card.as_dict() == alone.as_dict()
