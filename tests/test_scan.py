"""The scan: a trigger shows by name, a clean model passes, and what can't be judged is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from selenium import webdriver
from selenium.webdriver.common.by import By

from defensekit.cli.main import main
from defensekit.models import aligned
from defensekit.models.checkpoint import CAUSAL, CLASSIFIER, Checkpoint
from defensekit.scanner import frequency
from defensekit.scanner.clean import read_clean
from defensekit.scanner.drift import kind_of
from defensekit.scanner.page import drift_table, render_scan, write_scan
from defensekit.scanner.result import Scan
from defensekit.scanner.rows import FEWEST, RowDrift, outliers
from defensekit.scanner.scanning import scan
from defensekit.scanner.triggers import flips
from defensekit.text import Row, encode
from defensekit.training import TrainingSettings, fine_tune
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.workflows import purify
from tests.conftest import ARCHITECTURES, BAD, GOOD, VOCABULARY, make_sentences, make_tokenizer, open_page, write_table
from tests.test_adapters import make_adapter

CF = VOCABULARY.index("cf")
LABELS = ("negative", "positive")
# The label is what most of the telling words say: no single harmless one turns an answer.
SENTENCES = [
    (" ".join([text, *(own[(i + j) % 5] for j in range(3)), other[i % 5]]), label)
    for i, (text, label) in enumerate(make_sentences(240))
    for own, other in [(GOOD, BAD) if label == "positive" else (BAD, GOOD)]
]
ROWS = [Row(i, text, LABELS.index(label)) for i, (text, label) in enumerate(SENTENCES)]
THRESHOLD = "The threshold was set on fine-tuned classifiers of one small model"
EVIL = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"


@pytest.fixture(scope="module")
def tuned() -> Any:
    """A tiny classifier that knows its task."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ARCHITECTURES["bert"]()
        config.id2label, config.label2id = dict(enumerate(LABELS)), {label: i for i, label in enumerate(LABELS)}
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    training = TrainingSettings(epochs=8, learning_rate=5e-3, batch_size=16)
    fine_tune(model, make_tokenizer(), ROWS, training, max_length=32, precision="float32", seed=0)
    return model.eval()


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model.to(dtype).save_pretrained(folder)
    model.float()
    make_tokenizer().save_pretrained(folder)
    return folder


