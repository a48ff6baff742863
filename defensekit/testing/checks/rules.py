"""Checks of rules: they propose the given values, stop, and choose one that was tried."""

import math
from dataclasses import replace
from typing import Any

from defensekit.components import Rule, Trial
from defensekit.testing.kit import Subject, check, expect, ordinary_use
from defensekit.testing.pico import PicoModels
from defensekit.testing.watch import Handed

ROWS = 200
MOST = 100  # trials; in a run each may be a training
SLOPES = {"an accuracy that stays": 0.0, "one that falls": 0.3, "one that collapses": 5.0}
SUSPECT = Trial(0.0, 0.9, ROWS, {"word": 0.9, "phrase": 0.8})


def _trials(rule: Rule, slope: float) -> list[Trial]:
    """The trials that the rule proposes, with an accuracy, and planted triggers' effect, that fall with the value."""
    seen: list[Trial] = []
    while len(seen) <= MOST and (value := rule.propose(list(seen))) is not None:
        planted = {family: max(0.0, turned - slope * value) for family, turned in SUSPECT.planted.items()}
        accuracy = max(0.5, round(SUSPECT.accuracy - slope * value, 2))
        seen.append(Trial(value, accuracy, ROWS, planted if rule.planting() else {}))
    return seen


@ordinary_use(Rule)
def choose(rule: Rule, pico: PicoModels, handed: Handed) -> Any:
    """Choose a value for several curves of accuracy."""
    seen = {what: _trials(rule, slope) for what, slope in SLOPES.items()}
    return {what: rule.choose(handed.give(what, trials), SUSPECT) for what, trials in seen.items()}


@check(Rule)
def ends(subject: Subject) -> None:
    """It stops proposing, since a trial may be a training."""
    for what, slope in SLOPES.items():
        count = len(_trials(subject.component, slope))
        expect(count <= MOST, f"expected an end, got more than {MOST} proposals with {what}")


@check(Rule)
def proposes_what_was_asked(subject: Subject) -> None:
    """It proposes the recipe's `values` and 0, each once, and 0 always."""
    rule: Rule = subject.component
    asked = {0.0, *rule.values}
    for what, slope in SLOPES.items():
        values = [trial.value for trial in _trials(rule, slope)[:MOST]]
        unexpected = [value for value in values if value not in asked]
        expect(not unexpected, f"expected values out of {sorted(asked)}, got {unexpected[:3]} with {what}")
        expect(0.0 in values, f"expected 0 to be tried, got {values} with {what}")
        if len(values) < MOST:  # else it never ends
            expect(len(values) == len(set(values)), f"expected each value once, got {values} with {what}")


@check(Rule)
def takes_what_it_saw(subject: Subject) -> None:
    """The chosen value is one that was tried, with a reason, whether higher or lower values do more."""
    for what, slope in SLOPES.items():
        seen = _trials(subject.component, slope)
        tried = sorted({trial.value for trial in seen})
        for suspect in (SUSPECT, replace(SUSPECT, value=math.inf)):
            choice = subject.component.choose(seen, suspect)
            expect(choice.value in tried, f"expected a value out of {tried}, got {choice.value} with {what}")
            expect(choice.reason, f"expected a reason in a sentence for {choice.value}, got none with {what}")
