"""The store: whole or not there, checked when read, keyed by what decides the contents."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from defensekit.cli.store import app
from defensekit.pipeline.store import Damaged, Store, key_of
from defensekit.utils.errors import DefenseKitError

SOURCE = {"kind": "dataset", "name": "file", "location": {"path": "/here"}, "parameters": {}, "source": "ef"}
STAGE: dict[str, Any] = {
    "kind": "data",
    "title": "rows",
    "params": {"n": 1},
    "components": {"source": SOURCE},
    "inputs": {"rows": "ab", "model": {"path": "/somewhere", "digest": "cd"}},
    "seed": 0,
    "plugin_files": [],
}


def fill(store: Store, stage: dict[str, Any] = STAGE) -> str:
    with store.create(stage) as draft:
        (draft.files / "rows.jsonl").write_text("hello")
        draft.facts["rows"] = 1
    return key_of(stage)


@pytest.mark.parametrize("text", ["[" * 200_000, "{", "[]", '{"stage": 1}', "\xff"])
def test_a_manifest_that_is_none_is_told_in_a_line(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    key = fill(store)
    (tmp_path / "artifacts" / key / "manifest.json").write_text(text, encoding="latin-1")
    assert store.peek(key) is None
    with pytest.raises(Damaged, match="its manifest can't be read") as caught:
        store.open(key)
    assert "\n" not in str(caught.value)
    assert len(store.entries()) == 1


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = fill(store)
    artifact = Store(tmp_path).open(key)
    assert (artifact.files / "rows.jsonl").read_text() == "hello"
    assert artifact.facts == {"rows": 1}
    assert key_of(artifact.stage) == key
    assert not list((tmp_path / "unfinished").iterdir())


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"params": {"n": 2}}, False),
        ({"seed": 1}, False),
        ({"inputs": {"rows": "ac", "model": {"path": "/somewhere", "digest": "cd"}}}, False),
        ({"inputs": {"rows": "ab", "model": {"path": "/somewhere", "digest": "ce"}}}, False),
        ({"machine": {"device": "cuda", "threads": 2}}, False),
        ({"inputs": {"rows": "ab", "model": {"path": "/elsewhere", "digest": "cd"}}}, True),
        ({"title": "other words"}, True),
        ({"components": {"source": SOURCE | {"location": {"path": "/moved"}}}}, True),
        ({"components": {"source": SOURCE | {"source": "edited"}}}, False),
        ({"plugin_files": ["/moved/mine.py"]}, True),
    ],
)
def test_keys_follow_contents_not_places(change: dict[str, Any], same: bool) -> None:
    assert (key_of(STAGE | change) == key_of(STAGE)) is same


def test_a_field_that_is_new_to_stages_is_identity() -> None:
    assert key_of(STAGE | {"anything-new": 1}) != key_of(STAGE)


@pytest.mark.parametrize("harm", ["change", "remove", "add", "manifest", "swap"])
def test_damage_is_noticed_when_read(tmp_path: Path, harm: str) -> None:
    store = Store(tmp_path)
    key = fill(store)
    place = tmp_path / "artifacts" / key
    if harm == "change":
        (place / "files/rows.jsonl").write_text("hellp")
    elif harm == "remove":
        (place / "files/rows.jsonl").unlink()
    elif harm == "add":
        (place / "files/more").write_text("")
    elif harm == "manifest":
        (place / "manifest.json").write_text((place / "manifest.json").read_text()[:40])
    else:
        manifest = json.loads((place / "manifest.json").read_text())
        manifest["stage"]["seed"] = 5
        (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Damaged):
        Store(tmp_path).open(key)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="oh"), store.create(STAGE) as draft:  # noqa: PT012
        (draft.files / "half").write_text("x")
        raise ValueError("oh")
    assert not store.has(key_of(STAGE))
    assert store.entries() == []
    assert not list((tmp_path / "unfinished").iterdir())


def test_two_writers_of_one_stage_both_end_well(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    with one.create(STAGE) as draft:
        (draft.files / "rows.jsonl").write_text("hello")
        os.rename(draft.files.parent, tmp_path / "aside")
        fill(two)
        os.rename(tmp_path / "aside", draft.files.parent)
    assert (one.open(key_of(STAGE)).files / "rows.jsonl").read_text() == "hello"


def test_a_killed_writer_leaves_no_artifact_and_is_swept(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from defensekit.pipeline.store import Store\n"
        f"with Store(Path({str(tmp_path)!r})).create({STAGE!r}) as draft:\n"
        "    (draft.files / 'half').write_text('x' * 1000); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    store = Store(tmp_path)
    assert store.sweep() == 0  # its writer lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not store.has(key_of(STAGE))
    assert store.sweep() == 1000
    assert not list((tmp_path / "unfinished").iterdir())
    fill(store)
    store.open(key_of(STAGE))


def test_a_full_disk_is_a_message_and_leaves_nothing(tmp_path: Path) -> None:
    import torch

    from defensekit.models.checkpoint import write_tensors

    store = Store(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # what a full disk looks like: the write fails
    try:
        with pytest.raises(DefenseKitError, match="File too large"), store.create(STAGE) as draft:
            (draft.files / "rows.jsonl").write_text("x" * 10_000)
        with pytest.raises(DefenseKitError, match="could not be written"), store.create(STAGE) as draft:
            write_tensors(draft.files / "model.safetensors", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert not store.has(key_of(STAGE))
    assert store.sweep() == 0


def test_remove_and_entries(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = fill(store)
    time.sleep(0.01)
    second = fill(store, STAGE | {"seed": 1})
    assert {key for key, _, _ in store.entries()} == {first, second}
    took = store.open(first)
    assert store.removed(first) is None
    assert store.remove(first) > 5
    assert not store.has(first)
    assert store.peek(first) is None
    assert store.has(second)
    assert store.removed(first) == took
    assert store.remove(first) == 0
    assert store.removed(first) == took
    assert store.sweep() == 0


def test_a_log_that_cannot_be_written_says_nothing_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    from defensekit.utils.logging import _File

    handler = _File("/dev/full")
    handler.emit(logging.LogRecord("defensekit", logging.INFO, "", 0, "hello", (), None))
    assert capsys.readouterr().err == ""


# -- locks -------------------------------------------------------------------------------------------------------------


HOLD = """
import sys, time
from pathlib import Path
from defensekit.pipeline.store import Store
with Store(Path(sys.argv[1])).lock("abc"):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_the_life_of_its_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"mine\n"
    waited: list[bool] = []

    def kill() -> None:
        waited.append(True)
        holder.send_signal(signal.SIGKILL)

    with Store(tmp_path).lock("abc", kill):
        pass
    holder.wait()
    holder.stdout.close()
    assert waited == [True]


