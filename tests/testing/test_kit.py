"""Each check of the conformance kit, by a plugin that breaks it and nothing else."""

from math import prod
from pathlib import Path
from typing import Any

import pytest

from defensekit.api import Component, Scorer, UsageError
from defensekit.models.checkpoint import Checkpoint
from defensekit.testing import Report, check_plugin, pico
from defensekit.testing.kit import CHECKS
from tests.conftest import ROOT
from tests.testing import broken_data, broken_weights
from tests.testing.broken_weights import (
    Lazybones,
    Sloppy,
    Upside,
)
from tests.testing.good import GOOD, Drift, Gradients, by_loop

pytest_plugins = ["pytester"]


BROKEN = broken_weights.BROKEN | broken_data.BROKEN


def report(component: type[Component], **more: Any) -> Report:
    """What the kit says of one of these, with all that their author could have told it."""
    if issubclass(component, Scorer):
        more = {"order": [{"drift": 0.1}, {"drift": -0.2}], **more} if not component.needs else more
    if component in (Gradients, Sloppy):
        more["reference"] = by_loop
    return check_plugin(component, **more)


@pytest.mark.parametrize("component", GOOD, ids=lambda component: component.__name__)
def test_a_good_one_passes(component: type[Component]) -> None:
    assert report(component).passed, str(report(component))


@pytest.mark.parametrize("component", BROKEN, ids=lambda component: component.__name__)
def test_a_broken_one_is_caught_and_for_that_alone(component: type[Component]) -> None:
    check, reason = BROKEN[component]
    found = report(component)
    assert [failed.check for failed in found.of("failed")] == [check], str(found)
    assert reason in found.of("failed")[0].reason


def test_every_check_is_broken_by_somebody() -> None:
    broken = {check for check, _ in BROKEN.values()} | {"lists-without-torch"}
    assert {check.name for check in CHECKS} == broken


HEAVY = """
import torch
from defensekit.api import hookimpl, scorer

@scorer()
def mine(t):
    "|delta|."
    return t.drift.abs()

@hookimpl
def defensekit_scorers():
    return {"mine": mine}
"""


def test_a_plugin_that_imports_torch_to_be_listed(tmp_path: Path) -> None:
    from defensekit.host.discovery import load_plugins

    (tmp_path / "mine.py").write_text(HEAVY)
    [failed] = check_plugin(load_plugins([tmp_path / "mine.py"]).find("scorer", "mine")).of("failed")
    assert failed.check == "lists-without-torch"
    assert "expected no heavy import, got torch" in failed.reason


# -- what the caller says ----------------------------------------------------------------------------------------------


def test_what_is_expected_to_fail_and_does() -> None:
    found = report(Upside, expected={"higher-is-taken-first": "it is there to be compared with"})
    assert found.passed
    [expected] = found.of("expected")
    assert expected.reason == "it is there to be compared with"
    assert "1 expected" in found.summary


def test_what_is_expected_to_fail_and_passes_is_a_failure() -> None:
    [failed] = report(Drift, expected={"higher-is-taken-first": "it did once"}).of("failed")
    assert "expected to fail (it did once), and it passes: remove it from `expected`" in failed.reason


def test_an_expectation_of_no_check() -> None:
    with pytest.raises(UsageError, match=r"a scorer has no check 'same-twise'\. Did you mean 'same-twice'\?"):
        check_plugin(Drift, expected={"same-twise": "?"})


def test_what_is_not_called_and_what_did_not_work_is_skipped() -> None:
    found = check_plugin(Lazybones, call=False)
    assert found.passed
    assert found.ran == 4
    assert "not to be called" in found.of("skipped")[-1].reason
    failing = check_plugin(Lazybones)
    assert {
        "it fails in ordinary use: see `works`",
        "no installed plugin has it: install its package, or check its file",
        "it has no path as `location`, or is of a kind whose contents are always digested",
    } == {outcome.reason for outcome in failing.of("skipped")}


def test_the_parametrisation_for_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        loudness="""
        from defensekit.api import Scorer
        class Loud(Scorer):
            "|delta|."
            def score(self, t):
                print("hello")
                return t.drift.abs()
        class Silent(Scorer):
            "|delta|."
            def score(self, t):
                return t.drift.abs()
        """,
        test_loudness="""
        from defensekit.testing import conformance
        from loudness import Loud, Silent
        test_silent = conformance(Silent())
        test_loud = conformance(Loud(), expected={"prints-nothing": "it is loud"})
        test_louder = conformance(Loud)
        """,
    )
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA")
    done.assert_outcomes(passed=37, failed=1, xfailed=1, skipped=12)
    done.stdout.fnmatch_lines(["*Loud: expected nothing on standard output, got 'hello*"])


def test_what_is_said_of_the_models_that_components_are_tried_on() -> None:
    models = pico.pico()
    folders = (models.suspect, models.language_model)
    weights = [sum(prod(one.shape) for one in Checkpoint(folder).tensors.values()) for folder in folders]
    assert f"{weights[0]:,} weights" in str(pico.__doc__)
    assert f"{weights[1]:,} weights" in str(pico.PicoModels.language_model.__doc__)
    assert f"an ALBERT of {weights[0]:,} weights" in (ROOT / "docs/plugins.md").read_text()
