"""What a sanitizer is handed, and what becomes of one that goes wrong."""

from collections.abc import Sequence
from typing import Any

import pytest

from defensekit.api import Sanitizer, SanitizerContext
from defensekit.defense import sanitizing
from defensekit.text import Row
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.defense.helpers import context


class Handed(Sanitizer):
    """Remembers what it was handed, and says something about it."""

    says: str = "x"

    def sanitize(self, texts: Sequence[str], found: Sequence[Any], context: SanitizerContext) -> Sequence[str]:
        SEEN.append((texts, found))
        return eval(self.says, {"texts": texts})


SEEN: list[Any] = []
PAIRS = [Row(7, "a b", 1, "c"), Row(3, "d", 0, "e f")]


def test_a_sanitizer_is_handed_texts_alone_and_pairs_one_by_one() -> None:
    made = sanitizing.sanitize(Handed(says="[t.upper() for t in texts]"), PAIRS, None, context(None))
    assert SEEN.pop() == (["a b", "c", "d", "e f"], [None] * 4)
    assert made == [Row(7, "A B", 1, "C"), Row(3, "D", 0, "E F")]
    assert sanitizing.summary(PAIRS, [PAIRS[0], Row(3, "d", 0, "f")]) == {
        "rows": 2, "changed": 1, "words": 6, "words_left": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("texts[1:]", "gave 3 answers for 4 texts, expected a text for each"),
        ("[None, *texts[1:]]", "gave 4 answers for 4 texts, expected a text for each"),
        ("['', *texts[1:]]", "left nothing of a text: 'a b'"),
        ("1 / 0", "failed: ZeroDivisionError"),
    ],
)
def test_a_sanitizer_that_goes_wrong_is_named(says: str, message: str) -> None:
    with pytest.raises(DefenseKitError, match="the sanitizer Handed of") as caught:
        sanitizing.sanitize(Handed(says=says), PAIRS, None, context(None))
    assert message in str(caught.value)


def test_one_that_reads_with_a_model_without_saying_so() -> None:
    with pytest.raises(UsageError, match="reads_with_language_model"):
        context(None).language_model()