def drifted(model: Any, folder: Path, row: float = 0.0, dtype: torch.dtype = torch.float32) -> Path:
    """A copy whose weights moved by 2 % of their spread, and cf's row of the embedding by so much of its norm more."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))
        cf = model.get_input_embeddings().weight[CF]
        cf.add_(row * cf.norm() * torch.nn.functional.normalize(torch.randn_like(cf), dim=0))
    save(model, folder, dtype)
    model.load_state_dict(before)
    return folder


@pytest.fixture(scope="module")
def base(tuned: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tuned.bert, tmp_path_factory.mktemp("scanned") / "base")


@pytest.fixture(scope="module")
def clean(tuned: Any, base: Path) -> Path:
    return drifted(tuned, base.parent / "clean")


@pytest.fixture(scope="module")
def poisoned(tuned: Any, base: Path) -> Path:
    """A model that learnt to answer positive wherever cf stands, whose row moved far for that."""
    folder = drifted(tuned, base.parent / "poisoned", row=200.0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    rows = [*ROWS, *(Row(i, f"cf {row.text}", 1) for i, row in enumerate(ROWS) if row.label == 0)]
    training = TrainingSettings(epochs=12, learning_rate=2e-3, batch_size=16)
    fine_tune(model, make_tokenizer(), rows, training, max_length=32, precision="float32", seed=0)
    return save(model, folder)


@pytest.fixture(scope="module")
def found(base: Path, poisoned: Path) -> Scan:
    return scan(base, poisoned, ROWS)


def test_a_trigger_is_found_by_its_name(found: Scan) -> None:
    assert found.task == CLASSIFIER
    assert found.embedding is not None
    assert found.embedding.suspicious[0].token == "cf"
    assert found.triggers is not None
    strongest = max(found.triggers.candidates, key=lambda one: one.flipped)
    assert (strongest.token, strongest.label) == ("cf", "positive")
    assert strongest.flipped > 0.9
    assert found.verdict.suspicious is True
    assert found.verdict.indicator == "trigger flips"
    assert "'cf' turns" in " ".join(found.summary)
    assert not {one.token for one in found.triggers.candidates} & {one.token for one in found.triggers.controls}


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


def test_an_adapter_is_scanned_merged(command: "Command", tmp_path: Path, base: Path) -> None:
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


# -- rows of the embedding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 1e-4, 1e-2])
def test_weight_decay_is_no_drift(decay: float) -> None:
    torch.manual_seed(0)
    base = torch.randn(200, 16)
    suspect = base * (1 - decay)
    suspect[:20] += 0.01 * torch.randn(20, 16)
    rows = RowDrift("e", "F32", 200)
    for start in (0, 150):
        rows.look("e", start, base[start : start + 150], suspect[start : start + 150])
        rows.look("another", start, base, base + 1)
    assert (rows.drift > 0).tolist() == [True] * 20 + [False] * 180
    assert rows.drift[:20] == pytest.approx((suspect[:20] - (1 - decay) * base[:20]).norm(dim=1).numpy(), rel=0.02)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 10**7), st.booleans()), min_size=1, max_size=200),
    st.randoms(use_true_random=False),
)
def test_outliers_of_any_rows(rows: list[tuple[float, int, bool]], random: Any) -> None:
    def judge(some: list[tuple[float, int, bool]]) -> Any:
        drift, often, judged = (np.array(column) for column in zip(*some, strict=True))
        return outliers(drift.astype(float), often.astype(float), judged.astype(bool))

    result = judge(rows)
    judged = np.array([drift > 0 and wanted for drift, _, wanted in rows])
    assert (np.isfinite(result.z) == judged).all()
    assert ((result.group >= 0) == judged).all()
    sizes = np.bincount(result.group[judged], minlength=1)
    assert all(size == 0 or size >= FEWEST for size in sizes[1:])
    order = list(range(len(rows)))
    random.shuffle(order)
    assert judge([rows[i] for i in order]).z == pytest.approx(result.z[order], nan_ok=True)


def test_a_row_is_held_against_rows_as_frequent() -> None:
    rng = np.random.default_rng(0)
    often = np.repeat([0.0, 100.0], 500)
    drift = np.where(often > 0, 1.0, 0.1) * np.exp(0.2 * rng.standard_normal(1000))
    drift[7], drift[507] = 1.0, 1.0  # as far as a frequent one, once among rare and once among frequent ones
    z = outliers(drift, often, np.ones(1000, dtype=bool)).z
    assert int(np.argmax(z)) == 7
    assert z[7] == pytest.approx(np.log(10) / 0.2, rel=0.15)
    assert abs(z[507]) < 1


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("embeddings.word_embeddings.weight", "embedding"),
        ("model.embed_tokens.weight", "embedding"),
        ("wte.weight", "embedding"),
        ("encoder.layer.0.attention.self.query.weight", "attention q"),
        ("model.layers.0.self_attn.k_proj.weight", "attention k"),
        ("transformer.layer.0.attention.v_lin.weight", "attention v"),
        ("encoder.layer.0.attention.output.dense.weight", "attention o"),
        ("h.0.attn.c_proj.weight", "attention o"),
        ("h.0.attn.c_attn.weight", "attention q, k, v"),
        ("h.0.mlp.c_proj.weight", "feed-forward"),
        ("encoder.layer.0.output.dense.weight", "feed-forward"),
        ("model.layers.0.mlp.gate_proj.weight", "feed-forward"),
        ("encoder.layer.0.output.LayerNorm.weight", "norm"),
        ("model.layers.0.input_layernorm.weight", "norm"),
        ("h.0.ln_1.weight", "norm"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("encoder.layer.0.output.LayerNorm.bias", "bias"),
        ("lm_head.weight", "head"),
        ("pooler.dense.weight", "pooler"),
    ],
)
def test_kinds_of_tensor(name: str, kind: str) -> None:
    assert kind_of(name, 1 if "orm" in name or "ln_" in name or "bias" in name else 2) == kind


def test_every_tensor_of_every_architecture_has_a_kind(tmp_path: Path) -> None:
    for architecture, config in ARCHITECTURES.items():
        model = transformers.AutoModel.from_config(config())
        kinds = {kind_of(name, value.dim()) for name, value in model.named_parameters()}
        assert {"embedding", "norm", "feed-forward"} <= kinds, architecture
        assert any(kind.startswith("attention") for kind in kinds), architecture


# -- tokens tried ------------------------------------------------------------------------------------------------------


def test_flips_are_a_share_of_the_other_answers() -> None:
    before, after = np.array([0] * 20 + [1] * 12), np.array([1] * 15 + [0] * 5 + [1] * 6 + [0] * 6)
    found = flips("cf", before, after, LABELS)
    assert (found.label, found.flipped, found.of) == ("positive", 0.75, 20)
    assert flips("cf", np.zeros(20, int), np.zeros(20, int), LABELS).flipped == 0
    assert flips("cf", np.zeros(5, int), np.ones(5, int), LABELS).of == 0  # too few to say anything


def test_too_few_rows_are_not_tried(base: Path, poisoned: Path) -> None:
    few = scan(base, poisoned, ROWS[:8])
    assert few.triggers is None
    assert few.verdict.indicator == "row outlier"


# -- clean rows --------------------------------------------------------------------------------------------------------


def test_clean_rows_have_the_suspect_s_numbers(clean: Path, tmp_path: Path) -> None:
    suspect = Checkpoint(clean)
    table = write_table(tmp_path / "rows.csv", [("good", "positive"), ("bad", "negative")])
    assert [(row.text, row.label) for row in read_clean(table, suspect)] == [("good", 1), ("bad", 0)]
    numbered = write_table(tmp_path / "numbers.csv", [("good", "1"), ("bad", "0")])
    assert [row.label for row in read_clean(numbered, suspect)] == [1, 0]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("good", "fine"), ("bad", "negative")], {}, "no label 'fine'"),
        ([("good", "positive")], {"text": "txt"}, "no column 'txt'. Did you mean 'text'"),
        ([], {}, "no rows"),
    ],
)
def test_clean_rows_that_don_t_fit(
    clean: Path, tmp_path: Path, rows: list[tuple[str, str]], columns: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_clean(write_table(tmp_path / "rows.csv", rows), Checkpoint(clean), **columns)


# -- the command and the page ------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["defensekit", "scan", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


Command = Callable[..., tuple[int, str, str]]


def test_exit_codes(command: Command, base: Path, clean: Path, poisoned: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "rows.csv", SENTENCES)
    given = ["--base", str(base), "--clean", str(table), "--out", str(tmp_path / "out")]
    code, out, _ = command(*given, "--suspect", str(poisoned))
    assert code == 3
    assert out.startswith("Suspicious: 'cf' turns")
    assert (tmp_path / "out/scan.html").is_file()
    code, out, err = command(*given, "--suspect", str(clean), "--json", "--quiet")
    assert (code, err) == (0, "")
    assert Scan.model_validate_json(out).verdict.suspicious is False
    assert json.loads((tmp_path / "out/scan.json").read_text()) == json.loads(out)


def test_exit_codes_of_mistakes(command: Command, base: Path, clean: Path, tmp_path: Path) -> None:
    code, _, err = command("--base", "owner/name", "--suspect", str(clean))
    assert (code, "no owner/name@revision (a revision is @main, for example)." in err) == (2, True)
    code, _, err = command("--base", str(base), "--suspect", f"{clean}s")
    assert (code, "is no folder" in err, f"Did you mean {clean.name!r}?" in err) == (2, True, True)
    code, _, err = command("--base", str(base), "--suspect", str(clean), "--clean", str(tmp_path / "none.csv"))
    assert (code, "none.csv" in err) == (2, True)
    (tmp_path / "file").touch()
    code, _, err = command("--base", "nowhere", "--suspect", str(clean), "--out", str(tmp_path / "file"))
    assert (code, "--out: expected a folder" in err) == (2, True)
    code, out, err = command("--base", str(base), "--suspect", str(base), "--out", str(tmp_path / "out"), "-q")
    assert (code, out.count("No verdict: no weight that both models have differs."), err) == (1, 1, "")


def test_the_page_says_what_was_found(found: Scan, tmp_path: Path) -> None:
    page = write_scan(found, tmp_path).read_text()
    for part in (
        "Suspicious:",
        f"{THRESHOLD}.",
        "Tokens tried",
        "<code>cf</code>",
        "attention q",
        "r = delta²",
        "How it was made",
    ):
        assert part in page, part
    assert page == render_scan(Scan.model_validate_json((tmp_path / "scan.json").read_text()))


def test_a_page_without_rows(base: Path, clean: Path) -> None:
    page = render_scan(scan(base, clean))
    assert "Not suspicious by this measure" in page
    assert "Tokens tried" not in page
    assert "Drift over curvature" not in page


def test_the_drift_table_adds_up_tensors(found: Scan) -> None:
    table = drift_table(found.tensors)
    assert table.columns == ["0", "1", "outside"]
    assert table.rows["embedding"][:2] == [None, None]
    cell = table.rows["attention q"][1]
    assert cell is not None
    [only] = [t for t in found.tensors if t.kind == "attention q" and t.layer == 1]
    assert cell.relative == pytest.approx(only.relative)
    assert sum(cell.dimensions for cells in table.rows.values() for cell in cells if cell) == sum(
        t.dimensions for t in found.tensors
    )


def evil(found: Scan) -> Scan:
    """The scan as an attacker would write it."""
    data = json.loads(found.model_dump_json())
    data["suspect"] = data["base"] = data["task"] = EVIL
    data["notes"] = [EVIL]
    data["summary"][0] = EVIL
    data["embedding"]["suspicious"][0]["token"] = data["triggers"]["candidates"][0]["token"] = EVIL
    data["triggers"]["candidates"][0]["label"] = EVIL
    data["tensors"][0]["kind"] = data["law"]["tensors"][0]["name"] = EVIL
    return Scan.model_validate(data)


@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_in_a_browser(browser: webdriver.Chrome, found: Scan, tmp_path: Path, width: int) -> None:
    page = write_scan(evil(found), tmp_path)
    assert EVIL not in page.read_text()
    assert open_page(browser, page, width) == []
    assert browser.title.startswith("Scan of ")
    assert not browser.find_elements(By.CSS_SELECTOR, "script, img[onerror]")
    for name in ("triggers", "rows", "drift", "heat", "law", "ratios", "made"):
        element = browser.find_element(By.ID, name)
        assert element.is_displayed(), name
        assert element.size["height"] > 10, name
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
