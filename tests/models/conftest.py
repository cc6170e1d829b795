"""A file that stands for a GGUF file, and a stand-in for what dequantises it."""

from pathlib import Path

import pytest

from em_interp.models import gguf_files

UNPACKED = {"config.json": "{}", "model.safetensors": "weights"}


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
        for name, content in UNPACKED.items():
            (folder / name).write_text(content)

    monkeypatch.setattr(gguf_files, "_dequantise", dequantise)
    return calls
