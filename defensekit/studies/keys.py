"""The keys of a study: their types, bounds and meaning."""

from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field

from defensekit.recipe.keys import Keys, Spec
from defensekit.utils.errors import UsageError, listing, nearest

Label = str | int | float | bool
Resume = Literal["only-missing", "always", "never", "only-cache"]


class StudyKeys(Keys):
    """A study's keys."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="names the study's folder")
    recipe: str | dict[str, Any] = Field(description="what every run starts from: a recipe's file, or its keys")
    matrix: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(
        {}, description="axes: a dotted path and its values, or any name and its variants, each with several paths"
    )
    include: list[dict[str, Any]] = Field(
        [], description="runs beside the matrix: axes and values; others as the recipe"
    )
    exclude: list[dict[str, Label]] = Field([], description="runs of the matrix to leave out: axes and values")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1, description="every run is repeated with each")
    executor: Spec = Field("auto", description="where stages run")
    observers: list[Spec] = Field([], description="who watches")
    keep: Literal["predictions", "suspects", "models"] = Field(
        "predictions",
        description="what stays in the store: answers alone, what defenses start from too, or purified models as well",
    )


def resumed(text: str) -> Resume:
    """What is made of a study that ran before, by its name.

    Raises:
        UsageError: the name is unknown.
    """
    known = get_args(Resume)
    if text not in known:
        raise UsageError(f"resume: {text!r}?{nearest(text, known)} ({listing(known)})")
    return cast(Resume, text)


def no_recipe(data: Any, where: str) -> None:
    """Raise UsageError where a recipe was given in place of a study."""
    if isinstance(data, dict) and "recipe" not in data and not data.keys().isdisjoint(("model", "data", "defense")):
        raise UsageError(f"{where}: this is a recipe: `defensekit run` runs it, and a study names it under `recipe:`")
