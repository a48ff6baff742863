"""`defensekit study`: what a study's results say."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defensekit.cli.shared import Workspace, console, table
from defensekit.errors import UsageError, nearest, printable

if TYPE_CHECKING:
    from defensekit.report.pivot import Table

app = typer.Typer(help="Many runs over a matrix: read what they found.", no_args_is_help=True)

Which = Annotated[Path, typer.Argument(metavar="STUDY", help="A study as YAML, or its folder.")]
Out = Annotated[Path | None, typer.Option(help="Folder to write into.")]
Names = list[str] | None
WIDEST = 1000  # characters of a table that is piped somewhere


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
    from defensekit.report.study import report as read

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
    if study.is_file():
        from defensekit import yaml

        data = yaml.load(study).data
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
    from defensekit.report.markup import heading, labels, parted

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
