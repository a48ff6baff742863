"""Checks of every component's behaviour in one use, as the engine would use it."""

from defensekit.components import Detector, Estimator, Filter, Observer, Purifier, Rule, Sanitizer, Scorer, Selector
from defensekit.testing.kit import Inapplicable, Subject, check, expect
from defensekit.testing.watch import difference, fingerprint


@check()
def works(subject: Subject) -> None:
    """Used once as the engine would, on the pico model and its rows, it ends without an exception."""
    subject.use()


@check()
def same_twice(subject: Subject) -> None:
    """The same input and seed give bitwise the same result, whatever the global random states are."""
    change = difference(fingerprint(subject.used.result), fingerprint(subject.used_again.result))
    expect(not change, f"expected the same twice; its results differ in {change}")


@check()
def leaves_what_it_is_handed(subject: Subject) -> None:
    """Tensors, rows and models passed to it are unchanged afterwards: weights, modes, hooks, gradients."""
    change = subject.used.handed.change()
    expect(not change, f"expected nothing to change, got {change}")


@check()
def leaves_random_states(subject: Subject) -> None:
    """It uses the given seed, and neither seeds nor advances global random states (Python's, numpy's, torch's)."""
    change = subject.used.seen.random
    expect(not change, f"expected unchanged random states, and {(change or '').partition(':')[0]} changed")


@check()
def leaves_the_process(subject: Subject) -> None:
    """It does not change the working folder, the environment or torch's settings, and leaves no process or thread."""
    seen = subject.used.seen
    expect(not seen.process, f"expected an unchanged process, got {seen.process}")
    expect(not seen.forks, f"expected no fork, got {seen.forks}; start another program with `subprocess`")


@check()
def prints_nothing(subject: Subject) -> None:
    """It prints nothing to standard output, which is for results: use `logging`, `report` or exceptions."""
    if isinstance(subject.component, Observer):
        raise Inapplicable("an observer may print")
    printed = subject.used.seen.printed
    expect(not printed, f"expected nothing on standard output, got {printed[:80]!r}")


@check()
def holds_no_tensor(subject: Subject) -> None:
    """It keeps no tensor or array after use: a component consists of its parameters."""
    subject.use()
    component = subject.component
    held = {**vars(component), **(component.__pydantic_private__ or {}), **_of_the_class(type(component))}
    kept = [name for name, value in held.items() if _holds_tensor(value)]
    expect(not kept, f"expected no tensor in the component or its class, got {kept}")


def _holds_tensor(value: object, depth: int = 3) -> bool:
    import numpy as np
    import torch

    if isinstance(value, dict) and depth:
        return any(_holds_tensor(one, depth - 1) for one in [*value.keys(), *value.values()])
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return any(_holds_tensor(one, depth - 1) for one in value)
    return isinstance(value, torch.Tensor | np.ndarray | torch.nn.Module)


def _of_the_class(component: type) -> dict[str, object]:
    return {name: value for name, value in vars(component).items() if not name.startswith("__")}


@check(Estimator, Scorer, Selector, Purifier, Sanitizer, Filter, Detector, Rule)
def reads_no_workspace(subject: Subject) -> None:
    """A defense opens no file of the workspace, which holds the triggered rows: it uses only its arguments."""
    files = subject.used.seen.files
    expect(not files, f"expected no file of the working folder to be opened, got {files[:1]}")
