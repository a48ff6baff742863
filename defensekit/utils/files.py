"""Digests of files, the cache folder, and atomic writes."""

import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from defensekit.utils.errors import UsageError, nearest

PART, OWNER = ".part", ".defensekit-unfinished"
_asking = threading.Lock()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_regular(path: Path, limit: int) -> bytes:
    """The contents of a regular file of at most ``limit`` bytes: no device, no pipe, nothing that never ends.

    Raises:
        UsageError: it is no regular file, or larger.
        OSError: it can't be read.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UsageError(f"{path}: no regular file; refused")
        content = file.read(limit + 1) or b""
    if len(content) > limit:
        raise UsageError(f"{path}: refused more than {limit:,} bytes")
    return content


def file_digests(folder: Path, patterns: tuple[str, ...] = ("*",)) -> dict[str, str]:
    """SHA-256 of every file in a folder that matches a pattern, subfolders included, by its path within the folder."""
    files = sorted({p for pattern in patterns for p in folder.rglob(pattern) if p.is_file()})
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in files}


def folder_digest(folder: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """SHA-256 over the names and contents of what `file_digests` finds."""
    return data_digest(file_digests(folder, patterns))


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def data_digest(data: Any) -> str:
    """SHA-256 of plain data in canonical JSON."""
    return hashlib.sha256(_CANONICAL.encode(data).encode()).hexdigest()


def cache_folder() -> Path:
    """The folder for downloads of this user.

    Returns:
        ``DEFENSEKIT_CACHE``, or ``defensekit`` in the user's cache folder; it need not exist.
    """
    if chosen := os.environ.get("DEFENSEKIT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "defensekit"


def environment_path(text: str) -> Path:
    """A path as a user writes it: ``$NAME``, ``${NAME}`` are environment variables, ``$$`` is a dollar, ``~`` is home.

    Raises:
        UsageError: a variable is not set, or there is no such user.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        name = match[1].strip("{}")
        if name not in os.environ:
            raise UsageError(f"the environment variable {name} is not set.{nearest(name, os.environ)}")
        return os.environ[name]

    try:
        return Path(re.sub(r"\$(\$|\w+|\{\w+\})", value, text)).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text!r} is no path ({error})") from error


def resolved(path: Path) -> Path:
    """An absolute path, links followed, which can be written as text.

    Raises:
        UsageError: it is no path, has a loop of links, or is not UTF-8.
    """
    try:
        absolute = path.resolve()
        f"{path.absolute()}{absolute}".encode()
        return absolute
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{str(path.absolute())!r} is no path that can be written as text (not UTF-8); rename the folder"
        ) from error
    except (ValueError, RuntimeError, OSError) as error:  # a zero byte, a loop of links
        raise UsageError(f"{str(path)!r} is no path ({error})") from error


def there(typed: str, path: Path) -> Path:
    """A path; one that is missing and was typed with a variable is reported as typed, without the variable's value.

    Raises:
        UsageError: it was, and is missing.
    """
    if "$" in typed.replace("$$", "") and not path.exists():
        raise UsageError(f"there is nothing at {typed}")
    return path


def file_there(typed: str, path: Path, suffix: str) -> Path:
    """A file, as with `there`; one that is missing is reported with a similar one beside it, of the suffix.

    Raises:
        UsageError: it is missing.
    """
    if not there(typed, path).is_file():
        raise UsageError(f"there is no file {path}.{nearest_path(path, [suffix])}")
    return path


def literal_path(path: Path | str) -> str:
    """A path written so that `environment_path` takes it as it is."""
    return str(path).replace("$", "$$")


def nearest_path(path: Path, suffixes: Sequence[str] = ()) -> str:
    """A sentence that names a path with a similar name in the same folder, or the empty string.

    Folders are considered or, with suffixes, files that have one of them; the suffix does not count for the similarity.
    """
    neighbours = path.parent.glob("*") if path.parent.is_dir() else ()
    wanted = [other for other in neighbours if (other.suffix in suffixes if suffixes else other.is_dir())]
    return nearest(path.name, [other.name for other in wanted if nearest(path.stem, [other.stem])])


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file atomically: it exists whole or not at all, even if the program is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
    part = Path(name)
    try:
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(number, 0o666 & ~_umask())  # as any file: mkstemp makes one for its owner alone
            os.fsync(number)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    """The permissions that new files lack; the system tells them by setting them alone."""
    with _asking:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to the target when the block ends: the target exists whole or not at all."""
    with scratch_folder(target) as scratch:
        part = scratch / "whole"
        part.mkdir()  # with the permissions of any folder: a scratch folder is its owner's alone
        yield part
        if target.exists():
            target.rmdir()
        part.rename(target)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new folder for temporary files next to the target; it is removed at the end of the block.

    One that a killed process left is removed at the next attempt; it is known by a file in it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*{PART}"):
        owner = left / OWNER
        if not left.is_symlink() and owner.is_file() and not alive(owner.read_text()):
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PART, dir=target.parent))
    try:
        (scratch / OWNER).write_text(str(os.getpid()))
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def alive(pid: str) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def refuse_inside(path: Path, folder: Path, what: str) -> None:
    """Refuse to write into a folder that is not ours to write into.

    Raises:
        UsageError: the path is the folder, or lies in it, links followed.
    """
    if resolved(path).is_relative_to(resolved(folder)):
        raise UsageError(f"{path} lies in {what} {folder}; name a folder outside of it")


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that can't be made or written into, before the work whose results it is for. It isn't made.

    Raises:
        UsageError: a file, or a link that leads to nothing, is in its way, or the system refuses.
    """
    place = folder.absolute()
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            place.lstat()
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            found = "a link that leads to nothing" if place.is_symlink() and not place.exists() else "a file"
            raise UsageError(f"{folder}: expected a folder, {place} is {found}")
        tempfile.TemporaryDirectory(prefix=".defensekit.", suffix=PART, dir=place).cleanup()
    except (OSError, ValueError) as error:
        refused = getattr(error, "strerror", None) or error
        raise UsageError(f"{folder}: nothing can be written into {place} ({refused})") from error


@contextmanager
def folder_lock(target: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock on a folder that is to be written; it is released at the end of the block or of the process.

    Raises:
        UsageError: another process holds the lock and ``wait`` is False.
    """
    from filelock import FileLock, Timeout

    if not target.name:
        raise UsageError(f"{target} has no name; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    lock_file = target.with_name(f".{target.name}.lock")
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise UsageError(f"another process is writing {target}; wait for it, or name another folder") from error
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)  # still locked: a waiting process sees that the file is gone, and retries
        lock.release()
