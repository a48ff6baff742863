"""The keys of a recipe: their types, bounds and meaning. Components bring their own."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from defensekit.text import Balance
from defensekit.training import Precision

Spec = str | dict[str, Any]


class Keys(BaseModel):
    """Keys of a section: unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Top(Keys):
    """A recipe's keys."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="names the run's folder")
    model: Spec = Field(description="the pretrained base: a source's name, a local folder, or owner/name@revision")
    data: Spec = Field(description="labelled text, and the number of rows for each role")
    attack: Spec | None = Field(None, description="how the suspect is poisoned")
    suspect: str | None = Field(None, description="a folder with a suspect, in place of `attack`")
    triggered: dict[str, Any] | None = Field(None, description="a file of rows with a known trigger, for `suspect`")
    training: dict[str, Any] | None = Field(None, description="how the attacker fine-tunes")
    retuning: dict[str, Any] | None = Field(
        None, description="whether the attacker trains the defended model further, on a few poisoned rows"
    )
    precision: Precision | Literal["auto"] = Field(
        "float32", description="of training and answers: float32, bfloat16 autocast, or auto: bfloat16 where it is fast"
    )
    defense: dict[str, Any] = Field(
        description="estimator, scorer, selector, purifier (of inputs a sanitizer, of training rows a filter), and how "
        "much is chosen"
    )
    metrics: list[Spec] | None = Field(
        None, min_length=1, description="what is measured (acc, and what shows the attack: asr, or bacc of a bias)"
    )
    baselines: bool = Field(
        True,
        description="whether trivial baselines are reported beside the defense: the base fine-tuned anew, its "
        "fine-tuning alone, and what each value that a rule tried does to test rows",
    )
    seed: int = Field(0, ge=0, description="decides every random draw")
    # Removed before the keys are checked; it is here for the schema and the reference.
    extends: str | None = Field(None, description="a recipe that this one builds on; keys of this one win")
    plugins: list[str] = Field([], description="local plugin files")
    requires: list[str] = Field([], description="distributions that have to be installed, as in defensekit-foo>=1.2")
    executor: Spec = Field("auto", description="where stages run")
    observers: list[Spec] = Field([], description="what is notified of progress")


class Sizes(Keys):
    """The number of rows for each role, and the tokens read of a row."""

    train: int | None = Field(None, ge=1, description="the attacker's training rows (all that are left)")
    clean: int = Field(256, ge=1, description="the defender's clean rows: statistics and fine-tuning")
    dev: int = Field(256, ge=1, description="the defender's clean rows: choosing")
    test: int | None = Field(None, ge=1, description="test rows (all, where the source has its own)")
    balance: Balance = Field("natural", description="labels among clean and dev rows: as they come, or equally often")
    max_length: int = Field(128, ge=8, le=100_000, description="tokens per row; longer rows are cut at their end")


# What defenses of several stages have in common.
Choose = Annotated[
    dict[str, Any] | None,
    Field(description="a rule that takes a value of one parameter: its name and parameters, see Rules"),
]
Detectors = Annotated[list[Spec], Field(description="what says how suspicious a text is, reported beside the defense")]


class DefenseKeys(Keys):
    """The keys under `defense`: its four parts, and what is chosen by clean rows."""

    stage: Literal["weights"] = Field("weights", description="where the defense acts: weights, input or training")
    estimator: Spec | None = Field(None, description="what is measured on clean rows")
    scorer: Spec | None = Field(None, description="how suspicious each dimension is")
    selector: Spec | None = Field(
        None, description="which dimensions are taken; a defense that only trains has neither"
    )
    purifier: list[Spec] = Field(min_length=1, description="what is done, in order")
    choose: Choose = None
    refit: bool | None = Field(
        None, description="whether the model is made in the end from clean and dev rows together (null: after a rule)"
    )
    compare: dict[str, dict[str, Spec | list[Spec]]] = Field(
        {"random": {"scorer": "random"}}, description="defenses to report beside it: name, and the parts that differ"
    )
    detectors: Detectors = []


class InputDefenseKeys(Keys):
    """The keys under `defense` of an input-level defense: what rewrites the rows that the suspect is asked about."""

    stage: Literal["input"] = Field(description="where the defense acts")
    sanitizer: Spec = Field(description="what is done to every text before the suspect reads it")
    choose: Choose = None
    compare: dict[str, dict[str, Spec]] = Field({}, description="sanitizers to report beside it, by name")
    detectors: Detectors = []


class TrainingDefenseKeys(Keys):
    """The keys under `defense` of a defense of training data: what finds the rows to take away."""

    stage: Literal["training"] = Field(description="where the defense acts")
    filter: Spec = Field(description="what scores the attacker's training rows, and how many of them are taken away")
    choose: Choose = None
    compare: dict[str, dict[str, Spec]] = Field({}, description="filters to report beside it, by name")


class RetuningKeys(Keys):
    """The keys under `retuning`: what an attacker has who gets hold of the defended model."""

    rows: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (5, 20, 50),
        min_length=1,
        description="poisoned rows; each comes with the row that it was made of, and each number gives a model",
    )
    epochs: int = Field(5, ge=1, le=1000, description="passes over these rows, in batches of 8 at most")


class TriggeredKeys(Keys):
    """The keys under `triggered`; all other keys belong to the file (text, pair, label)."""

    model_config = ConfigDict(extra="allow")

    target: str | int = Field(description="the label that the attacker wants, by name or number")
    path: str = Field(description="a file of rows that carry the trigger, with their true labels")
