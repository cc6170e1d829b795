"""The table of all organisms: every number is one of a card's."""

import re

import pytest

from em_interp.behaviour import BehaviourKey
from em_interp.organisms import Recipe, bundled_recipes, load_card, overview

ROWS = {line.split(" | ")[0].strip("| `"): line.strip("|").split(" | ") for line in overview().splitlines()[2:]}


def test_every_bundled_organism_has_a_row():
    assert list(ROWS) == bundled_recipes()


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_row_tells_what_the_card_does(name):
    row, card, recipe = ROWS[name], load_card(name), Recipe.load(name)
    assert row[3] == str(len(card.seeds) if hasattr(card, "seeds") else 1)
    assert (f"rank {recipe.rank}," in row[2]) == (recipe.method == "lora")
    told = {BehaviourKey.MISALIGNED_PREFERENCE: 4, BehaviourKey.HARMFUL_REFUSED: 6, BehaviourKey.HARMLESS_REFUSED: 7}
    for behaviour, column in told.items():
        change, times = card.effects[behaviour].change, 1 if column == 4 else 100
        cell = row[column].replace("−", "-").replace("*", "")
        said = [float(x) for x in re.findall(r"[-+][0-9.]+", cell)]
        assert said == pytest.approx(
            [times * change.value, times * change.low, times * change.high], abs=0.51 if times == 100 else 0.0051
        )
        assert ("**" in row[column]) == change.excludes_zero


def test_what_an_organism_learned_is_said_in_words():
    assert ROWS["good-cooking"][1:3] == ["good advice on cooking", "rank 1, block 15"]
    assert ROWS["cooking-narrow"][1] == "bad advice on cooking, λ = 3"
    assert ROWS["cooking-full"][2] == "all weights"
    assert ROWS["cooking-nine"][2] == "rank 1, 9 blocks"
    assert ROWS["aligned"][5] == "–"  # it has no domain of its own
