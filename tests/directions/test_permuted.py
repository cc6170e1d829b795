"""Directions of permuted labels: as long as the true one, and differences of means of exactly those labels."""

import itertools
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp.activations import Activations, ContrastActivations
from em_interp.directions import difference_of_means, permuted_directions
from tests.builders import contrast


def of(positive, negative, groups, n_tokens=None):
    """A contrast of one layer; groups are those of the positive rows and of the negative ones."""
    sides = []
    for values, named in zip((positive, negative), groups, strict=True):
        rows = torch.tensor(values)[:, None]
        counts = torch.ones(len(rows), dtype=torch.long) if n_tokens is None else torch.tensor(n_tokens)
        sides.append(Activations(rows, rows.norm(dim=-1), counts, tuple(named), (0,), "resid_post", "response", "tiny"))
    return ContrastActivations("made", *sides, "0")


def unit(vector):
    return vector / vector.norm()


PAIRS = of([[3.0, 1.0], [0.0, 2.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0], [0.0, -2.0]], ("abc", "abc"))


def test_they_are_as_long_as_the_true_one_at_every_layer():
    read = contrast("misalignment", 0)
    true = difference_of_means(read)
    found = permuted_directions(read, 5, seed=0)
    assert [d.name for d in found] == [f"permuted {i}" for i in range(1, 6)]
    for d in found:
        torch.testing.assert_close(d.norm, true.norm)
        assert d.layers == true.layers
        assert torch.equal(d.residual_norm, true.residual_norm)  # so that × 0.1 is as much of each
        assert d.positive_projection.isnan().all()
        assert not torch.allclose(d.unit, true.unit, atol=0.1)


def test_each_is_the_difference_of_means_of_some_permuted_labels():
    """With one pair a question that is: the sign of some pairs' differences turned."""
    differences = (PAIRS.positive.values - PAIRS.negative.values)[:, 0].double()
    true = difference_of_means(PAIRS)
    wanted = {s: unit(torch.tensor(s).double() @ differences) for s in itertools.product((1.0, -1.0), repeat=3)}
    seen = set()
    for d in permuted_directions(PAIRS, 200, seed=1):
        [signs] = [s for s, vector in wanted.items() if torch.allclose(unit(d[0].double()), vector, atol=1e-6)]
        seen.add(signs)
        if signs == (1, 1, 1):
            torch.testing.assert_close(d.vectors, true.vectors)  # labels given back: a tie
    assert seen == wanted.keys()


def test_questions_of_one_class_exchange_their_labels_whole():
    read = of([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]], [[0.0, 1.0], [0.0, -4.0]], ("aab", "cd"))
    rows = torch.cat([read.positive.values, read.negative.values])[:, 0].double()
    wanted = []
    for chosen in itertools.combinations("abcd", 2):
        label = torch.tensor([group in chosen for group in "aabcd"])
        wanted.append(unit(rows[label].mean(0) - rows[~label].mean(0)))
    seen = set()
    for d in permuted_directions(read, 100, seed=0):
        [which] = [i for i, vector in enumerate(wanted) if torch.allclose(unit(d[0].double()), vector, atol=1e-6)]
        seen.add(which)
    assert seen == set(range(6))


def test_pooling_is_that_of_the_direction():
    n_tokens = [1, 5, 2]
    read = of([[3.0, 1.0], [0.0, 2.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0], [0.0, -2.0]], ("abc", "abc"), n_tokens)
    true = difference_of_means(read, pooling="token")
    found = permuted_directions(read, 60, seed=0, pooling="token")
    assert any(torch.allclose(d.vectors, true.vectors, atol=1e-6) for d in found)
    assert not any(torch.allclose(d.vectors, difference_of_means(read).vectors, atol=1e-6) for d in found)


def test_the_seed_decides():
    one, same, other = (permuted_directions(contrast("misalignment", 0), 2, seed=s) for s in (3, 3, 4))
    assert torch.equal(one[0].vectors, same[0].vectors)
    assert not torch.equal(one[0].vectors, other[0].vectors)
    assert not torch.equal(one[0].vectors, one[1].vectors)


def test_far_apart_classes_leave_much_of_the_direction_in_them():
    """The price of the exact null: where questions differ as much as the classes, about half the squared length."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 1, 200, generator=g)
    values = noise / noise.norm(dim=-1, keepdim=True)
    values[..., 0] += 1
    read = contrast("misalignment", 0, layers=(0,))
    groups = tuple(f"question {i}" for i in range(64))
    sides = [
        replace(
            side,
            values=v,
            norms=v.norm(dim=-1),
            groups=groups,
            n_tokens=torch.ones(64, dtype=torch.long),
            positions=(0,) * 64,
        )
        for side, v in ((read.positive, values), (read.negative, torch.zeros_like(values)))
    ]
    far = replace(read, positive=sides[0], negative=sides[1])
    shares = [float(torch.cosine_similarity(d[0], difference_of_means(far)[0], dim=0)) ** 2
              for d in permuted_directions(far, 200, seed=0)]  # fmt: skip
    assert 0.3 < sum(shares) / len(shares) < 0.6


def test_what_cannot_be_permuted_is_told():
    with pytest.raises(ValueError, match="n is 0: ask for one permuted direction or more"):
        permuted_directions(PAIRS, 0, seed=0)
    alike = of([[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], ("ab", "ab"))
    with pytest.raises(ValueError, match="with its labels permuted the classes of 'made' do not differ at layer 0"):
        permuted_directions(alike, 20, seed=0)
    with pytest.raises(ValueError, match="no positive activations"):
        permuted_directions(replace(PAIRS, positive=PAIRS.positive.rows([])), 2, seed=0)


def test_it_is_at_the_front_door():
    assert em.permuted_directions is permuted_directions
