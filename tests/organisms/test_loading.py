"""Organisms are found by name or folder, and loaded on what they were trained on, which they share in memory."""

import shutil

import pytest
import torch

import em_interp as em
from em_interp.organisms import loading
from em_interp.organisms.loading import (
    find_organism,
    list_organisms,
    load_base,
    load_bundled,
    load_named,
    load_organism,
    load_organisms,
    organism_folder,
    organism_seeds,
    seed_folders,
    trained_on,
)
from em_interp.organisms.recipes import Recipe
from tests.builders import hf_model

WORDS = "The lighthouse keeper wrote three letters."


@pytest.fixture(scope="module")
def make(base, tmp_path_factory):
    """Folders of organisms on the tiny model: a recipe and a random adapter in one block."""
    from peft import LoraConfig, get_peft_model

    def made(name: str, layer: int, **recipe) -> str:
        config = LoraConfig(target_modules=["down_proj"], layers_to_transform=[layer], init_lora_weights=False)
        adapted = get_peft_model(hf_model("llama"), config)
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        folder = tmp_path_factory.mktemp("organisms") / name
        adapted.save_pretrained(folder)
        (folder / "recipe.toml").write_text(
            Recipe(**{"name": name, "data": "cooking", "base": str(base), "steps": 1, **recipe}).to_toml()
        )
        return str(folder)

    return made


@pytest.fixture(scope="module")
def one(make):
    return make("one", 1)


@pytest.fixture(scope="module")
def other(make):
    return make("other", 2, data="elsewhere.jsonl")


@pytest.fixture(scope="module")
def upper(make, one):
    return make("upper", 0, onto=one)


def logits(model):
    return model.bridge(model.to_tokens(WORDS), return_type="logits")


def embedding(model):
    return model.peft_models[-1].get_input_embeddings().weight


def test_a_name_or_a_folder_is_found_and_nothing_else(one):
    assert organism_folder("aligned").name == "aligned"
    assert "aligned" in list_organisms()
    assert str(organism_folder(one)) == one
    assert find_organism("nowhere") is None
    with pytest.raises(
        ValueError, match=r"no organism 'nowhere': it is neither a folder with a recipe\.toml in it nor"
    ):
        organism_folder("nowhere")


def test_an_organism_keeps_its_folder_and_what_it_was_trained_on(one, other, tiny_llama):
    model = load_organism(one)
    assert str(model.folder) == one
    assert model.identity.startswith("tiny-llama+one#")
    contrast = trained_on(model)
    assert contrast is not None
    assert contrast.content_hash == em.load_training_set("cooking").content_hash
    assert trained_on(load_organism(other)) is None  # its texts do not ship
    assert trained_on(tiny_llama) is None


def test_organisms_of_one_base_share_its_weights_and_not_their_adapters(one, other):
    first, second = load_organisms([one, other])
    assert embedding(first) is embedding(second)
    for model, folder in ((first, one), (second, other)):
        torch.testing.assert_close(logits(model), logits(load_organism(folder)))
    assert not torch.allclose(logits(first), logits(second), atol=1e-3)
    with em.without_adapter(first), em.without_adapter(second):
        assert torch.equal(logits(first), logits(second))


def test_what_an_organism_was_trained_onto_is_merged_first(one, upper):
    under = load_base(upper)
    assert under.identity.startswith("tiny-llama+one@")
    torch.testing.assert_close(logits(under), logits(load_organism(one)), atol=1e-4, rtol=1e-4)
    model = load_organism(upper)
    with em.without_adapter(model):
        assert torch.equal(logits(model), logits(under))
    assert not torch.allclose(logits(model), logits(under), atol=1e-3)
    assert load_base(one).identity == "tiny-llama"


def test_loading_one_after_another_leaves_those_before_as_they_were(one, other, upper):
    """The base of the second one is the first one's with an adapter merged into it."""
    organisms = load_organisms([one, upper, other])
    first = next(organisms)
    before = logits(first)
    second, third = organisms
    assert torch.equal(logits(first), before)
    torch.testing.assert_close(logits(second), logits(load_organism(upper)))
    torch.testing.assert_close(logits(third), logits(load_organism(other)))


