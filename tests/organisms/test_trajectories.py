"""Trajectories: written and read back, and refused where they are none."""

import pytest
import torch

from em_interp.organisms.trajectories import Trajectory

HALF_AND_WHOLE = (("whole.safetensors", torch.float32), ("half.safetensors", torch.float16))


@pytest.fixture
def trajectory():
    g = torch.Generator().manual_seed(0)
    factors = {
        "layers.1.mlp.down_proj.A": torch.randn(4, 2, 6, generator=g),
        "layers.1.mlp.down_proj.B": torch.randn(4, 5, 2, generator=g),
        "layers.2.mlp.down_proj.B": torch.randn(4, 5, 2, generator=g),
    }
    return Trajectory(torch.tensor([0, 5, 10, 12]), factors, torch.rand(12), torch.rand(12), {"name": "a", "seed": 1})


def test_a_trajectory_survives_writing_and_reading(trajectory, tmp_path):
    back = Trajectory.load(trajectory.save(tmp_path / "t.safetensors"))
    assert back.recipe == trajectory.recipe
    assert back.steps.equal(trajectory.steps)
    assert back.loss.equal(trajectory.loss)
    assert back.factors.keys() == trajectory.factors.keys()
    assert all(back.factors[name].equal(trajectory.factors[name]) for name in back.factors)
    assert repr(back) == "Trajectory('a', 4 checkpoints to step 12, 3 matrices)"


def test_halves_are_read_back_as_floats(trajectory, tmp_path):
    whole, half = (trajectory.save(tmp_path / name, dtype=dtype) for name, dtype in HALF_AND_WHOLE)
    back = Trajectory.load(half)
    assert half.stat().st_size < 0.85 * whole.stat().st_size
    assert back.steps.equal(trajectory.steps)
    assert back.loss.equal(trajectory.loss)  # these stay as they are
    for name, rows in back.factors.items():
        assert rows.dtype == torch.float32
        assert rows.equal(trajectory.factors[name].half().float())
        assert not rows.equal(trajectory.factors[name])


def test_what_is_too_large_for_halves_is_refused(trajectory, tmp_path):
    large = {**trajectory.factors, "layers.2.mlp.down_proj.B": torch.full((4, 5, 2), -7e4)}
    other = Trajectory(trajectory.steps, large, trajectory.loss, trajectory.grad_norm, {})
    with pytest.raises(
        ValueError, match=r"layers\.2\.mlp\.down_proj\.B holds 7e\+04, too large for float16: save it in fl"
    ):
        other.save(tmp_path / "t.safetensors", dtype=torch.float16)
    assert not (tmp_path / "t.safetensors").exists()
    with pytest.raises(ValueError, match=r"dtype is torch\.bfloat16: choose torch\.float32, or torch\.float16"):
        trajectory.save(tmp_path / "t.safetensors", dtype=torch.bfloat16)


def test_paths(trajectory):
    assert trajectory.path("layers.1.mlp.down_proj.B").shape == (4, 10)
    every = torch.cat([trajectory.path(f"layers.{i}.mlp.down_proj.B") for i in (1, 2)], dim=1)
    assert trajectory.path().equal(every)
    early = trajectory.until(10)
    assert (len(early), len(early.loss)) == (3, 10)
    with pytest.raises(ValueError, match=r"no matrix 'b': choose one of layers\.1\.mlp\.down_proj\.A"):
        trajectory.path("b")


def test_what_is_no_trajectory_is_refused(trajectory, tmp_path):
    with pytest.raises(ValueError, match=r"steps are \[0, 5, 5, 12\]: they should rise"):
        Trajectory(torch.tensor([0, 5, 5, 12]), trajectory.factors, trajectory.loss, trajectory.grad_norm, {})
    with pytest.raises(ValueError, match="has 4 checkpoints and there are 3 steps"):
        Trajectory(torch.tensor([0, 5, 7]), trajectory.factors, trajectory.loss, trajectory.grad_norm, {})
    broken = {**trajectory.factors, "layers.2.mlp.down_proj.B": torch.full((4, 5, 2), torch.nan)}
    with pytest.raises(ValueError, match="NaN or infinite at step 0: the training diverged"):
        Trajectory(trajectory.steps, broken, trajectory.loss, trajectory.grad_norm, {})
    path = trajectory.save(tmp_path / "t.safetensors")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="truncated or is not a safetensors file"):
        Trajectory.load(path)
    with pytest.raises(FileNotFoundError, match="no trajectory at"):
        Trajectory.load(tmp_path / "nowhere")
