"""What each stage of a run does. A stage is plain data; `compute` turns it into an artifact, on any machine.

The defender's stages (``statistics``, ``purify``, ``fit``, ...) get base, suspect and clean rows and nothing else; a
filter of training rows gets these as well, and not which of them are poisoned. This guards against mistakes, not
against malice: a plugin is code, and code can open any file.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, cast

from defensekit import training
from defensekit.chat import count_cut
from defensekit.components import (
    Attack,
    AttackContext,
    AttackTrainingContext,
    Component,
    DatasetSource,
    Detector,
    DetectorContext,
    Estimator,
    Filter,
    Purifier,
    RowFeatures,
    Sanitizer,
    SanitizerContext,
    Scorer,
    Selector,
    call_component,
    component_error,
)
from defensekit.defense import detecting, estimation, filtering, purification, sanitizing
from defensekit.defense.estimation import Report
from defensekit.defense.scoring import score_pair
from defensekit.defense.selection import select, summary
from defensekit.defense.triggers import planting, search
from defensekit.host.discovery import cached_plugins
from defensekit.host.parameters import build
from defensekit.host.registry import source_digest
from defensekit.models import checkpoint, loading
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.config import relabelled
from defensekit.models.devices import placed
from defensekit.models.pair import Pair
from defensekit.models.writer import write_streamed
from defensekit.pipeline.predictions import read_predictions
from defensekit.pipeline.store import ArtifactWriter, Store
from defensekit.pipeline.tasks import Question, task_of
from defensekit.text import ROWS, Row, Truncation, answer_of, changed, read_rows, split, write_rows
from defensekit.utils.errors import DefenseKitError, KeyedError, UsageError, lacks_memory, listing, out_of_memory
from defensekit.utils.files import file_digest
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


C = TypeVar("C", bound=Component)


@dataclass(frozen=True)
class StageContext:
    """A stage to compute: its plain data, and the store that has its inputs."""

    stage: dict[str, Any]
    store: Store
    report: Report

    def component(self, kind: type[C], role: str) -> C:
        """The component in a role, built from its plain data.

        Raises:
            DefenseKitError: this machine does not have its plugin, or has another version than the run began with.
        """
        spec = self.stage["components"][role]
        what, plugin = f"the {kind.kind} {spec['name']!r}", f"{spec['plugin']} on {platform.node()}"
        files = [Path(file) for file in self.stage["plugin_files"]]
        if missing := [file for file in files if not file.is_file()]:
            raise DefenseKitError(f"there is no file {missing[0]} on {platform.node()}; put it where every node has it")
        host = cached_plugins(files)
        try:
            component = host.find(kind, spec["name"])
        except UsageError as error:
            raise DefenseKitError(f"{what} needs {plugin}; install it there ({error})") from error
        if source_digest(component) != spec["source"]:
            raise DefenseKitError(
                f"{what}: the source of {plugin} is not what the run began with "
                f"({host.plugin_of(kind.kind, spec['name'])} is there now); "
                "if it was edited, start the run again, if it is another version, install the same everywhere"
            )
        try:
            return build(component, spec["location"] | spec["parameters"])
        except KeyedError as error:
            raise error.below(kind.kind, spec["name"]) from error

    def folder(self, name: str) -> Path:
        """The folder of an input: an artifact's files, or a model outside the store."""
        value = self.stage["inputs"][name]
        return Path(value["path"]) if isinstance(value, dict) else self.store.open(value).files

    def facts(self, name: str) -> dict[str, Any]:
        """The facts about an input that is an artifact."""
        return self.store.open(self.stage["inputs"][name]).facts

    def about(self, name: str) -> dict[str, Any] | None:
        """Facts, costs and components of an input; None if it is outside the store."""
        if isinstance(self.stage["inputs"][name], dict):
            return None
        artifact = self.store.open(self.stage["inputs"][name])
        return {
            "facts": artifact.facts,
            "seconds": artifact.seconds,
            "peak_memory": artifact.peak_memory,
            "components": artifact.stage["components"],
        }

    def rows(self, name: str) -> list[Row]:
        """The rows of an input."""
        return read_rows(self.folder(name) / ROWS)

    def seed(self, *purpose: str) -> int:
        """A seed for a purpose within the stage."""
        return derive_seed(self.stage["seed"], *purpose)

    @property
    def max_length(self) -> int:
        """Tokens per row."""
        return int(self.stage["params"]["max_length"])

    @property
    def precision(self) -> training.Precision:
        """float32, or bfloat16 autocast."""
        return cast(training.Precision, self.stage["params"]["precision"])

    @cached_property
    def pair(self) -> Pair:
        """The inputs ``base`` and ``suspect``, aligned."""
        return Pair(Checkpoint(self.folder("base")), Checkpoint(self.folder("suspect")))


