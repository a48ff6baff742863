"""Labelled text from tables: in files, and from a hub."""

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from defensekit.components.sources import DatasetSource
from defensekit.host.tables import SUFFIXES, Record, read_table
from defensekit.text import Dataset, Row
from defensekit.utils.errors import DefenseKitError, UsageError, listing, nearest, printable_name
from defensekit.utils.files import data_digest, file_digest, folder_digest, nearest_path

_NAME = r"^[^/\\]+$"  # no path that leaves the folder
_MARKS = 100_000_000  # rows times labels, where every row says of each label whether it applies


class Splits(BaseModel):
    """The role of each part of a data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(pattern=_NAME, description="the part that training, clean and dev rows come from")
    dev: str | None = Field(None, pattern=_NAME, description="the part that dev rows come from, if they have one")
    test: str | None = Field(None, pattern=_NAME, description="the part that test rows come from, if they have one")

    def roles(self) -> dict[str, str]:
        """The names of the parts by role, without roles that have none."""
        return {role: name for role, name in self.model_dump().items() if name is not None}


class _Labelled(DatasetSource):
    """The columns of text and label, and the parts that serve as train, dev and test."""

    text: str = Field("text", description="the column with the text")
    pair: str | None = Field(None, description="the column with the second text, for pairs")
    label: str = Field("label", description="the column with the label")
    splits: Splits | None = Field(
        None, description="which part serves as `train`, `dev` and `test`, where names differ"
    )

    def rows(self, tables: dict[str, Iterator[Record]], whose: Path | str) -> Dataset:
        """Convert tables to rows, by role; blank rows are left out with a note, an unknown label is refused.

        Where labels are lists, rows have any number of them.
        """
        records_by_role: dict[str, list[tuple[Record, str, str | None, str | tuple[str, ...]]]] = {}
        notes = []
        for role, table in tables.items():
            kept, blank = [], []
            for record in table:
                text, label = record.cell(self.text), record.labels(self.label)
                pair = record.cell(self.pair) if self.pair else None
                if not text or label == "" or pair == "":
                    blank.append(record.where)
                else:
                    kept.append((record, text, pair, label))
            if blank:
                notes.append(f"{len(blank)} rows without text or label are left out ({listing(blank, 3)})")
            records_by_role[role] = kept
        if not records_by_role["train"]:
            raise UsageError(f"{whose}: there are no rows" + (f"; {notes[0]}" if notes else ""))
        several = self._have_several([one for records in records_by_role.values() for one in records])
        labels = _in_order({name for _, _, _, label in records_by_role["train"] for name in _each(label)})
        number = {label: i for i, label in enumerate(labels)}
        if not labels or (several and len(labels) * sum(map(len, records_by_role.values())) > _MARKS):
            got = f"{len(labels):,} labels in lists" if labels else "no label in any row"
            raise UsageError(f"{whose}: {got}; expected one at least, and at most {_MARKS:,} of labels times rows")
        if alike := _alike(labels):
            notes.append(
                f"{whose}: labels that differ by case, blanks, composition or invisible characters alone are labels of "
                f"their own: {listing(alike, 3)}"
            )
        rows_by_role: dict[str, list[Row]] = {}
        count = 0
        for role, records in records_by_role.items():
            rows_by_role[role] = []
            for record, text, pair, label in records:
                for name in _each(label):
                    if name not in number:
                        expected = f"expected one of the training rows' labels: {listing(labels)}"
                        raise UsageError(f"{record.where}: the label {name!r} is unknown, {expected}")
                if isinstance(label, tuple):
                    row = Row(count, text, 0, pair, indicator=tuple(int(name in label) for name in labels))
                else:
                    row = Row(count, text, number[label], pair)
                rows_by_role[role].append(row)
                count += 1
        labels_of: dict[tuple[str, str | None], set[Any]] = {}
        for row in (row for rows in rows_by_role.values() for row in rows):
            labels_of.setdefault(row.key, set()).add(row.answer)
        if torn := [text for (text, _), seen in labels_of.items() if len(seen) > 1]:
            notes.append(
                f"{whose}: {len(torn):,} texts occur with more than one label ({printable_name(torn[0], 60)!r}); "
                "where rows are split into roles, the first of each counts"
            )
        return Dataset(tuple(labels), rows_by_role["train"], rows_by_role.get("dev"), rows_by_role.get("test"), notes)

    def _have_several(self, records: Sequence[tuple[Record, str, str | None, str | tuple[str, ...]]]) -> bool:
        """Whether rows have lists of labels: all of them do, or none."""
        several = isinstance(records[0][3], tuple)
        if other := next((record for record, _, _, label in records if isinstance(label, tuple) != several), None):
            has, before = ("one label", "a list of labels") if several else ("a list of labels", "one label")
            raise UsageError(
                f"{other.where}: the column {self.label!r} holds {has}, and {before} in {records[0][0].where}; "
                "expected lists in all rows, or in none"
            )
        return several


class InFiles(DatasetSource):
    """Tables in a file, or in a folder with files named train, dev and test."""

    location: ClassVar[frozenset[str]] = frozenset({"path"})
    _roles: ClassVar = ("train", "dev", "test")

    path: Path = Field(description="the file or folder")
    splits: Splits | None = Field(
        None, description="which part serves as `train`, `dev` and `test`, where names differ"
    )

    @abstractmethod
    def rows(self, tables: dict[str, Iterator[Record]], whose: Path | str) -> Dataset:
        """Convert tables to rows, by role."""

    def _files(self) -> dict[str, Path]:
        if self.splits is not None:
            if not self.path.is_dir():
                raise UsageError(f"`splits` names the tables of a folder, but {self.path} is none")
            return {role: self._named(name) for role, name in self.splits.roles().items()}
        if self.path.is_dir():
            files = {role: path for role in self._roles if (path := self._table(role))}
            if "train" not in files:
                names = listing(sorted(p.name for p in self.path.iterdir())) or "nothing"
                raise UsageError(
                    f"{self.path} has no train file ({listing(SUFFIXES)}); it holds {names} (say which one serves as "
                    "train with `splits: {train: NAME}`)"
                )
            return files
        if not self.path.is_file():
            raise UsageError(f"there is no file {self.path}.{nearest_path(self.path, SUFFIXES)}")
        return {"train": self.path}

    def _named(self, name: str) -> Path:
        """A table of the folder, by its name with or without the suffix."""
        if (exact := self.path / name).is_file():
            return exact
        if path := self._table(name):
            return path
        beside = sorted(self.path.iterdir())
        close = nearest(name, [path.stem for path in beside])
        raise UsageError(
            f"{self.path} has no table {name!r}.{close} (it holds {listing(path.name for path in beside)})"
        )

    def _table(self, name: str) -> Path | None:
        """The one table of the folder with a name, without its suffix."""
        paths = [path for suffix in SUFFIXES if (path := self.path / (name + suffix)).is_file()]
        if len(paths) > 1:
            raise UsageError(
                f"{self.path}: which table is {name!r}, {listing(path.name for path in paths)}? Keep one of them, or "
                f"name it with its suffix (`splits: {{train: {paths[0].name}}}`)"
            )
        return paths[0] if paths else None

    def contents(self, say: Callable[[str], None]) -> str:
        """A digest of the files."""
        return data_digest({role: file_digest(path) for role, path in self._files().items()})

    def load(self) -> Dataset:
        """The rows of the files, in their order."""
        files = self._files()
        return self.rows({role: read_table(path) for role, path in files.items()}, files["train"])


class File(_Labelled, InFiles):
    """A CSV, TSV, JSON, JSONL or Parquet file, or a folder with such files named train, dev and test."""


class Hub(_Labelled):
    """A data set of a `datasets` hub, at a revision."""

    location: ClassVar[frozenset[str]] = frozenset({"id", "revision"})

    id: str = Field(description="the hub's name for it, as in owner/name")
    revision: str | None = Field(None, description="a commit, tag or branch")
    config: str | None = Field(None, description="the configuration, where the data set has several")

    def contents(self, say: Callable[[str], None]) -> str:
        """The commit, or a digest of a local repository's files."""
        return self._commit()

    def _commit(self) -> str:
        if Path(self.id).is_absolute():  # a data set's repository on this disk
            return folder_digest(Path(self.id))
        if not self.revision:
            raise UsageError(f"{self.id} is taken for a hub's data set; say which revision with `revision:`")
        return _commit_of(self.id, self.revision)

    def load(self) -> Dataset:
        """The rows of the splits, downloaded if necessary."""
        import datasets

        bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            revision = None if Path(self.id).is_absolute() else self._commit()
            loaded = datasets.load_dataset(self.id, self.config, revision=revision)
        except DefenseKitError:
            raise
        except Exception as error:
            raise _unreachable(self.id, error) from error
        finally:
            if bars:
                datasets.enable_progress_bars()
        names = {"train": "train", "dev": "validation", "test": "test"}
        if self.splits is not None:
            names = self.splits.roles()
            if missing := sorted(set(names.values()) - set(loaded)):
                raise UsageError(f"{self.id} has no split {missing[0]!r}; it has {listing(loaded)}")
        tables = {}
        for role, name in names.items():
            if name in loaded:
                feature = loaded[name].features.get(self.label)
                feature = getattr(feature, "feature", feature)  # of each label of a list
                to_name = feature.int2str if isinstance(feature, datasets.ClassLabel) else None
                records = self._records(loaded[name], f"{self.id}, {name}", to_name)
                # Benchmarks publish test rows whose labels are withheld: such a split is no test split.
                if role == "train" or any(record.values.get(self.label) is not None for record in records):
                    tables[role] = records
        if "train" not in tables:
            raise UsageError(f"{self.id} has no train split; it has {listing(loaded)}")
        return self.rows({role: iter(rows) for role, rows in tables.items()}, self.id)

    def _records(self, table: Any, name: str, to_name: Callable[[Any], Any] | None) -> list[Record]:
        """Rows with labels by name; the label number -1 means that the label is withheld."""
        records = []
        for i, values in enumerate(table):
            label = values.get(self.label)
            if to_name is not None and label is not None:
                values = values | {self.label: None if label == -1 else to_name(label)}
            records.append(Record(f"{name}, row {i}", values))
        return records


