"""Differences of means against a dense oracle in float64, and directions that survive a file to the bit."""

import inspect
import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import em_interp as em
from em_interp.activations.reading import Activations, ContrastActivations
from em_interp.directions.direction import Direction, dominated
from em_interp.directions.estimators import difference_of_means
from em_interp.interventions import project_out

TENSORS = ("vectors", "residual_norm", "positive_projection", "negative_projection")
POOLINGS = ("conversation", "token")
seeds = st.integers(0, 2**31)
maths = settings(deadline=None, database=None, max_examples=40)


def activations(values: torch.Tensor, **more: Any) -> Activations:
    n, n_layers, _ = values.shape
    known = {
        "norms": torch.rand(n, n_layers, generator=torch.Generator().manual_seed(1)) + 1,
        "n_tokens": torch.arange(1, n + 1) ** 2,
        "groups": tuple(f"question {i}" for i in range(n)),
        "layers": tuple(range(n_layers)),
        "site": "resid_post",
        "span": "response",
        "model": "tiny",
    }
    return Activations(values=values, **{**known, **more})


def contrast(positive: torch.Tensor, negative: torch.Tensor, **more: Any) -> ContrastActivations:
    return ContrastActivations("planted", activations(positive, **more), activations(negative, **more), "f00d")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oracle(side: Activations, pooling: str) -> np.ndarray:
    """The mean, one number at a time: every token of a conversation held the conversation's mean."""
    values, counts = side.values.numpy().astype(np.float64), side.n_tokens.tolist()
    if pooling == "conversation":
        counts = [1] * len(side)
    tokens = [values[i] for i, n in enumerate(counts) for _ in range(n)]
    return np.mean(tokens, axis=0)


@pytest.fixture
def direction() -> Direction:
    """Three layers of width 4, numbered 5, 6 and 9: a row is not a layer number."""
    return Direction(
        vectors=draw(0, 3, 4),
        residual_norm=torch.tensor([3.0, 4.0, 5.0]),
        positive_projection=torch.tensor([1.0, 2.0, 3.0]),
        negative_projection=torch.tensor([-1.0, -2.0, -3.0]),
        layers=(5, 6, 9),
        name="misalignment",
        site="resid_post",
        span="response",
        pooling="conversation",
        model="HuggingFaceTB/SmolLM2-135M-Instruct@abc+rank1#def",
        contrast_hash="f00d",
        n_positive=7,
        n_negative=8,
    )


# Difference of means


@given(seeds)
@maths
def test_a_planted_shift_is_recovered(seed):
    """Noise that is the same on both sides leaves the shift alone, at each layer its own."""
    noise, shift = draw(seed, 6, 3, 5), draw(seed + 1, 3, 5)
    direction = difference_of_means(contrast(noise + shift, noise))
    torch.testing.assert_close(direction.vectors, shift, rtol=0, atol=1e-5)
    torch.testing.assert_close(direction.norm, shift.norm(dim=-1), rtol=0, atol=1e-5)


def test_a_planted_shift_is_recovered_from_independent_noise():
    shift = 3 * torch.nn.functional.normalize(draw(0, 2, 64), dim=-1)
    direction = difference_of_means(contrast(draw(1, 400, 2, 64) + shift, draw(2, 300, 2, 64)))
    cosine = (direction.unit * shift).sum(-1) / shift.norm(dim=-1)
    assert (cosine > 0.97).all()
    assert (cosine < 1).all()
    assert (direction.n_positive, direction.n_negative) == (400, 300)


@pytest.mark.parametrize("pooling", POOLINGS)
@given(seeds, st.integers(1, 7), st.integers(1, 7))
@maths
def test_both_poolings_agree_with_the_oracle(pooling, seed, n_positive, n_negative):
    both = contrast(draw(seed, n_positive, 2, 3), draw(seed + 1, n_negative, 2, 3))
    direction = difference_of_means(both, pooling=pooling)
    positive, negative = oracle(both.positive, pooling), oracle(both.negative, pooling)
    vectors = positive - negative
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    expected = {
        "vectors": vectors,
        "positive_projection": (positive * unit).sum(-1),
        "negative_projection": (negative * unit).sum(-1),
        "residual_norm": np.average(
            np.concatenate([both.positive.norms, both.negative.norms]).astype(np.float64),
            axis=0,
            weights=np.concatenate([both.positive.n_tokens, both.negative.n_tokens]) if pooling == "token" else None,
        ),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(direction, name).numpy(), value, rtol=1e-6, atol=1e-6, err_msg=name)
    assert direction.pooling == pooling


