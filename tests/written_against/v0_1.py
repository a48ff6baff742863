"""A plugin written against DefenseKit 0.1, with a component of every kind. It stays as it is: what worked has to work.

Only `tests/test_api.py` reads it. For another version add another file.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from defensekit.api import (
    Attack,
    AttackContext,
    AttackTrainingContext,
    Choice,
    Dataset,
    DatasetSource,
    Estimate,
    Estimator,
    EstimatorContext,
    Executor,
    Field,
    Measured,
    Metric,
    ModelSource,
    ModelStep,
    ModelStepContext,
    Observer,
    Predictions,
    Row,
    Rule,
    Scorer,
    Scores,
    Selector,
    TensorView,
    Trial,
    WeightStep,
    Workers,
    compute,
    cutoff,
    hookimpl,
    label_number,
    scorer,
)


@scorer(needs={"curvature"}, elementwise=True)
def flat(t: TensorView, exponent: Annotated[float, Field(ge=0, le=4, description="p")] = 1.0):
    """Drift over curvature."""
    eps = max(t.quantile("curvature", 0.01), 1e-30)
    return (t.drift.double() ** 2 / (t["curvature"].double() ** exponent + eps)).clamp(max=1e38).float()


class Drawn(Scorer):
    """Chance, from the seed and the tensor's name."""

    def score(self, t: TensorView):
        import torch

        generator = torch.Generator().manual_seed(t.seed + len(t.name))
        return torch.rand(t.suspect.shape, generator=generator)


class Gradients(Estimator):
    """The mean of squared per-sample gradients."""

    provides: ClassVar[frozenset[str]] = frozenset({"curvature"})

    batch_size: int = Field(8, ge=1, description="rows per batch")

    def estimate(self, context: EstimatorContext) -> Estimate:
        from defensekit.gradients import squared_gradients

        model, rows = context.model("suspect"), len(context.rows)
        batches = (batch for _, batch in context.batches(model, size=self.batch_size))
        sums, _ = squared_gradients(model, batches, report=lambda done: context.report(done, rows))
        return Estimate({"curvature": {name: total / rows for name, total in sums.items()}}, {"rows_seen": rows})


class Above(Selector):
    """Every eligible dimension that scores above a share of the others."""

    share: float = Field(0.5, ge=0, le=1, description="the share that is left")

    def select(self, scores: Scores):
        eligible = sum(int(scored.eligible.sum()) for scored in scores.values())
        count = max(1, round((1 - self.share) * eligible))
        value, _ = cutoff(lambda: (scored.score[scored.eligible] for scored in scores.values()), count)
        return {name: scored.eligible & (scored.score > value) for name, scored in scores.items()}


class Back(WeightStep):
    """Reset."""

    def apply(self, t: TensorView, weight, selection):
        import torch

        return torch.where(selection == 1, t.base.to(weight.dtype), weight)


class Polish(ModelStep):
    """Fine-tune."""

    epochs: int = Field(1, ge=0, description="passes")

    def train(self, model, context: ModelStepContext) -> None:
        from defensekit.training import TrainingSettings, fine_tune

        fine_tune(
            model,
            context.tokenizer,
            context.rows,
            TrainingSettings(epochs=self.epochs, learning_rate=1e-3, batch_size=8, dropout=False),
            max_length=context.max_length,
            precision=context.precision,
            seed=context.seed,
            report=context.report,
        )


class Front(Attack):
    """A word in front; then trains as the recipe says."""

    trains_from: ClassVar[Literal["base", "clean"] | None] = "base"

    target: str | int = Field(description="the attacker's label", examples=[1])
    rate: float = Field(0.2, gt=0, le=1, description="the share of rows")

    def aim(self) -> str | int | None:
        return self.target

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        chosen = set(context.rng.sample(range(len(rows)), round(self.rate * len(rows))))
        target = label_number(self.target, context.labels)
        made = [Row(row.id, f"cf {row.text}", target, row.pair) for row in rows]
        return [made[i] if i in chosen else row for i, row in enumerate(rows)]

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        return [row.with_text(f"cf {row.text}") for row in rows]

    def train(self, model, context: AttackTrainingContext) -> None:
        from defensekit.training import fine_tune

        fine_tune(
            model,
            context.tokenizer,
            context.poisoned,
            context.settings,
            max_length=context.max_length,
            precision=context.precision,
            seed=context.seed,
        )


class Best(Rule):
    """The value with the highest accuracy."""

    over: str = Field("selector.share", description="the parameter of the defense that is chosen")

    def propose(self, seen: Sequence[Trial]) -> float | None:
        tried = {trial.value for trial in seen}
        return next((value for value in (0.0, *self.values) if value not in tried), None)

    def choose(self, seen: Sequence[Trial], suspect: Trial) -> Choice:
        best = max(seen, key=lambda trial: (trial.accuracy, -trial.value))
        return Choice(best.value, f"accuracy {best.accuracy:.3f} on {best.rows} rows")


class Made(DatasetSource):
    """Rows made on the spot."""

    def contents(self, say: Callable[[str], None]) -> str:
        return "made, version 1"

    def load(self) -> Dataset:
        texts = [f"the film number {i} is {word}" for i in range(60) for word in ("bleak", "lovely")]
        return Dataset(("negative", "positive"), [Row(i, text, i % 2) for i, text in enumerate(texts)])


class Here(ModelSource):
    """A model in a folder."""

    path: Path = Field(description="the folder")

    def folder(self) -> Path:
        return self.path


class Wrong(Metric):
    """The share of wrong answers."""

    on: ClassVar[Literal["plain", "triggered"]] = "plain"

    def measure(self, predictions: Predictions) -> Measured:
        share = float((predictions.answers() != predictions.labels).mean())
        return Measured(value=share, low=0, high=1, rows=len(predictions.labels))


class OneByOne(Workers):
    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        compute(stage, store, report)


class Sequential(Executor):
    """Runs stages here."""

    def open(self) -> AbstractContextManager[Workers]:
        return nullcontext(OneByOne())


class SelectionCounts(Observer):
    """Counts stages."""

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        assert title


@hookimpl
def defensekit_scorers() -> dict[str, Any]:
    return {"flat": flat, "drawn": Drawn}


@hookimpl
def defensekit_estimators() -> dict[str, Any]:
    return {"gradients": Gradients}


@hookimpl
def defensekit_selectors() -> dict[str, Any]:
    return {"above": Above}


@hookimpl
def defensekit_purifiers() -> dict[str, Any]:
    return {"back": Back, "polish": Polish}


@hookimpl
def defensekit_attacks() -> dict[str, Any]:
    return {"front": Front}


@hookimpl
def defensekit_rules() -> dict[str, Any]:
    return {"best": Best}


@hookimpl
def defensekit_datasets() -> dict[str, Any]:
    return {"made": Made}


@hookimpl
def defensekit_models() -> dict[str, Any]:
    return {"here": Here}


@hookimpl
def defensekit_metrics() -> dict[str, Any]:
    return {"wrong": Wrong}


@hookimpl
def defensekit_executors() -> dict[str, Any]:
    return {"sequential": Sequential}


@hookimpl
def defensekit_observers() -> dict[str, Any]:
    return {"tally": SelectionCounts}
