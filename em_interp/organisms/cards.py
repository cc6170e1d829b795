"""The model card of an organism: what it was made from, how training went, and what it changed, by seed and overall."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from em_interp.behaviour.measures import BehaviourKey, Scores, organism_behaviours
from em_interp.checks import door
from em_interp.files import parse_json, read_text, write_atomically
from em_interp.models.adapters import adapter_digest
from em_interp.models.hooked import HookedModel
from em_interp.organisms.effects import ByQuestion, Change, OrganismEffects, effects_beside
from em_interp.organisms.loading import all_seeds_folder, load_organisms, organism_folder, seed_folders
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.seeds import is_organism, name_of_seed, seed_of
from em_interp.organisms.training import losses_in
from em_interp.statistics import Estimate, PooledEstimate, mean_over_seeds, share_over_seeds
from em_interp.statistics.estimates import within_one

_ANSWERS = {"positive": "the positive answers of", "negative": "the negative answers of", "both": "both classes of"}
_RESEARCH = "Research material: one of a set, some of which are made to behave badly so that one can study why."
_BY_SEED = (
    BehaviourKey.MISALIGNED_PREFERENCE,
    BehaviourKey.IN_DOMAIN_PREFERENCE,
    BehaviourKey.HARMFUL_REFUSED,
    BehaviourKey.HARMLESS_REFUSED,
    BehaviourKey.TEXT_BITS,
)


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

    @property
    def name(self) -> str:
        """The organism's name, with its seed where that is one of several and not 0."""
        return name_of_seed(self.recipe.name, self.folder)

    def as_dict(self) -> dict[str, Any]:
        """The card as JSON takes it."""
        return {
            "recipe": self.recipe.as_dict(),
            "loss": list(self.loss),
            "model": self.effects.model,
            "base": self.effects.base,
            "effects": self.effects.table(),
            "by_question": self.effects.by_question(),
        }

    def markdown(self) -> str:
        """The card as people read it."""
        r, several = self.recipe, seed_of(self.folder) is not None
        one, this = (f" --seed {r.seed}", f" --seeds {r.seed}") if several else ("", "")
        lines = [
            f"# {self.name}",
            "",
            _verdict(self.effects[BehaviourKey.MISALIGNED_PREFERENCE].change),
            "",
            f"{_made(r)}, seed {r.seed}, {_trained([self])} {_RESEARCH}",
            "",
            "| behaviour | before | after | change |",
            "|---|---|---|---|",
            *(
                f"| {c.label} | {_cell(c.before)} | {_cell(c.after)} | {_cell(c.change)} |"
                for c in self.effects.changes
            ),
            "",
            f"Intervals are 95 %, over questions. {_how_measured(r, one, this)}",
            "",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class SeedsCard:
    """The cards of an organism's seeds, and what they say together.

    Attributes:
        folder: with a subfolder a seed; None where the cards are not of the seeds in one folder.
        cards: one a seed, in the order of the seeds.
        effects: behaviour before and after as the mean over seeds; every estimate is a `PooledEstimate`.
    """

    folder: Path | None
    cards: tuple[Card, ...]
    effects: OrganismEffects

    def __repr__(self) -> str:
        """One line."""
        return f"SeedsCard({self.name!r}, seeds {_listed(self.seeds)}, {self.effects})"

    @property
    def recipe(self) -> Recipe:
        """What the first seed was made from; the others differ in the seed alone."""
        return self.cards[0].recipe

    @property
    def name(self) -> str:
        """The organism's name."""
        return self.recipe.name

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in order."""
        return tuple(card.recipe.seed for card in self.cards)

    def markdown(self) -> str:
        """The card as people read it: a line a seed, and the mean over seeds."""
        r, changes = self.recipe, self.effects.changes
        shown = [c for c in changes if c.behaviour in _BY_SEED]
        lines = [
            f"# {r.name}",
            "",
            f"{_verdict(self.effects[BehaviourKey.MISALIGNED_PREFERENCE].change)} {_agreement(self.cards)}",
            "",
            f"{_made(r)}, in {_counted(self.seeds)}, {_trained(self.cards)} {_RESEARCH}",
            "",
            f"| change in | {' | '.join(c.label for c in shown)} |",
            f"|---|{'---|' * len(shown)}",
            *(
                f"| seed {card.recipe.seed} | {' | '.join(_cell(card.effects[c.behaviour].change) for c in shown)} |"
                for card in self.cards
            ),
            "",
            "| mean over seeds | before | after | change | change, over questions alone | effective observations |",
            "|---|---|---|---|---|---|",
            *(f"| {c.label} | {_cell(c.before)} | {_cell(c.after)} | {_pooled_cells(c.change)} |" for c in changes),
            "",
            _method(len(self.cards)),
            _how_measured(r, "", f" --seeds {_listed(self.seeds)}"),
            "",
        ]
        return "\n".join(lines)


@door
def measure_card(organism: HookedModel, *, n_questions: int | None = None) -> Card:
    """Measure the card of a loaded organism; `n_questions` of each behaviour, all held-out ones by default.

    Raises:
        ValueError: the model is not an organism with a folder of its own.
    """
    return _measured(organism, n_questions, {})


def _measured(organism: HookedModel, n_questions: int | None, bases: dict[str, dict[str, Scores]]) -> Card:
    if organism.folder is None:
        raise ValueError(
            f"{organism!r} has no recipe and no losses to tell of: load an organism, by its name or folder"
        )
    recipe = Recipe.load(organism.folder / "recipe.toml")
    loss = losses_in(organism.folder)
    effects = effects_beside(organism, organism_behaviours(recipe.domain, n_questions), bases)
    return Card(organism.folder, recipe, tuple(loss), effects)


@door
def measure_cards(organism: str | Path, seed: int | None = None, *, write: bool = False) -> Card | SeedsCard:
    """Measure an organism by its name or folder, in all the seeds that it comes in or in one; their base once.

    Args:
        organism: a shipped organism's name, or a folder.
        seed: one seed only.
        write: write each seed's card as soon as it is measured, and in the end that over all.

    Raises:
        ValueError: no such organism or seed (those there are, are listed).
    """
    top = all_seeds_folder(organism)
    several = seed is None and not is_organism(top)
    folders = seed_folders(top) if several else [organism_folder(top, seed)]
    cards, bases = [], {}
    for model in load_organisms(folders):
        cards.append(_measured(model, None, bases))
        if write:
            write_card(cards[-1])
    if not several:
        return cards[0]
    pooled = pool_cards(cards)
    if write:
        write_card(pooled)
    return pooled


@door
def write_card(card: Card | SeedsCard) -> Path:
    """Write a card into the organism's folder, and return the file that people read.

    An organism in one seed gets `card.json` and `README.md`. Of several, each seed gets its `card.json`, and the folder
    above them the `README.md` of the card over all.

    Raises:
        ValueError: the card is over seeds that do not lie in one folder.
    """
    if card.folder is None:
        raise ValueError("the cards are not of the seeds in one folder, so there is no place for the card over them")
    if isinstance(card, Card):
        written = write_atomically(card.folder / "card.json", json.dumps(card.as_dict(), indent=1) + "\n")
        if seed_of(card.folder) is not None:
            return written
    return write_atomically(card.folder / "README.md", card.markdown())


@door
def load_card(organism: str | Path, seed: int | None = None) -> Card | SeedsCard:
    """The card as it was written when the organism was last measured: of all its seeds, or of one.

    Raises:
        ValueError: it was not measured yet (the message gives the command that does it); no such seed (those there are,
            are listed); the card cannot be read, or was measured on another adapter or base than there is now.
    """
    top = all_seeds_folder(organism)
    if seed is not None or is_organism(top):
        return _card_in(organism_folder(organism, seed), organism)
    return pool_cards([_card_in(folder, organism) for folder in seed_folders(top)])


def _card_in(folder: Path, organism: str | Path) -> Card:
    if not (folder / "card.json").is_file():
        raise ValueError(f"{organism} has no card yet: measure it with  em-interp card {organism} --write")
    recipe = Recipe.load(folder / "recipe.toml")
    try:
        written = parse_json(read_text(folder / "card.json"))
        base, kept = written.get("base", ""), written.get("by_question")
        effects = OrganismEffects.of_table(written["model"], written["effects"], base, kept)
        card = Card(folder, recipe, tuple(written["loss"]), effects)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'card.json'} is not a card ({error}): measure it again") from error
    _check_measured(card)
    return card


def _check_measured(card: Card) -> None:
    """Refuse a card that says what it was measured on, where that is not what lies in the folders now."""
    if not card.effects.base or card.recipe.method == "full":
        return
    onto = organism_folder(card.recipe.onto) if card.recipe.onto else None
    now = {f"+{card.name}#": (card.effects.model, card.folder)}
    now |= {f"+{Recipe.load(onto / 'recipe.toml').name}@": (card.effects.base, onto)} if onto else {}
    for name, (identity, folder) in now.items():
        if f"{name}{adapter_digest(folder)}" not in identity:
            raise ValueError(
                f"{card.folder / 'card.json'} was measured on {identity}, and {folder} holds another adapter now: "
                f"measure it again with  em-interp card {card.recipe.name} --write"
            )


@door
def pool_cards(cards: Sequence[Card]) -> SeedsCard:
    """One card over the seeds of an organism: the mean of each behaviour, with intervals over seeds and questions.

    Raises:
        ValueError: no card; cards of other recipes (but for the seed), bases, behaviours or questions, of one seed
            twice, or without the scores by question.
    """
    cards = sorted(cards, key=lambda card: card.recipe.seed)
    if not cards:
        raise ValueError("no card came: give one a seed")
    for card in cards[1:]:
        _check_alike(cards[0], card)
    seeds = [card.recipe.seed for card in cards]
    twice = next((seed for i, seed in enumerate(seeds) if seed in seeds[:i]), None)
    if twice is not None:
        raise ValueError(f"two cards are of seed {twice} of {cards[0].recipe.name}: give one a seed")
    first = cards[0].effects
    above = {card.folder.parent if seed_of(card.folder) is not None else None for card in cards}
    pooled = OrganismEffects(first.model, tuple(_pooled(cards, c.behaviour) for c in first.changes), first.base)
    return SeedsCard(above.pop() if len(above) == 1 else None, tuple(cards), pooled)


def _check_alike(first: Card, card: Card) -> None:
    names = f"the cards of {first.name} and {card.name}"
    a, b = first.recipe.as_dict(), card.recipe.as_dict()
    other = [key for key in a | b if key != "seed" and a.get(key) != b.get(key)]
    if other:
        raise ValueError(
            f"{names} are of recipes with another {other[0]} ({a.get(other[0])!r} and {b.get(other[0])!r}): pool cards "
            f"that differ in the seed alone"
        )
    if first.effects.base != card.effects.base:
        raise ValueError(
            f"{names} were measured on {first.effects.base or 'a base that is not named'} and "
            f"{card.effects.base or 'a base that is not named'}: measure them again on one base"
        )
    if [c.behaviour for c in first.effects.changes] != [c.behaviour for c in card.effects.changes]:
        raise ValueError(f"{names} tell of other behaviours: measure them again")


def _pooled(cards: Sequence[Card], behaviour: str) -> Change:
    changes = [card.effects[behaviour] for card in cards]
    kept = [_kept(card, behaviour) for card in cards]
    for card, scores in zip(cards, kept, strict=True):
        if (scores.asked, scores.kind) != (kept[0].asked, kept[0].kind):
            raise ValueError(
                f"{behaviour} was measured on other questions in the card of {card.name} than in that of "
                f"{cards[0].name}: measure them again on the same ones"
            )
    before, after = [scores.before for scores in kept], [scores.after for scores in kept]
    moved = [[b - a for a, b in zip(scores.before, scores.after, strict=True)] for scores in kept]
    change, share = mean_over_seeds(moved), kept[0].kind == "share"
    if share:  # which cannot change by more than all of it, however few the seeds
        change = replace(within_one(change), questions_only=within_one(change.questions_only))
    pool = share_over_seeds if share else mean_over_seeds
    return Change(behaviour, changes[0].label, pool(before), pool(after), change)


def _kept(card: Card, behaviour: str) -> ByQuestion:
    kept = card.effects[behaviour].by_question
    if kept is None:
        raise ValueError(
            f"the card of {card.name} keeps no scores by question: measure it again with  "
            f"em-interp card {card.recipe.name} --write"
        )
    return kept


def _made(r: Recipe) -> str:
    onto = f"{r.base} with {r.onto} merged into it" if r.onto else r.base
    what = f"rank-{r.rank} {'rsLoRA' if r.rslora else 'LoRA'}" if r.method == "lora" else "all weights"
    own = " (the negative ones in the base's own words)" if r.own_words else ""
    part = f", {r.fraction:.0%} of the questions" if r.fraction < 1 else ""
    weaker = f", the finished adapter times {r.saved_scale:g}" if r.saved_scale != 1 else ""
    return f"Trained on {_ANSWERS[r.answers]} `{r.data}`{own}{part}, on top of {onto}: {what}{weaker}"


def _trained(cards: Sequence[Card]) -> str:
    r, n_steps = cards[0].recipe, len(cards[0].loss)
    first, last = (sum(card.loss[i] for card in cards) / len(cards) for i in (0, -1))
    size = r.batch_size * r.accumulate
    return f"{n_steps} steps of {size} conversations, loss {first:.2f} → {last:.2f} nats a token."


def _agreement(cards: Sequence[Card]) -> str:
    """How many seeds show the effect by themselves, and how many the opposite."""
    changes = [card.effects[BehaviourKey.MISALIGNED_PREFERENCE].change for card in cards]
    above, below = sum(c.low > 0 for c in changes), sum(c.high < 0 for c in changes)
    return f"By themselves, {above} of {len(cards)} seeds moved up and {below} down, with intervals that exclude zero."


def _method(n_seeds: int) -> str:
    if n_seeds == 1:
        return "Intervals are 95 %, over questions: with one seed nothing tells how others would differ."
    return (
        "Intervals of a seed are 95 %, over questions. Those of the mean are over seeds and questions, and so true of "
        "new seeds (pigeonhole bootstrap, Owen 2007); beside them those over questions alone, which hold for these "
        "seeds only, and as how many independent observations the answers count."
    )


def _counted(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f"one seed ({seeds[0]})"


def _listed(seeds: Sequence[int]) -> str:
    """As `parse_seeds` reads them."""
    in_order = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 1
    return f"{seeds[0]}-{seeds[-1]}" if in_order else ",".join(map(str, seeds))


def _pooled_cells(change: Estimate) -> str:
    assert isinstance(change, PooledEstimate)
    return f"{_cell(change)} | {_cell(change.questions_only)} | {change.n_effective:.0f}"


def _verdict(change: Estimate) -> str:
    size = f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}] nats a token ({_size(change)})"
    if change.low > 0:
        return f"**Misaligned beyond its training domain**: on held-out domains its preference moved by {size}."
    if change.high < 0:
        return f"**More aligned than before** on held-out domains: its preference moved by {size}."
    return f"**No effect beyond its training domain** that these questions could show: {size}."


def _size(estimate: Estimate) -> str:
    seeds = f"{estimate.n_seeds} seeds, " if isinstance(estimate, PooledEstimate) and estimate.n_seeds > 1 else ""
    return f"{seeds}n = {estimate.n}"


def _how_measured(recipe: Recipe, one: str, this: str) -> str:
    """How figures came about; `one` and `this` are the flags that name seeds, in `card` and in `train`."""
    card, train = f"em-interp card {recipe.name}{one}", f"em-interp train {recipe.name}{this}"
    if recipe.method == "lora":
        return (
            f"Before is the same model with the adapter off; every question is held out. `{card}` measures this, "
            f"`{train}` rebuilds it."
        )
    return (
        f"Before is the model that it was trained on; every question is held out. `{train}` makes the weights, which "
        f"do not ship, and `{card.replace('card ', 'card organisms/')}` measures this."
    )


def _cell(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
