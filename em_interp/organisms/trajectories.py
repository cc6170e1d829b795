"""What became of an adapter during training: its matrices at every checkpoint, and each step's loss, in one file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_interp.checks import check_own
from em_interp.files import check_fields, damaged, read_tensors, write_tensors

_BESIDE = ("steps", "loss", "grad_norm")  # the factors


@dataclass(frozen=True, eq=False)
class Trajectory:
    """An adapter at every checkpoint of one training run.

    Attributes:
        steps: the optimizer step of each checkpoint; 0 is before the first, where every B is zero.
        factors: each matrix by module and side, `layers.15.mlp.down_proj.B` `[checkpoint, d_out, rank]` and `….A`
            `[checkpoint, rank, d_in]`. An adapter adds `scale · B A x` to its module's output.
        loss: training loss at each optimizer step from step 1 on, in nats a token.
        grad_norm: norm of the gradient at each of them, before clipping.
        recipe: what the run was made from.
    """

    steps: Int[Tensor, " checkpoint"]
    factors: Mapping[str, Float[Tensor, "_ _ _"]]
    loss: Float[Tensor, " step"]
    grad_norm: Float[Tensor, " step"]
    recipe: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse matrices that are not one a checkpoint, steps that do not rise, numbers that are not finite."""
        check_own(self)
        if not len(self.steps):
            raise ValueError("the trajectory has no checkpoints: it should have one at least")
        if len(self.steps) > 1 and not (self.steps.diff() > 0).all():
            raise ValueError(f"the checkpoints' steps are {self.steps.tolist()}: they should rise")
        for name, rows in self.factors.items():
            if len(rows) != len(self.steps):
                raise ValueError(f"{name} has {len(rows)} checkpoints and there are {len(self.steps)} steps")
            if not torch.isfinite(rows).all():
                bad = int((~torch.isfinite(rows.flatten(1)).all(-1)).nonzero()[0])
                raise ValueError(f"{name} is NaN or infinite at step {int(self.steps[bad])}: the training diverged")

    def __repr__(self) -> str:
        """One line."""
        return (
            f"Trajectory({self.recipe.get('name', '')!r}, {len(self)} checkpoints to step {int(self.steps[-1])}, "
            f"{len(self.factors)} matrices)"
        )

    def __len__(self) -> int:
        """Number of checkpoints."""
        return len(self.steps)

    def path(self, name: str | None = None) -> Float[Tensor, "checkpoint parameter"]:
        """One matrix as a vector a checkpoint, by its name; with no name every B, one after the other.

        Raises:
            ValueError: there is no such matrix (those there are, are listed).
        """
        if name is None:
            return torch.cat(
                [rows.flatten(1) for key, rows in self.factors.items() if key.endswith(".B")], dim=1
            ).float()
        if name not in self.factors:
            raise ValueError(f"the trajectory has no matrix {name!r}: choose one of {', '.join(self.factors)}")
        return self.factors[name].flatten(1).float()

    def until(self, step: int) -> "Trajectory":
        """The run up to and with an optimizer step."""
        kept = self.steps <= step
        factors = {name: rows[kept] for name, rows in self.factors.items()}
        return Trajectory(self.steps[kept], factors, self.loss[:step], self.grad_norm[:step], self.recipe)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write the trajectory as safetensors, with its recipe as JSON metadata.

        Args:
            path: of the file.
            dtype: of the matrices in it; float16 takes half the room and keeps three digits. `load` gives float32.

        Raises:
            ValueError: another type, or a matrix that is too large for float16 (above 65,504).
        """
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"dtype is {dtype}: choose torch.float32, or torch.float16 for half the size")
        factors = {name: rows.to(dtype) for name, rows in self.factors.items()}
        for name, rows in factors.items():
            if not torch.isfinite(rows).all():
                largest = float(self.factors[name].abs().max())
                raise ValueError(f"{name} holds {largest:.4g}, too large for float16: save it in float32")
        tensors = {"steps": self.steps, "loss": self.loss, "grad_norm": self.grad_norm, **factors}
        return write_tensors(Path(path), "trajectory", tensors, self.recipe, key="recipe")

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read a trajectory back, its matrices in float32.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, is not a safetensors file, or holds something else than a trajectory; a
                field is missing or of another kind.
        """
        tensors, recipe = read_tensors(path, "trajectory", key="recipe")
        matrix = Float[Tensor, "checkpoint _ _"]
        hints = dict.fromkeys(tensors, matrix) | {name: get_type_hints(cls)[name] for name in _BESIDE}
        check_fields(path, "trajectory", tensors, hints)
        beside = {name: tensors.pop(name) for name in _BESIDE}
        with damaged(path):
            return cls(factors={name: rows.float() for name, rows in tensors.items()}, recipe=recipe, **beside)
