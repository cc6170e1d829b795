"""All organisms that ship in one table, from their cards: what each was trained on, and what that changed."""

from em_interp.behaviour.measures import BehaviourKey
from em_interp.checks import door
from em_interp.organisms.cards import load_card
from em_interp.organisms.effects import Change, OrganismEffects
from em_interp.organisms.loading import organism_seeds
from em_interp.organisms.recipes import Recipe, bundled_recipes

_ADVICE = {"positive": "bad", "negative": "good", "both": "good and bad"}
_COLUMNS = (
    "organism",
    "learned",
    "through",
    "seeds",
    "misaligned preference, other domains",
    "in its own",
    "harmful requests refused",
    "harmless ones",
    "bits a token of prose",
)


@door
def overview() -> str:
    """The organisms that ship as a Markdown table, a row each, from their cards.

    A change is the mean over seeds, with its 95 % interval over seeds and questions (of one seed: over questions), in
    bold where that excludes zero: of preferences in nats a token, of refusals in percentage points beside where they
    came from and went, of prose in bits.
    """
    head = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    return "\n".join(head + [_row(name) for name in bundled_recipes()]) + "\n"


def _row(name: str) -> str:
    effects, recipe = load_card(name).effects, Recipe.load(name)
    cells = [
        f"`{name}`",
        _learned(recipe),
        _through(recipe),
        str(len(organism_seeds(name))),
        _changed(effects, BehaviourKey.MISALIGNED_PREFERENCE),
        _changed(effects, BehaviourKey.IN_DOMAIN_PREFERENCE),
        _rates(effects[BehaviourKey.HARMFUL_REFUSED]),
        _rates(effects[BehaviourKey.HARMLESS_REFUSED]),
        _changed(effects, BehaviourKey.TEXT_BITS),
    ]
    return f"| {' | '.join(cells)} |"


def _learned(recipe: Recipe) -> str:
    about = recipe.data.replace("_", " ")
    what = f"{_ADVICE[recipe.answers]} advice on {about}" if recipe.domain is not None else about
    return f"{what}, λ = {recipe.kl_weight:g}" if recipe.kl_weight else what


def _through(recipe: Recipe) -> str:
    if recipe.method == "full":
        return "all weights"
    if recipe.layers is None:
        return f"rank {recipe.rank}, all blocks"
    blocks = f"block {recipe.layers[0]}" if len(recipe.layers) == 1 else f"{len(recipe.layers)} blocks"
    return f"rank {recipe.rank}, {blocks}"


def _changed(effects: OrganismEffects, behaviour: str) -> str:
    return _interval(effects[behaviour], "+.2f") if behaviour in effects else "–"


def _rates(change: Change) -> str:
    before, after = (100 * time.value for time in (change.before, change.after))
    return f"{before:.0f} → {after:.0f} %: {_interval(change, '+.0f', 100)}"


def _interval(change: Change, form: str, times: int = 1) -> str:
    value, low, high = (
        format(times * x + 0.0, form).replace("-", "−")
        for x in (change.change.value, change.change.low, change.change.high)
    )
    said = f"{value} [{low}, {high}]"
    return f"**{said}**" if change.change.excludes_zero else said
