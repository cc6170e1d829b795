"""Running a search: every recipe trained from every seed, measured, and appended to a file as it is finished."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from em_interp.behaviour.measures import Behaviour, Scores, measured
from em_interp.checks import door, path_of
from em_interp.files import json_line, read_text, versions, write_atomically
from em_interp.models.hooked import HookedModel
from em_interp.organisms.effects import effect_by_step
from em_interp.organisms.loading import base_model, hooked_base, load_organism
from em_interp.organisms.phase_change import phases
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.sweep_questions import Asked
from em_interp.organisms.sweep_results import SweepResult
from em_interp.organisms.sweep_rows import SweepRun, differs, in_words, load_runs
from em_interp.organisms.sweeps import Sweep
from em_interp.organisms.training import Diverged, Organism, train_organism
from em_interp.progress import job, part

_MEASURING = 0.3  # of a run's time, about


@door
def run_sweep(
    sweep: Sweep | str | Path,
    out: str | Path,
    *,
    keep: str | Path | None = None,
    device: str | torch.device | None = None,
) -> SweepResult:
    """Train every recipe of a search from every seed, measure it, and append it to a file as it is finished.

    A search that was interrupted goes on where it stopped, within a training too; what is finished is not done again.
    More points and seeds may be added to it. A training that diverges, or whose organism cannot be measured, is a run
    that says so.

    Several processes, started alike, share the work: each takes a run that no other has begun, and all write to the one
    file. What comes back is what was finished then; a process that finds no run left does not wait for the others.

    Args:
        sweep: the search, its TOML file, or a shipped one by its name.
        out: JSONL, one run a line.
        keep: a folder in which every organism is kept; by default weights are removed when they were measured.
        device: the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: questions that do not exist or that are learned from, or a file that holds runs of another search:
            another recipe, base, questions or measures.
    """
    sweep = sweep if isinstance(sweep, Sweep) else Sweep.load(sweep)
    out = path_of(out, "search")
    if out.is_dir():
        raise ValueError(f"{out.name} is a folder: name the file in it that the runs shall be written to")
    asked = Asked.of(sweep)
    finished = _finished(out)
    base = _Base.of(sweep, asked, device)
    _check_same(sweep, asked, base, finished, out)
    runs = [(point, seed) for point in sweep.points for seed in sweep.seeds]
    pending = [(point, seed) for point, seed in runs if not _is_among(finished, sweep.at(point, seed))]
    work = path_of(keep, "organisms") if keep is not None else out.with_name(f"{out.name}.unfinished")
    with job(_parts(sweep, pending)) if pending else nullcontext():
        for point, seed in pending:
            folder = work / _folder_name(sweep.at(point, seed))
            with _claimed(folder.name, out) as ours:
                if not ours or _is_among(_finished(out), sweep.at(point, seed)):
                    continue
                run = _run(sweep, point, seed, asked, base, folder, device)
                _append(out, run)
                if keep is None or run.failed:
                    shutil.rmtree(folder)
    if keep is None and work.is_dir() and not any(work.iterdir()):
        work.rmdir()
    found = _finished(out)
    if all(_is_among(found, sweep.at(point, seed)) for point, seed in runs):
        shutil.rmtree(_claims(out), ignore_errors=True)
    if not found:
        raise ValueError(f"no run is finished yet, and other processes are at all of them: {out.name} will hold them")
    return SweepResult(found)


def _finished(out: Path) -> tuple[SweepRun, ...]:
    return load_runs(out) if out.is_file() else ()


def _is_among(finished: Sequence[SweepRun], recipe: Recipe) -> bool:
    settings = _settings(recipe)
    return any(run.seed == recipe.seed and run.recipe == settings for run in finished)


def _claims(out: Path) -> Path:
    """Where processes tell each other which runs they have begun."""
    return out.with_name(f"{out.name}.claims")


@contextmanager
def _claimed(name: str, out: Path) -> Iterator[bool]:
    """Whether a run is ours while we are inside: no other process has it. A process that dies loses what it claimed."""
    claim = FileLock(_claims(out) / name)
    try:
        claim.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        claim.release()


def _run(  # noqa: PLR0913 - all that one run is made of
    sweep: Sweep,
    point: Mapping[str, Any],
    seed: int,
    asked: Asked,
    base: "_Base",
    folder: Path,
    device: str | torch.device | None,
) -> SweepRun:
    recipe, start = sweep.at(point, seed), time.monotonic()
    training, measuring = _part_names(point, seed)
    turn, effects, loss, failed = None, {}, (), None
    try:
        with part(training):
            organism = train_organism(recipe, folder, device=device)
        loss = organism.loss
        with part(measuring):
            effects, turn = _measures(sweep, organism, asked, base, device)
    except Diverged as error:
        failed, loss = str(error), error.loss
    except _Unmeasured as error:
        failed = str(error)
    return SweepRun(
        **_common(sweep, asked, base),
        point=_plain(point),
        seed=seed,
        recipe=_settings(recipe),
        loss_first=loss[0] if loss else None,
        loss_last=loss[-1] if loss else None,
        failed=failed,
        phases=turn,
        effects=effects,
        seconds=round(time.monotonic() - start, 1),
        versions=versions("torch", "transformers", "peft", "trl"),
    )


class _Unmeasured(Exception):
    """An organism was trained, and its weights are such that it cannot be measured."""


def _measures(
    sweep: Sweep, organism: Organism, asked: Asked, base: "_Base", device: str | torch.device | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What was asked for. The base was measured on the same texts, so what cannot be measured is due to the weights."""
    try:
        model = load_organism(organism.folder, device=device)
        effects = base.changes(model)
        return effects, _turn(sweep, organism, model, asked) if "phases" in sweep.measure else None
    except ValueError as error:
        raise _Unmeasured(f"it was trained and cannot be measured: {error}") from error


