"""`defensekit study`: many runs as one."""

import gc
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from defensekit.cli.shared import Workspace, checked, console, table, to_write, verdict_by_exit_code
from defensekit.utils.errors import DefenseKitError, UsageError, nearest, printable_name

if TYPE_CHECKING:
    from defensekit.studies.report.table import Table

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
Out = Annotated[Path | None, typer.Option(parser=to_write, help="Folder to write into.")]
Names = list[str] | None


@app.command()
def plan(
    study: Study, settings: Settings = None, workspace: Workspace = Path("workspace"), as_json: Json = False
) -> None:
    """Show what a study would run: its runs, their stages, what is cached, and how long the rest takes.

    Seconds and bytes are estimated from stages of the same kind in this workspace.
    """
    checked(study, "study")
    gc.enable()
    with redirect_stdout(sys.stderr):
        from defensekit.pipeline.eta import duration
        from defensekit.studies.loading import load_study
        from defensekit.studies.planning import plan_study

        say = console(stderr=True).print
        planned = plan_study(load_study(study, settings or (), announce=say), workspace)
        estimate = planned.estimate()
    facts: dict[str, Any] = {
        "runs": [
            {"id": run.id, "axes": run.run.axes, "seed": run.run.recipe.seed, "done": run.id in planned.done}
            for run in planned.runs
        ],
        "stages": {"known": len(planned.stages), "to_make": dict(estimate.stages), "unknown": planned.unknown},
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
    for run in planned.runs[:SHOWN]:
        rows.add_row(printable_name(run.run), "finished" if run.id in planned.done else "to run")
    out.print(rows)
    if len(planned.runs) > SHOWN:
        out.print(f"... and {len(planned.runs) - SHOWN} more (--json has them all)")
    todo = len(planned.todo)
    out.print(f"{len(planned.runs)} runs, {len(planned.runs) - todo} of them finished, {todo} to run")
    more = f" and up to {planned.unknown} that depend on choices" if planned.unknown else ""
    out.print(f"{len(planned.stages)} distinct stages{more}; {len(planned.missing)} to compute:")
    out.print("  " + (", ".join(f"{count} {kind}" for kind, count in estimate.stages.items()) or "none"))
    if len(estimate.unseen) < len(estimate.stages):
        without = f" without {', '.join(estimate.unseen)}, of which nothing is known yet" if estimate.unseen else ""
        out.print(f"about {duration(estimate.seconds)} one after the other{without}")
        without = f" without {', '.join(estimate.unsized)}, of whose size nothing is known" if estimate.unsized else ""
        kept = "; models are removed again once no run needs them" if planned.study.keys.keep != "models" else ""
        out.print(f"{estimate.bytes / 2**20:,.0f} MiB on disk{without}{kept}")
    elif planned.missing:
        out.print("there is no estimate yet: nothing is known of these kinds in this workspace")


def _resumes() -> list[str]:
    from defensekit.studies.keys import Resume

    return list(get_args(Resume))


@app.command()
@verdict_by_exit_code()
def run(
    study: Study,
    settings: Settings = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="only-missing|always|never|only-cache",
            autocompletion=_resumes,
            help="Run what has no result; run everything again; refuse if there are results; or compute no stage.",
        ),
    ] = "only-missing",
    workspace: Workspace = Path("workspace"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a study. Cached stages are not computed again; failures are recorded, and the other runs continue.

    The exit code is 1 if a run has no result in the end. The same command resumes after any interruption.
    """
    from defensekit.cli.interrupt import at_work
    from defensekit.cli.study_progress import StudyProgress
    from defensekit.studies.keys import resumed

    checked(study, "study")
    mode = resumed(resume)
    progress = StudyProgress(quiet=quiet)
    with at_work(progress, "stopped; the same command resumes where it stopped") as observers:
        from defensekit.studies.loading import load_study
        from defensekit.studies.running import run_study

        loaded = load_study(study, settings or (), announce=progress.message)
        outcome = run_study(loaded, workspace, observers, mode)
    if as_json:
        facts = {"runs": outcome.runs, "before": outcome.before, "done": outcome.done, "failed": outcome.failed}
        sys.stdout.write(json.dumps({**facts, "folder": str(outcome.folder)}) + "\n")
    else:
        out = console()
        out.print(f"{outcome.done} of {outcome.runs} runs have a result, {outcome.before} of them had one before")
        for error in outcome.failed.values():
            out.print(f"failed: {error}")
        out.print(f"results: {outcome.folder / 'results'}")
    if outcome.done < outcome.runs:
        sys.exit(1)


@app.command()
def status(study: Which, workspace: Workspace = Path("workspace"), as_json: Json = False) -> None:
    """Show the progress of a study, from any terminal, while it runs or afterwards."""
    from defensekit.pipeline.eta import duration
    from defensekit.studies.status import status_of

    folder = study_folder(study, workspace)
    state = status_of(folder)
    if as_json:
        sys.stdout.write(json.dumps(state) + "\n")
        return
    out = console()
    out.print(f"{folder.name}: {state['done']} of {state['runs']} runs have a result, {len(state['failed'])} failed")
    for error in state["failed"]:
        out.print(f"  failed: {error}")
    for process in state["processes"]:
        ago = duration(process["silent"])
        left = f", {process['left']}" if process["left"] else ""
        host = printable_name(process["host"])
        out.print(f"running on {host} (process {process['pid']}), last seen {ago} ago{left}")
        for title, stage in process["stages"].items():
            share = f", {stage['done'] / stage['total']:.0%}" if stage["total"] else ""
            out.print(f"  {printable_name(title)}: for {duration(stage['for'])}{share}")
    if not state["processes"]:
        out.print("no process is running it")


@app.command()
@verdict_by_exit_code()
def rerun(
    result: Annotated[Path, typer.Argument(help="A result's file.")],
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", "-w", parser=to_write, help="Where it is run again (a temporary folder)."),
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A plugin file, data, a folder or owner/name@revision that the result names and that may be loaded or "
            "opened; may be repeated.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Repeat one finished run from its result's record, and compare: exit code 1 if anything differs.

    The result may be a stranger's: nothing that it names outside itself is opened or loaded without --trust.
    """
    import tempfile

    from defensekit.cli.interrupt import at_work
    from defensekit.cli.progress import Progress

    with at_work(Progress(quiet=quiet)) as observers, tempfile.TemporaryDirectory() as empty:
        from defensekit.studies.rerun import CLAIMED
        from defensekit.studies.rerun import rerun as repeat

        comparison = repeat(result, workspace or empty, observers, trust or ())
    if as_json:
        facts = {
            "same": comparison.same,
            "inputs": comparison.inputs,
            "numbers": comparison.numbers,
            "stages": comparison.stages,
            "claimed": CLAIMED,
        }
        sys.stdout.write(json.dumps({**facts, "surroundings": comparison.surroundings}) + "\n")
    else:
        out = console()
        for what, differing in (
            ("what decides the numbers", comparison.inputs),
            ("numbers", comparison.numbers),
            ("digest of a stage's files", comparison.stages),
            ("versions and machine", comparison.surroundings),
        ):
            if differing:
                rows = table(what, "recorded", "now")
                for key, before, after in differing[:SHOWN]:
                    rows.add_row(printable_name(key), printable_name(before, 60), printable_name(after, 60))
                out.print(rows)
        verdict = "every number is the same, to the last digit" if comparison.same else "it was not reproduced"
        out.print(f"as claimed, not computed again: {', '.join(CLAIMED)}, and what each part took")
        out.print(
            f"{printable_name(comparison.before.name)} ({printable_name(comparison.before.identity[:16])}): {verdict}"
        )
    if not comparison.same:
        inputs, numbers, stages = map(len, (comparison.inputs, comparison.numbers, comparison.stages))
        raise DefenseKitError(f"{inputs} inputs, {numbers} numbers, files of {stages} stages differ")


@app.command()
def report(
    studies: Annotated[
        list[Path], typer.Argument(metavar="STUDY...", help="Studies as YAML, or folders: of studies, or of rows.")
    ],
    rows: Annotated[Names, typer.Option("--rows", metavar="AXIS", help="An axis as rows; may be repeated.")] = None,
    cols: Annotated[Names, typer.Option("--cols", metavar="AXIS", help="An axis as columns; may be repeated.")] = None,
    metric: Annotated[Names, typer.Option("--metric", help="A metric to show; all, if none is named.")] = None,
    model: Annotated[
        Names, typer.Option("--model", help="A model to show beside the references: purified, random, fine-tuned, ...")
    ] = None,
    where: Annotated[
        Names, typer.Option("--where", metavar="AXIS=VALUE", help="Fix an axis at a value; may be repeated.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="DEFENSE", help="The defense that others are compared with; the first if not named."),
    ] = None,
    tracks: Annotated[
        list[str] | None,
        typer.Option("--track", help="The file of a track of rows that is none of the shipped ones; may be repeated."),
    ] = None,
    out: Out = None,
    workspace: Workspace = Path("workspace"),
) -> None:
    """Show results as a table, and write the report.

    Writes report.html, tables.md, tables.tex and plots/ into the study's folder, or into --out. It runs nothing.
    Several studies, and rows of leaderboards, come into one table, which is written into --out alone.
    """
    fixed = dict(_setting(text) for text in where or ())
    options = (rows or (), cols or (), metric or (), model or ("purified",), fixed)
    boards = [place for place in studies if _has_rows(place)]
    folders = [place if place in boards else study_folder(place, workspace) for place in studies]
    if len(studies) == 1 and not boards:
        from defensekit.studies.report.page import report as read

        tables = read(folders[0], *options, against)
        for shown in filter(None, (tables.main, tables.detectors, tables.filters)):
            show(shown)
        console().print(f"report: {tables.write(out)}")
        return
    if against:
        raise UsageError("--against compares the defenses of one study")
    from tempfile import TemporaryDirectory

    from defensekit.leaderboard.as_study import studies_of
    from defensekit.studies.frame import Finished
    from defensekit.studies.report.page import joint_report

    with TemporaryDirectory() as scratch:
        finished = [Finished(place) for place in folders if place not in boards]
        finished += studies_of(boards, Path(scratch), tracks or ()) if boards else []
        tables = joint_report(finished, folders, *options)
        for shown in filter(None, (tables.main, tables.detectors, tables.filters)):
            show(shown)
        if out:
            console().print(f"report: {tables.write(out)}")


def _has_rows(place: Path) -> bool:
    """Whether a folder is a leaderboard's row, or has some."""
    return any(True for depth in ("", "*/", "*/*/") for _ in place.glob(f"{depth}row.json"))


@app.command()
def export(study: Which, out: Out = None, workspace: Workspace = Path("workspace")) -> None:
    """Write a study's results as CSV and Parquet: a row per run, model and metric.

    They go into the study's folder, or into --out.
    """
    folder = study_folder(study, workspace)
    from defensekit.studies.frame import export as write

    for path in write(folder, out or folder):
        console().print(str(path))


def study_folder(study: Path, workspace: Path) -> Path:
    """The folder of a study, given as that folder or as the study's YAML.

    Raises:
        UsageError: there is no such folder or file, or the study has not run in the workspace.
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
    if folder != study and (other := _other_than_ran(data, folder)):
        console(stderr=True).print(
            f"warning: {study} has another `{other}` than what ran last as {folder.name}, which is shown",
            style="yellow",
        )
    return folder


def _other_than_ran(data: dict[str, Any], folder: Path) -> str | None:
    """The first key that says which runs there are and differs from the study of that name that ran last."""
    from defensekit.studies.folder import Folder
    from defensekit.studies.keys import StudyKeys

    ran = Folder.at(folder).read().get("study")
    for key in ("matrix", "include", "exclude", "seeds"):
        now = data.get(key, StudyKeys.model_fields[key].default)
        if isinstance(ran, dict) and key in ran and json.loads(json.dumps(now, default=str)) != ran[key]:
            return key
    return None


def show(shown: "Table") -> None:
    """Print a table with its notes."""
    from defensekit.studies.report.markup import heading, labels, parted

    out = console()
    drawn = table()
    for head in shown.heads:
        drawn.add_column(printable_name(head))
    for column in shown.columns:
        drawn.add_column(f"{printable_name(column.group)}\n{printable_name(heading(column))}".strip(), justify="right")
    for row, apart in zip(shown.rows, parted(shown), strict=True):
        if apart:
            drawn.add_section()
        cells = [shown.text(cell, column) for cell, column in zip(row.cells, shown.columns, strict=True)]
        drawn.add_row(*map(printable_name, [*labels(row), *cells]))
    out.print(drawn)
    for note in shown.notes:
        out.print(note)


def _setting(text: str) -> tuple[str, str]:
    axis, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--where {text!r}: expected AXIS=VALUE")
    return axis, value
