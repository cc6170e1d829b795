"""Results of experiments that lie in a folder."""

import pytest

from em_interp.elasticity import results_in
from em_interp.files import json_line
from tests import made_results


def test_all_results_are_found_experiment_by_experiment_and_nothing_else(tmp_path):
    made = [made_results.law(), made_results.rebound(), made_results.resistance(), made_results.realign()]
    for number, result in enumerate(made):
        made_results.written(result, tmp_path / f"{number}.jsonl")
    made_results.written(made_results.rebound(n_seeds=2), tmp_path / "also.jsonl")
    (tmp_path / "answers.jsonl").write_text(json_line({"question": "…"}))
    (tmp_path / "numbers.jsonl").write_text("[1]\n")
    (tmp_path / "words.jsonl").write_text("no JSON\n")
    (tmp_path / "empty.jsonl").write_text("")
    found = results_in(tmp_path)
    assert [r.kind for r in found] == ["resistance", "rebound", "rebound", "realign", "law"]
    assert [len(r.seeds) for r in found] == [3, 3, 2, 2, 2]
    assert found[-1].rows == made[0].rows
    assert results_in(tmp_path / "nowhere") == ()


def test_one_that_was_cut_off_is_refused(tmp_path):
    path = made_results.written(made_results.law(), tmp_path / "law.jsonl")
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=r"law\.jsonl, line 7"):
        results_in(tmp_path)
