"""Data with two answers to each question: what is learned of each side, and what is held out."""

from collections.abc import Iterator, Mapping

from em_interp.elasticity.experiments import shuffled
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import training_conversations
from em_interp.texts.contrasts import Contrast
from em_interp.texts.conversations import Conversation
from em_interp.texts.training_sets import load_training_set


def learned(recipe: Recipe, data: str, amounts: Mapping[str, int], seed: int) -> Iterator[list[Conversation]]:
    """Of each side so many conversations as are asked for, in an order of this seed.

    Args:
        recipe: of the trainings.
        data: a training set with two answers to each question.
        amounts: by `positive` and `negative`, how many.
        seed: of the order.

    Raises:
        ValueError: the data has fewer.
    """
    recipe = recipe.changed({"data": data, "fraction": 1.0, "negative_repeats": 1, "own_words": False})
    for answers, n in amounts.items():
        conversations = training_conversations(recipe.changed({"answers": answers}))
        if n > len(conversations):
            raise ValueError(
                f"{data} has {len(conversations)} {answers} answers to learn from, and {n} are asked for: "
                f"choose smaller sizes"
            )
        yield shuffled(conversations, seed)[:n]


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