def compute(stage: dict[str, Any], store: Path, report: Report = lambda done, total: None) -> None:
    """Compute a stage whose inputs are in the store, into the store.

    Raises:
        DefenseKitError: the stage failed; names the plugin if one caused it.
    """
    opened = Store(store)
    try:
        # A plugin that uses a global random state affects its own stage alone.
        with opened.create(stage) as draft, training.forked_random(derive_seed(stage["seed"], "global")):
            STAGES[stage["kind"]](StageContext(stage, opened, report), draft)
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise DefenseKitError(f"{stage['title']}: {out_of_memory(error)}") from error


# -- data ----------------------------------------------------------------------------------------------------------


def data(work: StageContext, draft: ArtifactWriter) -> None:
    """The rows of one role, or of several."""
    params = work.stage["params"]
    source = work.component(DatasetSource, "source")
    dataset = call_component(source, source.load)
    if params["labels"] is not None:
        dataset = relabelled(dataset, params["labels"])
    parts = split(dataset, params["sizes"], work.stage["seed"], params["balance"])
    rows = [row for role in params["roles"] for row in parts[role]]
    write_rows(draft.files / ROWS, rows)
    draft.facts.update(labels=list(dataset.labels), rows=len(rows), notes=dataset.notes)


def fold(work: StageContext, draft: ArtifactWriter) -> None:
    """The rows of a fold, or all others; every label is spread over all folds."""
    params, rows = work.stage["params"], work.rows("rows")
    order = sorted(range(len(rows)), key=lambda i: rows[i].label)
    own = {*order[params["fold"] :: params["folds"]]}
    some = [row for i, row in enumerate(rows) if (i in own) == params["held"]]
    write_rows(draft.files / ROWS, some)
    draft.facts.update(labels=work.facts("rows")["labels"], rows=len(some))


def _attack(work: StageContext) -> tuple[Attack, AttackContext, list[Row]]:
    truncation = Truncation(loading.load_tokenizer(work.folder("model")), work.max_length)
    attack = work.component(Attack, "attack")
    context = AttackContext(Random(work.stage["seed"]), tuple(work.facts("rows")["labels"]), truncation)
    return attack, context, work.rows("rows")


def _count_changes(
    attack: Attack, before: Sequence[Row], after: Sequence[Row], truncation: Truncation
) -> dict[str, int]:
    """How many rows carry the attack, how many of them were relabelled or added, and on how many truncation cuts in."""
    original = {row.id: row for row in before}
    rows, added = len(after), sum(row.id < 0 for row in after)
    after = [row for row in after if row.id >= 0]
    if unknown := [row.id for row in after if row.id not in original]:
        raise component_error(attack, f"gave rows with ids that it was not given: {listing(map(str, unknown), 3)}")
    touched = [row for row in after if (row.text, row.pair) != (original[row.id].text, original[row.id].pair)]
    cut = 0
    for row, kept in zip(touched, truncation.kept(touched), strict=True):
        if kept != (len(row.text), len(row.pair or "")):
            ends = changed(original[row.id], row)
            cut += any(end > limit and start < end for (start, end), limit in zip(ends, kept, strict=True))
    relabelled = sum(row.answer != original[row.id].answer for row in after)
    unread = _read_alike([original[row.id] for row in touched], touched, truncation.tokenizer)
    counts = {"rows": rows, "changed": len(touched), "relabelled": relabelled, "added": added}
    return counts | {"cut": cut, "unread": unread}


def _read_alike(before: Sequence[Row], after: Sequence[Row], tokenizer: "PreTrainedTokenizerBase") -> int:
    """On how many rows a tokenizer strips all that an attack changed: the model reads the rows as they were."""
    if not after:
        return 0

    def read(rows: Sequence[Row]) -> list[Any]:
        texts = [row.text for row in rows], [row.pair or "" for row in rows]
        return list(zip(*(tokenizer(list(column), verbose=False)["input_ids"] for column in texts), strict=True))

    return sum(one == other for one, other in zip(read(before), read(after), strict=True))


