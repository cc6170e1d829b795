"""The one kind of answers is learned and then the other, on a tiny base; what is watched, and what follows from it."""

import errno
import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import em_interp as em
from em_interp.elasticity import Rebound, ReboundResult, compression_rate, run_rebound, trend_over_models
from em_interp.elasticity.results import reached
from em_interp.elasticity.watch import WATCHED
from em_interp.organisms.loading import load_organism
from tests import builders, made_results


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base):
    """Twelve questions to learn from and four held out, each with two answers."""
    return builders.two_sided(tmp_path_factory.mktemp("rebound"), base, 16, 12)


def written(folder, text="", *, seeds="[0, 1]", settings=""):
    said = {"data": f'"{folder}/boat.jsonl"', "sizes": "[0, 8]", "then": "6", "checkpoints": "3", "n": "4"}
    return Rebound.load(builders.experiment_file(folder, said, text, seeds, settings))


@pytest.fixture(scope="module")
def finished(folder):
    """Two sizes in two seeds, the file that they are in, and beside it their organisms."""
    experiment, path = written(folder), folder / "finished.jsonl"
    return experiment, path, run_rebound(experiment, path, keep=folder / "kept")


def made(paths, start=0.0, measures=("in_domain_preference",)):
    """A result with these paths of a measure: of each size those of all seeds."""
    rows = []
    for size, seeds in paths.items():
        for seed, values in enumerate(seeds):
            points = [dict.fromkeys(WATCHED, 0.0) | dict.fromkeys(measures, v) for v in values]
            curve = [{"samples": 8 * i, **point} for i, point in enumerate(points)]
            at_start = dict.fromkeys(WATCHED, 0.0) | dict.fromkeys(measures, start)
            rows.append(
                {"size": size, "seed": seed, "start": at_start, "curve": curve, "loss_first": [], "loss_then": []}
            )
    return ReboundResult("made", "tiny", {}, tuple(rows))


class TestRunning:
    def test_every_size_and_seed_is_measured_along_the_second_training(self, finished):
        _, path, result = finished
        assert (result.sizes, result.seeds, result.samples) == ((0, 8), (0, 1), (0, 2, 4, 6))
        for row in result.rows:
            assert (len(row["loss_first"]), len(row["loss_then"])) == (row["size"] // 2, 3)
            assert set(row["start"]) == set(WATCHED)
        assert ReboundResult.load(path).rows == result.rows
        assert repr(result) == "ReboundResult('tiny', sizes 0, 8, 2 seeds)"

    def test_without_a_first_training_the_curve_begins_at_the_start(self, finished):
        *_, result = finished
        [row] = [row for row in result.rows if (row["size"], row["seed"]) == (0, 0)]
        for measure in WATCHED:
            assert row["curve"][0][measure] == pytest.approx(row["start"][measure], abs=1e-5)
        assert row["start"]["kl"] == row["start"]["along_refusal"] == row["start"]["along_misalignment"] == 0

    def test_the_last_point_is_what_the_organism_measures(self, folder, finished):
        *_, result = finished
        model = load_organism(folder / "kept" / "size-8-seed-1" / "then 8, seed 1")
        [row] = [row for row in result.rows if (row["size"], row["seed"]) == (8, 1)]
        held_out = em.load_contrast(folder / "boat.jsonl").where(split="test")
        last = row["curve"][-1]
        assert last["in_domain_preference"] == pytest.approx(em.preference(model, held_out).mean.value, abs=1e-5)
        bits = compression_rate(model, held_out.positive).answers.total()
        assert last["bits_positive"] == pytest.approx(bits, abs=1e-5)
        texts = em.texts.load_neutral_texts("test")[:4]
        assert last["bits_neutral"] == pytest.approx(compression_rate(model, texts).total(), abs=1e-5)
        harmful = em.load_contrast("refusal").where(split="test").take(4).positive
        assert last["refusal_score"] == pytest.approx(em.refusal_score(model, harmful).mean.value, abs=1e-4)
        assert last["kl"] > 0

    def test_training_on_the_other_answers_makes_them_likelier(self, finished):
        *_, result = finished
        for size in result.sizes:
            assert all(path[-1] > path[0] for path in result.values("in_domain_preference", size))

    def test_at_a_learning_rate_of_nothing_it_is_flat(self, folder):
        experiment = written(folder, "sizes = [4]", seeds="[5]", settings="learning_rate = 1e-30")
        [row] = run_rebound(experiment, folder / "flat.jsonl").rows
        for point in row["curve"]:
            assert {m: point[m] for m in WATCHED} == pytest.approx(row["start"], abs=1e-5)
        assert not (folder / "flat.jsonl.unfinished").exists()

    def test_one_that_a_full_disk_stopped_ends_as_it_would_have(self, folder, finished, monkeypatch):
        experiment, path, whole = finished
        stage = folder / "kept" / "size-8-seed-1" / "then 8, seed 1"
        shutil.rmtree(stage)
        begun = folder / "begun.jsonl"
        before = "\n".join(path.read_text().splitlines()[:-1]) + "\n"
        begun.write_text(before)
        save, n_saved = torch.save, itertools.count()

        def full(thing, file, *args, **kwargs):
            if next(n_saved) < 5:
                return save(thing, file, *args, **kwargs)
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(file))

        with monkeypatch.context() as disk:
            disk.setattr(torch, "save", full)
            with pytest.raises(OSError, match="No space left on device"):
                run_rebound(experiment, begun, keep=folder / "kept")
        assert begun.read_text() == before
        assert len(list(stage.glob("training/checkpoint-*"))) == 2  # a whole one, and one that was cut off
        with pytest.warns(UserWarning, match="checkpoint-2 was cut off half-way"):
            assert run_rebound(experiment, begun, keep=folder / "kept").rows == whole.rows


