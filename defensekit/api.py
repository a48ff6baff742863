"""The public API for plugins: kinds of component, decorators, the hook marker. It does not import torch."""

from pydantic import Field

from defensekit.components import (
    Answers,
    Attack,
    AttackContext,
    AttackTrainingContext,
    Choice,
    Component,
    Dataset,
    DatasetSource,
    Estimate,
    Estimator,
    EstimatorContext,
    Executor,
    FoundTrigger,
    Generations,
    Measured,
    Metric,
    ModelSource,
    ModelStep,
    ModelStepContext,
    Observer,
    Planned,
    Predictions,
    Purifier,
    Rule,
    Sanitizer,
    SanitizerContext,
    Scorer,
    Selector,
    Trial,
    WeightStep,
    Workers,
    scorer,
)
from defensekit.components.tensors import Cut, Scores, TensorView
from defensekit.defense.gamma_mixture import count_bins, fit_mixture
from defensekit.defense.triggers.insertion import moved_words
from defensekit.host.hookspecs import hookimpl
from defensekit.host.tables import read_table
from defensekit.models.inference import predict
from defensekit.pipeline.executors import compute
from defensekit.pipeline.remote_store import RemoteStore
from defensekit.text import Row, TaskKind, answer_of, changed, label_number
from defensekit.utils.errors import DefenseKitError, UsageError, nearest
from defensekit.utils.files import cache_folder, file_digest
from defensekit.utils.order_statistics import cutoff

__all__ = [
    "Answers",
    "Attack",
    "AttackContext",
    "AttackTrainingContext",
    "Choice",
    "Component",
    "Cut",
    "Dataset",
    "DatasetSource",
    "DefenseKitError",
    "Estimate",
    "Estimator",
    "EstimatorContext",
    "Executor",
    "Field",
    "FoundTrigger",
    "Generations",
    "Measured",
    "Metric",
    "ModelSource",
    "ModelStep",
    "ModelStepContext",
    "Observer",
    "Planned",
    "Predictions",
    "Purifier",
    "RemoteStore",
    "Row",
    "Rule",
    "Sanitizer",
    "SanitizerContext",
    "Scorer",
    "Scores",
    "Selector",
    "TaskKind",
    "TensorView",
    "Trial",
    "UsageError",
    "WeightStep",
    "Workers",
    "answer_of",
    "cache_folder",
    "changed",
    "compute",
    "count_bins",
    "cutoff",
    "file_digest",
    "fit_mixture",
    "hookimpl",
    "label_number",
    "moved_words",
    "nearest",
    "predict",
    "read_table",
    "scorer",
]
