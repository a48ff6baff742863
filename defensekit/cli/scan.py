"""`defensekit scan`: is something suspicious about a model, and where?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defensekit.cli.shared import console, table, to_write, verdict_by_exit_code
from defensekit.utils.errors import printable_name
from defensekit.utils.files import environment_path, refuse_inside, refuse_unwritable

if TYPE_CHECKING:
    from defensekit.scanner.result import Scan

SUSPICIOUS, NO_VERDICT = 3, 1


@verdict_by_exit_code()
def scan(
    base: Annotated[
        str,
        typer.Option(
            "--base", help="The model it was fine-tuned from: a folder, a source's name, or owner/name@revision."
        ),
    ],
    suspect: Annotated[
        str, typer.Option("--suspect", help="The model that is not trusted, likewise; or a PEFT adapter on the base.")
    ],
    clean: Annotated[
        str | None,
        typer.Option("--clean", help="Clean rows of its task (CSV, TSV, JSON, JSONL, Parquet); a hundred are enough."),
    ] = None,
    text: Annotated[str, typer.Option("--text", help="Their column with the text.")] = "text",
    label: Annotated[str, typer.Option("--label", help="Their column with the label.")] = "label",
    pair: Annotated[str | None, typer.Option("--pair", help="Their column with the second text, for pairs.")] = None,
    out: Annotated[Path, typer.Option("--out", parser=to_write, help="Folder for scan.html and scan.json.")] = Path(
        "scan"
    ),
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random draw.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Compare a suspect with its base, and say whether something is suspicious, and where.

    Exit code 3: suspicious; 0: not by this measure; 1: no verdict, for example with the wrong base.
    """
    from defensekit.cli.interrupt import at_work
    from defensekit.cli.progress import Progress
    from defensekit.pipeline.store import refuse_inside_store

    refuse_unwritable(out)
    refuse_inside_store(out)
    for named, folder in (("the suspect", suspect), ("the base", base)):
        if (path := environment_path(folder)).is_dir():
            refuse_inside(out, path, named)
    with at_work(Progress(quiet=quiet)) as observers:
        from defensekit.scanner.page import write_scan
        from defensekit.workflows.scan import scan as run_scan

        result = run_scan(base, suspect, clean, text=text, label=label, pair=pair, seed=seed, observers=observers)
    if json:
        sys.stdout.write(result.model_dump_json() + "\n")
    else:
        show(result)
    page = write_scan(result, out)  # after the verdict, which a full disk shall not take away
    if not json:
        console().print(f"{result.seconds:.0f} s; report: {page}")
    sys.exit({True: SUSPICIOUS, False: 0, None: NO_VERDICT}[result.verdict.suspicious])


def show(result: "Scan") -> None:
    """Print the summary, and the most suspicious tokens."""
    out = console()
    for sentence in result.summary:
        out.print(sentence)
    tried = {one.token: one for one in result.triggers.candidates} if result.triggers else {}
    if result.embedding and result.embedding.suspicious:
        tokens = table("token", "outlier", "frequency", "answers turned")
        for row in result.embedding.suspicious[:10]:
            one = tried.get(row.token)
            turned = f"{one.flipped:.0%} to {one.label}" if one and one.of else "-"
            tokens.add_row(
                printable_name(row.token), f"{row.outlier:.1f}", f"{row.frequency:.3g}", printable_name(turned)
            )
        out.print(tokens)
    for note in result.notes:
        out.print(note)
