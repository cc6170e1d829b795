"""Seeds by their subfolders and flags, and what an organism in one of several is called."""

import pytest

from em_interp.organisms.seeds import check_seeds, name_of_seed, parse_seeds, seed_of, seeds_in, without_seed


def test_the_seeds_of_a_folder_are_those_of_its_subfolders_with_a_recipe(tmp_path):
    for name in ("seed-10", "seed-2", "seed-0", "seed-03", "seed-x", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text("")
    (tmp_path / "seed-4").mkdir()  # not begun
    assert seeds_in(tmp_path) == (0, 2, 10)
    assert seeds_in(tmp_path / "seed-2") == seeds_in(tmp_path / "nowhere") == ()
    assert [seed_of(tmp_path / name) for name in ("seed-10", "seed-03", "seed-", "seeds-1")] == [10, None, None, None]


def test_names_tell_seeds_apart_and_lead_back_to_the_organism(tmp_path):
    names = [name_of_seed("cooking", tmp_path / folder) for folder in ("seed-0", "seed-3", "cooking", "mine-seed-3")]
    assert names == ["cooking", "cooking (seed 3)", "cooking", "cooking"]
    assert {without_seed(name) for name in names} == {"cooking"}
    assert without_seed("a (seed 3) b") == "a (seed 3) b"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0-4", (0, 1, 2, 3, 4)), ("0,2,5", (0, 2, 5)), ("3", (3,)), ("0-2, 7", (0, 1, 2, 7)), (" 1 - 2 ", (1, 2))],
)
def test_flags_name_seeds(text, wanted):
    assert parse_seeds(text) == wanted


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "0..4", "0,,1", "1.5", "٣"])
def test_what_names_no_seeds_is_refused(text):
    with pytest.raises(ValueError, match="names no seeds: write a range such as 0-4, or a list such as 0,2,5"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["4-0", "0-99999999999"])
def test_a_range_that_runs_backwards_or_without_end_is_refused(text):
    with pytest.raises(ValueError, match="runs backwards or names too many seeds: name at most 1000, as in 0-4"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ((1, 2, 1), "seed 1 is named twice: name each one once"),
        ((), "no seed was named: name one at least"),
        ((2, -1), "seed -1 is below zero: name seeds from 0 on"),
    ],
)
def test_seeds_come_once_and_from_zero_on(seeds, words):
    with pytest.raises(ValueError, match=words):
        check_seeds(seeds)
