"""The commands. Imports here stay light: `--help` and `plugins list` never load torch."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from defensekit.errors import DefenseKitError, UsageError

app = typer.Typer(
    help="Find and remove backdoors and biases in fine-tuned language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
plugins = typer.Typer(help="The components at hand.", no_args_is_help=True)
store = typer.Typer(help="The artifacts that runs share.", no_args_is_help=True)
app.add_typer(plugins, name="plugins")
app.add_typer(store, name="store")

Workspace = Annotated[Path, typer.Option("--workspace", "-w", help="Folder of the artifacts and of the runs' folders.")]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, as YAML.")],
    workspace: Workspace = Path("workspace"),
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Poison a model (or take a suspect), purify it, and show accuracy and attack success before and after."""
    from defensekit.cli.interrupt import remembered
    from defensekit.cli.progress import Progress
    from defensekit.cli.table import show

    # Checked before the heavy imports: a typo in the command answers at once.
    if not recipe.is_file():
        from defensekit.errors import nearest

        beside = [str(path) for path in recipe.parent.glob("*.yaml")] if recipe.parent.is_dir() else []
        raise UsageError(f"there is no recipe {recipe}.{nearest(str(recipe), beside)}")
    try:
        with remembered() as interrupt, Progress(quiet=quiet) as progress:
            progress.message("loading libraries")
            from defensekit.pipeline import run as run_recipe

            result = run_recipe(recipe, workspace, [interrupt, progress])
    except BaseException as error:
        if not _interrupted(error):
            raise
        _fail("stopped; the same command goes on where it stopped", 130)
    if json:
        sys.stdout.write(result.model_dump_json() + "\n")
    else:
        show(result)


@plugins.command("list")
def list_plugins(
    files: Annotated[list[Path] | None, typer.Argument(help="Local plugin files to list as well.")] = None,
) -> None:
    """Every component by kind and name, and the plugins that could not be loaded."""
    from defensekit.cli.table import show_plugins
    from defensekit.host import load_plugins

    show_plugins(load_plugins(files or ()))


@store.command("list")
def list_store(workspace: Workspace = Path("workspace")) -> None:
    """Every artifact: what it is, when it was made, its size."""
    from defensekit.cli.table import show_store
    from defensekit.store import Store

    show_store(Store(workspace / "store").entries())


@store.command()
def prune(
    workspace: Workspace = Path("workspace"),
    everything: Annotated[bool, typer.Option("--all", help="Remove rows and predictions as well.")] = False,
) -> None:
    """Free disk space: remove models and statistics from the store, and what killed runs left.

    Runs' folders stay, and so do rows and predictions: a finished run is still repeated without training anything.
    """
    from defensekit.store import Store

    opened = Store(workspace / "store")
    freed, removed = opened.sweep(), 0
    for key, manifest, _ in opened.entries():
        if everything or manifest.get("stage", {}).get("kind") in (None, "train", "statistics", "purify"):
            freed += opened.remove(key)
            removed += 1
    typer.echo(f"removed {removed} artifacts, freed {freed / 2**20:,.1f} MiB")


def main() -> None:
    """The `defensekit` command: exit code 0 done, 1 failed, 2 wrong usage or recipe, 130 stopped by Ctrl-C."""
    try:
        app()
    except UsageError as error:
        _fail(str(error), 2)
    except DefenseKitError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an exception: libraries turn it into one of their own when it meets them importing."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(text: str, code: int) -> NoReturn:
    sys.stderr.write(f"defensekit: {text}\n")
    sys.exit(code)
