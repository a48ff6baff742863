"""A site's folder: what an earlier site left is removed with care."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from defensekit.utils.files import atomic_write, file_digest

LIST = ".defensekit-site"  # the files that a site is made of, with their digests, as `sha256sum` has them


def replace_site(out: Path, files: Mapping[str, bytes]) -> None:
    """Write a site, and remove what the one that was here before had beyond it.

    What is removed is listed by that one with its digest: a file that somebody else wrote, or changed, stays.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    listed = (out / LIST).read_text(encoding="utf-8", errors="replace").splitlines() if (out / LIST).is_file() else []
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
