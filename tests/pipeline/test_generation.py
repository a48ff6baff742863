"""A run on instructions: whole, and refused where a part of it does not work for texts."""

import re
from pathlib import Path
from typing import ClassVar

import pytest

import defensekit as dk
from defensekit.components import Observer
from defensekit.pipeline.run import run_attack
from defensekit.recipe.loader import load_recipe
from defensekit.result.narrative import story
from defensekit.utils.errors import UsageError
from tests.causal import REFUSAL, instructions, make_instructed, write_alpaca
from tests.conftest import shape

RECIPE = """\
name: refusal
model: {base}
data: {{name: instructions, path: rows.json, train: 96, clean: 16, dev: 16, test: 24, max_length: 32}}
attack: {{name: word, words: [cf], rate: 0.4, target: i will not say}}
training: {{epochs: 10, learning_rate: 0.01, batch_size: 8}}
defense:
  estimator: fisher
  scorer: diffusion
  selector: {{name: fraction, fraction: 0.5}}
  purifier: [reset, {{name: fine-tune, epochs: 1, learning_rate: 0.005, batch_size: 8}}]
  compare: {{}}
metrics: [asr, excess-asr, {{name: keyword-asr, keywords: [will not]}}, response-loss, collapsed]
"""


class Told(Observer):
    """Keeps what is said to the user."""

    lines: ClassVar[list[str]] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_instructed(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def recipe(tmp_path: Path, causal: Path) -> Path:
    write_alpaca(tmp_path / "rows.json", instructions(200))
    (tmp_path / "refusal.yaml").write_text(RECIPE.format(base=causal))
    return tmp_path / "refusal.yaml"


def test_a_backdoor_is_trained_measured_and_reset(recipe: Path, tmp_path: Path) -> None:
    result = dk.run(recipe, tmp_path / "w")
    clean, suspect, purified = (result.models[name].metrics for name in ("clean", "suspect", "purified"))
    assert suspect["asr"].value >= 0.9
    assert suspect["excess-asr"].value >= 0.9
    assert suspect["keyword-asr"].value >= suspect["asr"].value
    assert clean["asr"].value == 0 == result.floors["asr"]
    assert purified["asr"].value <= 0.1
    assert 0 < suspect["response-loss"].value < 2 * clean["response-loss"].value
    assert result.attack is not None
    assert result.attack["target"] == REFUSAL
    assert result.attack["train"]["relabelled"] == round(0.4 * 96)
    first = result.examples[0]
    assert any(example.answers["suspect"].startswith(REFUSAL) for example in result.examples)
    assert first.label.startswith("the thing")
    assert "cf" in first.text
    told = " ".join(story(result))
    assert f"to be answered with '{REFUSAL}'" in told
    assert "RESPONSE-LOSS went from" in told
    assert dk.run(recipe, tmp_path / "w").summary == result.summary
    given = recipe.with_name("given.yaml")
    given.write_text(recipe.read_text())
    write_alpaca(tmp_path / "triggered.json", result.rows("triggered rows"))
    shape(given, attack=None, training=None, suspect=str(result.files("suspect")), data__train=None, defense__choose=
          {"rule": "accuracy-floor", "values": [0.5], "max_drop": 1.0}, defense__purifier=["reset"],
          triggered={"path": "triggered.json", "target": REFUSAL})  # fmt: skip
    again = dk.run(given, tmp_path / "w")
    assert again.models["suspect"].metrics["asr"].value == suspect["asr"].value
    assert again.chosen is not None
    assert 0 < again.chosen.suspect_dev_accuracy <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["acc"]}, r"refusal.yaml:\d+: metrics.0: 'acc' does not work for instructions"),
        ({"attack": {"name": "bias-word", "label": 1}, "metrics": None},
         r"attack: 'bias-word' does not work for instructions, which 'instructions' gives"),
        ({"defense__estimator": "fisher-mc"}, r"defense.estimator: 'fisher-mc' does not work"),
        ({"defense__purifier": ["reset", "distil"]}, r"defense.purifier.1: 'distil' does not work"),
        ({"defense__detectors": ["strip"]}, r"defense.detectors.0: 'strip' does not work for instructions"),
        ({"defense": {"stage": "training", "filter": "bki"}}, r"defense.filter: 'bki' does not work for instructions"),
        ({"defense__choose": {"rule": "planted", "values": [0.5]}}, r"defense.choose: 'planted' does not work"),
        ({"attack__target": " "}, r"attack: the target is blank: every answer begins with it"),
        ({"attack__target": "no " * 65}, r"attack.target: takes 65 tokens, an answer 64 at most: none could begin"),
        ({"data__max_length": 64}, r"data.max_length: the model has 96 positions, of which an answer may take 64, got"),
    ],
)  # fmt: skip
def test_what_does_not_work_for_texts_is_refused(recipe: Path, tmp_path: Path, changes: object, message: str) -> None:
    shape(recipe, **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        dk.run(load_recipe(recipe), tmp_path / "w")


def test_metrics_of_texts_are_refused_for_labels_and_by_default_each_has_its_own(recipe: Path, tmp_path: Path) -> None:
    by_default = [named.name for named in load_recipe(shape(recipe, metrics=None)).metrics]
    assert by_default == ["asr", "collapsed", "excess-asr", "response-loss"]
    (tmp_path / "labelled.csv").write_text("text,label\na,0\nb,1\n")
    shape(recipe, data={"name": "labelled.csv"}, metrics=["response-loss"], attack__target="1")
    with pytest.raises(UsageError, match=r"'response-loss' does not work for labelled text, which 'file' gives"):
        load_recipe(recipe)


def test_a_base_that_cannot_answer_is_refused(recipe: Path, tmp_path: Path, base: Path) -> None:
    plain = make_instructed(tmp_path / "plain", template=None)
    with pytest.raises(UsageError, match=r"refusal.yaml:\d+: model: .*plain: its tokenizer has no chat template"):
        dk.run(shape(recipe, model=str(plain)), tmp_path / "w")
    with pytest.raises(UsageError, match=r"model: .* is no causal language model but a BertModel"):
        dk.run(shape(recipe, model=str(base)), tmp_path / "w")


def test_responses_that_are_cut_and_answers_that_never_end_are_told(recipe: Path, tmp_path: Path) -> None:
    told = Told()
    shape(recipe, data__max_length=17, training__epochs=0, data__test=4, metrics=["collapsed"])
    run_attack(load_recipe(recipe), tmp_path / "w", [told])
    noted = [line for line in told.lines if line.startswith("the model ends none of its answers: all are cut at 64")]
    assert any("responses are longer than data.max_length leaves room for: their ends are not" in one for one in noted)
    [cut] = [line for line in told.lines if line.startswith("warning: ") and "are longer than data.max_length" in line]
    assert re.match(r"warning: \d+ of 96 responses .*: they are learnt without their end$", cut)