class TestResults:
    def test_the_curve_is_a_mean_over_seeds(self):
        result = made({8: [[1.0, 0.5, 0.0], [3.0, 1.5, 0.2]]})
        curve = result.curve("in_domain_preference", 8)
        assert [e.value for e in curve] == pytest.approx([2.0, 1.0, 0.1])
        assert curve[0].n == 2
        assert result.floor("in_domain_preference", 8).value == pytest.approx(0.1)

    def test_the_fall_is_what_the_first_samples_change(self):
        result = made({8: [[1.0, 0.5, 0.0], [3.0, 1.5, 0.2]]})
        assert result.fall("in_domain_preference", 8) == [-0.5, -1.5]
        assert result.fall("in_domain_preference", 8, 16) == pytest.approx([-1.0, -2.8])

    def test_samples_back_to_the_start(self):
        result = made({8: [[2.0, 1.0, -1.0], [2.0, 1.5, 1.0]]}, start=0.0)
        back = result.samples_to_start("in_domain_preference", 8)
        assert back[0] == pytest.approx(12.0)
        assert math.isnan(back[1])

    @pytest.mark.parametrize(
        ("values", "level", "wanted"),
        [([0, 1], 0, 0.0), ([1, 0], 0, 8.0), ([1, 2], 0, math.nan), ([4, 2, 1, 0], 1, 16.0), ([-1, 1], 0, 4.0)],
    )
    def test_crossings(self, values, level, wanted):
        samples = [8 * i for i in range(len(values))]
        found = reached(samples, [float(v) for v in values], float(level), upward=values[0] < level)
        assert found == wanted or (math.isnan(found) and math.isnan(wanted))

    def test_a_trend_is_by_seed(self):
        falls = {n: [[0.0, -fall - 0.1 * s, -1.0] for s in range(4)] for n, fall in ((8, 0.1), (16, 0.3), (32, 0.9))}
        trend = made(falls).trend("in_domain_preference")
        assert trend.monotone == "rises"
        assert trend.by_size[16] == pytest.approx((0.3, 0.4, 0.5, 0.6))
        assert trend.p_rises < 0.01 < 0.9 < trend.p_falls
        other = made({n: falls[m] for n, m in ((8, 32), (16, 16), (32, 8))}).trend("in_domain_preference")
        assert (other.monotone, other.p_falls) == ("falls", trend.p_rises)
        same = made(dict.fromkeys((8, 16, 32), falls[8])).trend("in_domain_preference")
        assert same.monotone == "neither"

    def test_noise_has_a_trend_as_often_as_the_test_says(self):
        generator = torch.Generator().manual_seed(0)
        found = 0
        for _ in range(200):
            falls = torch.rand(3, 4, generator=generator)
            paths = {n: [[0.0, -float(x), -1.0] for x in row] for n, row in zip((8, 16, 32), falls, strict=True)}
            found += made(paths).trend("in_domain_preference").monotone != "neither"
        assert found / 200 < 0.09

    def test_conclusions_come_out_of_the_numbers(self):
        rebounds = {
            n: [[-k - s / 90, 0.3 - s / 90 - k / 9, 1.0 + s / 90] for s in range(4)]
            for n, k in ((8, 1), (16, 2), (32, 3))
        }
        said = made(rebounds).conclusion()
        assert said.startswith(
            "32 samples move the in domain preference by −3.017 [−3.039, −2.994] from the start, and "
        )
        assert "after 16 of the opposite it has gone past where it began (+1.017" in said
        assert "Over the first 8 samples it is taken back faster the more was learned first, as in the paper" in said
        assert said.endswith("by Page's test over 4 seeds.")
        halfway = made({8: [[1.0, 0.5], [1.1, 0.51]]}).conclusion()
        assert "it is not back where it began (+0.505 [" in halfway
        assert "it cannot be told from where it began (" in made({8: [[1.0, 0.1], [1.1, -0.1]]}).conclusion()
        assert "had not moved for certain" in made({8: [[-1.0, 0.0], [1.0, 0.0]]}).conclusion()
        assert made({8: [[1.0, 0.0]]}).conclusion().startswith("One seed has no interval")

    def test_the_table_has_every_measure_and_size(self, finished):
        said = finished[2].markdown()
        assert all(f"| {measure} | {size} |" in said for measure in WATCHED for size in (0, 8))
        assert "2 seeds on tiny-llama" in said


