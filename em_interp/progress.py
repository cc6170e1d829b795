"""Progress bars on whatever may take over two seconds: one for a whole job, and one way to silence them all."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_silent: ContextVar[bool] = ContextVar("silent", default=False)
_job: ContextVar["_Job | None"] = ContextVar("job", default=None)


def bar(**kwargs: Any) -> Any:
    """A progress bar that shows itself after two seconds and clears away when done; nothing inside `quiet()`.

    Inside a `job` it moves the job's one bar instead.
    """
    job = _job.get()
    if job is not None:
        return _Share(job, **kwargs)
    shown = {"disable": True} if _silent.get() else {}
    return tqdm(**{"delay": 2, "leave": False, **shown, **kwargs})


@contextmanager
def job(parts: Mapping[str, int | float]) -> Iterator[None]:
    """Inside, one bar tells of everything: which part is at work, how much of the whole is done, and the time left.

    Args:
        parts: what will be done, in order, each with the share of the time that it usually takes.
    """
    form = "{percentage:3.0f}% |{bar}| {desc} [{elapsed} gone, {remaining} left]"
    shown: dict[str, Any] = {"disable": True} if _silent.get() else {}
    with tqdm(total=sum(parts.values()), bar_format=form, leave=True, **shown) as whole:
        token = _job.set(_Job(whole, dict(parts)))
        try:
            yield
        finally:
            _job.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Inside is the work of one part of the `job`, if there is one that has such a part."""
    job = _job.get()
    if job is None or name not in job.parts:
        yield
        return
    job.begin(name)
    yield
    job.finish()


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no bar is shown, neither this library's nor that of transformers loading weights."""
    from transformers.utils import logging

    token = _silent.set(True)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        _silent.reset(token)
        if shown:
            logging.enable_progress_bar()


class _Job:
    """The one bar of a job, its parts, and how far they are."""

    def __init__(self, whole: tqdm, parts: dict[str, int | float]) -> None:
        self.whole, self.parts = whole, parts
        self.name, self.before, self.depth = "", 0.0, 0

    def begin(self, name: str) -> None:
        self.name = name
        self.before = sum(size for other, size in self.parts.items() if self._precedes(other, name))
        number = list(self.parts).index(name) + 1
        self.whole.set_description_str(f"{name} ({number} of {len(self.parts)})", refresh=False)
        self.moved(0.0)

    def finish(self) -> None:
        self.moved(1.0)
        self.name = ""

    def moved(self, share: float) -> None:
        """Show that a share of the part is done; a bar never goes back."""
        if self.name:
            now = self.before + self.parts[self.name] * min(share, 1.0)
            self.whole.update(max(now - self.whole.n, 0.0))

    def _precedes(self, one: str, other: str) -> bool:
        names = list(self.parts)
        return names.index(one) < names.index(other)


class _Share:
    """What takes a bar's place inside a job; the outermost one tells how far the part is."""

    def __init__(
        self,
        job: _Job,
        *,
        iterable: Iterable[Any] = (),
        total: int | float | None = None,
        initial: int | float = 0,
        **_: Any,
    ) -> None:
        self.job, self.iterable, self.n = job, iterable, initial
        self.total = len(iterable) if total is None and isinstance(iterable, Sized) else total

    def __enter__(self) -> "_Share":
        self.job.depth += 1
        return self

    def __exit__(self, *_: Any) -> None:
        self.job.depth -= 1

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update(1)

    def update(self, n: int | float = 1) -> None:
        self.n += n
        if self.job.depth == 1 and self.total:
            self.job.moved(self.n / self.total)

    def reset(self, total: int | float | None = None) -> None:
        self.n, self.total = 0, total

    def set_postfix_str(self, *_: Any, **__: Any) -> None:
        """The job's bar tells nothing so small."""

    set_postfix = set_postfix_str
