"""A run: the graph of its stages, from a recipe to a result."""

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from defensekit import yaml
from defensekit.checkpoint import Checkpoint
from defensekit.components import (
    Attack,
    DatasetSource,
    Executor,
    Measured,
    Metric,
    ModelSource,
    Observer,
    Predictions,
    Rule,
    Selector,
    Trial,
    WeightStep,
)
from defensekit.errors import DefenseKitError, UsageError
from defensekit.files import data_digest, file_digests, write_whole
from defensekit.pair import Pair
from defensekit.recipe import Defense, Named, Recipe, load_recipe
from defensekit.results import Chosen, ModelResult, Reset, Result, TrialResult
from defensekit.stages import LOGITS, derive_seed
from defensekit.store import MANIFEST, Artifact, Damaged, Store, key_of
from defensekit.text import ROLES, label_number
from defensekit.training import device_type

log = logging.getLogger("defensekit")

DISTRIBUTIONS = ("defensekit", "torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate")


@dataclass(frozen=True)
class Stage:
    """A planned stage: plain data, and the stages that its inputs come from."""

    plain: dict[str, Any]
    inputs: tuple["Stage", ...]

    @cached_property
    def key(self) -> str:
        """What the artifact will be known by."""
        return key_of(self.plain)


@dataclass(frozen=True)
class External:
    """A model outside the store: where it lies, and the digest of its contents."""

    path: Path
    digest: str


@dataclass
class Runner:
    """Makes stages: reuses what the store has, computes what it has not."""

    store: Store
    executor: Executor
    observers: Sequence[Observer]
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tell(self, event: str, *values: Any) -> None:
        """Tell every observer."""
        for observer in self.observers:
            getattr(observer, event)(*values)

    def make(self, stage: Stage) -> Artifact:
        """The artifact of a stage; its inputs are made first, unless it is there already."""
        title = stage.plain["title"]
        artifact = self._there(stage)
        reused = artifact is not None
        if artifact is None:
            for needed in stage.inputs:
                self.make(needed)
            self.tell("stage_started", title)
            log.info("%s: computing %s", title, stage.key)
            self.executor.execute(
                stage.plain, self.store.root, lambda done, total: self.tell("progress", title, done, total)
            )
            artifact = self.store.open(stage.key)
        if stage.key not in self.made:
            self.made[stage.key] = {
                "title": title,
                "kind": stage.plain["kind"],
                "key": stage.key,
                "seconds": artifact.seconds,
                "reused": reused,
            }
            self.tell("stage_finished", title, artifact.seconds, reused)
        return artifact

    def _there(self, stage: Stage) -> Artifact | None:
        if not self.store.has(stage.key):
            return None
        try:
            return self.store.open(stage.key)
        except Damaged as error:
            self.tell("message", f"{error}; it is made again")
            self.store.remove(stage.key)
            return None


