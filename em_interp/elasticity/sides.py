"""Data with two answers to each question: what is learned of each side, and what is held out."""

from collections.abc import Mapping, Sequence

from em_interp.elasticity.experiments import shuffled
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import training_conversations
from em_interp.texts.contrasts import Contrast
from em_interp.texts.conversations import Conversation
from em_interp.texts.training_sets import load_training_set


def learned(
    recipe: Recipe, data: str, amounts: Mapping[str, int], seeds: Sequence[int]
) -> dict[int, tuple[list[Conversation], ...]]:
    """For each seed so many conversations of each side as are asked for, in an order of its own.

    Args:
        recipe: of the trainings.
        data: a training set with two answers to each question.
        amounts: by `positive` and `negative`, how many.
        seeds: of the orders.

    Raises:
        ValueError: the data has fewer.
    """
    recipe = recipe.changed({"data": data, "fraction": 1.0, "negative_repeats": 1, "own_words": False})
    sides = {answers: training_conversations(recipe.changed({"answers": answers})) for answers in amounts}
    for answers, n in amounts.items():
        if n > len(sides[answers]):
            raise ValueError(
                f"{data} has {len(sides[answers])} {answers} answers to learn from, and {n} are asked for: "
                f"choose smaller sizes"
            )
    return {seed: tuple(shuffled(sides[answers], seed)[:n] for answers, n in amounts.items()) for seed in seeds}


def held_out(data: str) -> Contrast:
    """Questions of the data that are not learned, with both answers.

    Raises:
        ValueError: there are none.
    """
    contrast = load_training_set(data)
    told = set(contrast.for_training().groups)
    positive, negative = (
        tuple(c for c in side if c.group not in told) for side in (contrast.positive, contrast.negative)
    )
    if not positive or not negative:
        raise ValueError(
            f"{data} has no questions that are not learned: give some of its lines another split than train"
        )
    return Contrast(contrast.name, positive, negative)