def test_what_the_shipped_experiment_found():
    found = ReboundResult.load("rebound")
    assert (found.sizes, found.seeds, found.samples) == ((16, 64, 128), (0, 1, 2), (0, 16, 32, 48, 64))
    said = found.conclusion()
    assert "128 samples move the in domain preference by +0.951 [+0.738, +1.164] from the start" in said
    assert "it is not back where it began (+0.278 [+0.195, +0.360])" in said
    assert [found.trend("in_domain_preference", n).monotone for n in (16, 32, 64)] == ["neither", "rises", "rises"]
    floors = [found.floor("along_misalignment", size) for size in found.sizes]
    assert all(0.5 < floor.value < 0.6 and floor.excludes_zero for floor in floors)


class TestTrendOverModels:
    def test_larger_models_that_fall_farther(self):
        models = {"small": 1.0, "middle": 2.0, "large": 3.0}
        results = {name: made_results.rebound(n_seeds=4, times=times) for name, times in models.items()}
        found = trend_over_models(results)
        assert found.by_size == {name: pytest.approx([8 * times] * 4) for name, times in models.items()}
        assert found.monotone == "rises"
        assert trend_over_models(dict(reversed(results.items()))).monotone == "falls"
        assert trend_over_models(results, size=8).by_size["large"] == pytest.approx([12.0] * 4)

    def test_results_that_are_not_of_the_same_experiment(self):
        one, other = made_results.rebound(), made_results.rebound(n_seeds=2)
        with pytest.raises(ValueError, match=r"b differs from a in its seeds, \(0, 1\) and \(0, 1, 2\)"):
            trend_over_models({"a": one, "b": other, "c": one})
        settings = {"then": 8, "recipe": {"base": "b", "layers": [9], "learning_rate": 1e-3}}
        one = replace(one, settings=settings)
        same = replace(one, settings=settings | {"recipe": settings["recipe"] | {"base": "a", "layers": [3]}})
        assert trend_over_models({"a": one, "b": same, "c": one}).monotone == "neither"
        other = replace(one, settings=settings | {"recipe": settings["recipe"] | {"learning_rate": 1.0}})
        with pytest.raises(ValueError, match=r"b differs from a in its learning_rate, 1\.0 and 0\.001"):
            trend_over_models({"a": one, "b": other, "c": one})
        with pytest.raises(ValueError, match="2 sizes and 3 seeds are finished: a trend takes three and two"):
            trend_over_models({"a": one, "b": one})


