"""A component through every check of its kind: as a report, or as tests of an author's own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from defensekit.components import Component
from defensekit.components.base import one_line
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
    """Hold a component against everything that its kind promises.

    Args:
        component: as it is to be used; a class stands for its defaults, and for the ``examples`` of its fields.
        expected: checks that it is known to fail, each with the reason; one of them that passes counts as failed.
        order: of a scorer: single dimensions from the one taken last to the one taken first, each by its ``drift`` and
            its statistics: ``[{"drift": 0.1, "curvature": 2.0}, {"drift": 0.5, "curvature": 2.0}]``.
        reference: of an estimator: ``reference(model, samples)`` gives the same statistics, computed the dumbest way,
            of a model in float64 on batches of one row (`fisher_by_loop` is one).
        call: False leaves out what uses the component, for one that needs a network or other files.

    Raises:
        UsageError: ``expected`` names no check of this kind, or the class can't be built without being told how.
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
    """A test function for pytest, a test for each check; the arguments are those of `check_plugin`.

    test_sharpness = conformance(Sharpness(exponent=0.5))
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
    # It is used from another folder, so that what it does to the one it is in can be seen.
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
        reason = str(error) if isinstance(error, Mismatch) else one_line(error, subject.component)
        return outcome("expected", known[check.name]) if check.name in known else outcome("failed", reason)
    if check.name in known:
        return outcome("failed", f"expected to fail ({known[check.name]}), and it passes: take it off `expected`")
    return outcome("passed")


def _must_work(subject: Subject) -> None:
    """One failure, and not as many as there are checks."""
    try:
        with quiet():
            subject.use()
    except (KeyboardInterrupt, Inapplicable):
        raise
    except BaseException as error:
        raise Inapplicable("it fails in ordinary use: see `works`") from error
