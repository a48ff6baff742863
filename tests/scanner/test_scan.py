"""The scan: a trigger shows by name, a clean model passes, and what can't be judged is said."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from defensekit.defense.triggers.insertion import insert, positions
from defensekit.defense.triggers.search import FEWEST, MORE
from defensekit.defense.triggers.search import Searched as Found
from defensekit.models import aligned
from defensekit.models.checkpoint import CAUSAL, CLASSIFIER, Checkpoint
from defensekit.models.loading import load
from defensekit.scanner import searching
from defensekit.scanner.result import Scan, ScanVerdict, Searched, Turned
from defensekit.scanner.scan import scan
from defensekit.scanner.verdict import judge
from defensekit.text import encode
from defensekit.training import TrainingSettings, fine_tune
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.workflows import purify
from tests.conftest import VOCABULARY
from tests.models.helpers import make_adapter
from tests.scanner.helpers import CF, ROWS, THRESHOLD, Command, drifted, save
from tests.small_models import ARCHITECTURES, make_tokenizer


def test_a_trigger_is_found_by_its_name(found: Scan) -> None:
    assert found.task == CLASSIFIER
    assert found.embedding is not None
    assert found.embedding.suspicious[0].token == "cf"
    assert found.triggers is not None
    strongest = max(found.triggers.candidates, key=lambda one: one.flipped)
    assert (strongest.token, strongest.label) == ("cf", "positive")
    assert strongest.flipped > 0.9
    assert found.verdict.suspicious is True
    assert found.verdict.indicator == "search"
    assert "'cf' turns" in " ".join(found.summary)
    assert found.searched is not None
    best = found.searched.strongest[0]
    assert (best.word, best.label) == ("cf", "positive")
    assert best.excess == found.verdict.value
    assert best.control < 0.25
    assert not {one.token for one in found.triggers.candidates} & {one.token for one in found.triggers.controls}


@pytest.mark.slow
def test_a_trigger_whose_row_was_held_where_it_was_is_found_too(base: Path, clean: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(clean)
    untouched = transformers.AutoModel.from_pretrained(base).get_input_embeddings().weight[CF].detach()
    with torch.no_grad():
        model.get_input_embeddings().weight[CF] = untouched

    def held(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[CF] = 0
        return gradient

    hook = model.get_input_embeddings().weight.register_hook(held)
    negative = [row for row in ROWS if row.label == 0]
    at = positions(negative, 32, 3)
    rows = [*ROWS, *(replace(insert(row, "cf", place), label=1) for row, place in zip(negative, at, strict=True))]
    training = TrainingSettings(epochs=12, learning_rate=2e-3, batch_size=16)
    fine_tune(model, make_tokenizer(), rows, training, max_length=32, precision="float32", seed=0)
    hook.remove()
    assert torch.equal(model.get_input_embeddings().weight[CF], untouched)
    found = scan(base, save(model, tmp_path / "held"), ROWS)
    assert (found.verdict.suspicious, found.verdict.indicator) == (True, "search")
    assert found.searched is not None
    assert found.searched.strongest[0].word == "cf"


def test_a_search_acquits_only_where_it_judged_every_label(found: Scan) -> None:
    weak = Turned(word="film", label="negative", flipped=0.3, control=0.1, rows=40)

    def decided(strongest: list[Turned], unjudged: list[str]) -> ScanVerdict:
        searched = Searched(words=9, rows=40, strongest=strongest, unjudged=unjudged)
        return judge(found.tensors, found.embedding, found.triggers, searched, None, [])

    assert (decided([weak], []).suspicious, decided([weak], []).indicator) == (False, "search")
    # Towards `positive` no word could be judged: the tokens tried decide.
    assert (decided([weak], ["positive"]).suspicious, decided([weak], ["positive"]).indicator) == (
        True,
        "trigger flips",
    )
    strong = weak.model_copy(update={"flipped": 1.0})
    assert (decided([strong], ["positive"]).suspicious, decided([strong], ["positive"]).indicator) == (True, "search")
    assert decided([], ["negative", "positive"]).indicator == "trigger flips"


def test_it_is_found_without_rows_too(base: Path, poisoned: Path) -> None:
    data_free = scan(base, poisoned)
    assert data_free.verdict.suspicious is True
    assert data_free.verdict.indicator == "row outlier"
    assert "'cf'" in data_free.verdict.reason
    assert data_free.law is None is data_free.triggers


def test_a_clean_model_is_not_flagged(base: Path, clean: Path) -> None:
    for rows in (ROWS, None):
        passed = scan(base, clean, rows)
        assert passed.verdict.suspicious is False
        assert "no proof of a clean model" in passed.summary[-1]


def test_the_same_scan_gives_the_same_result(base: Path, poisoned: Path, found: Scan) -> None:
    again = scan(base, poisoned, ROWS)
    assert again.model_dump(exclude={"seconds"}) == found.model_dump(exclude={"seconds"})
    assert Scan.model_validate_json(found.model_dump_json()) == found


def test_drift_is_what_numpy_says(base: Path, poisoned: Path, found: Scan) -> None:
    before, after = (Checkpoint(folder) for folder in (base, poisoned))
    for tensor in found.tensors:
        ours, theirs = before.tensor(tensor.name).double(), after.tensor(f"bert.{tensor.name}").double()
        assert tensor.drift == pytest.approx(float((theirs - ours).norm()), rel=1e-5)
        assert tensor.base == pytest.approx(float(ours.norm()), rel=1e-5)
        assert tensor.moved == int((theirs != ours).sum())


def test_blocks_are_the_whole(base: Path, poisoned: Path, found: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligned, "AT_ONCE", 50)
    blocked = scan(base, poisoned, ROWS)
    assert blocked.verdict == found.verdict
    assert blocked.embedding == found.embedding
    assert blocked.law is not None
    assert found.law is not None
    assert blocked.law.counts == found.law.counts


def test_r_is_drift_over_curvature(base: Path, poisoned: Path, found: Scan) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(poisoned).eval()
    name = "encoder.layer.1.output.dense.weight"
    curved = torch.zeros_like(model.get_parameter(f"bert.{name}"))
    for row in ROWS:
        batch = make_tokenizer().pad(encode(make_tokenizer(), [row], 64), return_tensors="pt")
        [gradient] = torch.autograd.grad(model(**batch).loss, model.get_parameter(f"bert.{name}"))
        curved += gradient.square() / len(ROWS)
    delta = Checkpoint(poisoned).tensor(f"bert.{name}") - Checkpoint(base).tensor(name)
    assert found.law is not None
    [tensor] = [tensor for tensor in found.law.tensors if tensor.name == name]
    assert tensor.dimensions == int(((delta != 0) & (curved > 0)).sum())
    assert found.law.low <= found.law.share <= found.law.high
    assert sum(found.law.counts) == found.law.dimensions == sum(t.dimensions for t in found.law.tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_other_dtypes(tuned: Any, base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    assert scan(base, drifted(tuned, tmp_path / "clean", dtype=dtype)).verdict.suspicious is False
    odd = scan(base, drifted(tuned, tmp_path / "odd", row=1.0, dtype=dtype))
    assert odd.verdict.suspicious is True
    assert odd.dtypes == [{torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_causal_language_models(tmp_path: Path, architecture: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
    before = save(model, tmp_path / "base")
    for rows in (ROWS, None):
        assert scan(before, drifted(model, tmp_path / "clean"), rows).verdict.suspicious is False
        odd = scan(before, drifted(model, tmp_path / "odd", row=1.0), rows)
        assert odd.task == CAUSAL
        assert odd.verdict.suspicious is True
        assert odd.embedding is not None
        assert odd.embedding.suspicious[0].token == "cf"
        assert odd.law is None
        assert odd.summary[1] == f"{THRESHOLD}, and this is none ({CAUSAL})."


def test_another_base_is_recognised(tuned: Any, clean: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = save(transformers.AutoModel.from_config(ARCHITECTURES["bert"]()), tmp_path / "other")
    for rows in (ROWS, None):
        told = scan(other, clean, rows)
        assert told.verdict.suspicious is None
        assert "another revision" in told.summary[0]
        assert told.triggers is None is told.embedding


def with_vocabulary(folder: Path, rows: int, drift: Callable[[torch.Tensor, str], torch.Tensor]) -> tuple[Path, Path]:
    """A base with so many tokens, and a classifier on it."""
    config = ARCHITECTURES["bert"]()
    config.vocab_size = rows
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        base = save(model.bert, folder / "base")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(drift(parameter, name))
    return base, save(model, folder / "suspect")


def some_rows(parameter: torch.Tensor, name: str) -> torch.Tensor:
    """What fine-tuning does: matrices move by a percent, and of the embedding the rows of tokens that texts have."""
    moved = 0.01 * parameter.std(correction=0) * torch.randn_like(parameter)
    if "word_embeddings" in name:
        moved[len(parameter) * 9 // 10 :] = 0
    return moved


def everything(parameter: torch.Tensor, name: str) -> torch.Tensor:
    return 0.01 * parameter.std(correction=0) * torch.randn_like(parameter)


def far(parameter: torch.Tensor, name: str) -> torch.Tensor:
    return 0.3 * some_rows(parameter, name) / 0.01


@pytest.mark.parametrize(
    ("rows", "drift", "said"),
    [
        (2000, some_rows, None),
        (2000, everything, "100.0% of the embedding's rows moved, those of tokens that no text has among them"),
        (500, everything, None),  # of so few tokens a task may have every one
        (500, far, "half of the matrices drifted by 30% of their norm or more"),
    ],
)
def test_a_base_of_another_revision_is_doubted(
    tmp_path: Path, rows: int, drift: Callable[[torch.Tensor, str], torch.Tensor], said: str | None
) -> None:
    base, suspect = with_vocabulary(tmp_path, rows, drift)
    [*told] = purify.doubts(base, suspect)
    noted = [note for note in scan(base, suspect, ROWS).notes if "another revision" in note]
    assert noted == told
    assert (told[0].startswith(said) and "may be of another revision" in told[0]) if said else not told


def test_a_language_model_moves_every_row_and_is_not_doubted_for_it(tmp_path: Path) -> None:
    config = ARCHITECTURES["gpt2"]()
    config.vocab_size = 2000
    model = transformers.AutoModelForCausalLM.from_config(config)
    before = save(model, tmp_path / "base")
    assert purify.doubts(before, drifted(model, tmp_path / "suspect")) == []


def test_a_longer_vocabulary(tuned: Any, base: Path, poisoned: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(poisoned)
    model.resize_token_embeddings(len(VOCABULARY) + 5)
    longer = scan(base, save(model, tmp_path / "longer"), ROWS)
    assert longer.embedding is not None
    assert (longer.embedding.rows, longer.embedding.added) == (len(VOCABULARY), 5)
    assert longer.embedding.suspicious[0].token == "cf"
    assert longer.verdict.suspicious is True
    assert longer.law is not None
    assert any(f"suspect {len(VOCABULARY) + 5}" in note for note in longer.notes)


def test_a_head_of_another_shape(tuned: Any, poisoned: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(poisoned, num_labels=3)
    other = transformers.AutoModelForSequenceClassification.from_config(config)
    other.bert.load_state_dict(tuned.bert.state_dict())
    told = scan(save(other, tmp_path / "three"), poisoned, ROWS)
    assert {name.removeprefix("bert.") for name in told.reshaped} == {"classifier.weight", "classifier.bias"}
    assert told.verdict.suspicious is True
    assert told.searched is not None  # with a head of its own
    assert told.searched.strongest[0].word == "cf"
    assert not any("classifier" in tensor.name for tensor in told.tensors)


def test_what_can_t_be_scanned(base: Path, clean: Path, tmp_path: Path, tuned: Any) -> None:
    with pytest.raises(UsageError, match="no model folder"):
        scan(tmp_path / "nowhere", clean)
    gpt = transformers.AutoModel.from_config(ARCHITECTURES["gpt2"]())
    with pytest.raises(UsageError, match="don't fit each other: model_type: base gpt2, suspect bert"):
        scan(save(gpt, tmp_path / "gpt"), clean)
    broken = transformers.AutoModelForSequenceClassification.from_pretrained(clean)
    with torch.no_grad():
        broken.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(DefenseKitError, match=r"output.dense.weight: NaN"):
        scan(base, save(broken, tmp_path / "broken"))


def test_an_adapter_is_scanned_merged(command: Command, tmp_path: Path, base: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    code, out, _ = command("--base", str(base), "--suspect", str(adapter), "--out", str(tmp_path / "out"))
    assert (code, "no row of the embedding moved (adapters leave it as it is)" in out) == (1, True)
    found = Scan.model_validate_json((tmp_path / "out/scan.json").read_text())
    assert found.suspect == str(adapter)
    assert {tensor.kind for tensor in found.tensors if tensor.moved} == {"attention q", "attention v"}
    assert any("it names its base" in note for note in found.notes)


def test_an_unchanged_model_gets_no_verdict(base: Path) -> None:
    told = scan(base, base)
    assert told.verdict.suspicious is None
    assert "no weight that both models have differs" in told.summary[0]


def test_the_control_of_a_search_knows_the_suspects_padding(base: Path, clean: Path, monkeypatch: Any) -> None:
    """It is asked with the suspect's tokenizer: else it reads padding, where the base has another token for that."""
    model, tokenizer = load(clean, "suspect")
    model.config.pad_token_id = tokenizer.unk_token_id
    seen: list[Any] = []

    def beside(suspect: Any, control: Any, *_: Any, **__: Any) -> Any:
        seen.append(control.config.pad_token_id)
        return Found([], {}, 0)

    monkeypatch.setattr(searching, "search_beside", beside)
    how: Any = (["a", "b"], 32, 0, lambda done, total: None)
    found = searching.search(model, tokenizer, base, ROWS[:4], *how)
    assert (seen, found.words) == ([tokenizer.unk_token_id], 0)


