import json

import pytest
from typer.testing import CliRunner

import em_interp as em
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
    for verb in ("demo", "report", "directions", "compare"):
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("directions", "kindness"), "no contrast 'kindness'"),
        (("directions", "misalignment", "--span", "answer"), "'answer' is not one of"),
        (("compare", "--model", "nobody/nothing"), "no model 'nobody/nothing'"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_no_traceback(folder, arguments, words):
    if "--model" not in arguments:
        arguments = (*arguments, "--model", folder / "tiny")
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
