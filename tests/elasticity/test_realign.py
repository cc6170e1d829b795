"""Bad, good and bad again on a tiny base: what is left, what comes back, and what follows from it."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp.elasticity import Realign, RealignResult, run_realign
from em_interp.elasticity.realign import _retraced
from em_interp.elasticity.realign_results import DIRECTIONS, EXPOSURES, REALIGNED
from em_interp.elasticity.results import reached
from em_interp.elasticity.watch import WATCHED
from em_interp.organisms.loading import base_model, hooked_base, load_organism
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import Organism
from em_interp.organisms.trajectories import Trajectory
from tests import builders


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base):
    """Eight questions to learn from and four held out, each with two answers."""
    return builders.two_sided(tmp_path_factory.mktemp("realign"), base, 12, 8)


def written(folder, text="", *, seeds="[0, 1]", settings=""):
    said = {"data": f'"{folder}/boat.jsonl"', "bad": "6", "good": "4", "checkpoints": "1", "n": "6"}
    return Realign.load(builders.experiment_file(folder, said, text, seeds, settings))


@pytest.fixture(scope="module")
def finished(folder):
    """Two seeds, the file that they are in, and beside it their organisms."""
    experiment, path = written(folder), folder / "finished.jsonl"
    return experiment, path, run_realign(experiment, path, keep=folder / "kept")


def made(n_seeds=3, second=(0.5, 1.0, 1.5), twin=(0.0, 0.5, 1.0), cosine=0.9):
    """Seeds in which the first exposure goes from 0 to 1, all measures alike."""
    rows = []
    for seed in range(n_seeds):
        paths = {"first": (0.0, 0.5, 1.0), "second": second, "twin": twin}
        points = {
            name: [{"samples": 8 * i} | dict.fromkeys(WATCHED, v + seed / 90) for i, v in enumerate(values)]
            for name, values in paths.items()
        }
        direction = {"corrected": cosine and cosine - seed / 100, "low": 0.8, "high": 0.95, "null_b_low": -0.2}
        direction |= {"null_b_high": 0.2, "ceiling": 0.97, "share": 0.5}
        rows.append(
            {"seed": seed, "start": dict.fromkeys(WATCHED, 0.0), "exposures": points}
            | {"realigned": {name: dict.fromkeys(WATCHED, 0.1) for name in REALIGNED}}
            | {"directions": dict.fromkeys(DIRECTIONS, direction), "retraced": {"second": [0.9], "twin": [0.9]}}
        )
    return RealignResult("made", "tiny", {}, tuple(rows))


class TestRunning:
    def test_every_seed_has_three_exposures_and_five_directions(self, finished):
        _, path, result = finished
        assert (result.seeds, result.samples) == ((0, 1), (0, 6))
        for row in result.rows:
            assert set(row["exposures"]) == set(EXPOSURES)
            assert set(row["directions"]) == set(DIRECTIONS)
            assert [len(path) for path in row["retraced"].values()] == [3, 3]
        assert RealignResult.load(path).rows == result.rows
        assert repr(result) == "RealignResult('tiny', 2 seeds on tiny-llama)"

    def test_an_exposure_begins_where_the_training_before_it_ended(self, finished):
        *_, result = finished
        for row in result.rows:
            for exposure, before in (("second", "back"), ("twin", "twin back")):
                begun, ended = row["exposures"][exposure][0], row["realigned"][before]
                assert {m: begun[m] for m in WATCHED} == pytest.approx(ended, abs=1e-4)
            assert row["exposures"]["first"][0]["kl"] == pytest.approx(0, abs=1e-6)

    def test_what_was_added_is_taken_from_the_model_before(self, folder, finished):
        """The share of the first direction, by hand."""
        *_, result = finished
        kept, contrast = folder / "kept" / "seed-1", em.load_contrast("misalignment").where(split="train").take(12)
        names = ("first bad", "good", "second bad", "twin's good")
        models = {name: load_organism(kept / f"{name}, seed 1") for name in names}
        models["start"] = load_base(folder)
        vectors = {
            name: em.difference_of_means(em.read_contrast(model, contrast, span="response", layers=[2])).vectors[0]
            for name, model in models.items()
        }
        first = vectors["first bad"] - vectors["start"]
        added = vectors["second bad"] - vectors["good"]
        alone = vectors["twin's good"] - vectors["start"]
        [row] = [row for row in result.rows if row["seed"] == 1]
        for which, vector in (("added again", added), ("from good data alone", alone)):
            found = row["directions"][which]["share"]
            assert found == pytest.approx(float(vector @ first / (first @ first)), rel=1e-3)

    def test_retraced_is_the_cosine_of_two_updates(self, folder):
        first, recipe = random_trajectory(0), Recipe(name="x", data="cooking", steps=2)
        organisms = {name: Organism(folder, recipe, (1.0, 1.0), first) for name in EXPOSURES}
        assert _retraced(organisms)["second"] == pytest.approx([1.0, 1.0])
        organisms["twin"] = replace(organisms["twin"], trajectory=random_trajectory(1))
        b, a = (first.factors[f"layers.1.mlp.down_proj.{side}"] for side in "BA")
        b_other, a_other = (organisms["twin"].trajectory.factors[f"layers.1.mlp.down_proj.{side}"] for side in "BA")
        wanted = torch.cosine_similarity((b @ a).flatten(1), (b_other @ a_other).flatten(1))
        assert _retraced(organisms)["twin"] == pytest.approx(wanted[1:].tolist(), abs=1e-5)

    def test_an_interrupted_one_ends_as_it_would_have(self, folder, finished):
        experiment, path, whole = finished
        for name in ("second bad", "twin's bad"):
            shutil.rmtree(folder / "kept" / "seed-1" / f"{name}, seed 1")
        begun = folder / "begun.jsonl"
        begun.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
        assert run_realign(experiment, begun, keep=folder / "kept").rows == whole.rows


def random_trajectory(seed):
    generator = torch.Generator().manual_seed(seed)
    b, a = torch.randn(3, 8, 1, generator=generator), torch.randn(3, 1, 12, generator=generator)
    b[0] = 0
    factors = {"layers.1.mlp.down_proj.B": b, "layers.1.mlp.down_proj.A": a}
    return Trajectory(torch.tensor([0, 1, 2]), factors, torch.ones(2), torch.ones(2), {})


def load_base(folder):
    recipe = Recipe.load(folder / "recipe.toml")
    return hooked_base(base_model(recipe.base, None), {})


class TestResults:
    def test_samples_to_a_share_of_the_first_way(self):
        result = made(second=(0.25, 0.75, 1.0))
        assert result.samples_to("first") == pytest.approx([8.0] * 3)
        assert result.samples_to("second") == pytest.approx([4.0] * 3)
        assert result.samples_to("second", share=1.0) == pytest.approx([16.0] * 3)

    @pytest.mark.parametrize(
        ("values", "level", "upward", "wanted"),
        [
            ([0, 1], 0.25, True, 2.0),
            ([1, 0], 0.25, False, 6.0),
            ([1, 2], 0.5, True, 0.0),
            ([0, 1], 2.0, True, math.nan),
        ],
    )
    def test_reaching_a_level(self, values, level, upward, wanted):
        found = reached([0, 8], [float(v) for v in values], level, upward=upward)
        assert found == wanted or (math.isnan(found) and math.isnan(wanted))

    def test_priming_is_paired_by_seed(self):
        found = made(second=(0.25, 0.75, 1.0)).priming()
        assert (found.value, found.n) == (pytest.approx(-4.0), 3)
        assert made(second=(0.0, 0.1, 0.2)).priming() is None

    def test_conclusions_come_out_of_the_numbers(self):
        said = made(second=(0.25, 0.75, 1.0)).conclusion()
        assert "What is left of it after good data has a cosine of +0.89 [+0.87, +0.91] with it, +0.50" in said
        assert "The second exposure is faster than the twin's first: −4.0" in said
        assert "is slower than the twin's first: +8.0" in made(second=(0.0, 0.25, 0.5)).conclusion()
        assert "no direction to compare for what is left of it" in made(cosine=None).conclusion()
        assert "does not come half the way" in made(second=(0.0, 0.1, 0.2)).conclusion()
        assert made(1).conclusion().startswith("One seed has no interval")

    def test_the_re_aligned_model_against_the_twin_with_good_data_alone(self):
        result = made()
        assert result.apart().value == result.apart("kl").value == 0
        for seed, row in enumerate(result.rows):
            row["directions"]["left"] = row["directions"]["left"] | {"share": 0.8 + seed / 100}
            row["realigned"]["back"] = dict.fromkeys(WATCHED, 0.05 + seed / 10)
        assert result.apart().value == pytest.approx(0.31)
        assert result.apart("kl").value == pytest.approx(0.05)
        said = result.conclusion()
        assert "By that direction the re-aligned model can be told from the twin" in said
        assert "By preference the re-aligned model cannot be told from the twin" in said
        result.rows[0]["directions"]["left"]["share"] = None
        assert result.apart() is None
        assert "By that direction" not in result.conclusion()

    def test_the_table_has_every_direction_seed_and_measure(self, finished):
        said = finished[2].markdown()
        assert said.count("| what is left of it after good data |") == 2
        assert all(f"| {measure} |" in said for measure in WATCHED)


def test_what_the_shipped_experiment_found():
    """What notebook 7 says of it: brought back, it cannot be told from a model that had the good data alone."""
    found = RealignResult.load("realign")
    assert (found.seeds, found.samples) == ((0, 1, 2), (0, 16, 32, 48, 64))
    for which, low in (("left", 0.7), ("from good data alone", 0.5), ("returned", 0.8)):
        direction = found.direction(which)
        assert low < direction.low < direction.value < 0.95
        assert all(row["directions"][which]["low"] > 0.5 for row in found.rows)
    assert not found.apart().excludes_zero
    assert not found.apart("in_domain_preference").excludes_zero
    assert found.realigned("refusal_score").high < -3
    assert not found.priming().excludes_zero
    assert "The second exposure is neither faster nor slower for certain" in found.conclusion()
    ends = [row["retraced"]["second"][-1] for row in found.rows]
    assert sum(abs(end) < 0.1 for end in ends) == 2


class TestBadInput:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("bad = 3", "bad is 3, not whole batches of 2: give a multiple of 2"),
            ("good = 0", "good is 0, not whole batches of 2"),
            ("bad = 10", r"boat.jsonl has 8 positive answers to learn from, and 10 are asked for"),
            ("checkpoints = 4", "checkpoints is 4, and an exposure has 3 steps: choose 1 to 3"),
            ("n = 3", "n is 3: give 6 at least"),
        ],
    )
    def test_amounts_that_cannot_be(self, folder, text, says):
        with pytest.raises(ValueError, match=says):
            run_realign(written(folder, text), folder / "never.jsonl")

    def test_the_file_of_another_experiment(self, finished):
        experiment, path, _ = finished
        with pytest.raises(ValueError, match=r"finished\.jsonl holds another experiment: its good is 4, not 6"):
            run_realign(replace(experiment, good=6), path)

    def test_a_row_of_something_else(self, folder, finished):
        lines = finished[1].read_text().splitlines()
        row = json.loads(lines[1])
        del row["exposures"]["twin"]
        (folder / "odd.jsonl").write_text("\n".join([lines[0], json.dumps(row)]) + "\n")
        with pytest.raises(ValueError, match=r"odd\.jsonl, line 2: its exposures are first, second, and should be"):
            RealignResult.load(folder / "odd.jsonl")

    def test_what_was_not_measured(self, finished):
        *_, result = finished
        with pytest.raises(ValueError, match="exposure 'third' is unknown: choose one of first, second, twin"):
            result.curve("kl", "third")
        with pytest.raises(ValueError, match="direction 'gone' is unknown: choose one of left"):
            result.direction("gone")
        with pytest.raises(ValueError, match="share is 2: give a share of the way"):
            result.samples_to("second", share=2)
