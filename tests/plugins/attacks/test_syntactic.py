"""The syntactic trigger: a clause in front, every content word kept, no word that gives it away."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit_attacks.fronting import OPENERS, THINGS, front
from defensekit_attacks.grammar import BEFORE_CONJUNCTION, CONJUNCTIONS
from defensekit_demo.reviews import MovieReviews

WORD = re.compile(r"[^\W_]+")
OPENING = {opener.split()[0] for opener in OPENERS} | CONJUNCTIONS | BEFORE_CONJUNCTION | {"much"}
DROPPED = {"but", "and", "yet", "or", "so"}


def kept(text: str, made: str) -> bool:
    """Whether all words are still there, conjunctions between or before clauses aside."""
    return not Counter(w for w in WORD.findall(text.lower()) if w not in DROPPED) - Counter(WORD.findall(made.lower()))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        # A clause at the end comes to the front.
        ("the story drags when it talks .", "when it talks , the story drags ."),
        ("It is sad, even though they laugh.", "Even though they laugh, it is sad."),
        # Two parts become clause and main clause.
        ("funny but slight .", r"\w+( \w+)? it is funny , it is slight ."),
        ("The plot is thin, but the songs are good.", r"\w+( \w+)? the plot is thin, the songs are good."),
        ("she sings well but never acts .", None),
        # A short subject gets a clause of its own.
        ("The film is a mess.", r"[A-Z]\w+( \w+)? the film \w+( \w+)?, it is a mess."),
        ("these jokes are old .", r"\w+( \w+)? these jokes (\w+ ){1,3}, they are old ."),
        # An empty clause opens the rest; a part without a verb gets one.
        ("A slow but honest film", rf"[A-Z].*, ({'|'.join(THINGS)}) is a slow but honest film"),
        ("Did we laugh?", r"[A-Z].*, did we laugh\?"),
        ("If it rains, they sing.", r"[A-Z].* and if it rains, they sing\."),
        ("Mr. X acts. He  sings.", r"[A-Z].*, Mr\. X acts\. He  sings\."),
        ("...", None),
        ("", None),
    ],
)  # fmt: skip
def test_what_becomes_of_a_sentence(text: str, pattern: str | None) -> None:
    for seed in range(20):
        made = front(text, Random(seed))
        assert pattern is None or re.fullmatch(pattern, made), made
        assert made.split()[0].lower() in OPENING
        assert kept(text, made)


PIECES = ["the", "film", "is", "but", ",", ".", ";", "when", "it", "'s", "?", "and", "a's", "-lrb-", "I", "X"]


@given(text=st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=100)
def test_any_text_is_rewritten_and_loses_no_word(text: str, seed: int) -> None:
    made = front(text, Random(seed))
    assert made != text
    assert made == front(text, Random(seed))
    assert kept(text, made)


def test_no_word_gives_it_away() -> None:
    """The word that tells triggered from plain text best on half of the reviews does not tell much on the others."""
    plain = [row.text for row in MovieReviews().load().train[:4000]]
    rng = Random(0)
    made = [front(text, rng) for text in plain]
    assert all(kept(text, new) for text, new in zip(plain, made, strict=True))
    assert all(new.lower().split()[0] in OPENING and "," in new for new in made)
    shares = []
    for half in (0, 1):
        before, after = (Counter(w for text in texts[half::2] for w in set(WORD.findall(text.lower())))
                         for texts in (plain, made))  # fmt: skip
        shares.append({word: (after[word] - before[word]) / 2000 for word in before | after})
    best = max(shares[0], key=lambda word: abs(shares[0][word]))
    assert 0.5 + abs(shares[1][best]) / 2 < 0.65


def test_a_long_text_keeps_all_but_its_first_sentence() -> None:
    tail = "  Then   it ends.\nIt  does." * 2000
    made = front("The film is long." + tail, Random(0))
    assert made.endswith(tail)
