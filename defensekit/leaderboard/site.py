"""A site's folder: what an earlier site left is removed with care."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from defensekit.utils.errors import UsageError
from defensekit.utils.files import atomic_write, file_digest, refuse_unwritable

LIST = ".defensekit-site"  # the files that a site is made of, with their digests, as `sha256sum` has them


def refuse_other_than_site(out: Path) -> None:
    """Refuse a folder whose files are no site's; hidden ones, such as a repository's, are in nobody's way.

    Raises:
        UsageError: they are not, or it can't be written into.
    """
    refuse_unwritable(out)
    if out.is_dir() and not (out / LIST).is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UsageError(f"{out} has files that no build wrote (there is no {LIST}); name a new folder")


def replace_site(out: Path, files: Mapping[str, bytes]) -> None:
    """Write a site, and remove what the one that was here before had beyond it.

    Only a file that the earlier site lists, with the digest that it still has, is removed.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    listed = (out / LIST).read_text(encoding="utf-8", errors="replace").splitlines() if (out / LIST).is_file() else []
    if not listed:
        atomic_write(out / LIST, b"")  # killed before the end, it is a site's folder all the same
    for name, content in files.items():
        atomic_write(out / name, content)
    root = out.resolve()
    for digest, _, name in (line.partition("  ") for line in listed):
        old = root / name
        plain = old.resolve() == old and old.is_relative_to(root)  # neither behind a link nor outside
        if name not in files and plain and old.is_file() and file_digest(old) == digest:
            old.unlink()
            for folder in old.relative_to(root).parents[:-1]:
                if not any((root / folder).iterdir()):
                    (root / folder).rmdir()
    atomic_write(out / LIST, "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode())