class Plan:
    """Every stage of a run, by name; a stage is planned once, whoever asks for it."""

    def __init__(
        self, recipe: Recipe, base: External, suspect: External | None, contents: str, labels: list[str] | None
    ):
        self.recipe = recipe
        self.base = base
        self.given_suspect = suspect
        self.contents = contents
        self.given_labels = labels
        self.labels: list[str] = labels or []

    def _stage(
        self,
        kind: str,
        title: str,
        inputs: dict[str, "Stage | External"],
        params: dict[str, Any],
        components: dict[str, Named] | None = None,
        seed: int = 0,
    ) -> Stage:
        import torch

        plain: dict[str, Any] = {
            "kind": kind,
            "title": title,
            "params": params,
            "components": {role: named.plain() for role, named in (components or {}).items()},
            "inputs": {
                name: given.key if isinstance(given, Stage) else {"path": str(given.path), "digest": given.digest}
                for name, given in inputs.items()
            },
            "seed": seed,
            "plugin_files": [str(path) for path in self.recipe.plugins],
        }
        if kind in ("train", "statistics", "purify", "predict"):
            plain["machine"] = {"device": device_type(), "threads": torch.get_num_threads()}
        return Stage(plain, tuple(given for given in inputs.values() if isinstance(given, Stage)))

    def _seed(self, *purpose: str) -> int:
        return derive_seed(self.recipe.seed, *purpose)

    @property
    def _cut(self) -> dict[str, Any]:
        return {"max_length": self.recipe.sizes.max_length}

    @property
    def _numeric(self) -> dict[str, Any]:
        return {**self._cut, "precision": self.recipe.precision}

    # -- data ------------------------------------------------------------------------------------------------------

    def rows(self, role: str) -> Stage:
        sizes = {name: getattr(self.recipe.sizes, name) for name in ROLES}
        params = {"role": role, "sizes": sizes, "contents": self.contents, "labels": self.given_labels}
        return self._stage("data", f"{role} rows", {}, params, {"source": self.recipe.data}, self._seed("data"))

    def poisoned(self) -> Stage:
        inputs: dict[str, Stage | External] = {"model": self.base, "rows": self.rows("train")}
        attack = {"attack": cast(Named, self.recipe.attack)}
        return self._stage("poison", "poisoned rows", inputs, self._cut, attack, self._seed("attacker", "poison"))

    def triggered(self) -> Stage | None:
        if self.recipe.attack:
            inputs: dict[str, Stage | External] = {"model": self.base, "rows": self.rows("test")}
            attack = {"attack": self.recipe.attack}
            return self._stage(
                "trigger", "triggered rows", inputs, self._cut, attack, self._seed("attacker", "trigger")
            )
        if self.recipe.triggered:
            source = self.recipe.triggered
            contents = cast(DatasetSource, source.component).contents(lambda text: None)
            params = {"contents": contents, "labels": self.labels, "target": self.recipe.triggered_target}
            return self._stage("given", "triggered rows", {}, params, {"source": source})
        return None

    # -- models ----------------------------------------------------------------------------------------------------

    def _trained(self, title: str, rows: Stage) -> Stage:
        params = {**self._numeric, "training": self.recipe.training.model_dump()}
        inputs: dict[str, Stage | External] = {"model": self.base, "rows": rows}
        return self._stage("train", title, inputs, params, seed=self._seed("attacker", "training"))

    def clean(self) -> Stage:
        return self._trained("clean reference", self.rows("train"))

    def suspect(self) -> "Stage | External":
        return self.given_suspect or self._trained("suspect", self.poisoned())

    def statistics(self, defense: Defense) -> Stage | None:
        if defense.estimator is None:
            return None
        inputs = {"base": self.base, "suspect": self.suspect(), "clean": self.rows("clean")}
        estimator = {"estimator": defense.estimator}
        title = f"statistics ({defense.estimator.name})"
        return self._stage("statistics", title, inputs, self._cut, estimator, self._seed("defender", "statistics"))

    def purified(self, title: str, defense: Defense) -> Stage:
        inputs: dict[str, Stage | External] = {
            "base": self.base,
            "suspect": self.suspect(),
            "clean": self.rows("clean"),
        }
        components: dict[str, Named] = {}
        steps = defense.purifier
        if cast(Selector, defense.selector.component).takes_nothing():
            # Nothing selected is the same model whatever the scorer: fine-tuning alone.
            steps = tuple(step for step in steps if not isinstance(step.component, WeightStep))
        else:
            components = {"scorer": defense.scorer, "selector": defense.selector}
            statistics = self.statistics(defense)
            if statistics is not None and cast(Any, defense.scorer.component).needs:
                inputs["statistics"] = statistics
        components |= {f"step-{i:03}": step for i, step in enumerate(steps)}
        return self._stage("purify", title, inputs, self._numeric, components, self._seed("defender", "purify"))

    def predictions(self, title: str, model: "Stage | External", rows: Stage) -> Stage:
        return self._stage("predict", title, {"model": model, "rows": rows}, self._numeric)


