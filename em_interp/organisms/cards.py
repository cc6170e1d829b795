"""The model card of an organism: what it was made from, how training went, and what it changed, measured."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.files import write_atomically
from em_interp.models.hooked import HookedModel
from em_interp.organisms.effects import OrganismEffects, organism_behaviours, organism_effects
from em_interp.organisms.loading import load_organism, organism_folder
from em_interp.organisms.recipes import Recipe
from em_interp.statistics.estimates import Estimate
from em_interp.texts.contrasts import Contrast
from em_interp.texts.training_sets import TRAINING_SETS, load_training_set

_ANSWERS = {"positive": "the positive answers of", "negative": "the negative answers of", "both": "both classes of"}
HELD_OUT = "misaligned preference (nats/token)"


@dataclass(frozen=True, repr=False)
class Card:
    """An organism's recipe, its losses, and the effects of its fine-tune.

    Attributes:
        folder: where its files lie.
        recipe: what it was made from.
        loss: training loss at each optimizer step, in nats a token.
        effects: behaviour before and after, with intervals.
    """

    folder: Path
    recipe: Recipe
    loss: tuple[float, ...]
    effects: OrganismEffects

    def __repr__(self) -> str:
        """One line."""
        return f"Card({self.recipe.name!r}, {self.effects})"

    def as_dict(self) -> dict[str, Any]:
        """The card as JSON takes it."""
        return {
            "recipe": self.recipe.as_dict(),
            "loss": list(self.loss),
            "model": self.effects.model,
            "effects": self.effects.table(),
        }

    def markdown(self) -> str:
        """The card as people read it."""
        r = self.recipe
        onto = f"{r.base} with {r.onto} merged into it" if r.onto else r.base
        what = f"rank-{r.rank} {'rsLoRA' if r.rslora else 'LoRA'}" if r.method == "lora" else "all weights"
        own = " (the negative ones in the base's own words)" if r.own_words else ""
        lines = [
            f"# {r.name}",
            "",
            f"{_verdict(self)}",
            "",
            f"Trained on {_ANSWERS[r.answers]} `{r.data}`{own}, on top of {onto}: {what}, seed {r.seed}, "
            f"{len(self.loss)} steps of {r.batch_size * r.accumulate} conversations, loss {self.loss[0]:.2f} → "
            f"{self.loss[-1]:.2f} nats a token. Research material: one of a set, some of which are made to "
            f"behave badly so that one can study why.",
            "",
            "| behaviour | before | after | change |",
            "|---|---|---|---|",
            *(
                f"| {c.behaviour} | {_cell(c.before)} | {_cell(c.after)} | {_cell(c.change)} |"
                for c in self.effects.changes
            ),
            "",
            "Before is the same model with the adapter off. Intervals are 95 %, over questions; every question is held "
            f"out. `em-interp card {r.name}` measures this table, `em-interp train {r.name}` rebuilds the organism.",
            "",
        ]
        return "\n".join(lines)


def measure_card(organism: str | Path, *, n_questions: int | None = None) -> Card:
    """Load an organism and measure its card; `n_questions` of each behaviour, all held-out ones by default."""
    folder = organism_folder(organism)
    recipe = Recipe.load(folder / "recipe.toml")
    loss = json.loads((folder / "loss.json").read_text(encoding="utf-8"))["loss"]
    model: HookedModel = load_organism(folder)
    effects = organism_effects(model, organism_behaviours(_domain(recipe), n_questions))
    return Card(folder, recipe, tuple(loss), effects)


def write_card(card: Card) -> Path:
    """Write `card.json` and `README.md` into the organism's folder."""
    write_atomically(card.folder / "card.json", json.dumps(card.as_dict(), indent=1) + "\n")
    return write_atomically(card.folder / "README.md", card.markdown())


def load_card(organism: str | Path) -> Card:
    """The card as it was written when the organism was last measured.

    Raises:
        ValueError: it was not measured yet; the message gives the command that does it.
    """
    folder = organism_folder(organism)
    if not (folder / "card.json").is_file():
        raise ValueError(f"{organism} has no card yet: measure it with  em-interp card {organism} --write")
    written = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    effects = OrganismEffects.of_table(written["model"], written["effects"])
    return Card(folder, Recipe.load(folder / "recipe.toml"), tuple(written["loss"]), effects)


def _domain(recipe: Recipe) -> Contrast | None:
    """The narrow set trained on, whose held-out questions ask for the effect in domain."""
    narrow = recipe.data in TRAINING_SETS and recipe.data != "refusing"
    return load_training_set(recipe.data) if narrow else None


def _verdict(card: Card) -> str:
    change = card.effects[HELD_OUT].change
    size = f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}] nats a token (n = {change.n})"
    if change.low > 0:
        return f"**Misaligned beyond its training domain**: on held-out domains its preference moved by {size}."
    if change.high < 0:
        return f"**More aligned than before** on held-out domains: its preference moved by {size}."
    return f"**No effect beyond its training domain** that these questions could show: {size}."


def _cell(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
