"""The report of a study: a page, its tables for a paper in Markdown and LaTeX, its figures as PDF."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defensekit.result.plots import image
from defensekit.studies.frame import Finished
from defensekit.studies.joining import STUDY, Joined
from defensekit.studies.report import plots
from defensekit.studies.report.comparing import Comparison
from defensekit.studies.report.found import detectors, filters
from defensekit.studies.report.markup import html, latex, markdown
from defensekit.studies.report.pivot import AxisValues, pivot, shown_label
from defensekit.studies.report.table import Table
from defensekit.utils.files import atomic_write
from defensekit.utils.html import fill

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StudyReport:
    """What a study's results say, as tables and figures: ``main`` is the pivot that was asked for.

    ``detectors`` and ``filters`` are None where there are none, ``matched`` and ``differences`` where nothing compares.
    ``places`` and ``options`` are those of the command that makes it.
    """

    study: Finished
    places: Sequence[Path]
    main: Table
    matched: Table | None
    differences: Table | None
    detectors: Table | None
    filters: Table | None
    tradeoffs: Sequence[tuple[str, "Figure"]]
    heats: Sequence[tuple[str, "Figure"]]
    over: str
    at: str
    options: Sequence[str]

    @property
    def tables(self) -> list[Table]:
        """Every table, in the order of the page."""
        return [table for table in self._named().values() if table]

    def page(self) -> str:
        """The page. Every text that comes from outside is escaped, and nothing on it runs or is fetched."""
        from markupsafe import Markup

        states = [self.study.state(run.id) for run in self.study.runs]
        frame = self.study.frame
        return fill(
            __package__,
            "page.html",
            study=self.study,
            states={state: states.count(state) for state in ("done", "failed", "missing")},
            tables={name: Markup(html(table)) if table else None for name, table in self._named().items()},
            tradeoffs=[(label, image(figure)) for label, figure in self.tradeoffs],
            heats=[(label, image(figure)) for label, figure in self.heats],
            over=self.over,
            at=self.at,
            floored=[name for name, metric in self.study.metrics.items() if metric.has_floor],
            traded=self.study.traded,
            meanings={name: metric.meaning for name, metric in self.study.metrics.items() if metric.meaning},
            machines=sorted(set(frame["machine"].dropna())),
            failures=[(run, self.study.failures[run.id]) for run in self.study.runs if run.id in self.study.failures],
            command=shlex.join(["defensekit", "study", "report", *map(str, self.places), *self.options]),
        )

    def _named(self) -> dict[str, Table | None]:
        names = ("main", "detectors", "filters", "matched", "differences")
        return {name: getattr(self, name) for name in names}

    def write(self, folder: str | Path | None = None) -> Path:
        """Write ``report.html``, ``tables.md``, ``tables.tex`` and ``plots/`` into the study's folder, or another.

        Returns:
            The page's path.
        """
        target = Path(folder or self.study.path)
        figures = target / "plots"
        figures.mkdir(parents=True, exist_ok=True)
        atomic_write(target / "report.html", self.page().encode())
        atomic_write(target / "tables.md", "\n".join(map(markdown, self.tables)).encode())
        tex = "% for a document with \\usepackage{booktabs,graphicx}\n\n" + "\n".join(map(latex, self.tables))
        atomic_write(target / "tables.tex", tex.encode())
        for name, named_figures in (("tradeoff", self.tradeoffs), ("resets", self.heats)):
            for i, (_, figure) in enumerate(named_figures, 1):
                figure.savefig(figures / f"{name}-{i}.pdf", metadata={"CreationDate": None})
        return target / "report.html"


def report(
    folder: str | Path,
    rows: Sequence[str] = (),
    cols: Sequence[str] = (),
    metrics: Sequence[str] = (),
    models: Sequence[str] = ("purified",),
    where: AxisValues | None = None,
    against: str | None = None,
) -> StudyReport:
    """Everything that a study's results say, read from its folder; nothing is run.

    Args:
        folder: the study's, ``WORKSPACE/studies/NAME``.
        rows: axes, as `pivot` takes them.
        cols: axes, likewise.
        metrics: which; all of them, if none is named.
        models: of a result, which.
        where: values of axes to hold fixed.
        against: the defense that others are compared with; the first, if none is named.

    Returns:
        The report, which writes itself.

    Raises:
        UsageError: there is no such axis, value, metric, model or defense.
        DefenseKitError: there is no study in the folder, or one of its files is damaged.
    """
    study = Finished(Path(folder))
    main = pivot(study, rows, cols, metrics, models, where)
    comparison = Comparison(study, where)
    several = len(comparison.labels) > 1
    traded = study.traded if comparison.over else None
    heats = [(group.label, comparison.resets(group)) for group in comparison.groups]
    return StudyReport(
        study=study,
        places=[study.path],
        main=main,
        matched=comparison.matched() if comparison.over else None,
        differences=comparison.differences(against) if several or against else None,
        detectors=detectors(study, where),
        filters=filters(study, where),
        tradeoffs=[(g.label, plots.tradeoff(g, comparison.over, traded)) for g in comparison.groups if traded],
        heats=[(label, plots.heats(resets, label)) for label, resets in heats if resets],
        over=comparison.over,
        at=f"{comparison.over} = {comparison.middle}" if comparison.axis else "",
        options=_options(rows, cols, metrics, models, where, against),
    )


def joint_report(
    studies: Sequence[Finished],
    places: Sequence[Path],
    rows: Sequence[str] = (),
    cols: Sequence[str] = (),
    metrics: Sequence[str] = (),
    models: Sequence[str] = ("purified",),
    where: AxisValues | None = None,
) -> StudyReport:
    """One table of several studies, which are rows, unless they are named as columns. See `report`.

    Args:
        studies: those that were read.
        places: where, for the command that makes it.
        rows: axes.
        cols: axes.
        metrics: which.
        models: of a result, which.
        where: values of axes to hold fixed.

    Raises:
        UsageError: two studies have the same name; or as `report` does.
    """
    study = Joined(studies)
    down = rows if STUDY in (*rows, *cols) or len(studies) == 1 else (STUDY, *rows)
    return StudyReport(
        study=study,
        places=places,
        main=pivot(study, down, cols, metrics, models, where),
        matched=None,
        differences=None,
        detectors=detectors(study, where),
        filters=filters(study, where),
        tradeoffs=(),
        heats=(),
        over="",
        at="",
        options=_options(rows, cols, metrics, models, where),
    )


def _options(
    rows: Sequence[str],
    cols: Sequence[str],
    metrics: Sequence[str],
    models: Sequence[str],
    where: AxisValues | None,
    against: str | None = None,
) -> list[str]:
    """The options of the command line that say the same."""
    values = {
        "--rows": rows,
        "--cols": cols,
        "--metric": metrics,
        "--model": models,
        "--where": [f"{axis}={shown_label(label)}" for axis, label in (where or {}).items()],
        "--against": [against] if against else (),
    }
    return [text for option, given in values.items() for value in given for text in (option, value)]
