"""The public API for plugins: kinds of component, decorators, the hook marker. It does not import torch."""

from pydantic import Field

from defensekit.components import (
    Attack,
    AttackContext,
    AttackTrainingContext,
    Choice,
    Component,
    Dataset,
    DatasetSource,
    Detector,
    DetectorContext,
    Estimate,
    Estimator,
    EstimatorContext,
    Executor,
    FoundTrigger,
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
from defensekit.text import Row, changed, label_number
from defensekit.utils.errors import DefenseKitError, UsageError, nearest
from defensekit.utils.files import cache_folder, file_digest
from defensekit.utils.order_statistics import cutoff

__all__ = [
    "Attack",
    "AttackContext",
    "AttackTrainingContext",
    "Choice",
    "Component",
    "Cut",
    "Dataset",
    "DatasetSource",
    "DefenseKitError",
    "Detector",
    "DetectorContext",
    "Estimate",
    "Estimator",
    "EstimatorContext",
    "Executor",
    "Field",
    "FoundTrigger",
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
    "TensorView",
    "Trial",
    "UsageError",
    "WeightStep",
    "Workers",
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
