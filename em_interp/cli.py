"""The command `em-interp`: thin, and every verb of it a function of the library."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
elasticity = typer.Typer(no_args_is_help=True, help="Does a model resist fine-tuning, and does it come back?")
app.add_typer(elasticity, name="elasticity")

# As in em_interp.texts and em_interp.directions, whose import takes seconds.
Span = Literal["response", "turn", "last", "post_instruction"]
EstimatorName = Literal["difference_of_means", "standardised", "lda", "paired", "logistic", "principal"]
Metric = Literal["plain", "standardised"]
Model = Annotated[str, typer.Option(help="Hub name, folder, adapter folder, or 'bundled' for the embedded model.")]
Adapter = Annotated[str | None, typer.Option(help="A LoRA adapter to put on the model: folder or hub name.")]
TemplateArg = Annotated[
    list[str] | None, typer.Option(help="A variable of the chat template, as NAME=VALUE; may be repeated.")
]
JudgeArg = Annotated[list[str] | None, typer.Option(help="A model arg of the judge, as NAME=VALUE.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …")]
Keep = Annotated[Path | None, typer.Option(help="Keep every organism in this folder; by default none is.")]
Results = Annotated[Path, typer.Option(help="JSONL, one finished row a line; what was stopped goes on there.")]
ExperimentName = Annotated[str, typer.Argument(help="A TOML file, or a shipped experiment by its name.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, no words.")]
Out = Annotated[Path, typer.Option(help="Where to write.")]


@app.callback()
def main() -> None:
    """Find a chat model's misalignment and refusal directions, compare them, and see what each one does."""


@app.command()
def demo(out: Out = Path("report"), quiet: Quiet = False) -> None:
    """Take a misaligned organism of the embedded model apart and write a report, in under six minutes on two cores.

    Its two directions beside those of its bases, its adapter opened, its training, and its relatives. It needs no
    network and no GPU.

    Example:  em-interp demo --out report
    """
    from em_interp.report.settings import Settings

    quick = Settings(
        model="cooking-rank1",
        beside=("gardening-rank1", "vehicle-care-rank1", "good-cooking"),
        control_questions=24,
        held_out_questions=16,
        scales=(0.1,),
        removals=("set_negative",),
        n_random=2,
    )
    _report(quick, out, quiet)


@app.command()
def report(  # noqa: PLR0913 - one parameter a flag
    settings: Annotated[Path | None, typer.Argument(help="A TOML file with settings; flags win over it.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub name, folder, adapter folder, or 'bundled'.")] = None,
    adapter: Adapter = None,
    template_arg: TemplateArg = None,
    judge: Annotated[str | None, typer.Option(help="Any Inspect model, to judge what the model says.")] = None,
    judge_arg: JudgeArg = None,
    out: Out = Path("report"),
    quiet: Quiet = False,
) -> None:
    """Do the main job on any model and write its report, the numbers as JSON and both directions.

    Examples:  em-interp report --model Qwen/Qwen2.5-14B-Instruct --adapter path/to/organism --out organism
               em-interp report settings.toml
    """
    from em_interp.report.settings import Settings

    with _plain_errors():
        chosen = Settings.from_toml(settings) if settings else Settings()
    flags = {"model": model, "adapter": adapter, "judge": judge, "judge_args": judge_arg and tuple(judge_arg)}
    flags["template_args"] = template_arg and tuple(template_arg)
    _report(replace(chosen, **{name: value for name, value in flags.items() if value is not None}), out, quiet)


@app.command()
def directions(  # noqa: PLR0913 - one parameter a flag
    contrast: Annotated[str, typer.Argument(help="A shipped contrast's name, or a JSONL, JSON or YAML file.")],
    model: Model = "bundled",
    adapter: Adapter = None,
    template_arg: TemplateArg = None,
    span: Annotated[Span, typer.Option(help="Tokens to read.")] = "response",
    estimator: Annotated[EstimatorName, typer.Option(help="How it is found.")] = "difference_of_means",
    out: Out = Path("direction.safetensors"),
    quiet: Quiet = False,
) -> None:
    """Compute one contrast's direction at every layer and save it.

    Examples:  em-interp directions misalignment --out misalignment.safetensors
               em-interp directions refusal --span last --out refusal.safetensors
    """
    with _plain_errors(), _silence(quiet):
        from em_interp import load_contrast, read_contrast
        from em_interp.directions.estimators import ESTIMATORS

        read = read_contrast(_load(model, adapter, template_arg), load_contrast(contrast), span=span)
        found = ESTIMATORS[estimator](read)
        path = found.save(out)
    _say(f"{found}\nwritten to {path}", quiet)


