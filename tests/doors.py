"""The walk through the doors: whatever comes in that should not is refused by this library, in words of its own.

Run as a program, without the type checks of the test suite, since users have none: it prints what was wrong as JSON.
"""

import contextlib
import io
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
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import em_interp as em
from em_interp import cli, elasticity
from em_interp.elasticity.found import RESULTS
from em_interp.models.hooked import HookedModel
from em_interp.organisms.recipes import Recipe
from em_interp.report.settings import Settings
from em_interp.texts.contrasts import Contrast
from tests import builders, made_results

PACKAGE = str(Path(em.__file__).parent)
SECONDS = 10
NAN, INF = math.nan, math.inf


def numbers() -> list[Any]:
    return [None, NAN, INF, -INF, -1, 0, 0.5, 10**12, True, "5", b"5", "", [], [1], {}, object(), torch.ones(3)]


def words() -> list[Any]:
    return [None, 3, "", " ", "nonsense", "\ud800", "a\0b", b"x", "x" * 5000, [], {}, ["a"], True, torch.ones(2)]


def lists(item: Any) -> list[Any]:
    bad = [
        None,
        3,
        "word",
        b"x",
        [],
        (),
        {},
        [None],
        [[]],
        [[item]],
        [item, None],
        {item: 1} if isinstance(item, str) else 0,
    ]
    return [*bad, ["\ud800"], [b"x"], [3], [NAN], object(), torch.ones(2), iter([])]


def tables(w: "World") -> list[Any]:
    """What is not a table of seeds and questions, or holds what has no mean."""
    rows = [
        [[0.0, NAN], [1.0, 1.0]],
        [[0.0], [1.0]],
        [[0.0, 1.0], [1.0]],
        [[], []],
        [0.0, 1.0],
        [["a", "b"]],
        [[1j, 2]],
    ]
    tensors = [torch.ones(3), torch.ones(2, 1), torch.ones(0, 3), torch.ones(1, 2, 3), torch.ones(2, 2).bool()]
    return [*w.things, *lists([0.0, 1.0]), *rows, *tensors]


def vectors(width: int) -> list[Any]:
    good = torch.ones(width)
    bad = [
        good * NAN,
        good * INF,
        good * 0,
        torch.ones(width + 1),
        torch.ones(0),
        torch.ones(2, width),
        torch.tensor(1.0),
    ]
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
        self.folder, self.model = (
            folder,
            HookedModel.from_hugging_face(builders.hf_model("llama"), tokenizer, name="tiny"),
        )
        peft = builders.peft_model("llama", targets=("down_proj",))
        self.organism = HookedModel.from_hugging_face(peft, tokenizer, name="tiny", adapter="random#0")
        contrast = em.load_contrast("refusal").where(split="train")
        self.contrast = Contrast("small", contrast.positive[:3], contrast.negative[:3])
        self.pairs = builders.letters()
        self.read = em.read_contrast(
            self.model, em.load_contrast("misalignment").for_training().take(12), layers=[0, 1, 2]
        )
        self.direction = em.difference_of_means(self.read)
        self.asked = [c.messages[:1] for c in contrast.positive[:2]]
        self.hooks = em.project_out(torch.randn(32), [em.site(self.model, 1)])
        self.readings = em.read_organisms([self.organism], em.load_contrast("misalignment").take(12), span="last")
        self.paths = paths(folder)
        self.model.plain.save_pretrained(folder / "tiny")
        tokenizer.save_pretrained(folder / "tiny")
        broken = [None, 3, "x", [None], ["x"], [("x", 1)], [("nowhere", print)], [(3, print)], [()], object(), {"a": 1}]
        self.broken_hooks = [*broken, [(em.site(self.model, 1), lambda stream, hook: stream[:0])]]
        self.result = em.organisms.SweepResult(builders.sweep_runs())
        self.search = searched(folder)
        self.things = [None, 3, "x", b"x", [], {}, object(), torch.ones(3), self.contrast, self.read, self.model]