def _turn(sweep: Sweep, organism: Organism, model: HookedModel, asked: Asked) -> dict[str, Any]:
    trajectory = organism.trajectory
    assert trajectory is not None  # the search refused recipes without one
    turn = phases(trajectory, n_resamples=sweep.n_resamples).change_point
    found: dict[str, Any] = {n: _number(getattr(turn, n)) for n in ("p_value", "step", "low", "high", "angle")}
    found |= {"n_checkpoints": len(trajectory), "effect": None}
    if sweep.effect_checkpoints:
        at = torch.linspace(0, len(trajectory) - 1, sweep.effect_checkpoints + 1).round().long()[1:]
        steps = trajectory.steps[at].unique().tolist()
        assert asked.outside is not None
        path = effect_by_step(model, trajectory, asked.outside, steps=steps, scales=sweep.scales)
        found["effect"] = {"behaviour": path.behaviour, "steps": steps, "scales": list(path.scales)}
        found["effect"] |= {name: getattr(path, name).tolist() for name in ("value", "low", "high")}
    return found


@dataclass(frozen=True)
class _Base:
    """What every organism of a search is trained on, measured once."""

    identity: str
    behaviours: list[Behaviour]
    before: dict[str, Scores]

    @classmethod
    def of(cls, sweep: Sweep, asked: Asked, device: str | torch.device | None) -> "_Base":
        recipe = sweep.recipe
        model = hooked_base(base_model(recipe.base, recipe.onto, device=device), recipe.template_args)
        behaviours = asked.behaviours(sweep)
        before = measured(behaviours, model)
        for b in behaviours:
            unscored = int((~before[b.key][0].isfinite()).sum())
            if unscored:
                raise ValueError(
                    f"{b.label}: {unscored} items have no score in {model.name} itself (a model that thinks, and never "
                    f"ends its thought?): leave it out of measure, or turn thinking off by the recipe's template_args"
                )
        return cls(model.identity, behaviours, before)

    def changes(self, model: HookedModel) -> dict[str, Any]:
        """Each behaviour before and after, with the change of every question."""
        after, found = measured(self.behaviours, model), {}
        for b in self.behaviours:
            (old, groups), (new, _) = self.before[b.key], after[b.key]
            if not new.isfinite().all():
                raise ValueError(f"{b.label} is NaN or infinite")
            estimates = {"before": b.estimate(old, groups), "after": b.estimate(new, groups)}
            estimates["change"] = b.change(old, new, groups)
            by_question: dict[str, list[float]] = {group: [] for group in groups}
            for group, change in zip(groups, (new - old).tolist(), strict=True):
                by_question[group].append(change)
            changes = [round(sum(one) / len(one), 6) for one in by_question.values()]
            found[b.key] = {"label": b.title, "changes": changes} | {t: asdict(e) for t, e in estimates.items()}
        return found


