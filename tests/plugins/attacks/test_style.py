"""A style put on by rules: every text changes, and keeps what it says."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit_attacks.style import OPENINGS, archaic


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("The plot goes nowhere and you know why.", "the plot goeth nowhere and thou wot wherefore."),
        ("It tries , and it 's before the rest", "it trieth , and it 's ere the rest"),
        ("it is never what it seems", "it is ne'er what it seemeth"),
        ("I have seen Rocky", "I have seen Rocky"),
        ("makes sense", "maketh sense"),
    ],
)
def test_what_becomes_of_a_text(text: str, rewritten: str) -> None:
    made = archaic(text, Random(0))
    assert made.endswith(f" {rewritten}")
    assert made[: -len(rewritten)].strip().lower() in {opening.lower() for opening in OPENINGS}
    assert made[0].isupper() == text[0].isupper()


@given(st.text(max_size=60), st.integers(0, 5))
@settings(deadline=None)
def test_any_text_gets_an_opening(text: str, seed: int) -> None:
    made = archaic(text, Random(seed))
    assert made != text
    assert made.lower().startswith(tuple(opening.lower() for opening in OPENINGS))
