"""A reader meets the old file or the new one, and nothing else."""

import os
import platform
import stat
from importlib import metadata
from pathlib import Path

import pytest
from safetensors.torch import save

import em_interp as em
from em_interp.files import read_tensors, versions, write_atomically


class Interrupted(BaseException):
    """As a KeyboardInterrupt is: no Exception."""


@pytest.mark.parametrize("content", ["−naïve\n", b"\x00\xff\r\n", "", b""])
def test_what_is_written_can_be_read(tmp_path, content):
    path = tmp_path / "new" / "folder" / "file.json"
    assert write_atomically(path, content) == path
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(path.parent) == ["file.json"]


def test_an_older_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("old, and longer")
    assert write_atomically(path, "new").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_bare_name_is_written_where_one_is(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    assert write_atomically(Path("file"), "new").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_others_may_read_it(tmp_path):
    assert stat.S_IMODE(write_atomically(tmp_path / "file", "new").stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fdopen", "chmod", "replace"])
@pytest.mark.parametrize("failure", [OSError, Interrupted])
@pytest.mark.parametrize("existed", [True, False])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step, failure, existed):
    path = tmp_path / "file"
    if existed:
        path.write_text("old")

    def fails(*_, **__):
        raise failure("no space left")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(failure, match="no space left"):
        write_atomically(path, "new")
    assert os.listdir(tmp_path) == (["file"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_a_failure_half_way_through_the_bytes_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    opened = os.fdopen

    def fills_up(*args):
        file = opened(*args)
        whole = file.write

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, data):
                whole(data[:2])
                file.flush()
                assert path.read_text() == "old"  # a reader now meets the old one
                raise OSError("no space left")

        return Full()

    monkeypatch.setattr(os, "fdopen", fills_up)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_record_that_cannot_be_read_is_told(tmp_path):
    for key, record in (("other", "{}"), ("thing", "{"), ("thing", '{"a": NaN}'), ("thing", "[" * 100_000)):
        path = write_atomically(tmp_path / "a.safetensors", save({}, {"format": "em_interp.thing/1", key: record}))
        with pytest.raises(ValueError, match=r"a\.safetensors has no record of its thing that can be read"):
            read_tensors(path, "thing")


def test_versions_are_those_installed():
    found = versions("torch", "no-such-library")
    assert found["em_interp"] == em.__version__
    assert found["torch"] == metadata.version("torch")
    assert found["no-such-library"] == "not installed"
    assert found["python"] == platform.python_version()


def test_the_citation_names_this_version():
    citation = Path(__file__).parent.parent / "CITATION.cff"
    assert f"\nversion: {em.__version__}\n" in citation.read_text(encoding="utf-8")