@cache
def _commit_of(name: str, revision: str) -> str:
    """The commit of a revision, cached, so that a key and its rows are of the same commit."""
    if len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> DefenseKitError:
    reason = str(error).strip().split("\n")[0]
    return DefenseKitError(f"{name} could not be downloaded from the hub ({type(error).__name__}: {reason})")


def _each(label: str | tuple[str, ...]) -> tuple[str, ...]:
    return label if isinstance(label, tuple) else (label,)


def _alike(labels: Sequence[str]) -> list[str]:
    """Labels that a reader takes for one, which they may be meant to be; all of each together, quoted."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        seen = "".join(ch for ch in unicodedata.normalize("NFKC", label).casefold() if unicodedata.category(ch) != "Cf")
        groups.setdefault(" ".join(seen.split()), []).append(label)
    alike = [group for group in groups.values() if len(group) > 1]
    return [" and ".join(_quote(group)(label[:60]) for label in group) for group in alike]


def _quote(labels: Sequence[str]) -> Callable[[str], str]:
    """How labels are shown so that they are told apart: by their code points, where they look the same."""
    return repr if len({unicodedata.normalize("NFC", label) for label in labels}) == len(labels) else ascii


def _in_order(labels: set[str]) -> list[str]:
    """Whole numbers by their value (and ``01`` before ``1``, which is another label), then everything else as text."""

    def rank(label: str) -> tuple[int, int, str]:
        return (0, int(label), label) if re.fullmatch(r"-?[0-9]{1,18}", label) else (1, 0, label)

    return sorted(labels, key=rank)
