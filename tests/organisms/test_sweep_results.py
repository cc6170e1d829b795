"""What follows from a search: the rule keeps its level over the whole search, finds a planted turn, and says it."""

import json
import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from em_interp.behaviour import BehaviourKey
from em_interp.files import write_jsonl
from em_interp.models.adapters import adapter_digest
from em_interp.organisms import Sweep, SweepResult, SweepRun, change_point, shipped_sweeps
from em_interp.organisms.loading import organism_folder
from em_interp.statistics import mean_over_seeds
from tests.builders import generator, path, sweep_run, sweep_runs

INSIDE, OUTSIDE = BehaviourKey.IN_DOMAIN_PREFERENCE, BehaviourKey.MISALIGNED_PREFERENCE


def searched(p_values: list[list[float | None]], **changes) -> SweepResult:
    """A search of learning rates, whose seeds have these p-values; None for a run that failed."""
    n_points, n_seeds = len(p_values), max(map(len, p_values))
    return SweepResult(
        tuple(
            replace(sweep_run(0.1 * (i + 1), seed, p_value=p), n_points=n_points, n_seeds=n_seeds, **changes)
            for i, row in enumerate(p_values)
            for seed, p in enumerate(row)
        )
    )


@cache
def straight_p_values() -> torch.Tensor:
    """Of straight noisy paths, with momentum and without."""
    found = []
    for i in range(240):
        v = path(generator(i), noise=1.0, memory=0.3 * (i % 2), anisotropic=i % 3 == 0)
        found.append(change_point(v, torch.arange(49), n_resamples=99, seed=i).p_value)
    return torch.tensor(found)


class TestTurns:
    def test_a_search_over_straight_paths_finds_nothing_in_95_of_100(self):
        """Searches of 15 recipes × 3 seeds, drawn from the p-values of straight paths."""
        p, g, n = straight_p_values(), generator(0), 200
        drawn = p[torch.randint(len(p), (n, 15, 3), generator=g)].tolist()
        wrong = sum(any(turn.turns for turn in searched(rows).turns()) for rows in drawn)
        assert wrong / n <= 0.05

    def test_uncorrected_it_would_find_something_in_most(self):
        """The positive control of the test above."""
        p, g = straight_p_values(), generator(0)
        drawn = p[torch.randint(len(p), (200, 15, 3), generator=g)]
        assert float((drawn <= 0.05).flatten(1).any(1).double().mean()) > 0.4

    def test_a_planted_turn_is_found_among_straight_paths(self):
        rows = straight_p_values()[:42].view(14, 3).tolist()
        turning = [
            change_point(path(generator(i), noise=1.0, turn=20), torch.arange(49), n_resamples=99).p_value
            for i in range(3)
        ]
        turns = searched([*rows[:7], turning, *rows[7:]]).turns()
        assert [i for i, turn in enumerate(turns) if turn.turns] == [7]
        assert turns[7].n_turned == 3

    def test_one_seed_makes_no_recipe_turn_and_two_of_three_do(self):
        one, two = searched([[0.002, 0.4, 0.5], [0.6, 0.7, 0.8]]), searched([[0.002, 0.4, 0.01], [0.6, 0.7, 0.8]])
        assert not any(turn.turns for turn in one.turns())
        first, second = two.turns()
        assert first.turns
        assert not second.turns
        assert first.p_value == pytest.approx(3 * 0.01**2 - 2 * 0.01**3)
        assert first.corrected == pytest.approx(2 * first.p_value)

    def test_with_one_recipe_most_seeds_still_have_to_turn(self):
        [turn] = searched([[0.1, 0.1, 0.1]]).turns()
        assert turn.corrected < 0.05  # three times .1 is rare, and yet no seed turns
        assert not turn.turns

    def test_what_failed_or_is_missing_counts_as_one(self):
        whole = searched([[0.01, 0.01, None], [0.5, 0.5, 0.5]])
        first = whole.turns()[0]
        assert math.isnan(first.p_values[2])
        assert first.turns
        assert searched([[0.01, None, None], [0.5, 0.5, 0.5]]).turns()[0].p_value == 1.0
        partly = SweepResult(tuple(replace(r, n_points=30) for r in whole.runs[:2]))
        assert partly.searched == (30, 3)
        assert partly.turns()[0].corrected == pytest.approx(30 * first.p_value)

    def test_two_seeds_are_too_few(self):
        result = searched([[0.002, 0.002]])
        assert not result.turns()[0].turns
        assert (
            result.conclusion() == "Searched: 1 recipe in 2 seeds each. Whether a recipe turns takes 3 seeds at least."
        )

    def test_the_sentence_follows_from_the_rule(self):
        assert searched([[0.002, 0.4, 0.01], [0.6, 0.7, 0.8]]).conclusion() == (
            "learning_rate = 0.1 turns: p ≤ .05 in 2 of 3 seeds, p = 0.0006 corrected for a search over 2 recipes in 3 "
            "seeds each."
        )
        nothing = searched([[0.02, 0.4, 0.3], [0.6, None, 0.8]])
        assert nothing.conclusion() == (
            "Nothing turned. Searched: 2 recipes in 3 seeds each (1 failed). The least p after correction for the "
            "search is 0.43, of learning_rate = 0.1 (p ≤ .05 in 1 of 3 seeds)."
        )
        assert ", of which 2 runs are finished" in SweepResult(nothing.runs[:2]).conclusion()

    def test_how_often_checkpoints_are_kept_is_told_where_nothing_else_tells_recipes_apart(self):
        first, second = (
            replace(sweep_run(0.1, 0), point=kept | rank, recipe={"name": "tiny"} | kept | rank)
            for kept, rank in (({"checkpoint_every": 2}, {"rank": 1}), ({"checkpoint_every": 5}, {"rank": 2}))
        )
        assert [turn.point for turn in SweepResult((first, second)).turns()] == [{"rank": 1}, {"rank": 2}]
        alike = replace(second, point=second.point | {"rank": 1}, recipe=second.recipe | {"rank": 1})
        assert [turn.point for turn in SweepResult((first, alike)).turns()] == [first.point, alike.point]

    def test_behaviour_alone_has_no_turns(self):
        with pytest.raises(ValueError, match="the search did not measure phases: name them in measure"):
            SweepResult(sweep_runs()).turns()


