"""A direction is a difference of means, one vector a layer, with where it came from and how long it is."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from em_interp.files import write_atomically

_FORMAT = "em_interp.direction/1"
_TENSORS = ("vectors", "residual_norm", "positive_projection", "negative_projection")


@dataclass(frozen=True, eq=False)
class Direction:
    """The vector from the mean of the negative class to the mean of the positive one, at every layer read.

    `vectors` is not normalised: its length is how far apart the two classes lie. Row *i* was read at layer
    `layers[i]`, at that block's output when `site` is `"resid_post"`. `direction[24]` is the vector of layer 24.

    Attributes:
        vectors: the difference of means, float32 on the CPU.
        residual_norm: mean norm of a token's residual stream over the span read: the unit of `add_direction`.
        positive_projection: mean of the positive class along the unit vector, the value a clamp would set.
        negative_projection: the same of the negative class.
        contrast_hash: SHA-256 of the conversations the direction was computed from.
    """

    vectors: Float[Tensor, "layer d_model"]
    residual_norm: Float[Tensor, " layer"]
    positive_projection: Float[Tensor, " layer"]
    negative_projection: Float[Tensor, " layer"]
    layers: tuple[int, ...]
    name: str
    site: str
    span: str
    pooling: str
    model: str
    contrast_hash: str
    n_positive: int
    n_negative: int

    def __post_init__(self) -> None:
        """Refuse what no direction can be: rows that are not layers, numbers that are not finite."""
        for tensor in _TENSORS:
            rows = getattr(self, tensor)
            if len(rows) != len(self.layers):
                raise ValueError(
                    f"{tensor} of direction {self.name!r} has {len(rows)} rows but there are {len(self.layers)} "
                    f"layers: give one a layer"
                )
            finite = torch.isfinite(rows).reshape(len(self.layers), -1).all(-1)
            if not finite.all():
                bad = self.layers[int((~finite).nonzero()[0])]
                raise ValueError(f"{tensor} of direction {self.name!r} is NaN or infinite at layer {bad}")

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.vectors.shape[1]

    @property
    def norm(self) -> Float[Tensor, " layer"]:
        """Distance between the two class means, in the model's own units."""
        return self.vectors.norm(dim=-1)

    @property
    def unit(self) -> Float[Tensor, "layer d_model"]:
        """The vectors at length one.

        Raises:
            ValueError: where a vector is zero, as it is when both classes hold the same texts.
        """
        if not (self.norm > 0).all():
            bad = self.layers[int((self.norm == 0).nonzero()[0])]
            raise ValueError(f"direction {self.name!r} is zero at layer {bad}: its two classes do not differ there")
        return self.vectors / self.norm[:, None]

    def row(self, layer: int) -> int:
        """The row of `vectors` that holds `layer`.

        Raises:
            ValueError: the layer was not read.
        """
        if layer not in self.layers:
            raise ValueError(
                f"layer {layer} is not in direction {self.name!r}: it was read at layers {_ranges(self.layers)}"
            )
        return self.layers.index(layer)

    def __getitem__(self, layer: int) -> Float[Tensor, " d_model"]:
        """The vector of one layer, by its number."""
        return self.vectors[self.row(layer)]

    def __len__(self) -> int:
        """Number of layers read."""
        return len(self.layers)

    def __iter__(self) -> Iterator[Tensor]:
        """The vectors, layer by layer."""
        return iter(self.vectors)

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        return (
            f"Direction({self.name!r}, {self.site} of layers {_ranges(self.layers)}, d_model {self.d_model}, "
            f"span {self.span!r}, {self.n_positive} − {self.n_negative} conversations, {self.model})"
        )

    def save(self, path: str | Path) -> Path:
        """Write the direction as safetensors, with everything but the tensors as JSON metadata."""
        from safetensors.torch import save

        # safetensors writes neither views nor one tensor under two names, so each is copied.
        tensors = {name: getattr(self, name).clone(memory_format=torch.contiguous_format) for name in _TENSORS}
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TENSORS}
        metadata = {"format": _FORMAT, "direction": json.dumps(rest), "torch": torch.__version__}
        return write_atomically(Path(path), save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> "Direction":
        """Read a direction back, equal to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, is no safetensors file, or holds something else than a direction.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"no direction at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(
                        f"{path} is a safetensors file but not a direction (format {metadata.get('format')!r}, wanted "
                        f"{_FORMAT!r}): write directions with Direction.save"
                    )
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is truncated or is no safetensors file ({error}): save the direction again"
            ) from error
        rest = json.loads(metadata["direction"])
        return cls(**tensors, **{**rest, "layers": tuple(rest["layers"])})


def _ranges(layers: tuple[int, ...]) -> str:
    """`0–29` for consecutive layers, else a list."""
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))
