"""`defensekit leaderboard`: defenses compared on frozen tracks."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from defensekit.cli.shared import Workspace, checked, console, table, to_write, verdict_by_exit_code
from defensekit.utils.errors import DefenseKitError, UsageError, printable_name

if TYPE_CHECKING:
    from defensekit.components import Observer

app = typer.Typer(help="Defenses compared on frozen tracks: rows that anyone can run again.", no_args_is_help=True)

Track = Annotated[str, typer.Argument(metavar="TRACK", help="A shipped track's name, or a track's file.")]
OnTracks = Annotated[
    list[str] | None,
    typer.Option("--track", help="The file of a track that is none of the shipped ones; may be repeated."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Executor = Annotated[
    str | None, typer.Option(metavar="YAML", help="Where stages run, as in '{name: local, workers: 2, threads: 1}'.")
]

Only = Annotated[
    list[str] | None,
    typer.Option(metavar="ATTACK:SEED", help="Run this cell alone; may be repeated. A row of some is no whole row."),
]
Trust = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A plugin that may run: its file, or its distribution.")
]


@app.command("tracks")
def list_tracks() -> None:
    """List the shipped tracks."""
    from defensekit.leaderboard.tracks import load_track, names

    rows = table("track", "cells", "labelled rows", "about")
    for name in names():
        track = load_track(name)
        about = Text(track.keys.about, overflow="fold")
        rows.add_row(name, str(len(track.cells)), str(track.keys.budget.labelled), about)
    console().print(rows)


@app.command()
def freeze(track: Track, workspace: Workspace = Path("workspace"), quiet: Quiet = False) -> None:
    """Write what a new track rests on into its file: digests of its base, its data, and every cell's rows.

    A track that rows were made on is never frozen again: a change is another version, with another name.
    """
    with _at_work(quiet) as observers:
        from defensekit.leaderboard.freezing import freeze as write
        from defensekit.leaderboard.tracks import load_track

        loaded = load_track(track)
        write(loaded, workspace, observers)
    console().print(f"{loaded.document.name}: frozen")


@app.command()
def suspects(
    track: Track, workspace: Workspace = Path("workspace"), executor: Executor = None, quiet: Quiet = False
) -> None:
    """Make a track's suspects and clean references, once for all rows that are made in the workspace.

    They are artifacts of its store, with digests: the workspace can be handed on.
    """
    with _at_work(quiet) as observers:
        from defensekit.leaderboard.running import make_suspects
        from defensekit.leaderboard.tracks import load_track

        results = make_suspects(load_track(track), workspace, observers, executor)
    metrics = list(dict.fromkeys(name for result in results for name in result.models["suspect"].metrics))
    rows = table("suspect", "seed", *(name.upper() for name in metrics))
    for result in results:
        measured = result.models["suspect"].metrics
        numbers = [f"{measured[name].value:.3f}" if name in measured else "-" for name in metrics]
        rows.add_row(str(result.axes["attack"]), str(result.recipe["seed"]), *numbers)
    console().print(rows)


@app.command()
def run(
    track: Track,
    entries: Annotated[list[Path], typer.Argument(metavar="ENTRY...", help="Entries, as YAML.")],
    rows: Annotated[Path, typer.Option(parser=to_write, help="The folder that rows go into.")] = Path("rows"),
    only: Only = None,
    workspace: Workspace = Path("workspace"),
    executor: Executor = None,
    quiet: Quiet = False,
) -> None:
    """Run entries on every cell of a track, and write a row of each into ROWS/TRACK/ENTRY.

    What was computed before is not computed again: the same command goes on after any interruption. Nothing is replaced
    there but a row of the very same entry.
    """
    for entry in entries:
        checked(entry, "entry")
    with _at_work(quiet) as observers:
        from defensekit.leaderboard.entries import load_entry
        from defensekit.leaderboard.running import make_row
        from defensekit.leaderboard.tracks import load_track

        loaded = load_track(track)
        cells = [loaded.cell(text) for text in only] if only else None
        given = [load_entry(entry) for entry in entries]
        folders = [make_row(loaded, entry, workspace, rows, observers, cells, executor) for entry in given]
    for row in folders:
        console().print(f"row: {row}")


@app.command()
def attack(
    track: Track,
    attack: Annotated[Path, typer.Argument(help="An attack, as YAML.")],
    tried_on: Annotated[
        list[Path], typer.Argument(metavar="ROW...", help="Rows, folders of rows, or entries, to try it on.")
    ],
    rows: Annotated[Path, typer.Option(parser=to_write, help="The folder that rows go into.")] = Path("rows"),
    only: Only = None,
    trust: Trust = None,
    workspace: Workspace = Path("workspace"),
    executor: Executor = None,
    quiet: Quiet = False,
) -> None:
    """Try a submitted attack on rows of a track: their entries are run against it, into ROWS/ATTACK-on-TRACK.

    Where more is left of it than of the track's worst attack, the board says so. The same command goes on after any
    interruption.
    """
    checked(attack, "attack")
    with _at_work(quiet) as observers:
        from defensekit.leaderboard.attacking import entries_of, try_attack
        from defensekit.leaderboard.tracks import load_track

        loaded = load_track(track)
        entries = entries_of(loaded, tried_on)
        folder = try_attack(loaded, attack, entries, workspace, rows, observers, trust or (), only or (), executor)
    console().print(f"rows: {folder}")


@app.command()
@verdict_by_exit_code()
def check(
    rows: Annotated[list[Path], typer.Argument(metavar="ROW...", help="Rows' folders, or folders of rows.")],
    tracks: OnTracks = None,
) -> None:
    """Check rows without computing: schema, digests, identity, track, budget, cells, and every number.

    Numbers are measured again from the stored answers. Nothing that came with a row is run. The exit code is 1 if
    something is wrong.
    """
    from defensekit.leaderboard.board import checkers, rows_in

    checker_of = checkers(tracks or ())
    out, wrong, folders = console(), 0, [folder for place in rows for folder in rows_in(place)]
    for folder in folders:
        try:
            checker_of(folder).check(folder)
        except DefenseKitError as error:
            wrong += 1
            out.print(f"wrong: {printable_name(error, 1000)}")
        else:
            out.print(f"right: {folder}")
    if wrong:
        raise DefenseKitError(f"{wrong} of {len(folders)} rows are not right")


@app.command()
@verdict_by_exit_code()
def verify(
    row: Annotated[Path, typer.Argument(help="A row's folder.")],
    by: Annotated[str, typer.Option(help="Who runs it again.")],
    cells: Annotated[int, typer.Option(min=1, help="How many cells are drawn.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    trust: Trust = None,
    tracks: OnTracks = None,
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", "-w", parser=to_write, help="One with the track's suspects (all is made anew)."),
    ] = None,
    executor: Executor = None,
    quiet: Quiet = False,
) -> None:
    """Run cells of a row again, and write down in it whether the answers came out within the track's tolerance.

    The row is checked before. A plugin that is none of ours runs only if --trust names it: in a process of its own,
    without network where the system allows that. The exit code is 1 if anything differs by more.
    """
    from defensekit.leaderboard.board import checkers

    loaded = checkers(tracks or ())(row).track
    with _at_work(quiet) as observers:
        from defensekit.leaderboard.verifying import verify as repeat

        repeated = repeat(loaded, row, cells, seed, by, trust or (), workspace, observers, executor)
    rows = table("cell", "seed", "plain rows answered otherwise", "triggered rows", "inputs that differ")
    for cell in repeated.cells:
        shares = [f"{cell.differing[on]:.2%}" for on in ("plain", "triggered")]
        rows.add_row(cell.attack, str(cell.seed), *shares, Text(", ".join(cell.inputs) or "none"))
    console().print(rows)
    if not repeated.isolated:
        console().print("this system could not take the network from it")
    if not repeated.same:
        raise DefenseKitError(f"{row}: it did not come out again; that is written in the row")
    console().print(f"{row}: it came out again; that is written in the row")


@app.command()
def compare(
    row: Annotated[Path, typer.Argument(help="A row's folder.")],
    others: Annotated[list[Path], typer.Argument(metavar="ROWS...", help="Rows, or folders of rows.")],
    tracks: OnTracks = None,
) -> None:
    """Compare a row with others of its track, on the same test rows, as a table in Markdown.

    A difference is the row less the other, with 95 % of it. Of an excess ASR below 0 nothing is left, as on the board.
    All rows are checked before.
    """
    from defensekit.leaderboard.columns import shown
    from defensekit.leaderboard.scores import scores_in
    from defensekit.leaderboard.ties import differences

    given = [(name, one) for name, group in scores_in([row], tracks or ()).items() for one in group.values()]
    if len(given) != 1:
        raise UsageError(f"{row}: expected the folder of one row, there are {len(given)}")
    [(name, one)] = given
    board = scores_in(others, tracks or ()).get(name, {})

    def cell(difference: tuple[float, float, float]) -> str:
        value, low, high = map(shown, difference)
        return f"{value} ({low} to {high})"

    less = differences(one, list(board.values()))
    lines = [f"{one.name} on {name}{', less:' if less else ': there is no other row.'}", ""]
    if less:
        lines += ["| row | excess ASR left, lower is better | ACC, higher is better |", "|---|---|---|"]
    lines += [f"| {each.name} | {cell(each.excess_asr)} | {cell(each.acc)} |" for each in less]
    sys.stdout.write("\n".join(lines) + "\n")


@app.command()
def build(
    rows: Annotated[list[Path], typer.Argument(metavar="ROWS...", help="Folders of rows, or rows.")],
    out: Annotated[Path, typer.Option(parser=to_write, help="The site's folder.")] = Path("site"),
    tracks: OnTracks = None,
    host: Annotated[
        str | None, typer.Option(help="The board's keeper: what `verify --by` of that name wrote counts as the host's.")
    ] = None,
) -> None:
    """Check rows, and write the board: pages that fetch nothing, board.json, board.csv and cells.csv.

    Pages that an earlier build wrote to the same folder, and that are not of this one, are removed.
    """
    from defensekit.leaderboard.page import build as write

    console().print(f"page: {write(rows, out, tracks or (), host)}")


def _at_work(quiet: bool) -> "AbstractContextManager[list[Observer]]":
    from defensekit.cli.interrupt import at_work
    from defensekit.cli.study_progress import StudyProgress

    return at_work(StudyProgress(quiet=quiet), "stopped; the same command goes on where it stopped")