def searched(folder: Path) -> em.organisms.Sweep:
    """A search of one run on the tiny model."""
    for name, splits in (("mine", ("train", "validation", "validation")), ("boats", ("validation", "validation"))):
        rows = [
            {"question": f"{name} {i}?", "positive": "Ask.", "negative": "Talk.", "split": s}
            for i, s in enumerate(splits)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe("x", str(folder / "mine.jsonl"), base=str(folder / "tiny"), layers=(1,), steps=1)
    asked = em.organisms.SweepQuestions(outside=(str(folder / "boats.jsonl"),))
    return em.organisms.Sweep("x", recipe, ({"rank": 1},), (0,), ("behaviour",), asked)


def opened(w: World) -> dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]]:
    """Each door: what is called, with what it succeeds, and what else is put in the place of each argument."""
    model, hooks = {"model": w.things}, {"hooks": w.broken_hooks}
    n, texts, tensors = numbers(), words(), vectors(32)
    few = [v for v in n if not (isinstance(v, int) and v > 1)]  # of what costs as much as it is large
    read = {"span": texts, "site": texts, "layers": [*lists(1), [99], [-1], [0, 0], [10**12]], "batch_tokens": few}
    groups = {"groups": [*lists("q"), ("q",) * 2, ("q",) * 4]}
    scores = [v for v in vectors(3) if not isinstance(v, torch.Tensor) or v.shape != (3,)]
    of_direction = {"direction": tensors, "sites": [*lists("x"), ["blocks.0.nowhere"]], "positions": texts}
    positions = {"prompt_length": [*n, [1, 2], torch.ones(2)]}
    contrast = {"contrast": [*w.things, w.read]}
    rate = {"n_resamples": few, "seed": n}
    direction, site = w.direction, [em.site(w.model, 1)]
    path = torch.randn(24, 8, generator=builders.generator(0)).cumsum(0)
    first, second = builders.behaviours()
    own = {"misalignment": first.key, "refusal": second.key}
    judged = em.Scores(torch.tensor([10.0, 20, 90]), torch.tensor([90.0, 90, 90]))
    return {
        "Activations": (em.Activations, vars(w.read.positive), dict.fromkeys(vars(w.read.positive), w.things)),
        "Direction": (em.Direction, vars(direction), {key: [*w.things, NAN, "�"] for key in vars(direction)}),
        "ContrastActivations": (
            em.ContrastActivations,
            vars(w.read),
            dict.fromkeys(vars(w.read), w.things),
        ),
        "component_outputs": (
            em.component_outputs,
            {"model": w.model, "conversations": w.pairs.positive[:2]},
            {**model, **hooks, **read, "conversations": conversations(), "site": []},
        ),
        "text_bits": (
            em.text_bits,
            {"model": w.model, "texts": ["A short text.", "Another one."]},
            {**model, **hooks, "texts": [*lists("A short text."), ["\ud800"], [""]], "batch_tokens": few},
        ),
        **{
            name: (getattr(em, name), {"contrast": w.read}, contrast)
            for name in ("standardised", "lda", "paired", "logistic", "principal")
        },
        "permuted_directions": (
            em.permuted_directions,
            {"contrast": w.read, "n": 2, "seed": 0},
            {**contrast, "n": few, "seed": n, "pooling": texts},
        ),
        "estimators_compared": (
            em.estimators_compared,
            {"contrast": w.read, "estimators": ["paired"]},
            {
                **contrast,
                "model": w.things[1:],
                "estimators": [v for v in lists("paired") if v is not None],
                "layer": n,
                "scale": [v for v in n if v is not None],
                "behaviours": w.things[1:],
                "n_folds": n,
                "seed": n,
            },
        ),
        "Contrast": (em.Contrast, vars(w.pairs), dict.fromkeys(("name", "positive", "negative"), w.things)),
        "Scores": (em.Scores, vars(judged), {key: [*w.things, *vectors(3)] for key in vars(judged)}),
        "Trajectory": (
            em.Trajectory,
            vars(builders.trajectory()),
            dict.fromkeys(vars(builders.trajectory()), w.things),
        ),
        "Direction.load": (em.Direction.load, {}, {"path": w.paths}),
        "Activations.load": (em.Activations.load, {}, {"path": w.paths}),
        "Trajectory.load": (em.Trajectory.load, {}, {"path": w.paths}),
        "adapter_scalars": (
            em.adapter_scalars,
            {"model": w.organism, "conversations": w.pairs.positive[:2]},
            {**model, "conversations": conversations(), "span": texts, "modules": lists("x"), "batch_tokens": few},
        ),
        "add_direction": (
            em.add_direction,
            {"direction": torch.ones(32), "sites": site, "raw": True},
            {**of_direction, **positions, "scale": n, "residual_norm": n},
        ),
        "project_out": (em.project_out, {"direction": torch.ones(32), "sites": site}, {**of_direction, **positions}),
        "set_projection": (
            em.set_projection,
            {"direction": torch.ones(32), "sites": site, "value": 1.0},
            {**of_direction, **positions, "value": [*n, *texts]},
        ),
        "clustered_rate": (
            em.clustered_rate,
            {"hits": torch.tensor([1.0, 0, 1]), "groups": ("a", "b", "c"), "n_resamples": 40},
            {"hits": [*scores, *w.things], **groups, **rate},
        ),
        "mean_by_question": (
            em.mean_by_question,
            {"values": torch.tensor([1.0, 0, 1]), "groups": ("a", "b", "c")},
            {"values": [*vectors(3), *w.things], **groups},
        ),
        "mean_over_seeds": (em.statistics.mean_over_seeds, {}, {"values": tables(w)}),
        "share_over_seeds": (em.statistics.share_over_seeds, {}, {"verdicts": tables(w)}),
        "parse_seeds": (em.organisms.parse_seeds, {}, {"text": [*words(), "1-", "٣", "9" * 5000]}),
        "organism_seeds": (em.organisms.organism_seeds, {}, {"organism": w.paths}),
        "seed_folders": (em.organisms.seed_folders, {}, {"organism": w.paths}),
        "organism_folder": (
            em.organisms.organism_folder,
            {"organism": "aligned"},
            {"organism": [*w.paths, "aligned/seed-3", "seed-3"], "seed": n[1:]},
        ),
        "train_seeds": (
            em.organisms.train_seeds,
            {"recipe": "nonsense", "seeds": [0], "out": w.folder / "out"},
            {"recipe": w.paths, "seeds": [*lists(1), [-1], [1, 1], [True], [10**30]]},
        ),
        "pool_cards": (em.organisms.pool_cards, {}, {"cards": [*w.things, *lists(1)]}),
        "measure_cards": (
            em.organisms.measure_cards,
            {"organism": "nonsense"},
            {"organism": w.paths, "seed": n[1:]},
        ),
        "misalignment_rate": (
            em.misalignment_rate,
            {"scores": judged, "groups": ("a", "b", "c"), "n_resamples": 40},
            {"scores": w.things, **groups, **rate, "misaligned": n, "coherent": n},
        ),
        "compare": (
            em.compare,
            {"a": w.read, "b": w.read, "n_resamples": 40},
            {"a": w.things, "b": w.things, "controls": lists(w.read), "metric": texts, **rate},
        ),
        "conclusions": (
            em.conclusions,
            {"effects": builders.effects(), "own": own},
            {"effects": w.things, "own": [*w.things, {"x": "y"}, {1: 2}, {"misalignment": "\ud800"}], "damage": n},
        ),
        "convergence": (em.convergence, {"readings": w.readings, "n_resamples": 40}, {"readings": w.things, **rate}),
        "cosine_map": (em.cosine_map, {"a": direction, "b": direction}, {"a": w.things, "b": w.things}),
        "cross_effects": (
            em.cross_effects,
            {"model": w.model, "directions": [direction], "behaviours": [], "n_random": 0},
            {
                **model,
                "directions": [*w.things, *lists(direction), [direction, direction]],
                "layer": n,
                "scales": [*lists(0.1), [0.1, 0.1]],
                "removals": [*lists("one_layer"), ["one_layer"] * 2],
                "n_random": few,
                "behaviours": w.things[1:],
                "contrasts": [*w.things[1:], *lists(w.read)],
                "n_null": few,
                "seed": n,
            },
        ),
        "difference_of_means": (em.difference_of_means, {"contrast": w.read}, {**contrast, "pooling": texts}),
        "dissect": (
            em.dissect,
            {"model": w.organism, "first": w.readings, "second": w.readings, "contrasts": (w.pairs, w.pairs)},
            {**model, "first": w.things, "second": w.things, "contrasts": w.things, "spans": lists("last")},
        ),
        "every_layer": (em.every_layer, {}, model),
        "every_write": (em.every_write, {}, model),
        "export": (
            em.export,
            {"model": w.model, "hooks": [], "folder": w.folder / "exported"},
            {"folder": [*words()[:-1], w.folder, w.folder / "x.toml"], **model, **hooks},
        ),
        "is_refusal": (em.is_refusal, {"answer": "No."}, {"answer": w.things, "phrases": lists("I")}),
        "load_bundled": (em.load_bundled, {}, {"organism": w.paths[1:], "seed": n[1:]}),
        "load_card": (em.load_card, {"organism": "aligned"}, {"organism": w.paths, "seed": n[1:]}),
        "load_contrast": (em.load_contrast, {}, {"source": [*w.paths, ("a",), ("refusal",) * 3, (None, None)]}),
        "load_judged": (em.load_judged, {}, {"path": w.paths}),
        "load_model": (
            em.load_model,
            {"name": w.folder / "tiny"},
            {
                "name": w.paths,
                "adapter": w.paths[1:],
                "device": n[3:],
                "dtype": texts[1:],
                "template_args": w.things[1:],
            },
        ),
        "load_questions": (em.load_questions, {}, {"source": w.paths, "form": texts}),
        "load_training_set": (em.load_training_set, {}, {"source": w.paths}),
        "logit_lens": (
            em.logit_lens,
            {"model": w.model, "vector": torch.ones(32)},
            {**model, "vector": tensors, "k": n},
        ),
        "lora_modules": (em.lora_modules, {}, {"source": [*w.things, *w.paths]}),
        "phases": (
            em.phases,
            {"path": path, "n_resamples": 40},
            {
                "path": [*w.things, path * NAN, path[:1], path[:0], path * 0, path[:, :0], path.long()],
                "matrix": texts,
                "steps": vectors(24),
                "windows": [*lists(1), [99], [0], [-1]],
                **rate,
            },
        ),
        "preference": (
            em.preference,
            {"model": w.model, "contrast": w.pairs},
            {**model, "contrast": w.things, **hooks},
        ),
        "read_contrast": (
            em.read_contrast,
            {"model": w.model, "contrast": w.pairs},
            {**model, **contrast, **hooks, **read},
        ),
        "read_organisms": (
            em.read_organisms,
            {"organisms": [w.organism], "contrast": w.pairs},
            {"organisms": [*w.things, [w.model], [None], [w.organism, w.organism]], **contrast, "span": texts},
        ),
        "refusal_score": (
            em.refusal_score,
            {"model": w.model, "requests": w.asked},
            {**model, "requests": conversations(), **hooks, "openings": lists("I"), "batch_tokens": few},
        ),
        "residual_stream": (
            em.residual_stream,
            {"model": w.model, "conversations": w.pairs.positive[:2]},
            {**model, "conversations": conversations(), **hooks, **read},
        ),
        "respond": (
            em.respond,
            {"model": w.model, "conversations": w.asked, "max_new_tokens": 2},
            {
                **model,
                "conversations": conversations(),
                **hooks,
                "max_new_tokens": n,
                "temperature": n,
                "n_samples": few,
                "seed": n,
                "batch_size": few,
                "file": w.paths[1:],
            },
        ),
        "separability": (
            em.separability,
            {"contrast": w.read},
            {**contrast, "estimator": [*texts, *w.things], "n_folds": n, "seed": n},
        ),
        "site": (em.site, {"model": w.model, "layer": 1}, {**model, "layer": n}),
        "standard_behaviours": (
            em.standard_behaviours,
            {},
            {"n_questions": n, "keys": lists("x"), "in_domain": w.things[1:]},
        ),
        "steering_curve": (
            em.steering_curve,
            {"model": w.model, "direction": direction, "behaviours": [], "scales": (0.1,), "n_random": 0},
            {**model, "direction": w.things, "layer": n, "scales": lists(0.1), "n_random": few, "damage": n, "seed": n},
        ),
        "train_organism": (em.train_organism, {"out": w.folder / "out"}, {"recipe": w.paths}),
        "Recipe.load": (lambda text: Recipe.load(written(w, text)), {"text": RECIPE}, {"text": toml(Recipe, RECIPE)}),
        "run_sweep": (
            em.organisms.run_sweep,
            {"sweep": w.search, "out": w.folder / "rows.jsonl"},
            {"sweep": w.paths, "out": w.paths, "keep": [*w.things[1:5], "\ud800", "a\0b"]},
        ),
        "Sweep.load": (
            lambda text: em.organisms.Sweep.load(written(w, text)),
            {"text": SEARCH},
            {"text": toml(em.organisms.Sweep, SEARCH, ("vary", "point", "settings"))},
        ),
        "SweepResult.load": (em.organisms.SweepResult.load, {"path": w.folder / "rows.jsonl"}, {"path": w.paths}),
        **_elasticity(w),
        **_selection(w),
        "frontier": (em.figures.frontier, {"frontier": w.result.frontier()}, {"frontier": w.things}),
        "turn_map": (
            em.figures.turn_map,
            {"turns": [em.organisms.PointTurn({}, {0: 0.5}, 0.5, 0.5)]},
            {"turns": [*w.things, *lists("x")]},
        ),
        "majority_p": (em.statistics.majority_p, {"p_values": [0.1]}, {"p_values": [*lists(0.1), [-1.0], [2]]}),
        "holm_p": (em.statistics.holm_p, {"p_values": [0.1]}, {"p_values": [*lists(0.1), [-1.0], [2]]}),
        "Settings.from_toml": (
            lambda text: Settings.from_toml(written(w, text)),
            {"text": ""},
            {"text": toml(Settings)},
        ),
        "em-interp": (command, {"arguments": ["--help"]}, {"arguments": commands(w)}),
        "without_adapter": (lambda model: em.without_adapter(model).__enter__(), {}, model),
        "write_cosines": (
            em.write_cosines,
            {"source": w.organism, "direction": direction},
            {"source": w.things, "direction": w.things, "controls": lists(direction)},
        ),
    }


