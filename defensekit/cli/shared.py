"""What the commands share."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.table import Table

Workspace = Annotated[Path, typer.Option("--workspace", "-w", help="Folder of the artifacts and of the runs' folders.")]
Files = Annotated[list[Path] | None, typer.Argument(help="Local plugin files to look at as well.")]


def console() -> Console:
    """Where results are printed: standard output, lines never broken inside a path."""
    return Console(highlight=False, soft_wrap=True)


def table(*columns: str) -> Table:
    """A table that needs few characters beside its cells, and reads as well without colour."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def fail(text: str, code: int) -> NoReturn:
    """End with a message on standard error."""
    sys.stderr.write(f"defensekit: {text}\n")
    sys.exit(code)
