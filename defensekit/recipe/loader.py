"""From YAML to a recipe. Errors have file, line, key and the nearest match."""

from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from defensekit.components import Attack, DatasetSource, Executor, Metric, ModelSource, Observer
from defensekit.components.metric import METRIC_WORDS
from defensekit.host.discovery import load_plugins
from defensekit.host.registry import require
from defensekit.host.requirements import require_installed
from defensekit.recipe import yaml_document
from defensekit.recipe.defense_section import DefenseSection
from defensekit.recipe.keys import RetuningKeys, Sizes, Spec, Top, TriggeredKeys
from defensekit.recipe.reader import Reader
from defensekit.recipe.recipe import NamedComponent, Recipe
from defensekit.recipe.resolve import dataset_source
from defensekit.recipe.trust import Trust
from defensekit.recipe.yaml_document import Document, Path_
from defensekit.text import TaskKind
from defensekit.training import TrainingSettings, native_precision
from defensekit.utils.errors import UsageError, listing
from defensekit.utils.files import file_there


def load_recipe(
    path: str | Path,
    settings: str | Sequence[str | Document] = (),
    *,
    announce: Callable[[str], None] = lambda text: None,
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        settings: such as ``training.epochs=3``, laid over the file.
        announce: takes a line about every local plugin file, before it is loaded.

    Returns:
        The recipe, with every default filled in and every component built.

    Raises:
        UsageError: the file can't be read, or a key is wrong. The message has file, line and key, what was expected and
            the nearest match.
    """
    document = yaml_document.load(Path(path), [settings] if isinstance(settings, str) else settings, KEPT)
    return recipe_of(document, {}, announce=announce)


def recipe_of(
    document: Document,
    known: dict[Hashable, Any],
    trust: Trust | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Recipe:
    """Check a document, and build its recipe.

    Args:
        document: the recipe as plain data.
        known: plugins and components that are built already; recipes of a study share them.
        trust: for a stranger's recipe, what it may name outside itself; None for no bounds.
        announce: as for `load_recipe`.

    Raises:
        UsageError: as `load_recipe`.
    """
    document.check_mapping(Top.model_fields)
    reader = _RecipeReader(document, known, trust)
    recipe = reader.recipe(announce)
    if trust:
        trust.check()
    return recipe


# The keys under `data` that are no parameters of the source.
KEPT: dict[Path_, Collection[str]] = {("data",): Sizes.model_fields.keys()}


class _RecipeReader(Reader):
    """Reads the keys of a recipe; those under `defense` are read by `DefenseSection`."""

    def recipe(self, announce: Callable[[str], None]) -> Recipe:
        """The recipe."""
        top = self.keys(Top, self.document.data, ())
        for i, requirement in enumerate(top.requires):
            self.at(("requires", i), partial(require_installed, requirement))
        plugins = tuple(self.resolve(name, ("plugins", i)) for i, name in enumerate(top.plugins))
        if plugins not in self.known:
            for i, file in enumerate(plugins):
                if self.trust:
                    self.trust.plugin(file)
                self.at(("plugins", i), partial(file_there, top.plugins[i], file, ".py"))
                announce(f"loading the plugin file {file}, which is code and runs with your rights")
            self.known[plugins] = self.at(("plugins",), lambda: load_plugins(plugins))
        self.host = self.known[plugins]
        self.at(("plugins",), lambda: require(self.host, [path.name for path in plugins]))
        self.exclusive(top)
        settings = self.keys(TrainingSettings, top.training or {}, ("training",))
        section = DefenseSection(self, top.defense)
        retuning = self.retuning(top, section)
        sizes, data = self.data(top.data)
        if top.suspect is not None:
            # There is no training: every row is the defender's, and dev rows are for what asks for them.
            if sizes.train is not None:
                raise self.error(
                    ("data", "train"),
                    "is the number of rows that the attacker trains on; with `suspect:` there is no training",
                )
            keeps_dev = section.choose or section.detectors or section.refit
            sizes = sizes.model_copy(update={"train": 0} if keeps_dev else {"train": 0, "dev": 0})
            if section.defense.filter:
                raise self.error(("defense", "stage"), "a defense of training data needs `attack:`, which has the rows")
        rule = section.choose.component if section.choose else None
        if rule and rule.folds and rule.folds > sizes.clean + sizes.dev:
            got = f"{rule.folds} folds of {sizes.clean + sizes.dev} clean rows"
            raise self.error(("defense", "choose", "folds"), f"expected a row at least for each, got {got}")
        task = type(data.component).task
        target, triggered = self.triggered(top.triggered, task)
        attack = self.part(Attack, top.attack, ("attack",)) if top.attack is not None else None
        recipe = Recipe(
            name=top.name,
            model=self.model(top.model, ("model",)),
            data=data,
            sizes=sizes,
            attack=attack,
            suspect=self.suspect(top.suspect),
            triggered=triggered,
            triggered_target=target,
            training=settings,
            retuning=retuning,
            precision=native_precision() if top.precision == "auto" else top.precision,
            defense=section.defense,
            choose=section.choose,
            refit=section.refit,
            compare=section.compare,
            detectors=section.detectors,
            metrics=self.metrics(top.metrics, attack, task),
            baselines=top.baselines,
            seed=top.seed,
            executor=self.part(Executor, top.executor, ("executor",)),
            observers=tuple(self.part(Observer, spec, ("observers", i)) for i, spec in enumerate(top.observers)),
            plugins=plugins,
            requires=tuple(top.requires),
            host=self.host,
            document=self.document,
        )
        self.suited(recipe)
        return recipe

    def suited(self, recipe: Recipe) -> None:
        """Refuse parts that do not work for the task of the data."""
        for key, reason in recipe.unsuited(recipe.task):
            raise self.error(key, reason)

    def exclusive(self, top: Top) -> None:
        """Refuse keys that exclude each other."""
        if (top.attack is None) == (top.suspect is None):
            file, _, _ = self.document.location(()).rpartition(":")
            keys: list[Path_] = [key for key in (("attack",), ("suspect",)) if key in self.document.places]
            # Where a file extends another, the one that took a key back, or added the other.
            changed = (key for key in keys if self.document.location(key).rpartition(":")[0] != file)
            wanted = "expected either `attack:` (to poison a model) or `suspect:` (a folder with one)"
            raise self.error(next(changed, ()), wanted)
        if top.suspect is not None and top.training is not None:
            raise self.error(("training",), "is how the attacker trains; with `suspect:` there is no training")
        if top.attack is not None and top.triggered is not None:
            raise self.error(("triggered",), "belongs to `suspect:`; an attack makes its own triggered rows")

    def retuning(self, top: Top, section: DefenseSection) -> RetuningKeys | None:
        """The attacker's further training, if there is any."""
        if top.retuning is None:
            return None
        if top.attack is None:
            raise self.error(("retuning",), "is training on poisoned rows, which `attack:` makes")
        if section.defense.sanitizer:
            raise self.error(("retuning",), "trains what a defense made, and a defense of inputs makes no model")
        return self.keys(RetuningKeys, top.retuning, ("retuning",))

    def data(self, spec: Spec) -> tuple[Sizes, NamedComponent[DatasetSource]]:
        """The sizes under `data`, and the source."""
        given = {"name": spec} if isinstance(spec, str) else dict(spec)
        own = {key: given.pop(key) for key in list(given) if key in Sizes.model_fields}
        sizes = self.keys(Sizes, own, ("data",))
        source = self.at(("data",), lambda: dataset_source(given, self.host, self.resolver(("data",))))
        return sizes, self.part(DatasetSource, source, ("data",), beside=Sizes.model_fields)

    def suspect(self, path: str | None) -> NamedComponent[ModelSource] | None:
        """The folder with the suspect, if there is one."""
        if path is None:
            return None
        return self.part(ModelSource, {"name": "folder", "path": path}, ("suspect",))

    def triggered(
        self, spec: dict[str, Any] | None, task: TaskKind
    ) -> tuple[str | int | None, NamedComponent[DatasetSource] | None]:
        """The target and the triggered rows, if they are given."""
        if spec is None:
            return None, None
        keys = self.keys(TriggeredKeys, spec, ("triggered",))
        given = {
            **(keys.model_extra or {}),
            "name": "instructions" if task == "generation" else "file",
            "path": keys.path,
        }
        return keys.target, self.part(DatasetSource, given, ("triggered",), beside=("target",))

    def metrics(
        self, specs: list[Spec] | None, attack: NamedComponent[Attack] | None, task: TaskKind
    ) -> tuple[NamedComponent[Metric], ...]:
        """The requested metrics, checked against the attack; the ones that suit it by default."""
        by_row = attack is not None and attack.component.aims_by_row
        biased = attack is not None and attack.component.aim() is None and not by_row
        about_it = "bias" if biased else "backdoor"
        by_default = self.metrics_by_default(about_it, task, by_row)
        named_or_suited = specs or by_default
        metrics = tuple(self.part(Metric, spec, ("metrics", i)) for i, spec in enumerate(named_or_suited))
        who = repr(attack.name) if attack else "a known trigger"
        for i, named in enumerate(metrics):
            if named.name in [before.name for before in metrics[:i]]:
                does = f"{named.name!r} stands there twice; its results would have one name"
                raise self.error(("metrics", i), does)
            for word, (says, known) in METRIC_WORDS.items():
                if (said := getattr(named.component, word, None)) not in known:
                    does = f"{named.name!r} of {self.host.plugin_of('metric', named.name)} has to say {says}"
                    raise self.error(("metrics", i), f"{does}, one of {listing(map(str, known))}, got {said!r}")
            about = named.component.about
            if about == "backdoor" and biased:
                why = f"{named.name!r} counts answers with the target label of an attack, and {who} has none"
            elif about == "bias" and not biased:
                why = (
                    f"{named.name!r} measures biases, on triggered rows of every label, and {who} has one target label"
                )
            elif by_row and _counts_one_target(named.component):
                why = f"{named.name!r} counts answers with one target on plain rows, and every row of {who} has its own"
            else:
                continue
            suited = listing(map(str, by_default))
            raise self.error(("metrics", i), f"{why} (without `metrics:` it is {suited})")
        return metrics

    def metrics_by_default(self, about: str, task: TaskKind, by_row: bool) -> list[Spec]:
        """The metrics of a recipe that names none."""
        suited: list[Spec] = []
        for name in self.host.names("metric"):
            with suppress(UsageError):  # one that can't be loaded is an error of the recipe that names it, and no other
                metric = cast(type[Metric], self.host.find("metric", name))
                wanted = metric.by_default and metric.about in (None, about) and task in metric.tasks
                suited += [name] if wanted and not (by_row and _counts_one_target(metric)) else []
        return suited


def _counts_one_target(metric: Metric | type[Metric]) -> bool:
    """Whether it says something of a backdoor on rows without a trigger, of which no row has a target of its own."""
    return metric.about == "backdoor" and metric.on == "plain"
