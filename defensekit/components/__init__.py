"""The kinds of component: their base classes, and the contexts that the engine passes to them."""

from defensekit.components.attack import Attack, AttackContext, AttackTrainingContext
from defensekit.components.base import Component, call_component, component_error, offering, refuse_unsuited
from defensekit.components.detector import Detector, DetectorContext
from defensekit.components.estimator import Estimate, Estimator, EstimatorContext
from defensekit.components.filter import Filter, FilterContext, RowFeatures
from defensekit.components.metric import Answers, Generations, Measured, Metric, Predictions
from defensekit.components.purifier import FoundTrigger, ModelStep, ModelStepContext, Purifier, WeightStep
from defensekit.components.rule import Choice, Rule, Trial
from defensekit.components.runtime import Executor, Observer, Planned, Workers
from defensekit.components.sanitizer import Sanitizer, SanitizerContext
from defensekit.components.scorer import Scorer, scorer
from defensekit.components.selector import Selector
from defensekit.components.sources import DatasetSource, ModelSource
from defensekit.text import Dataset

KINDS: dict[str, type[Component]] = {
    kind.kind: kind
    for kind in (
        Attack,
        Estimator,
        Scorer,
        Selector,
        Purifier,
        Sanitizer,
        Filter,
        Detector,
        Rule,
        DatasetSource,
        ModelSource,
        Metric,
        Executor,
        Observer,
    )
}

__all__ = [
    "KINDS",
    "Answers",
    "Attack",
    "AttackContext",
    "AttackTrainingContext",
    "Choice",
    "Component",
    "Dataset",
    "DatasetSource",
    "Detector",
    "DetectorContext",
    "Estimate",
    "Estimator",
    "EstimatorContext",
    "Executor",
    "Filter",
    "FilterContext",
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
    "RowFeatures",
    "Rule",
    "Sanitizer",
    "SanitizerContext",
    "Scorer",
    "Selector",
    "Trial",
    "WeightStep",
    "Workers",
    "call_component",
    "component_error",
    "offering",
    "refuse_unsuited",
    "scorer",
]
