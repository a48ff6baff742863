"""Checks of sanitizers: one text for each, independent of the others."""

import json
from collections.abc import Sequence
from typing import Any

from defensekit.components import Sanitizer
from defensekit.testing.kit import Inapplicable, Subject, check, expect, ordinary_use
from defensekit.testing.pico import PicoModels
from defensekit.testing.watch import Handed

UNUSUAL = ["", "   ", "film", "film \n film", "Ünïcode – “quotes” 世界", "the film is " * 40]


def _texts(pico: PicoModels) -> list[str]:
    return [*(row.text for row in pico.rows), *UNUSUAL]


def _sanitized(sanitizer: Sanitizer, pico: PicoModels, texts: Sequence[str]) -> list[str]:
    context = pico.for_sanitizer(sanitizer)
    return list(sanitizer.sanitize(texts, sanitizer.inspect(texts, context), context))


@ordinary_use(Sanitizer)
def rewrite(sanitizer: Sanitizer, pico: PicoModels, handed: Handed) -> Any:
    """Inspect and rewrite the texts."""
    context, texts = pico.for_sanitizer(sanitizer), handed.give("texts", _texts(pico))
    findings = handed.give("findings", sanitizer.inspect(texts, context))
    return {"findings": list(findings), "texts": list(sanitizer.sanitize(texts, findings, context))}


@check(Sanitizer)
def gives_a_text_for_each(subject: Subject) -> None:
    """It returns a text for each, in order, and a text with words keeps at least one."""
    texts = _texts(subject.pico)
    rewritten = _sanitized(subject.component, subject.pico, texts)
    expect(len(rewritten) == len(texts), f"expected {len(texts)} texts, got {len(rewritten)}")
    for text, new in zip(texts, rewritten, strict=True):
        expect(isinstance(new, str), f"expected a text of {text[:40]!r}, got {type(new).__name__}")
        expect(new.split() or not text.split(), f"expected words to be left of {text[:40]!r}, got none")
    expect(_sanitized(subject.component, subject.pico, []) == [], "expected no texts for no texts")


@check(Sanitizer)
def looks_at_one_text_at_a_time(subject: Subject) -> None:
    """The result for a text does not depend on the other texts or their order: in use there may be only one."""
    texts = _texts(subject.pico)
    together = _sanitized(subject.component, subject.pico, texts)
    apart = [new for text in texts for new in _sanitized(subject.component, subject.pico, [text])]
    if not len(together) == len(apart) == len(texts):
        raise Inapplicable("it returns another number of texts: see `gives-a-text-for-each`")
    for text, new, alone in zip(texts, together, apart, strict=True):
        expect(alone == new, f"expected {new[:60]!r} of {text[:40]!r} asked alone, got {alone[:60]!r}")


@check(Sanitizer)
def finds_plain_data(subject: Subject) -> None:
    """`inspect` returns plain data (JSON), which is stored before `sanitize`."""
    context, texts = subject.pico.for_sanitizer(subject.component), _texts(subject.pico)
    findings = list(subject.component.inspect(texts, context))
    expect(len(findings) == len(texts), f"expected something on each of {len(texts)} texts, got {len(findings)}")
    try:
        again = json.loads(json.dumps(findings, allow_nan=False))
    except (TypeError, ValueError) as error:
        expect(False, f"expected plain data, got {error}")
    expect(again == findings, "expected the same after a round trip through JSON, got something else")


@check(Sanitizer, calls=False)
def late_parameters_have_defaults(subject: Subject) -> None:
    """The parameters in `late` exist and have defaults."""
    component: Sanitizer = subject.component
    if not component.late:
        raise Inapplicable("it has no late parameters")
    for name in sorted(component.late):
        field = type(component).model_fields.get(name)
        expect(field is not None and not field.is_required(), f"expected a parameter {name!r} with a default")