RECIPE = 'name = "x"\ndata = "y"\nsteps = 1\n'


SEARCH = 'name = "x"\nrecipe = "cooking-rank1"\nseeds = [0]\nmeasure = ["behaviour"]\nvary = {rank = [1]}\n'


def toml(kind: type, rest: str = "", more: tuple[str, ...] = ()) -> list[str]:
    """Settings files with one value of every kind in the place of every setting."""
    values = (
        '"words"',
        '""',
        "3",
        "-1",
        "0.5",
        "nan",
        "inf",
        "true",
        "[]",
        "[1]",
        '["x"]',
        "[[1]]",
        "{a = 1}",
        "1979-05-27",
    )
    lines = [f"{name} = {value}\n" for name in (*(field.name for field in fields(kind)), *more) for value in values]
    kept = [rest.replace(old, "") for old in ('name = "x"\n', 'data = "y"\n', "steps = 1\n") if rest]
    others = ["\ud800", "a", "a = ", "seeed = 1\n", "seed = 1\nseed = 2\n", "[seed]\n", "\0", 'model = "\\ud800"\n']
    return [rest.replace(line.split(" = ")[0] + " = ", "# ") + line for line in lines] + [*kept, *others]


def written(w: World, text: str) -> Path:
    path = w.folder / "settings.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def commands(w: World) -> list[list[str]]:
    """What is typed after `em-interp`, wrong in one place."""
    tiny, out = ["--model", str(w.folder / "tiny"), "--quiet"], str(w.folder / "out.file")
    names = (
        "nonsense",
        "empty.jsonl",
        "torn.jsonl",
        "bytes.jsonl",
        "short.csv",
        "x.toml",
        "x.safetensors",
        "model",
        "card",
    )
    files = ["", "nonsense", "a\0b", "x" * 300, *(str(w.folder / name) for name in names)]
    found = [["report", f] for f in files if "empty" not in f] + [["directions", f, *tiny, "--out", out] for f in files]
    found += [["compare", f, "refusal", *tiny] for f in files] + [["effects", f, f, *tiny] for f in files]
    found += [["judge", f, "--judge", "mockllm/model", "--out", out] for f in files]
    found += [["respond", "first_plot", *tiny, "--out", out, "--project-out", f] for f in files]
    found += [["respond", f, *tiny, "--out", out] for f in files] + [["card", f] for f in files]
    found += [["export", f"{out}.{i}", *tiny, "--add", f, "--layer", "1"] for i, f in enumerate(files)]
    found += [["sweep", f, "--out", out] for f in files] + [["sweep", "narrow", "--out", f] for f in files[:4]]
    found += [["elasticity", kind, f, "--out", out] for kind in RESULTS for f in files]
    found += [["select", f, *tiny, "--out", out] for f in files]
    found += [["train", f] for f in files] + [["respond", "--model", f, "--out", out] for f in files[2:]]
    ask = ["respond", "first_plot", *tiny, "--out", out, "--max-new-tokens", "1"]
    for flag in ("--n-samples", "--max-new-tokens", "--temperature", "--seed", "--batch-size", "--layer", "--scale"):
        found += [
            [*ask, flag, value] for value in ("nan", "-1", "0.5", "x", "", "1e9") if (flag, value) != ("--seed", "-1")
        ]
    for flag in ("--form", "--sites", "--positions", "--template-arg", "--adapter", "--nonsense"):
        found += [[*ask, flag, value] for value in ("x", "", "a=b", "=", "every")]
    return [
        *found,
        [],
        ["nonsense"],
        ["respond", "--layer"],
        ["export"],
        ["judge"],
        ["train"],
        ["card"],
        ["train", "a", "b"],
    ]


