"""How long a board of many rows takes to check and to build.

    python benchmarks/leaderboard.py [--json] [--rows 100 1000] [--row ROW]

One row of `nothing` on `pico-v1` is made (or given), and copied: in each copy other answers are changed by chance, with
numbers and digests to fit, so that no two rows share a defense's answers. What rows really share, suspects and clean
references, they share here. Seconds are of one run each and of the processor, so that other work beside it does not
count; it is one thread.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from defensekit.leaderboard.answers import answers_file
from defensekit.leaderboard.board import checkers
from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.entries import load_entry
from defensekit.leaderboard.page import build
from defensekit.leaderboard.row import ENTRY, PACK, RECORD, Row, pack, read_row, unpacked
from defensekit.leaderboard.running import make_row
from defensekit.leaderboard.tracks import load_track
from defensekit.utils.files import file_digests

ENTRIES = Path(__file__).parents[1] / "leaderboard/entries"
TRIVIAL = 4  # rows of a board that are baselines


def copy(row: Row, checker: Checker, target: Path, number: int) -> None:
    """A row of another name whose defense gave other answers."""
    rng, name = np.random.default_rng(number), f"made-up-{number}"
    shutil.copytree(row.folder, target, ignore=shutil.ignore_patterns(PACK))
    for inner, data in unpacked((row.folder / PACK).read_bytes(), row.folder / PACK).items():
        (target / inner).parent.mkdir(parents=True, exist_ok=True)
        (target / inner).write_bytes(data)
    text = (target / ENTRY).read_text(encoding="utf-8").replace("name: nothing", f"name: {name}", 1)
    (target / ENTRY).write_text(text if number < TRIVIAL else text.replace("baseline: true", "baseline: false"))
    share, harm = rng.uniform(0, 1, size=2) * (1.0, 0.1)
    for cell, result in row.cells.items():
        path = target / f"cells/{cell[0]}-{cell[1]}.json"
        data = json.loads(path.read_text())
        model = data["models"][row.model(result)]
        for on, key in model["predictions"].items():
            tensors = load_file(target / answers_file(key))
            right = np.eye(2, dtype=np.uint8)[tensors["labels"]]
            healed = rng.random(len(right)) < (share if on == "triggered" else 1 - harm)
            tensors["answers"][healed] = right[healed]
            tensors["answers"][rng.random(len(right)) < harm] ^= 1
            save_file(tensors, target / answers_file(key))
    seal(target, name)
    changed = read_row(target)
    for cell, result in changed.cells.items():
        path = target / f"cells/{cell[0]}-{cell[1]}.json"
        data, model = json.loads(path.read_text()), row.model(result)
        specs = checker.metrics_of(cell[0])
        measured = {spec["name"]: checker.measure(spec, changed, result, model).model_dump() for spec in specs}
        data["models"][model]["metrics"] = measured
        path.write_text(json.dumps(data))
    seal(target, name)
    pack(target)


def seal(target: Path, name: str) -> None:
    """Write a row's record anew."""
    record: dict[str, Any] = json.loads((target / RECORD).read_text()) | {"entry": name}
    (target / RECORD).unlink()
    (target / RECORD).write_text(json.dumps(record | {"files": file_digests(target)}))


def timed(count: int, row: Row, folder: Path) -> dict[str, float]:
    """Seconds to check and to build a board of so many rows."""
    rows, making = folder / "rows", Checker(load_track("pico-v1"))
    for number in range(count):
        copy(row, making, rows / "pico-v1" / f"made-up-{number}", number)
    started = time.process_time()
    checker = checkers()
    for target in sorted((rows / "pico-v1").iterdir()):
        checker(target).check(target)
    checked = time.process_time()
    build([rows], folder / "site")
    built = time.process_time()
    return {"rows": count, "check_s": round(checked - started, 1), "build_s": round(built - checked, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--row", type=Path, help="a row of `nothing` on pico-v1, made before")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        entry = load_entry(ENTRIES / "nothing.yaml")
        place = Path(scratch)
        row = arguments.row or make_row(load_track("pico-v1"), entry, place / "workspace", place / "made")
        for count in arguments.rows:
            folder = place / str(count)
            rows.append(timed(count, read_row(row), folder))
            shutil.rmtree(folder)
            print(rows[-1], file=sys.stderr)
    if arguments.json:
        print(json.dumps({"boards": rows}))


if __name__ == "__main__":
    main()
