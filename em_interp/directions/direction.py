"""A direction is a difference of means, one vector a layer, with where it came from and how long it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from em_interp.activations.reading import ContrastActivations
from em_interp.checks import check_own
from em_interp.files import read_object, write_tensors

_TENSORS = ("vectors", "residual_norm", "positive_projection", "negative_projection")
_FEW = 3  # dimensions whose share of the squared length is told


@dataclass(frozen=True, eq=False)
class Direction:
    """The vector from the mean of the negative class to the mean of the positive one, at every layer read.

    `vectors` is not normalised: its length is how far apart the two class means lie along it, by whichever estimator it
    was found. Row *i* was read at layer
    `layers[i]`, at that block's output when `site` is `"resid_post"`. `direction[24]` is the vector of layer 24.

    Attributes:
        vectors: the difference of means, float32 on the CPU.
        residual_norm: mean norm of a token's residual stream over the span read: the unit of `add_direction`. This
            and the two projections are NaN at every layer where nobody knows them, see `from_vectors`.
        positive_projection: mean of the positive class along the unit vector, the value a clamp would set.
        negative_projection: the same of the negative class.
        contrast_hash: SHA-256 of the conversations the direction was computed from.
        estimator: how it was found, such as `difference_of_means` or `lda`.
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
    estimator: str = "difference_of_means"

    def __post_init__(self) -> None:
        """Refuse what no direction can be: rows that are not layers, numbers that are not finite."""
        check_own(self)
        for tensor in _TENSORS:
            rows = getattr(self, tensor)
            if len(rows) != len(self.layers):
                raise ValueError(
                    f"{tensor} of direction {self.name!r} has {len(rows)} rows but there are {len(self.layers)} "
                    f"layers: give one a layer"
                )
            if tensor != "vectors" and rows.isnan().all():
                continue  # nobody knows it: see from_vectors
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

    @property
    def dominance(self) -> Float[Tensor, " layer"]:
        """Share of the squared length that lies in the three largest dimensions, from 3/d_model to 1.

        Residual streams have a few massive dimensions (Sun et al. 2024, arXiv 2402.17762). A direction that lies in
        them says what those do, and has a large cosine with any other direction that does.
        """
        return dominance(self.vectors)

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

    def only(self, layer: int) -> "Direction":
        """The same direction at one layer, by its number.

        Raises:
            ValueError: the layer was not read.
        """
        row = self.row(layer)
        return replace(self, layers=(layer,), **{name: getattr(self, name)[row : row + 1] for name in _TENSORS})

    def __len__(self) -> int:
        """Number of layers read."""
        return len(self.layers)

    def __iter__(self) -> Iterator[Tensor]:
        """The vectors, layer by layer."""
        return iter(self.vectors)

    def __repr__(self) -> str:
        """One line, never a wall of tensor."""
        share, row = self.dominance.max(0)
        return (
            f"Direction({self.name!r}, {self.site} of layers {_ranges(self.layers)}, d_model {self.d_model}, three "
            f"dimensions hold up to {share:.0%} (layer {self.layers[int(row)]}), span {self.span!r}, "
            f"{self.n_positive} − {self.n_negative} conversations, {self.model})"
        )

    def save(self, path: str | Path) -> Path:
        """Write the direction as safetensors, its dominance beside it, with all but the tensors as JSON metadata."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TENSORS}
        tensors = {name: getattr(self, name) for name in (*_TENSORS, "dominance")}
        return write_tensors(Path(path), "direction", tensors, rest)

    @classmethod
    def load(cls, path: str | Path) -> "Direction":
        """Read a direction back, equal to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, is not a safetensors file, or holds something else than a direction; a
                field is missing or of another kind.
        """
        return read_object(path, "direction", cls, derived=("dominance",))

    @classmethod
    def from_vectors(  # noqa: PLR0913 - a direction has this much to it
        cls,
        vectors: Float[Tensor, "layer d_model"] | Float[Tensor, " d_model"],
        *,
        layers: Sequence[int] | int,
        site: str = "resid_post",
        name: str = "given",
        model: str = "",
        beside: ContrastActivations | None = None,
        residual_norm: Float[Tensor, " layer"] | float | None = None,
    ) -> "Direction":
        """A direction from vectors that somebody else computed, such as published ones.

        What is not known of it is NaN, and whatever needs it says so: adding in residual norms, and setting the
        projection to a class. `beside` fills it in.

        Args:
            vectors: one a layer, from the negative to the positive class; of any length. They are copied.
            layers: the block of each, counted from 0, at whose `site` it belongs. A paper's `hidden_states[i]` is the
                output of block i − 1.
            site: `resid_post` (a block's output), `resid_pre`, `resid_mid`, `attn_out` or `mlp_out`.
            name: what it will be called.
            model: the model it was read from.
            beside: activations of a contrast, read at these layers from the model in use. From them come the residual
                norm and where both classes lie along the direction.
            residual_norm: mean norm of a token's residual stream, one a layer or one for all, where it is known.

        Raises:
            ValueError: as many layers as vectors are wanted; a vector that is zero or not finite; `beside` was read at
                other layers, at another site or is of another width.
        """
        rows = torch.atleast_2d(vectors.detach()).float().cpu().clone()
        numbers = (layers,) if isinstance(layers, int) else tuple(layers)
        if len(numbers) != len(rows):
            raise ValueError(f"{len(rows)} vectors came with {len(numbers)} layers: give each vector its own layer")
        if (rows == 0).all(-1).any():
            bad = numbers[int((rows == 0).all(-1).nonzero()[0])]
            raise ValueError(f"the vector of layer {bad} is zero, and points nowhere: leave it out")
        unknown = torch.full((len(numbers),), torch.nan)
        norm = unknown if residual_norm is None else torch.as_tensor(residual_norm).float().expand(len(numbers)).clone()
        found = cls(rows, norm, unknown, unknown, numbers, name, site, "", "", model, "", 0, 0)
        return found if beside is None else found._placed(beside)

    def _placed(self, beside: ContrastActivations) -> "Direction":
        """The same with the residual norm, and both classes' projections, of activations at its layers."""
        missing = [layer for layer in self.layers if layer not in beside.layers]
        if missing or beside.site != self.site or beside.d_model != self.d_model:
            raise ValueError(
                f"{self.name!r} is at {self.site} of layers {_ranges(self.layers)}, {self.d_model} wide, and "
                f"{beside.name!r} was read at {beside.site} of layers {_ranges(beside.layers)}, {beside.d_model} wide: "
                f"read it at the same place of the model that the direction is for"
            )
        at = [beside.layers.index(layer) for layer in self.layers]
        sides = [side.values[:, at].double().mean(0) for side in (beside.positive, beside.negative)]
        unit = self.unit.double()
        positive, negative = (reduce(mean * unit, "layer d_model -> layer", "sum").float() for mean in sides)
        norms = torch.cat([beside.positive.norms, beside.negative.norms])[:, at].double().mean(0).float()
        norms = torch.where(self.residual_norm.isnan(), norms, self.residual_norm)
        return replace(self, residual_norm=norms, positive_projection=positive, negative_projection=negative)


def dominance(vectors: Float[Tensor, "*layer d_model"]) -> Float[Tensor, "*layer"]:
    """Share of the squared length that lies in the three largest dimensions; NaN of a vector that is zero."""
    squares = vectors.double().square()
    return (squares.topk(min(_FEW, squares.shape[-1])).values.sum(-1) / squares.sum(-1)).to(vectors.dtype)


def dominated(vectors: Float[Tensor, "*layer d_model"]) -> Bool[Tensor, "*layer"]:
    """Whether three dimensions hold more than half of the squared length, beyond the share that any three have."""
    return dominance(vectors) > 0.5 + _FEW / vectors.shape[-1]


def _ranges(layers: tuple[int, ...]) -> str:
    """`0–29` for consecutive layers, else a list."""
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))