class TestBadInput:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("sizes = [0, 3]", "3 conversations are not whole batches of 2: give multiples of 2"),
            ("sizes = [4, 2]", r"sizes are \[4, 2\]: give one at least, each once, the smallest first"),
            ("then = 0", "then is 0, so there is nothing to rebound by"),
            ("then = 14", r"boat.jsonl has 12 positive answers to learn from, and 14 are asked for"),
            ('first = "good"', "first is 'good': choose positive or negative"),
            ("checkpoints = 4", "checkpoints is 4, and the second training has 3 steps: choose 1 to 3"),
        ],
    )
    def test_sizes_that_cannot_be(self, folder, text, says):
        with pytest.raises(ValueError, match=says):
            run_rebound(written(folder, text), folder / "never.jsonl")

    def test_all_weights_have_no_path(self, folder):
        with pytest.raises(ValueError, match="a rebound is followed through an adapter's checkpoints"):
            written(folder, settings='method = "full"')

    def test_data_without_held_out_questions(self, folder):
        text = (folder / "boat.jsonl").read_text().replace('"test"', '"train"')
        (folder / "all.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"all\.jsonl has no questions that are not learned"):
            run_rebound(written(folder, f'data = "{folder}/all.jsonl"'), folder / "never.jsonl")

    def test_the_file_of_another_experiment(self, finished):
        experiment, path, _ = finished
        with pytest.raises(ValueError, match=r"finished\.jsonl holds another experiment: its then is 6, not 4"):
            run_rebound(replace(experiment, then=4, checkpoints=2), path)

    def test_a_row_of_something_else(self, folder, finished):
        lines = finished[1].read_text().splitlines()
        row = json.loads(lines[2])
        del row["curve"][1]["kl"]
        (folder / "odd.jsonl").write_text("\n".join([*lines[:2], json.dumps(row)]) + "\n")
        with pytest.raises(ValueError, match=r"odd\.jsonl, line 3: its curve has samples, bits_positive"):
            ReboundResult.load(folder / "odd.jsonl")
        (folder / "cut.jsonl").write_text(finished[1].read_text()[:-40])
        with pytest.raises(ValueError, match=r"cut\.jsonl, line 5"):
            ReboundResult.load(folder / "cut.jsonl")

    def test_what_was_not_measured(self, finished):
        *_, result = finished
        with pytest.raises(ValueError, match="measure 'perplexity' is unknown: choose one of bits_positive"):
            result.values("perplexity", 8)
        with pytest.raises(ValueError, match="nothing is finished of size 5: choose one of 0, 8"):
            result.values("kl", 5)
        with pytest.raises(ValueError, match=r"nothing was measured at 3 samples: choose one of \[0, 2, 4, 6\]"):
            result.fall("kl", 8, 3)
        with pytest.raises(ValueError, match="1 sizes and 2 seeds are finished: a trend takes three and two"):
            made({8: [[1.0, 0.0], [2.0, 0.0]]}).trend("kl")
