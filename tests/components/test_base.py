"""Components: strict, hashable, picklable, and blamed for what they do."""

import os

import pytest

from defensekit.components.base import call_component


def test_components_are_strict_hashable_and_picklable() -> None:
    import pickle

    from defensekit_finepurifying.scorers import Diffusion

    one = Diffusion(exponent=0.5)
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(Diffusion(exponent=0.5))
    with pytest.raises(ValueError, match="exponnent"):
        Diffusion(exponnent=1.0)  # type: ignore[call-arg]
    assert "p: 1 for the theory" in str(Diffusion.model_json_schema())


def test_a_fork_that_comes_back_ends_there() -> None:
    from defensekit_baselines.scorers import Magnitude

    def fork() -> int:
        return os.fork()

    child = call_component(Magnitude(), fork)
    assert child > 0  # the copy never got here
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