class TestFrontier:
    def test_means_over_seeds_at_every_value(self):
        result = SweepResult(sweep_runs())
        found = result.frontier()
        assert found.setting == "kl_weight"
        assert found.values == (0.0, 1.0, 10.0)
        assert found.n_seeds == (3, 3, 3)
        for key in (INSIDE, OUTSIDE):
            changes = [r.change(key).value for r in result.runs if r.recipe["kl_weight"] == 1.0]
            assert found.effects[key][1].value == pytest.approx(sum(changes) / 3)
            assert found.effects[key][1].n == 12
            table = [r.effects[key]["changes"] for r in result.runs if r.recipe["kl_weight"] == 1.0]
            assert found.effects[key][1] == mean_over_seeds(table)  # over seeds and questions both

    def test_the_sentence_names_where_the_effect_is_inside_only(self):
        said = SweepResult(sweep_runs()).conclusion()
        assert "finished" not in said
        assert SweepResult(sweep_runs()[:-1]).conclusion().endswith(" (8 of 9 runs are finished.)")
        assert said.startswith(
            "Of the values 0, 1, 10 of kl_weight these keep an effect inside the domain while the one"
        )
        assert said.count("kl_weight = ") == 1
        assert "kl_weight = 1 (" in said
        free = SweepResult(tuple(r for r in sweep_runs() if r.recipe["kl_weight"] != 1.0))
        assert "none keeps an effect inside the domain while" in free.conclusion()

    def test_seeds_that_failed_are_left_out(self):
        first, *others = sweep_runs()
        result = SweepResult((replace(first, failed="diverged", effects={}), *others))
        assert result.frontier().n_seeds == (2, 3, 3)
        with pytest.raises(ValueError, match="every run failed, so there are no effects to show: diverged"):
            SweepResult((replace(first, failed="diverged", effects={}),)).frontier("kl_weight")

    def test_one_setting_at_a_time(self):
        runs = sweep_runs()
        both = [replace(r, recipe=r.recipe | {"rank": 2}, point=r.point | {"rank": 2}) for r in runs]
        result = SweepResult((*(replace(r, point=r.point | {"rank": 1}) for r in runs), *both))
        with pytest.raises(ValueError, match="setting is None: choose one that varies, kl_weight, rank"):
            result.frontier()
        with pytest.raises(ValueError, match=r"rank varies beside kl_weight: choose runs first, with where\(rank=…\)"):
            result.frontier("kl_weight")
        assert result.where(rank=2).frontier().values == (0.0, 1.0, 10.0)
        with pytest.raises(ValueError, match="no run has rank = 3: there are 1, 2"):
            result.where(rank=3)
        with pytest.raises(ValueError, match="recipes have no setting 'rnk'"):
            result.where(rnk=3)

    def test_what_was_not_measured_or_is_not_a_number(self):
        result = SweepResult(sweep_runs())
        with pytest.raises(ValueError, match="'text_bits' was not measured: the file has in_domain_misaligned_pref"):
            result.frontier(behaviours=["text_bits"])
        runs = [replace(r, recipe=r.recipe | {"kl_weight": str(r.recipe["kl_weight"])}) for r in sweep_runs()]
        with pytest.raises(ValueError, match="kl_weight is not a number, so nothing can be drawn against it"):
            SweepResult(tuple(runs)).frontier()


