"""Entries: a defense as it is submitted. Reading one runs nothing of it."""

from dataclasses import dataclass
from pathlib import Path

from defensekit.leaderboard.keys import EntryKeys
from defensekit.recipe import yaml_document
from defensekit.recipe.reader import Reader
from defensekit.recipe.yaml_document import Document
from defensekit.utils.errors import UsageError


@dataclass(frozen=True)
class Entry:
    """An entry: its keys, the document that they come from, and its file."""

    keys: EntryKeys
    document: Document
    path: Path

    @property
    def name(self) -> str:
        """Names the row."""
        return self.keys.name

    @property
    def plugin_file(self) -> Path | None:
        """The plugin's file, if it is sent with the entry."""
        return self.path.parent / self.keys.plugin.file if self.keys.plugin.file else None


def load_entry(path: Path) -> Entry:
    """Read an entry's file.

    Raises:
        UsageError: it can't be read, or a key is wrong.
    """
    document = yaml_document.read(path)
    document.check_mapping(EntryKeys.model_fields)
    reader = Reader(document, {})
    keys = reader.keys(EntryKeys, document.data, ())
    if (keys.plugin.requires is None) == (keys.plugin.file is None):
        raise reader.error(("plugin",), "expected either `requires:` (a distribution) or `file:` (sent with the entry)")
    if "compare" in keys.defense:
        raise reader.error(("defense", "compare"), "a row is one defense; another one is another entry")
    entry = Entry(keys, document, path)
    if entry.plugin_file and (entry.plugin_file.is_symlink() or not entry.plugin_file.is_file()):
        raise UsageError(f"{document.describe_location(('plugin', 'file'))}: there is no file {entry.plugin_file}")
    return entry