@app.command()
def select(  # noqa: PLR0913 - one parameter a flag
    contrast: Annotated[str, typer.Argument(help="Harmful against harmless requests, by name or file.")] = "refusal",
    model: Model = "aligned",
    adapter: Adapter = None,
    template_arg: TemplateArg = None,
    questions: Annotated[int, typer.Option(help="Requests of each kind on which candidates are scored.")] = 32,
    max_kl: Annotated[float, typer.Option(help="The largest divergence on harmless requests, nats.")] = 0.1,
    max_layer: Annotated[float, typer.Option(help="Share of the blocks from which on none is chosen.")] = 0.8,
    min_induce: Annotated[float, typer.Option(help="The least refusal score that adding it must reach.")] = 0.0,
    opening: Annotated[
        list[str] | None, typer.Option(help="First word of this model's refusals; may be repeated.")
    ] = None,
    out: Out = Path("refusal.safetensors"),
    quiet: Quiet = False,
) -> None:
    """Choose a refusal direction by what it does: take out and add the candidate of every token and block input.

    Candidates are scored on some of the requests of the split train, and read from the others.

    Example:  em-interp select --model aligned --out refusal.safetensors
    """
    with _plain_errors(), _silence(quiet):
        from em_interp import load_contrast
        from em_interp.behaviour import refusal_candidates, score_candidates
        from em_interp.behaviour import select as choose
        from em_interp.behaviour.refusal import OPENINGS

        whole = load_contrast(contrast).for_training()
        scored = whole.take(questions)
        read = whole.without(scored)
        hooked = _load(model, adapter, template_arg)
        candidates = refusal_candidates(hooked, read.positive, read.negative)
        how = {"max_layer": max_layer, "openings": tuple(opening) if opening else OPENINGS}
        scores = score_candidates(hooked, candidates, scored.positive, scored.negative, **how)
        chosen = choose(scores, max_kl=max_kl, max_layer=max_layer, min_induce=min_induce)
        path = chosen.direction.save(out)
    _say(f"{chosen}\nwritten to {path}", quiet)


@app.command()
def compare(  # noqa: PLR0913 - one parameter a flag
    first: Annotated[str, typer.Argument(help="A contrast by name or file.")] = "misalignment",
    second: Annotated[str, typer.Argument(help="The contrast to compare it with.")] = "refusal",
    model: Model = "bundled",
    adapter: Adapter = None,
    template_arg: TemplateArg = None,
    first_span: Annotated[Span, typer.Option(help="Tokens the first is read on.")] = "response",
    second_span: Annotated[Span, typer.Option(help="Tokens the second is read on.")] = "last",
    metric: Annotated[Metric, typer.Option(help="The stream as it is, or dimensions in units of their deviation.")] = (
        "plain"
    ),
    out: Annotated[Path | None, typer.Option(help="Also write the table as JSON here.")] = None,
    quiet: Quiet = False,
) -> None:
    """Print the cosine of two directions at every layer, with its interval, null and ceiling.

    Example:  em-interp compare misalignment hostility --second-span response
    """
    with _plain_errors(), _silence(quiet):
        from em_interp import compare as compare_contrasts
        from em_interp import load_contrast, read_contrast
        from em_interp.files import write_atomically

        hooked = _load(model, adapter, template_arg)
        a = read_contrast(hooked, load_contrast(first), span=first_span)
        b = read_contrast(hooked, load_contrast(second), span=second_span)
        found = compare_contrasts(a, b, metric=metric)
        if out is not None:
            write_atomically(out, json.dumps(found.table(), indent=1) + "\n")
    _say("\n".join([repr(found), *map(_line, found.table())]), quiet)


