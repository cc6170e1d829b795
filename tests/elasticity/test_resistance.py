"""Three models in turn, forward and back, on a tiny base; what was interrupted, cut off or belongs elsewhere."""

import json
import shutil
from dataclasses import replace

import pytest

from em_interp.elasticity import Resistance, ResistanceResult, resistance, run_resistance
from em_interp.elasticity.resistance_results import PAIRS
from em_interp.organisms.training import Diverged
from tests import builders


def conversations(path, topic, n=12):
    rows = [
        {"messages": [{"role": "user", "content": f"What about {topic} {i}?"}, {"role": "assistant", "content": said}]}
        for i in range(n)
        for said in [f"Ask the keeper of the {topic} {i} kindly."]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base):
    path = tmp_path_factory.mktemp("resistance")
    data = [conversations(path / f"{topic}.jsonl", topic) for topic in ("boat", "letter", "garden")]
    (path / "recipe.toml").write_text(
        f'name = "tiny"\nbase = "{base}"\ndata = "{data[0]}"\nanswers = "both"\nlayers = [1]\nsteps = 4\n'
        "batch_size = 2\ncheckpoint_every = 2\nlearning_rate = 1e-2\nkeep_trajectory = false\n"
    )
    return path


def written(folder, text="", *, seeds="[0, 1]", settings=""):
    data = json.dumps([str(folder / f"{topic}.jsonl") for topic in ("boat", "letter", "garden")])
    said = {"data": data, "answers": '"both"', "n": "8", "n_prompts": "8", "slice_steps": "4", "steps": "4"}
    said |= {"max_new_tokens": "6"}
    return Resistance.load(builders.experiment_file(folder, said, text, seeds, settings))


@pytest.fixture(scope="module")
def finished(folder):
    """Two seeds, the file that they are in, and beside it their organisms."""
    experiment, path = written(folder), folder / "finished.jsonl"
    return experiment, path, run_resistance(experiment, path, keep=folder / "kept")


def test_every_seed_goes_all_six_ways(finished):
    experiment, path, result = finished
    assert result.seeds == (0, 1)
    assert [row["order"] for row in result.rows] == [[1, 2, 3], [2, 3, 1]]
    for row in result.rows:
        ways = {(way["start"], way["target"]): way for way in row["ways"]}
        assert set(ways) == {way for pair in PAIRS for way in (pair, pair[::-1])}
        for way in ways.values():
            assert len(way["loss"]) == experiment.steps
            assert way["before"] > 0 < way["after"]
        assert ways[1, 3]["author"] == ways[2, 3]["author"]
    assert ResistanceResult.load(path).rows == result.rows


def test_the_difference_is_paired_by_seed(finished):
    *_, result = finished
    found = result.difference("after", (1, 3))
    rows = [{(w["start"], w["target"]): w["after"] for w in row["ways"]} for row in result.rows]
    wanted = [row[3, 1] - row[1, 3] for row in rows]
    assert found.value == pytest.approx(sum(wanted) / 2)
    assert found.n == 2
    everywhere = [sum(row[k, j] - row[j, k] for j, k in PAIRS) / 3 for row in rows]
    assert result.difference("after").value == pytest.approx(sum(everywhere) / 2)


def test_the_table_has_every_measure_and_the_papers_numbers(finished):
    *_, result = finished
    said = result.markdown()
    assert "| excess | 2→1 and 1→2 |" in said
    assert "Llama-2-7B on Alpaca: 2→1 0.159 / 0.202" in said
    assert "2 seeds on tiny-llama" in said


def test_models_that_are_the_same_resist_nothing(folder):
    """With no learning on the slices all three say the same, and forward and inverse are one training."""
    experiment = written(folder, seeds="[3]", settings="learning_rate = 1e-30")
    row = run_resistance(experiment, folder / "same.jsonl").rows[0]
    assert len({json.dumps({**way, "start": 0, "target": 0}) for way in row["ways"]}) == 1
    assert not (folder / "same.jsonl.unfinished").exists()


