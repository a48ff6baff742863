"""What the commands share."""

import codecs
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, cast

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table

from defensekit.utils.errors import UsageError, nearest, printable
from defensekit.utils.files import environment_path, resolved


def to_write(typed: str | Path) -> Path:
    """The folder that an option names, to be written to; variables and ~ mean what they mean in other paths.

    Raises:
        UsageError: it can be no folder, or there is no such variable.
    """
    if not str(typed).strip():
        raise UsageError("expected the path of a folder to write to, got an empty one")
    path = environment_path(str(typed))
    resolved(path)
    return path


Workspace = Annotated[
    Path,
    typer.Option("--workspace", "-w", parser=to_write, help="Folder of the artifacts and of the runs' folders."),
]
Files = Annotated[list[Path] | None, typer.Argument(help="Local plugin files to load as well.")]


LONGEST = 20_000  # characters of one message that are printed
FOLDED = 12  # characters of a column of words in a narrow terminal
WIDEST = 1000  # characters of a line where the output is no terminal, and nobody says how wide it is


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks, escaped as in JSON: what is printed as JSON stays the same."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


ESCAPED = "defensekit-escaped"
codecs.register_error(ESCAPED, _escaped)


class _PrintableConsole(Console):
    """A console on which every text is printable, whatever it is part of: a line, a cell, a bar."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render, with control characters escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def console(stderr: bool = False) -> Console:
    """The console for results (or progress): no markup, lines never broken inside a path, every text printable."""
    made = _PrintableConsole(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not stderr and not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDEST
    return made


class _WholeTable(Table):
    """A table that elides nothing: what is too long for its column goes on in the next line, numbers are never broken.

    Where a terminal is too narrow for that, the table is wider.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = 0
        for column in self.columns:
            column.overflow = "fold"
            longest = max((cell_len(word) for cell in column.cells for word in str(cell).split()), default=0)
            column.min_width = longest if column.justify == "right" else min(longest, FOLDED)
            needed += column.min_width + 3  # with what is between two columns
        return super().__rich_console__(console, options.update_width(max(options.max_width, needed)))


def table(*columns: str) -> Table:
    """A table with few lines, readable without colour; no cell is cut off."""
    return _WholeTable(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def checked(path: Path, what: str) -> None:
    """Raise UsageError if a file does not exist: a typo is reported at once, before heavy imports."""
    try:
        exists = path.is_file()
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be read
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not exists:
        beside = [str(path) for path in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UsageError(f"there is no {what} {path}.{nearest(str(path), beside)}")


class Lossy:
    """A stream whose writes never fail: what a full disk or a closed pipe can't take is lost, no exit code is.

    ``lost`` is why something was, if it was.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            self._stream.write(text)
        except OSError as error:
            self.lost = error
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, as far as that works."""
        try:
            self._stream.flush()
        except OSError as error:
            self.lost = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare_streams() -> None:
    """Let a command end as it would, whatever its streams are: closed, or of an encoding that lacks a character."""
    out, err = (stream or open(os.devnull, "w", errors=ESCAPED) for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors=ESCAPED)
    sys.stdout, sys.stderr = out, cast(TextIO, Lossy(err))


@contextmanager
def verdict_by_exit_code() -> Iterator[None]:
    """Around a command whose exit code is a verdict: it stays that, where its standard output is full or closed."""
    out = Lossy(sys.stdout)
    try:
        with redirect_stdout(cast(TextIO, out)):
            yield
    finally:
        out.flush()
        if out.lost:
            if not isinstance(out.lost, BrokenPipeError):  # a reader that has seen enough
                sys.stderr.write(f"defensekit: standard output: {out.lost.strerror or out.lost}\n")
            with suppress(OSError):  # what is left would be tried again at the end, and fail with another exit code
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def fail(text: str, code: int) -> NoReturn:
    """End with a message on standard error."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    sys.stderr.write(f"defensekit: {printable(cut)}\n")
    sys.exit(code)
