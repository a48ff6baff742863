"""One run as YAML: what it holds, how it is loaded, and errors that say file, line, key and the nearest match."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defensekit.components import (
    Attack,
    Component,
    DatasetSource,
    Estimator,
    Executor,
    Metric,
    ModelSource,
    Observer,
    Purifier,
    Rule,
    Scorer,
    Selector,
    WeightStep,
)
from defensekit.errors import UsageError, listing, nearest
from defensekit.host import Host, load_plugins, plain, require
from defensekit.tables import SUFFIXES
from defensekit.text import Balance
from defensekit.training import Precision, TrainingSettings, native_precision
from defensekit.yaml import Document, Path_

Model = TypeVar("Model", bound=BaseModel)
Part = TypeVar("Part", bound=Component)
Made = TypeVar("Made")

Spec = str | dict[str, Any]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Top(_Keys):
    """A recipe's keys."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="names the run's folder")
    model: Spec = Field(description="the pretrained base: a source's name, a local folder, or owner/name@revision")
    data: Spec = Field(description="labelled text, and how many rows each role gets")
    attack: Spec | None = Field(None, description="how the suspect is poisoned")
    suspect: str | None = Field(None, description="a folder with a suspect, in place of `attack`")
    triggered: dict[str, Any] | None = Field(None, description="a file of rows with a known trigger, for `suspect`")
    training: dict[str, Any] | None = Field(None, description="how the attacker fine-tunes")
    precision: Precision | Literal["auto"] = Field(
        "float32", description="of training and answers: float32, bfloat16 autocast, or auto: bfloat16 where it is fast"
    )
    defense: dict[str, Any] = Field(description="estimator, scorer, selector, purifier, and how much is chosen")
    metrics: list[Spec] | None = Field(
        None, min_length=1, description="what is measured (acc, and what shows the attack: asr, or bacc of a bias)"
    )
    seed: int = Field(0, ge=0, description="decides every random draw")
    plugins: list[str] = Field([], description="local plugin files")
    executor: Spec = Field("in-process", description="where stages run")
    observers: list[Spec] = Field([], description="who watches")


class Sizes(_Keys):
    """How many rows each role gets, and how much of a row is read."""

    train: int | None = Field(None, ge=1, description="the attacker's training rows (all that are left)")
    clean: int = Field(256, ge=1, description="the defender's clean rows: statistics and fine-tuning")
    dev: int = Field(256, ge=1, description="the defender's clean rows: choosing")
    test: int | None = Field(None, ge=1, description="test rows (all, where the source has its own)")
    balance: Balance = Field("natural", description="labels among clean and dev rows: as they come, or equally often")
    max_length: int = Field(128, ge=8, le=100_000, description="tokens per row; what is longer is cut")


class _Defense(_Keys):
    """The keys under `defense`."""

    stage: Literal["weights"] = "weights"
    estimator: Spec | None = None
    scorer: Spec
    selector: Spec
    purifier: list[Spec] = Field(min_length=1)
    choose: dict[str, Any] | None = None
    compare: dict[str, dict[str, Spec | list[Spec]]] = {"random": {"scorer": "random"}}


class _Triggered(_Keys):
    """The keys under `triggered`; what else stands there belongs to the file (text, pair, label)."""

    model_config = ConfigDict(extra="allow")

    target: str | int
    path: str


@dataclass(frozen=True)
class Named:
    """A component under the name it has in the recipe."""

    name: str
    component: Component

    def plain(self) -> dict[str, Any]:
        """As part of a stage."""
        return plain(self.component, self.name)

    def yaml(self) -> dict[str, Any]:
        """As part of a resolved recipe."""
        return {"name": self.name, **self.component.parameters()}


