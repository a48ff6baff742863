"""`defensekit recipes`: the shipped recipes, to read and to start from."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from defensekit.cli.shared import console, table
from defensekit.recipe import shipped
from defensekit.utils.errors import UsageError
from defensekit.utils.files import atomic_write

app = typer.Typer(help="The shipped recipes.", no_args_is_help=True)


def _names(incomplete: str) -> list[str]:
    """Completion in a shell."""
    return [name for name in shipped.names() if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="A shipped recipe's name.", autocompletion=_names)]


@app.command("list")
def list_recipes() -> None:
    """List the shipped recipes, and what each shows."""
    rows = table("name", "what it shows")
    for name in shipped.names():
        rows.add_row(Text(name), Text(shipped.summary(name)))
    console().print(rows)


@app.command()
def show(name: Name) -> None:
    """Print a recipe."""
    sys.stdout.write(shipped.text(name))


@app.command()
def copy(
    name: Name, target: Annotated[Path | None, typer.Argument(help="A file or folder; NAME.yaml here if none.")] = None
) -> None:
    """Copy a recipe, to make it yours. A file that already exists is left alone."""
    text = shipped.text(name)
    path = target or Path()
    path = path / f"{name}.yaml" if path.is_dir() else path
    if os.path.lexists(path):
        raise UsageError(f"{path} already exists; name another file")
    atomic_write(path, text.encode())
    typer.echo(f"copied to {path}; run it with: defensekit run {path}")
