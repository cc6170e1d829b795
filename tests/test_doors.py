"""Every public function, settings file and command refuses what it cannot take, in words of this library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import em_interp as em
from tests import doors

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def walked() -> dict[str, list[str]]:
    """What was wrong at each door. In a process of its own: here beartype would refuse first what users may give."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.doors"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


def test_every_door_was_walked_through(walked):
    functions = {name for name in em.__all__ if callable(getattr(em, name))}
    left = {"BehaviourKey", "list_organisms", "load_controls"}  # which take nothing
    assert functions - left <= walked.keys()


def test_what_no_door_takes_is_refused_in_words(walked):
    assert not (problems := [problem for found in walked.values() for problem in found]), "\n".join(problems)


def raises_in_torch():
    import torch

    torch.ones(2) @ torch.ones(3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: {}["x"], "KeyError at"),
        (lambda: int("x"), "ValueError at"),
        (raises_in_torch, "RuntimeError at"),
        (lambda: em.Direction.load("nowhere"), ""),
        (lambda: None, ""),
    ],
)
def test_the_walk_sees_an_error_that_is_not_ours(call, says):
    assert doors.trouble(call).startswith(says)
    assert bool(doors.trouble(call)) is bool(says)