def _digest(draft: ArtifactWriter) -> str:
    """The digest of the written rows: it shows that the same seed gave the same bytes."""
    return file_digest(draft.files / ROWS)


def poison(work: StageContext, draft: ArtifactWriter) -> None:
    """The attacker's training rows."""
    attack, context, rows = _attack(work)
    poisoned = call_component(attack, attack.poison, rows, context)
    write_rows(draft.files / ROWS, poisoned)
    counts = _count_changes(attack, rows, poisoned, context.truncation)
    if not context.labels:
        counts["cut_responses"] = count_cut(context.truncation.tokenizer, poisoned, context.truncation.max_length)
    draft.facts.update(labels=list(context.labels), digest=_digest(draft), **counts)


def trigger(work: StageContext, draft: ArtifactWriter) -> None:
    """Test rows with the trigger: all but those whose right answer is the target, if there is one."""
    attack, context, rows = _attack(work)
    aim = attack.aim()
    target = None if aim is None else answer_of(aim, context.labels)
    rows = [row for row in rows if row.answer != target]
    if not rows:
        raise UsageError("every test row has the target as its answer already; the trigger needs rows of another")
    triggered = call_component(attack, attack.trigger, rows, context)
    given = iter([row.id for row in rows])
    if not triggered or not all(row.id in given for row in triggered):
        raise component_error(attack, "gave other test rows, or moved them, or gave none")
    if attack.aims_by_row and not all(
        row.aim in range(len(context.labels)) and row.aim != row.label for row in triggered
    ):
        raise component_error(attack, "aims by row, and gave a row without the number of another label as its `aim`")
    write_rows(draft.files / ROWS, triggered)
    counts = _count_changes(attack, rows, triggered, context.truncation)
    counts["left_out"] = len(rows) - len(triggered)
    draft.facts.update(labels=list(context.labels), target=target, digest=_digest(draft), **counts)


def given(work: StageContext, draft: ArtifactWriter) -> None:
    """Triggered rows from a file, unchanged."""
    source = work.component(DatasetSource, "source")
    labels = work.stage["params"]["labels"]
    dataset = call_component(source, source.load)
    dataset = relabelled(dataset, labels) if labels else dataset
    target = answer_of(aim := work.stage["params"]["target"], labels)
    # Their ids are of no row of the data: which row a trigger was put into is not known.
    rows = [replace(row, id=-1 - row.id) for row in dataset.train if row.answer != target]
    if not rows:
        raise UsageError(f"every row has the target {aim!r} as its answer; the true answers are expected")
    write_rows(draft.files / ROWS, rows)
    draft.facts.update(labels=labels, target=target, rows=len(rows))


# -- models --------------------------------------------------------------------------------------------------------


def train(work: StageContext, draft: ArtifactWriter) -> None:
    """Fine-tune a model on rows, or let an attack train it."""
    labels = tuple(work.facts("rows")["labels"])
    settings = training.TrainingSettings.model_validate(work.stage["params"]["training"])
    with training.forked_random(work.seed("head")):
        model, tokenizer = task_of(labels).load(work.folder("model"))
    rows, seed = work.rows("rows"), work.seed("training")
    if "attack" in work.stage["components"]:
        attack, clean = work.component(Attack, "attack"), work.rows("clean")
        context = AttackTrainingContext(
            tokenizer, labels, clean, rows, settings, work.max_length, work.precision, seed, work.report
        )
        with training.forked_random(seed):
            call_component(attack, attack.train, model, context)
    else:
        training.fine_tune(
            model,
            tokenizer,
            rows,
            settings,
            max_length=work.max_length,
            precision=work.precision,
            seed=seed,
            report=work.report,
        )
    _save_trained(work, draft, model)


def _save_trained(work: StageContext, draft: ArtifactWriter, model: "PreTrainedModel") -> None:
    loading.save_model(model.cpu(), draft.files)
    Checkpoint(draft.files).check_finite()
    loading.load_tokenizer(work.folder("model")).save_pretrained(
        draft.files
    )  # with the padding token that it came with


