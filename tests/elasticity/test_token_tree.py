"""The token tree of a corpus that can be counted by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_interp.elasticity import TokenTree
from em_interp.elasticity.token_tree import END

CORPUS = ["ab", "ab", "ab", "abc", "ba", "ba", "c", "c"]


def test_leaves_are_the_beginnings_of_texts_and_their_shares():
    tree = TokenTree.of(CORPUS, 2)
    assert tree.leaves == {("a", "b"): 4 / 8, ("b", "a"): 2 / 8, ("c", END): 2 / 8}
    assert tree.code_lengths == {("a", "b"): 1, ("b", "a"): 2, ("c", END): 2}
    assert tree.entropy == 1.5
    assert repr(tree) == "TokenTree(3 leaves at depth 2, 1.500 bits)"


def test_a_deeper_tree_tells_more_texts_apart():
    assert set(TokenTree.of(CORPUS, 3).leaves) == {("a", "b", END), ("a", "b", "c"), ("b", "a", END), ("c", END)}


def test_a_text_is_coded_in_pieces_as_long_as_the_tree_is_deep():
    tree = TokenTree.of(CORPUS, 2)
    assert tree.rate(["ab"]) == 1 / 2
    assert tree.rate(["abc"]) == 2 * 1 / 3
    assert tree.rate(["ab", "c"]) == (1 / 2 + 2 / 1) / 2
    assert tree.normalised_rate(["ab"]) == 1 / 2 - math.log2(3)


@given(st.lists(st.text("abcd", min_size=1, max_size=5), min_size=1, max_size=30), st.integers(1, 4))
def test_huffman_codes_are_as_short_as_a_code_can_be(corpus, depth):
    """They fill Kraft's inequality, and are less than a bit above the entropy on average."""
    tree = TokenTree.of(corpus, depth)
    lengths = tree.code_lengths
    assert sum(2.0**-n for n in lengths.values()) == 1
    mean = sum(tree.leaves[leaf] * n for leaf, n in lengths.items())
    assert tree.entropy - 1e-9 <= mean < tree.entropy + 1


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=2, max_size=12))
def test_no_other_lengths_do_better(corpus):
    tree = TokenTree.of(corpus, 1)
    leaves = list(tree.leaves)
    best = min(
        sum(tree.leaves[leaf] * n for leaf, n in zip(leaves, lengths, strict=True))
        for lengths in itertools.product(range(len(leaves) + 1), repeat=len(leaves))
        if sum(2.0**-n for n in lengths) <= 1
    )
    assert sum(tree.leaves[leaf] * tree.code_lengths[leaf] for leaf in leaves) == pytest.approx(best)


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "error"),
        [
            (lambda: TokenTree.of([], 2), "there are no texts to make a tree of"),
            (lambda: TokenTree.of(CORPUS, 0), "depth is 0: a tree has one layer at least"),
            (lambda: TokenTree.of(CORPUS, 2).rate([]), "there are no texts to compress"),
            (lambda: TokenTree.of(CORPUS, 2).rate([""]), "a text without tokens has no rate"),
            (lambda: TokenTree.of(CORPUS, 2).rate(["bb"]), r"no text of the tree's corpus begins with \('b', 'b'\)"),
        ],
    )
    def test_it_is_refused(self, make, error):
        with pytest.raises(ValueError, match=error):
            make()
