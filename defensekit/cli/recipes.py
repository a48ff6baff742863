"""`defensekit recipes`: the recipes that ship, to read and to start from."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from defensekit.cli.shared import console, table
from defensekit.recipe import shipped
from defensekit.utils.errors import UsageError

app = typer.Typer(help="The recipes that ship.", no_args_is_help=True)


def _names(incomplete: str) -> list[str]:
    """Completion in a shell."""
    return [name for name in shipped.names() if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="A shipped recipe's name.", autocompletion=_names)]


@app.command("list")
def list_recipes() -> None:
    """Every recipe that ships, and what it shows."""
    found = table("name", "what it shows")
    for name in shipped.names():
        found.add_row(Text(name), Text(shipped.summary(name)))
    console().print(found)


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
    place = target or Path()
    place = place / f"{name}.yaml" if place.is_dir() else place
    try:
        with place.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{place} already exists; name another file") from error
    typer.echo(f"{place} is yours; run it with: defensekit run {place}")