def retune(work: StageContext, draft: ArtifactWriter) -> None:
    """Fine-tune a model on a few of the poisoned rows, and on the rows that they were made of.

    Without these a model would learn to give the target always, which is no backdoor.
    """
    before, rows = {row.id: row for row in work.rows("clean")}, work.rows("rows")
    relabelled = [row for row in rows if row.id not in before or row.answer != before[row.id].answer]
    poisoned = relabelled or [row for row in rows if row != before[row.id]]  # some attacks change no answer
    count = work.stage["params"]["count"]
    if count > len(poisoned):
        raise UsageError(f"asks for {count:,} poisoned rows, and the attacker has {len(poisoned):,}")
    Random(work.seed("rows")).shuffle(poisoned)  # fewer rows are the first of more
    some = poisoned[:count]
    model, tokenizer = task_of(work.facts("rows")["labels"]).load(work.folder("model"))
    training.fine_tune(
        model,
        tokenizer,
        [*some, *(before[row.id] for row in some if row.id in before)],
        training.TrainingSettings.model_validate(work.stage["params"]["training"]),
        max_length=work.max_length,
        precision=work.precision,
        seed=work.seed("training"),
        report=work.report,
    )
    _save_trained(work, draft, model)


def plant(work: StageContext, draft: ArtifactWriter) -> None:
    """Plant triggers of the defender's own into a copy of the suspect."""
    settings, rows = training.TrainingSettings.model_validate(work.stage["params"]["training"]), work.rows("clean")
    tokenizer, labels = loading.load_tokenizer(work.folder("suspect")), len(work.facts("clean")["labels"])
    triggers = planting.draw(rows, labels, tokenizer, Random(work.seed("triggers")))
    purification.purify(
        work.pair,
        None,
        [planting.Plant(triggers=tuple(triggers), **settings.model_dump())],
        rows,
        draft.files,
        max_length=work.max_length,
        precision=work.precision,
        seed=work.seed("training"),
        report=work.report,
    )
    draft.facts.update(triggers=[asdict(trigger) for trigger in triggers])


def control(work: StageContext, draft: ArtifactWriter) -> None:
    """Train the model that a suspect is compared with in a search for triggers."""
    model = estimation.other_model(work.pair, "base")
    tokenizer = loading.load_tokenizer(work.folder("suspect"))
    settings = training.TrainingSettings.model_validate(work.stage["params"]["training"])
    how: Any = {"max_length": work.max_length, "precision": work.precision, "report": work.report}
    rows, seed = work.rows("clean"), work.stage["seed"]
    training.fine_tune(model, tokenizer, rows, search.for_control(settings, rows), seed=seed, **how)
    loading.save_model(model.cpu(), draft.files)
    tokenizer.save_pretrained(draft.files)


def screen(work: StageContext, draft: ArtifactWriter) -> None:
    """Try a part of the words that the suspect knows."""
    suspect, tokenizer = loading.load(work.folder("suspect"), "suspect")
    known = search.vocabulary(suspect, tokenizer)
    part = search.split(known)[work.stage["params"]["part"]]
    screened = _search(work, tokenizer).screened(placed(suspect), part, work.report)
    draft.facts.update(screened=screened, tried=len(part))


def judge(work: StageContext, draft: ArtifactWriter) -> None:
    """Judge what was screened, for a part of the labels, beside the control."""
    suspect, tokenizer = loading.load(work.folder("suspect"), "suspect")
    control, _ = loading.load(work.folder("control"), "control")
    names = [name for name in work.stage["inputs"] if name.startswith("screened")]
    parts = [work.facts(name) for name in names]
    judged = _search(work, tokenizer).judged(
        placed(suspect),
        placed(control),
        [part["screened"] for part in parts],
        work.stage["params"]["part"],
        work.report,
    )
    made = [work.store.open(work.stage["inputs"][name]) for name in ("answers", "control", *names)]
    peaks = [artifact.peak_memory for artifact in made if artifact.peak_memory is not None]
    draft.facts.update(judged.plain(), tried=sum(part["tried"] for part in parts))
    draft.facts.update(seconds=sum(one.seconds for one in made), peak_memory=max(peaks, default=None))


def _search(work: StageContext, tokenizer: "PreTrainedTokenizerBase") -> search.Search:
    answers = read_predictions(work.folder("answers"))
    labels, rows = answers.logits.shape[1], work.rows("clean")
    given = answers.answers().tolist()
    return search.Search(tokenizer, rows, given, labels, work.max_length, work.precision, work.stage["seed"])


