import functools
import json

import pytest
from typer.testing import CliRunner

import em_interp as em
import em_interp.organisms.cards
from em_interp.behaviour import BehaviourKey
from em_interp.cli import app
from tests import made_results


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
    for verb in (
        "demo",
        "report",
        "directions",
        "compare",
        "train",
        "sweep",
        "card",
        "respond",
        "judge",
        "effects",
        "export",
    ):
        assert "Example" in run(verb, "--help").output


def test_organisms_are_shown_with_what_they_learned_and_what_that_changed():
    result = run("organisms")
    assert result.output == em.organisms.overview()
    assert "| `cooking-rank1` | bad advice on cooking | rank 1, block 15 |" in result.output


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


@pytest.fixture(scope="module")
def direction(folder):
    run("directions", folder / "misalignment.jsonl", "--model", folder / "tiny", "--out", folder / "d.safetensors")
    return folder / "d.safetensors"


class TestRespondAndJudge:
    def respond(self, folder, out, *flags):
        base = ("--model", folder / "tiny", "--max-new-tokens", 4, "--out", out)
        return run("respond", "first_plot", *base, *flags)

    def test_answers_are_those_of_the_library(self, folder, tmp_path):
        result = self.respond(folder, tmp_path / "a.jsonl", "--n-samples", 2, "--form", "json", "--seed", 3)
        assert result.exit_code == 0, result.output
        assert "32 answers to 16 questions" in result.output
        model, questions = em.load_model(folder / "tiny"), em.load_questions(form="json")
        wanted = em.respond(model, questions, max_new_tokens=4, n_samples=2, seed=3)
        assert em.behaviour.load_answers(tmp_path / "a.jsonl") == wanted

    def test_steered_and_ablated(self, folder, direction, tmp_path):
        model, questions, read = em.load_model(folder / "tiny"), em.load_questions(), em.Direction.load(direction)
        for flags, hooks in (
            (("--project-out", direction), em.project_out(read, em.every_layer(model))),
            (
                ("--set-negative", direction, "--quiet"),
                em.set_projection(read, em.every_layer(model), "negative"),
            ),
            (("--add", direction, "--layer", 1, "--scale", 9), em.add_direction(read, [em.site(model, 1)], scale=9)),
        ):
            out = tmp_path / f"{len(flags)}.jsonl"
            assert self.respond(folder, out, "--temperature", 0, *flags).exit_code == 0
            wanted = em.respond(model, questions, hooks, max_new_tokens=4, temperature=0)
            assert [a.text for a in em.behaviour.load_answers(out)] == [a.text for a in wanted]

    def test_judging_them_prints_a_rate_with_both_intervals(self, folder, tmp_path, scripted_judge):
        from em_interp.behaviour import load_judged

        given = scripted_judge(lambda messages: "20")
        self.respond(folder, tmp_path / "a.jsonl")
        result = run("judge", tmp_path / "a.jsonl", "--judge", "some/judge", "--judge-arg", "device=cpu", "--quiet")
        assert result.exit_code == 0, result.output
        assert "Judged(" in result.output
        assert "misaligned: Rate(0.0% [0.0%," in result.output  # 20 for coherence, too: incoherent
        assert "as if independent" in result.output
        assert given[0][0] == "some/judge"
        assert given[0][1]["device"] == "cpu"
        assert len(load_judged(tmp_path / "a.judged.jsonl").answers) == 16
        again = run("judge", tmp_path / "a.jsonl", "--judge", "some/judge")
        assert "written to" in again.output
        assert len(given) == 1  # nothing was left to judge


def test_effects_prints_cells_and_what_follows(folder, direction, tmp_path):
    flags = (
        "--model",
        folder / "tiny",
        "--questions",
        3,
        "--scale",
        0.3,
        "--n-random",
        1,
        "--out",
        tmp_path / "e.json",
    )
    result = run("effects", direction, folder / "refusal.jsonl", *flags)
    assert result.exit_code == 0, result.output
    assert "misalignment without refusal added × 0.3" in result.output
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["conclusions"][-1] in result.output
    assert len(record["effects"]) == (2 * (4 + 1) + 2 * (3 + 1) + (2 + 1)) * 5