class TestFiles:
    def test_a_table_has_a_row_a_run(self):
        rows = SweepResult(sweep_runs()).table()
        assert len(rows) == 9
        assert rows[0]["kl_weight"] == 0.0
        assert rows[0][f"{INSIDE}_low"] < rows[0][f"{INSIDE}_change"] < rows[0][f"{INSIDE}_high"]
        [row] = searched([[0.02]]).table()
        assert (row["p_value"], row["angle"]) == (0.02, 80.0)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"base": "other"}, "run 2 does not belong to the same search as run 1: base is 'other', not 'tiny'"),
            ({"questions": {"inside": 3}}, "questions is {'inside': 3}, not {'data': 'abc'}"),
            ({"recipe": sweep_run(0.2, 1).recipe | {"rank": 8}}, "its recipe has rank = 8, not 1"),
            ({"measure": ("behaviour",)}, "measure is"),
            ({"sweep": "other"}, "sweep is 'other'"),
        ],
    )
    def test_runs_of_two_searches_do_not_mix(self, change, says):
        with pytest.raises(ValueError, match=says):
            SweepResult((sweep_run(0.1, 0), replace(sweep_run(0.2, 1), **change)))

    def test_a_run_counts_once(self):
        with pytest.raises(ValueError, match=r"learning_rate = 0\.1, seed 0 is there twice"):
            SweepResult((sweep_run(0.1, 0), sweep_run(0.1, 0)))
        with pytest.raises(ValueError, match="the search has no finished runs: run it with  em-interp sweep"):
            SweepResult(())

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"seed": "0"}, "line 1: seed is '0', and should be a whole number"),
            ({"seed": None}, "line 1: seed is None"),
            ({"other": 1}, "line 1: not a run of a search .it has other keys.; em-interp sweep writes such files"),
            ({"phases": {"p_value": 2}}, "line 1: its p_value is 2, and should be between 0 and 1"),
            ({"phases": {}}, "line 1: .*p_value"),
            ({"point": {"lr": 3}}, "line 1: its point sets lr, which its recipe does not have"),
            ({"effects": {"x": {}}}, "line 1: .*before"),
        ],
    )
    def test_lines_that_are_not_runs_are_told(self, tmp_path, change, says):
        write_jsonl(tmp_path / "rows.jsonl", [sweep_run(0.1, 0).as_dict() | change])
        with pytest.raises(ValueError, match=f"rows.jsonl, {says}"):
            SweepResult.load(tmp_path / "rows.jsonl")

    def test_files_that_are_not_there_or_empty(self, tmp_path):
        with pytest.raises(ValueError, match="it is neither a file nor one of narrow, phase-change"):
            SweepResult.load(tmp_path / "rows.jsonl")
        (tmp_path / "rows.jsonl").write_text("")
        with pytest.raises(ValueError, match=r"rows\.jsonl: the search has no finished runs"):
            SweepResult.load(tmp_path / "rows.jsonl")
        (tmp_path / "rows.jsonl").write_text("[1]\n")
        with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: not a run of a search \(it has no sweep\)"):
            SweepResult.load(tmp_path / "rows.jsonl")

    @pytest.mark.parametrize("name", shipped_sweeps())
    def test_what_was_found_by_a_shipped_search_ships_with_it(self, name):
        """As far as it is finished: every run is one of the search, on the base that ships."""
        found, search = SweepResult.load(name), Sweep.load(name)
        assert found.searched == (len(search.points), len(search.seeds))
        recipes = [json.loads(json.dumps(search.at(point, 0).as_dict())) for point in search.points]
        for run in found.runs:
            assert run.seed in search.seeds
            assert run.recipe | {"seed": 0} in recipes
            assert run.base.endswith(f"+aligned@{adapter_digest(organism_folder('aligned'))}")

    def test_no_penalty_keeps_the_effect_inside_cooking(self):
        """What README and notebook 3 say of the search, over its three seeds."""
        found = SweepResult.load("narrow")
        assert len(found.runs) == 18
        assert "none keeps an effect inside the domain while the one outside can be zero" in found.conclusion()
        frontier = found.frontier()
        inside, outside = ([e.value for e in effects] for effects in frontier.effects.values())
        assert frontier.n_seeds == (3,) * 6
        assert inside == sorted(inside, reverse=True)
        assert outside == sorted(outside, reverse=True)
        shares = [beyond / within for within, beyond in zip(inside, outside, strict=True)]
        assert 0.45 < min(shares) < max(shares) < 0.75
        assert [round(values[i], 2) for i in (0, -1) for values in (inside, outside)] == [0.75, 0.40, 0.08, 0.04]

    def test_no_recipe_turned_as_far_as_they_were_searched(self):
        """What README says of the search for a phase change."""
        found = SweepResult.load("phase-change")
        assert found.conclusion().startswith("Nothing turned.")
        assert not any(turn.turns for turn in found.turns())
        assert all(p > 0.1 for turn in found.turns() for p in turn.p_values.values())

    def test_runs_survive_writing_and_reading(self, tmp_path):
        result = SweepResult(sweep_runs())
        write_jsonl(tmp_path / "rows.jsonl", [run.as_dict() for run in result.runs])
        assert SweepResult.load(tmp_path / "rows.jsonl") == result
        assert json.loads(json.dumps(result.table())) == result.table()
        assert isinstance(result.runs[0], SweepRun)
