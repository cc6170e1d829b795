"""One contender in a process of its own: load, warm up, measure, and leave what was measured in a file."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import peak_mib
from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.timing import spent


def measure(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of one run, peak memory, versions, and what was read."""
    read, prompts = contender.load(job["model"]), job["prompts"]
    read(prompts[:2])
    mib, values = peak_mib(lambda: read(prompts))  # the second warm-up too
    return {
        "seconds": spent(lambda: read(prompts)),
        "mib": mib,
        "versions": {package: version(package) for package in ("transformers", *contender.packages)},
        "values": values,
    }


def main() -> None:
    """Measure the contender that the first argument names, by `job.json` in the folder that the second names."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    try:
        measured = measure(CONTENDERS[name], json.loads((folder / "job.json").read_text()))
    except Exception as error:
        measured = {"error": f"{type(error).__name__}: {error}".split("\n")[0]}
    torch.save(measured, folder / "measured.pt")


if __name__ == "__main__":
    main()
