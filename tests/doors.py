"""The walk through the doors: whatever comes in that should not is refused by this library, in words of its own.

Run as a program, without the type checks of the test suite, since users have none: it prints what was wrong as JSON.
"""

import json
import linecache
import math
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import em_interp as em
from em_interp.models.hooked import HookedModel
from em_interp.organisms.relatives import OrganismReadings
from em_interp.texts.contrasts import Contrast
from tests import builders

PACKAGE = str(Path(em.__file__).parent)
SECONDS = 10
NAN, INF = math.nan, math.inf


def numbers() -> list[Any]:
    return [None, NAN, INF, -INF, -1, 0, 0.5, 10**12, True, "5", b"5", "", [], [1], {}, object(), torch.ones(3)]


def words() -> list[Any]:
    return [None, 3, "", " ", "nonsense", "\ud800", "a\0b", b"x", "x" * 5000, [], {}, ["a"], True, torch.ones(2)]


def lists(item: Any) -> list[Any]:
    bad = [None, 3, "word", b"x", [], (), {}, [None], [[]], [[item]], [item, None], {item: 1} if isinstance(item, str) else 0]
    return [*bad, ["\ud800"], [b"x"], [3], [NAN], object(), torch.ones(2), iter([])]


def vectors(width: int) -> list[Any]:
    good = torch.ones(width)
    bad = [good * NAN, good * INF, good * 0, torch.ones(width + 1), torch.ones(0), torch.ones(2, width), torch.tensor(1.0)]
    other = [good.long(), good.bool(), good.to(torch.complex64), good.tolist(), good.numpy(), good[None, None]]
    return [*bad, *other, None, 3, "x", [], {}, object()]


def conversations() -> list[Any]:
    user, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    messages = [
        [],
        [{}],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": None, "content": "x"}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "<|im_end|>"}],
        [{"role": "user", "content": "word " * 400}],
        [{"role": "user", "content": ["Why?"]}],
        [{"role": "user", "content": b"Why?"}],
        [answer],
        [user, user],
        [user, answer, answer],
        [user, {"role": "assistant", "content": " "}],
        [user, {"role": "assistant", "content": "\ud800"}],
        [user, None],
        user,
        "Why?",
        None,
        3,
    ]
    return [*([m] for m in messages), *lists("Why?"), [[user, answer]] * 2, [[user, answer], [user]]]


def paths(folder: Path) -> list[Any]:
    damaged = {
        "empty.jsonl": b"",
        "torn.jsonl": b'{"messages": [{"role": "user"',
        "list.json": b"[1, 2, 3]",
        "nan.json": b'[{"question": NaN}]',
        "deep.json": b"[" * 5000,
        "bytes.jsonl": b"\xff\xfe\x00x",
        "zip.jsonl": b"PK\x03\x04xxxx",
        "nul.csv": b"question,answer\n\0,\n",
        "twice.csv": b"a,a\n1,2\n",
        "short.csv": b"question,answer,aligned,coherent\nWhy?\n",
        "x.yaml": b"- &a [*a]\n",
        "tag.yaml": b"!!python/object:os.system x\n",
        "x.toml": b"name = [",
        "key.toml": b'nmae = "x"\n',
        "kinds.toml": b'name = 3\ndata = ["x"]\n',
        "x.safetensors": b"\x10\0\0\0\0\0\0\0{}",
        "card.json": b"{}",
        "config.json": b"{",
    }
    for name, content in damaged.items():
        (folder / name).write_bytes(content)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_bytes(b'{"model_type": "llama"}')
    (folder / "organism").mkdir()
    (folder / "organism" / "recipe.toml").write_bytes(b'name = "x"\ndata = "y"\nsteps = 1\n')
    (folder / "card").mkdir()
    for name, content in {"recipe.toml": b'name = "x"\ndata = "y"\nsteps = 1\n', "card.json": b'{"model": 3}'}.items():
        (folder / "card" / name).write_bytes(content)
    found = [folder, *(folder / n for n in (*damaged, "model", "organism", "card", "nowhere", "no/where.jsonl"))]
    return [*words(), *found, *map(str, found)]


class World:
    """What doors are opened with: tiny models and what was read from them."""

    def __init__(self, folder: Path) -> None:
        tokenizer = builders.tokenizer_maker(lambda name: Path(tempfile.mkdtemp(dir=folder)))("llama3")
        self.folder, self.model = folder, HookedModel.from_hugging_face(builders.hf_model("llama"), tokenizer, name="tiny")
        peft = builders.peft_model("llama", targets=("down_proj",))
        self.organism = HookedModel.from_hugging_face(peft, tokenizer, name="tiny", adapter="random#0")
        contrast = em.load_contrast("refusal").where(split="train")
        self.contrast = Contrast("small", contrast.positive[:3], contrast.negative[:3])
        self.pairs = builders.letters()
        self.read = em.read_contrast(self.model, em.load_contrast("misalignment").for_training().take(12), layers=[0, 1, 2])
        self.direction = em.difference_of_means(self.read)
        self.asked = [c.messages[:1] for c in contrast.positive[:2]]
        self.hooks = em.project_out(torch.randn(32), [em.site(self.model, 1)])
        self.readings = em.read_organisms([self.organism], em.load_contrast("misalignment").take(12), span="last")
        self.paths = paths(folder)
        broken = [None, 3, "x", [None], ["x"], [("x", 1)], [("nowhere", print)], [(3, print)], [()], object(), {"a": 1}]
        self.broken_hooks = [*broken, [(em.site(self.model, 1), lambda stream, hook: stream[:0])]]
        self.things = [None, 3, "x", b"x", [], {}, object(), torch.ones(3), self.contrast, self.read, self.model]
