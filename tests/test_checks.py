"""What comes in is what was wanted, or is refused in words; files that were damaged are named with the field."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

import em_interp as em
from em_interp.checks import check_axes, check_kinds, path_of, shown
from em_interp.files import write_atomically
from tests.builders import contrast, directions, trajectory


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        ("5", int, "it is '5', and should be a whole number"),
        (True, int, "it is True, and should be a whole number"),
        ("x", int | float, "it is 'x', and should be a whole number or a number"),
        (math.nan, float, "it is nan: give a finite number"),
        ([1], str, r"it is \[1\], and should be words"),
        (("a", 1), tuple[str, ...], "should be a list of words"),
        ("all", Literal["one", "two"], "it is 'all', and should be one of one, two"),
        (("one", "x"), tuple[Literal["one", "two"], ...], "should be a list, each one of one, two"),
        (
            torch.zeros(3),
            Float[Tensor, "layer d_model"],
            r"it is a float32 tensor of shape \(3,\), and should be Float",
        ),
    ],
)
def test_a_value_of_another_kind(value, hint, says):
    with pytest.raises(ValueError, match=says):
        check_kinds({"it": value}, {"it": hint})


def test_tensors_that_do_not_match():
    hints = {"a": Float[Tensor, "layer d_model"], "b": Float[Tensor, " layer"], "c": Float[Tensor, "_ _"]}
    check_axes({"a": torch.ones(3, 5), "b": torch.ones(3), "c": torch.ones(2, 4)}, hints)
    with pytest.raises(ValueError, match="b has 2 along its axis 'layer', and a has 3"):
        check_axes({"a": torch.ones(3, 5), "b": torch.ones(2)}, hints)


def test_values_of_the_kind_pass():
    check_kinds(
        {"a": 1, "b": 2.5, "c": ["x"], "d": None}, {"a": float, "b": int | float, "c": tuple[str, ...], "d": Any}
    )
    check_kinds({"a": None, "b": "two"}, {"a": str | None, "b": Literal["two"]})


def test_what_is_shown_is_short():
    assert shown(torch.zeros(1000, 3)) == "a float32 tensor of shape (1000, 3)"
    assert len(shown("x" * 500)) == 80


@pytest.mark.parametrize("source", [None, 3, b"x", ["a"]])
def test_what_is_not_a_path(source):
    with pytest.raises(TypeError, match="is not a path: give the file of the direction"):
        path_of(source, "direction")


@pytest.mark.parametrize("source", ["", "  ", "a\0b"])
def test_what_no_file_is_called(source):
    with pytest.raises(ValueError, match="is not a path: give the name of a file"):
        path_of(source, "direction")


SAVED = {
    "direction": (em.Direction, lambda: directions()[0]),
    "activations": (em.Activations, lambda: contrast("a", 0).positive),
    "trajectory": (em.Trajectory, trajectory),
}
KEY = {"trajectory": "recipe"}


@pytest.fixture(params=SAVED)
def saved(request, tmp_path):
    """The class, and a file of one."""
    kind, make = SAVED[request.param]
    return request.param, kind, make().save(tmp_path / "x.safetensors")


def rewritten(what: str, path: Path, tensors: dict[str, Any], record: Any) -> Path:
    metadata = {"format": f"em_interp.{what}/1", KEY.get(what, what): json.dumps(record)}
    return write_atomically(path, save(tensors, metadata))


def contents(what: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()[KEY.get(what, what)])


class TestLoading:
    """Files of directions, activations and trajectories that are not as they were saved."""

    def test_a_field_that_is_missing_is_named(self, saved):
        what, kind, path = saved
        tensors, record = contents(what, path)
        fields = [*tensors, *(record if what != "trajectory" else [])]
        for name in fields:
            if name in ("positions", "dominance", "estimator") or name.endswith((".A", ".B")):
                continue
            some = {k: v for k, v in tensors.items() if k != name}
            rest = {k: v for k, v in record.items() if k != name}
            with pytest.raises(
                ValueError, match=rf"x\.safetensors has no {name}: it was not written by {what.title()}"
            ):
                kind.load(rewritten(what, path, some, rest))

    def test_a_field_that_nobody_knows_is_named(self, saved):
        what, kind, path = saved
        tensors, record = contents(what, path)
        if what == "trajectory":  # whose other tensors are matrices by their names
            with pytest.raises(
                ValueError, match=r"x\.safetensors is damaged: more is a float32 tensor of shape \(1,\)"
            ):
                kind.load(rewritten(what, path, {**tensors, "more": torch.zeros(1)}, record))
            return
        with pytest.raises(ValueError, match=rf"x\.safetensors holds 'more', which no {what} has"):
            kind.load(rewritten(what, path, tensors, {**record, "more": 1}))

    @pytest.mark.parametrize("value", [None, 5, "words", ["a", 1], {"a": 1}, [[1]]])
    def test_a_field_of_another_kind_is_named(self, saved, value):
        what, kind, path = saved
        tensors, record = contents(what, path)
        for name in record if what != "trajectory" else ():
            if type(record[name]) is type(value):
                continue
            with pytest.raises(ValueError, match=rf"x\.safetensors is damaged: {name} is .*, and should be"):
                kind.load(rewritten(what, path, tensors, {**record, name: value}))

    @pytest.mark.parametrize("change", [lambda t: t[None], lambda t: t[:0], lambda t: t.bool(), lambda t: t[:1]])
    def test_a_tensor_of_another_shape_is_named(self, saved, change):
        what, kind, path = saved
        tensors, record = contents(what, path)
        for name, tensor in tensors.items():
            if name == "dominance":  # which follows from the vectors, and is not read
                continue
            if name in ("loss", "grad_norm") and change(tensor).ndim == 1 and change(tensor).is_floating_point():
                continue
            with pytest.raises(ValueError, match=r"x\.safetensors is damaged: .*"):
                kind.load(rewritten(what, path, {**tensors, name: change(tensor)}, record))

    def test_a_record_that_is_a_list(self, saved):
        what, kind, path = saved
        tensors, _ = contents(what, path)
        with pytest.raises(ValueError, match=rf"has no record of its {what} that can be read"):
            kind.load(rewritten(what, path, tensors, [1, 2]))

    def test_a_folder_and_nothing(self, saved, tmp_path):
        what, kind, path = saved
        with pytest.raises(FileNotFoundError, match=f"no {what} at .*, which is a folder: name the file in it"):
            kind.load(tmp_path)
        with pytest.raises(FileNotFoundError, match=f"no {what} at"):
            kind.load(tmp_path / "other")
        with pytest.raises(ValueError, match="truncated or is not a safetensors file"):
            kind.load(write_atomically(path, b""))

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    @pytest.mark.parametrize("what", SAVED)
    def test_bytes_that_were_changed_are_refused_or_read(self, tmp_path_factory, what, data):
        """Wherever a file was cut or a byte changed, an error names it, or it is an object all the same."""
        kind, make = SAVED[what]
        path = make().save(tmp_path_factory.getbasetemp() / f"{what}.safetensors")
        whole = path.read_bytes()
        at = data.draw(st.integers(0, min(len(whole) - 1, 1500)))
        byte = data.draw(st.integers(0, 255))
        cut = data.draw(st.booleans())
        write_atomically(path, whole[:at] if cut else whole[:at] + bytes([byte]) + whole[at + 1 :])
        if cut:
            with pytest.raises(ValueError, match=path.name):
                kind.load(path)
            return
        with contextlib.suppress(ValueError):
            assert isinstance(kind.load(path), kind)