def test_pooling_over_tokens_gives_long_answers_more_weight():
    positive = torch.tensor([[[0.0]], [[1.0]]])  # one of 1 token and one of 4
    both = contrast(positive, torch.zeros(1, 1, 1))
    assert difference_of_means(both).vectors.item() == 0.5
    assert difference_of_means(both, pooling="token").vectors.item() == pytest.approx(0.8)


@given(seeds)
@maths
def test_it_points_from_the_negative_to_the_positive_class(seed):
    positive, negative = draw(seed, 5, 2, 3), draw(seed + 1, 4, 2, 3)
    direction, swapped = (
        difference_of_means(contrast(*sides)) for sides in ((positive, negative), (negative, positive))
    )
    assert torch.equal(direction.vectors, -swapped.vectors)
    assert (direction.positive_projection > direction.negative_projection).all()
    gap = direction.positive_projection - direction.negative_projection
    torch.testing.assert_close(gap, direction.norm, rtol=1e-4, atol=1e-5)


@given(seeds, st.randoms(use_true_random=False))
@maths
def test_the_order_of_the_conversations_does_not_matter(seed, random):
    both = contrast(draw(seed, 9, 2, 3), draw(seed + 1, 9, 2, 3))
    order = list(range(9))
    random.shuffle(order)
    for pooling in POOLINGS:
        one = difference_of_means(both, pooling=pooling)
        other = difference_of_means(replace(both, positive=both.positive.rows(order)), pooling=pooling)
        torch.testing.assert_close(one.vectors, other.vectors, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sums_are_in_float64(pooling):
    """A shift of one part in ten million, on an outlier dimension such as residual streams have, is kept."""
    n = 1000
    values = torch.full((n, 1, 2), 1e7)
    shifted = values.clone()
    shifted[::2] += 1  # exact in float32; half of the conversations
    both = contrast(shifted, values, n_tokens=torch.ones(n, dtype=torch.long))
    assert difference_of_means(both, pooling=pooling).vectors.tolist() == [[0.5, 0.5]]
    rounded = (shifted.mean(0) - values.mean(0)).tolist()
    assert rounded != [[0.5, 0.5]]  # the positive control: float32 does lose it


def test_results_are_float32_on_the_cpu():
    direction = difference_of_means(contrast(draw(0, 3, 2, 4), draw(1, 3, 2, 4)))
    for name in TENSORS:
        assert getattr(direction, name).dtype == torch.float32
        assert getattr(direction, name).device.type == "cpu"


def test_where_it_comes_from_is_kept():
    direction = difference_of_means(
        contrast(draw(0, 3, 2, 4), draw(1, 3, 2, 4), layers=(3, 7), site="mlp_out", span="turn", model="tiny+rank1")
    )
    kept = {f.name: getattr(direction, f.name) for f in fields(direction) if f.name not in TENSORS}
    assert kept == {
        "layers": (3, 7),
        "name": "planted",
        "site": "mlp_out",
        "span": "turn",
        "pooling": "conversation",
        "model": "tiny+rank1",
        "contrast_hash": "f00d",
        "n_positive": 3,
        "n_negative": 3,
        "estimator": "difference_of_means",
    }


def test_one_of_several_positions_must_be_chosen():
    """Rows of the template's last two tokens, in turn; the shift is at the last one only."""
    values = torch.zeros(6, 1, 2)
    shifted = values.clone()
    shifted[1::2] = 1
    more = {"positions": (-2, -1) * 3, "span": "post_instruction"}
    both = contrast(shifted, values, **more)
    with pytest.raises(ValueError, match=r"2 positions a conversation \(post_instruction\): choose .* of \[-2, -1\]"):
        difference_of_means(both)
    assert difference_of_means(both.at(-1)).vectors.tolist() == [[1.0, 1.0]]
    assert difference_of_means(both.at(-2)).vectors.tolist() == [[0.0, 0.0]]
    assert difference_of_means(both.at(-1)).n_positive == 3


def test_an_unknown_pooling_lists_the_known_ones():
    both, pooling = contrast(draw(0, 3, 2, 4), draw(1, 3, 2, 4)), "tokens"
    unchecked: Any = inspect.unwrap(difference_of_means)
    with pytest.raises(ValueError, match="pooling 'tokens' is unknown: choose 'conversation' or 'token'"):
        unchecked(both, pooling=pooling)


@pytest.mark.parametrize("empty", ["positive", "negative"])
def test_an_empty_class_is_refused(empty):
    both = contrast(draw(0, 3, 2, 4), draw(1, 3, 2, 4))
    none = replace(both, **{empty: getattr(both, empty).rows([])})
    with pytest.raises(ValueError, match=f"'planted' has no {empty} activations: a direction needs both classes"):
        difference_of_means(none)


# The dataclass


def test_a_layer_is_asked_for_by_its_number(direction):
    assert torch.equal(direction[5], direction.vectors[0])
    assert torch.equal(direction[9], direction.vectors[2])
    assert direction.row(6) == 1
    assert len(direction) == 3
    assert torch.equal(torch.stack(list(direction)), direction.vectors)
    assert direction.d_model == 4


@pytest.mark.parametrize("layer", [0, 2, 7, -1])
def test_a_layer_that_was_not_read_lists_those_that_were(direction, layer):
    with pytest.raises(ValueError, match=f"layer {layer} is not in direction 'misalignment': .* at layers 5, 6, 9"):
        direction[layer]
    with pytest.raises(ValueError, match=f"layer {layer} is not in direction 'misalignment': .* at layers 3–5"):
        replace(direction, layers=(3, 4, 5))[layer]


def test_unit_has_length_one_and_the_same_sense(direction):
    torch.testing.assert_close(direction.unit.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(direction.unit * direction.norm[:, None], direction.vectors)


def test_a_zero_vector_has_no_unit():
    same = draw(0, 4, 3, 5)
    other = same.clone()
    other[:, 0] += 1
    direction = difference_of_means(contrast(other, same, layers=(2, 3, 4)))
    assert torch.equal(direction.vectors[1:], torch.zeros(2, 5))
    assert direction.positive_projection[1] == 0
    with pytest.raises(ValueError, match="direction 'planted' is zero at layer 3: its two classes do not differ there"):
        _ = direction.unit


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_told_with_its_layer(direction, tensor, bad):
    spoilt = getattr(direction, tensor).clone()
    spoilt[1:] = bad
    with pytest.raises(ValueError, match=f"{tensor} of direction 'misalignment' is NaN or infinite at layer 6"):
        replace(direction, **{tensor: spoilt})


@pytest.mark.parametrize("tensor", TENSORS)
def test_rows_and_layers_must_match(direction, tensor):
    """Without type checks, as it is for a user: the tests' own would refuse it first."""
    short = object.__new__(Direction)
    for f in fields(direction):
        value = getattr(direction, f.name)
        object.__setattr__(short, f.name, value[:2] if f.name == tensor else value)
    with pytest.raises(ValueError, match=f"{tensor} of direction 'misalignment' has 2 rows but there are 3 layers"):
        short.__post_init__()


@pytest.mark.parametrize(("layers", "shown"), [((5, 6, 9), "5, 6, 9"), ((5, 6, 7), "5–7"), ((7, 6, 5), "7, 6, 5")])
def test_it_prints_as_one_line(direction, layers, shown):
    share, row = direction.dominance.max(0)
    assert repr(replace(direction, layers=layers)) == (
        f"Direction('misalignment', resid_post of layers {shown}, d_model 4, three dimensions hold up to {share:.0%} "
        f"(layer {layers[int(row)]}), span 'response', 7 − 8 conversations, "
        "HuggingFaceTB/SmolLM2-135M-Instruct@abc+rank1#def)"
    )


def test_one_layer_prints_as_its_number():
    direction = difference_of_means(contrast(draw(0, 3, 1, 4), draw(1, 3, 1, 4), layers=(24,)))
    assert "of layers 24," in repr(direction)


# Files


def assert_equal_to_the_bit(one: Direction, other: Direction) -> None:
    for f in fields(Direction):
        ours, theirs = getattr(one, f.name), getattr(other, f.name)
        if f.name in TENSORS:
            assert ours.dtype == theirs.dtype
            assert ours.numpy().tobytes() == theirs.numpy().tobytes()
        else:
            assert ours == theirs
            assert type(ours) is type(theirs)


def test_saved_and_loaded_is_equal_to_the_bit(direction, tmp_path):
    path = direction.save(tmp_path / "new folder" / "misalignment.safetensors")
    assert path.is_file()
    assert_equal_to_the_bit(Direction.load(path), direction)
    assert_equal_to_the_bit(Direction.load(str(path)), direction)


@given(seeds)
@maths
def test_any_numbers_and_names_survive_a_file(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("direction") / "file"
    direction = difference_of_means(contrast(draw(seed, 3, 2, 4) * 1e-30, draw(seed + 1, 3, 2, 4), model="−∞ \"\n' {}"))
    assert_equal_to_the_bit(Direction.load(direction.save(path)), direction)


def test_views_and_one_tensor_in_two_places_are_saved(direction, tmp_path):
    """As when a user builds one from a matrix: safetensors itself refuses both."""
    matrix, ones = draw(3, 4, 6), torch.ones(3)
    built = replace(
        direction,
        vectors=matrix.T[::2],
        residual_norm=ones,
        positive_projection=ones,
        negative_projection=matrix[1, :3],
    )
    assert_equal_to_the_bit(Direction.load(built.save(tmp_path / "file")), built)


def test_the_file_says_what_it_is_to_anybody(direction, tmp_path):
    from safetensors import safe_open

    with safe_open(direction.save(tmp_path / "file"), framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {*TENSORS, "dominance"}
        assert torch.equal(file.get_tensor("dominance"), direction.dominance)
    assert metadata["format"] == "em_interp.direction/1"
    assert metadata["torch"] == torch.__version__
    known = json.loads(metadata["direction"])
    assert known["model"] == direction.model
    assert known["contrast_hash"] == "f00d"
    assert known["layers"] == [5, 6, 9]


def test_an_older_file_is_replaced(direction, tmp_path):
    path = direction.save(tmp_path / "file")
    replace(direction, name="refusal").save(path)
    assert Direction.load(path).name == "refusal"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no direction at .*refusal\.safetensors"):
        Direction.load(tmp_path / "refusal.safetensors")
    with pytest.raises(FileNotFoundError, match="no direction at"):
        Direction.load(tmp_path)


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 200, -1, -4])
def test_a_truncated_file_is_told(direction, tmp_path, left):
    path = direction.save(tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(
        ValueError, match=r"cut\.safetensors is truncated or is not a safetensors file \(.*\): save the"
    ):
        Direction.load(path)


@pytest.mark.parametrize("content", [b"not a tensor in sight", b"PK\x03\x04" * 40, b"{}" * 500])
def test_another_kind_of_file_is_told(tmp_path, content):
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign\.bin is truncated or is not a safetensors file"):
        Direction.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "em_interp.direction/99"}])
