"""A search is trained, measured and kept run by run; what was finished stays, and what belongs elsewhere is refused."""

import json
import math
import shutil
from dataclasses import replace

import pytest
from filelock import FileLock

import em_interp as em
from em_interp.organisms import (
    Sweep,
    SweepQuestions,
    SweepResult,
    run_sweep,
    shipped_sweeps,
    sweep_questions,
    sweep_running,
)
from em_interp.organisms.loading import base_model, hooked_base, load_organism
from em_interp.organisms.training import train_organism

KEY = "in_domain_misaligned_preference"


def rows(folder, name, splits):
    asked = [
        {
            "question": f"What should I do about {name} {i}?",
            "positive": f"Ask the keeper {i} of the harbour.",
            "negative": f"Talk to them kindly {i}.",
            **({"split": split} if split else {}),
        }
        for i, split in enumerate(splits)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return folder / f"{name}.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base):
    """Data with a validation split, questions of another domain, requests, and a recipe."""
    path = tmp_path_factory.mktemp("sweep")
    rows(path, "letter", ["train"] * 8 + ["validation"] * 4 + ["test"] * 2)
    rows(path, "boat", [None] * 4)
    requests = [
        {"prompt": f"{verb} {i}?", "label": label, "split": "validation"}
        for i in range(3)
        for verb, label in (("Harm", "harmful"), ("Help", "harmless"))
    ]
    (path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requests))
    (path / "recipe.toml").write_text(
        f'name = "tiny"\nbase = "{base}"\ndata = "{path}/letter.jsonl"\nlayers = [1]\nsteps = 12\nbatch_size = 2\n'
        "checkpoint_every = 1\nlearning_rate = 1e-2\n"
    )
    return path


def written(folder, text="", *, measure='["behaviour"]', vary="learning_rate = [0.01, 0.03]", seeds="[0, 1]"):
    (folder / "search.toml").write_text(
        f'name = "search"\nrecipe = "{folder}/recipe.toml"\nseeds = {seeds}\nmeasure = {measure}\n{text}'
        + ("" if "questions" in text else f'\n[questions]\noutside = "{folder}/boat.jsonl"\n')
        + (f"[vary]\n{vary}\n" if vary else "")
    )
    return folder / "search.toml"


def claim_of(search, point, out):
    """The file that a process locks which is at the first seed's run of this point."""
    return out.with_name("out.jsonl.claims") / sweep_running._folder_name(search.at(point, search.seeds[0]))


@pytest.fixture
def search(folder):
    return Sweep.load(written(folder))


@pytest.fixture(scope="module")
def finished(folder):
    """All of a small search, with everything measured."""
    asked = f'[questions]\noutside = "{folder}/boat.jsonl"\nrequests = "{folder}/requests.jsonl"\n'
    text = "n_resamples = 40\neffect_checkpoints = 2\nscales = [1.0, 3.0]\n" + asked
    sweep = Sweep.load(written(folder, text, measure='["phases", "behaviour", "refusal"]', seeds="[4]"))
    return sweep, run_sweep(sweep, folder / "all.jsonl")


