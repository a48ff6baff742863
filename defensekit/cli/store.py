"""`defensekit store`: the artifacts that runs share."""

from pathlib import Path
from typing import Annotated

import typer

from defensekit.cli.shared import Workspace, console, table
from defensekit.utils.errors import printable_name

# The kinds of stages whose artifacts are large, and that runs need no more.
LARGE = (None, "train", "retune", "plant", "control", "statistics", "purify")

app = typer.Typer(help="The artifacts that runs share.", no_args_is_help=True)


@app.command("list")
def list_store(workspace: Workspace = Path("workspace")) -> None:
    """List every artifact: what it is, when it was computed, its size."""
    from defensekit.pipeline.store import Store

    entries = Store(workspace / "store").entries()
    rows = table("key", "what", "made", "seconds")
    rows.add_column("MiB", justify="right")
    for key, manifest, size in entries:
        title = manifest.get("stage", {}).get("title", "damaged")
        cells = (key[:12], *map(printable_name, (title, manifest.get("created", ""), manifest.get("seconds", ""))))
        rows.add_row(*cells, f"{size / 2**20:,.1f}")
    console().print(rows)
    console().print(f"{len(entries)} artifacts, {sum(size for _, _, size in entries) / 2**20:,.1f} MiB")


@app.command()
def prune(
    workspace: Workspace = Path("workspace"),
    everything: Annotated[bool, typer.Option("--all", help="Remove rows and predictions as well.")] = False,
) -> None:
    """Free disk space: remove models and statistics from the store, and what killed runs left behind.

    Runs' folders stay, and so do rows and predictions: a finished run is still repeated without training.
    """
    from defensekit.pipeline.store import Store

    opened = Store(workspace / "store")
    freed, removed = opened.sweep(), 0
    for key, manifest, _ in opened.entries():
        if everything or manifest.get("stage", {}).get("kind") in LARGE:
            freed += opened.remove(key)
            removed += 1
    typer.echo(f"removed {removed} artifacts, freed {freed / 2**20:,.1f} MiB")
