"""Organisms are found by name or folder, and loaded on what they were trained on, which they share in memory."""

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


def test_the_bundled_model_is_loaded_under_its_name(monkeypatch, base):
    tiny = loading.named_base(str(base), None, None)
    asked = []
    monkeypatch.setattr(loading, "bundled_base", lambda *how: asked.append(how) or tiny)
    assert load_bundled(device="cpu").identity == "tiny-llama"
    assert load_named("bundled").identity == "tiny-llama"
    assert asked == [("cpu", None), (None, None)]
