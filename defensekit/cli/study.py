"""`defensekit study`: many runs as one."""

import gc
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.text import Text

from defensekit.cli.shared import Workspace, checked, console, table
from defensekit.utils.errors import DefenseKitError, UsageError, nearest, printable

if TYPE_CHECKING:
    from defensekit.studies.report.pivot import Table

app = typer.Typer(help="Many runs as one: a matrix over a recipe, with seeds.", no_args_is_help=True)

Study = Annotated[Path, typer.Argument(help="A study, as YAML.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a key, as in seeds=[0,1]; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]

SHOWN = 40  # runs in a table; more are counted
Which = Annotated[Path, typer.Argument(metavar="STUDY", help="A study as YAML, or its folder.")]
Out = Annotated[Path | None, typer.Option(help="Folder to write into.")]
Names = list[str] | None
WIDEST = 1000  # characters of a table that is piped somewhere


@app.command()
def plan(
    study: Study, settings: Settings = None, workspace: Workspace = Path("workspace"), as_json: Json = False
) -> None:
    """Say what a study would run: its runs, the stages behind them, what is there, how long the rest takes.

    Seconds and bytes are judged by what stages of the same kind took before, in this workspace.
    """
    checked(study, "study")
    gc.enable()
    with redirect_stdout(sys.stderr):
        from defensekit.pipeline.eta import duration
        from defensekit.studies.loading import load_study
        from defensekit.studies.planning import plan_study

        found = plan_study(load_study(study, settings or ()), workspace)
        estimate = found.estimate()
    facts: dict[str, Any] = {
        "runs": [
            {"id": run.id, "axes": run.row.axes, "seed": run.row.recipe.seed, "done": run.id in found.done}
            for run in found.runs
        ],
        "stages": {"known": len(found.stages), "to_make": dict(estimate.stages), "unknown": found.unknown},
        "estimate": {
            "seconds": estimate.seconds,
            "bytes": estimate.bytes,
            "unseen": list(estimate.unseen),
            "unsized": list(estimate.unsized),
        },
    }
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    out, rows = console(), table("run", "result")
    for run in found.runs[:SHOWN]:
        rows.add_row(Text(str(run.row)), "there" if run.id in found.done else "to make")
    out.print(rows)
    if len(found.runs) > SHOWN:
        out.print(f"... and {len(found.runs) - SHOWN} more (--json has them all)")
    todo = len(found.todo)
    out.print(f"{len(found.runs)} runs, {len(found.runs) - todo} of them there, {todo} to make")
    more = f" and up to {found.unknown} that hang on choices" if found.unknown else ""
    out.print(f"{len(found.stages)} distinct stages{more}; {len(found.missing)} to make:")
    out.print("  " + (", ".join(f"{count} {kind}" for kind, count in estimate.stages.items()) or "none"))
    if len(estimate.unseen) < len(estimate.stages):
        without = f" without {', '.join(estimate.unseen)}, of which nothing is known yet" if estimate.unseen else ""
        out.print(f"about {duration(estimate.seconds)} one after the other{without}")
        without = f" without {', '.join(estimate.unsized)}, of whose size nothing is known" if estimate.unsized else ""
        kept = "; models are removed again once no run needs them" if found.study.keys.keep != "models" else ""
        out.print(f"{estimate.bytes / 2**20:,.0f} MiB on disk{without}{kept}")
    elif found.missing:
        out.print("there is no estimate yet: nothing is known of these kinds in this workspace")


def _resumes() -> list[str]:
    from defensekit.studies.keys import Resume

    return list(get_args(Resume))


@app.command()
def run(
    study: Study,
    settings: Settings = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="only-missing|always|never|only-cache",
            autocompletion=_resumes,
            help="Make the results that are missing; all anew; refuse where there are some; or compute no stage.",
        ),
    ] = "only-missing",
    workspace: Workspace = Path("workspace"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a study. What was computed before is not computed again; what fails is written down, the rest goes on.

    The exit code is 1 where a run has no result in the end. The same command goes on after anything.
    """
    from defensekit.cli.interrupt import ending, remembered
    from defensekit.cli.watching import Watching
    from defensekit.studies.keys import resumed

    checked(study, "study")
    made = resumed(resume)
    gc.enable()
    with (
        ending("stopped; the same command goes on where it stopped"),
        remembered() as interrupt,
        Watching(quiet=quiet) as watching,
        redirect_stdout(sys.stderr),
    ):
        watching.message("loading libraries")
        from defensekit.studies.loading import load_study
        from defensekit.studies.running import run_study

        found = run_study(load_study(study, settings or ()), workspace, [interrupt, watching], made)
    if as_json:
        facts = {"runs": found.runs, "before": found.before, "done": found.done, "failed": found.failed}
        sys.stdout.write(json.dumps({**facts, "folder": str(found.folder)}) + "\n")
    else:
        out = console()
        out.print(f"{found.done} of {found.runs} runs have a result, {found.before} of them had one before")
        for told in found.failed.values():
            out.print(Text(f"failed: {told}"))
        out.print(f"results: {found.folder / 'results'}")
    if found.done < found.runs:
        sys.exit(1)


@app.command()
def status(study: Which, workspace: Workspace = Path("workspace"), as_json: Json = False) -> None:
    """Say how far a study is, from any terminal, while it runs or afterwards."""
    from defensekit.pipeline.eta import duration
    from defensekit.studies.status import status_of

    folder = place(study, workspace)
    found = status_of(folder)
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    out = console()
    out.print(f"{folder.name}: {found['done']} of {found['runs']} runs have a result, {len(found['failed'])} failed")
    for told in found["failed"]:
        out.print(Text(f"  failed: {told}"))
    for process in found["processes"]:
        ago = duration(process["silent"])
        left = f", {process['left']}" if process["left"] else ""
        out.print(f"at work on {process['host']} (process {process['pid']}), heard of {ago} ago{left}")
        for title, stage in process["stages"].items():
            share = f", {stage['done'] / stage['total']:.0%}" if stage["total"] else ""
            out.print(Text(f"  {title}: for {duration(stage['for'])}{share}"))
    if not found["processes"]:
        out.print("nobody is at work on it")


@app.command()
def rerun(
    result: Annotated[Path, typer.Argument(help="A result's file.")],
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="Where it is run again (an empty folder that is removed).")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Repeat one finished run from what its result recorded, and compare: exit code 1 where anything differs."""
    import tempfile

    from defensekit.cli.interrupt import ending, remembered
    from defensekit.cli.progress import Progress

    gc.enable()
    with (
        ending("stopped"),
        remembered() as interrupt,
        Progress(quiet=quiet) as progress,
        redirect_stdout(sys.stderr),
        tempfile.TemporaryDirectory() as empty,
    ):
        progress.message("loading libraries")
        from defensekit.studies.rerun import rerun as repeat

        found = repeat(result, workspace or empty, [interrupt, progress])
    if as_json:
        facts = {"same": found.same, "inputs": found.inputs, "numbers": found.numbers, "stages": found.stages}
        sys.stdout.write(json.dumps({**facts, "surroundings": found.surroundings}) + "\n")
    else:
        out = console()
        for what, differing in (
            ("what decides the numbers", found.inputs),
            ("numbers", found.numbers),
            ("digest of what a stage made", found.stages),
            ("versions and machine", found.surroundings),
        ):
            if differing:
                rows = table(what, "recorded", "now")
                for place, before, after in differing[:SHOWN]:
                    rows.add_row(Text(place), Text(str(before)[:60]), Text(str(after)[:60]))
                out.print(rows)
        told = "every number came out again, to the last digit" if found.same else "it did not come out again"
        out.print(f"{found.before.name} ({found.before.identity[:16]}): {told}")
    if not found.same:
        counts = f"{len(found.inputs)} inputs, {len(found.numbers)} numbers, files of {len(found.stages)} stages"
        raise DefenseKitError(f"{counts} differ")


@app.command()
def report(
    study: Which,
    rows: Annotated[Names, typer.Option("--rows", metavar="AXIS", help="An axis as rows; may be repeated.")] = None,
    cols: Annotated[Names, typer.Option("--cols", metavar="AXIS", help="An axis as columns; may be repeated.")] = None,
    metric: Annotated[Names, typer.Option("--metric", help="A metric to show; all, if none is named.")] = None,
    model: Annotated[
        Names, typer.Option("--model", help="A model to show beside the references: purified, random, fine-tuned, ...")
    ] = None,
    where: Annotated[
        Names, typer.Option("--where", metavar="AXIS=VALUE", help="Hold an axis at a value; may be repeated.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="DEFENSE", help="What defenses are held against; the first, if not named.")
    ] = None,
    out: Out = None,
    workspace: Workspace = Path("workspace"),
) -> None:
    """Show a study's results as a table, and write the report of it all.

    Writes report.html, tables.md, tables.tex and plots/ into the study's folder, or into --out. Nothing is run.
    """
    folder = place(study, workspace)
    fixed = dict(_setting(text) for text in where or ())
    from defensekit.studies.report.page import report as read

    found = read(folder, rows or (), cols or (), metric or (), model or ("purified",), fixed, against)
    show(found.main)
    console().print(f"report: {found.write(out)}")


@app.command()
def export(study: Which, out: Out = None, workspace: Workspace = Path("workspace")) -> None:
    """Write a study's results as CSV and Parquet: a row per run, model and metric.

    They go into the study's folder, or into --out.
    """
    folder = place(study, workspace)
    from defensekit.studies.frame import export as write

    for path in write(folder, out or folder):
        console().print(str(path))


def place(study: Path, workspace: Path) -> Path:
    """The folder of a study, given as that folder or as the YAML that names it.

    Raises:
        UsageError: there is no such folder or file, or the study never ran in the workspace.
    """
    folder = study
    if study.suffix in (".yaml", ".yml") and not study.is_dir():
        checked(study, "study")
    if study.is_file():
        from defensekit.recipe import yaml_document
        from defensekit.studies.keys import no_recipe

        data = yaml_document.load(study).data
        no_recipe(data, str(study))
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            raise UsageError(f"{study} is no study: it has no `name:`")
        folder = workspace / "studies" / data["name"]
        if not folder.resolve().is_relative_to((workspace / "studies").resolve()):
            raise UsageError(f"{study}: {data['name']!r} names no study")
    if not (folder / "study.json").is_file():
        beside = [str(path.parent) for path in folder.parent.glob("*/study.json")]
        hint = f".{nearest(str(folder), beside)}" if folder == study else " (--workspace says where it ran)"
        raise UsageError(f"no study has run in {folder}{hint}")
    return folder


def show(found: "Table") -> None:
    """A table on standard output, with its notes."""
    from defensekit.studies.report.markup import heading, labels, parted

    out = console()
    if not out.is_terminal:
        out.width = WIDEST
    drawn = table()
    for head in found.heads:
        drawn.add_column(printable(head), overflow="fold")
    for column in found.columns:
        drawn.add_column(printable(f"{column.group}\n{heading(column)}".strip()), justify="right")
    for row, apart in zip(found.rows, parted(found), strict=True):
        if apart:
            drawn.add_section()
        cells = [found.text(cell, column) for cell, column in zip(row.cells, found.columns, strict=True)]
        drawn.add_row(*map(printable, [*labels(row), *cells]))
    out.print(drawn)
    for note in found.notes:
        out.print(printable(note))


def _setting(text: str) -> tuple[str, str]:
    axis, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--where {text!r}: expected AXIS=VALUE")
    return axis, value
