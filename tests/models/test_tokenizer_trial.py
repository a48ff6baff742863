"""A tokenizer that panics, explodes or never ends is one line."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from defensekit.models import tokenizer_trial
from defensekit.models.loading import load_tokenizer
from defensekit.models.tokenizer_trial import check_tokenizer
from defensekit.text import Row, encode
from defensekit.utils.errors import UsageError
from tests.small_models import make_tokenizer

Plain = dict[str, Any]


def changed(folder: Path, change: Callable[[Plain], None]) -> Path:
    make_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    (folder / "config.json").write_text("{}")
    return folder


def template(plain: Plain) -> None:
    part = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    plain["post_processor"]["single"] = [part] * 100_000 + plain["post_processor"]["single"]


def no_template(plain: Plain) -> None:
    plain["post_processor"]["single"] = plain["post_processor"]["pair"] = []


def charsmap(plain: Plain) -> None:
    plain["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


def special_tokens(plain: Plain) -> None:
    added = plain["added_tokens"][0]
    plain["added_tokens"] += [added | {"id": 100 + i, "content": f"<{i}>"} for i in range(20_001)]


def long_token(plain: Plain) -> None:
    plain["model"]["vocab"]["x" * 50_000] = 1_000


def large_number(plain: Plain) -> None:
    plain["model"]["vocab"]["zz"] = 4_000_000_000


def long_prefix(plain: Plain) -> None:
    plain["normalizer"] = {"type": "Prepend", "prepend": "x" * 1_000_000}


def expression(plain: Plain) -> None:
    plain["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": "b"}


def no_unknown(plain: Plain) -> None:
    plain["model"] |= {"type": "WordPiece", "unk_token": "gone", "continuing_subword_prefix": "##"}
    plain["model"]["max_input_chars_per_word"] = 100


def no_merges(plain: Plain) -> None:
    plain["model"] = {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (template, r"its post_processor has 100,0\d\d parts; at most 2,000"),
        (charsmap, "refused"),
        (expression, "retry-limit-in-match over"),
        (special_tokens, r"it has 20,0\d\d added tokens; at most 20,000"),
        (long_token, "a token has 50,000 characters; at most 10,000"),
        (large_number, "a token has the number 4,000,000,000; at most 10,000,000"),
        (long_prefix, "a rule has a text of 1,000,000 characters; at most 10,000"),
        (no_unknown, "refused"),
        (no_merges, "refused"),
    ],
)
def test_a_tokenizer_that_fails_is_one_line(tmp_path: Path, change: Callable[[Plain], None], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        load_tokenizer(changed(tmp_path, change))
    assert str(caught.value).startswith(f"{tmp_path}: its tokenizer is refused: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "[PAD]", "X\x1b[2J": 1}}}),
        ("tokenizer_config.json", {"pad_token": {"__type": "AddedToken", "content": "[PAD]", "X\x1b[2J": 1}}),
        ("special_tokens_map.json", {"pad_token": {"content": "[PAD]", "X\x1b[2J": 1}}),
        ("special_tokens_map.json", {"extra_special_tokens": [{"content": "[PAD]", "X\x1b[2J": 1}]}),
        ("tokenizer.json", {"added_tokens": [{"id": 0, "content": "[PAD]", "X\x1b[2J": 1}]}),
    ],
)
def test_keys_of_tokens_that_the_library_would_print(
    tmp_path: Path, file: str, keys: Plain, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = changed(tmp_path, lambda plain: plain["added_tokens"].clear())
    path = folder / file
    settings = json.loads(path.read_text()) if path.exists() else {}
    settings = {key: value for key, value in settings.items() if key != "added_tokens_decoder"} | keys
    path.write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"a token has the unknown key 'X\\x1b\[2J'"):
        load_tokenizer(folder)
    assert capfd.readouterr().out == ""


def test_one_that_grows_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grow(plain: Plain) -> None:
        doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
        plain["normalizer"] = {"type": "Sequence", "normalizers": [doubling] * 40}

    monkeypatch.setattr(tokenizer_trial, "SECONDS", 1)
    with pytest.raises(UsageError, match=r"more than \d+ seconds|more than 4 GiB"):
        check_tokenizer(changed(tmp_path, grow))


def with_vocabulary(folder: Path, words: list[str]) -> Path:
    """A BERT's folder as older versions wrote it: its words, a line each, and no tokenizer.json."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    return folder


def test_a_vocabulary_in_another_form_is_tried_as_well(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(with_vocabulary(tmp_path / "a", ["the", "film"]))
    assert tokenizer("The film")["input_ids"] == [2, 5, 6, 3]
    with pytest.raises(UsageError, match="refused: a token has 50,000 characters; at most 10,000"):
        check_tokenizer(with_vocabulary(tmp_path / "b", ["x" * 50_000]))
    check_tokenizer(tmp_path / "a")  # the other folder's refusal is its own
    with pytest.raises(UsageError, match=r"there is no tokenizer\.json, and the other files hold no vocabulary"):
        check_tokenizer(with_vocabulary(tmp_path / "c", []))


def test_a_token_may_have_the_name_of_a_setting(tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda plain: None)
    (folder / "added_tokens.json").write_text('{"vocab": 60}')
    check_tokenizer(folder)


def test_a_long_map_of_sentencepiece_is_no_rule() -> None:
    plain = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * 400_000}, "other": ["a", {"b": "c"}]}
    assert sorted(tokenizer_trial.texts_in(plain, but="precompiled_charsmap")) == ["Precompiled", "a", "c"]


def test_a_good_one_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_tokenizer(changed(tmp_path / "a", lambda plain: None))
    monkeypatch.setattr(tokenizer_trial, "refusal", None)
    load_tokenizer(changed(tmp_path / "b", lambda plain: None))


def test_a_template_without_parts_is_no_traceback(tmp_path: Path) -> None:
    with suppress(UsageError):
        encode(load_tokenizer(changed(tmp_path, no_template)), [Row(0, "the film", 0)], 8)


def test_an_expression_that_explodes_on_a_row_alone_is_one_line(tmp_path: Path) -> None:
    def rare(plain: Plain) -> None:
        plain["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": "b"}

    with pytest.raises(UsageError, match=r"the tokenizer fails on the rows \(.*retry-limit-in-match over"):
        encode(load_tokenizer(changed(tmp_path, rare)), [Row(0, "x" * 60, 0)], 8)


def test_a_panic_on_a_row_is_one_line(tmp_path: Path) -> None:
    class PanicException(BaseException):
        pass

    def panics(*_: object, **__: object) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    with pytest.raises(UsageError, match="the tokenizer fails on the rows"):
        encode(panics, [Row(0, "a", 0)], 8)  # type: ignore[arg-type]
