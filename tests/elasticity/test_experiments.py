"""What all experiments have in common: those that ship, and their files of results."""

import json
import re
from pathlib import Path

import pytest

from em_interp import elasticity
from em_interp.elasticity.experiments import Stages, shipped
from em_interp.elasticity.found import RESULTS

KINDS = ("resistance", "rebound", "realign", "law")


class Stopped(Exception):
    """No model is loaded."""


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in shipped(kind)])
def test_shipped_experiments_have_the_data_that_they_ask_for(tmp_path, monkeypatch, kind, name):
    experiment = getattr(elasticity, kind.capitalize()).load(name)
    assert experiment.name == name
    assert len(experiment.seeds) >= 3

    def stop(*args, **kwargs):
        raise Stopped

    monkeypatch.setattr(Stages, "load", stop)
    monkeypatch.setattr(Stages, "train", stop)
    with pytest.raises(Stopped):
        getattr(elasticity, f"run_{kind}")(experiment, tmp_path / "never.jsonl")
    assert not (tmp_path / "never.jsonl").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_and_a_full_one_of_each_kind_ship(kind):
    assert shipped(kind) == [kind, f"{kind}-full"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_results_that_ship_are_those_of_the_experiment_that_ships(kind):
    experiment, result = getattr(elasticity, kind.capitalize()).load(kind), RESULTS[kind].load(kind)
    assert json.loads(json.dumps(experiment.settings())) == result.settings
    assert result.seeds == experiment.seeds


def test_the_experiment_on_its_page_can_be_run(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "elasticity.md").read_text(encoding="utf-8")
    [written] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(written)
    experiment = elasticity.Rebound.load(path)
    assert experiment.recipe.base == "Qwen/Qwen2.5-0.5B-Instruct"
    assert (experiment.recipe.batch_size, experiment.sizes) == (2, (16, 64, 128))
