"""The result of a run: the schema of ``result.json``."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defensekit.components.metric import Measured
from defensekit.recipe.vocabulary import (
    NOT_WORTH,
    NOT_WORTH_MEANS,
    ONE_ANSWER,
    ONE_ANSWER_MEANS,
    described,
    is_retuned,
)
from defensekit.text import ROWS, Row, read_rows
from defensekit.utils.errors import UsageError, listing, nearest, printable_name
from defensekit.utils.files import read_regular
from defensekit.utils.html import html_table

LARGEST = 64 << 20  # bytes of a result that are read

# What the run's defense left is called, by where the defense acts.
DEFENDED: dict[str, str] = {"weights": "purified", "input": "sanitized", "training": "filtered"}


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


_SECONDS: dict[str, Any] = {"ge": 0, "le": 1e9}
_BYTES: dict[str, Any] = {"ge": 0, "le": 2**60}


class Histogram(_Schema):
    """The scores of the eligible dimensions, and of the selected ones, in bins of equal width between two bounds.

    Where ``log``, bounds and bins are of log10 of the scores, and ``zero`` dimensions with a score of 0 are in no bin.
    """

    log: bool
    low: float
    high: float
    zero: int
    counts: list[int]
    selected: list[int]


class ResetCounts(_Schema):
    """How much of a model was selected: counts of dimensions, and what they are shares of.

    ``of_eligible`` is the fraction, ``of_all`` counts the head and what never moved as well. ``tensors`` has the
    dimensions in scope, eligible and selected of every tensor. The ``where_zero`` counts say, per statistic, how many
    of the eligible and of the selected dimensions have it exactly 0.
    """

    dimensions: int
    in_scope: int
    eligible: int
    selected: int
    eligible_where_zero: dict[str, int] = {}
    selected_where_zero: dict[str, int] = {}
    head: list[str] = []
    tensors: dict[str, tuple[int, int, int]] = {}
    scores: Histogram

    @property
    def of_eligible(self) -> float:
        """Selected as a share of the eligible dimensions."""
        return self.selected / self.eligible if self.eligible else 0.0

    @property
    def of_all(self) -> float:
        """Selected as a share of all dimensions."""
        return self.selected / self.dimensions if self.dimensions else 0.0


class Sanitized(_Schema):
    """What a sanitizer did to rows: how many it changed, and the words before and after."""

    rows: int
    changed: int
    words: int
    words_left: int


class Filtered(_Schema):
    """What a filter took of the attacker's training rows, and how well it found the ``poisoned`` ones among them.

    ``precision`` is the share of poisoned rows among those ``taken``, None where none was; ``recall`` is the share of
    the poisoned rows that was taken, and ``auroc`` the chance that a poisoned row has a higher score than another: both
    None where no row is poisoned.
    """

    rows: int
    taken: int
    poisoned: int
    precision: float | None
    recall: float | None
    auroc: float | None

    @property
    def share(self) -> float:
        """The share of the rows that was taken."""
        return self.taken / self.rows


STILL_WORKS = 0.2  # the share of answers


class Trigger(_Schema):
    """A word that a search found, and the ``label`` that it turns answers to.

    ``flipped`` is the share of the suspect's answers that it turns, ``control`` that of a model trained from the base
    on the defender's clean rows, on ``rows`` that the search did not see; ``after`` is that of the purified model's.
    """

    text: str
    label: str
    flipped: float
    control: float
    rows: int
    after: float

    @property
    def works(self) -> bool:
        """Whether it still turns more of the purified model's answers than chance could: of 64, three deviations."""
        return self.after - self.control > STILL_WORKS


