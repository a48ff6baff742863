"""Components: strict, hashable, picklable, and blamed for what they do."""

import os
from typing import Any

import pytest

from defensekit.api import Field, Scorer
from defensekit.components.base import call_component
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