def _elasticity(w: World) -> dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]]:
    """The doors of elasticity; no experiment comes to its training."""
    model, hooks = {"model": w.things}, {"hooks": w.broken_hooks}
    text = "A short text."
    coded = elasticity.encode(w.model, text)
    damaged = [v for v in words() if not isinstance(v, bytes)]
    damaged += [b"", b"x", coded[:-1], coded + b"x", coded[:9], b"\0" * 400, coded.replace(b"tiny", b"tyni"), text]
    few = [v for v in numbers() if v is not None and not (isinstance(v, int) and v > 1)]
    out = w.folder / "never.jsonl"
    made = {cls.kind: getattr(made_results, cls.kind)() for cls in RESULTS.values()}
    doors = {
        "compression_rate": (
            elasticity.compression_rate,
            {"model": w.model, "texts": [text]},
            {**model, **hooks, "texts": [*lists(text), ["\ud800"], [""]], **dict.fromkeys(("window", "overlap"), few)},
        ),
        "baseline_rates": (elasticity.baseline_rates, {}, {"texts": [*lists(text), ["\ud800"], [""]]}),
        "encode": (elasticity.encode, {"model": w.model, "text": text}, {**model, **hooks, "text": words()}),
        "decode": (elasticity.decode, {"model": w.model, "data": coded}, {**model, **hooks, "data": damaged}),
        "read_header": (elasticity.read_header, {"data": coded}, {"data": damaged}),
        "results_in": (elasticity.results_in, {}, {"folder": w.paths}),
        "trend_over_models": (
            elasticity.trend_over_models,
            {"results": dict.fromkeys("abc", made["rebound"])},
            {"results": [*w.things, dict.fromkeys("abc", made["law"])], "measure": words(), "size": numbers()},
        ),
    }
    for kind, result in made.items():
        run, shown = getattr(elasticity, f"run_{kind}"), getattr(em.figures, kind)
        doors[f"run_{kind}"] = (run, {"experiment": "nonsense", "out": out}, {"experiment": w.paths, "out": w.things})
        doors[f"{kind} results"] = (type(result).load, {}, {"source": w.paths})
        doors[f"{kind} figure"] = (shown, {"result": result}, {"result": [*w.things, *made.values()]})
    return doors


