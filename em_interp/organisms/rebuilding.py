"""Organisms in several seeds, trained one after the other; what is finished already is passed over."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from em_interp.checks import door
from em_interp.organisms.loading import all_seeds_folder, list_organisms, organism_seeds
from em_interp.organisms.recipes import Recipe, bundled_recipes
from em_interp.organisms.seeds import check_seeds, is_organism, seed_folder, seeds_in
from em_interp.organisms.training import Organism, finished, train_organism


@door
def train_seeds(
    recipe: Recipe | str | Path,
    seeds: Sequence[int],
    out: str | Path | None = None,
    *,
    onto: str | Path | None = None,
    device: str | torch.device | None = None,
) -> tuple[Organism, ...]:
    """Train a recipe in several seeds, each into a subfolder of its own, `seed-0`, `seed-1` and so on.

    A seed that is finished there is read and not trained again, so that a run which was interrupted goes on with the
    seed at which it was, from that one's last checkpoint.

    Args:
        recipe: a `Recipe`, a TOML file, or a shipped recipe by its name; its own seed is not looked at.
        seeds: those to train.
        out: the folder of all of them; by default the recipe's name, in `organisms/`.
        onto: as for `train_organism`.
        device: as for `train_organism`.

    Raises:
        ValueError: no seed, one that is named twice or is below zero; a folder that holds an organism in one seed or
            one of another recipe; or as for `train_organism`.
    """
    return tuple(train_each(recipe, check_seeds(seeds), out, onto=onto, device=device))


def train_each(
    recipe: Recipe | str | Path,
    seeds: Sequence[int],
    out: str | Path | None = None,
    *,
    onto: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Iterator[Organism]:
    """What `train_seeds` trains, one seed after the other as they are asked for."""
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    folder = Path(out) if out is not None else Path("organisms") / recipe.name
    if is_organism(folder):
        raise ValueError(f"{folder} holds an organism in one seed: choose another folder, or remove it first")
    for seed in seeds:
        one, place = replace(recipe, seed=seed), seed_folder(folder, seed)
        yield finished(place, one) or train_organism(one, place, onto=onto, device=device)


def train_shipped(out: str | Path, *, device: str | torch.device | None = None) -> Iterator[Organism]:
    """Train every organism that ships, in all seeds that it ships in, each on those of `out`, as one asks for it."""
    for name in bundled_recipes():
        recipe, folder = Recipe.load(name), Path(out) / name
        onto = Path(out) / recipe.onto if recipe.onto else None
        if name in list_organisms() and seeds_in(all_seeds_folder(name)):
            yield from train_each(recipe, organism_seeds(name), folder, onto=onto, device=device)
        else:
            yield train_organism(recipe, folder, onto=onto, device=device)