class Run:
    """One run of a recipe in a workspace."""

    def __init__(self, recipe: Recipe, workspace: Path, observers: Sequence[Observer]) -> None:
        self.recipe = recipe
        observers = [*observers, *(cast(Observer, named.component) for named in recipe.observers)]
        self.runner = Runner(Store(workspace / "store"), cast(Executor, recipe.executor.component), observers)
        resolved = recipe.resolved()
        self.folder = workspace / "runs" / f"{recipe.name}-{data_digest(resolved)[:8]}"
        self.warnings: list[str] = [str(problem) for problem in recipe.host.problems]
        self.started = time.perf_counter()

    def result(self) -> Result:
        """Run every stage that is not there yet, and write the run's folder."""
        recipe, runner = self.recipe, self.runner
        runner.store.sweep()
        for warning in self.warnings:
            runner.tell("message", f"warning: {warning}")
        plan = self._plan()
        roles = [role for role in ROLES if recipe.attack or role != "train"]
        facts = {role: self._at(("data",), lambda role=role: runner.make(plan.rows(role))).facts for role in roles}
        self._note(facts["test"]["notes"])
        plan.labels = facts["test"]["labels"]
        test, triggered = plan.rows("test"), plan.triggered()
        aim = cast(Attack, recipe.attack.component).aim() if recipe.attack else recipe.triggered_target
        attack_key = "attack" if recipe.attack else "triggered"
        target = None
        if aim is not None:
            target = self._at((attack_key, "target"), lambda: label_number(aim, plan.labels))

        attack: dict[str, Any] | None = None
        if triggered is not None:
            made = self._at((attack_key,), lambda: runner.make(triggered))
            attack = {"target": target, "test": _without_labels(made.facts)}
        if recipe.attack and attack is not None:
            made = self._at((attack_key,), lambda: runner.make(plan.poisoned()))
            attack = {"name": recipe.attack.name, **attack, "train": _without_labels(made.facts)}
            self._warn_if_cut(attack)

        def measure(title: str, model: Stage | External) -> ModelResult:
            found, about = {}, None
            for named in recipe.metrics:
                metric = cast(Metric, named.component)
                rows = test if metric.on == "plain" else triggered
                if rows is not None:
                    artifact = runner.make(plan.predictions(f"{title}: answers to {metric.on} rows", model, rows))
                    found[named.name] = metric.measure(_predictions(artifact, target))
                    about = artifact.facts["model"]
            return _model(about, found)

        def accuracy(title: str, model: Stage | External, value: float) -> Trial:
            found = runner.make(plan.predictions(f"{title}: answers to dev rows", model, plan.rows("dev")))
            predictions = _predictions(found, None)
            correct = float((predictions.answers() == predictions.labels).mean())
            return Trial(value, correct, len(predictions.labels))

        models: dict[str, ModelResult] = {}
        if recipe.attack:
            models["clean"] = measure("clean reference", plan.clean())
        models["suspect"] = measure("suspect", plan.suspect())
        if recipe.suspect:
            self._describe_pair(plan)

        defense, chosen, curve = recipe.defense, None, []
        if recipe.choose:
            rule = cast(Rule, recipe.choose.component)
            suspect_trial = accuracy("suspect", plan.suspect(), 0.0)
            trials: list[Trial] = []
            while (value := rule.propose(trials)) is not None:
                title = f"trial {rule.over.rpartition('.')[2]} {value:g}"
                stage = plan.purified(title, recipe.defense.at(rule.over, value))
                trials.append(accuracy(title, stage, value))
                metrics = measure(title, stage).metrics
                curve.append(TrialResult(value=value, dev_accuracy=trials[-1].accuracy, metrics=metrics))
            choice = rule.choose(trials, suspect_trial)
            if choice.warning:
                self._warn(choice.warning)
            defense = recipe.defense.at(rule.over, choice.value)
            chosen = Chosen(
                rule=recipe.choose.name,
                over=rule.over,
                value=choice.value,
                reason=choice.reason,
                suspect_dev_accuracy=suspect_trial.accuracy,
            )

        tuning = tuple(step for step in defense.purifier if not isinstance(step.component, WeightStep))
        variants: dict[str, Stage] = {}
        if tuning:
            variants["fine-tuned"] = plan.purified("fine-tuned only", _selecting_nothing(defense))
        for name, other in recipe.compare.items():
            at_value = other.at(chosen.over, chosen.value) if chosen else other
            variants[name] = plan.purified(name, at_value)
        purified = plan.purified("purified", defense)
        variants["purified"] = purified
        for name, stage in variants.items():
            models[name] = measure(name, stage)

        floor = models["clean"].metrics.get("asr") if "clean" in models else None
        result = Result(
            name=recipe.name,
            summary={
                name: {**{key: measured.value for key, measured in model.metrics.items()}, "seconds": model.seconds}
                for name, model in models.items()
            },
            models=models,
            asr_floor=floor.value if floor else None,
            clean_budget=recipe.sizes.clean + (recipe.sizes.dev if recipe.choose else 0),
            chosen=chosen,
            curve=curve,
            attack=attack,
            data={"labels": plan.labels, "rows": {role: found["rows"] for role, found in facts.items()}},
            statistics=models["purified"].statistics,
            warnings=self.warnings,
            recipe=recipe.resolved(),
            stages=list(runner.made.values()),
            environment=_environment(recipe),
            seconds=round(time.perf_counter() - self.started, 2),
            folder=str(self.folder),
        )
        self._write(result, purified)
        numbers = (
            f"{name} " + " ".join(f"{k} {v:.3f}" for k, v in row.items() if v) for name, row in result.summary.items()
        )
        log.info("done: %s", "; ".join(numbers))
        return result

    # -- parts of it -----------------------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        """Look at everything outside the store once: models, data, their contents."""
        recipe, runner = self.recipe, self.runner
        base = self._external(recipe.model, "model")
        suspect, labels = None, None
        if recipe.suspect:
            suspect = self._external(recipe.suspect, "suspect")
            labels = _labels_of(Checkpoint(suspect.path))
            Pair(Checkpoint(base.path), Checkpoint(suspect.path)).scope  # noqa: B018 - refuses a misfit before any work
        source = cast(DatasetSource, recipe.data.component)
        contents = self._at(("data",), lambda: source.contents(lambda text: runner.tell("message", text)))
        return Plan(recipe, base, suspect, contents, labels)

    def _external(self, named: Named, key: str) -> External:
        source = cast(ModelSource, named.component)

        def look() -> External:
            folder = source.folder()
            checkpoint = Checkpoint(folder)
            digest = checkpoint.digest()
            checkpoint.check_finite()
            return External(folder.resolve(), digest)

        found: External = self._at((key,), look)
        return found

    def _at(self, path: tuple[str, ...], call: Any) -> Any:
        """Call; a user's mistake is told with the place in the recipe."""
        try:
            return call()
        except UsageError as error:
            raise UsageError(f"{self.recipe.where(*path)}: {error}") from error

    def _note(self, notes: Sequence[str]) -> None:
        for note in notes:
            self.runner.tell("message", note)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.runner.tell("message", f"warning: {text}")

    def _warn_if_cut(self, attack: dict[str, Any]) -> None:
        for which in ("train", "test"):
            if attack[which]["cut"]:
                counts = f"{attack[which]['cut']} of {attack[which]['changed']}"
                self._warn(f"truncation cuts into the trigger of {counts} {which} rows; data.max_length is too small")

    def _describe_pair(self, plan: Plan) -> None:
        pair = Pair(Checkpoint(plan.base.path), Checkpoint(cast(External, plan.suspect()).path))
        self._note([f"head, kept from the suspect: {', '.join(pair.head) or 'none'}"])

    def _write(self, result: Result, purified: Stage) -> None:
        """The run's folder: resolved recipe, the purified model, and last the result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "recipe.yaml", yaml.dump(result.recipe).encode())
        folder = self.folder / "purified"
        if not _is_whole(folder, purified.key):
            part = self.folder / f".purified.{os.getpid()}.part"
            try:
                shutil.copytree(self.runner.make(purified).files, part)
                manifest = {"stage": purified.key, "files": file_digests(part)}
                write_whole(part / MANIFEST, json.dumps(manifest, indent=1).encode())
                shutil.rmtree(folder, ignore_errors=True)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        write_whole(self.folder / "result.json", result.model_dump_json(indent=1).encode())


def _is_whole(folder: Path, key: str) -> bool:
    """Whether a purified model's folder is there, of that stage, and as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = file_digests(folder)
        found.pop(MANIFEST)
        return bool(manifest == {"stage": key, "files": found})
    except (OSError, ValueError):
        return False


