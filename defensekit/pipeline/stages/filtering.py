"""Stages of defenses that take rows from the attacker's training data."""

from defensekit.components import Filter, RowFeatures
from defensekit.defense import filtering
from defensekit.models import loading
from defensekit.pipeline.stages.context import StageContext
from defensekit.pipeline.store import ArtifactWriter
from defensekit.text import ROWS, write_rows


def features(work: StageContext, draft: ArtifactWriter) -> None:
    """What a classifier makes of rows."""
    model, tokenizer = loading.load(work.folder("model"), "model")
    reading = filtering.Reading(tokenizer, work.max_length, work.precision)
    filtering.write(draft.files, vars(reading.features(model, work.rows("rows"), work.report)))


def score(work: StageContext, draft: ArtifactWriter) -> None:
    """Let a filter score the attacker's training rows."""
    component = work.component(Filter, "filter")
    given = filtering.context(
        component,
        work.folder("base"),
        work.folder("suspect"),
        rows=work.rows("rows"),
        features=RowFeatures(**filtering.read(work.folder("features"))),
        clean=work.rows("clean"),
        labels=tuple(work.facts("rows")["labels"]),
        settings=work.training,
        max_length=work.max_length,
        precision=work.precision,
        seed=work.stage["seed"],
        report=work.report,
    )
    filtering.write(draft.files, {"scores": filtering.score(component, given)})
    draft.facts["features"] = work.about("features")


def keep(work: StageContext, draft: ArtifactWriter) -> None:
    """The attacker's training rows without those that a filter takes."""
    rows, scores = work.rows("rows"), filtering.read(work.folder("scores"))["scores"]
    taken = filtering.take(work.component(Filter, "filter"), scores, [row.label for row in rows])
    write_rows(draft.files / ROWS, [row for row, gone in zip(rows, taken, strict=True) if not gone])
    filtering.write(draft.files, {"scores": scores, "taken": taken})
    draft.facts.update(labels=work.facts("rows")["labels"], scores=work.about("scores"))
