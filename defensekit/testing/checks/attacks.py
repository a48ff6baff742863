"""Checks of attacks: which rows are changed, how many, and how."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

from defensekit.components import Attack, AttackContext
from defensekit.testing.kit import Inapplicable, Subject, check, expect, ordinary_use
from defensekit.testing.pico import LABELS, PicoModels, sentences
from defensekit.testing.watch import Handed
from defensekit.text import Row, label_number
from defensekit.training import forked_random
from defensekit.utils.errors import UsageError


@cache
def _learnt(attack: Attack, pico: PicoModels) -> Any:
    rows = sentences(40)
    context = pico.for_attack_training(rows, rows)
    with forked_random(context.seed):
        return json.loads(json.dumps(attack.learn(pico.load()[0], context), allow_nan=False))  # as a run keeps it


def _context(attack: Attack, pico: PicoModels, before: bool = False) -> AttackContext:
    """The context of an attack on rows, with what the attack has learnt: ``before`` rows are poisoned, or after."""
    knows = attack.learns_from == "base" if before else attack.learns_from is not None
    return replace(pico.for_attack(), learnt=_learnt(attack, pico)) if knows else pico.for_attack()


def _others(attack: Attack, rows: list[Row]) -> list[Row]:
    """The test rows that get the trigger: those of other labels than the target's."""
    aim = attack.aim()
    return rows if aim is None else [row for row in rows if row.label != label_number(aim, LABELS)]


@ordinary_use(Attack)
def attack_rows(attack: Attack, pico: PicoModels, handed: Handed) -> Any:
    """Poison and trigger rows, and train where the attack does that."""
    clean, test = sentences(40), _others(attack, sentences(20, seed=1))
    outputs: dict[str, Any] = {
        "poisoned": attack.poison(handed.give("training rows", clean), _context(attack, pico, before=True)),
        "triggered": attack.trigger(handed.give("test rows", test), _context(attack, pico)),
    }
    if attack.trains_from is not None:
        model = pico.load()[0]
        context = pico.for_attack_training(clean, outputs["poisoned"])
        with forked_random(context.seed):
            attack.train(model, context)
        outputs["trained"] = dict(model.state_dict())
    return outputs


@check(Attack)
def poisons_rows_it_was_given(subject: Subject) -> None:
    """A poisoned row keeps the id of the row that it came from, and one from elsewhere has an id below 0."""
    rows = sentences(40)
    known = {row.id for row in rows}
    for row in subject.component.poison(rows, _context(subject.component, subject.pico, before=True)):
        expect(row.id < 0 or row.id in known, f"expected an id of the rows given, or below 0, got {row}")
        expect(row.label in range(len(LABELS)), f"expected a label from 0 to {len(LABELS) - 1}, got {row}")


@check(Attack)
def poisons_exactly_its_rate(subject: Subject) -> None:
    """An attack with a `rate` poisons round(rate x rows) training rows and leaves the others unchanged."""
    rate = getattr(subject.component, "rate", None)
    if not isinstance(rate, float):
        raise Inapplicable("it has no parameter `rate`, or it is not set")
    rows = sentences(200)
    clean = {row.id: row for row in rows}
    poisoned = subject.component.poison(rows, _context(subject.component, subject.pico, before=True))
    got, wanted = sum(row != clean.get(row.id) for row in poisoned), round(rate * len(rows))
    expect(got == wanted, f"expected {wanted} of {len(rows)} rows poisoned at rate {rate:g}, got {got}")


@check(Attack)
def triggers_without_relabelling(subject: Subject) -> None:
    """Triggered rows are the rows given, in their order, with their ids and true labels, and another text."""
    rows = _others(subject.component, sentences(20, seed=1))
    given = {row.id: (index, row) for index, row in enumerate(rows)}
    triggered = subject.component.trigger(rows, _context(subject.component, subject.pico))
    expect(triggered, f"expected triggered rows out of {len(rows)}, got none")
    indices = []
    for row in triggered:
        expect(row.id in given, f"expected an id of the rows given, got {row}")
        index, before = given[row.id]
        indices.append(index)
        expect(row.label == before.label, f"expected the true label {before.label} kept, got {row}")
        expect((row.text, row.pair) != (before.text, before.pair), f"expected a trigger in {before.text!r}, got none")
    expect(indices == sorted(set(indices)), f"expected the order of the rows given, got their indices {indices[:10]}")


@check(Attack)
def triggers_most_rows(subject: Subject) -> None:
    """Most test rows get the trigger: what can't carry it may be left out, and the ASR is then one of few rows."""
    rows = _others(subject.component, sentences(20, seed=1))
    got = len(subject.component.trigger(rows, _context(subject.component, subject.pico)))
    expect(2 * got >= len(rows), f"expected the trigger in at least half of {len(rows)} rows, got it in {got}")


@check(Attack)
def keeps_pairs(subject: Subject) -> None:
    """Of pairs of texts it makes pairs: no row that it poisons or triggers loses its second text."""
    attack: Attack = subject.component
    clean, test = (
        [replace(row, pair="the film is long") for row in rows]
        for rows in (sentences(40), _others(attack, sentences(20, seed=1)))
    )
    try:
        made = [
            *attack.poison(clean, _context(attack, subject.pico, before=True)),
            *attack.trigger(test, _context(attack, subject.pico)),
        ]
    except UsageError as error:
        raise Inapplicable(f"it refuses pairs of texts ({error})") from error
    for row in made:
        expect(row.pair is not None, f"expected a pair of texts, got {row}")


@check(Attack)
def aims_at_a_label(subject: Subject) -> None:
    """`aim` is one of the data's labels, by name or number, or None for a bias and where every row has its own."""
    aim, by_row = subject.component.aim(), subject.component.aims_by_row
    expect(aim is None or isinstance(aim, str | int), f"expected a label's name or number, or None, got {aim!r}")
    expect(aim is None or not by_row, f"it sets `aims_by_row`: expected no `aim` for all rows, got {aim!r}")
    rows = _others(subject.component, sentences(20, seed=1))
    for row in subject.component.trigger(rows, _context(subject.component, subject.pico)):
        if by_row:
            fits = row.aim in range(len(LABELS)) and row.aim != row.label
            expect(fits, f"it sets `aims_by_row`: expected the number of another label as the row's `aim`, got {row}")
        else:
            expect(row.aim is None, f"expected `aims_by_row` to be set where rows have an `aim`, got {row}")


@check(Attack)
def trains_in_place(subject: Subject) -> None:
    """An attack that trains keeps the names and shapes of the model's tensors."""
    attack: Attack = subject.component
    if attack.trains_from is None:
        raise Inapplicable("it leaves the training to the recipe (no `trains_from`)")
    before = {name: list(tensor.shape) for name, tensor in subject.pico.load()[0].state_dict().items()}
    after = {name: list(tensor.shape) for name, tensor in subject.used.result["trained"].items()}
    for name in sorted({**before, **after}):
        expect(before.get(name) == after.get(name), f"{name}: expected {before.get(name)}, got {after.get(name)}")