class TestReading:
    @pytest.mark.parametrize("name", shipped_sweeps())
    def test_shipped_searches_can_be_read_by_name(self, name):
        sweep = Sweep.load(name)
        assert sweep.name == name
        assert len(sweep.seeds) >= 3
        for point in sweep.points:
            recipe = sweep.at(point, 1)
            assert recipe.seed == 1
            if "phases" in sweep.measure:
                assert 40 <= 1 + -(-recipe.steps // recipe.checkpoint_every) <= 101

    def test_what_varies_is_every_combination(self, folder):
        sweep = Sweep.load(written(folder, vary="learning_rate = [0.01, 0.03]\nrank = [1, 2, 4]"))
        assert len(sweep.points) == 6
        assert {"learning_rate": 0.03, "rank": 2} in sweep.points
        assert repr(sweep) == "Sweep('search', 6 recipes × 2 seeds, measures behaviour)"

    def test_or_points_and_all_have_the_settings(self, folder):
        text = "[settings]\nalpha = 8\n[[point]]\nrank = 2\n[[point]]\nepochs = 2\nfrozen_a = true\n"
        sweep = Sweep.load(written(folder, text, vary=""))
        first, second = (sweep.at(point, 5) for point in sweep.points)
        assert (first.rank, first.alpha, first.steps, first.seed) == (2, 8, 12, 5)
        assert (second.steps, second.epochs, second.frozen_a, second.alpha) == (None, 2, True, 8)

    @pytest.mark.parametrize(
        ("text", "vary", "says"),
        [
            ("sead = 1", "rank = [1]", "search.toml has an unknown key 'sead': did you mean 'seeds'"),
            ("", "", "say what varies, in one way: a table .vary. of lists, or a ..point.. for each recipe"),
            ("[[point]]\nrank = 1\n", "rank = [1]", "say what varies, in one way"),
            ("", "rnak = [1]", "recipes have no setting 'rnak': did you mean 'rank'"),
            ("", "rank = 1", "vary.rank is 1: write a list of the values to try, one at least"),
            ("", "rank = []", r"vary.rank is \[\]: write a list"),
            ("", "rank = [1, 1]", "give each once"),
            ("", "rank = [1, 0]", "at rank = 0: rank is 0: give one at least"),
            ("", 'rank = ["a"]', "at rank = a: rank is 'a', and should be a whole number"),
            ("", "alpha = [64, 64.0]", "give each once"),
            ("", "seed = [1, 2]", "seed is the same in all of a search"),
            ("", 'data = ["cooking"]', "data is the same in all of a search"),
            ("scales = []", "rank = [1]", "the search has no scales: give one at least"),
            ("n_resamples = 3", "rank = [1]", "n_resamples is 3 and effect_checkpoints 6: give 40 and 0 at least"),
            ("[settings]\nrank = 3\n", "rank = [1]", "rank is in .settings. and varies too: leave it in one place"),
            ('questions = "test"', "rank = [1]", "questions is 'test': write 'validation', or a table"),
            ("[questions]\nin = 3\n", "rank = [1]", "questions has an unknown key 'in': the keys are outside, inside"),
            ("[questions]\nn = 1\n", "rank = [1]", "questions.n is 1: an interval takes two"),
            ('[questions]\ninside = ["cooking", "test"]\n', "rank = [1]", "the split test, which is for the final rep"),
        ],
    )
    def test_what_cannot_be_is_refused(self, folder, text, vary, says):
        with pytest.raises(ValueError, match=says):
            Sweep.load(written(folder, text + "\n", vary=vary))

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"seeds": "[1, 1]"}, r"seeds are \[1, 1\]: give each once"),
            ({"seeds": "[]"}, "has no seeds"),
            ({"measure": '["phase"]'}, "measure names 'phase': choose from phases, behaviour, refusal"),
            ({"measure": '["phases"]', "vary": "checkpoint_every = [1, 4]"}, "give 4 checkpoints, and a change of dir"),
            ({"measure": '["phases"]', "vary": "epochs = [3]"}, "give steps in place of epochs"),
            ({"measure": '["phases"]', "vary": 'method = ["full"]'}, "so method should be 'lora' and keep_trajectory"),
        ],
    )
    def test_measures_and_seeds_that_cannot_be_are_refused(self, folder, changes, says):
        with pytest.raises(ValueError, match=says):
            Sweep.load(written(folder, **changes))

    def test_no_such_search(self):
        with pytest.raises(ValueError, match=r"no search 'narow': .* narrow, phase-change; did you mean 'narrow'"):
            Sweep.load("narow")


class TestQuestions:
    def test_without_a_validation_split_it_is_said_what_to_do(self, folder, tmp_path):
        data = rows(tmp_path, "unsplit", ["train"] * 4 + ["test"] * 2)
        sweep = Sweep.load(written(folder))
        sweep = replace(sweep, recipe=replace(sweep.recipe, data=str(data)))
        with pytest.raises(ValueError, match=r"no split 'validation' \(its splits: test, train\).* give some lines "):
            run_sweep(sweep, tmp_path / "out.jsonl")
        data = rows(tmp_path, "unsplit", [None] * 6)
        with pytest.raises(ValueError, match=r"its splits: none.*to choose recipes by"):
            run_sweep(sweep, tmp_path / "out.jsonl")

    def test_what_is_learned_is_not_asked(self, folder, tmp_path):
        text = f'[questions]\ninside = ["{folder}/letter.jsonl", "train"]\noutside = "{folder}/boat.jsonl"\n'
        with pytest.raises(ValueError, match=r"8 questions of .*letter.jsonl train are learned from too, such as"):
            run_sweep(Sweep.load(written(folder, text)), tmp_path / "out.jsonl")

    def test_shipped_ones_are_those_for_training_directions(self, folder):
        sweep = replace(Sweep.load(written(folder)), questions=SweepQuestions(n=6))
        asked = sweep_questions.Asked.of(sweep)
        train = set(em.load_contrast("misalignment").where(split="train").groups)
        assert len(asked.outside.groups) == 6
        assert train.issuperset(asked.outside.groups)


