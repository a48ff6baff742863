"""Makes the stages of a run from components, parameters and inputs, each of them once."""

from collections.abc import Callable, Hashable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from defensekit.components import Component, ModelSource, Purifier
from defensekit.pipeline.graph import ExternalModel, Stage
from defensekit.recipe.recipe import NamedComponent, Recipe
from defensekit.utils.seeds import Seeds

# The kinds of stages whose numbers depend on the machine.
_NUMERIC_KINDS = {
    "train", "learn", "plant", "retune", "control", "screen", "judge", "statistics", "purify", "predict", "inspect",
    "sanitize", "features", "score", "fit", "detect",
}  # fmt: skip


Params = tuple[tuple[str, Any], ...]


def _thawed(value: Any) -> Any:
    """Plain data from hashable parameters: those are compared a thousand times, and written once."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, frozenset):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


T = TypeVar("T")
P = TypeVar("P", bound="Planner")


def once(method: Callable[[P], T]) -> Callable[[P], T]:
    """Cache a method's answer in the plan: thousands of runs ask for the same stages."""

    @wraps(method)
    def answer(self: P) -> T:
        if method.__name__ not in self.answered:
            self.answered[method.__name__] = method(self)
        return cast(T, self.answered[method.__name__])

    return answer


class Planner:
    """Makes the stages of a run, each of them once.

    ``contents`` are the digests of the files that an attack and data sets read, and ``step_contents`` gives the one of
    a purifier's step. ``language_model`` finds the one that a sanitizer or detector reads with. ``machine`` describes
    where stages run, and ``alone`` where one does that nothing can run beside. ``known`` has the stages that other runs
    planned: runs of a study share most of theirs. ``answered`` caches the stages of runs that differ in their defense
    alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: ExternalModel,
        suspect: ExternalModel | None,
        contents: dict[str, str | None],
        step_contents: Callable[[NamedComponent[Purifier]], str | None],
        language_model: Callable[[NamedComponent[ModelSource]], ExternalModel],
        labels: list[str] | None,
        machine: dict[str, Any],
        alone: dict[str, Any],
        known: dict[Hashable, Stage],
        answered: dict[str, Any],
    ):
        self.recipe = recipe
        self.seeds = Seeds(recipe.seed)
        self.base = base
        self.given_suspect = suspect
        self.contents = contents
        self.step_contents = step_contents
        self.language_model = language_model
        self.given_labels = labels
        self.labels: list[str] = labels or []
        self.machine = machine
        self.alone = alone
        self.known = known
        self.answered = answered
        self.cut: Params = (("max_length", recipe.sizes.max_length),)
        self.numeric: Params = (*self.cut, ("precision", recipe.precision))

    def stage(
        self,
        kind: str,
        title: str,
        inputs: dict[str, "Stage | ExternalModel"],
        params: Params,
        components: Mapping[str, NamedComponent[Component]] | None = None,
        seed: int = 0,
    ) -> Stage:
        """The stage of a kind with these inputs, parameters and components; the same one, asked for again."""
        roles = tuple((role, named.digest) for role, named in (components or {}).items())
        wanted = (kind, title, tuple(inputs.items()), params, roles, seed, self.recipe.lone)
        if wanted not in self.known:
            self.known[wanted] = self._planned(kind, title, inputs, params, components or {}, seed)
        return self.known[wanted]

    def _planned(
        self,
        kind: str,
        title: str,
        inputs: dict[str, "Stage | ExternalModel"],
        params: Params,
        components: Mapping[str, NamedComponent[Component]],
        seed: int,
    ) -> Stage:
        plain: dict[str, Any] = {
            "kind": kind,
            "title": title,
            "params": {name: _thawed(value) for name, value in params},
            "components": {role: named.plain() | {"plugin": self._plugin(named)} for role, named in components.items()},
            "inputs": {
                name: given.key if isinstance(given, Stage) else {"path": str(given.path), "digest": given.digest}
                for name, given in inputs.items()
            },
            "seed": seed,
            "plugin_files": [str(path) for path in self.recipe.plugins],
        }
        if kind in _NUMERIC_KINDS:
            plain["machine"] = self.alone if kind == "purify" and self.recipe.lone else self.machine
        return Stage(plain, tuple(given for given in inputs.values() if isinstance(given, Stage)))

    def _plugin(self, named: NamedComponent[Component]) -> str:
        """The plugin of a component, for a machine that does not have it."""
        return str(self.recipe.host.plugin_of(named.component.kind, named.name))