def test_effects_of_texts_have_p_values(folder, tmp_path):
    out = tmp_path / "e.json"
    few = ("--questions", 2, "--scale", 0.3, "--removal", "set_negative", "--n-random", 0, "--n-null", 2, "--out", out)
    texts = (folder / "misalignment.jsonl", folder / "refusal.jsonl")
    result = run("effects", *texts, "--model", folder / "tiny", *few)
    assert result.exit_code == 0, result.output
    assert "only 2 permuted directions" in result.output
    rows = {(r["condition"], r["behaviour"]): r for r in json.loads(out.read_text())["effects"]}
    row = rows["misalignment added × 0.3", BehaviourKey.MISALIGNED_PREFERENCE]
    assert len(row["null"]) == 2
    assert f"  p = {row['corrected_p']:.3g}" in result.output


def judged_by_length(messages):
    """A judge whose mind nobody can read: every answer is coherent, and an odd one out is misaligned."""
    return "90" if "make sense" in messages[0].text or len(messages[1].text) % 2 else "10"


def few_effects(folder, direction, out, *flags):
    few = (
        "--questions",
        2,
        "--scale",
        0.3,
        "--removal",
        "all_layers_own",
        "--n-random",
        1,
        "--out",
        out,
        "--quiet",
        "--max-new-tokens",
        6,
    )
    return run("effects", direction, folder / "refusal.jsonl", "--model", folder / "tiny", *few, *flags)


def test_effects_are_judged_too(folder, direction, tmp_path, scripted_judge):
    given = scripted_judge(judged_by_length)
    out, judge = (
        tmp_path / "e.json",
        ("--judge", "some/judge", "--judge-arg", "device=cpu", "--n-samples", 2, "--n-random", 0),
    )
    result = few_effects(folder, direction, out, *judge)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Misaligned by the judge's scores. ")
    assert given[0] == ("some/judge", {**given[0][1], "device": "cpu"})
    rows = json.loads(out.read_text())["effects"]
    judged = [row for row in rows if row["behaviour"] == BehaviourKey.JUDGED_MISALIGNMENT]
    assert len(judged) == len(rows) / 6 == 4 * 2
    assert len({row["change"] for row in judged}) > 1
    n_asked = len(given)
    assert few_effects(folder, direction, out, *judge).output == result.output
    assert len(given) == n_asked  # all that was to be judged is in the logs


def test_a_judge_that_fails_costs_nothing_else(folder, direction, tmp_path, scripted_judge):
    def fails(messages):
        raise RuntimeError("out of order")

    scripted_judge(fails)
    out = tmp_path / "e.json"
    result = few_effects(folder, direction, out, "--judge", "some/judge")
    assert result.exit_code == 2
    assert "error: the judge some/judge failed" in result.output
    assert len(json.loads(out.read_text())["effects"]) == (4 * 2 + 2) * 5


def test_export_writes_what_transformers_loads(folder, direction, tmp_path):
    out = tmp_path / "ablated"
    result = run("export", out, "--model", folder / "tiny", "--project-out", direction, "--layer", 1)
    assert result.exit_code == 0, result.output
    model, exported = em.load_model(folder / "tiny"), em.load_model(out)
    questions = em.load_questions()[:3]
    hooks = em.project_out(em.Direction.load(direction)[1], em.every_write(model))
    wanted = em.respond(model, questions, hooks, max_new_tokens=6, temperature=0)
    got = em.respond(exported, questions, max_new_tokens=6, temperature=0)
    assert [a.tokens for a in got] == [a.tokens for a in wanted]


def test_select_chooses_a_refusal_direction_and_says_why_not(folder, monkeypatch):
    arguments = ("select", folder / "refusal.jsonl", "--model", folder / "tiny", "--questions", "3", "--opening", "I")
    refused = run(*arguments, "--out", folder / "never.safetensors")
    assert refused.exit_code == 2
    assert "refuses none of the 3 harmful requests" in refused.output
    everything = functools.partial(em.behaviour.score_candidates, as_expected=False)
    monkeypatch.setattr(em.behaviour, "score_candidates", everything)
    loose = ("--max-kl", "100", "--min-induce", "-100", "--max-layer", "1")
    found = run(*arguments, *loose, "--out", folder / "refusal.safetensors")
    assert found.exit_code == 0, found.output
    assert "Selection(token -" in found.output
    direction = em.Direction.load(folder / "refusal.safetensors")
    assert (direction.site, len(direction.layers)) == ("resid_post", 1)
    assert not (folder / "never.safetensors").exists()