def test_what_a_killed_process_left_of_an_artifact_is_in_nobodys_way(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = fill(store)
    (tmp_path / "artifacts" / key / "manifest.json").unlink()
    assert not store.has(key)
    assert fill(store) == key
    assert store.open(key).facts == {"rows": 1}


def test_two_processes_that_sweep_the_same_both_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    left = tmp_path / "artifacts" / ("0" * 64) / "files/rows.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    walk = os.walk

    def gone_meanwhile(folder: Path) -> Iterator[Any]:
        for found in walk(folder):
            left.unlink(missing_ok=True)
            yield found

    monkeypatch.setattr(os, "walk", gone_meanwhile)
    assert store.sweep() == 0
    assert not left.parents[1].exists()


def test_only_what_is_named_by_a_key_is_an_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    key, host = fill(store), re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    mine = [
        tmp_path / "store" / name
        for name in (".DS_Store", "photos/mine.txt", f"{key[:12]}/mine.txt", f"{key}.txt")
        for name in (f"artifacts/{name}", f"unfinished/{name}", f"unfinished/mine.{host}.0")
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert (store.keys(), [entry[0] for entry in store.entries()], store.sweep()) == ({key}, [key], 0)
    done = CliRunner().invoke(app, ["prune", "--all", "-w", str(tmp_path)])
    assert done.stdout.startswith("removed 1 artifacts")
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