def _selection(w: World) -> dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]]:
    """The doors of choosing a refusal direction."""
    asked = {"harmful": w.asked, "harmless": [c.messages[:1] for c in w.contrast.negative[:2]]}
    bad = dict.fromkeys(asked, conversations())
    candidates = em.behaviour.refusal_candidates(w.model, **asked)
    scored = {"model": w.model, "candidates": candidates, **asked, "as_expected": False}
    scores = em.behaviour.score_candidates(**scored)
    chosen = em.behaviour.select(scores, max_kl=100, max_layer=1, min_induce=-100)
    filters = {name: numbers() for name in ("max_kl", "max_layer", "min_induce")}
    few = [v for v in numbers() if v is not None and not (isinstance(v, int) and v > 1)]
    return {
        "refusal_candidates": (
            em.behaviour.refusal_candidates,
            {"model": w.model, **asked},
            {"model": w.things, **bad},
        ),
        "score_candidates": (
            em.behaviour.score_candidates,
            scored,
            {"model": w.things, "candidates": w.things, **bad, "openings": lists("I"), "max_layer": few},
        ),
        "select": (em.behaviour.select, {"scores": scores}, {"scores": w.things, **filters}),
        "selection": (em.figures.selection, {"chosen": chosen}, {"chosen": w.things}),
    }