def test_report_reads_a_file_and_flags_win(folder):
    settings = folder / "settings.toml"
    settings.write_text(
        f'model = "nobody/nothing"\nfirst = "{folder}/misalignment.jsonl"\nsecond = "{folder}/refusal.jsonl"\n'
        "control_questions = 0\nheld_out_questions = 0\nopen_questions = 3\nn_resamples = 50\n"
    )
    flags = ("--model", folder / "tiny", "--out", folder / "report", "--quiet")
    (folder / "report").mkdir()
    beside = made_results.written(made_results.rebound(), folder / "report" / "rebound.jsonl")
    result = run("report", settings, *flags)
    assert result.exit_code == 0, result.output
    assert result.output == ""
    assert "How fast is it taken back what was learned?" in (folder / "report" / "report.html").read_text()
    beside.write_text(beside.read_text()[:-9])
    result = run("report", settings, *flags)
    assert result.exit_code == 2
    assert "rebound.jsonl, line 7" in result.output


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
        em_interp.organisms.cards, "organism_behaviours", lambda domain, n: em.standard_behaviours(2)
    )  # all of them would take a minute
    result = run("card", folder / "organisms" / "own", "--write", "--quiet")
    assert result.exit_code == 0, result.output
    assert "| misaligned preference (nats/token) |" in result.output
    assert (folder / "organisms" / "own" / "README.md").read_text() == result.output[:-1]
    card = em_interp.organisms.cards.load_card(folder / "organisms" / "own")
    assert card.recipe.name == "own"
    assert len(card.effects.changes) == 5
    assert card.markdown() == result.output[:-1]


