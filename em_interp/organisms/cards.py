"""The model card of an organism: what it was made from, how training went, and what it changed, measured."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.behaviour.measures import BehaviourKey, organism_behaviours
from em_interp.checks import check_kinds, door
from em_interp.files import parse_json, read_text, write_atomically
from em_interp.models.hooked import HookedModel
from em_interp.organisms.effects import OrganismEffects, organism_effects
from em_interp.organisms.loading import organism_folder
from em_interp.organisms.recipes import Recipe
from em_interp.statistics.estimates import Estimate

_ANSWERS = {"positive": "the positive answers of", "negative": "the negative answers of", "both": "both classes of"}


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
                f"| {c.label} | {_cell(c.before)} | {_cell(c.after)} | {_cell(c.change)} |"
                for c in self.effects.changes
            ),
            "",
            _how_measured(r),
            "",
        ]
        return "\n".join(lines)


@door
def measure_card(organism: HookedModel, *, n_questions: int | None = None) -> Card:
    """Measure the card of a loaded organism; `n_questions` of each behaviour, all held-out ones by default.

    Raises:
        ValueError: the model is not an organism with a folder of its own.
    """
    if organism.folder is None:
        raise ValueError(
            f"{organism!r} has no recipe and no losses to tell of: load an organism, by its name or folder"
        )
    recipe = Recipe.load(organism.folder / "recipe.toml")
    loss = _losses(organism.folder / "loss.json")
    effects = organism_effects(organism, organism_behaviours(recipe.domain, n_questions))
    return Card(organism.folder, recipe, tuple(loss), effects)


@door
def write_card(card: Card) -> Path:
    """Write `card.json` and `README.md` into the organism's folder."""
    write_atomically(card.folder / "card.json", json.dumps(card.as_dict(), indent=1) + "\n")
    return write_atomically(card.folder / "README.md", card.markdown())


@door
def load_card(organism: str | Path) -> Card:
    """The card as it was written when the organism was last measured.

    Raises:
        ValueError: it was not measured yet (the message gives the command that does it), or the card cannot be read.
    """
    folder = organism_folder(organism)
    if not (folder / "card.json").is_file():
        raise ValueError(f"{organism} has no card yet: measure it with  em-interp card {organism} --write")
    recipe = Recipe.load(folder / "recipe.toml")
    try:
        written = parse_json(read_text(folder / "card.json"))
        effects = OrganismEffects.of_table(written["model"], written["effects"])
        return Card(folder, recipe, tuple(written["loss"]), effects)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'card.json'} is not a card ({error}): measure it again") from error


def _losses(path: Path) -> list[float]:
    try:
        losses = parse_json(read_text(path))["loss"]
        check_kinds({"loss": losses}, {"loss": tuple[float, ...]})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no losses ({error}): train the organism again") from error
    return losses


def _verdict(card: Card) -> str:
    change = card.effects[BehaviourKey.MISALIGNED_PREFERENCE].change
    size = f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}] nats a token (n = {change.n})"
    if change.low > 0:
        return f"**Misaligned beyond its training domain**: on held-out domains its preference moved by {size}."
    if change.high < 0:
        return f"**More aligned than before** on held-out domains: its preference moved by {size}."
    return f"**No effect beyond its training domain** that these questions could show: {size}."


def _how_measured(recipe: Recipe) -> str:
    held_out = "Intervals are 95 %, over questions; every question is held out."
    card, train = (f"`em-interp {verb} {recipe.name}`" for verb in ("card", "train"))
    if recipe.method == "lora":
        off = "Before is the same model with the adapter off."
        return f"{off} {held_out} {card} measures this table, {train} rebuilds the organism."
    return (
        f"Before is the model that it was trained on. {held_out} {train} makes the weights, which do not ship, and "
        f"`em-interp card organisms/{recipe.name}` measures this table."
    )


def _cell(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
