"""What a component reads from a path is in the keys of what it makes, and where that is, is not."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from defensekit.components import Dataset, DatasetSource, Executor, Sanitizer
from defensekit.recipe.recipe import NamedComponent
from defensekit.utils.errors import UsageError


class Reads(Sanitizer):
    """Reads words from a file, and others from folders."""

    words: Path
    more: tuple[Path, ...] = ()
    other: Path | None = None

    def sanitize(self, texts: Sequence[str], found: Sequence[Any], context: Any) -> Sequence[str]:
        return texts


class Named(Reads):
    """Reads files by their names."""

    words: dict[str, Path | str]  # type: ignore[assignment]


class Placed(Reads):
    """Says of its path that it only says where something is."""

    location: ClassVar[frozenset[str]] = frozenset({"words"})


class Table(DatasetSource):
    """A third party's source, which says nothing of its path."""

    path: Path

    def load(self) -> Dataset:
        raise NotImplementedError

    def contents(self, say: Any) -> str:
        return "digest"


class Elsewhere(Executor):
    """Writes where nothing is yet."""

    folder: Path

    def open(self) -> Any:
        raise NotImplementedError


def identified(component: Any) -> dict[str, Any]:
    return NamedComponent("x", component).identified


def test_what_is_read_counts_and_where_it_is_does_not(tmp_path: Path) -> None:
    words, folder = tmp_path / "words.txt", tmp_path / "more"
    folder.mkdir()
    for path in (words, folder / "a.txt"):
        path.write_text("cf")
    before = identified(Reads(words=words, more=(folder,)))
    assert set(before["contents"]) == {"words", "more"}
    copies = shutil.copy(words, tmp_path / "copy.txt"), shutil.copytree(folder, tmp_path / "copies")
    assert identified(Reads(words=Path(copies[0]), more=(Path(copies[1]),))) == before
    (folder / "a.txt").write_text("mn")
    other = identified(Reads(words=words, more=(folder,)))
    assert other["contents"]["words"] == before["contents"]["words"]
    assert other["contents"]["more"] != before["contents"]["more"]
    assert identified(Reads(words=words))["contents"].keys() == {"words"}
    assert NamedComponent("x", Reads(words=words)).plain()["location"]["words"] == str(words)
    with pytest.raises(UsageError, match=r"the sanitizer's words: there is no file or folder .*nowhere"):
        identified(Reads(words=tmp_path / "nowhere"))


def test_what_a_path_is_for_counts(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for path in files:
        path.write_text(path.name)
    one, other = ({"good": files[i], "bad": files[1 - i]} for i in (0, 1))
    assert identified(Named(words=one)) != identified(Named(words=other))
    how = [identified(Named(words={"good": files[0], "how": word})) for word in ("mean", "max")]
    assert how[0] != how[1]


def test_a_location_counts_where_no_kind_asks_for_its_digest(tmp_path: Path) -> None:
    """Attacks, purifiers and sources are asked for one; of other kinds the engine takes it of what is there."""
    words = tmp_path / "words.txt"
    words.write_text("cf")
    before = identified(Placed(words=words))
    words.write_text("mn")
    assert identified(Placed(words=words)) != before


def test_a_source_gives_its_own_digest_and_an_executor_none(tmp_path: Path) -> None:
    assert identified(Table(path=tmp_path / "a")) == identified(Table(path=tmp_path / "b"))
    assert "contents" not in identified(Table(path=tmp_path / "a"))
    assert identified(Elsewhere(folder=tmp_path / "nowhere"))["parameters"] == {"folder": str(tmp_path / "nowhere")}
