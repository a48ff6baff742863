"""What the commands share."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from defensekit.utils.errors import UsageError, nearest, printable

Workspace = Annotated[Path, typer.Option("--workspace", "-w", help="Folder of the artifacts and of the runs' folders.")]
Files = Annotated[list[Path] | None, typer.Argument(help="Local plugin files to load as well.")]


def console() -> Console:
    """The console for results: standard output, no markup, lines never broken inside a path."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def table(*columns: str) -> Table:
    """A table with few lines, readable without colour."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


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
    """Standard error whose writes never fail: what a full disk or a closed pipe can't take is lost, no exit code is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, as far as that works."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def fail(text: str, code: int) -> NoReturn:
    """End with a message on standard error."""
    sys.stderr.write(f"defensekit: {printable(text)}\n")
    sys.exit(code)
