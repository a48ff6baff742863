"""One run, with every default filled in and every component built."""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from defensekit.components import Component, WeightStep
from defensekit.errors import UsageError, nearest
from defensekit.files import data_digest, literal_path
from defensekit.host import Host, plain
from defensekit.keys import Sizes
from defensekit.training import Precision, TrainingSettings
from defensekit.yaml import Document


@dataclass(frozen=True)
class Named:
    """A component under the name it has in the recipe."""

    name: str
    component: Component

    def plain(self) -> dict[str, Any]:
        """As part of a stage."""
        return self._plain

    @cached_property
    def _plain(self) -> dict[str, Any]:
        return plain(self.component, self.name)

    @cached_property
    def digest(self) -> str:
        """Of its plain data."""
        return data_digest(self._plain)

    def yaml(self) -> dict[str, Any]:
        """As part of a resolved recipe."""
        return {"name": self.name, **self.parameters()}

    def parameters(self) -> dict[str, Any]:
        """The parameters as a recipe has them: nothing in a path stands for anything else."""
        found = self.component.parameters()
        for key in self.component.paths():
            if isinstance(value := found[key], list):
                found[key] = [literal_path(item) for item in value]
            elif value:
                found[key] = literal_path(value)
        return found


@dataclass(frozen=True)
class Defense:
    """The four choices; without scorer and selector nothing is taken, and the purifier trains alone."""

    estimator: Named | None
    scorer: Named | None
    selector: Named | None
    purifier: tuple[Named, ...]

    @property
    def model_steps(self) -> tuple[Named, ...]:
        """The purifier without its weight steps."""
        return tuple(step for step in self.purifier if not isinstance(step.component, WeightStep))

    def at(self, over: str, value: float) -> "Defense":
        """The defense with one parameter set.

        Raises:
            UsageError: there is no such parameter, or it can't have that value.
        """
        part, _, parameter = over.rpartition(".")
        step = re.fullmatch(r"purifier\.(\d+)", part)
        if step and int(step[1]) < len(self.purifier):
            found = self.purifier[int(step[1])]
        elif part in ("estimator", "scorer", "selector") and getattr(self, part) is not None:
            found = getattr(self, part)
        else:
            raise UsageError(f"there is no part {part!r} (expected estimator, scorer, selector or purifier.N)")
        fields = type(found.component).model_fields
        if parameter not in fields:
            raise UsageError(f"{found.name} has no parameter {parameter!r}.{nearest(parameter, fields)}")
        try:
            made = type(found.component).model_validate(found.component.parameters() | {parameter: value})
        except ValidationError as error:
            raise UsageError(f"{over} can't be {value:g} ({error.errors()[0]['msg']})") from error
        changed = replace(found, component=made)
        if step:
            steps = list(self.purifier)
            steps[int(step[1])] = changed
            return replace(self, purifier=tuple(steps))
        changes: dict[str, Any] = {part: changed}
        return replace(self, **changes)


@dataclass(frozen=True)
class Recipe:
    """A recipe with every default filled in and every component built."""

    name: str
    model: Named
    data: Named
    sizes: Sizes
    attack: Named | None
    suspect: Named | None
    triggered: Named | None
    triggered_target: str | int | None
    training: TrainingSettings
    precision: Precision
    defense: Defense
    choose: Named | None
    compare: dict[str, Defense]
    metrics: tuple[Named, ...]
    seed: int
    executor: Named
    observers: tuple[Named, ...]
    plugins: tuple[Path, ...]
    requires: tuple[str, ...]
    host: Host = field(compare=False)
    document: Document = field(compare=False)

    def where(self, *path: str | int) -> str:
        """File and line of a key, for errors found later than loading."""
        return f"{self.document.where(path)}: {'.'.join(map(str, path))}"

    def resolved(self) -> dict[str, Any]:
        """The recipe written out, itself a recipe."""

        def defense(part: Defense) -> dict[str, Any]:
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
        if self.suspect:
            out["suspect"] = self.suspect.parameters()["path"]
        if self.triggered:
            out["triggered"] = {"target": self.triggered_target, **self.triggered.parameters()}
        out |= {"precision": self.precision, "defense": {"stage": "weights", **defense(self.defense)}}
        if self.choose:
            out["defense"]["choose"] = {"rule": self.choose.name, **self.choose.component.parameters()}
        out["defense"]["compare"] = {
            name: {k: v for k, v in defense(other).items() if v != out["defense"].get(k)}
            for name, other in self.compare.items()
        }
        out |= {"metrics": [metric.yaml() for metric in self.metrics], "seed": self.seed}
        out |= {"plugins": [literal_path(path) for path in self.plugins]} if self.plugins else {}
        out |= {"requires": list(self.requires)} if self.requires else {}
        out |= {"executor": self.executor.yaml(), "observers": [observer.yaml() for observer in self.observers]}
        return out