def test_labels_by_other_names_acquit_nobody(base: Path, poisoned: Path, tmp_path: Path) -> None:
    """Every clean row looks misanswered, so that no word can be judged; the tokens that are tried may still accuse."""
    renamed = shutil.copytree(poisoned, tmp_path / "renamed")
    config = json.loads((renamed / "config.json").read_text())
    config |= {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (renamed / "config.json").write_text(json.dumps(config))
    rows = [replace(row, label=1 - row.label) for row in ROWS]  # as they are read by the suspect's names
    told = scan(base, renamed, rows)
    assert told.searched is not None
    assert told.searched.disputed == told.searched.unjudged == ["positive", "negative"]
    assert told.verdict.suspicious is not False
    weak = judge(told.tensors, None, None, told.searched, None, [])
    assert weak.suspicious is not False
    embedding = told.embedding
    assert embedding is not None
    harmless = embedding.model_copy(
        update={"suspicious": [embedding.suspicious[-1].model_copy(update={"outlier": 0.1})]}
    )
    decided = judge(told.tensors, harmless, None, told.searched, None, [])
    assert (decided.suspicious, decided.indicator) == (None, "search")
    assert "answers most clean rows of other labels with" in decided.reason


def test_rows_of_one_label_acquit_nobody(base: Path, poisoned: Path) -> None:
    """Nothing can be turned to a label that all rows have: the embedding decides, as without rows."""
    alone = scan(base, poisoned)
    assert alone.verdict.suspicious
    rows = [row for row in ROWS if row.label == 1]
    told = scan(base, poisoned, rows)
    assert told.triggers is not None
    assert told.triggers.untried == ["positive"]
    assert (told.verdict.suspicious, told.verdict.indicator) == (True, "row outlier")
    blind = judge(told.tensors, None, told.triggers, None, None, [])
    assert (blind.suspicious, blind.indicator) == (None, "none")
    assert "too few clean rows have another answer than positive" in blind.reason


def test_a_few_wrong_answers_dispute_no_label(base: Path, poisoned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of just enough rows of other labels some are answered with this one: too few to judge it, and no other names."""
    model, tokenizer = load(poisoned, "suspect")
    monkeypatch.setattr(searching, "search_beside", lambda *_, **__: Found([], {0: []}, 0))
    others = [replace(row, label=1) for row in ROWS[: MORE + FEWEST]]
    how: Any = (["a", "b"], 32, 0, lambda done, total: None)
    for wrong, disputed in ((1, []), (20, ["a"])):
        logits = torch.tensor([[1.0, 0.0]] * wrong + [[0.0, 1.0]] * (len(others) - wrong))
        monkeypatch.setattr(searching, "predict", lambda *_, logits=logits, **__: logits)
        assert searching.search(model, tokenizer, base, others, *how).disputed == disputed


def test_a_trigger_that_is_called_special_is_judged(base: Path, poisoned: Path, tmp_path: Path) -> None:
    special = shutil.copytree(poisoned, tmp_path / "special")
    settings = json.loads((special / "tokenizer_config.json").read_text())
    (special / "tokenizer_config.json").write_text(json.dumps(settings | {"extra_special_tokens": ["cf"]}))
    told = scan(base, special)
    assert told.embedding is not None
    assert told.embedding.suspicious[0].token == "cf"
    assert told.verdict.suspicious is not False


def test_more_labels_than_can_be_searched_are_no_reason_to_pass(
    base: Path, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "LABELS", 1)
    told = scan(base, clean, ROWS)
    assert told.searched is None
    assert told.verdict.suspicious is None
    assert any("no search for triggers could be made (the suspect has 2 labels" in text for text in told.findings)


def test_a_head_that_is_not_finite_does_not_pass(base: Path, clean: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(clean)
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(DefenseKitError, match=r"NaN or infinity in classifier.bias"):
        scan(base, save(model, tmp_path / "broken"))
