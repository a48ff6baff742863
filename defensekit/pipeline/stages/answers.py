"""Stages that read rows with a model: its answers, and defenses of inputs."""

from defensekit import training
from defensekit.components import Detector, DetectorContext, Sanitizer, SanitizerContext
from defensekit.defense import detecting, sanitizing
from defensekit.models import checkpoint, loading
from defensekit.pipeline.stages.context import StageContext
from defensekit.pipeline.store import ArtifactWriter
from defensekit.pipeline.tasks import Question, task_of
from defensekit.text import ROWS, write_rows


def inspect(work: StageContext, draft: ArtifactWriter) -> None:
    """Let a sanitizer inspect every text."""
    inspected = sanitizing.inspect(work.component(Sanitizer, "sanitizer"), work.rows("rows"), _texts(work))
    sanitizing.write_inspected(draft.files / sanitizing.INSPECTED, inspected)


def sanitize(work: StageContext, draft: ArtifactWriter) -> None:
    """Let a sanitizer rewrite rows."""
    inspected = "inspected" in work.stage["inputs"]
    texts = sanitizing.read_inspected(work.folder("inspected") / sanitizing.INSPECTED) if inspected else None
    before = work.rows("rows")
    after = sanitizing.sanitize(work.component(Sanitizer, "sanitizer"), before, texts, _texts(work))
    write_rows(draft.files / ROWS, after)
    inspection = work.about("inspected") if inspected else None
    draft.facts.update(work.facts("rows"), **sanitizing.summary(before, after))
    draft.facts["inspected_seconds"] = inspection["seconds"] if inspection else 0.0


def _texts(work: StageContext) -> SanitizerContext:
    folder = work.folder("language-model") if "language-model" in work.stage["inputs"] else None
    return sanitizing.context(folder, max_length=work.max_length, seed=work.stage["seed"], report=work.report)


def fit(work: StageContext, draft: ArtifactWriter) -> None:
    """Let a detector learn from clean rows."""
    detector = work.component(Detector, "detector")
    fitted = detecting.fit(detector, _models(work, detector))
    checkpoint.write_tensors(draft.files / detecting.FITTED, fitted)


def detect(work: StageContext, draft: ArtifactWriter) -> None:
    """A detector's scores of rows."""
    import torch
    from safetensors.torch import load_file

    learned = "fitted" in work.stage["inputs"]
    fitted = load_file(work.folder("fitted") / detecting.FITTED) if learned else {}
    rows = work.rows("rows")
    detector = work.component(Detector, "detector")
    scores, seconds = detecting.score(detector, rows, fitted, _models(work, detector))
    ids = torch.tensor([row.id for row in rows])
    checkpoint.write_tensors(draft.files / detecting.SCORES, {"scores": scores, "ids": ids})
    about = work.about("fitted") if learned else None
    draft.facts.update(milliseconds=1000 * seconds / len(rows), fitted_seconds=about["seconds"] if about else 0.0)


def _models(work: StageContext, detector: Detector) -> DetectorContext:
    inputs = work.stage["inputs"]
    return detecting.context(
        detector,
        work.pair,
        work.rows("clean"),
        purified=work.folder("purified") if "purified" in inputs else None,
        language_model=work.folder("language-model") if "language-model" in inputs else None,
        max_length=work.max_length,
        precision=work.precision,
        seed=work.stage["seed"],
        report=work.report,
    )


def predict(work: StageContext, draft: ArtifactWriter) -> None:
    """A model's answers to rows."""
    model, tokenizer = loading.load(work.folder("model"), "model")
    model, in_words = model.to(training.device_type()), work.stage["params"].get("in_words", True)
    asked = Question(model, tokenizer, work.rows("rows"), work.max_length, work.precision, in_words, work.report)
    draft.facts["note"] = task_of(work.facts("rows")["labels"]).answer(asked, draft.files)
    # Predictions outlive the model they come from, which is a thousand times their size.
    draft.facts["model"] = work.about("model")