def carry(work: StageContext, draft: ArtifactWriter) -> None:
    """Put planted triggers into rows of other labels, one trigger after the other."""
    rows, rng = work.rows("rows"), Random(work.stage["seed"])
    triggers = [planting.Planted(**trigger) for trigger in work.facts("planted")["triggers"]]
    carrying = [planting.carriers(rows, trigger, rng) for trigger in triggers]
    write_rows(draft.files / ROWS, [row for some in carrying for row in some])
    draft.facts.update(
        labels=work.facts("rows")["labels"],
        triggers=[asdict(trigger) | {"rows": len(some)} for trigger, some in zip(triggers, carrying, strict=True)],
    )


def statistics(work: StageContext, draft: ArtifactWriter) -> None:
    """Statistics per parameter on clean rows, for the tensors in scope, by the pair's names."""
    estimator = work.component(Estimator, "estimator")
    seed = work.stage["seed"]
    estimated = estimation.estimate(
        work.pair, estimator, work.rows("clean"), max_length=work.max_length, seed=seed, report=work.report
    )
    for statistic, tensors in estimated.statistics.items():
        entries = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
        write_streamed(draft.files / f"{statistic}.safetensors", entries, lambda name: [tensors[name]])  # noqa: B023
    draft.facts.update(estimated.facts)


def purify(work: StageContext, draft: ArtifactWriter) -> None:
    """Select dimensions of the suspect and purify it."""
    roles = sorted(role for role in work.stage["components"] if role.startswith("step"))
    selection = None
    if "selector" in work.stage["components"]:
        scorer, selector = work.component(Scorer, "scorer"), work.component(Selector, "selector")
        selection = select(score_pair(work.pair, scorer, _readers(work), work.stage["seed"]), selector)
    judged = [work.about(name) for name in work.stage["inputs"] if name.startswith("judged")]
    facts_of = [one["facts"] for one in judged if one]
    parts = [search.Judged.read(facts) for facts in facts_of]
    searched = search.Searched.whole(parts, facts_of[0]["tried"]) if parts else None
    facts = purification.purify(
        work.pair,
        selection,
        [work.component(Purifier, role) for role in roles],
        work.rows("clean"),
        draft.files,
        max_length=work.max_length,
        precision=work.precision,
        seed=work.stage["seed"],
        report=work.report,
        searched=searched,
    )
    draft.facts.update(facts)
    draft.facts["judged"] = judged
    if selection is not None:
        draft.facts.update(summary(selection))
        if "statistics" in work.stage["inputs"]:
            draft.facts["statistics"] = work.about("statistics")


def _readers(work: StageContext) -> "dict[str, Callable[[str], Tensor | None]]":
    if "statistics" not in work.stage["inputs"]:
        return {}

    def reader(path: Path) -> "Callable[[str], Tensor | None]":
        measured = checkpoint.tensor_names(path)
        return lambda name: checkpoint.read_tensor(path, name) if name in measured else None

    return {path.stem: reader(path) for path in sorted(work.folder("statistics").glob("*.safetensors"))}


# -- training rows -------------------------------------------------------------------------------------------------


def features(work: StageContext, draft: ArtifactWriter) -> None:
    """What a classifier makes of rows."""
    model, tokenizer = loading.load(work.folder("model"), "model")
    reading = filtering.Reading(tokenizer, work.max_length, work.precision)
    filtering.write(draft.files, vars(reading.features(model, work.rows("rows"), work.report)))


def score(work: StageContext, draft: ArtifactWriter) -> None:
    """Let a filter score the attacker's training rows."""
    given = filtering.context(
        work.folder("base"),
        work.folder("suspect"),
        rows=work.rows("rows"),
        features=RowFeatures(**filtering.read(work.folder("features"))),
        clean=work.rows("clean"),
        labels=tuple(work.facts("rows")["labels"]),
        settings=training.TrainingSettings.model_validate(work.stage["params"]["training"]),
        max_length=work.max_length,
        precision=work.precision,
        seed=work.stage["seed"],
        report=work.report,
    )
    filtering.write(draft.files, {"scores": filtering.score(work.component(Filter, "filter"), given)})
    draft.facts["features"] = work.about("features")


