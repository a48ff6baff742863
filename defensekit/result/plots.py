"""The figures of a result, for a page, a notebook or a paper: told apart by marks and dashes as well as by colour."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from defensekit.result.schema import Histogram, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by people who see fewer of them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKS = ("o", "s", "^", "D", "v")
_STYLE: Any = {
    "font.family": ["sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "defensekit",
}


@contextmanager
def canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> "Iterator[tuple[Figure, list[Axes]]]":
    """A figure in our style, whatever the style outside; it belongs to no window and no global list."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def literal(text: str) -> str:
    """A name as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def curve(result: Result) -> "Figure":
    """Metrics over the parameter that the rule chose, with the chosen value marked.

    Raises:
        ValueError: nothing was chosen in this run.
    """
    if result.chosen is None:
        raise ValueError("nothing was chosen in this run: there is no curve")
    trials = sorted(result.curve, key=lambda trial: trial.value)
    values = [trial.value for trial in trials]
    with canvas(7, 3.6) as (figure, [axes]):
        dev = [trial.dev_accuracy for trial in trials]
        seen = f"clean rows, in {folds} folds" if (folds := result.chosen.folds) else "dev rows"
        axes.plot(values, dev, "x--", color="#555555", label=f"accuracy on {seen}: what the rule sees")
        for family, mark in zip(trials[0].planted, MARKS, strict=False):
            left = [trial.planted[family] for trial in trials]
            label = f"answers that a planted {literal(family)} turns: what the rule sees"
            axes.plot(values, left, mark + ":", color="#555555", label=label)
        colours: dict[str, str] = {}
        for i, name in enumerate(name for name in trials[0].metrics if result.metrics[name].bounds[1] <= 1):
            measured = [trial.metrics[name] for trial in trials]
            colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
            colours[name] = colour
            label = f"{literal(name.upper())} on test rows: for the reader"
            axes.plot(values, [m.value for m in measured], color=colour, marker=mark, label=label)
            axes.fill_between(values, [m.low for m in measured], [m.high for m in measured], color=colour, alpha=0.15)
        for name, floor in result.floors.items():
            label = f"{literal(name.upper())} floor: the clean reference"
            axes.axhline(floor, color=colours.get(name, "#555555"), linestyle="--", label=label)
        axes.axvline(result.chosen.value, color="black", linewidth=1)
        transform = axes.get_xaxis_transform()
        axes.annotate(" chosen", (result.chosen.value, 1.0), xycoords=transform, va="bottom", ha="center")
        axes.set_xlabel(literal(result.chosen.over))
        lows = (low for trial in trials for low in (*(m.low for m in trial.metrics.values()), *trial.planted.values()))
        lowest = min([0.0, *lows])
        axes.set_ylim(lowest - 0.03, 1.03)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1, fontsize=9)
        return figure


def scores(histogram: Histogram, scorer: str = "score") -> "Figure":
    """How scores are spread over eligible dimensions, and their tail, with the selected part apart."""
    import numpy as np

    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    counts, selected = np.array(histogram.counts, float), np.array(histogram.selected, float)
    total = max(counts.sum() + histogram.zero, 1.0)
    scorer = literal(scorer)
    axis = f"log10 of the score ({scorer})" if histogram.log else f"score ({scorer})"
    with canvas(7, 3.1, columns=2) as (figure, [spread, tail]):
        width = (edges[1] - edges[0]) or 1.0
        bars: Any = {"width": width, "align": "edge"}
        spread.bar(edges[:-1], (counts - selected) / total, color="#BBBBBB", label="kept", **bars)
        bottom = (counts - selected) / total
        spread.bar(
            edges[:-1], selected / total, bottom=bottom, color=COLOURS[0], hatch="////", label="selected", **bars
        )
        spread.set_xlabel(axis)
        spread.set_ylabel("share of eligible dimensions")
        spread.legend(fontsize=9)
        above = counts[::-1].cumsum()[::-1] / total
        seen = above > 0
        tail.step(edges[:-1][seen], above[seen], where="post", color="black")
        tail.set_yscale("log")
        tail.set_xlabel(axis)
        tail.set_ylabel("share with a higher score")
        return figure


def image(figure: "Figure") -> str:
    """A figure as an SVG image in a data URI: it needs no network, and its inner names meet no other's."""
    import matplotlib

    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "defensekit"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()