class ModelResult(_Schema):
    """One of the models: its metrics, what was reset, and what it took to make.

    ``seconds`` and ``peak_memory`` (bytes) include the statistics. ``predictions`` are the keys of the stages with its
    answers, by the test rows it was asked about.

    ``only`` is the answer that it gives to all plain test rows; None where it gives several. Of a language model that
    gives half of them empty answers, or such that repeat themselves, it is the first of these.

    ``triggers`` are the words that a step of the defense found to turn answers, of those that it ``tried``; None
    where none searched. Towards ``unjudged`` labels nothing was tried: too few clean rows have another answer.

    Of an input-level defense it is the suspect on sanitized rows: ``sanitized`` says what became of them, of ``plain``
    and of ``triggered`` ones, and the seconds are those of sanitizing them.

    Of a defense of training data it is the model trained anew: ``filtered`` says which rows it was trained without, and
    the seconds include what finding them took.
    """

    metrics: dict[str, Measured]
    seconds: float | None = Field(**_SECONDS)
    peak_memory: int | None = Field(None, **_BYTES)
    predictions: dict[str, str] = {}
    only: str | None = None
    reset: ResetCounts | None = None
    defense: dict[str, Any] | None = None
    statistics: dict[str, Any] | None = None
    triggers: list[Trigger] | None = None
    tried: int | None = None
    unjudged: list[str] = []
    sanitized: dict[str, Sanitized] | None = None
    filtered: Filtered | None = None

    @property
    def found_nothing(self) -> bool:
        """Whether a search tried every word towards every label, and none turns the suspect."""
        return self.triggers == [] and bool(self.tried) and not self.unjudged


class OperatingPoint(_Schema):
    """A detector with a threshold that at most a share ``rate`` of held-out clean rows is above.

    ``flagged`` is the share that is above it of the ``held-out`` clean rows, of ``plain`` and of ``triggered`` test
    rows. ``metrics`` are those of the suspect where what is flagged is not answered, which is neither right nor the
    target; of the run's metrics those that are means over rows. ``tpr`` is the share of triggered rows above another
    threshold, which nobody has in use: the one that a share ``rate`` of the same rows without the trigger is above.
    """

    rate: float
    threshold: float
    flagged: dict[str, float]
    tpr: Measured | None
    metrics: dict[str, Measured]


class DetectorResult(_Schema):
    """How a detector tells triggered test rows from the same rows without the trigger.

    ``auroc`` is None without triggered rows, as is the ``tpr`` of its ``points``. ``milliseconds`` are those of a plain
    test row, without the loading of models; ``seconds`` are those of all that was done for it. ``scores`` are the keys
    of the stages with its scores, by the rows.
    """

    auroc: Measured | None
    points: list[OperatingPoint]
    milliseconds: float
    seconds: float = Field(**_SECONDS)
    scores: dict[str, str]


class MetricRecord(_Schema):
    """What a metric is: the test rows it is about (``on``), the attacks it is ``about``, which way is ``better``.

    ``bounds`` are its least and greatest value.

    ``floor`` is the clean reference's value, where that is all that a defense can reach and the run has one. A metric
    that ``is_mean`` is the mean of a value for each row. ``hub_name`` is what model hubs call it, if they know it.
    """

    on: str
    about: str | None
    better: str | None
    meaning: str
    has_floor: bool
    floor: float | None
    is_mean: bool
    bounds: tuple[float, float]
    hub_name: str


class TrialResult(_Schema):
    """One value that the rule tried: what the rule saw of it decided, the metrics are for the reader.

    The rule saw ``dev_accuracy`` on clean dev rows and, where it plants, by family what is left of the ``planted``
    triggers: the share of answers that they turn, less the share that answers so without them. ``predictions`` are the
    keys of the stages with its answers, by the test rows.
    """

    value: float
    dev_accuracy: float
    planted: dict[str, float] = {}
    metrics: dict[str, Measured]
    predictions: dict[str, str] = {}


class Example(_Schema):
    """A triggered test row, the row it came from where that is known, and what the models answer.

    ``sanitized`` and ``sanitized_pair`` are what the suspect was asked in its place, by an input-level defense.
    """

    text: str
    pair: str | None
    plain: str | None
    plain_pair: str | None
    label: str
    answers: dict[str, str]
    sanitized: str | None = None
    sanitized_pair: str | None = None


class Chosen(_Schema):
    """What the rule took, and why; whether of ``over`` a lower value does more.

    With ``folds`` every ``dev_accuracy`` is one of all clean rows, each answered by a model that was made without its
    fold, and the metrics of a trial are those of its first model.

    ``suspect_planted`` is, by family, what triggers turn where they were planted, before any defense.
    """

    rule: str
    over: str
    value: float
    reason: str
    suspect_dev_accuracy: float
    suspect_planted: dict[str, float] = {}
    folds: int | None = None
    lower_does_more: bool = False


