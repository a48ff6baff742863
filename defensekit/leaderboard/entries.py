"""What is submitted, a defense or an attack, as its file has it. Reading one runs nothing of it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from defensekit.host.requirements import requirement
from defensekit.leaderboard.keys import AttackKeys, EntryKeys, SubmissionKeys
from defensekit.recipe import yaml_document
from defensekit.recipe.reader import Reader
from defensekit.recipe.yaml_document import Document
from defensekit.utils.errors import UsageError

OURS = "defensekit"  # the distribution whose plugins are trusted as the program itself is
K = TypeVar("K", bound=SubmissionKeys)
# What of a recipe's `defense:` no row can have, and why.
_NOT_IN_A_ROW = {
    "compare": "a row is one defense; another one is another entry",
    "detectors": "a row is what a model answers, and a detector changes no answer; `defensekit run` measures it",
    "filter": "a filter is handed the attacker's training rows, which no track hands out; `defensekit run` measures it",
}


@dataclass(frozen=True)
class Submission(Generic[K]):
    """A submission: its keys, the document that they come from, and its file."""

    keys: K
    document: Document
    path: Path

    @property
    def name(self) -> str:
        """Names the row, or the attack."""
        return self.keys.name

    @property
    def plugin_file(self) -> Path | None:
        """The plugin's file, if it is sent with it."""
        return self.path.parent / self.keys.plugin.file if self.keys.plugin.file else None

    @property
    def code(self) -> str:
        """What its code is called: the file that is sent with it, or a distribution."""
        plugin = self.keys.plugin
        return plugin.file or requirement(plugin.requires or "").name

    def copy_into(self, folder: Path, name: str) -> Path:
        """Copy its file, under a name, and its plugin; the copy of the file."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.plugin_file:
            shutil.copyfile(self.plugin_file, folder / self.plugin_file.name)
        return Path(shutil.copyfile(self.path, folder / name))


Entry = Submission[EntryKeys]
Attack = Submission[AttackKeys]


def load_entry(path: Path) -> Entry:
    """Read an entry's file.

    Raises:
        UsageError: it can't be read, or a key is wrong.
    """
    entry, reader = _load(path, EntryKeys)
    for key, why in _NOT_IN_A_ROW.items():
        if key in entry.keys.defense:
            raise reader.error(("defense", key), why)
    if not {"purifier", "sanitizer"} & entry.keys.defense.keys():
        raise reader.error(("defense",), "has neither `purifier:` nor `sanitizer:`: it does nothing")
    if "labels" not in entry.keys.needs and ("choose" in entry.keys.defense or entry.keys.model == "from-base"):
        raise reader.error(
            ("needs",), "lacks `labels`: a rule chooses by labelled rows, `from-base` is trained on them"
        )
    return entry


def load_attack(path: Path) -> Attack:
    """Read an attack's file.

    Raises:
        UsageError: it can't be read, or a key is wrong.
    """
    return _load(path, AttackKeys)[0]


def check_trust(submission: Submission[Any], trust: Sequence[str]) -> None:
    """Refuse a stranger's code, unless it is asked for by its name.

    Raises:
        UsageError: it is neither ours nor trusted.
    """
    code = submission.code
    if code != OURS and code not in trust:
        raise UsageError(
            f"{submission.path} runs {code}, code of others with your rights: read it, then say `--trust {code}`"
        )


def _load(path: Path, expected: type[K]) -> tuple[Submission[K], Reader]:
    if path.is_symlink():  # a stranger's: what it leads to is none of theirs
        raise UsageError(f"{path}: no plain file; refused")
    document = yaml_document.read(path)
    document.check_mapping(expected.model_fields)
    reader = Reader(document, {})
    keys = reader.keys(expected, document.data, ())
    if (keys.plugin.requires is None) == (keys.plugin.file is None):
        raise reader.error(("plugin",), "expected either `requires:` (a distribution) or `file:` (sent with the entry)")
    if keys.plugin.requires is not None:
        try:
            requirement(keys.plugin.requires)
        except UsageError as error:
            raise reader.error(("plugin", "requires"), str(error)) from error
    submission = Submission(keys, document, path)
    file = submission.plugin_file
    if file and (file.is_symlink() or not file.is_file()):
        raise UsageError(f"{document.describe_location(('plugin', 'file'))}: there is no file {file}")
    return submission, reader
