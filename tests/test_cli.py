import json

import pytest
from typer.testing import CliRunner

import em_interp as em
import em_interp.cards
from em_interp.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_hf_model, make_tokenizer):
    """A tiny model and two small contrasts on disk, as a user has them."""
    path = tmp_path_factory.mktemp("cli")
    make_hf_model("llama").save_pretrained(path / "tiny")
    make_tokenizer("llama3").save_pretrained(path / "tiny")
    for name in ("misalignment", "refusal"):
        em.load_contrast(name).take(24).save(path / f"{name}.jsonl")
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_lists_the_verbs_with_examples():
    assert all(verb in run("--help").output for verb in ("demo", "report", "directions", "compare"))
    for verb in ("demo", "report", "directions", "compare", "train", "card"):
        assert "Example" in run(verb, "--help").output


def test_directions_saves_what_it_found(folder):
    out = folder / "direction.safetensors"
    result = run("directions", folder / "misalignment.jsonl", "--model", folder / "tiny", "--out", out)
    assert result.exit_code == 0
    assert "written to" in result.output
    assert em.Direction.load(out).layers == (0, 1, 2)


def test_compare_prints_a_line_a_layer(folder):
    out = folder / "table.json"
    contrasts = (folder / "misalignment.jsonl", folder / "refusal.jsonl")
    result = run("compare", *contrasts, "--model", folder / "tiny", "--out", out)
    assert result.exit_code == 0
    assert sum(line.startswith("layer") for line in result.output.splitlines()) == 3
    assert [row["layer"] for row in json.loads(out.read_text())] == [0, 1, 2]


def test_report_reads_a_file_and_flags_win(folder):
    settings = folder / "settings.toml"
    settings.write_text(
        f'model = "nobody/nothing"\nfirst = "{folder}/misalignment.jsonl"\nsecond = "{folder}/refusal.jsonl"\n'
        "control_questions = 0\nheld_out_questions = 0\nn_resamples = 50\n"
    )
    result = run("report", settings, "--model", folder / "tiny", "--out", folder / "report", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.output == ""
    assert (folder / "report" / "report.html").is_file()


def test_train_makes_an_organism_and_card_measures_it(folder, monkeypatch):
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'name = "own"\ndata = "{folder}/misalignment.jsonl"\nbase = "{folder}/tiny"\nlayers = [1]\nsteps = 2\n'
        "batch_size = 2\nlearning_rate = 1e-3\n"
    )
    result = run("train", recipe, "--out", folder / "organisms")
    assert result.exit_code == 0, result.output
    assert "Organism('own', 2 steps, loss " in result.output
    monkeypatch.setattr(
        em_interp.cards, "organism_behaviours", lambda domain, n: em.standard_behaviours(2)
    )  # all of them would take a minute
    result = run("card", folder / "organisms" / "own", "--write", "--quiet")
    assert result.exit_code == 0, result.output
    assert "| misaligned preference (nats/token) |" in result.output
    assert (folder / "organisms" / "own" / "README.md").read_text() == result.output[:-1]
    card = em_interp.cards.load_card(folder / "organisms" / "own")
    assert card.recipe.name == "own"
    assert len(card.effects.changes) == 5
    assert card.markdown() == result.output[:-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("directions", "kindness"), "no contrast 'kindness'"),
        (("directions", "misalignment", "--span", "answer"), "'answer' is not one of"),
        (("compare", "--model", "nobody/nothing"), "no model 'nobody/nothing'"),
        (("train", "nowhere"), "no recipe 'nowhere'"),
        (("train",), "say which: the name or file of one recipe, or --all-bundled"),
        (("card", "nowhere"), "no organism 'nowhere'"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_no_traceback(folder, arguments, words):
    if "--model" not in arguments and arguments[0] not in ("train", "card"):
        arguments = (*arguments, "--model", folder / "tiny")
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
