"""One run, with every default filled in and every component built."""

import math
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic import ValidationError

from defensekit.components import (
    Attack,
    Component,
    DatasetSource,
    Detector,
    Estimator,
    Executor,
    Filter,
    Metric,
    ModelSource,
    Observer,
    Purifier,
    Rule,
    Sanitizer,
    Scorer,
    Selector,
    WeightStep,
)
from defensekit.components.base import each_path
from defensekit.host.registry import Host, plain
from defensekit.recipe.keys import RetuningKeys, Sizes
from defensekit.recipe.yaml_document import Document
from defensekit.text import ROWS_OF, TaskKind
from defensekit.training import Precision, TrainingSettings
from defensekit.utils.errors import UsageError, nearest
from defensekit.utils.files import data_digest, literal_path

C = TypeVar("C", bound=Component, covariant=True)


@dataclass(frozen=True)
class NamedComponent(Generic[C]):
    """A component under the name it has in the recipe."""

    name: str
    component: C

    def plain(self) -> dict[str, Any]:
        """Plain data, as part of a stage."""
        return self._plain

    @cached_property
    def _plain(self) -> dict[str, Any]:
        return plain(self.component, self.name)

    @cached_property
    def digest(self) -> str:
        """The digest of its plain data."""
        return data_digest(self._plain)

    @cached_property
    def identified(self) -> dict[str, Any]:
        """The part of its plain data that decides numbers: locations do not."""
        return {key: value for key, value in self._plain.items() if key != "location"}

    def yaml(self) -> dict[str, Any]:
        """Plain data, as part of a resolved recipe."""
        return {"name": self.name, **self.parameters()}

    def parameters(self) -> dict[str, Any]:
        """The parameters as in a recipe, with paths taken literally."""
        values = self.component.parameters()
        for key in self.component.paths():
            values[key] = each_path(values[key], lambda path, _: literal_path(path))
        return values


# The single components of a defense, by where it acts.
PARTS = {"weights": ("estimator", "scorer", "selector"), "input": ("sanitizer",), "training": ("filter",)}


@dataclass(frozen=True)
class Defense:
    """The four parts of a defense; without scorer and selector nothing is selected, and the purifier only trains.

    An input-level defense has a ``sanitizer`` and its language model instead of the four, one of training data a
    ``filter``.
    """

    estimator: NamedComponent[Estimator] | None = None
    scorer: NamedComponent[Scorer] | None = None
    selector: NamedComponent[Selector] | None = None
    purifier: tuple[NamedComponent[Purifier], ...] = ()
    sanitizer: NamedComponent[Sanitizer] | None = None
    language_model: NamedComponent[ModelSource] | None = None
    filter: NamedComponent[Filter] | None = None

    @property
    def stage(self) -> Literal["weights", "input", "training"]:
        """Where the defense acts."""
        return "input" if self.sanitizer else "training" if self.filter else "weights"

    @property
    def model_steps(self) -> tuple[NamedComponent[Purifier], ...]:
        """The purifier without its weight steps."""
        return tuple(step for step in self.purifier if not isinstance(step.component, WeightStep))

    def part(self, over: str) -> NamedComponent[Component]:
        """The component that has the parameter ``over``, such as ``selector.fraction``.

        Raises:
            UsageError: the defense has no such part.
        """
        part = over.rpartition(".")[0]
        step = re.fullmatch(r"purifier\.(\d+)", part)
        if step and int(step[1]) < len(self.purifier):
            return self.purifier[int(step[1])]
        known = PARTS[self.stage]
        if part not in known or (component := getattr(self, part)) is None:
            parts = known[0] if len(known) == 1 else "estimator, scorer, selector or purifier.N"
            raise UsageError(f"there is no part {part!r} (expected {parts})")
        return cast(NamedComponent[Component], component)

    def lower_does_more(self, over: str) -> bool:
        """Whether a lower value of the parameter does more."""
        return over.rpartition(".")[2] in type(self.part(over).component).lower_does_more

    def nothing(self, over: str) -> float:
        """The value of a parameter at which the defense does nothing."""
        return math.inf if self.lower_does_more(over) else 0.0

    def at(self, over: str, value: float) -> "Defense":
        """The defense with one parameter set.

        Raises:
            UsageError: there is no such parameter, or it can't have that value.
        """
        part, _, parameter = over.rpartition(".")
        named = self.part(over)
        fields = type(named.component).model_fields
        if parameter not in fields:
            raise UsageError(f"{named.name} has no parameter {parameter!r}.{nearest(parameter, fields)}")
        try:
            component = type(named.component).model_validate(named.component.parameters() | {parameter: value})
        except ValidationError as error:
            raise UsageError(f"{over} can't be {value:g} ({error.errors()[0]['msg']})") from error
        changed = replace(named, component=component)
        if part.startswith("purifier."):
            steps: list[NamedComponent[Any]] = list(self.purifier)
            steps[int(part.removeprefix("purifier."))] = changed
            return replace(self, purifier=tuple(steps))
        changes: dict[str, Any] = {part: changed}
        return replace(self, **changes)


@dataclass(frozen=True)
class NamedDetector:
    """A detector, and the language model that it reads with, if it does."""

    detector: NamedComponent[Detector]
    language_model: NamedComponent[ModelSource] | None = None

    def yaml(self) -> dict[str, Any]:
        """Plain data, as part of a resolved recipe."""
        return self.detector.yaml() | ({"model": self.language_model.yaml()} if self.language_model else {})


