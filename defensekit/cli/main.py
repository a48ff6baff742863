"""The commands. Imports here stay light: `--help` and `plugins list` never load torch."""

import gc
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import defensekit
from defensekit.cli import leaderboard, plugins, recipes, scan, store, study
from defensekit.cli.shared import (
    Files,
    Workspace,
    checked,
    console,
    fail,
    prepare_streams,
    to_write,
    verdict_by_exit_code,
)
from defensekit.utils.errors import DefenseKitError, UsageError, is_failure, lacks_memory, one_line, out_of_memory
from defensekit.utils.files import environment_path, there

if TYPE_CHECKING:
    from collections.abc import Callable

    from defensekit.components import Observer
    from defensekit.recipe.recipe import Recipe
    from defensekit.result.schema import Result
    from defensekit.workflows.purify_model import Purification
    from defensekit.workflows.reset import ResetResult

NOT_REMOVED = 4

app = typer.Typer(
    help="Find and remove backdoors and biases in fine-tuned language models.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 3 suspicious (scan), "
    "4 not removed (purify), 130 stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"defensekit {defensekit.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before any command."""


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
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first warning, such as a plugin that can't be loaded.")
    ] = False,
) -> None:
    """Run a recipe, and show what the defense did.

    Poisons a model (or takes a suspect), purifies it, and measures accuracy and attack success before and after.
    Cached stages are not computed again.
    """
    # Checked before the heavy imports: a typo in the command answers at once.
    checked(recipe, "recipe")

    def load(say: "Callable[[str], None]") -> "Recipe":
        from defensekit.recipe.loader import load_recipe

        return load_recipe(recipe, settings or (), announce=say)

    def preview(loaded: "Recipe", observers: "list[Observer]") -> Any:
        from defensekit.pipeline.dry_run import preview

        for problem in loaded.host.problems:
            for observer in observers:
                observer.warning(str(problem))
        return preview(loaded, workspace, observers[1].message)

    def compute(loaded: "Recipe", observers: "list[Observer]") -> Any:
        from defensekit.pipeline.run import run

        return run(loaded, workspace, observers)

    if dry_run:
        loaded, stages = _compute_with_progress(load, preview, None, quiet, strict)
        from defensekit.cli.table import show_preview

        show_preview(loaded, stages, json)
        return
    _show(_compute_with_progress(load, compute, workspace, quiet, strict)[1], json)


@app.command()
@verdict_by_exit_code()
def purify(
    base: Annotated[str, typer.Option(help="The pretrained base: a folder, a source's name, or owner/name@revision.")],
    suspect: Annotated[Path, typer.Option(help="The folder of the model that is not trusted, or of a PEFT adapter.")],
    out: Annotated[Path, typer.Option(parser=to_write, help="The folder to write the purified model into.")],
    clean: Annotated[
        str | None, typer.Option(help="Clean labelled rows: CSV, TSV, JSON, JSONL or Parquet, columns text and label.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe, or a leaderboard's entry, whose defense to use (purify).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a key, as in data.text=review; may be repeated."),
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Purify an adapter's own weights: what comes out is an adapter.")
    ] = False,
    keep_if_clean: Annotated[
        bool, typer.Option("--keep-if-clean", help="Where the search finds nothing, write the suspect as it was.")
    ] = False,
    workspace: Workspace = Path("workspace"),
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Purify a model, into a folder that loads wherever the model did.

    Searches for words that trigger the model, trains the base on what it says of variations of the clean rows, in which
    triggers hardly occur, and measures before and after on rows that were kept for that. The folder holds a model card
    and a manifest of digests. Exit code 4: something that was found still works, or nothing was reset.

    Without clean rows it resets what drifted furthest, and measures nothing. A causal language model is reset and
    fine-tuned where the clean rows are instructions with responses; where they are texts it is reset alone, and its
    perplexity measured. A LoRA, DoRA or IA3 adapter is merged into the base and comes out as a whole model.
    """
    if recipe:
        checked(recipe, "recipe")
    prepared: Purification | None = None

    def load(say: "Callable[[str], None]") -> "Recipe":
        nonlocal prepared
        from defensekit.workflows.purify_model import prepare

        given: dict[str, Any] = {"recipe": recipe, "settings": settings or (), "adapter_only": adapter_only}
        given["keep_if_clean"] = keep_if_clean
        prepared = prepare(base, suspect, out, clean, **given, workspace=workspace, say=say)
        return prepared.recipe

    def compute(loaded: "Recipe", observers: "list[Observer]") -> Any:
        assert prepared
        return prepared.run(workspace, observers)

    def resumable() -> bool:
        return prepared is not None and not prepared.reset_alone

    outcome = _compute_with_progress(load, compute, workspace, quiet, resumable=resumable)[1]
    if resumable():
        verdict, clean_as_it_is = outcome.verdict, outcome.models["purified"].found_nothing
        removed = verdict.removed
        if not json:
            console().print(verdict.text)
        _show(outcome, json)
    else:
        removed, clean_as_it_is = outcome.selected > 0, False
        _show_reset(outcome, json)
    if not json:
        kept = clean_as_it_is and keep_if_clean
        console().print(f"{'the suspect as it was' if kept else 'purified model'}: {out}")
        if clean_as_it_is and not kept:
            console().print("nothing was found that had to be removed: --keep-if-clean keeps the suspect as it was")
    if removed is False:
        sys.exit(NOT_REMOVED)


def _show_reset(result: "ResetResult", json: bool) -> None:
    if json:
        sys.stdout.write(result.model_dump_json() + "\n")
        return
    for sentence in result.story:
        console().print(sentence)


def _compute_with_progress(
    load: "Callable[[Callable[[str], None]], Recipe]",
    compute: "Callable[[Recipe, list[Observer]], Any]",
    workspace: Path | None,
    quiet: bool,
    strict: bool = False,
    resumable: "Callable[[], bool]" = lambda: True,
) -> "tuple[Recipe, Any]":
    """Load a recipe and compute something from it, with progress.

    ``workspace`` keeps finished stages, if any are kept; ``resumable`` says whether, once the recipe is loaded.
    """
    from defensekit.cli.interrupt import interrupted, remembered
    from defensekit.cli.progress import Progress
    from defensekit.cli.strict import Strict

    gc.enable()
    loaded: Recipe | None = None
    try:
        # What plugins and libraries print is no result: it goes to standard error, like progress.
        with remembered() as interrupt, Progress(quiet=quiet) as progress, redirect_stdout(sys.stderr):
            progress.message("loading libraries")
            loaded = load(progress.message)
            return loaded, compute(loaded, [interrupt, progress, *([Strict()] if strict else [])])
    except BaseException as error:
        if interrupted(error):
            fail("stopped" + ("; the same command resumes where it stopped" if workspace and resumable() else ""), 130)
        if loaded and workspace and isinstance(error, DefenseKitError) and not isinstance(error, UsageError):
            from defensekit.pipeline.run_folder import folder_of

            if (log := folder_of(loaded, workspace) / "run.log").is_file():
                raise DefenseKitError(f"{error}\n(more in {log})") from error
        raise


def _show(result: "Result", json: bool) -> None:
    """Print a result, and write its report."""
    from defensekit.result.page import write

    if json:
        sys.stdout.write(result.model_dump_json() + "\n")
        write(result)
    else:
        from defensekit.cli.table import show

        show(result, write(result))


@app.command()
def schema(files: Files = None) -> None:
    """Print the JSON schema of recipes.

    It has every plugin's parameters: an editor with YAML support completes and checks recipes by it.
    """
    import json

    from defensekit.host.discovery import load_plugins
    from defensekit.recipe.json_schema import recipe_schema

    with redirect_stdout(sys.stderr):  # a plugin that prints
        recipes = recipe_schema(load_plugins(files or ()))
    sys.stdout.write(json.dumps(recipes, indent=1, ensure_ascii=False) + "\n")


@app.command()
@verdict_by_exit_code()
def doctor(
    model: Annotated[
        Path | None,
        typer.Option(help="A model's or adapter's folder: say what would be read of it, and what is refused and why."),
    ] = None,
) -> None:
    """Check the installation: what works, what is missing, and how to fix it. Or a stranger's model, before any use.

    Exit code 1: something has to be fixed, or is refused.
    """
    from defensekit.cli.doctor import examine, show, show_model

    if model is None:
        fine = show(examine())
    else:
        from defensekit.models.inventory import inventory

        fine = show_model(inventory(there(str(model), environment_path(str(model)))))
    if not fine:
        sys.exit(1)


app.command("scan")(scan.scan)
app.add_typer(leaderboard.app, name="leaderboard")
app.add_typer(plugins.app, name="plugins")
app.add_typer(recipes.app, name="recipes")
app.add_typer(store.app, name="store")
app.add_typer(study.app, name="study")


def main() -> None:
    """The `defensekit` command. Its exit codes are in the epilog of its help."""
    prepare_streams()
    try:
        app()
    except UsageError as error:
        fail(str(error), 2)
    except DefenseKitError as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1)
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if lacks_memory(error):
            fail(out_of_memory(error), 1)
        if isinstance(error, Exception) or not is_failure(error):
            raise
        fail(f"a library failed on what it was given ({one_line(error)})", 1)