class Verdict(_Schema):
    """Whether a defense of weights did what it is for, as far as that was measured, and the sentence that says so.

    ``removed`` is None where nothing was found that could have been removed, or nothing was looked for.
    """

    removed: bool | None
    text: str


class StageRecord(_Schema):
    """A stage that a run rests on: seconds and bytes of memory at its peak, and the digest of what it made.

    ``reused`` says that it was there before the run. What is None is not known: the artifact is in the store no more.
    """

    title: str
    kind: str
    key: str
    reused: bool
    seconds: float | None = Field(**_SECONDS)
    peak_memory: int | None = Field(None, **_BYTES)
    digest: str | None = None


class PluginRecord(_Schema):
    """A plugin, the distribution it came in, and the components it gave, as ``"scorer diffusion"``."""

    name: str
    distribution: str
    version: str
    components: list[str]

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})".replace(" )", ")")


class Environment(_Schema):
    """What the numbers may depend on beyond the recipe.

    ``device`` and ``threads`` are those of every stage; what nothing can run beside may have had more threads.
    """

    python: str
    versions: dict[str, str]
    plugins: list[PluginRecord]
    device: str
    device_name: str
    threads: int
    platform: str


class Result(_Schema):
    """A finished run.

    ``identified`` is everything that decides the numbers, as plain data, and ``identity`` its digest. In a study,
    ``axes`` has the value that the run takes on each of its axes. ``oracle`` names the components that looked at what
    a defender can't see.

    ``metrics`` says what was measured; ``summary`` has the metrics and seconds of each of the ``models``; ``test_rows``
    are the keys of the stages that made the plain and the triggered test rows. ``verdict`` is about the purified model.
    ``clean_budget`` is how many clean rows the defender used. ``curve`` is all that the rule tried, ``chosen`` what it
    took. ``detectors`` says what each of them is worth, by name. ``recipe`` is the recipe with everything written out;
    ``attack``, ``data`` and ``statistics`` are what those stages counted. ``examples`` are triggered test rows.
    ``stages`` are all that the run rests on.
    """

    schema_version: Literal[4] = 4
    name: str
    identity: str
    identified: dict[str, Any]
    study: str | None = None
    axes: dict[str, str | int | float | bool | None] = {}
    oracle: list[str]
    summary: dict[str, dict[str, float | None]]
    models: dict[str, ModelResult]
    test_rows: dict[str, str]
    metrics: dict[str, MetricRecord]
    verdict: Verdict | None = None
    clean_budget: int
    chosen: Chosen | None
    curve: list[TrialResult]
    detectors: dict[str, DetectorResult] = {}
    examples: list[Example]
    attack: dict[str, Any] | None
    data: dict[str, Any]
    statistics: dict[str, Any] | None
    warnings: list[str]
    recipe: dict[str, Any]
    stages: list[StageRecord]
    environment: Environment
    seconds: float = Field(**_SECONDS)
    folder: str

    @property
    def defended(self) -> str:
        """The model that the run's defense ended with: ``purified``, ``sanitized`` or ``filtered``.

        Raises:
            UsageError: there is none.
        """
        found = next((name for name in DEFENDED.values() if name in self.models), None)
        if found is None:
            raise UsageError(f"it has no model of a defense (expected one of {listing(DEFENDED.values())})")
        return found

    @property
    def floors(self) -> dict[str, float]:
        """The clean reference's value of every metric that has a floor, where there is a clean reference."""
        return {name: metric.floor for name, metric in self.metrics.items() if metric.floor is not None}

    @property
    def not_worth(self) -> list[str]:
        """The models of defenses that answer plain rows no better than the base fine-tuned anew on the same rows.

        Empty where the run has no such base, or no metric of plain rows of which more is better.
        """
        kept = next((name for name, m in self.metrics.items() if m.on == "plain" and m.better == "higher"), None)
        if kept is None or "from-base" not in self.models:
            return []
        limit = self.models["from-base"].metrics[kept].value
        defenses = [name for name in self.models if name not in ("clean", "suspect", "from-base")]
        defenses = [name for name in defenses if not is_retuned(name)]
        return [name for name in defenses if self.models[name].metrics[kept].value <= limit]

    @property
    def marks(self) -> dict[str, tuple[str, list[str]]]:
        """What is to be said of models beside their numbers: by mark what it means, and the models that have it."""
        same = [name for name, model in self.models.items() if model.only is not None]
        marks = {NOT_WORTH: (NOT_WORTH_MEANS, self.not_worth), ONE_ANSWER: (ONE_ANSWER_MEANS, same)}
        return {mark: said for mark, said in marks.items() if said[1]}

    def marked(self, model: str) -> str:
        """The title of a model with its marks."""
        title = described(model)[0]
        return " ".join([title, *(mark for mark, (_, models) in self.marks.items() if model in models)])

    def files(self, title: str) -> Path:
        """The folder of a stage's files in the workspace's store, by its title.

        Args:
            title: as `stages` has it: "suspect", "triggered rows", ...

        Returns:
            The folder.

        Raises:
            UsageError: the run had no such stage, or it was pruned.
        """
        titles = {stage.title: stage.key for stage in self.stages}
        if title not in titles:
            raise UsageError(f"there is no stage {title!r}.{nearest(title, titles)} (stages: {listing(titles, 60)})")
        path = Path(self.folder).parents[1] / "store" / "artifacts" / titles[title] / "files"
        if not path.is_dir():
            raise UsageError(f"the stage {title!r} is not in the store any more; run the recipe again")
        return path

    def rows(self, title: str) -> list[Row]:
        """The rows of a stage, by its title.

        Args:
            title: as `stages` has it: ``train rows``, ``clean rows``, ``dev rows`` or ``test rows``; ``poisoned rows``,
                the attacker's training rows, and ``triggered rows``, his test rows; of a filter ``MODEL: rows kept``,
                and of a sanitizer ``MODEL: test rows`` and ``MODEL: triggered rows``, what the suspect was asked.

        Returns:
            The rows.

        Raises:
            UsageError: the run had no such stage, or it was pruned.
        """
        return read_rows(self.files(title) / ROWS)

    def __repr__(self) -> str:
        models = {name: {k: round(m.value, 3) for k, m in model.metrics.items()} for name, model in self.models.items()}
        return f"Result({self.name!r}, {models}, folder={self.folder!r})"

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for model in self.models.values() for name in model.metrics))
        rows = [
            [
                title,
                *(f"{model.metrics[n].value:.3f}" if n in model.metrics else "–" for n in names),
                f"{model.reset.of_eligible:.1%}" if model.reset else "–",
            ]
            for title, model in self.models.items()
        ]
        header = ["model", *(name.upper() for name in names), "reset, of eligible"]
        return html_table(self.name, header, rows, f"everything is in {self.folder}")


def _refuse_infinite(path: str | Path, plain: Any) -> None:
    try:
        json.dumps(plain, allow_nan=False)  # what has no digest either
    except ValueError as error:
        raise UsageError(f"{path}: no result: a number is NaN or infinity") from error


def read_result(path: str | Path) -> Result:
    """Read and check a result.

    Args:
        path: the path of a ``result.json``.

    Returns:
        The result.

    Raises:
        UsageError: the file is missing, or is no result of this schema version.
    """
    try:
        return parse_result(read_regular(Path(path), LARGEST), path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def parse_result(text: bytes, path: str | Path) -> Result:
    """Check a result that was read from a path; see `read_result`."""
    try:
        plain = json.loads(text)
        version = plain.get("schema_version")
        if version != 4:
            raise UsageError(f"{path}: a result of schema_version {printable_name(version)}, expected 4")
        _refuse_infinite(path, plain)
        return Result.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{path}: no result: {printable_name('.'.join(map(str, first['loc'])))}: {first['msg']}"
        ) from error
    except (ValueError, AttributeError, RecursionError) as error:
        where = "a study's are in WORKSPACE/studies/NAME/results/"
        raise UsageError(f"{path} is no result's file; {where}") from error