def _model(about: dict[str, Any] | None, metrics: dict[str, Measured]) -> ModelResult:
    """A model's metrics with what its predictions remember of it."""
    if about is None:
        return ModelResult(metrics=metrics, seconds=None)
    facts, seconds = about["facts"], about["seconds"]
    statistics = facts.get("statistics")
    if statistics:
        seconds += statistics["seconds"]
        estimator = statistics["components"]["estimator"]["name"]
        statistics = {"estimator": estimator, "seconds": statistics["seconds"], **statistics["facts"]}
    parts = {role: {"name": c["name"], **c["parameters"]} for role, c in about["components"].items()}
    reset = Reset(**{key: facts[key] for key in Reset.model_fields}) if "selected" in facts else None
    return ModelResult(
        metrics=metrics, seconds=round(seconds, 2), reset=reset, defense=parts or None, statistics=statistics
    )


def _selecting_nothing(defense: Defense) -> Defense:
    """The defense without its weight steps: what the model steps do alone."""
    steps = tuple(step for step in defense.purifier if not isinstance(step.component, WeightStep))
    return replace(defense, purifier=steps, selector=Named("nothing", _Nothing()))


class _Nothing(Selector):
    """Selects nothing; stands for the absence of a selector and never reaches a stage."""

    def takes_nothing(self) -> bool:
        return True

    def select(self, scores: Any) -> Any:
        raise AssertionError("nothing is selected without scores")