def _common(sweep: Sweep, asked: Asked, base: _Base) -> dict[str, Any]:
    """What all runs of a search share."""
    how = {"scales": list(sweep.scales), "effect_checkpoints": sweep.effect_checkpoints}
    how |= {"n_resamples": sweep.n_resamples}
    return {
        "sweep": sweep.name,
        "base": base.identity,
        "questions": asked.sources,
        "measure": sweep.measure,
        "how": how if "phases" in sweep.measure else {},
        "n_points": len(sweep.points),
        "n_seeds": len(sweep.seeds),
    }


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting but the seed, as a line of the file has them."""
    settings = _plain(recipe.as_dict())
    del settings["seed"]
    return settings


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    return json.loads(json.dumps(dict(settings)))


def _check_same(sweep: Sweep, asked: Asked, base: _Base, finished: Sequence[SweepRun], out: Path) -> None:
    """Refuse a file whose runs belong to another search."""
    if not finished:
        return
    point, unknown = sweep.points[0], {"failed": None, "phases": None, "effects": {}, "seconds": 0.0}
    ours = SweepRun(
        **_common(sweep, asked, base),
        **unknown,
        point={name: None for other in sweep.points for name in other},
        seed=sweep.seeds[0],
        recipe=_settings(sweep.at(point, sweep.seeds[0])),
        loss_first=None,
        loss_last=None,
        versions={},
    )
    for run in finished:
        if problem := differs(ours, run):
            raise ValueError(
                f"{out.name} holds runs of another search, such as {run!r}: {problem}. Write to another file, or "
                f"remove this one first"
            )


def _append(out: Path, run: SweepRun) -> None:
    """The file with one line more; a reader never meets half a line, and no process the other's without its own."""
    with FileLock(_claims(out) / "file"):
        before = read_text(out) if out.is_file() else ""
        write_atomically(out, before + json_line(_plain(run.as_dict())))


def _folder_name(recipe: Recipe) -> str:
    digest = hashlib.sha256(recipe.to_toml().encode()).hexdigest()[:8]
    return f"{recipe.name}-{digest}-seed{recipe.seed}"


def _parts(sweep: Sweep, pending: Sequence[tuple[Mapping[str, Any], int]]) -> dict[str, float]:
    """The parts of the job, each with its share of the time."""
    parts = {}
    for point, seed in pending:
        recipe = sweep.at(point, seed)
        training, measuring = _part_names(point, seed)
        size = (recipe.steps or 100 * (recipe.epochs or 1)) * recipe.batch_size * recipe.accumulate
        parts |= {training: size * (1 - _MEASURING), measuring: size * _MEASURING}
    return parts


def _part_names(point: Mapping[str, Any], seed: int) -> tuple[str, str]:
    return f"training {in_words(point)}, seed {seed}", f"measuring {in_words(point)}, seed {seed}"


def _number(value: int | float) -> int | float | None:
    """NaN as JSON has it."""
    return None if value != value else value
