"""Components: strict, hashable, picklable, and blamed for what they do."""

import os
from pathlib import Path
from typing import Annotated, Any

import pytest

from defensekit.api import Field, Scorer
from defensekit.components.base import call_component
from defensekit.host.registry import plain
from defensekit.recipe.recipe import NamedComponent
from defensekit.recipe.resolve import resolve_paths
from defensekit.testing import check_plugin


def test_components_are_strict_hashable_and_picklable() -> None:
    import pickle

    from defensekit_finepurifying.scorers import Diffusion

    one = Diffusion(exponent=0.5)
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(Diffusion(exponent=0.5))
    with pytest.raises(ValueError, match="exponnent"):
        Diffusion(exponnent=1.0)  # type: ignore[call-arg]
    assert "p: 1 for the theory" in str(Diffusion.model_json_schema())


class Weighted(Scorer):
    """Has a mapping and a list."""

    weights: dict[str, float] = Field({}, description="by tensor")
    names: list[str] = Field([], description="of tensors")

    def score(self, t: Any) -> Any:
        return t.drift.abs()


def test_a_parameter_may_be_a_mapping_or_a_list() -> None:
    one = Weighted(weights={"a": 0.5}, names=["a"])
    assert hash(one) == hash(Weighted(weights={"a": 0.5}, names=["a"]))
    assert hash(one) != hash(Weighted(weights={"a": 0.6}, names=["a"]))
    report = check_plugin(Weighted(weights={"a": 0.5}), call=False)
    assert not [failed for failed in report.of("failed") if failed.check in ("hashes-and-pickles", "survives-yaml")]


def test_a_fork_that_comes_back_ends_there() -> None:
    from defensekit_baselines.scorers import Magnitude

    def fork() -> int:
        return os.fork()

    child = call_component(Magnitude(), fork)
    assert child > 0  # the copy never got here
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


class Reading(Scorer):
    """Reads files that are named in several ways."""

    one: Path = Field(description="a file")
    some: tuple[Path, ...] | None = Field(None, description="files")
    noted: list[Annotated[Path, Field(description="a file")]] = Field([], description="files")
    named: dict[str, Path] = Field({}, description="files by name")
    text: str = Field("", description="no file")

    def score(self, t: Any) -> Any:
        return t.drift.abs()


def test_files_are_found_wherever_a_parameter_has_them(tmp_path: Path) -> None:
    assert Reading.paths() == ["one", "some", "noted", "named"]
    given = {"one": "a", "some": ["b"], "noted": ["c"], "named": {"x": "d"}, "text": "e"}
    resolved = resolve_paths(Reading, given, lambda text, key: tmp_path / text)
    places = {name: str(tmp_path / name) for name in "abcd"}
    assert resolved == {
        "one": places["a"], "some": [places["b"]], "noted": [places["c"]], "named": {"x": places["d"]}, "text": "e"
    }  # fmt: skip
    for name in "abcd":
        (tmp_path / name).write_text(name)
    component = Reading(**resolved)
    contents = plain(component, "reading")["contents"]
    assert contents.keys() == {"one", "some", "noted", "named"}
    (tmp_path / "d").write_text("changed")
    assert plain(component, "reading")["contents"]["named"] != contents["named"]
    assert NamedComponent("reading", component).parameters()["named"] == {"x": places["d"]}