@dataclass(frozen=True)
class Defense:
    """The four choices."""

    estimator: Named | None
    scorer: Named
    selector: Named
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
    host: Host = field(compare=False)
    document: Document = field(compare=False)

    def where(self, *path: str | int) -> str:
        """File and line of a key, for errors found later than loading."""
        return f"{self.document.where(path)}: {'.'.join(map(str, path))}"

    def resolved(self) -> dict[str, Any]:
        """The recipe written out, itself a recipe."""

        def defense(part: Defense) -> dict[str, Any]:
            return {
                **({"estimator": part.estimator.yaml()} if part.estimator else {}),
                "scorer": part.scorer.yaml(),
                "selector": part.selector.yaml(),
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
            out["suspect"] = str(cast(Any, self.suspect.component).path)
        if self.triggered:
            out["triggered"] = {"target": self.triggered_target, **self.triggered.component.parameters()}
        out |= {"precision": self.precision, "defense": {"stage": "weights", **defense(self.defense)}}
        if self.choose:
            out["defense"]["choose"] = {"rule": self.choose.name, **self.choose.component.parameters()}
        out["defense"]["compare"] = {
            name: {k: v for k, v in defense(other).items() if v != out["defense"].get(k)}
            for name, other in self.compare.items()
        }
        out |= {"metrics": [metric.yaml() for metric in self.metrics], "seed": self.seed}
        out |= {"plugins": [str(path) for path in self.plugins]} if self.plugins else {}
        out |= {"executor": self.executor.yaml(), "observers": [observer.yaml() for observer in self.observers]}
        return out


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UsageError: with file, line and key, what was expected and what is close to what was typed.
    """
    document = Document(Path(path))
    if not isinstance(document.data, dict):
        raise UsageError(f"{path}: expected a mapping with the keys {listing(_Top.model_fields, 20)}")
    return _Loading(document).recipe()


class _Loading:
    """Turns a document into a recipe, remembering where everything stands."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.folder = document.path.resolve().parent
        self.host = Host()

    def recipe(self) -> Recipe:
        top = self.keys(_Top, self.document.data, ())
        plugins = tuple(self.at(("plugins", i), partial(self.resolve, name)) for i, name in enumerate(top.plugins))
        self.host = self.at(("plugins",), lambda: load_plugins(plugins))
        self.at(("plugins",), lambda: require(self.host, [path.name for path in plugins]))
        self.exclusive(top)
        settings = self.keys(TrainingSettings, top.training or {}, ("training",))
        defense_keys = self.keys(_Defense, top.defense, ("defense",))
        defense = self.defense(defense_keys)
        choose = self.rule(defense_keys.choose, defense)
        sizes, data = self.data(top.data)
        if top.suspect is not None:
            # Nobody trains: every row is the defender's, and where nothing is chosen none is kept to choose by.
            if sizes.train is not None:
                raise self.error(
                    ("data", "train"), "says how many rows the attacker trains on; with `suspect:` nobody does"
                )
            sizes = sizes.model_copy(update={"train": 0} if choose else {"train": 0, "dev": 0})
        target, triggered = self.triggered(top.triggered)
        attack = self.part(Attack, top.attack, ("attack",)) if top.attack is not None else None
        return Recipe(
            name=top.name,
            model=self.model(top.model),
            data=data,
            sizes=sizes,
            attack=attack,
            suspect=self.suspect(top.suspect),
            triggered=triggered,
            triggered_target=target,
            training=settings,
            precision=native_precision() if top.precision == "auto" else top.precision,
            defense=defense,
            choose=choose,
            compare=self.compare(defense_keys.compare, defense, choose),
            metrics=self.metrics(top.metrics, attack),
            seed=top.seed,
            executor=self.part(Executor, top.executor, ("executor",)),
            observers=tuple(self.part(Observer, spec, ("observers", i)) for i, spec in enumerate(top.observers)),
            plugins=plugins,
            host=self.host,
            document=self.document,
        )

    # -- errors with their place ----------------------------------------------------------------------------------

    def error(self, path: Path_, text: str) -> UsageError:
        key = ".".join(map(str, path))
        return UsageError(f"{self.document.where(path)}: {key + ': ' if key else ''}{text}")

    def at(self, path: Path_, call: Callable[[], Made]) -> Made:
        """Call; what goes wrong is told with its place, unless it says a better one itself."""
        try:
            return call()
        except UsageError as error:
            if str(error).startswith(f"{self.document.path}:"):
                raise
            raise self.error(path, str(error)) from error

    def keys(self, model: type[Model], data: Any, path: Path_) -> Model:
        """Check plain data against a model, strictly, as JSON: 1 is a float, but "1" and true are not."""
        try:
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            place = tuple(part for i, part in enumerate(first["loc"]) if i == 0 or not _is_union_tag(part))
            raise self.error((*path, *place), _explain(first, model)) from error

    def exclusive(self, top: _Top) -> None:
        if (top.attack is None) == (top.suspect is None):
            raise self.error((), "expected either `attack:` (to poison a model) or `suspect:` (a folder with one)")
        if top.suspect is not None and top.training is not None:
            raise self.error(("training",), "says how the attacker trains; with `suspect:` nobody does")
        if top.attack is not None and top.triggered is not None:
            raise self.error(("triggered",), "belongs to `suspect:`; an attack makes its own triggered rows")

    # -- components ------------------------------------------------------------------------------------------------

    def part(self, kind: type[Part], spec: Spec, path: Path_, name_key: str = "name") -> Named:
        """Build a component of a kind from its name, or from a mapping with its name and parameters."""
        given = {name_key: spec} if isinstance(spec, str) else dict(spec)
        if not isinstance(given.get(name_key), str):
            raise self.error(path, f"expected a name, or a mapping with `{name_key}:` and parameters")
        name = given.pop(name_key)
        found = self.at((*path, name_key), lambda: self.host.find(kind.kind, name))
        for key in found.location & given.keys():
            if isinstance(given[key], str) and Path in (hint := found.model_fields[key].annotation, *get_args(hint)):
                given[key] = str(self.at((*path, key), partial(self.resolve, given[key])))
        return Named(name, self.keys(found, given, path))

    def model(self, spec: Spec) -> Named:
        return self.at(("model",), lambda: self._model(spec))

    def _model(self, spec: Spec) -> Named:
        given = {"name": spec} if isinstance(spec, str) else dict(spec)
        name = given.get("name")
        if isinstance(name, str) and name not in self.host.names("model"):
            if folder := self.local(name):
                given = self.instead(given, "model", {"name": "folder", "path": str(folder)})
            elif found := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name):
                own = {"revision": found[2]} if found[2] else {}
                given = self.instead(given, "model", {"name": "hub", "id": found[1], **own})
                if "revision" not in given:
                    raise self.error(("model",), f"{name!r} needs a revision: write {name}@main, or a tag or commit")
            else:
                names = self.host.names("model")
                raise self.error(
                    ("model",),
                    f"{name!r} is no model source, no folder and no hub id with a revision (owner/name@revision)."
                    f"{nearest(name, names)} (known sources: {listing(names)})",
                )
        elif name == "folder" and isinstance(given.get("path"), str):
            given["path"] = str(self.resolve(given["path"]))
        return self.part(ModelSource, given, ("model",))

    def instead(self, given: dict[str, Any], section: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """What was written as a path or hub id, as its source with parameters; one may not be written twice."""
        for key in parameters:
            if key != "name" and key in given:
                raise self.error((section, key), f"stands in `name: {given['name']}` already")
        return given | parameters

    def data(self, spec: Spec) -> tuple[Sizes, Named]:
        return self.at(("data",), lambda: self._data(spec))

    def _data(self, spec: Spec) -> tuple[Sizes, Named]:
        given = {"name": spec} if isinstance(spec, str) else dict(spec)
        own = {key: given.pop(key) for key in list(given) if key in Sizes.model_fields}
        sizes = self.keys(Sizes, own, ("data",))
        name = given.get("name")
        if isinstance(name, str) and name not in self.host.names("dataset"):
            path = self.resolve(name)
            if path.exists() or path.suffix in SUFFIXES or name.startswith((".", "/", "~", "$")):
                given = self.instead(given, "data", {"name": "file", "path": str(path)})
            elif found := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name):
                own = {"revision": found[2]} if found[2] else {}
                given = self.instead(given, "data", {"name": "hub", "id": found[1], **own})
                if "revision" not in given:
                    raise self.error(("data",), f"{name!r} needs a revision: write {name}@main, or a tag or commit")
        elif name == "file" and isinstance(given.get("path"), str):
            given["path"] = str(self.resolve(given["path"]))
        return sizes, self.part(DatasetSource, given, ("data",))

    def suspect(self, path: str | None) -> Named | None:
        if path is None:
            return None
        folder = self.at(("suspect",), lambda: self.resolve(path))
        return self.part(ModelSource, {"name": "folder", "path": str(folder)}, ("suspect",))

    def triggered(self, spec: dict[str, Any] | None) -> tuple[str | int | None, Named | None]:
        if spec is None:
            return None, None
        keys = self.keys(_Triggered, spec, ("triggered",))
        path = self.at(("triggered", "path"), lambda: self.resolve(keys.path))
        given = {**(keys.model_extra or {}), "name": "file", "path": str(path)}
        return keys.target, self.part(DatasetSource, given, ("triggered",))

    def defense(self, keys: _Defense) -> Defense:
        defense = Defense(
            estimator=None
            if keys.estimator is None
            else self.part(Estimator, keys.estimator, ("defense", "estimator")),
            scorer=self.part(Scorer, keys.scorer, ("defense", "scorer")),
            selector=self.part(Selector, keys.selector, ("defense", "selector")),
            purifier=self.purifier(keys.purifier, ("defense", "purifier")),
        )
        self.needs(defense, ("defense", "scorer"))
        return defense

    def purifier(self, specs: list[Spec], path: Path_) -> tuple[Named, ...]:
        return tuple(self.part(Purifier, spec, (*path, i)) for i, spec in enumerate(specs))

    def needs(self, defense: Defense, path: Path_) -> None:
        scorer = cast(Scorer, defense.scorer.component)
        provided = cast(Estimator, defense.estimator.component).provides if defense.estimator else frozenset()
        if missing := scorer.needs - provided:
            has = (
                f"{defense.estimator.name!r} provides {listing(sorted(provided))}"
                if defense.estimator
                else "there is none"
            )
            raise self.error(
                path,
                f"the scorer {defense.scorer.name!r} needs {listing(sorted(missing))} from an estimator; {has} "
                f"(estimators: {listing(self.host.names('estimator'))})",
            )

    def metrics(self, specs: list[Spec] | None, attack: Named | None) -> tuple[Named, ...]:
        """What was asked for, held against the attack; where nothing was, what suits it."""
        biased = attack is not None and cast(Attack, attack.component).aim() is None
        suited: list[Spec] = ["acc", "bacc" if biased else "asr"]
        found = tuple(self.part(Metric, spec, ("metrics", i)) for i, spec in enumerate(specs or suited))
        who = repr(attack.name) if attack else "a known trigger"
        for i, named in enumerate(found):
            about = cast(Metric, named.component).about
            if about == "backdoor" and biased:
                why = f"{named.name!r} counts answers with the label that an attack aims at, and {who} aims at none"
            elif about == "bias" and not biased:
                why = f"{named.name!r} is about biases, on triggered rows of every label, and {who} aims at one label"
            else:
                continue
            raise self.error(("metrics", i), f"{why} (without `metrics:` it is {listing(map(str, suited))})")
        return found

    def rule(self, spec: dict[str, Any] | None, defense: Defense) -> Named | None:
        if spec is None:
            return None
        path: Path_ = ("defense", "choose")
        named = self.part(Rule, spec, path, "rule")
        rule = cast(Rule, named.component)
        self.at((*path, "over"), lambda: defense.at(rule.over, 0.0))
        for i, value in enumerate(rule.values):
            self.at((*path, "values", i), partial(defense.at, rule.over, value))
        return named

    def compare(
        self, specs: dict[str, dict[str, Spec | list[Spec]]], defense: Defense, choose: Named | None
    ) -> dict[str, Defense]:
        kinds: dict[str, type[Component]] = {"estimator": Estimator, "scorer": Scorer, "selector": Selector}
        made = {}
        for name, parts in specs.items():
            path: Path_ = ("defense", "compare", name)
            if name in MODELS and name != "random":
                raise self.error(path, f"{name!r} is the name of a model that every run reports")
            changes: dict[str, Any] = {}
            for part, spec in parts.items():
                if part == "purifier":
                    changes[part] = self.purifier(spec if isinstance(spec, list) else [spec], (*path, part))
                elif part in kinds and not isinstance(spec, list):
                    changes[part] = self.part(kinds[part], spec, (*path, part))
                else:
                    raise self.error(
                        (*path, part),
                        f"expected estimator, scorer, selector or purifier.{nearest(part, [*kinds, 'purifier'])}",
                    )
            made[name] = replace(defense, **changes)
            self.needs(made[name], path)
            if choose:
                self.at(path, partial(made[name].at, cast(Rule, choose.component).over, 0.0))
        return made

    # -- paths -----------------------------------------------------------------------------------------------------

    def resolve(self, name: str) -> Path:
        """A path as the recipe means it: from the recipe's own folder; ``$NAME`` is an environment variable."""
        try:
            return (self.folder / Path(os.path.expandvars(name)).expanduser()).resolve()
        except (ValueError, RuntimeError, OSError) as error:  # a zero byte, an unknown ~user, a loop of links
            raise UsageError(f"{name!r} is no path ({error})") from error

    def local(self, name: str) -> Path | None:
        path = self.resolve(name)
        return path if path.exists() or name.startswith((".", "/", "~")) else None


MODELS = ("clean", "suspect", "fine-tuned", "random", "purified")


def _is_union_tag(part: str | int) -> bool:
    """Whether a part of pydantic's location is the name of a type it tried (`str`, `dict[str,any]`), not a key."""
    return isinstance(part, str) and (part in ("str", "int", "float") or "[" in part)


def _explain(error: Any, model: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        typed, known = str(error["loc"][-1]), model.model_fields
        return f"unknown key.{nearest(typed, known)} (known: {listing(known, 20)})"
    if error["type"] == "missing":
        return "this key is missing"
    text = str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0]) if error["loc"] else ""
    meaning = model.model_fields[name].description if name in model.model_fields else None
    got = json.dumps(error["input"], ensure_ascii=False, default=str)
    return f"{text[:1].lower()}{text[1:]}, got {got[:80]}" + (f" ({name}: {meaning})" if meaning else "")