@dataclass(frozen=True)
class Recipe:
    """A recipe with every default filled in and every component built."""

    name: str
    model: NamedComponent[ModelSource]
    data: NamedComponent[DatasetSource]
    sizes: Sizes
    attack: NamedComponent[Attack] | None
    suspect: NamedComponent[ModelSource] | None
    triggered: NamedComponent[DatasetSource] | None
    triggered_target: str | int | None
    training: TrainingSettings
    retuning: RetuningKeys | None
    precision: Precision
    defense: Defense
    choose: NamedComponent[Rule] | None
    refit: bool
    compare: dict[str, Defense]
    detectors: tuple[NamedDetector, ...]
    metrics: tuple[NamedComponent[Metric], ...]
    baselines: bool
    seed: int
    executor: NamedComponent[Executor]
    observers: tuple[NamedComponent[Observer], ...]
    plugins: tuple[Path, ...]
    requires: tuple[str, ...]
    host: Host = field(compare=False)
    document: Document = field(compare=False)

    @property
    def task(self) -> TaskKind:
        """What models are to answer with: the data say it."""
        return type(self.data.component).task

    def unsuited(self, task: TaskKind) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The keys of parts that do not work for rows of a task, each with the reason in words."""
        parts: list[tuple[tuple[str | int, ...], NamedComponent[Component] | None]] = [(("attack",), self.attack)]
        parts += [(("metrics", i), metric) for i, metric in enumerate(self.metrics)]
        parts.append((("defense", "choose"), self.choose))
        parts += [(("defense", "detectors", i), one.detector) for i, one in enumerate(self.detectors)]
        for path, defense in [
            (("defense",), self.defense),
            *((("defense", "compare", name), other) for name, other in self.compare.items()),
        ]:
            parts += [((*path, "estimator"), defense.estimator), ((*path, "filter"), defense.filter)]
            parts += [((*path, "purifier", i), step) for i, step in enumerate(defense.purifier)]
        for key, named in parts:
            if named and not named.component.works_for(task):
                yield key, f"{named.name!r} does not work for {ROWS_OF[task]}, which {self.data.name!r} gives"

    @property
    def defender_roles(self) -> tuple[str, ...]:
        """The roles whose rows the defender uses."""
        fits = self.detectors or not self.defense.sanitizer
        return (("clean",) if fits else ()) + (("dev",) if self.detectors or self.choose or self.refit else ())

    @property
    def lone(self) -> bool:
        """Whether a run makes one model, of a given suspect: everything else is done before that, or after it."""
        more = self.choose or self.compare or self.detectors or self.defense.selector
        return self.suspect is not None and not more

    @property
    def before_defense(self) -> tuple[Hashable, ...]:
        """Everything that decides the stages before a defense, and the rows that models are asked about."""
        named = (self.model, self.data, self.attack, self.suspect, self.triggered, self.executor, *self.metrics)
        digests = tuple(one.digest if one else None for one in named)
        settings = (self.sizes, self.triggered_target, self.training, self.retuning, self.precision)
        return (*digests, *settings, self.seed, self.plugins)

    def describe_location(self, *path: str | int) -> str:
        """The location and name of a key, for errors after loading."""
        return self.document.describe_location(path)

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out; it is a recipe itself."""

        def defense(part: Defense) -> dict[str, Any]:
            if part.sanitizer:
                reader = {"model": part.language_model.yaml()} if part.language_model else {}
                return {"sanitizer": part.sanitizer.yaml() | reader}
            if part.filter:
                return {"filter": part.filter.yaml()}
            chosen = {"estimator": part.estimator, "scorer": part.scorer, "selector": part.selector}
            return {
                **{key: named.yaml() for key, named in chosen.items() if named},
                "purifier": [step.yaml() for step in part.purifier],
            }

        out: dict[str, Any] = {
            "name": self.name,
            "model": self.model.yaml(),
            "data": {**self.data.yaml(), **{k: v for k, v in self.sizes.model_dump().items() if v != 0}},
        }
        if self.attack:
            out |= {"attack": self.attack.yaml(), "training": self.training.model_dump()}
        if self.retuning:
            out["retuning"] = self.retuning.model_dump(mode="json")
        if self.suspect:
            out["suspect"] = self.suspect.parameters()["path"]
        if self.triggered:
            out["triggered"] = {"target": self.triggered_target, **self.triggered.parameters()}
        out |= {"precision": self.precision, "defense": {"stage": self.defense.stage, **defense(self.defense)}}
        if self.choose:
            out["defense"]["choose"] = {"rule": self.choose.name, **self.choose.component.parameters()}
        if self.defense.stage == "weights":
            out["defense"]["refit"] = self.refit
        out["defense"]["compare"] = {
            name: {k: v for k, v in defense(other).items() if v != out["defense"].get(k)}
            for name, other in self.compare.items()
        }
        if self.detectors:
            out["defense"]["detectors"] = [one.yaml() for one in self.detectors]
        out |= {"metrics": [metric.yaml() for metric in self.metrics], "seed": self.seed}
        out |= {} if self.baselines else {"baselines": False}
        out |= {"plugins": [literal_path(path) for path in self.plugins]} if self.plugins else {}
        out |= {"requires": list(self.requires)} if self.requires else {}
        out |= {"executor": self.executor.yaml(), "observers": [observer.yaml() for observer in self.observers]}
        return out
