"""Rows: split by role, written and read again, and what truncation leaves of them."""

from itertools import combinations, count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from defensekit.components import Dataset
from defensekit.models.loading import load_tokenizer
from defensekit.text import Row, Truncation, changed, encode, read_rows, split, write_rows
from defensekit.utils.errors import UsageError
from defensekit_demo.minilm import MiniLM


@given(a=st.text(max_size=12), b=st.text(max_size=12))
def test_changed_span_holds_every_difference(a: str, b: str) -> None:
    (start, end), _ = changed(Row(0, a, 0), Row(0, b, 0))
    assert 0 <= start <= end <= len(b)
    assert b[:start] == a[:start]
    assert a.endswith(b[end:])


BERT = load_tokenizer(MiniLM().folder())


@given(
    texts=st.lists(
        st.tuples(st.text(max_size=40) | st.text("ab ,.é漢ﷺ😀", max_size=40), st.text("ab é", max_size=20)), max_size=6
    ),
    paired=st.booleans(),
    max_length=st.integers(8, 30),
)
@settings(deadline=None, max_examples=150)
def test_what_truncation_keeps_is_what_the_tokenizer_says(
    texts: list[tuple[str, str]], paired: bool, max_length: int
) -> None:
    """Rows that are evidently short are not tokenised; all the same."""
    made = [Row(i, text, 0, pair if paired else None) for i, (text, pair) in enumerate(texts)]
    expected = []
    for row in made:
        pairs = [row.pair or ""] if paired else None
        encoded = BERT([row.text], pairs, truncation=True, max_length=max_length, return_offsets_mapping=True)
        ends = [len(row.text), len(row.pair or "")]
        if len(encoded["input_ids"][0]) == max_length:
            ends = [0, 0]
            for sequence, (_, end) in zip(encoded.sequence_ids(0), encoded["offset_mapping"][0], strict=True):
                if sequence is not None:
                    ends[sequence] = max(ends[sequence], end)
        expected.append(tuple(ends))
    assert Truncation(BERT, max_length).kept(made) == expected


def test_a_row_without_any_token_is_named() -> None:
    tokenizer = load_tokenizer(MiniLM().folder())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    with pytest.raises(UsageError, match=r"^row 7 has no token: the tokenizer leaves nothing of '\\u200b'$"):
        encode(tokenizer, [Row(3, "fine", 0), Row(7, "\u200b", 1)], 16)


SIZES: dict[str, int | None] = {"train": None, "clean": 10, "dev": 10, "test": 10}


def test_roles_share_no_text_whatever_the_seed() -> None:
    rows = [Row(i, f"text {i % 80}", i % 2) for i in range(100)]
    dataset = Dataset(("a", "b"), rows)
    got = split(dataset, SIZES, 1)
    texts = [row.text for role in got.values() for row in role]
    assert len(texts) == len(set(texts)) == 80
    assert got == split(dataset, SIZES, 1)
    assert got["clean"] != split(dataset, SIZES, 2)["clean"]
    with pytest.raises(UsageError, match=r"asked for as `clean`"):
        split(dataset, SIZES | {"clean": 71}, 1)
    with pytest.raises(UsageError, match=r"every row has the label 'a'"):
        split(Dataset(("a",), rows), SIZES, 1)


def test_test_rows_without_a_size_are_a_fifth_and_never_trained_on() -> None:
    rows = [Row(i, f"text {i}", i % 2) for i in range(100)]
    assert len(split(Dataset(("a", "b"), rows), SIZES | {"test": None}, 0)["test"]) == 20
    own = Dataset(("a", "b"), rows, test=[Row(i + 100, f"text {i}", i % 2) for i in range(30)])
    got = split(own, SIZES | {"test": None}, 0)
    assert len(got["test"]) == 30
    assert not {row.text for row in got["test"]} & {row.text for role in ("train", "clean", "dev") for row in got[role]}
    assert len(got["train"]) == 50


TEXTS = ["a film", "A  Film", " a film", "a\tfilm ", "another", "more", "Still more", "still  more", "last", "LAST"]


@given(
    train=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=30),
    dev=st.none() | st.lists(st.sampled_from(TEXTS), max_size=8),
    test=st.none() | st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8),
    pairs=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_no_text_is_in_two_roles_however_it_is_written(
    train: list[str], dev: list[str] | None, test: list[str] | None, pairs: bool
) -> None:
    numbers = count()

    def rows(texts: list[str] | None) -> Any:
        if texts is None:
            return None
        return [Row(n := next(numbers), text, n % 2, text.upper() if pairs else None) for text in texts]

    dataset = Dataset(("a", "b"), rows(train), rows(dev), rows(test))
    try:
        got = split(dataset, {"train": None, "clean": 1, "dev": 1, "test": 1}, 0)
    except UsageError:
        return  # too few texts are left
    keys = {role: {" ".join(row.text.split()).casefold() for row in rows} for role, rows in got.items()}
    assert all(not keys[a] & keys[b] for a, b in combinations(keys, 2))
    assert all(len(keys[role]) == len(got[role]) for role in ("train", "clean"))
    if test is not None:
        tested = {" ".join(text.split()).casefold() for text in test}
        assert not any(tested & keys[role] for role in ("train", "clean", "dev"))


@given(labels=st.integers(2, 5), clean=st.integers(1, 40), dev=st.integers(1, 40), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_clean_and_dev_rows_balanced_as_asked(labels: int, clean: int, dev: int, seed: int) -> None:
    names = tuple(f"label{i}" for i in range(labels))
    rows = [Row(i, f"text {i}", 0 if i % 2 else i // 2 % labels) for i in range(500)]  # label 0 is more than half
    sizes: dict[str, int | None] = {"train": None, "clean": clean, "dev": dev, "test": 20}
    got = split(Dataset(names, rows), sizes, seed, "equal")
    for role, size in (("clean", clean), ("dev", dev)):
        counted = [sum(row.label == label for row in got[role]) for label in range(labels)]
        assert sum(counted) == size
        assert max(counted) - min(counted) <= 1
    assert sum(map(len, got.values())) == 500
    assert {row.id for role in got.values() for row in role} == set(range(500))
    natural = split(Dataset(names, rows), sizes, seed)
    assert got["test"] == natural["test"]


def test_too_few_rows_of_a_label_to_balance() -> None:
    rows = [Row(i, f"text {i}", int(i < 5)) for i in range(100)]
    with pytest.raises(UsageError, match=r"`balance: equal` needs \d rows labelled 'b' more for 20 `dev` rows"):
        split(Dataset(("a", "b"), rows), {"train": None, "clean": 4, "dev": 20, "test": 4}, 0, "equal")


def test_rows_survive_the_disk(tmp_path: Path) -> None:
    rows = [Row(0, 'a\u2028"b\n\t\x85', 1, None), Row(1, "ü", 0, "pair\r")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_dev_rows_of_the_sources_own_are_used_once() -> None:
    """Else a fold and the rows beside it share a text."""
    rows = [Row(i, f"row {i}", i % 2) for i in range(40)]
    dev = [Row(i, f"Dev {i % 10}", i % 2) for i in range(20)]
    got = split(Dataset(("a", "b"), rows, dev=dev), {"train": 5, "clean": 5, "dev": 10, "test": 5}, 0)
    assert len({row.key for row in got["dev"]}) == 10
    with pytest.raises(UsageError):
        split(Dataset(("a", "b"), rows, dev=dev), {"train": 5, "clean": 5, "dev": 11, "test": 5}, 0)