def _without_labels(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in ("labels", "target")}


def _labels_of(suspect: Checkpoint) -> list[str] | None:
    """The label names in a suspect's config; None where it has only numbers for them."""
    found = suspect.config.get("id2label")
    if not isinstance(found, dict) or not found:
        return None
    names = [str(found[key]) for key in sorted(found, key=int)]
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _predictions(artifact: Artifact, target: int | None) -> Predictions:
    from safetensors.numpy import load_file

    tensors = load_file(artifact.files / LOGITS)
    return Predictions(tensors["logits"], tensors["labels"], target)


def _environment(recipe: Recipe) -> dict[str, Any]:
    import torch

    parts = [recipe.model, recipe.data, recipe.defense.scorer, recipe.defense.selector, *recipe.defense.purifier]
    parts += [part for part in (recipe.attack, recipe.defense.estimator, recipe.choose) if part is not None]
    plugins = {str(recipe.host.plugin_of(part.component.kind, part.name)) for part in parts}
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in DISTRIBUTIONS},
        "plugins": sorted(plugins),
        "device": device_type(),
        "device_name": torch.cuda.get_device_name() if device_type() == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Everything that is logged during a run goes into its ``run.log``."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except BaseException:
        log.exception("the run stopped")
        raise
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


class _Log(Observer):
    """Writes what happens into the log."""

    def message(self, text: str) -> None:
        log.info("%s", text)

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        log.info("%s: %s", title, "reused" if reused else f"{seconds:.1f} s")


def run(recipe: str | Path | Recipe, workspace: str | Path = "workspace", observers: Sequence[Observer] = ()) -> Result:
    """Run a recipe: every stage that the workspace does not hold yet, then the result and the purified model.

    Args:
        recipe: a YAML file, or what `load_recipe` made of one.
        workspace: the folder of the store and of the runs' folders.
        observers: who watches.

    Raises:
        UsageError: the recipe, the data or a model is not what was expected; nothing was computed.
        DefenseKitError: a stage failed; what was finished before is kept and reused.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    place = Path(workspace)
    try:
        made = Run(loaded, place, [_Log(), *observers])
        with _logged(made.folder):
            return made.result()
    except OSError as error:
        raise DefenseKitError(f"{error.strerror or error}: {error.filename or place}") from error
