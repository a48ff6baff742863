"""The page of a scan, as HTML."""

import math
from dataclasses import dataclass
from pathlib import Path

from defensekit.result.plots import image
from defensekit.scanner import plots
from defensekit.scanner.result import Scan, TensorDrift
from defensekit.scanner.verdict import KEPT
from defensekit.utils.files import atomic_write
from defensekit.utils.html import fill

OUTSIDE = "outside"  # the column of tensors that belong to no layer


def write_scan(scan: Scan, folder: str | Path) -> Path:
    """Write ``scan.html`` and ``scan.json`` into a folder.

    Args:
        scan: what `dk.scan` gave.
        folder: where; it is made if it does not exist.

    Returns:
        The path of the page.

    Raises:
        OSError: the disk refused.
    """
    page = Path(folder) / "scan.html"
    atomic_write(Path(folder) / "scan.json", scan.model_dump_json(indent=1).encode())
    atomic_write(page, render_scan(scan).encode())
    return page


def render_scan(scan: Scan) -> str:
    """Render the page. Every text from outside is escaped; the page runs no script and fetches nothing."""
    return fill(
        __package__,
        "page.html",
        scan=scan,
        suspect=Path(scan.suspect).name or scan.suspect,
        drift=drift_table(scan.tensors),
        law=image(plots.ratios(scan.law)) if scan.law else None,
        kept=scan.law is not None and scan.law.distance <= KEPT,
    )


@dataclass(frozen=True)
class DriftCell:
    """The tensors of one kind in one layer: their drift relative to the base's norm, and its ``shade`` in [0, 1]."""

    relative: float
    moved: int
    dimensions: int
    shade: float


@dataclass(frozen=True)
class DriftTable:
    """The drift as a table: ``rows`` are kinds of tensor, ``columns`` are layers.

    The last column has the tensors outside of any layer. A cell is None where a layer has no tensor of a kind.
    """

    columns: list[str]
    rows: dict[str, list[DriftCell | None]]


def drift_table(tensors: list[TensorDrift]) -> DriftTable:
    """The drift by layer and kind of tensor; shades are logarithmic between the smallest and the largest."""
    layers: list[int | None] = [*sorted({t.layer for t in tensors if t.layer is not None})]
    layers += [None] if any(t.layer is None for t in tensors) else []
    groups: dict[str, dict[int | None, list[TensorDrift]]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.kind, {}).setdefault(tensor.layer, []).append(tensor)
    values = [_relative(group) for by_layer in groups.values() for group in by_layer.values()]
    low, high = min((v for v in values if v), default=1.0), max(values, default=1.0)

    def cell(group: list[TensorDrift] | None) -> DriftCell | None:
        if group is None:
            return None
        relative = _relative(group)
        shade = math.log(relative / low) / math.log(high / low) if relative and high > low else float(relative > 0)
        return DriftCell(relative, sum(t.moved for t in group), sum(t.dimensions for t in group), shade)

    rows = {kind: [cell(by_layer.get(layer)) for layer in layers] for kind, by_layer in sorted(groups.items())}
    return DriftTable([OUTSIDE if layer is None else str(layer) for layer in layers], rows)


def _relative(tensors: list[TensorDrift]) -> float:
    base = math.hypot(*(t.base for t in tensors))
    return math.hypot(*(t.drift for t in tensors)) / base if base else 0.0