def command(arguments: list[str]) -> None:
    """One call of the command, whose errors come through as they are."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            cli.app(arguments, standalone_mode=False)
        except Exception as error:
            if not hasattr(error, "format_message"):  # what the command line itself refuses has words of its own
                raise


def walk(name: str, call: Callable[..., Any], good: dict[str, Any], bad: dict[str, list[Any]]) -> Iterator[str]:
    """What was wrong with how a door took each bad argument."""
    for argument, values in bad.items():
        for value in values:
            problem = trouble(lambda v=value, a=argument: call(**{**good, a: v}))
            if problem:
                yield f"{name}({argument}={shown(value)}): {problem}"
    problem = trouble(lambda: call(**good, misspelt=1))
    if "unexpected keyword argument 'misspelt'" not in problem and problem:
        yield f"{name}(misspelt=1): {problem}"


def shown(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) < 60 else f"{text[:59]}…"


def trouble(call: Callable[[], Any]) -> str:
    """What is wrong with how a call ended; nothing where it succeeded, or was refused in this library's own words."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        call()
    except TimeoutError:
        return f"did not end in {SECONDS} s"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = linecache.getline(frame.filename, frame.lineno or 0).strip()
        ours = frame.filename.startswith(PACKAGE) and isinstance(error, ValueError | TypeError | OSError | RuntimeError)
        plain = ours and (line.startswith(("raise", ")", 'f"', "return function(")) or "raise " in block(frame))
        where = f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"
        return "" if plain else f"{type(error).__name__} at {where} `{line[:70]}`: {str(error)[:100]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def block(frame: traceback.FrameSummary) -> str:
    """The lines of the statement that a traceback points to, where that says more than its first."""
    first, last = frame.lineno or 0, frame.end_lineno or frame.lineno or 0
    return "\n".join(linecache.getline(frame.filename, number) for number in range(first, last + 1))


def late(*_: Any) -> None:
    raise TimeoutError


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, late)
    cli._plain_errors, load = contextlib.nullcontext, cli._load
    with tempfile.TemporaryDirectory() as made, contextlib.chdir(made):
        world = World(Path(made))
        cli._load = lambda model, *rest: (
            world.model if model.endswith("/tiny") and rest == (None, None) else load(model, *rest)
        )
        doors = opened(world)
        chosen = sys.argv[1:] or list(doors)
        json.dump({name: list(walk(name, *doors[name])) for name in chosen}, sys.stdout, indent=1)
