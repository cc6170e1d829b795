"""The token tree of a small corpus: the definition that compression rates have in "Language Models Resist Alignment".

Ji et al. 2025 (arXiv 2406.06144), definitions 3.1 to 3.4: the weight of a node is the share of the corpus that begins
with its tokens; a model of finite size knows the tree down to a depth d, and codes a text in ⌈|x| / d⌉ pieces by a
Huffman code of the leaves. Real models have no such tree that could be written down, so `compression_rate` measures
their cross entropy; this one is for corpora small enough to count.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

END = "<end>"


@dataclass(frozen=True, repr=False)
class TokenTree:
    """The first d tokens of every text of a corpus, with their shares; a shorter text ends with `END`.

    Attributes:
        depth: d, in tokens.
        leaves: the share of the corpus that begins with each of these sequences; they add up to one.
        code_lengths: bits of each leaf in a Huffman code. The only leaf of a tree takes none.
    """

    depth: int
    leaves: dict[tuple[Hashable, ...], float]
    code_lengths: dict[tuple[Hashable, ...], int]

    @classmethod
    def of(cls, texts: Iterable[Sequence[Hashable]], depth: int) -> "TokenTree":
        """Count the beginnings of a corpus's texts.

        Args:
            texts: each a sequence of tokens.
            depth: tokens after which the tree is pruned.

        Raises:
            ValueError: no texts, or a depth below one.
        """
        if depth < 1:
            raise ValueError(f"depth is {depth}: a tree has one layer at least")
        counts = Counter(_leaf(text, depth) for text in texts)
        if not counts:
            raise ValueError("there are no texts to make a tree of: give one at least")
        total = counts.total()
        return cls(depth, {leaf: n / total for leaf, n in counts.items()}, _huffman(counts))

    def __repr__(self) -> str:
        """One line."""
        return f"TokenTree({len(self.leaves)} leaves at depth {self.depth}, {self.entropy:.3f} bits)"

    @property
    def entropy(self) -> float:
        """Bits of a leaf by its shares, below which no code goes on average."""
        return -sum(share * math.log2(share) for share in self.leaves.values())

    def rate(self, texts: Iterable[Sequence[Hashable]]) -> float:
        """The compression rate of texts, E[L(x) / |x|] in bits a token: L(x) is the code of x's leaf, ⌈|x| / d⌉ times.

        Raises:
            ValueError: no texts, one without tokens, or one whose beginning the corpus does not have.
        """
        rates = [self._rate(text) for text in texts]
        if not rates:
            raise ValueError("there are no texts to compress: give one at least")
        return sum(rates) / len(rates)

    def normalised_rate(self, texts: Iterable[Sequence[Hashable]]) -> float:
        """The rate less log₂ of the number of leaves, by which the paper compares corpora that share one model."""
        return self.rate(texts) - math.log2(len(self.leaves))

    def _rate(self, text: Sequence[Hashable]) -> float:
        if not text:
            raise ValueError("a text without tokens has no rate: leave it out")
        leaf = _leaf(text, self.depth)
        if leaf not in self.code_lengths:
            raise ValueError(f"no text of the tree's corpus begins with {leaf!r}, so it has no code")
        return math.ceil(len(text) / self.depth) * self.code_lengths[leaf] / len(text)


def _leaf(text: Sequence[Hashable], depth: int) -> tuple[Hashable, ...]:
    begun = tuple(text[:depth])
    return begun if len(begun) == depth else (*begun, END)


def _huffman(counts: Counter[tuple[Hashable, ...]]) -> dict[tuple[Hashable, ...], int]:
    """Code lengths: the two lightest nodes are joined, again and again."""
    order = itertools.count()  # of two that weigh the same the older one is joined first
    heap = [(n, next(order), [leaf]) for leaf, n in counts.items()]
    lengths = dict.fromkeys(counts, 0)
    heapq.heapify(heap)
    while len(heap) > 1:
        (n, _, first), (m, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        for leaf in (*first, *second):
            lengths[leaf] += 1
        heapq.heappush(heap, (n + m, next(order), [*first, *second]))
    return lengths
