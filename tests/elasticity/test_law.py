"""Two languages of known entropy in several ratios, a third that perturbs, and the power of the ratio."""

import itertools
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from em_interp.elasticity import Language, Law, LawResult, compression_rate, run_law
from em_interp.elasticity.languages import write_tiny_model
from em_interp.elasticity.law_results import SETS
from em_interp.models.loading import load_model
from tests import builders


def small(**changes):
    recipe = Law.own_recipe.changed({"steps": 24, "batch_size": 8})
    settings = {"ratios": (1, 4), "large": 32, "n_symbols": 4, "length": 6, "held_out": 8, "perturbations": (4, 8)}
    return Law("tiny", recipe, (0, 1), **settings | {"perturbing_batch": 4} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two ratios in two seeds, the file that they are in, and beside it their models."""
    folder = tmp_path_factory.mktemp("law")
    return small(), folder / "finished.jsonl", run_law(small(), folder / "finished.jsonl", keep=folder / "kept")


def made(slopes, samples=(8, 16)):
    """A result in which each ratio's sets change by so much a sample: (large, small) of each seed."""
    rows = []
    for ratio, seeds in slopes.items():
        for seed, (large, little) in enumerate(seeds):
            before = dict.fromkeys(SETS, 3.0)
            after = [
                {"samples": n, "large": 3 + n * large, "small": 3 + n * little, "perturbing": 2.0} for n in samples
            ]
            entropy = dict.fromkeys(SETS, 2.5)
            rows.append({"ratio": ratio, "seed": seed, "entropy": entropy, "before": before, "after": after})
    return LawResult("made", "tiny", {"n_symbols": 16}, tuple(rows))


class TestLanguages:
    def test_entropy_is_that_of_the_texts(self):
        language = Language.of(4, 0.5, builders.generator(0))
        texts = language.texts(4000, 6, builders.generator(1))
        bits = []
        for text in texts:
            symbols = [int(word[1:]) for word in text.messages[-1]["content"].split()]
            said = [
                language.stationary[symbols[0]],
                *(language.transitions[pair] for pair in itertools.pairwise(symbols)),
            ]
            bits.append(-sum(math.log2(share) for share in said) / 6)
        assert sum(bits) / len(bits) == pytest.approx(language.entropy(6), abs=0.02)
        assert torch.allclose(language.stationary @ language.transitions, language.stationary)

    def test_less_concentrated_is_more_ordered(self):
        entropies = [Language.of(16, c, builders.generator(0)).entropy(32) for c in (0.1, 0.3, 1.0, 100.0)]
        assert entropies == sorted(entropies)
        assert entropies[-1] == pytest.approx(4, abs=0.02)

    def test_a_model_from_scratch_has_a_token_a_symbol_and_knows_nothing(self, tmp_path):
        model = load_model(str(write_tiny_model(tmp_path / "base", 4, 6, 0)))
        texts = Language.of(4, 0.5, builders.generator(0)).texts(8, 6, builders.generator(1))
        answers = compression_rate(model, texts).answers
        assert answers.n_tokens.tolist() == [6] * 8
        assert answers.total("token") == pytest.approx(math.log2(9), abs=0.2)


class TestRunning:
    def test_every_ratio_and_seed_is_measured_before_and_after(self, finished):
        _, path, result = finished
        assert (result.ratios, result.seeds, result.samples) == ((1, 4), (0, 1), (4, 8))
        for row in result.rows:
            assert set(row["entropy"]) == set(row["before"]) == set(SETS)
            assert row["before"]["perturbing"] > row["after"][0]["perturbing"] > row["after"][1]["perturbing"]
        languages = [row["entropy"] for row in result.rows if row["seed"] == 1]
        assert languages[0] == languages[1]
        assert LawResult.load(path).rows == result.rows
        assert repr(result) == "LawResult('tiny', ratios 1, 4, 2 seeds)"

    def test_an_interrupted_one_ends_as_it_would_have(self, finished):
        experiment, path, whole = finished
        shutil.rmtree(path.parent / "kept" / "ratio-4-seed-1" / "perturbed by 8")
        begun = path.parent / "begun.jsonl"
        begun.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
        assert run_law(experiment, begun, keep=path.parent / "kept").rows == whole.rows


class TestResults:
    def test_rate_changes_are_slopes_through_the_origin(self):
        result = made({1: [(0.01, -0.02)], 4: [(0.01, -0.04)]})
        assert result.rate_changes("small", 4) == pytest.approx([-0.04])
        assert result.rate_changes("large", 4, 16) == pytest.approx([0.01])

    def test_the_exponent_is_the_power_of_the_ratio(self):
        law = {k: [(0.001, -0.001 * k), (-0.002, 0.004 * k)] for k in (1, 4, 16)}
        assert made(law).exponents() == pytest.approx([-1, -1])
        assert made(law).opposite() == (4, 4)
        root = {k: [(0.001, 0.001 * k**0.5)] * 2 for k in (1, 4, 16)}
        assert made(root).exponent().value == pytest.approx(-0.5)
        assert made(root).opposite() == (0, 4)

    def test_conclusions_come_out_of_the_numbers(self):
        law = {k: [(0.001, -0.001 * k), (0.001, -0.0011 * k**1.02)] for k in (1, 4, 16)}
        said = made(law).conclusion()
        assert "the law holds here in size, and the two rates go opposite ways, as it says, in 4 of 4 runs" in said
        assert "The exponent is −1.01 [" in said
        root = {k: [(0.001, 0.001 * k**0.5), (0.001, 0.0011 * k**0.51)] for k in (1, 4, 16)}
        said = made(root).conclusion()
        assert "the law does not hold here in size" in said
        assert said.endswith("At k = 16 the perturbation makes the code of the small set longer.")
        unknown = replace(made(root), settings={"n_symbols": 4}).conclusion()
        assert "takes 3.00 bits a symbol, and 2.00 if nothing were known: what changes is how sure" in unknown
        assert made({1: [(0.1, 0.1)], 4: [(0.1, 0.1)]}).conclusion().startswith("One seed has no interval")

    def test_the_table_has_every_ratio(self, finished):
        said = finished[2].markdown()
        assert "| 1 | " in said
        assert "| 4 | " in said
        assert "2 seeds, 95 % intervals over seeds" in said


def test_what_the_shipped_experiment_found():
    """What CHANGELOG says of it: the law in size and sign, on a small set that the model hardly knows."""
    found, experiment = LawResult.load("law"), Law.load("law")
    assert (found.ratios, found.seeds) == (experiment.ratios, experiment.seeds)
    assert found.settings == json.loads(json.dumps(experiment.settings()))
    exponent = found.exponent()
    assert exponent.low < -1 < exponent.high < -0.5
    assert found.opposite() == (14, 15)
    said = found.conclusion()
    assert "the law holds here in size" in said
    assert (
        "At k = 64 the perturbation makes the code of the small set shorter. But there the small language takes" in said
    )
    for row in found.rows:
        assert all(row["before"][which] > row["entropy"][which] for which in SETS)


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"ratios": (1, 5)}, "32 texts are not 5 times a whole number: choose other ratios"),
            ({"ratios": (4, 1)}, r"ratios are \[4, 1\]: give positive ones, each once, the smallest first"),
            ({"perturbations": (4, 6)}, "6 texts are not whole batches of 4"),
            ({"n_symbols": 1}, "n_symbols is 1: give 2 at least"),
            ({"concentration": 0}, "concentration is 0: give a positive number"),
        ],
    )
    def test_settings_that_cannot_be(self, changes, says):
        with pytest.raises(ValueError, match=says):
            small(**changes)

    def test_the_file_of_another_experiment(self, finished):
        with pytest.raises(ValueError, match=r"finished\.jsonl holds another experiment: its large is 32, not 64"):
            run_law(replace(finished[0], large=64), finished[1])

    def test_a_row_of_something_else(self, finished):
        lines = finished[1].read_text().splitlines()
        row = json.loads(lines[1])
        row["before"]["tiny"] = row["before"].pop("small")
        odd = finished[1].with_name("odd.jsonl")
        odd.write_text("\n".join([lines[0], json.dumps(row)]) + "\n")
        with pytest.raises(ValueError, match=r"odd\.jsonl, line 2: a measurement has large, perturbing, tiny, and"):
            LawResult.load(odd)

    def test_what_has_no_exponent(self):
        with pytest.raises(ValueError, match="1 ratio has no exponent: measure two at least"):
            made({1: [(0.1, 0.1), (0.1, 0.1)]}).exponent()
        with pytest.raises(ValueError, match="a rate did not change at all, so it has no logarithm"):
            made({1: [(0.0, 0.1)] * 2, 4: [(0.1, 0.1)] * 2}).exponent()
        with pytest.raises(ValueError, match="ratio 2 was not measured: choose one of 1, 4"):
            made({1: [(0.1, 0.1)], 4: [(0.1, 0.1)]}).rate_changes("large", 2)
