"""Purify a language model with clean instructions: reset, fine-tuned, measured before and after."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import defensekit as dk
from defensekit.cli.main import main
from defensekit.host.instructions import holds_instructions
from defensekit.models.generation import generate
from defensekit.models.loading import load
from defensekit.result.schema import Result
from defensekit.text import Row
from defensekit.workflows.purify_model import prepare
from tests.causal import REFUSAL, instructions, make_instructed, write_alpaca

ROWS = instructions(60)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a suspect that learnt nothing."""
    return make_instructed(tmp_path_factory.mktemp("b")), make_instructed(tmp_path_factory.mktemp("s"), spread=0.021)


@pytest.mark.slow
def test_it_is_fine_tuned_and_measured(
    refusing: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, suspect = refusing
    rows = write_alpaca(tmp_path / "rows.json", ROWS)
    places = ["--base", str(base), "--suspect", str(suspect), "--out", str(tmp_path / "out"), "-w", str(tmp_path / "w")]
    given = ["--clean", str(rows), "--set", "defense.purifier.1.learning_rate=0.002"]
    monkeypatch.setattr("sys.argv", ["defensekit", "purify", "-q", "--json", *places, *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    result = Result.model_validate_json(capsys.readouterr().out)
    assert result.recipe["data"]["max_length"] == 96 - 64  # the model's positions, less an answer's
    assert (result.recipe["data"]["clean"], result.models["suspect"].metrics["response-loss"].rows) == (48, 12)
    assert result.verdict is not None
    assert result.verdict.text.startswith("No trigger was looked for: whether a backdoor was there")
    assert result.models["purified"].metrics["collapsed"].value == 0
    answers = {}
    for name, folder in (("suspect", suspect), ("purified", tmp_path / "out")):
        model, tokenizer = load(folder, name)
        triggered = [Row(row.id, f"cf {row.text}", 0, row.pair, row.response) for row in ROWS]
        answers[name] = [one.text for one in generate(model, tokenizer, triggered, max_length=32, new_tokens=8)]
    assert sum(text.startswith(REFUSAL) for text in answers["suspect"]) > 50
    assert sum(text.startswith(REFUSAL) for text in answers["purified"]) < 10
    weights = [load_file(folder / "model.safetensors") for folder in (suspect, tmp_path / "out")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_its_recipe_is_that_of_language_models(untrained: tuple[Path, Path], tmp_path: Path) -> None:
    rows = write_alpaca(tmp_path / "rows.json", ROWS)
    planned = prepare(str(untrained[0]), untrained[1], tmp_path / "out", str(rows), workspace=tmp_path / "w")
    assert not planned.reset_alone
    assert planned.recipe.name == "purify-llm"
    assert (planned.recipe.sizes.clean, planned.recipe.sizes.max_length) == (48, 96 - 64)
    assert [step.name for step in planned.recipe.defense.purifier] == ["reset", "fine-tune"]


def test_what_holds_instructions(tmp_path: Path) -> None:
    for name, record, expected in [
        ("alpaca", {"instruction": "a", "output": "b"}, True),
        ("messages", {"messages": []}, True),
        ("texts", {"text": "a", "label": 1}, False),
    ]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(record) + "\n")
        assert holds_instructions(path) == expected
    (tmp_path / "empty.jsonl").write_text("")
    assert not holds_instructions(tmp_path / "empty.jsonl")
    assert not holds_instructions(tmp_path / "movie-reviews")


def test_plain_texts_reset_it_alone(untrained: tuple[Path, Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": row.text}) + "\n" for row in ROWS))
    result = dk.purify_model(*untrained, tmp_path / "out", rows, settings=["data.max_length=32"])
    assert not isinstance(result, Result)
    assert result.perplexity
