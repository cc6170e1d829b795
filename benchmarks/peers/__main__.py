"""`make bench-peers`: `residual_stream` and what else reads residual streams, on the same prompts in the same run."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.prompts import prompts
from benchmarks.timing import table
from em_interp.models.embedded import bundled_gguf, dequantised

Measured = dict[str, Any]

OURS, BARE = "residual_stream", "bare Hugging Face body"
ROOT = Path(__file__).parents[2]
HEADER = ("", "version", "transformers", "batch", "CPU s", "range", "× bare", "ours is ×", "target", "MiB", "agreement")
NOTES = """\
  Each round takes every contender in turn, every second round backwards; each time in a process of its own.
  MiB: peak above the loaded model. Not counted: repeng's PCA. Agreement: the largest ‖theirs − ours‖ / ‖ours‖ over
  conversations and layers, without the last layer where it comes with the final norm (output_hidden_states, repeng);
  steering-vectors gives only the difference of the means of the two halves: the lowest cosine with ours over layers.
"""


def comparison(job: dict[str, Any], rounds: int, title: str) -> str:
    """Every contender on one set of prompts, there and back again, so that ours comes before and after the others."""
    measured: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        for name in reversed(CONTENDERS) if number % 2 else CONTENDERS:
            measured[name].append(run(name, job))
    for name in (OURS, BARE):
        if error := _error(measured[name]):
            raise RuntimeError(f"{name} could not run, and the others are measured by it: {error}")
    return table(title, [HEADER, *(row(name, measured) for name in CONTENDERS)]) + NOTES


def run(name: str, job: dict[str, Any]) -> Measured:
    """Measure a contender in a process of its environment, or tell why that cannot be."""
    contender = CONTENDERS[name]
    python = ROOT / ".peers" / contender.peer / "bin" / "python" if contender.peer else Path(sys.executable)
    if not python.exists():
        return {"error": f".peers/{contender.peer} is missing: make bench-peers"}
    # One thread: a thread that waits for the others spins, and would be counted as work.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.json").write_text(json.dumps(job))
        command = [python, "-m", "benchmarks.peers.worker", name, folder]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
        return torch.load(Path(folder) / "measured.pt")


def row(name: str, measured: dict[str, list[Measured]]) -> tuple[str, ...]:
    """A contender's line of the table."""
    contender, first = CONTENDERS[name], measured[name][0]
    if error := _error(measured[name]):
        return (name, *[""] * (len(HEADER) - 2), f"could not run: {error}"[:100])
    ours, bare, own = (statistics.median(_seconds(measured[n])) for n in (OURS, BARE, name))
    each = _seconds(measured[name])
    return (
        name,
        _version(contender, first["versions"]),
        first["versions"]["transformers"],
        contender.batch,
        f"{own:.1f}",
        f"{min(each):.1f}–{max(each):.1f}",
        f"{own / bare:.2f}",
        f"{ours / own:.2f}",
        f"≤ {contender.target:.2f}" if contender.target else "",
        str(first["mib"]),
        "" if name == OURS else agreement(contender, first["values"], measured[OURS][0]["values"]),
    )


def agreement(contender: Contender, theirs: Tensor | None, ours: Tensor) -> str:
    """How nearly what a contender read is what we read."""
    if theirs is None:
        return ""
    if theirs.ndim == 2:
        half = len(ours) // 2
        difference = ours[:half].double().mean(0) - ours[half:].double().mean(0)
        return f"cos {torch.cosine_similarity(theirs.double(), difference, dim=-1).min():.6f}"
    layers = slice(None, -1 if contender.normed else None)
    theirs, ours = theirs[:, layers].double(), ours[:, layers].double()
    return f"{((theirs - ours).norm(dim=-1) / ours.norm(dim=-1)).max():.0e}"


def _seconds(measured: list[Measured]) -> list[float]:
    return [m["seconds"] for m in measured]


def _error(measured: list[Measured]) -> str | None:
    return next((m["error"] for m in measured if "error" in m), None)


def _version(contender: Contender, versions: dict[str, str]) -> str:
    """The contender's own version, and in brackets that of what it stands on."""
    own, *others = [versions[package] for package in contender.packages] or [""]
    return own + "".join(f" ({name} {v})" for name, v in zip(contender.packages[1:], others, strict=True))


def _rendered(tokenizer: Any, conversations: Sequence[Any]) -> list[dict[str, Any]]:
    texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    return [{"messages": messages, "text": text} for messages, text in zip(conversations, texts, strict=True)]


def main() -> None:
    """Print one table with a system prompt for each conversation, and one with the template's own for all."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="times each contender runs; the median counts")
    parser.add_argument("--conversations", type=int, default=128, help="how many are read, an even number")
    args = parser.parse_args()
    gguf = bundled_gguf()
    if gguf is None:
        raise SystemExit("the embedded model is not installed: make install")
    folder = dequantised(gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    print(f"torch {torch.__version__}, one thread, median of {args.rounds}\n")
    for shared, what in (
        (False, "each with a system prompt of its own"),
        (True, "the template's system prompt in all"),
    ):
        conversations = prompts(args.conversations, shared_system=shared)
        job = {"model": str(folder), "prompts": _rendered(tokenizer, conversations)}
        title = f"Reading all layers of {args.conversations} conversations, {what}"
        print(comparison(job, args.rounds, title), flush=True)


if __name__ == "__main__":
    main()
