"""The figures of a study: what a defense costs against what it removes, and where it resets."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from defensekit.recipe.vocabulary import MODELS
from defensekit.result.page import Heat, heat
from defensekit.result.plots import COLOURS, canvas, literal
from defensekit.result.schema import ResetCounts
from defensekit.studies.report.comparing import Group, Line, Point
from defensekit.studies.report.markup import flat

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Seven marks, five colours, four dashes: lines that share one differ in the others.
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
SWEEP = 24  # corners of an ellipse
LONGEST = 40  # characters of a label
HIGH = 0.9  # an ASR that is close to the title above


def tradeoff(group: Group, over: str, traded: tuple[str, str]) -> "Figure":
    """What is left of an attack against what is kept on test rows: a line per defense, means over seeds.

    Lower right is better: accuracy kept, attack gone. The first panel has all lines; each has one of its own, the
    others behind it in grey, where its band is one standard deviation over seeds to all sides: an ellipse around every
    mean, swept from one to the next. Of one seed there is none. Suspect and clean reference are points, and the floor
    is the clean reference's ASR.

    Args:
        group: the defenses, which met the same suspects.
        over: what varies along a line.
        traded: the metrics of what is kept and of what is left, such as ACC and ASR.

    Returns:
        The figure.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    lines = [(plain(label), *series) for label, line in group.lines.items() if (series := _along(line, traded))]
    legend: list[tuple[str, Any]] = []
    columns = min(4, len(lines) + 1)
    rows = -(-(len(lines) + 1) // columns)
    with canvas(2.1 * columns + 1.9, 2.1 * rows + 0.5, columns, rows) as (figure, panels):
        for i, axes in enumerate(panels):
            if i > len(lines):
                axes.remove()
                continue
            for k, (label, means, spreads, values) in enumerate(lines):
                if i == 0 or i == k + 1:
                    colour, mark, dash = COLOURS[k % len(COLOURS)], MARKS[k % len(MARKS)], DASHES[k % len(DASHES)]
                    style: Any = {"color": colour, "marker": mark, "linestyle": dash, "zorder": 3}
                    drawn = axes.plot(*means.T, markersize=4, linewidth=1.3, **style)
                    legend += [(label, drawn[0])] if i == 0 else []
                else:
                    axes.plot(*means.T, color="#CFCFCF", linewidth=0.9, zorder=1)
                if i == k + 1:
                    axes.set_title(label, fontsize=9)
                    if np.isfinite(spreads).any():
                        _band(axes, means, np.nan_to_num(spreads), colour)
                    _beside(axes, values[-1], means[-1], "left")
                    if len(values) > 1:
                        _beside(axes, values[0], means[0], "right")
            points = _references(axes, group, traded)
            legend += points if i == 0 else []
            lows = [float(np.nanmin(means[:, 1])) for _, means, _, _ in lines]
            axes.set_ylim(min([0.0, *lows]) - 0.04, 1.04)
            axes.sharex(panels[0])
            axes.tick_params(labelsize=8, labelleft=i % columns == 0)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        panels[0].set_title("all", fontsize=9)
        figure.suptitle(f"{plain(group.label) + ': ' if group.label else ''}over {plain(over)}", fontsize=10)
        figure.supxlabel(f"{plain(traded[0].upper())} on test rows (right is better)", fontsize=9)
        figure.supylabel(f"{plain(traded[1].upper())} (down is better)", fontsize=9)
        handles, texts = [handle for _, handle in legend], [text for text, _ in legend]
        figure.legend(handles, texts, loc="outside right center", fontsize=8, handlelength=3.4)
        return figure


def heats(resets: Mapping[str, Sequence[ResetCounts]], title: str) -> "Figure":
    """Selected dimensions as a share of the eligible ones by layer and kind of tensor, a panel per defense.

    A tensor outside of any layer runs across all of them.

    Args:
        resets: what was selected, per defense one of each seed; shares are means over them.
        title: above all panels.

    Returns:
        The figure.
    """
    import numpy as np

    by_defense = {label: [heat(reset) for reset in seeds] for label, seeds in resets.items()}
    all_maps = [heat_map for seeds in by_defense.values() for heat_map in seeds]
    kinds = sorted({name for heat_map in all_maps for name in heat_map.others}) + sorted(
        {kind for heat_map in all_maps for kind in heat_map.rows}
    )
    layers = sorted({layer for heat_map in all_maps for layer in heat_map.columns}, key=int) or ["–"]
    shares = {
        label: np.array([_shares(heat_map, kinds, layers) for heat_map in seeds]) for label, seeds in by_defense.items()
    }
    wide, high = 0.24 * len(layers) + 0.3, 0.17 * len(kinds) + 0.45
    columns = min(len(shares), max(1, int(8 / wide)))
    rows = -(-len(shares) // columns)
    names = [plain(kind) for kind in kinds]
    left = 0.07 * max(map(len, names))
    with canvas(left + columns * wide + 0.9, rows * high + 0.7, columns, rows) as (figure, panels):
        for i, (axes, (label, seeds)) in enumerate(zip(panels, shares.items(), strict=False)):
            axes.set_facecolor("white")
            axes.patch.set_hatch("////")
            axes.patch.set_edgecolor("#BBBBBB")
            mean = np.ma.masked_invalid(seeds).mean(axis=0)
            shown = axes.imshow(mean, cmap="Greys", vmin=0, vmax=1, aspect="auto")
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_title(plain(label), fontsize=8.5)
            axes.set_xticks(range(len(layers)), layers, fontsize=7)
            axes.set_yticks(range(len(kinds)), names if i % columns == 0 else [], fontsize=7)
            axes.tick_params(length=0)
            if i + columns >= len(shares):
                axes.set_xlabel("layer", fontsize=8)
        for axes in panels[len(shares) :]:
            axes.remove()
        bar = figure.colorbar(shown, ax=panels[: len(shares)], fraction=0.05, aspect=30, pad=0.02)
        bar.set_label("selected, of eligible", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        figure.suptitle(plain(title), fontsize=10)
        return figure


def _shares(heat_map: Heat, kinds: Sequence[str], layers: Sequence[str]) -> "np.ndarray":
    """The shares of a selection, (kinds, layers); NaN where nothing is eligible."""
    import numpy as np

    known = {(name, layer): cell.share for name, cell in heat_map.others.items() for layer in layers}
    for kind, cells in heat_map.rows.items():
        known |= {(kind, layer): cell.share for layer, cell in zip(heat_map.columns, cells, strict=True)}
    return np.array([[known.get((kind, layer)) for layer in layers] for kind in kinds], dtype=float)


def _along(line: Line, traded: tuple[str, str]) -> "tuple[np.ndarray, np.ndarray, list[str]] | None":
    """Means and spreads over seeds of two metrics, (values, 2) each, for every value that was tried; the values."""
    import numpy as np

    by_value: dict[float | None, list[Point]] = {}
    for point in line.points:
        if set(traded) <= point.metrics.keys():
            by_value.setdefault(point.value, []).append(point)
    if not by_value:
        return None
    values = sorted(by_value, key=lambda value: (value is not None, value))
    samples = [np.array([[p.metrics[name] for name in traded] for p in by_value[value]]) for value in values]
    means = np.array([sample.mean(axis=0) for sample in samples])
    spreads = np.array([sample.std(axis=0, ddof=1) if len(sample) > 1 else [np.nan, np.nan] for sample in samples])
    return means, spreads, ["" if value is None else f"{value:g}" for value in values]


def _references(axes: "Axes", group: Group, traded: tuple[str, str]) -> list[tuple[str, Any]]:
    """Suspect and clean reference as points, and the floor as a line; what a legend says of them."""
    legend: list[tuple[str, Any]] = []
    style: Any = {"color": "black", "markerfacecolor": "white", "linestyle": "", "clip_on": False, "zorder": 4}
    for model, mark in (("suspect", "*"), ("clean", "h"), ("from-base", "P")):
        values = group.references[model]
        if all(values.get(name) for name in traded):
            x, y = (fmean(values[metric].values()) for metric in traded)
            legend += [(MODELS[model][0], axes.plot([x], [y], marker=mark, markersize=8, **style)[0])]
            if model == "clean":
                legend += [
                    (
                        f"{plain(traded[1].upper())} floor",
                        axes.axhline(y, color="black", linestyle=":", linewidth=1.1, zorder=1),
                    )
                ]
    return legend


def _beside(axes: "Axes", text: str, point: "np.ndarray", align: Literal["left", "right"]) -> None:
    """The first and the last value that was tried, beside their points: above, or below where the title would be."""
    above = point[1] < HIGH
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    style: Any = {"textcoords": "offset points", "fontsize": 7.5, "bbox": box, "zorder": 5}
    offset, va = (5 if align == "left" else -5, 5 if above else -5), "bottom" if above else "top"
    axes.annotate(text, (point[0], point[1]), xytext=offset, ha=align, va=va, **style)


def plain(text: str) -> str:
    """A text as it is, in one line that is not too long."""
    text = flat(text)
    return literal(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")


def _band(axes: "Axes", means: "np.ndarray", spreads: "np.ndarray", colour: str) -> None:
    """One standard deviation around a line: ellipses at its points and what they sweep from one to the next.

    All pieces run the same way round in one path, so that where they overlap it is no darker.
    """
    import numpy as np
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from scipy.spatial import ConvexHull

    angles = np.linspace(0, 2 * np.pi, SWEEP, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ellipses = [mean + circle * np.maximum(spread, 1e-4) for mean, spread in zip(means, spreads, strict=True)]
    pieces = [np.concatenate(pair) for pair in pairwise(ellipses)] or ellipses
    hulls = [piece[ConvexHull(piece).vertices] for piece in pieces]
    path = Path.make_compound_path(*(Path(np.concatenate([hull, hull[:1]]), closed=True) for hull in hulls))
    axes.add_patch(PathPatch(path, facecolor=colour, alpha=0.2, linewidth=0, zorder=2))