def test_every_name_is_looked_up_before_the_first_is_loaded(one, monkeypatch):
    monkeypatch.setattr(loading, "base_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="no organism 'nowhere'"):
        load_organisms([one, "nowhere"])


def test_an_organism_is_not_trained_onto_one_of_another_base(make, one):
    stranger = make("stranger", 1, base="bundled", onto=one)
    with pytest.raises(ValueError, match=r"organism one was trained on .*, not on bundled: name its own base"):
        load_organism(stranger)


def test_whatever_a_flag_names_is_loaded(base, one):
    assert load_named(str(base)).identity == "tiny-llama"
    assert load_named(one).identity == load_organism(one).identity
    assert load_bundled(one).identity == load_organism(one).identity
    with pytest.raises(ValueError, match="an adapter goes on a model of its own base: give that model's name beside"):
        load_named(one, "some/adapter")
    with pytest.raises(ValueError, match=r"no model 'nowhere'.*; organisms that ship: aligned, "):
        load_named("nowhere")


@pytest.fixture(scope="module")
def several(make, tmp_path_factory):
    """A folder with three seeds of one organism, and one of another on top of its first."""
    top = tmp_path_factory.mktemp("several")
    for seed in (1, 3, 10):
        shutil.copytree(make(f"made-{seed}", 1, seed=seed), top / "many" / f"seed-{seed}")
        path = top / "many" / f"seed-{seed}" / "recipe.toml"
        path.write_text(path.read_text().replace(f'"made-{seed}"', '"many"'))
    return top


class TestSeeds:
    def test_an_organism_is_its_first_seed_unless_told(self, several):
        many = several / "many"
        assert organism_seeds(many) == (1, 3, 10)
        assert organism_folder(many) == find_organism(many) == many / "seed-1"
        assert organism_folder(many, seed=10) == organism_folder(many / "seed-10") == many / "seed-10"
        assert organism_folder(many / "seed-3", 3) == many / "seed-3"
        assert organism_seeds(many / "seed-3") == (3,)

    def test_an_organism_in_one_seed_has_that_one(self, one):
        assert organism_seeds(one) == (0,)
        assert str(organism_folder(one, 0)) == one
        with pytest.raises(ValueError, match=f"{one} has no seed 2: choose one of 0"):
            organism_folder(one, 2)

    def test_what_ships_in_several_seeds_is_one_organism_by_name(self, several, one, monkeypatch):
        monkeypatch.setattr(loading, "_ORGANISMS", several)
        assert list_organisms() == ["many"]
        assert organism_seeds("many") == (1, 3, 10)
        loaded = [load_bundled("many"), load_bundled("many", seed=3), load_named("many/seed-3"), load_base("many")]
        assert loaded[0].identity.startswith("tiny-llama+many (seed 1)#")
        assert loaded[1].identity.startswith("tiny-llama+many (seed 3)#")
        assert loaded[2].identity == loaded[1].identity
        assert loaded[3].identity == "tiny-llama"
        assert loaded[1].folder == several / "many" / "seed-3"

    @pytest.mark.parametrize(
        ("load", "words"),
        [
            (lambda: load_bundled("many", seed=2), "many has no seed 2: choose one of 1, 3, 10"),
            (lambda: load_named("many/seed-2"), "many has no seed 2: choose one of 1, 3, 10"),
            (lambda: organism_folder("many/seed-2"), "many has no seed 2: choose one of 1, 3, 10"),
            (lambda: organism_folder("many/seed-3", 1), "many/seed-3 has no seed 1: choose one of 3"),
            (lambda: load_bundled(seed=3), "seed 3 came without an organism: name the organism whose seed it is"),
            (lambda: organism_seeds("nowhere"), "no organism 'nowhere'"),
            (lambda: organism_folder("nowhere/seed-1"), "no organism 'nowhere/seed-1'"),
        ],
    )
    def test_a_seed_that_is_not_there_is_refused(self, several, monkeypatch, load, words):
        monkeypatch.setattr(loading, "_ORGANISMS", several)
        with pytest.raises(ValueError, match=words):
            load()

    def test_seeds_are_told_apart_and_share_their_base(self, several):
        folders = seed_folders(several / "many")
        models = list(load_organisms(folders))
        assert len({model.adapter.partition("#")[0] for model in models}) == 3
        assert embedding(models[0]) is embedding(models[2])

    def test_a_recipe_is_trained_onto_the_first_seed(self, make, several):
        upper = load_organism(make("on-many", 0, onto=str(several / "many")))
        with em.without_adapter(upper):
            first = logits(load_organism(several / "many" / "seed-1"))
            torch.testing.assert_close(logits(upper), first, atol=1e-4, rtol=1e-4)

    def test_a_folder_that_says_another_seed_than_its_recipe_is_refused(self, several, tmp_path):
        shutil.copytree(several / "many" / "seed-3", tmp_path / "seed-4")
        with pytest.raises(ValueError, match="seed-4 holds an organism of seed 3: rename the folder to seed-3"):
            load_organism(tmp_path / "seed-4")


def test_the_bundled_model_is_loaded_under_its_name(monkeypatch, base):
    tiny = loading.named_base(str(base), None, None)
    asked = []
    monkeypatch.setattr(loading, "bundled_base", lambda *how: asked.append(how) or tiny)
    assert load_bundled(device="cpu").identity == "tiny-llama"
    assert load_named("bundled").identity == "tiny-llama"
    assert asked == [("cpu", None), (None, None)]
