"""The model card: what it says, and that nothing in it is markup."""

import re
from pathlib import Path

import transformers
from huggingface_hub import ModelCard

import defensekit
from defensekit.models.manifest import MODEL_MANIFEST, read_manifest
from defensekit.result.model_card import CARD, card
from defensekit.result.schema import Result
from defensekit.utils.files import file_digest
from tests.result.helpers import poisoned


def test_the_card_has_valid_metadata_and_says_what_was_done(result: Result) -> None:
    folder = Path(result.folder) / "purified"
    loaded = ModelCard.load(folder / CARD)
    assert loaded.data.library_name == "transformers"
    assert loaded.data.pipeline_tag == "text-classification"
    [measured] = loaded.data.eval_results
    assert measured.metric_type == "accuracy"
    assert measured.metric_value == round(result.models["purified"].metrics["acc"].value, 4)
    for part in (
        "What was done",
        "What is not promised",
        "No certificate",
        "| suspect |",
        "| purified",  # a mark stands behind the name where training the base anew gave as much
        "rule:",
        "was chosen and is",
    ):
        assert part in loaded.text, part
    home = str(Path(result.folder).parents[2])
    assert home not in loaded.content  # no path of the machine that made it
    answers = transformers.pipeline("text-classification", str(folder))(["the film is superb"])
    assert answers[0]["label"] in ("negative", "positive")


def test_a_hub_model_is_named_as_the_base(result: Result) -> None:
    data = result.model_dump()
    data["recipe"]["model"] = {"name": "hub", "id": "owner/base", "revision": "abc"}
    data["recipe"]["data"] |= {"name": "hub", "id": "owner/rows"}
    loaded = ModelCard(card(Result.model_validate(data)))
    assert loaded.data.base_model == "owner/base"
    assert loaded.data.eval_results[0].dataset_type == "owner/rows"


def test_text_from_outside_is_no_markup_in_the_card(result: Result) -> None:
    text = ModelCard(card(poisoned(result))).text
    prose = text[: text.index("```yaml")]
    assert not re.search(r"(?<!\\)<", prose)
    assert not re.search(r"(?<!\\)\[a", prose)
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_a_run_again_keeps_the_folder_and_its_card(result: Result) -> None:
    folder = Path(result.folder)
    before = (folder / "purified" / CARD).read_text()
    made = (folder / "purified/model.safetensors").stat().st_mtime_ns
    defensekit.run(folder / "recipe.yaml", folder.parents[1])
    assert (folder / "purified/model.safetensors").stat().st_mtime_ns == made
    assert (folder / "purified" / CARD).read_text() == before


def test_the_manifest_covers_the_card(result: Result) -> None:
    """Another card, as one of another version is, is written anew with its digest."""
    folder = Path(result.folder)
    purified = folder / "purified"
    before = (purified / CARD).read_bytes()
    assert read_manifest(purified)["files"][CARD] == file_digest(purified / CARD)
    (purified / CARD).write_text("of another version")
    defensekit.run(folder / "recipe.yaml", folder.parents[1])
    assert (purified / CARD).read_bytes() == before
    assert read_manifest(purified)["files"] == {
        path.name: file_digest(path) for path in purified.iterdir() if path.name != MODEL_MANIFEST
    }
