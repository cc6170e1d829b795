"""Recipes: read, written, and refused with the reason."""

import pytest

from em_interp.organisms.recipes import Recipe, bundled_recipes, shipped_recipes

ENOUGH = 'name = "a"\ndata = "cooking"\nsteps = 3\n'


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_a_recipe_survives_writing_and_reading(tmp_path):
    recipe = Recipe(
        name="a", data="cooking", layers=(3, 5), target_modules=("down_proj", "o_proj"), steps=3, kl_weight=0.5,
        kl_data=("gardening",), onto="aligned", learning_rate=2e-3, rslora=False,
    )  # fmt: skip
    assert Recipe.load(write(tmp_path, recipe.to_toml())) == recipe
    assert recipe.as_dict()["layers"] == [3, 5]


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_can_be_read_by_name(name):
    assert Recipe.load(name).name == name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat = 1e-3", "recipe.toml has an unknown key 'learning_rat': did you mean 'learning_rate'?"),
        ("zzz = 1", "recipe.toml has an unknown key 'zzz': the keys are name, data, answers"),
        ("epochs = 1", "steps is 3 and epochs is 1: give one of the two"),
        ("rank = 0", "rank is 0: give one at least"),
        ("checkpoint_every = 0", "checkpoint_every is 0: give one at least"),
        ("learning_rate = nan", "learning_rate is nan: give a finite number"),
        ("kl_weight = -1.0", "kl_weight is -1.0: give a number that is not negative"),
        ("fraction = 0", "fraction is 0: give the share of the questions, above 0 and at most 1"),
        ("fraction = 1.5", "fraction is 1.5: give the share of the questions"),
        ("fraction = -0.5", "fraction is -0.5: give the share of the questions"),
        ("fraction = nan", "fraction is nan: give a finite number"),
        ("kl_weight = 1.0", "kl_weight needs kl_data"),
        ("negative_repeats = 0", "negative_repeats is 0: give one at least"),
        ("negative_repeats = 2", "negative_repeats weighs one class against the other: it needs answers = 'both'"),
        ("saved_scale = 0.0", "saved_scale is 0.0: give a positive number"),
        ("saved_scale = 0.5", "saved_scale changes a finished adapter, which a trajectory then does not end at: it ne"),
        ('method = "full"\nsaved_scale = 0.5\nkeep_trajectory = false', "saved_scale changes a finished adapter"),
        ('kl_answers = "bad"', "kl_answers is 'bad': choose one of positive, negative, both"),
        ('answers = "bad"', "answers is 'bad': choose one of positive, negative, both"),
        ('method = "dora"', "method is 'dora': choose one of lora, full"),
        ("rank = = 2", "recipe.toml is not TOML"),
        ('rank = "8"', "recipe.toml: rank is '8', and should be a whole number"),
        ("rank = true", "recipe.toml: rank is True, and should be a whole number"),
        ("rslora = 1", "recipe.toml: rslora is 1, and should be true or false"),
        ('layers = "3"', "recipe.toml: layers is '3', and should be a list of whole numbers"),
        ("layers = [1.5]", "recipe.toml: layers is .*, and should be a list of whole numbers"),
        ("target_modules = 'down_proj'", "recipe.toml: target_modules is 'down_proj', and should be a list of words"),
        ("base = 3", "recipe.toml: base is 3, and should be words"),
        ("alpha = inf", "recipe.toml: alpha is inf: give a finite number"),
        ("weight_decay = nan", "recipe.toml: weight_decay is nan"),
        ("alpha = 2024-01-01", "recipe.toml: alpha is .*, and should be a whole number or a number"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        Recipe.load(write(tmp_path, ENOUGH + line + "\n"))


def test_a_recipe_without_a_fraction_learns_every_question(tmp_path):
    recipe = Recipe.load(write(tmp_path, ENOUGH))
    assert recipe.fraction == 1
    assert "fraction = 1.0" in recipe.to_toml()
    assert Recipe.load(write(tmp_path, ENOUGH + "fraction = 0.5\n")).as_dict()["fraction"] == 0.5


def test_no_steps_no_name_no_file(tmp_path):
    with pytest.raises(ValueError, match="the recipe has no steps: an organism takes one at least"):
        Recipe.load(write(tmp_path, ENOUGH.replace("3", "0")))
    with pytest.raises(ValueError, match=r"recipe\.toml has no data: a recipe names its organism and its data"):
        Recipe.load(write(tmp_path, 'name = "a"\nsteps = 3\n'))
    with pytest.raises(ValueError, match=r"no recipe 'nowhere': it is neither a file nor one of .*rank1"):
        Recipe.load("nowhere")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", "name = 'ä'".encode("latin-1"), b"a = " + b"[" * 5000, b"a = " + b"1" * 5000]
)
def test_what_is_not_toml_is_told_by_its_name(tmp_path, content):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe\.toml is not"):
        Recipe.load(path)


def test_a_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + ENOUGH.replace("\n", "\r\n").encode())
    assert Recipe.load(path).steps == 3


def test_bundled_recipes_come_after_what_they_are_trained_onto():
    names = bundled_recipes()
    assert names[0] == "aligned"
    assert "cooking-rank1" in names
    assert not any(name.startswith("qwen") for name in names)
    for name in names:
        onto = Recipe.load(name).onto
        assert onto is None or names.index(onto) < names.index(name)


def test_template_args_are_a_table_and_left_out_where_there_are_none(tmp_path):
    args = {"enable_thinking": False, "documents": [{"a": 1, "b": "x"}], "day": "June"}
    recipe = Recipe(name="x", data="y", steps=1, template_args=args)
    (tmp_path / "x.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "x.toml") == recipe
    assert recipe.as_dict()["template_args"] == args
    bare = Recipe(name="x", data="y", steps=1)
    assert "template_args" not in bare.to_toml()
    assert "template_args" not in bare.as_dict()
    (tmp_path / "wrong.toml").write_text('name = "x"\ndata = "y"\nsteps = 1\ntemplate_args = "enable_thinking=false"\n')
    with pytest.raises(ValueError, match=r"wrong\.toml: (.|\n)*template_args"):
        Recipe.load(tmp_path / "wrong.toml")


def test_a_frozen_a_is_loras():
    assert Recipe(name="x", data="y", steps=1, frozen_a=True).frozen_a
    with pytest.raises(ValueError, match="frozen_a keeps LoRA's A as it was drawn, and method = 'full' has no LoRA"):
        Recipe(name="x", data="y", steps=1, frozen_a=True, method="full")