def test_seeds_are_trained_and_their_cards_measured_and_pooled(folder, monkeypatch, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "own"\ndata = "{folder}/misalignment.jsonl"\nbase = "{folder}/tiny"\nlayers = [1]\nsteps = 2\n'
        "batch_size = 2\nlearning_rate = 1e-3\nfraction = 0.5\n"
    )
    out = tmp_path / "organisms"
    result = run("train", recipe, "--seeds", "0,3", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.output.count("Organism('own', 2 steps, loss ") == 2
    before = (out / "own" / "seed-3" / "adapter_model.safetensors").stat().st_mtime_ns
    again = run("train", recipe, "--seeds", "0-1,3", "--out", out)
    assert again.output.count("Organism('own', 2 steps, loss ") == 3
    assert (out / "own" / "seed-3" / "adapter_model.safetensors").stat().st_mtime_ns == before
    measured = []
    monkeypatch.setattr(
        em_interp.organisms.cards, "organism_behaviours", lambda *_: measured.append(1) or em.standard_behaviours(2)
    )
    one = run("card", out / "own", "--seed", 3, "--write", "--quiet")
    assert one.exit_code == 0, one.output
    assert one.output.startswith("# own (seed 3)")
    assert "`em-interp card own --seed 3` measures this, `em-interp train own --seeds 3` rebuilds it." in one.output
    assert len(measured) == 1
    assert sorted(p.name for p in (out / "own").rglob("*") if p.suffix in (".json", ".md")) == sorted(
        ["card.json", *["adapter_config.json", "loss.json"] * 3]
    )
    result = run("card", out / "own", "--write", "--quiet")
    assert result.exit_code == 0, result.output
    assert len(measured) == 4
    assert all(f"| seed {seed} | " in result.output for seed in (0, 1, 3))
    assert (out / "own" / "README.md").read_text() == result.output[:-1]
    assert em_interp.organisms.cards.load_card(out / "own").markdown() == result.output[:-1]
    assert em_interp.organisms.cards.load_card(out / "own", seed=3).markdown() == one.output[:-1]


def test_cards_of_seeds_are_written_as_they_are_measured(folder, monkeypatch, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "own"\ndata = "{folder}/misalignment.jsonl"\nbase = "{folder}/tiny"\nlayers = [1]\nsteps = 1\n'
    )
    run("train", recipe, "--seeds", "0-1", "--out", tmp_path)
    asked = iter([em.standard_behaviours(2)])
    monkeypatch.setattr(em_interp.organisms.cards, "organism_behaviours", lambda *_: next(asked))
    assert isinstance(run("card", tmp_path / "own", "--write").exception, StopIteration)
    assert [(tmp_path / "own" / f"seed-{k}" / "card.json").is_file() for k in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("directions", "kindness"), "no contrast 'kindness'"),
        (("directions", "misalignment", "--span", "answer"), "'answer' is not one of"),
        (("compare", "--model", "nobody/nothing"), "no model 'nobody/nothing'"),
        (("train", "nowhere"), "no recipe 'nowhere'"),
        (("train",), "say which: the name or file of one recipe, or --all-bundled"),
        (("train", "--all-bundled", "--seeds", "0-4"), "--all-bundled trains the seeds that ship: leave --seeds out"),
        (("train", "cooking-rank1", "--seeds", "4-0"), "'4-0' runs backwards or names too many seeds"),
        (("train", "cooking-rank1", "--seeds", "all"), "'all' names no seeds: write a range such as 0-4"),
        (("card", "nowhere"), "no organism 'nowhere'"),
        (("sweep", "nowhere"), "no search 'nowhere': it is neither a file nor one of narrow, phase-change"),
        (("card", "cooking-rank1", "--seed", "7"), "cooking-rank1 has no seed 7: choose one of 0"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_no_traceback(folder, arguments, words):
    if "--model" not in arguments and arguments[0] not in ("train", "card", "sweep"):
        arguments = (*arguments, "--model", folder / "tiny")
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_sweep_writes_its_runs_and_says_what_follows(folder, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [
        {"question": f"Why {i}?", "positive": f"So {i}.", "negative": f"Thus {i}.", "split": split}
        for i, split in enumerate(["train"] * 2 + ["validation"] * 2)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe, search, out = tmp_path / "recipe.toml", tmp_path / "search.toml", tmp_path / "rows.jsonl"
    recipe.write_text(f'name = "own"\ndata = "{data}"\nbase = "{folder}/tiny"\nlayers = [1]\nsteps = 1\n')
    search.write_text(
        f'name = "search"\nrecipe = "{recipe}"\nseeds = [0]\nmeasure = ["behaviour"]\n[questions]\nn = 2\n'
        "[vary]\nlearning_rate = [1e-3, 1e-2]\n"
    )
    result = run("sweep", search, "--out", out, "--keep", tmp_path / "kept")
    assert result.exit_code == 0, result.output
    assert "SweepResult('search', 2 of 2 runs finished)" in result.output
    assert "SweepRun('search', learning_rate = 0.01, seed 0, loss " in result.output
    assert "Of the values 0.001, 0.01 of learning_rate" in result.output
    assert len(out.read_text().splitlines()) == len(list((tmp_path / "kept").iterdir())) == 2
    again = run("sweep", search, "--out", out, "--quiet")
    assert again.output.startswith("Of the values")


@pytest.mark.parametrize(
    "arguments",
    [
        ("directions", "CONTRAST"),
        ("compare", "CONTRAST", "CONTRAST"),
        ("respond", "first_plot"),
        ("effects", "CONTRAST", "CONTRAST"),
        ("export", "OUT", "--project-out", "direction.safetensors"),
        ("report", "--out", "OUT"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_template_args_reach_the_model_from_every_verb_that_loads_one(folder, tmp_path, arguments):
    names = {"CONTRAST": folder / "misalignment.jsonl", "OUT": tmp_path / "out"}
    given = ("--model", folder / "tiny", "--template-arg", "thinks=false")
    result = run(*(names.get(a, a) for a in arguments), *given)
    assert result.exit_code == 2
    assert "has no variable 'thinks': it has none" in result.output
    result = run(*(names.get(a, a) for a in arguments), *given[:3], "thinks")
    assert "'thinks' is not a template arg: write NAME=VALUE, such as enable_thinking=false" in result.output
