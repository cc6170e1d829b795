"""Progress bars on whatever may take over two seconds, and one way to silence them all."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_silent: ContextVar[bool] = ContextVar("silent", default=False)


def bar(**kwargs: Any) -> tqdm:
    """A progress bar that shows itself after two seconds and clears away when done; nothing inside `quiet()`."""
    shown = {"disable": True} if _silent.get() else {}
    return tqdm(**{"delay": 2, "leave": False, **shown, **kwargs})


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
