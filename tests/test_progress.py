"""A job has one bar, which names its parts and never goes back; outside a job every bar is one of tqdm's."""

import io

import pytest

from em_interp import progress
from em_interp.progress import bar, job, part, quiet


@pytest.fixture(autouse=True)
def made(monkeypatch) -> list[progress.tqdm]:
    """Every bar that is made, in order, written into a string and not to the terminal; each keeps where it has been."""
    bars: list[progress.tqdm] = []

    class Kept(progress.tqdm):
        def __init__(self, *args, **kwargs):
            self.been, self.named, self.written = [], [], io.StringIO()
            super().__init__(*args, **{"disable": False, "mininterval": 0, "miniters": 0, **kwargs}, file=self.written)
            bars.append(self)

        def update(self, n=1):
            shown = super().update(n)
            self.been.append(self.n)
            return shown

        def set_description_str(self, desc=None, refresh=True):
            self.named.append(desc)
            super().set_description_str(desc, refresh)

    monkeypatch.setattr(progress, "tqdm", Kept)
    return bars


def test_a_job_has_one_bar_whatever_is_inside(made):
    with job({"reading": 1, "writing": 3}):
        with part("reading"):
            list(bar(iterable=range(4)))
        with part("writing"), bar(total=2) as inside:
            inside.update(1)
            assert made[0].n == pytest.approx(1 + 3 / 2)
    [whole] = made
    assert (whole.total, whole.n) == (4, 4)
    assert whole.leave


def test_parts_are_named_with_their_number(made):
    with job({"reading": 1, "writing": 3}):
        for name in ("reading", "writing"):
            with part(name):
                pass
    assert made[0].named == ["reading (1 of 2)", "writing (2 of 2)"]
    assert "writing (2 of 2)" in made[0].written.getvalue()
    assert "100%" in made[0].written.getvalue()
    assert made[0].been[-1] == 4


def test_a_part_begins_where_those_before_it_end(made):
    """Also where one of them was left out."""
    with job({"reading": 1, "judging": 5, "writing": 4}):
        with part("reading"):
            pass
        assert made[0].n == 1
        with part("writing"):
            assert made[0].n == 6
        assert made[0].n == 10


def test_the_bar_never_goes_back(made):
    with job({"reading": 2, "writing": 2}):
        with part("reading"):
            for n in (4, 2, 8):  # one after another: each would begin at nothing again
                for _ in bar(iterable=range(n)):
                    pass
            with bar(total=2) as again:
                again.update(5)  # more than it was to have
                again.reset(total=10)
                again.update(1)
        with part("writing"):
            pass
        with part("reading"):  # once more
            pass
    been = made[0].been
    assert been == sorted(been)
    assert max(been) == 4


def test_of_bars_inside_bars_the_outermost_moves_it(made):
    with job({"reading": 10}), part("reading"):
        seen = []
        for _ in bar(iterable=["a", "b"], desc="models", unit="model"):
            with bar(total=5, desc="texts") as texts:
                for _ in range(5):
                    texts.update(1)
                    texts.set_postfix_str("fast", refresh=False)
                    texts.set_postfix(loss="2.00", refresh=False)
            seen.append(made[0].n)
        assert seen == [0, 5]  # the second item is not done before the loop goes on
        assert made[0].n == 10


def test_what_has_no_length_moves_it_at_the_end(made):
    with job({"reading": 3}), part("reading"):
        assert list(bar(iterable=iter("abc"))) == ["a", "b", "c"]
        assert made[0].n == 0
        assert list(bar(iterable=iter("abc"), total=3)) == ["a", "b", "c"]
        assert made[0].n == 3


def test_what_was_done_before_counts(made):
    with job({"answering": 8}), part("answering"), bar(total=4, initial=2) as answers:
        answers.update(1)
        assert made[0].n == pytest.approx(6)


def test_an_inner_bar_that_is_left_by_an_error_leaves_the_rest_right(made):
    with job({"reading": 1, "writing": 2}):
        with pytest.raises(RuntimeError, match="oh"), part("reading"), bar(total=2):
            raise RuntimeError("oh")
        with part("writing"), bar(total=2) as inside:
            inside.update(1)
            assert made[0].n == pytest.approx(2)
    assert made[0].n == 3


def test_a_part_that_the_job_does_not_have_moves_nothing(made):
    with job({"reading": 1}):
        with part("singing"):
            list(bar(iterable=range(3)))
        assert made[0].n == 0
        assert made[0].named == []


def test_quiet_silences_it(made):
    with quiet():
        with job({"reading": 1}), part("reading"):
            list(bar(iterable=range(3)))
        list(bar(iterable=range(3)))
    assert [b.disable for b in made] == [True, True]
    assert not any(b.written.getvalue() for b in made)
    with bar(total=1) as loud:
        assert not loud.disable


def test_outside_a_job_a_bar_is_one_of_tqdms(made):
    with part("reading"):  # nothing to be a part of
        assert list(bar(iterable=range(3), desc="texts", unit="text")) == [0, 1, 2]
    with bar(total=2, delay=0, leave=True) as own:
        own.update(2)
    assert [(b.desc, b.unit, b.delay, b.leave, b.n) for b in made] == [
        ("texts", "text", 2, False, 3),
        ("", "it", 0, True, 2),
    ]
    assert made[1] is own
    with job({"reading": 1}):
        pass
    list(bar(iterable=range(1)))
    assert len(made) == 4  # a job that is over takes no bars
