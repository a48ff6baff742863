"""The keys under `defense`: what is estimated, scored, selected and done, how much, and what it is compared with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from defensekit.components import (
    KINDS,
    Detector,
    Estimator,
    Filter,
    ModelSource,
    Purifier,
    Rule,
    Sanitizer,
    Scorer,
    Selector,
    WeightStep,
)
from defensekit.recipe.keys import DefenseKeys, InputDefenseKeys, Spec, TrainingDefenseKeys
from defensekit.recipe.reader import Reader
from defensekit.recipe.recipe import PARTS, Defense, NamedComponent, NamedDetector
from defensekit.recipe.vocabulary import MODELS
from defensekit.recipe.yaml_document import Path_
from defensekit.utils.errors import listing, nearest

# What a model that every run reports is called, in code and in tables.
TAKEN = {*MODELS, *(title for title, _ in MODELS.values())}

# What a defense of weights is made of.
FOUR = (*PARTS["weights"], "purifier")

AnyDefenseKeys = DefenseKeys | InputDefenseKeys | TrainingDefenseKeys
KEYS: dict[str, type[AnyDefenseKeys]] = {
    "weights": DefenseKeys,
    "input": InputDefenseKeys,
    "training": TrainingDefenseKeys,
}
# What a defense of anything else than weights is of, and the one part that it has.
_OF = {"input": ("inputs", "sanitizer"), "training": ("training data", "filter")}

_PATH: Path_ = ("defense",)

Reading = TypeVar("Reading", Sanitizer, Detector)


class DefenseSection:
    """The section, read: the ``defense``, the rule to ``choose`` by, what to ``compare`` it with, and ``detectors``."""

    def __init__(self, reader: Reader, data: dict[str, Any]) -> None:
        self.reader = reader
        keys = self._keys(data)
        if isinstance(keys, InputDefenseKeys):
            self.defense = self._sanitizer(keys.sanitizer, (*_PATH, "sanitizer"))
        elif isinstance(keys, TrainingDefenseKeys):
            self.defense = Defense(filter=reader.part(Filter, keys.filter, (*_PATH, "filter")))
        else:
            self.defense = self._of_weights(keys)
        self.refit = False
        if isinstance(keys, DefenseKeys):
            self.refit = keys.choose is not None if keys.refit is None else keys.refit
        self.choose = self._rule(keys.choose, self.refit)
        self.compare = {name: self._compared(name, parts) for name, parts in _compare(keys).items()}
        self.detectors = () if isinstance(keys, TrainingDefenseKeys) else self._detectors(keys.detectors)

    def _keys(self, data: dict[str, Any]) -> AnyDefenseKeys:
        """The keys, which depend on where the defense acts."""
        stage = data.get("stage", "weights")
        if not isinstance(stage, str) or stage not in KEYS:
            hint = nearest(str(stage), KEYS)
            raise self.reader.error((*_PATH, "stage"), f"expected weights, input or training, got {stage!r}.{hint}")
        for of, (what, part) in _OF.items():
            if part in data and stage != of:
                does = f"belongs to a defense of {what}; write `stage: {of}` beside it"
                raise self.reader.error((*_PATH, part), does)
            if part in data and (misplaced := [key for key in FOUR if key in data]):
                does = f"belongs to a defense of weights; one of {what} has a `{part}:` alone"
                raise self.reader.error((*_PATH, misplaced[0]), f"{does} (null takes a key back)")
        return self.reader.keys(KEYS[stage], data, _PATH)

    def _of_weights(self, keys: DefenseKeys) -> Defense:
        part = self.reader.part
        defense = Defense(
            estimator=part(Estimator, keys.estimator, (*_PATH, "estimator")) if keys.estimator is not None else None,
            scorer=part(Scorer, keys.scorer, (*_PATH, "scorer")) if keys.scorer is not None else None,
            selector=part(Selector, keys.selector, (*_PATH, "selector")) if keys.selector is not None else None,
            purifier=self._purifier(keys.purifier, (*_PATH, "purifier")),
        )
        self._check(defense, _PATH, (*_PATH, "scorer"))
        return defense

    def _purifier(self, specs: Sequence[Spec], path: Path_) -> tuple[NamedComponent[Purifier], ...]:
        return tuple(self.reader.part(Purifier, spec, (*path, i)) for i, spec in enumerate(specs))

    def _sanitizer(self, spec: Spec, path: Path_) -> Defense:
        """An input-level defense."""
        named, model = self._reading(Sanitizer, spec, path)
        return Defense(sanitizer=named, language_model=model)

    def _detectors(self, specs: Sequence[Spec]) -> tuple[NamedDetector, ...]:
        detectors: dict[str, NamedDetector] = {}
        for i, spec in enumerate(specs):
            path = (*_PATH, "detectors", i)
            named, model = self._reading(Detector, spec, path)
            if named.name in detectors:
                raise self.reader.error(path, f"{named.name!r} stands there twice; its results would have one name")
            if named.component.reads_purified and self.defense.sanitizer:
                does = "compares the suspect with the purified model, and a defense of inputs makes none"
                raise self.reader.error(path, f"{named.name!r} {does}")
            detectors[named.name] = NamedDetector(named, model)
        return tuple(detectors.values())

    def _reading(
        self, kind: type[Reading], spec: Spec, path: Path_
    ) -> tuple[NamedComponent[Reading], NamedComponent[ModelSource] | None]:
        """A component that may read with a language model. ``model`` is none of its parameters: it is looked up."""
        given = {"name": spec} if isinstance(spec, str) else dict(spec)
        name, model, host = given.get("name"), None, self.reader.host
        beside: tuple[str, ...] = ()
        if isinstance(name, str) and name in host.names(kind.kind):
            component = self.reader.at((*path, "name"), lambda: host.find(kind, name))
            reads = component.reads_with_language_model
            beside = ("model",) if reads else ()
            if reads and not isinstance(model := given.pop("model", None), str | dict):
                wanted = "a causal language model: a folder, or owner/name@revision"
                raise self.reader.error((*path, "model"), f"{name!r} needs `model:`, {wanted}")
        named = self.reader.part(kind, given, path, beside=beside)
        return named, self.reader.model(model, (*path, "model")) if model else None

    def _rule(self, spec: dict[str, Any] | None, refit: bool) -> NamedComponent[Rule] | None:
        if spec is None:
            return None
        path = (*_PATH, "choose")
        named = self.reader.part(Rule, spec, path, "rule")
        rule, filtered = named.component, self.defense.filter
        if filtered and filtered.component.fraction is not None and rule.over == "filter.threshold":
            does = "a filter with a fraction ignores its threshold; write `fraction: null` beside its name"
            raise self.reader.error((*path, "over"), does)
        if filtered and rule.planting():
            does = f"{named.name!r} tries values on a copy of the suspect, and a filter makes nothing of the suspect"
            raise self.reader.error((*path, "rule"), does)
        if rule.folds:
            self._check_folds(named, refit)
        self.reader.at((*path, "over"), lambda: self.defense.at(rule.over, 0.0))
        for i, value in enumerate(rule.values):
            self.reader.at((*path, "values", i), partial(self.defense.at, rule.over, value))
        return named

    def _check_folds(self, named: NamedComponent[Rule], refit: bool) -> None:
        """Refuse folds that a copy learnt from, that nothing learns from, and that leave no model in the end."""
        path = (*_PATH, "choose", "folds")
        if named.component.planting():
            does = f"{named.name!r} tries values on a copy of the suspect that learnt from all clean rows"
            raise self.reader.error(path, f"{does}: no fold would be new to it")
        if (stage := self.defense.stage) != "weights":
            raise self.reader.error(path, f"folds are for a defense of weights; one of {_OF[stage][0]} has dev rows")
        if not refit:
            raise self.reader.error((*_PATH, "refit"), "with folds the model is made from all clean rows: leave it out")

    def _compared(self, name: str, parts: Mapping[str, Spec | list[Spec]]) -> Defense:
        """The defense with some of its parts changed."""
        path = (*_PATH, "compare", name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,79}", name):
            raise self.reader.error(path, f"expected a name of letters, digits, blanks and . _ + -, got {name[:80]!r}")
        if (name in TAKEN or name.startswith("trial ")) and name != "random":
            raise self.reader.error(path, f"{name!r} is the name of a model that every run reports")
        expected = list(FOUR if self.defense.stage == "weights" else PARTS[self.defense.stage])
        changes: dict[str, Any] = {}
        for part, spec in parts.items():
            if part not in expected:
                wanted = ", ".join(expected[:-1]) + " or " * (len(expected) > 1) + expected[-1]
                raise self.reader.error((*path, part), f"expected {wanted}.{nearest(part, expected)}")
            if part == "purifier":
                changes[part] = self._purifier(spec if isinstance(spec, list) else [spec], (*path, part))
            elif isinstance(spec, list):
                raise self.reader.error((*path, part), "expected one, not a list")
            elif part == "sanitizer":
                other = self._sanitizer(spec, (*path, part))
                changes |= {"sanitizer": other.sanitizer, "language_model": other.language_model}
            else:
                changes[part] = self.reader.part(KINDS[part], spec, (*path, part))
        changed = replace(self.defense, **changes)
        self._check(changed, path, path)
        if self.choose:
            self.reader.at(path, partial(changed.at, self.choose.component.over, 0.0))
        return changed

    def _check(self, defense: Defense, path: Path_, scorer: Path_) -> None:
        """Refuse a scorer or selector alone, weight steps with neither, and a scorer whose statistics are missing."""
        if (defense.scorer is None) != (defense.selector is None):
            missing, other = ("selector", "scorer") if defense.selector is None else ("scorer", "selector")
            raise self.reader.error((*path, other), f"needs a `{missing}:` beside it; a defense has both or neither")
        if defense.scorer is None:
            if weight_steps := [step.name for step in defense.purifier if isinstance(step.component, WeightStep)]:
                does = f"{listing(weight_steps)} changes selected weights, and nothing is selected"
                raise self.reader.error((*path, "purifier"), f"{does}; write a `scorer:` and a `selector:`")
            return
        estimator = defense.estimator
        provided = estimator.component.provides if estimator else frozenset()
        if missing_statistics := defense.scorer.component.needs - provided:
            has = f"{estimator.name!r} provides {listing(sorted(provided))}" if estimator else "there is none"
            raise self.reader.error(
                scorer,
                f"the scorer {defense.scorer.name!r} needs {listing(sorted(missing_statistics))} from an estimator; "
                f"{has} (estimators: {listing(self.reader.host.names('estimator'))})",
            )


def _compare(keys: AnyDefenseKeys) -> Mapping[str, Mapping[str, Spec | list[Spec]]]:
    """What is reported beside the defense; a defense that takes nothing is not compared with chance by itself."""
    if not isinstance(keys, DefenseKeys):
        return keys.compare
    return {} if keys.selector is None and "compare" not in keys.model_fields_set else keys.compare