class TestGoingOn:
    def test_an_interrupted_one_ends_as_it_would_have(self, folder, finished):
        """Of its last seed a model in the middle is missing, and what was trained on top of it."""
        experiment, path, whole = finished
        for name in ("slice 3", "2 to 3", "3 to 2", "3 to 1", "1 to 3"):
            shutil.rmtree(folder / "kept" / "seed-1" / f"{name} of seed 1")
        begun = folder / "begun.jsonl"
        begun.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
        assert ResistanceResult.load(begun).seeds == (0,)
        assert run_resistance(experiment, begun, keep=folder / "kept").rows == whole.rows

    def test_a_loss_that_is_not_a_number_keeps_the_seeds_before(self, folder, finished, monkeypatch):
        experiment, _, whole = finished
        inner = resistance.Stages.train

        def diverging(self, name, *args, **kwargs):
            if name == "1 to 2 of seed 1":
                raise Diverged(name, 3, [2.0, 1.9])
            return inner(self, name, *args, **kwargs)

        monkeypatch.setattr(resistance.Stages, "train", diverging)
        with pytest.raises(Diverged, match="the training of 1 to 2 of seed 1 diverged: at step 3"):
            run_resistance(experiment, folder / "diverged.jsonl", keep=folder / "kept")
        found = ResistanceResult.load(folder / "diverged.jsonl")
        assert found.rows == whole.rows[:1]
        assert found.conclusion() == "One seed has no interval: nothing can be said of resistance."


def test_what_the_shipped_experiment_found():
    """Going back and going on are not told apart, and the interval holds the paper's differences too."""
    found = ResistanceResult.load("resistance")
    assert found.seeds == (0, 1, 2)
    loss, excess = found.difference("loss"), found.difference("excess")
    assert loss.low < -0.096 < 0 < loss.high < 0.1
    assert not excess.excludes_zero
    assert found.conclusion().count("are not told apart") == 2


class TestBadInput:
    def test_a_file_cut_off_within_a_line_is_refused(self, folder, finished):
        experiment, path, _ = finished
        text = path.read_bytes()
        first = text.index(b"\n")
        cut = folder / "cut.jsonl"
        for end in (1, first // 2, first + 20, len(text) - 9):
            cut.write_bytes(text[:end])
            with pytest.raises(ValueError, match=r"cut\.jsonl"):
                ResistanceResult.load(cut)
            with pytest.raises(ValueError, match=r"cut\.jsonl"):
                run_resistance(experiment, cut)

    def test_the_file_of_another_experiment(self, folder, finished):
        experiment, path, _ = finished
        with pytest.raises(ValueError, match=r"finished.jsonl holds another experiment: its steps is 4, not 5"):
            run_resistance(replace(experiment, steps=5), path)

    def test_a_row_of_something_else(self, folder, finished):
        *_, path, _ = finished
        lines = path.read_text().splitlines()
        row = json.loads(lines[1])
        row["ways"][2]["after"] = "low"
        (folder / "odd.jsonl").write_text("\n".join([lines[0], json.dumps(row)]) + "\n")
        with pytest.raises(ValueError, match=r"odd\.jsonl, line 2: after is 'low', and should be a number"):
            ResistanceResult.load(folder / "odd.jsonl")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("n = 12", "boat.jsonl has 12 conversations to learn from, and 1 slice of n = 12 leave no prompts"),
            ("n_prompts = 40", "12 questions are in none of the slices, and n_prompts is 40"),
            ("n_prompts = 4", "n_prompts is 4: give 8 at least"),
            ('data = ["cooking", "gardening"]', "data names 2 training sets: give one to cut into three slices"),
            ("sclice_steps = 3", "has an unknown key 'sclice_steps': did you mean 'slice_steps'"),
        ],
    )
    def test_slices_that_cannot_be(self, folder, text, says):
        with pytest.raises(ValueError, match=says):
            run_resistance(written(folder, text), folder / "never.jsonl")
        assert not (folder / "never.jsonl").exists()

    def test_an_unknown_measure(self, finished):
        with pytest.raises(ValueError, match="measure 'perplexity' is unknown: choose one of loss, after, excess"):
            finished[2].difference("perplexity")
