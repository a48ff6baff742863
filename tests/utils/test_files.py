"""Temporary names are new, and nobody's own folder or link."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from defensekit.pipeline.store import refuse_inside_store
from defensekit.utils.errors import UsageError
from defensekit.utils.files import (
    OWNER,
    atomic_folder,
    atomic_write,
    folder_lock,
    refuse_inside,
    refuse_unwritable,
    resolved,
    scratch_folder,
)


@pytest.mark.parametrize("suffix", ["part", "scratch"])
def test_a_users_own_folder_and_a_link_are_left_alone(suffix: str, tmp_path: Path) -> None:
    own, elsewhere, target = tmp_path / f".out.{suffix}", tmp_path / "elsewhere", tmp_path / "out"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    elsewhere.mkdir()
    (tmp_path / f".linked.{suffix}").symlink_to(elsewhere)
    for name in (target, tmp_path / "linked"):
        with atomic_folder(name) as folder, scratch_folder(name) as scratch:
            assert folder != scratch
            (folder / "model").write_text("weights")
        assert (name / "model").read_text() == "weights"
        assert not name.is_symlink()
    assert (own / "thesis.txt").read_text() == "mine"
    assert list(elsewhere.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [own.name, f".linked.{suffix}", "elsewhere", "linked", "out"]
    )


def test_a_folder_that_nothing_can_be_written_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "linked").symlink_to(tmp_path)
    for name, expected in {
        "file": "file is a file",
        "file/x/y": "file is a file",
        "dangling": "dangling is a link that leads to nothing",
        "dangling/x": "dangling is a link that leads to nothing",
        "loop": "loop is a link that leads to nothing",
        "loop/x": "too many levels",
        "/proc/nope": r"nothing can be written into /proc \(",
        "x" * 300: "name too long",
        "x\0": "null byte",
    }.items():
        with pytest.raises(UsageError, match=f"(?i){expected}"):
            refuse_unwritable(tmp_path / name)
    for name in ("", "new", "new/er", "linked", "linked/new"):
        refuse_unwritable(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "dangling", "loop", "linked"}


def test_what_is_no_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path, why in ((tmp_path / "loop", "[Ll]oop"), (tmp_path / "a\0b", "null"), (tmp_path / "a\udcff", "not UTF-8")):
        for refuse in (refuse_inside_store, lambda path: refuse_inside(path, tmp_path / "other", "it"), resolved):
            with pytest.raises(UsageError, match=rf"is no path .*{why}"):
                refuse(path)


@pytest.mark.parametrize("target", ["/", "//"])
def test_the_root_is_no_new_folder(target: str) -> None:
    with pytest.raises(UsageError, match="/ has no name; name a new folder"), folder_lock(Path(target)):
        pass


def test_files_and_folders_are_as_readable_as_any(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with atomic_folder(tmp_path / "out"):
            pass
        atomic_write(tmp_path / "file", b"text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert (tmp_path / "file").read_bytes() == b"text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for name, owner in (("dead", child.pid), ("alive", os.getppid()), ("unknown", None)):
        left = tmp_path / f".out.{name}.part"
        left.mkdir()
        if owner is not None:
            (left / OWNER).write_text(str(owner))
    with scratch_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.alive.part", ".out.unknown.part"]


def test_nothing_is_written_into_a_suspect_or_a_store(tmp_path: Path) -> None:
    (tmp_path / "workspace/store/artifacts").mkdir(parents=True)
    (tmp_path / "suspect").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "suspect")
    for path in ("suspect", "suspect/a/b", "link", "link/a", "other/../suspect/a"):
        with pytest.raises(UsageError, match="lies in the suspect"):
            refuse_inside(tmp_path / path, tmp_path / "suspect", "the suspect")
    refuse_inside(tmp_path / "suspects", tmp_path / "suspect", "the suspect")
    for path in ("workspace/store", "workspace/store/artifacts/abc", "workspace/store/x"):
        with pytest.raises(UsageError, match="lies in the store"):
            refuse_inside_store(tmp_path / path)
    refuse_inside_store(tmp_path / "workspace/out")
