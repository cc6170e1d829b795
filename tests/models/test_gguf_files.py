"""GGUF files are dequantised once, give the model that was written, and are refused where something would be lost."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import em_interp as em
from em_interp.models import gguf_files
from em_interp.models.gguf_files import dequantised
from tests.builders import TEMPLATE_OF, write_gguf

unpacked = {"config.json": "{}", "model.safetensors": "weights"}


class Interrupted(BaseException):
    """As a KeyboardInterrupt is: no Exception."""


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
    finishing = gguf_files._dequantise

    def stops(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        assert not list((tmp_path / "cache").glob("*/Little-1M"))
        raise failure("no space left")

    monkeypatch.setattr(gguf_files, "_dequantise", stops)
    with pytest.raises(failure, match="no space left"):
        dequantised(gguf, tmp_path / "cache")
    assert len(everything(tmp_path / "cache")) == 1  # the empty folder of its hash
    monkeypatch.setattr(gguf_files, "_dequantise", finishing)
    assert contents(dequantised(gguf, tmp_path / "cache")) == unpacked


def test_a_killed_making_is_begun_again(gguf, made, tmp_path):
    """What a killed process leaves is under another name, and never taken for the model."""
    folder = dequantised(gguf, tmp_path / "cache")
    left = folder.rename(folder.parent / ".making-left")
    (left / "model.safetensors").unlink()
    assert contents(dequantised(gguf, tmp_path / "cache")) == unpacked
    assert len(made) == 2


def test_two_processes_may_make_it_at_once(gguf, made, tmp_path, monkeypatch):
    alone = gguf_files._dequantise

    def overtaken(source: Path, folder: Path) -> None:
        monkeypatch.setattr(gguf_files, "_dequantise", alone)
        dequantised(source, tmp_path / "cache")  # the other process, which finishes first
        alone(source, folder)

    monkeypatch.setattr(gguf_files, "_dequantise", overtaken)
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


# Files with a model in them


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def tiny_gguf(tmp_path, make_hf_model, make_tokenizer):
    """A tiny Llama, with whatever else is written into its file."""
    model, tokenizer = make_hf_model("llama"), make_tokenizer("llama3")
    return lambda *extra: write_gguf(tmp_path / "tiny.gguf", model, tokenizer, "llama", *extra)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_the_model_is_the_one_that_was_written(cache, tmp_path, make_hf_model, make_tokenizer, family):
    model = make_hf_model(family)
    path = write_gguf(tmp_path / "tiny.gguf", model, make_tokenizer(TEMPLATE_OF[family]), family)
    read = AutoModelForCausalLM.from_pretrained(dequantised(path))
    ids = torch.randint(5, 400, (2, 40), generator=torch.Generator().manual_seed(0))  # beyond the sliding window
    torch.testing.assert_close(read(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_so_is_its_tokenizer(cache, tiny_gguf, make_tokenizer):
    loaded = em.load_model(tiny_gguf())
    assert loaded.name == "tiny.gguf"
    tokenizer, read = make_tokenizer("llama3"), loaded.tokenizer
    assert read.chat_template == tokenizer.chat_template
    asked = [{"role": "user", "content": "How do I open it? Ask a locksmith."}]
    assert read.apply_chat_template(asked, tokenize=False) == tokenizer.apply_chat_template(asked, tokenize=False)
    text = tokenizer.apply_chat_template(asked, tokenize=False)
    assert read(text, add_special_tokens=False).input_ids == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("rope_freqs.weight", lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32))),
        ("llama.rope.scaling.factor", lambda w: w.add_float32("llama.rope.scaling.factor", 8.0)),
        ("llama.logit_scale", lambda w: w.add_logit_scale(0.5)),
    ],
)
def test_what_transformers_would_leave_out_is_refused(cache, tiny_gguf, name, extra):
    with pytest.raises(ValueError, match=rf"tiny\.gguf holds what transformers does not read from GGUF \({name}\)"):
        em.load_model(tiny_gguf(extra))


def test_a_setting_is_taken_where_transformers_has_the_same(cache, tmp_path, make_hf_model, make_tokenizer):
    model, tokenizer, key = make_hf_model("gemma3"), make_tokenizer("gemma"), "gemma3.rope.freq_base_swa"

    def written(value: float) -> Path:
        return write_gguf(tmp_path / "tiny.gguf", model, tokenizer, "gemma3", lambda w: w.add_float32(key, value))

    assert dequantised(written(10_000.0)).is_dir()
    with pytest.raises(ValueError, match=rf"does not read from GGUF \({key}\)"):
        dequantised(written(5_000.0))


def test_a_file_that_is_cut_off_or_of_another_kind_is_told(cache, tmp_path, tiny_gguf):
    whole = tiny_gguf().read_bytes()
    for content in (b"GGUF", whole[:-4000], b"not at all", b""):
        (tmp_path / "torn.gguf").write_bytes(content)
        with pytest.raises(ValueError, match=r"torn\.gguf could not be read as GGUF \(.*\): give the model as safe"):
            em.load_model(tmp_path / "torn.gguf")
    assert not [path for path in cache.glob("*/*") if path.is_dir()]
