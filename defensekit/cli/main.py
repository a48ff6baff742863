"""The commands. Imports here stay light: `--help` and `plugins list` never load torch."""

import gc
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defensekit.cli import plugins, recipes, scan, store
from defensekit.cli.shared import Files, Workspace, fail
from defensekit.errors import DefenseKitError, UsageError, nearest

if TYPE_CHECKING:
    from defensekit.recipe import Recipe

app = typer.Typer(
    help="Find and remove backdoors and biases in fine-tuned language models.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 3 scanned and suspicious, 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, as YAML.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a key, as in training.epochs=3; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and its stages, and compute nothing.")
    ] = False,
    workspace: Workspace = Path("workspace"),
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Run a recipe, and show what the defense did.

    Poisons a model (or takes a suspect), purifies it, and measures accuracy and attack success before and after. What
    was computed before is not computed again.
    """
    from defensekit.cli.interrupt import interrupted, remembered
    from defensekit.cli.progress import Progress

    # Checked before the heavy imports: a typo in the command answers at once.
    _check(recipe)
    gc.enable()
    loaded: Recipe | None = None
    try:
        # What plugins and libraries print is no result: it goes where progress goes.
        with remembered() as interrupt, Progress(quiet=quiet) as progress, redirect_stdout(sys.stderr):
            from defensekit.loading import load_recipe

            progress.message("loading libraries")
            loaded = load_recipe(recipe, settings or ())
            if dry_run:
                from defensekit.dryrun import preview

                stages = preview(loaded, workspace, progress.message)
            else:
                from defensekit.pipeline import run as run_recipe
                from defensekit.report import write

                result = run_recipe(loaded, workspace, [interrupt, progress])
                progress.message("writing the report")
                report = write(result)
    except BaseException as error:
        if interrupted(error):
            fail("stopped" + ("" if dry_run else "; the same command goes on where it stopped"), 130)
        if loaded and not dry_run and isinstance(error, DefenseKitError) and not isinstance(error, UsageError):
            from defensekit.runfolder import folder_of

            raise DefenseKitError(f"{error}\n(more in {folder_of(loaded, workspace) / 'run.log'})") from error
        raise
    if dry_run:
        from defensekit.cli.table import show_preview

        show_preview(loaded, stages, json)
    elif json:
        sys.stdout.write(result.model_dump_json() + "\n")
    else:
        from defensekit.cli.table import show

        show(result, report)


def _check(recipe: Path) -> None:
    try:
        there = recipe.is_file()
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be read
        raise UsageError(f"{recipe}: {getattr(error, 'strerror', None) or error}") from error
    if not there:
        beside = [str(path) for path in recipe.parent.glob("*.yaml")] if recipe.parent.is_dir() else []
        raise UsageError(f"there is no recipe {recipe}.{nearest(str(recipe), beside)}")


@app.command()
def schema(files: Files = None) -> None:
    """Print the JSON schema of recipes.

    With every plugin's parameters in it: an editor that knows YAML completes and checks recipes by it.
    """
    import json

    from defensekit.host import load_plugins
    from defensekit.schema import recipe_schema

    with redirect_stdout(sys.stderr):  # a plugin that prints
        found = recipe_schema(load_plugins(files or ()))
    sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


@app.command()
def doctor() -> None:
    """Say what is here, what is missing, and what mends it."""
    from defensekit.cli.doctor import examine, show

    if not show(examine()):
        sys.exit(1)


app.command("scan")(scan.scan)
app.add_typer(plugins.app, name="plugins")
app.add_typer(recipes.app, name="recipes")
app.add_typer(store.app, name="store")


def main() -> None:
    """The `defensekit` command: exit code 0 done, 1 failed, 2 wrong usage or recipe, 130 stopped by Ctrl-C."""
    try:
        app()
    except UsageError as error:
        fail(str(error), 2)
    except DefenseKitError as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1)