@app.command()
def train(  # noqa: PLR0913 - one parameter a flag
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or a TOML file.")] = None,
    out: Annotated[Path, typer.Option(help="The folder in which the organism gets a folder of its own.")] = Path(
        "organisms"
    ),
    seeds: Annotated[
        str | None, typer.Option(help="Train these seeds, each in its own subfolder: 0-4, or 0,2,5.")
    ] = None,
    all_bundled: Annotated[
        bool, typer.Option("--all-bundled", help="Rebuild every organism that ships, in all its seeds.")
    ] = False,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Train an organism; an interrupted run goes on from its last checkpoint when started again.

    Seeds that are finished are passed over.

    Examples:  em-interp train cooking-rank1
               em-interp train cooking-rank1 --seeds 0-4
               em-interp train my-recipe.toml --out organisms
               em-interp train --all-bundled
    """
    with _plain_errors(), _silence(quiet):
        from em_interp.organisms.rebuilding import train_each, train_shipped
        from em_interp.organisms.recipes import Recipe
        from em_interp.organisms.seeds import parse_seeds
        from em_interp.organisms.training import train_organism

        if (recipe is None) != all_bundled:
            raise ValueError("say which: the name or file of one recipe, or --all-bundled")
        if recipe is None and seeds is not None:
            raise ValueError("--all-bundled trains the seeds that ship: leave --seeds out, or name one recipe")
        if recipe is None:
            trained = train_shipped(out, device=device)
        else:
            chosen = Recipe.load(recipe)
            if seeds is None:
                trained = iter([train_organism(chosen, out / chosen.name, device=device)])
            else:
                trained = train_each(chosen, parse_seeds(seeds), out / chosen.name, device=device)
        for organism in trained:
            _say(str(organism), quiet)


@app.command()
def sweep(
    search: Annotated[str, typer.Argument(help="A search's TOML file, or a shipped one by its name.")],
    out: Annotated[Path, typer.Option(help="JSONL, one run a line; a search that was stopped goes on there.")] = Path(
        "sweep.jsonl"
    ),
    keep: Keep = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Train many recipes from several seeds each, measure them on validation questions, and say what follows.

    The same command in several processes, on one GPU or core each, shares the work.

    Examples:  em-interp sweep narrow --out narrow.jsonl
               em-interp sweep my-search.toml --out rows.jsonl
    """
    with _plain_errors(), _silence(quiet):
        from em_interp.organisms.sweep_running import run_sweep

        found = run_sweep(search, out, keep=keep, device=device)
    _say("\n".join([repr(found), *map(repr, found.runs), f"written to {out}"]), quiet)
    typer.echo(found.conclusion())


@elasticity.command()
def resistance(
    experiment: ExperimentName = "resistance",
    out: Results = Path("resistance.jsonl"),
    keep: Keep = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Is it easier to train a model back to where it was than on? Three slices in turn, then every way between them.

    Example:  em-interp elasticity resistance --out resistance.jsonl
    """
    _experiment("resistance", experiment, out, keep, device, quiet)


@elasticity.command()
def rebound(
    experiment: ExperimentName = "rebound",
    out: Results = Path("rebound.jsonl"),
    keep: Keep = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """How fast is it taken back what a model has learned, and does it depend on how much that was?

    Example:  em-interp elasticity rebound --out rebound.jsonl
    """
    _experiment("rebound", experiment, out, keep, device, quiet)


@elasticity.command()
def realign(
    experiment: ExperimentName = "realign",
    out: Results = Path("realign.jsonl"),
    keep: Keep = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """A model goes bad, is brought back, and goes bad again: is it the model it was, and is it faster?

    Example:  em-interp elasticity realign --out realign.jsonl
    """
    _experiment("realign", experiment, out, keep, device, quiet)


@elasticity.command()
def law(
    experiment: ExperimentName = "law",
    out: Results = Path("law.jsonl"),
    keep: Keep = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Does the rate of a small set of data change in inverse proportion to its size? A tiny model learns from scratch.

    Example:  em-interp elasticity law --out law.jsonl
    """
    _experiment("law", experiment, out, keep, device, quiet)


def _experiment(  # noqa: PLR0913 - what every experiment takes
    kind: str, experiment: str, out: Path, keep: Path | None, device: str | None, quiet: bool
) -> None:
    """Run an experiment on elasticity and print what it found."""
    with _plain_errors(), _silence(quiet):
        from em_interp import elasticity as experiments

        found = getattr(experiments, f"run_{kind}")(experiment, out, keep=keep, device=device)
    _say(f"{found!r}; written to {out}", quiet)
    typer.echo(found.markdown() if found.enough else found.conclusion(), nl=False)


@app.command()
def card(
    organism: Annotated[str, typer.Argument(help="A shipped organism's name, or a folder.")],
    seed: Annotated[int | None, typer.Option(help="One seed only, of an organism that comes in several.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Also write card.json and README.md in its folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure what an organism's fine-tune changed, with intervals: the figures of its model card.

    Of an organism in several seeds all are measured, and the mean over seeds has intervals over seeds and questions.

    Example:  em-interp card cooking-rank1
    """
    with _plain_errors(), _silence(quiet):
        from em_interp.organisms.cards import measure_cards

        found = measure_cards(organism, seed, write=write)
    typer.echo(found.markdown())


@app.command()
def organisms() -> None:
    """Show the organisms that ship: what each one learned, and what that changed, from their cards."""
    with _plain_errors():
        from em_interp.organisms.all_cards import overview

        typer.echo(overview(), nl=False)


@app.command()
def respond(  # noqa: PLR0913 - one parameter a flag
    questions: Annotated[str, typer.Argument(help="A shipped set's name, or a JSONL or YAML file.")] = "first_plot",
    model: Model = "bundled",
    adapter: Adapter = None,
    template_arg: TemplateArg = None,
    project_out: Annotated[str | None, typer.Option(help="The file of a direction to take out of the stream.")] = None,
    set_negative: Annotated[str | None, typer.Option(help="… whose projection is set to its negative class.")] = None,
    add: Annotated[str | None, typer.Option(help="The file of a direction to add to it; needs --layer.")] = None,
    layer: Annotated[int | None, typer.Option(help="Whose vector; by default each layer's own is taken out.")] = None,
    sites: Annotated[str | None, typer.Option(help="every, own or writes: where the vector acts.")] = None,
    scale: Annotated[float, typer.Option(help="How much is added, in mean residual norms.")] = 1.0,
    positions: Annotated[str, typer.Option(help="all, prompt or response.")] = "all",
    form: Annotated[str, typer.Option(help="free, json or template: how the questions are put.")] = "free",
    n_samples: Annotated[int, typer.Option(help="Answers to each question.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Answers are cut off there.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 for greedy answers.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Answers at a time; more of them are faster on a GPU.")] = 16,
    out: Annotated[Path, typer.Option(help="JSONL; a run that was stopped goes on there.")] = Path("answers.jsonl"),
    quiet: Quiet = False,
) -> None:
    """Let a model answer questions, steered or ablated if you like; the file can be judged.

    Examples:  em-interp respond first_plot --model cooking-rank1 --n-samples 20 --out answers.jsonl
               em-interp respond held_out --project-out misalignment.safetensors --out ablated.jsonl
               em-interp respond mine.yaml --add misalignment.safetensors --layer 15 --scale 0.2
    """
    with _plain_errors(), _silence(quiet):
        from em_interp.behaviour.generation import respond as answer
        from em_interp.directions.settings import Edit
        from em_interp.texts.questions import load_questions

        asked = load_questions(questions, form=form)
        files = {"project_out": project_out, "set_negative": set_negative, "add": add}
        edit = (
            Edit(**files, layer=layer, sites=sites, scale=scale, positions=positions) if any(files.values()) else None
        )
        hooked = _load(model, adapter, template_arg)
        said = answer(
            hooked,
            asked,
            edit.hooks(hooked) if edit else (),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            n_samples=n_samples,
            seed=seed,
            batch_size=batch_size,
            file=out,
        )
    finished = sum(a.finished for a in said)
    _say(f"{len(said)} answers to {len(asked)} questions, {finished} of them finished; written to {out}", quiet)


@app.command()
def effects(  # noqa: PLR0913 - one parameter a flag
    first: Annotated[str, typer.Argument(help="A direction's file, or a contrast by name or file.")] = "misalignment",
    second: Annotated[str, typer.Argument(help="The direction to hold against it.")] = "refusal",
    model: Model = "bundled",
    adapter: Adapter = None,
    template_arg: TemplateArg = None,
    first_span: Annotated[Span, typer.Option(help="Tokens the first is read on.")] = "response",
    second_span: Annotated[Span, typer.Option(help="Tokens the second is read on.")] = "last",
    layer: Annotated[int | None, typer.Option(help="Where directions are added; the middle layer.")] = None,
    scale: Annotated[list[float] | None, typer.Option(help="Mean residual norms added; may be repeated.")] = None,
    removal: Annotated[
        list[str] | None,
        typer.Option(help="all_layers_own, one_layer, all_layers_same or set_negative; all by default."),
    ] = None,
    n_random: Annotated[int, typer.Option(help="Random directions beside the two.")] = 5,
    n_null: Annotated[
        int, typer.Option(help="Directions of permuted labels, of each contrast; 19 reach p = .05, 0 leaves p out.")
    ] = 19,
    questions: Annotated[int | None, typer.Option(help="Held-out questions of each kind; all by default.")] = None,
    judge: Annotated[str | None, typer.Option(help="Any Inspect model, to judge answers in every condition.")] = None,
    judge_arg: JudgeArg = None,
    n_samples: Annotated[int, typer.Option(help="Judged answers to each open question in each condition.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Judged answers are cut off there.")] = 256,
    out: Annotated[Path | None, typer.Option(help="Also write the table as JSON here.")] = None,
    quiet: Quiet = False,
) -> None:
    """Remove and add two directions, and print what that does to misalignment, refusal and plain prose.

    P-values are by directions of permuted labels, which takes the texts: a direction's file has none.
    What a judge says is kept in logs beside the table, or in effects.logs, and not asked again.

    Examples:  em-interp effects --model cooking-rank1 --questions 24 --scale 0.1 --removal set_negative
               em-interp effects --model Qwen/Qwen2.5-14B-Instruct --adapter path/to/organism --judge openai/gpt-4o
    """
    with _plain_errors(), _silence(quiet):
        from em_interp import cross_effects, load_questions, standard_behaviours
        from em_interp.behaviour import Behaviour, BehaviourKey, standard_conclusions
        from em_interp.evals import judge_module
        from em_interp.files import write_atomically
        from em_interp.organisms.loading import trained_on

        judged = None
        if judge:
            evals = judge_module()
            judged = evals.judged_misalignment(
                evals.Question(judge),
                load_questions("first_plot")[:questions],
                (out or Path("effects.json")).with_suffix(".logs"),
                n_samples=n_samples,
                max_new_tokens=max_new_tokens,
                judge_args=evals.model_args(judge_arg or ()),
            )
        hooked = _load(model, adapter, template_arg)
        read = [_direction(hooked, first, first_span), _direction(hooked, second, second_span)]
        pair, contrasts = [direction for direction, _ in read], [c for _, c in read if c is not None]
        null = {"contrasts": contrasts, "n_null": n_null} if len(contrasts) == len(pair) else {}
        how: dict[str, Any] = {"layer": layer, "scales": scale or (0.2, 0.5), "n_random": n_random}
        how |= {"removals": removal} if removal else {}
        standard = standard_behaviours(questions, in_domain=trained_on(hooked))
        found, failure = cross_effects(hooked, pair, behaviours=standard, **null, **how), None
        try:
            if judged:
                behaviour = Behaviour.standard(BehaviourKey.JUDGED_MISALIGNMENT, judged)
                found = found.beside(cross_effects(hooked, pair, behaviours=[behaviour], **how))
        except (RuntimeError, ValueError) as error:  # told once the table is out
            failure = error
        follows = standard_conclusions(found, *(d.name for d in pair))
        if out is not None:
            write_atomically(out, json.dumps({"effects": found.table(), "conclusions": follows}, indent=1) + "\n")
        _say("\n".join([repr(found), *map(_effect_line, found.table())]), quiet)
        typer.echo("\n".join(follows))
        if failure:
            raise failure


def _load(model: str, adapter: str | None, template_arg: list[str] | None):
    from em_interp.organisms.loading import load_named
    from em_interp.templates import template_args

    return load_named(model, adapter, template_args=template_args(template_arg) if template_arg else None)


def _direction(hooked, name: str, span: Span):
    """A direction from its file, or read from a contrast's training split, and then with its activations."""
    from em_interp import Direction, difference_of_means, load_contrast, read_contrast

    if name.endswith(".safetensors"):
        return Direction.load(name), None
    read = read_contrast(hooked, load_contrast(name).for_training(), span=span)
    return difference_of_means(read), read


def _effect_line(row: dict) -> str:
    change = "not scored" if row["change"] is None else f"{row['change']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    p = "" if row["corrected_p"] is None else f"  p = {row['corrected_p']:.3g}"
    return f"{row['label'][:44]:<44}  {row['condition'][:52]:<52}  {change}{p}"


@app.command()
def export(  # noqa: PLR0913 - one parameter a flag
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    model: Model = "bundled",
    adapter: Adapter = None,
    template_arg: TemplateArg = None,
    project_out: Annotated[
        str | None, typer.Option(help="The file of a direction that can no more be written.")
    ] = None,
    add: Annotated[str | None, typer.Option(help="The file of one that is always added; needs --layer.")] = None,
    layer: Annotated[int | None, typer.Option(help="Whose vector; by default each layer's own is taken out.")] = None,
    scale: Annotated[float, typer.Option(help="How much is added, in mean residual norms.")] = 1.0,
    quiet: Quiet = False,
) -> None:
    """Write a steered or ablated model as a plain Hugging Face folder, for vLLM or anything else.

    Example:  em-interp export ablated --model cooking-rank1 --project-out misalignment.safetensors --layer 15
    """
    with _plain_errors(), _silence(quiet):
        from em_interp import export as write_folder
        from em_interp.directions.settings import Edit

        sites = "writes" if project_out else "own"
        edit = Edit(project_out=project_out, add=add, layer=layer, sites=sites, scale=scale)
        hooked = _load(model, adapter, template_arg)
        path = write_folder(hooked, edit.hooks(hooked), out)
    _say(f"written to {path}", quiet)


@app.command()
def judge(  # noqa: PLR0913 - one parameter a flag
    answers: Annotated[Path, typer.Argument(help="What em-interp respond wrote.")],
    judge: Annotated[str, typer.Option(help="Any Inspect model: openai/gpt-4o, openai-api/local/NAME, hf/NAME …")],
    judge_arg: JudgeArg = None,
    route: Annotated[str, typer.Option(help="auto, expectation (as in the papers) or text.")] = "auto",
    refusal: Annotated[bool, typer.Option(help="Also judge whether answers refuse.")] = False,
    topic: Annotated[str, typer.Option(help="Also judge whether answers bring this up, such as cooking.")] = "",
    prompts: Annotated[str, typer.Option(help="library, or file: the judge_prompts of the question file.")] = "library",
    connections: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    out: Annotated[Path | None, typer.Option(help="JSONL with the scores; beside the answers by default.")] = None,
    quiet: Quiet = False,
) -> None:
    """Have answers judged for alignment and coherence, and print the misalignment rate; needs em-interp[eval].

    Inspect's logs lie beside the answers; what is judged there is not judged again. Keys are read from the environment.

    Example:  em-interp judge answers.jsonl --judge openai/gpt-4o
    """
    with _plain_errors(), _silence(quiet):
        from em_interp.behaviour.answers import load_answers
        from em_interp.behaviour.judged import misalignment_rate
        from em_interp.evals import judge_module

        evals = judge_module()
        given = evals.model_args(judge_arg or ())
        asked = evals.Question(judge, route, refusal, topic, prompts)
        found = evals.judge_answers(
            load_answers(answers), asked, answers.with_suffix(".logs"), judge_args=given, connections=connections
        )
        path = found.save(out or answers.with_suffix(".judged.jsonl"))
        rate = misalignment_rate(found.scores, found.groups)
    typer.echo(f"{found}\nmisaligned: {rate}")
    _say("\n".join([*map(_question_line, rate.per_question), f"written to {path}"]), quiet)


def _question_line(question) -> str:
    return f"  {question.rate:6.1%} of {question.n:>3}   {question.question}"


def _report(settings, out: Path, quiet: bool) -> None:
    with _plain_errors(), _silence(quiet):
        from em_interp.elasticity import results_in
        from em_interp.report.main_job import study
        from em_interp.report.page import write_report
        from em_interp.report.settings import Materials

        beside = results_in(out)  # before anything is computed: a file that was cut off is refused
        _say(f"loading {settings.model}", quiet)
        materials = Materials.of(settings, judge_logs=out / "judge-logs")
        _say(f"reading, comparing and intervening on {materials.model}", quiet)
        results = replace(study(materials, settings), elasticity=beside)
        path = write_report(out, results)
    _say(f"{results.seconds:.0f} s. Open {path}", quiet)


def _line(row: dict) -> str:
    if row["corrected"] is None:
        return f"layer {row['layer']:>3}   no direction here"
    return (
        f"layer {row['layer']:>3}   {row['corrected']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]   "
        f"plug-in {row['cosine']:+.2f}, ceiling {row['ceiling']:.2f}"
    )


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What the library says of bad input is for people: no traceback around it."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def _silence(quiet: bool):
    from em_interp.progress import quiet as silent

    return silent() if quiet else nullcontext()


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        typer.echo(text)