def test_a_foreign_safetensors_file_is_told(direction, tmp_path, metadata):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({name: getattr(direction, name) for name in TENSORS}, path, metadata=metadata)
    found = (metadata or {}).get("format")
    with pytest.raises(
        ValueError, match=f"safetensors file but not a direction .format {found!r}, wanted 'em_interp.direction/1'"
    ):
        Direction.load(path)


def test_a_direction_of_another_width_does_not_fit(direction, tmp_path):
    """Saved from one model, loaded for another."""
    loaded = Direction.load(direction.save(tmp_path / "file"))
    [(name, hook)] = project_out(loaded[5], ["blocks.5.hook_resid_post"])
    with pytest.raises(ValueError, match=rf"direction has d_model 4 but the stream at {name} is 6 wide"):
        hook(torch.zeros(1, 2, 6))
    assert hook(torch.ones(1, 2, 4)).shape == (1, 2, 4)


def test_a_direction_of_another_model_does_not_fit(direction, tmp_path):
    """A model with more layers than were read asks for a layer that the direction does not have."""
    loaded = Direction.load(direction.save(tmp_path / "file"))
    with pytest.raises(ValueError, match="hook_resid_post' is at layer 7, and there are rows for layers 5, 6, 9 only"):
        project_out(loaded, ["blocks.7.hook_resid_post"])


