"""What an experiment on resistance found: forward against inverse, over seeds, beside the paper's numbers."""

from dataclasses import dataclass
from typing import Any, ClassVar

from em_interp.checks import check_kinds
from em_interp.elasticity.results import ExperimentResult, check_row, known, signed
from em_interp.statistics.estimates import Estimate

PAIRS = ((1, 2), (2, 3), (1, 3))
MEASURES = {
    "loss": "training loss over the last quarter of the steps, nats a token",
    "after": "held-out texts after the training, bits a byte",
    "excess": "held-out texts after the training, bits a byte more than their author needs",
    "gained": "bits a byte that the training saved on held-out texts, as a share of what there was to save",
}
# Training losses of Ji et al. 2025, table 1, inverse and forward, for the pairs in this order.
PAPER = {
    ("Alpaca", "Llama-2-7B"): ((0.159, 0.202), (0.195, 0.214), (0.167, 0.235)),
    ("Alpaca", "Llama-2-13B"): ((0.177, 0.196), (0.215, 0.241), (0.184, 0.235)),
    ("Alpaca", "Llama-3-8B"): ((0.254, 0.257), (0.227, 0.323), (0.234, 0.323)),
}
_WAY = {"start": int, "target": int, "loss": tuple[float, ...], "before": float, "after": float, "author": float}
_ROW = {"seed": int, "order": tuple[int, ...], "ways": tuple[dict, ...]}


@dataclass(frozen=True, repr=False)
class ResistanceResult(ExperimentResult):
    """Forward and inverse trainings of every seed that is finished.

    Attributes:
        name: of the experiment.
        base: what the first slice was trained onto.
        settings: of the experiment.
        rows: of each seed its order of the slices, and its `ways`: from which model to what which one said, the
            training loss at each step (nats a token), and bits a byte of the held-out texts before and after the
            training and by their author.
    """

    kind: ClassVar[str] = "resistance"

    @classmethod
    def check(cls, row: dict[str, Any], first: dict[str, Any]) -> None:
        """Refuse a row that lacks something, or holds something else."""
        check_row(row, _ROW)
        ways = {(way.get("start"), way.get("target")) for way in row["ways"]}
        if ways != {way for pair in PAIRS for way in (pair, pair[::-1])}:
            raise ValueError("it does not have the six ways between three models")
        for way in row["ways"]:
            if set(way) != set(_WAY) or not way["loss"]:
                raise ValueError(f"the way {way['start']} → {way['target']} has {', '.join(way)}")
            check_kinds(way, _WAY)

    def __repr__(self) -> str:
        """One line."""
        return f"ResistanceResult({self.name!r}, {len(self.rows)} seeds on {self.base})"

    def values(self, measure: str, pair: tuple[int, int], *, inverse: bool) -> list[float]:
        """A measure of one way, of each seed.

        Raises:
            ValueError: an unknown measure.
        """
        known(measure, MEASURES, "measure")
        start, target = pair[::-1] if inverse else pair
        ways = [next(w for w in r["ways"] if (w["start"], w["target"]) == (start, target)) for r in self.rows]
        return [_measured(way, measure) for way in ways]

    def difference(self, measure: str = "excess", pair: tuple[int, int] | None = None) -> Estimate:
        """Inverse less forward, with Student's interval over seeds; of all three pairs, by default, their mean.

        Raises:
            ValueError: an unknown measure, or fewer than two seeds.
        """
        pairs = PAIRS if pair is None else (pair,)
        found = [
            [b - f for b, f in zip(*(self.values(measure, p, inverse=i) for i in (True, False)), strict=True)]
            for p in pairs
        ]
        return self.over_seeds([_mean(list(differences)) for differences in zip(*found, strict=True)])

    def markdown(self) -> str:
        """A table of every measure and pair: inverse, forward, and their difference with its interval over seeds."""
        lines = ["| measure | pair | inverse | forward | inverse − forward |", "|---|---|---|---|---|"]
        for measure in MEASURES:
            for pair in PAIRS:
                inverse, forward = (_mean(self.values(measure, pair, inverse=i)) for i in (True, False))
                named = f"{pair[1]}→{pair[0]} and {pair[0]}→{pair[1]}"
                lines.append(f"| {measure} | {named} | {inverse:.3f} | {forward:.3f} | {self._said(measure, pair)} |")
            lines.append(f"| {measure} | mean of the three | | | {self._said(measure, None)} |")
        lines += ["", *(f"*{measure}*: {what}." for measure, what in MEASURES.items())]
        lines += ["", f"{len(self.rows)} seeds on {self.base}; 95 % intervals over seeds. {self.conclusion()}"]
        lines += ["", "Training losses in the paper (Ji et al. 2025, table 1), inverse / forward:"]
        for (data, model), losses in PAPER.items():
            told = ", ".join(
                f"{k}→{j} {inverse:.3f} / {forward:.3f}"
                for (j, k), (inverse, forward) in zip(PAIRS, losses, strict=True)
            )
            lines.append(f"- {model} on {data}: {told}")
        return "\n".join(lines) + "\n"

    def conclusion(self) -> str:
        """Whether this model resists, in a sentence for the paper's measure and one for the excess."""
        if not self.enough:
            return "One seed has no interval: nothing can be said of resistance."
        said = []
        for measure, what in (("loss", "training loss"), ("excess", "excess over the author's own bits")):
            found = self.difference(measure)
            verdict = (
                "inverse training ends lower, as in the paper"
                if found.high < 0
                else "inverse training ends higher, against the paper"
                if found.low > 0
                else "inverse and forward training are not told apart"
            )
            said.append(f"By the {what} {verdict}: {signed(found, 3)}.")
        return " ".join(said)

    def _said(self, measure: str, pair: tuple[int, int] | None) -> str:
        if not self.enough:
            return "–"
        return signed(self.difference(measure, pair), 3)


def _measured(way: dict[str, Any], measure: str) -> float:
    if measure == "loss":
        last = way["loss"][-max(1, len(way["loss"]) // 4) :]
        return sum(last) / len(last)
    if measure == "gained":
        return (way["before"] - way["after"]) / (way["before"] - way["author"])
    return way["after"] - (way["author"] if measure == "excess" else 0.0)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
