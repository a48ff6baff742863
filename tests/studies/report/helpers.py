"""A wide study without running anything, and what stands in a table."""

from pathlib import Path
from typing import Any

from defensekit.studies.report.table import Table
from tests.studies.helpers import model, reset, result, write_study


def wide(place: Path, name: str = "made-up", scorers: tuple[str, ...] = ("a", "b", "c"), error: str = "") -> Path:
    """A study with curves and resets, two attacks, three seeds; one run failed, one is missing."""
    runs: list[Any] = []
    for attack in ("word", "sentence"):
        for k, scorer in enumerate(scorers):
            for seed in range(3):
                curve = {
                    value: {"acc": 0.88 - 0.1 * value * (k + 1) / 2 - 0.004 * seed, "asr": 1 - value * (1 + seed / 20)}
                    for value in (0.3, 0.5, 0.7, 0.9)
                }
                tensors = {f"layer.{i}.{kind}": (100, 80, 20 * i + k) for i in range(3) for kind in ("query", "value")}
                chosen = model(curve[0.5], reset({**tensors, "layer.2.none": (10, 0, 0), "embeddings": (50, 50, 9)}))
                models = {
                    "clean": model({"acc": 0.9, "asr": 0.1}),
                    "suspect": model({"acc": 0.88, "asr": 1.0}),
                    "purified": chosen,
                }
                oracle = ["oracle-floor"] if k == 2 else []
                runs.append(({"defense.scorer": scorer, "attack": attack}, seed, result(models, curve, 0.5, oracle)))
    runs[-1] = (*runs[-1][:2], error or "out of memory")
    runs[0] = (*runs[0][:2], None)
    return write_study(place / "workspace/studies" / name, runs)


def texts(table: Table) -> dict[tuple[str, ...], list[str]]:
    return {row.labels: [table.text(c, k) for c, k in zip(row.cells, table.columns, strict=True)] for row in table.rows}
