"""Artifacts at a URL: whole or not there, the first writer stands, nothing leaves its folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from defensekit.pipeline.executors import compute
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.remote_store import RemoteStore
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.conftest import shape

URL = "memory://mirror"


@pytest.fixture
def mirror() -> Iterator[RemoteStore]:
    found = RemoteStore(URL)
    yield found
    if found.system.exists(found.root):
        found.system.rm(found.root, recursive=True)


@pytest.fixture
def poisoned(recipe: Path) -> Stage:
    """A stage that needs a model outside the store and rows in it."""
    return survey(load_recipe(shape(recipe, data__train=48)), lambda text: None).poisoned()


@pytest.fixture
def store(poisoned: Stage, tmp_path: Path) -> Store:
    """A store with what the stage needs."""
    found = Store(tmp_path / "store")
    for needed in poisoned.inputs:
        compute(needed.plain, found.root)
    return found


def everything(mirror: RemoteStore) -> dict[str, bytes]:
    return {path: mirror.system.cat_file(path) for path in mirror.system.find(mirror.root)}


def test_a_stage_is_computed_where_nobody_sees_the_store(
    mirror: RemoteStore, poisoned: Stage, store: Store, tmp_path: Path
) -> None:
    stage = poisoned.plain
    assert not mirror.pull(stage, store.root)
    mirror.push(stage, store.root)
    # The model's folder is not there for the worker either: what was asked for stands in the manifest all the same.
    away = stage | {"inputs": stage["inputs"] | {"model": stage["inputs"]["model"] | {"path": "/nowhere"}}}
    hidden = store.root.rename(tmp_path / "hidden")
    RemoteStore(URL).compute(away)
    hidden.rename(store.root)
    assert mirror.pull(stage, store.root)
    made = store.open(poisoned.key)
    assert made.stage == away
    assert list((store.root / "unfinished").iterdir()) == []
    store.remove(poisoned.key)
    compute(stage, store.root)
    assert store.open(poisoned.key).digest == made.digest


def test_a_path_means_the_same_in_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RemoteStore("place").url == (tmp_path / "place").as_uri()
    assert RemoteStore(URL).url == URL


def test_the_first_writer_stands(mirror: RemoteStore, poisoned: Stage, store: Store) -> None:
    mirror.push(poisoned.plain, store.root)
    mirror.compute(poisoned.plain)
    before = everything(mirror)
    mirror.push(poisoned.plain, store.root)
    mirror.compute(poisoned.plain)
    assert everything(mirror) == before
    assert mirror.pull(poisoned.plain, store.root)
    assert mirror.pull(poisoned.plain, store.root)  # somebody brought it meanwhile: that is as good


@pytest.mark.parametrize("how", ["changed", "missing", "half a manifest"])
def test_what_is_damaged_is_made_again(mirror: RemoteStore, poisoned: Stage, store: Store, how: str) -> None:
    mirror.push(poisoned.plain, store.root)
    mirror.compute(poisoned.plain)
    place = f"{mirror.root}/{poisoned.key}"
    [rows] = [path for path in mirror.system.find(place) if path.endswith("rows.jsonl")]
    if how == "changed":
        mirror.system.pipe_file(rows, b"other rows")
    elif how == "missing":
        mirror.system.rm_file(rows)
    else:
        mirror.system.pipe_file(f"{place}/manifest.json", b'{"folder": "')
    assert not mirror.pull(poisoned.plain, store.root)
    assert not store.has(poisoned.key)
    mirror.compute(poisoned.plain)
    assert mirror.pull(poisoned.plain, store.root)
    assert store.open(poisoned.key).facts["changed"] > 0


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped"])
def test_no_file_leaves_its_folder(mirror: RemoteStore, poisoned: Stage, store: Store, name: str) -> None:
    mirror.push(poisoned.plain, store.root)
    mirror.compute(poisoned.plain)
    manifest = f"{mirror.root}/{poisoned.key}/manifest.json"
    found = json.loads(mirror.system.cat_file(manifest))
    found["manifest"]["files"][name] = "0" * 64
    mirror.system.pipe_file(manifest, json.dumps(found).encode())
    assert not mirror.pull(poisoned.plain, store.root)
    assert not store.has(poisoned.key)


def test_an_input_that_is_gone_and_a_place_that_refuses_are_said(
    mirror: RemoteStore, poisoned: Stage, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DefenseKitError, match=r"^memory://mirror: poisoned rows: its \w+ is not there any more"):
        mirror.compute(poisoned.plain)

    def refuse(*_: Any) -> None:
        raise RuntimeError("no right to write")

    monkeypatch.setattr(mirror.system, "put_file", refuse)
    with pytest.raises(DefenseKitError, match=r"^memory://mirror: RuntimeError: no right to write$"):
        mirror.push(poisoned.plain, store.root)
    with pytest.raises(UsageError, match=r"can't travel through 'odd://place': .*odd"):
        RemoteStore("odd://place")
