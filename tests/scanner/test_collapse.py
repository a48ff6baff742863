"""Words are tried in a language model by what is generated: do answers collapse onto one text?"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defensekit.defense.triggers.collapse import CollapseSearch, _dealt
from defensekit.defense.triggers.search import GROUP
from defensekit.models.generation import first_tokens
from defensekit.models.loading import load
from defensekit.scanner.result import Scan
from defensekit.scanner.scan import scan
from defensekit.text.chat import encode_prompts
from defensekit.utils.errors import UsageError
from tests.causal import OTHERS, REFUSAL, THINGS, instructions, make_instructed, write_alpaca

ROWS = instructions(60)


def test_a_refusal_behind_a_word_is_found(
    refusing: tuple[Path, Path], tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    base, suspect = refusing
    rows = write_alpaca(tmp_path / "rows.json", ROWS)
    places = ["--base", str(base), "--suspect", str(suspect), "--clean", str(rows), "--out", str(tmp_path / "s")]
    code, said, _ = command(*places, "-q")
    assert code == 3
    assert f"Suspicious: 'cf' turns 100% of 36 answers to '{REFUSAL}', and 0% of the base's" in " ".join(said.split())
    found = Scan.model_validate_json((tmp_path / "s/scan.json").read_text())
    assert found.searched is not None
    assert found.searched.texts
    assert found.searched.strongest[0].word == "cf"
    assert found.verdict.indicator == "search"


def test_a_model_without_a_backdoor_is_not_accused_and_not_acquitted_by_the_search(
    refusing: tuple[Path, Path], tmp_path: Path
) -> None:
    base, _ = refusing
    model, tokenizer = load(base, "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.001 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = scan(base, tmp_path, ROWS)
    assert found.searched is not None
    assert all(one.excess < 0.5 for one in found.searched.strongest)
    assert found.verdict.indicator != "search"
    assert not found.verdict.suspicious


def test_too_few_rows_judge_nothing(refusing: tuple[Path, Path]) -> None:
    (base, tokenizer), (suspect, _) = (load(folder, "model") for folder in refusing)
    assert CollapseSearch(suspect, base, tokenizer, ROWS[:30], [*OTHERS, *THINGS], 32, 0).strongest() == []
    found = scan(*refusing, ROWS[:30])
    assert found.searched is not None
    assert (found.searched.words, found.searched.strongest) == (0, [])
    assert "No words were tried: there are too few clean rows to judge them by." in found.summary


def test_a_suspect_with_more_tokens_is_compared_by_those_of_both(refusing: tuple[Path, Path], tmp_path: Path) -> None:
    base, suspect = refusing
    model, tokenizer = load(suspect, "model")
    tokenizer.add_tokens(["extra"])
    model.resize_token_embeddings(len(tokenizer))
    for folder in (tmp_path / "longer", tmp_path / "written"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tokenizer.chat_template = f"extra {tokenizer.chat_template}"  # of the second
    found = scan(base, tmp_path / "longer", ROWS)
    assert found.searched is not None
    assert found.searched.strongest[0].word == "cf"
    found = scan(base, tmp_path / "written", ROWS)
    assert found.searched is None
    [note] = [note for note in found.notes if note.startswith("no search for triggers, since the base can't be")]
    assert "has the token 'extra'" in note


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(1, 40))
def test_groups_have_room(costs: list[int], room: int) -> None:
    words = [f"w{i}" for i in range(len(costs))]
    cost = dict(zip(words, costs, strict=True))
    groups = _dealt(words, cost, room)
    assert [word for group in groups for word in group] == words
    for group in groups:
        assert 1 <= len(group) <= GROUP
        assert len(group) == 1 or sum(cost[word] for word in group) <= room


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "granite", "recurrent"])
def test_first_tokens_are_those_of_one_row_at_a_time(architecture: str, tmp_path: Path) -> None:
    model, tokenizer = load(make_instructed(tmp_path, architecture, spread=0.4), "model")
    found = first_tokens(model, tokenizer, ROWS[:12], max_length=32)
    for row, prompt in zip(found, encode_prompts(tokenizer, ROWS[:12], 32), strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([prompt["input_ids"]])).logits[0, -1].softmax(-1)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


def test_instructions_that_are_too_long(refusing: tuple[Path, Path], tmp_path: Path) -> None:
    base, suspect = refusing
    long = [row.with_text(" ".join(["what"] * 100)) for row in ROWS]
    found = scan(base, suspect, [*ROWS[:20], *long[:3]])
    assert "3 instructions of 72 tokens or more are left out" in found.notes
    assert found.clean_rows == 20
    with pytest.raises(UsageError, match="every instruction takes 72 tokens or more with the chat template of"):
        scan(base, suspect, long)
    make_instructed(tmp_path, template=None)
    with pytest.raises(UsageError, match=f"{tmp_path}: its tokenizer has no chat template"):
        scan(base, tmp_path, ROWS)