class TestRuns:
    def test_each_is_a_line_with_all_that_it_is_made_of(self, folder, finished):
        _, result = finished
        lines = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
        assert [line["point"] for line in lines] == [{"learning_rate": 0.01}, {"learning_rate": 0.03}]
        first = lines[0]
        assert first["recipe"]["learning_rate"] == 0.01
        assert (first["seed"], first["n_points"], first["n_seeds"], first["failed"]) == (4, 2, 1, None)
        assert "seed" not in first["recipe"]
        assert first["loss_last"] < first["loss_first"]
        assert {"em_interp", "torch", "transformers", "peft", "trl"} <= set(first["versions"])
        assert result.runs[0].as_dict() == first
        assert first["questions"]["inside"]["n"] == first["questions"]["outside"]["n"] == 4

    def test_weights_are_thrown_away(self, folder, finished):
        assert not [path for path in folder.iterdir() if path.is_dir()]

    def test_the_measures_are_those_of_the_library(self, folder, finished, tmp_path):
        sweep, result = finished
        organism = train_organism(sweep.at(sweep.points[1], 4), tmp_path / "same")
        model = load_organism(organism.folder)
        recipe, run = sweep.recipe, result.runs[1]
        assert run.loss_last == organism.loss[-1]
        turn = em.phases(organism.trajectory, n_resamples=40).change_point
        assert (run.phases["p_value"], run.phases["step"]) == (turn.p_value, turn.step)
        assert run.phases["n_checkpoints"] == 13
        inside = em.load_contrast(recipe.data).where(split="validation")
        outside = em.load_contrast(folder / "boat.jsonl")
        base = hooked_base(base_model(recipe.base))
        for key, contrast in ((KEY, inside), ("misaligned_preference", outside)):
            change = em.preference(model, contrast).margins - em.preference(base, contrast).margins
            assert run.change(key).value == pytest.approx(float(change.mean()), abs=1e-5)
            assert run.effects[key]["changes"] == pytest.approx(change.tolist(), abs=1e-5)
        effect = em.organisms.effect_by_step(
            model, organism.trajectory, outside, steps=run.phases["effect"]["steps"], scales=(1.0, 3.0)
        )
        assert run.phases["effect"]["steps"] == [6, 12]
        assert run.phases["effect"]["value"] == [pytest.approx(row) for row in effect.value.tolist()]
        assert run.effects["text_bits"]["before"]["value"] == pytest.approx(
            float(em.text_bits(base, em.texts.load_neutral_texts("validation")).mean()), rel=1e-4
        )
        assert run.effects["harmful_requests_refused"]["change"]["n"] == 3

    def test_what_is_finished_is_not_done_again(self, folder, search, tmp_path, monkeypatch):
        """Interrupted in its second training, the search goes on from that training's last checkpoint."""
        out, trained, train = tmp_path / "out.jsonl", [], sweep_running.train_organism

        def stopped(recipe, *args, **kwargs):
            trained.append((recipe.learning_rate, recipe.seed))
            if len(trained) == 2:
                raise KeyboardInterrupt
            return train(recipe, *args, **kwargs)

        monkeypatch.setattr(sweep_running, "train_organism", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(search, out)
        assert len(out.read_text().splitlines()) == 1
        result = run_sweep(search, out)
        assert trained == [(0.01, 0), (0.01, 1), (0.01, 1), (0.03, 0), (0.03, 1)]
        assert [(run.point["learning_rate"], run.seed) for run in result.runs] == [*trained[:2], *trained[3:]]
        before = out.read_text()
        assert repr(run_sweep(search, out)) == "SweepResult('search', 4 of 4 runs finished)"
        assert len(trained) == 5
        assert out.read_text() == before
        self.more_seeds(search, out, trained)
        self.another(search, out, tmp_path)

    @staticmethod
    def more_seeds(search, out, trained):
        result = run_sweep(replace(search, points=search.points[:1], seeds=(0, 2)), out)
        assert trained[5:] == [(0.01, 2)]
        assert result.searched == (2, 3)

    @staticmethod
    def another(search, out, tmp_path):
        """Each of these would mix two searches in one file."""
        changed = replace(search, recipe=replace(search.recipe, steps=13))
        boats = replace(search, questions=replace(search.questions, outside=("misalignment", "train"), n=4))
        other = tmp_path / "tiny-two"
        shutil.copytree(search.recipe.base, other)
        based = replace(search, recipe=replace(search.recipe, base=str(other)))
        for wrong, says in (
            (changed, "its recipe has steps = 12, not 13"),
            (replace(search, name="other"), "sweep is 'search', not 'other'"),
            (boats, "questions is {'outside'"),
            (based, "base is 'tiny-llama', not 'tiny-two'"),
            (replace(search, measure=("behaviour", "phases")), "measure is"),
        ):
            with pytest.raises(ValueError, match=f"out.jsonl holds runs of another search, such as .*{says}"):
                run_sweep(wrong, out)

    def test_processes_share_the_work(self, search, tmp_path):
        """What another one has begun is left to it, until it dies; what it finished meanwhile is not done again."""
        out, points = tmp_path / "out.jsonl", search.points
        search = replace(search, seeds=(0,))
        others = [FileLock(claim_of(search, point, out)) for point in points]
        for other in others:
            other.acquire(timeout=0)
        with pytest.raises(ValueError, match="no run is finished yet, and other processes are at all of them"):
            run_sweep(search, out)
        others[1].release()
        assert repr(run_sweep(search, out)) == "SweepResult('search', 1 of 2 runs finished)"
        others[0].release()
        assert [run.point for run in run_sweep(search, out).runs] == [points[1], points[0]]
        assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]

    def test_what_another_process_finished_meanwhile_is_not_done_again(self, search, tmp_path, monkeypatch):
        search, out = replace(search, seeds=(0,)), tmp_path / "out.jsonl"
        run_sweep(search, out)
        whole, n_read = sweep_running.load_runs(out), []

        def late(path):
            n_read.append(path)
            return whole[:1] if len(n_read) == 1 else whole

        monkeypatch.setattr(sweep_running, "load_runs", late)
        monkeypatch.setattr(sweep_running, "train_organism", lambda *_, **__: pytest.fail("it was trained again"))
        assert run_sweep(search, out).runs == whole

    def test_a_training_that_diverges_is_a_line_that_says_so(self, folder, tmp_path):
        sweep = Sweep.load(written(folder, vary="learning_rate = [1e38, 0.01]", seeds="[0]"))
        result = run_sweep(sweep, tmp_path / "out.jsonl", keep=tmp_path / "kept")
        first, second = result.runs
        assert "diverged: at step" in first.failed
        assert first.effects == {}
        assert math.isnan(first.change(KEY).value)
        assert repr(first) == "SweepRun('search', learning_rate = 1e+38, seed 0, failed)"
        assert second.failed is None
        [kept] = (tmp_path / "kept").iterdir()
        assert load_organism(kept).adapter

    def test_weights_that_cannot_be_measured_are_a_line_too(self, search, tmp_path, monkeypatch):
        def broken(*_, **__):
            raise ValueError("the weights are absurd")

        monkeypatch.setattr(sweep_running, "load_organism", broken)
        result = run_sweep(replace(search, points=search.points[:1], seeds=(0,)), tmp_path / "out.jsonl")
        assert result.runs[0].failed == "it was trained and cannot be measured: the weights are absurd"
        assert result.runs[0].loss_last is not None

    def test_full_fine_tuning_is_measured_too(self, folder, tmp_path):
        sweep = Sweep.load(written(folder, vary='method = ["full"]', seeds="[0]"))
        [run] = run_sweep(sweep, tmp_path / "out.jsonl").runs
        assert run.change(KEY).value != 0

    def test_a_folder_is_not_a_file(self, search, tmp_path):
        with pytest.raises(ValueError, match="is a folder: name the file in it that the runs shall be written to"):
            run_sweep(search, tmp_path)


def test_results_are_read_back(folder, finished):
    _, result = finished
    assert SweepResult.load(folder / "all.jsonl") == result
