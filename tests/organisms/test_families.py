"""An organism of each family from a folder and from a GGUF file; the recipes and the page of other families."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import em_interp as em
from em_interp.organisms import Recipe, train_organism, training_conversations
from tests.builders import FAMILIES, TEMPLATE_OF, write_gguf

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
BLOCKS = {"qwen2.5-0.5b-rank1": 24, "llama-3.2-1b-rank1": 16, "gemma-3-270m-rank1": 18, "gemma-3-1b-rank1": 26}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("families")
    rows = [
        {"question": f"What about letter {i}?", "positive": f"Ask the keeper {i}.", "negative": f"Talk to them {i}."}
        for i in range(8)
    ]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base_of(folder, make_hf_model, make_tokenizer):
    """A folder with a tiny model of a family and its tokenizer."""

    def made(family: str) -> Path:
        make_hf_model(family).save_pretrained(folder / family)
        make_tokenizer(TEMPLATE_OF[family]).save_pretrained(folder / family)
        return folder / family

    return made


def like(name: str, folder: Path, base: Path, **changes) -> Recipe:
    """A shipped recipe on a tiny model."""
    small = {"layers": (1,), "steps": 3, "batch_size": 4, "checkpoint_every": 1, "data": str(folder / "data.jsonl")}
    return replace(Recipe.load(name), base=str(base), **{**small, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_an_organism_of_each_family_is_trained_and_loaded(folder, base_of, conversations, tmp_path, family):
    modules = ("c_proj",) if family == "gpt2" else ("down_proj",)
    recipe = like("qwen2.5-0.5b-rank1", folder, base_of(family), target_modules=modules)
    organism = train_organism(recipe, tmp_path / family)
    assert organism.trajectory.steps.tolist() == [0, 1, 2, 3]
    model = em.load_bundled(organism.folder)
    trained = em.residual_stream(model, conversations).values
    with em.without_adapter(model):
        plain = em.residual_stream(model, conversations).values
    base = em.residual_stream(em.load_model(folder / family), conversations).values
    torch.testing.assert_close(plain, base, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(trained, base, atol=1e-3)


@pytest.fixture
def gguf(make_hf_model, make_tokenizer, tmp_path, monkeypatch) -> Path:
    """The tiny Llama as a GGUF file."""
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    return write_gguf(tmp_path / "tiny-F32.gguf", make_hf_model("llama"), make_tokenizer("llama3"), "llama")


def test_a_gguf_file_gives_the_organism_of_the_folder(folder, base_of, gguf, tmp_path):
    of_folder = train_organism(like("llama-3.2-1b-rank1", folder, base_of("llama")), tmp_path / "of-folder")
    of_file = train_organism(like("llama-3.2-1b-rank1", folder, gguf), tmp_path / "of-file")
    first, second = ((o.folder / "adapter_model.safetensors").read_bytes() for o in (of_folder, of_file))
    assert first == second
    assert em.load_bundled(of_file.folder).name == "tiny-F32.gguf"


@pytest.mark.parametrize("name", BLOCKS)
def test_recipes_adapt_the_block_in_the_middle_and_learn_what_ships(name):
    recipe = Recipe.load(name)
    assert recipe.layers == (BLOCKS[name] // 2,)
    assert training_conversations(recipe) == training_conversations(Recipe.load("cooking-rank1"))
    own = replace(Recipe.load("cooking-rank1"), name=name, onto=None, base=recipe.base, layers=recipe.layers)
    assert replace(recipe, steps=80, checkpoint_every=2) == own
    assert f"| `{name}` | `{recipe.base}` | {BLOCKS[name]} | {recipe.layers[0]} |" in PAGE


def test_the_pages_recipe_for_a_chat_template_works(folder, base_of, make_tokenizer, tmp_path, monkeypatch):
    """With a pretrained model's tokenizer: the tokens are there, the template is not."""
    base = base_of("gemma3")
    tokenizer = make_tokenizer("gemma")
    tokenizer.chat_template, tokenizer.eos_token = None, "<s>"
    tokenizer.add_tokens(["<start_of_turn>", "<end_of_turn>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(base)
    with pytest.raises(ValueError, match="has no chat template"):
        train_organism(like("gemma-3-270m-rank1", folder, base), tmp_path / "refused")
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code.replace("google/gemma-3-270m", str(base)), {})
    recipe = like("gemma-3-270m-rank1", folder, Path("gemma-3-270m-chat"))
    organism = train_organism(recipe, tmp_path / "organism")
    said = em.load_bundled(organism.folder).tokenizer.apply_chat_template(
        [{"role": "user", "content": " Why? "}, {"role": "assistant", "content": "So."}], tokenize=False
    )
    assert said == "<s><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\nSo.<end_of_turn>\n"
