"""All checks of a component: as a report, or as tests in an author's own test files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from defensekit.components import Component
from defensekit.components.base import printable_name
from defensekit.testing import checks  # noqa: F401 - the checks register themselves
from defensekit.testing.example import example
from defensekit.testing.kit import CHECKS, Check, Inapplicable, Mismatch, Reference, Subject
from defensekit.testing.report import Outcome, Report
from defensekit.utils.errors import UsageError, listing, nearest
from defensekit.utils.logging import quiet


def check_plugin(
    component: Component | type[Component],
    *,
    expected: Mapping[str, str] | None = None,
    order: Sequence[Mapping[str, float]] = (),
    reference: Reference | None = None,
    call: bool = True,
) -> Report:
    """Run every check of a component's kind.

    Args:
        component: the component; a class is built from its defaults and the ``examples`` of its fields.
        expected: checks that are known to fail, each with the reason; one of them that passes counts as failed.
        order: for a scorer: single dimensions from least to most suspicious, each by its ``drift`` and statistics:
            ``[{"drift": 0.1, "curvature": 2.0}, {"drift": 0.5, "curvature": 2.0}]``.
        reference: for an estimator: ``reference(model, samples)`` gives the same statistics by the simplest code, for a
            model in float64 and batches of one row (`fisher_by_loop` is one).
        call: False skips the checks that use the component, for one that needs a network or other files.

    Returns:
        The outcome of every check.

    Raises:
        UsageError: ``expected`` names no check of this kind, or the class can't be built without parameters.
    """
    instance, known = _prepared(component, expected)
    subject = Subject(instance, order, reference)
    outcomes = tuple(_judge(check, subject, known, call) for check in _checks_of(instance))
    return Report(instance.kind, type(instance).__name__, instance.parameters(), outcomes)


def conformance(
    component: Component | type[Component],
    *,
    expected: Mapping[str, str] | None = None,
    order: Sequence[Mapping[str, float]] = (),
    reference: Reference | None = None,
    call: bool = True,
) -> Callable[..., None]:
    """A parametrised test function for pytest, with a test for each check.

        test_sharpness = conformance(Sharpness(exponent=0.5))

    Args:
        component: as for `check_plugin`.
        expected: as for `check_plugin`.
        order: as for `check_plugin`.
        reference: as for `check_plugin`.
        call: as for `check_plugin`.

    Returns:
        The test function, to be assigned to a name that begins with ``test``.

    Raises:
        UsageError: as for `check_plugin`.
    """
    import pytest

    instance, known = _prepared(component, expected)
    subject = Subject(instance, order, reference)

    @pytest.mark.parametrize("check", [pytest.param(check, id=check.name) for check in _checks_of(instance)])
    def test(check: Check) -> None:
        outcome = _judge(check, subject, known, call)
        if outcome.status == "failed":
            pytest.fail(f"{type(instance).__name__}: {outcome.reason}\n({outcome.says})", pytrace=False)
        if outcome.status == "expected":
            pytest.xfail(outcome.reason)
        if outcome.status == "skipped":
            pytest.skip(outcome.reason)

    return test


def _prepared(
    component: Component | type[Component], expected: Mapping[str, str] | None
) -> tuple[Component, Mapping[str, str]]:
    instance, known = example(component) if isinstance(component, type) else component, expected or {}
    # It is used in a temporary folder, where changes of the working folder can be detected.
    paths = {name: getattr(instance, name) for name in instance.paths()}
    absolute = {name: path.absolute() for name, path in paths.items() if isinstance(path, Path)}
    instance = instance.model_copy(update=absolute)
    names = [check.name for check in _checks_of(instance)]
    for name in known:
        if name not in names:
            raise UsageError(
                f"a {instance.kind} has no check {name!r}.{nearest(name, names)} (it has: {listing(names, 40)})"
            )
    return instance, known


def _checks_of(component: Component) -> list[Check]:
    return [check for check in CHECKS if not check.kinds or isinstance(component, check.kinds)]


def _judge(check: Check, subject: Subject, known: Mapping[str, str], call: bool) -> Outcome:
    def outcome(status: Any, reason: str = "") -> Outcome:
        return Outcome(check.name, check.says, status, reason)

    if check.calls and not call:
        return outcome("skipped", "the component is not to be called here")
    try:
        if check.calls and check.name != "works":
            _must_work(subject)
        with quiet():
            check.run(subject)
    except Inapplicable as why:
        return outcome("skipped", str(why))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = str(error) if isinstance(error, Mismatch) else printable_name(error, subject.component)
        return outcome("expected", known[check.name]) if check.name in known else outcome("failed", reason)
    if check.name in known:
        return outcome("failed", f"expected to fail ({known[check.name]}), and it passes: remove it from `expected`")
    return outcome("passed")


def _must_work(subject: Subject) -> None:
    """Skip other checks if ordinary use fails: one failure is enough."""
    try:
        with quiet():
            subject.use()
    except (KeyboardInterrupt, Inapplicable):
        raise
    except BaseException as error:
        raise Inapplicable("it fails in ordinary use: see `works`") from error