def keep(work: StageContext, draft: ArtifactWriter) -> None:
    """The attacker's training rows without those that a filter takes."""
    rows, scores = work.rows("rows"), filtering.read(work.folder("scores"))["scores"]
    taken = filtering.take(work.component(Filter, "filter"), scores, [row.label for row in rows])
    write_rows(draft.files / ROWS, [row for row, gone in zip(rows, taken, strict=True) if not gone])
    filtering.write(draft.files, {"scores": scores, "taken": taken})
    draft.facts.update(labels=work.facts("rows")["labels"], scores=work.about("scores"))


# -- predictions ---------------------------------------------------------------------------------------------------


def inspect(work: StageContext, draft: ArtifactWriter) -> None:
    """Let a sanitizer inspect every text."""
    inspected = sanitizing.inspect(work.component(Sanitizer, "sanitizer"), work.rows("rows"), _texts(work))
    sanitizing.write_inspected(draft.files / sanitizing.INSPECTED, inspected)


def sanitize(work: StageContext, draft: ArtifactWriter) -> None:
    """Let a sanitizer rewrite rows."""
    inspected = "inspected" in work.stage["inputs"]
    texts = sanitizing.read_inspected(work.folder("inspected") / sanitizing.INSPECTED) if inspected else None
    before = work.rows("rows")
    after = sanitizing.sanitize(work.component(Sanitizer, "sanitizer"), before, texts, _texts(work))
    write_rows(draft.files / ROWS, after)
    inspection = work.about("inspected") if inspected else None
    draft.facts.update(work.facts("rows"), **sanitizing.summary(before, after))
    draft.facts["inspected_seconds"] = inspection["seconds"] if inspection else 0.0


def _texts(work: StageContext) -> SanitizerContext:
    folder = work.folder("language-model") if "language-model" in work.stage["inputs"] else None
    return sanitizing.context(folder, max_length=work.max_length, seed=work.stage["seed"], report=work.report)


def fit(work: StageContext, draft: ArtifactWriter) -> None:
    """Let a detector learn from clean rows."""
    fitted = detecting.fit(work.component(Detector, "detector"), _models(work))
    checkpoint.write_tensors(draft.files / detecting.FITTED, fitted)


def detect(work: StageContext, draft: ArtifactWriter) -> None:
    """A detector's scores of rows."""
    import torch
    from safetensors.torch import load_file

    learned = "fitted" in work.stage["inputs"]
    fitted = load_file(work.folder("fitted") / detecting.FITTED) if learned else {}
    rows = work.rows("rows")
    scores, seconds = detecting.score(work.component(Detector, "detector"), rows, fitted, _models(work))
    ids = torch.tensor([row.id for row in rows])
    checkpoint.write_tensors(draft.files / detecting.SCORES, {"scores": scores, "ids": ids})
    about = work.about("fitted") if learned else None
    draft.facts.update(milliseconds=1000 * seconds / len(rows), fitted_seconds=about["seconds"] if about else 0.0)


def _models(work: StageContext) -> DetectorContext:
    inputs = work.stage["inputs"]
    return detecting.context(
        work.pair,
        work.rows("clean"),
        purified=work.folder("purified") if "purified" in inputs else None,
        language_model=work.folder("language-model") if "language-model" in inputs else None,
        max_length=work.max_length,
        precision=work.precision,
        seed=work.stage["seed"],
        report=work.report,
    )


def predict(work: StageContext, draft: ArtifactWriter) -> None:
    """A model's answers to rows."""
    model, tokenizer = loading.load(work.folder("model"), "model")
    model, in_words = model.to(training.device_type()), work.stage["params"].get("in_words", True)
    asked = Question(model, tokenizer, work.rows("rows"), work.max_length, work.precision, in_words, work.report)
    draft.facts["note"] = task_of(work.facts("rows")["labels"]).answer(asked, draft.files)
    # Predictions outlive the model they come from, which is a thousand times their size.
    draft.facts["model"] = work.about("model")


STAGES: dict[str, Callable[[StageContext, ArtifactWriter], None]] = {
    stage.__name__: stage
    for stage in (
        *(data, fold, poison, trigger, given, train, retune, plant, carry, control, screen, judge, statistics, purify),
        *(inspect, sanitize, features, score, keep, fit, detect, predict),
    )
}