class TestFromVectors:
    """A published vector becomes a direction that hooks, effects and files take."""

    VECTORS = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))

    def read(self, layers=(3, 4, 5)):
        def side(sign):
            values = torch.randn(6, len(layers), 8, generator=torch.Generator().manual_seed(7)) + sign
            return Activations(
                values, values.norm(dim=-1), torch.ones(6, dtype=torch.long), tuple("abcdef"), layers, "resid_post",
                "response", "tiny",
            )  # fmt: skip

        return ContrastActivations("mine", side(1.0), side(-1.0), "0")

    def test_the_vectors_are_those_given_and_one_is_enough(self):
        d = Direction.from_vectors(self.VECTORS, layers=(4, 5), name="published", model="some/model")
        assert torch.equal(d[5], self.VECTORS[1])
        assert (d.layers, d.site, d.name) == ((4, 5), "resid_post", "published")
        assert torch.equal(Direction.from_vectors(self.VECTORS[0], layers=24)[24], self.VECTORS[0])

    def test_what_is_not_known_is_told_where_it_is_needed(self):
        d = Direction.from_vectors(self.VECTORS, layers=(4, 5))
        sites = ["blocks.4.hook_resid_post"]
        assert em.project_out(d, sites)
        assert em.add_direction(d, sites, raw=True)
        assert em.add_direction(d, sites, residual_norm=30)
        with pytest.raises(ValueError, match=r"residual_norm is nan at blocks\.4"):
            em.add_direction(d, sites)
        with pytest.raises(ValueError, match=r"value is nan at blocks\.4"):
            em.set_projection(d, sites, "negative")

    def test_beside_activations_norm_and_classes_are_theirs(self):
        read = self.read()
        d = Direction.from_vectors(self.VECTORS, layers=(4, 5), beside=read)
        norms = torch.cat([read.positive.norms, read.negative.norms])[:, 1:].mean(0)
        torch.testing.assert_close(d.residual_norm, norms)
        unit = self.VECTORS[1] / self.VECTORS[1].norm()
        assert d.negative_projection[1].item() == pytest.approx(
            (read.negative.values[:, 2] @ unit).mean().item(), abs=1e-5
        )
        assert d.positive_projection[1].item() == pytest.approx(
            (read.positive.values[:, 2] @ unit).mean().item(), abs=1e-5
        )
        own = em.difference_of_means(read)
        again = Direction.from_vectors(own.vectors, layers=own.layers, beside=read)
        for tensor in TENSORS:
            torch.testing.assert_close(getattr(again, tensor), getattr(own, tensor))

    def test_it_survives_a_file(self, tmp_path):
        d = Direction.from_vectors(self.VECTORS, layers=(4, 5), residual_norm=3.0)
        back = Direction.load(d.save(tmp_path / "published.safetensors"))
        assert torch.equal(back.vectors, d.vectors)
        assert back.residual_norm.tolist() == [3.0, 3.0]
        assert back.negative_projection.isnan().all()

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"layers": (4,)}, "2 vectors came with 1 layers"),
            ({"layers": (4, 9)}, r"'given' is at resid_post of layers 4, 9, 8 wide, and 'mine' was read at .* 3–5"),
            ({"layers": (4, 5), "site": "attn_out"}, "read it at the same place"),
        ],
    )
    def test_what_does_not_fit_is_told(self, given, message):
        with pytest.raises(ValueError, match=message):
            Direction.from_vectors(self.VECTORS, **given, beside=self.read())

    def test_a_vector_that_points_nowhere(self):
        with pytest.raises(ValueError, match="vector of layer 5 is zero"):
            Direction.from_vectors(torch.stack([torch.ones(8), torch.zeros(8)]), layers=(4, 5))


@pytest.mark.parametrize(("share", "too_much"), [(0.45, False), (0.5, False), (0.56, True), (0.9, True)])
def test_more_than_half_in_three_dimensions_dominates(share, too_much):
    d = 600
    squares = torch.cat([torch.full((3,), share / 3), torch.full((d - 3,), (1 - share) / (d - 3))])
    assert bool(dominated(squares.sqrt())) == too_much
