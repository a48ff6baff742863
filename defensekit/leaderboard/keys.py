"""The keys of tracks and of entries: their types, bounds and meaning."""

from typing import Annotated, Any, Literal

from pydantic import Field

from defensekit.recipe.keys import Keys, Spec

UNPOISONED = "unpoisoned"  # what the cells of the innocent suspect are called
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Link = Annotated[str, Field(pattern=r"^https://[^\s<>\"']{1,300}$")]
# Neither breaks nor marks that turn the direction of what follows.
Line = Annotated[
    str, Field(pattern=r"^[^\x00-\x1f\x7f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]{1,200}$")
]


class Budget(Keys):
    """What a defense may use."""

    labelled: int = Field(ge=0, description="clean labelled rows, to fit and to choose by, in all")
    unlabelled: int = Field(0, ge=0, description="texts without labels; no data source hands out any yet")
    models: int = Field(0, ge=0, description="models beside suspect and base")
    minutes: float = Field(gt=0, description="of one cell, all that the defense computes")


class Tolerance(Keys):
    """How far two runs of the same cell may lie apart."""

    answers: float = Field(ge=0, lt=1, description="the share of test rows that may be answered otherwise")


class Digests(Keys):
    """What a track rests on, written by `leaderboard freeze`."""

    model: Digest | None = Field(description="of the base; null where it is generated")
    data: Digest = Field(description="of the data's source")
    rows: dict[Label, list[Digest]] = Field(description="of every role's rows, by attack, one per seed")
    labels: dict[Label, list[Digest]] = Field(description="of the test rows' numbers and labels, likewise")


class TrackKeys(Keys):
    """A track's keys."""

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*-v[1-9][0-9]*$", description="with its version, as in pico-v1")
    about: str = Field(min_length=1, max_length=1000, description="what the track is for, in a sentence or two")
    base: Literal["frozen", "generated"] = Field(
        "frozen",
        description="generated: made on every machine anew, so that versions of libraries may change its bytes",
    )
    recipe: dict[str, Any] = Field(description="what every cell starts from: a recipe's keys, without its defense")
    attacks: dict[Label, dict[str, Any]] = Field(min_length=1, description="backdoors, by name")
    biases: dict[Label, dict[str, Any]] = Field({}, description="biases, by name; they are measured by `bias_metrics`")
    unpoisoned: dict[str, Any] = Field(description="the attack that leaves the suspect innocent")
    bias_metrics: list[Spec] = Field(["acc", "bacc"], min_length=1, description="what is measured of a bias")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="every attack is made with each")
    budget: Budget = Field(description="what a defense may use")
    tolerance: Tolerance = Field(description="how far a cell that is run again may lie from the row")
    digests: Digests | None = Field(None, description="what the track rests on; `leaderboard freeze` writes them")


class Plugin(Keys):
    """Where a defense's or an attack's code is: exactly one of the two."""

    requires: str | None = Field(
        None, max_length=200, description="a published distribution, as in defensekit-foo==1.2"
    )
    file: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,59}\.py$", description="a file beside the entry, sent with it"
    )


class SubmissionKeys(Keys):
    """What everything that is submitted says of itself."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,59}$", description="names the row, or the attack")
    title: Line = Field(description="what it is called in tables")
    about: str = Field(min_length=1, max_length=1000, description="what it does, in a sentence or two")
    authors: list[Line] = Field(min_length=1, max_length=50, description="of the submission")
    links: list[Link] = Field([], max_length=10, description="a paper, its code")
    licence: Line = Field(description="of the code")
    plugin: Plugin = Field(description="where the code is")


class EntryKeys(SubmissionKeys):
    """An entry's keys."""

    needs: list[Literal["base", "labels", "texts", "models"]] = Field(
        description="what a defender has to have: the base, labelled rows, texts without labels, other models"
    )
    chosen_by: str = Field(
        min_length=1, max_length=500, description="what the settings were chosen by, and which rows that looked at"
    )
    baseline: bool = Field(False, description="a trivial one, which others are compared with")
    model: Literal["defended", "from-base"] = Field(
        "defended", description="the model that counts: what the defense left, or the base fine-tuned on the same rows"
    )
    defense: dict[str, Any] = Field(description="a recipe's `defense:`")


class AttackKeys(SubmissionKeys):
    """The keys of an attack that is submitted."""

    name: Label = Field(description="names the attack")
    attack: dict[str, Any] = Field(description="a recipe's `attack:`")
    digests: Digests | None = Field(None, description="what it rests on on a track; `leaderboard attack` writes them")
