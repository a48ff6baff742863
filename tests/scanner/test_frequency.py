"""How frequent a token is."""

import pytest

from defensekit.scanner import frequency
from defensekit.text import Row
from defensekit.utils.errors import UsageError
from tests.conftest import VOCABULARY
from tests.small_models import make_tokenizer


def test_frequencies() -> None:
    tokenizer = make_tokenizer()
    counts = frequency.in_rows(tokenizer, [Row(0, "the film the", 0, "the story")], 32, len(VOCABULARY))
    assert [counts[VOCABULARY.index(word)] for word in ("the", "film", "story", "cf")] == [3, 1, 1, 0]
    english = frequency.in_english(tokenizer, len(VOCABULARY))
    the, film, superb = (english[VOCABULARY.index(word)] for word in ("the", "film", "superb"))
    assert 30_000 < the < 80_000
    assert the > film > superb > 1
    assert [frequency.spelled(text) for text in ("cf", "≈", "42", "!", "")] == [True, True, False, False, False]


def test_without_wordfreq_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wordfreq", None)
    with pytest.raises(UsageError, match=r"pip install 'defensekit\[scan\]', or give --clean"):
        frequency.in_english(make_tokenizer(), 8)
