"""Checks of executors and observers."""

import tempfile
from pathlib import Path
from typing import Any

from defensekit.components import Executor, Observer, Planned
from defensekit.host.registry import plain
from defensekit.host.table_sources import File
from defensekit.pipeline.store import Store, key_of
from defensekit.testing.kit import Subject, check, expect, ordinary_use
from defensekit.testing.pico import LABELS, PicoModels, sentences
from defensekit.testing.watch import Handed
from defensekit.text import ROWS, read_rows


@ordinary_use(Observer)
def watch(observer: Observer, pico: PicoModels, handed: Handed) -> Any:
    """One run: a cached stage, one that is computed, one that fails."""
    observer = observer.for_run("diffusion, seed 0", {"defense.scorer": "diffusion"})
    observer.run_started({"name": "a run", "seed": 0})
    observer.planned([Planned("test rows", "data", "0" * 64, 0.5), Planned("suspect", "train", None, None)])
    observer.message("a line for the user")
    observer.stage_finished("test rows", 0.5, True)
    observer.stage_started("suspect")
    for done in range(3):
        observer.progress("suspect", done, 3)
    observer.stage_finished("suspect", 1.5, False)
    observer.stage_started("purified")
    observer.stage_failed("purified", "out of memory")
    observer.run_failed("out of memory")


@ordinary_use(Executor)
def execute(executor: Executor, pico: PicoModels, handed: Handed) -> Any:
    """Compute one stage."""
    with tempfile.TemporaryDirectory() as folder:
        stage = _stage(Path(folder))
        with executor.open() as workers:
            workers.execute(handed.give("stage", stage), Path(folder) / "store", lambda done, total: None)
        return None


def _stage(folder: Path) -> dict[str, Any]:
    """A stage that reads test rows from a file."""
    table = folder / "rows.csv"
    table.write_text("text,label\n" + "".join(f"{row.text},{LABELS[row.label]}\n" for row in sentences(20)))
    sizes = {"train": None, "clean": 2, "dev": 2, "test": 4}
    params = {"roles": ["test"], "sizes": sizes, "contents": "", "labels": None, "balance": "natural"}
    return {
        "kind": "data",
        "title": "test rows",
        "params": params,
        "components": {"source": plain(File(path=table), "file") | {"plugin": "core"}},
        "inputs": {},
        "seed": 0,
        "plugin_files": [],
    }


@check(Executor)
def leaves_the_stage_in_the_store(subject: Subject) -> None:
    """When `execute` returns, the stage's artifact is complete in the store."""
    with tempfile.TemporaryDirectory() as folder:
        stage, store = _stage(Path(folder)), Path(folder) / "store"
        with subject.component.open() as workers:
            workers.execute(stage, store, lambda done, total: None)
        expect(Store(store).has(key_of(stage)), f"expected the stage {stage['title']!r} in the store, got nothing")
        rows = read_rows(Store(store).open(key_of(stage)).files / ROWS)
        expect(len(rows) == 4, f"expected 4 test rows, got {len(rows)}")
