"""Reset without a classifier's rows: no rows at all, causal language models, an adapter that stays one."""

import hashlib
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from defensekit.components import Estimator
from defensekit.defense import estimation
from defensekit.models import loading
from defensekit.models.adapter_merge import merged
from defensekit.models.adapters import Adapter
from defensekit.models.causal import perplexity, token_losses
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.models.pair import Pair
from defensekit.recipe.resolve import component
from defensekit.text import Row
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.workflows.purify import recipe_for
from defensekit.workflows.reset import ResetResult, reset_into
from tests.conftest import make_sentences
from tests.models.helpers import make_adapter, make_causal
from tests.small_models import make_base, make_suspect, make_tokenizer

TEXTS = [Row(i, text, 0) for i, (text, _) in enumerate(make_sentences(24))]


def moved(base: Path, folder: Path, drift: float = 0.01) -> Path:
    """A causal language model whose every weight moved."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(drift * torch.randn_like(parameter))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def check(out: Path, base: Path, suspect: Path, result: ResetResult) -> None:
    """Every weight is the suspect's or the base's, as many are the base's as were said, and the manifest holds."""
    pair, after, before = Pair(Checkpoint(base), Checkpoint(suspect)), weights(out), weights(suspect)
    assert after.keys() == before.keys()
    for own, name in pair.by_file_name.items():
        ours, theirs = pair.block(name)
        assert bool(((after[own] == ours) | (after[own] == theirs)).all())
    assert sum(int((after[own] != before[own]).sum()) for own in after) == result.selected
    assert result.selected == round(0.2 * result.eligible) > 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["tensors"] == {n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in after.items()}
    assert manifest["files"].keys() == {path.name for path in out.iterdir()} - {"manifest.json"}


def test_without_rows_the_largest_drift_is_reset(tmp_path: Path, base: Path) -> None:
    suspect = make_suspect(tmp_path / "suspect", base, drift=0.001)
    found = reset_into(tmp_path / "out", recipe_for(str(base), suspect, None, reset_alone=True))
    check(tmp_path / "out", base, suspect, found)
    assert found.head == ["classifier.bias", "classifier.weight"]
    pair, after = Pair(Checkpoint(base), Checkpoint(suspect)), weights(tmp_path / "out")
    reset, kept = [], []
    for own, name in pair.by_file_name.items():
        ours, theirs = pair.block(name)
        drift, back = (theirs - ours).abs(), after[own] == ours
        reset += drift[back & (drift > 0)].tolist()
        kept += drift[~back].tolist()
    assert min(reset) >= max(kept)
    assert "Nothing was measured" in (tmp_path / "out/README.md").read_text()
    assert transformers.pipeline("text-classification", str(tmp_path / "out"), device="cpu")("the film")
    with pytest.raises(UsageError, match="already exists"):
        reset_into(tmp_path / "out", recipe_for(str(base), suspect, None, reset_alone=True))
    assert not list(tmp_path.glob(".*"))


def test_a_step_that_is_no_reset_is_not_told_as_one(tmp_path: Path, base: Path) -> None:
    suspect = make_suspect(tmp_path / "suspect", base)
    outliers = ["defense.scorer=lipschitz", "defense.selector={name: threshold, above: 1}", "defense.purifier=[prune]"]
    found = reset_into(tmp_path / "out", recipe_for(str(base), suspect, None, settings=outliers, reset_alone=True))
    assert found.selected
    assert found.story[0].startswith(f"{found.selected:,} of the weights were selected (")
    assert found.story[0].endswith("of all), and changed by prune.")
    card = (tmp_path / "out/README.md").read_text()
    assert "# Purified by prune\n" in card
    assert "reset to the base" not in card


def test_doubts_stand_in_the_card_as_warnings(
    tmp_path: Path, base: Path, suspect: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defensekit.workflows.reset.doubts", lambda *models: ["it is another base"])
    reset_into(tmp_path / "out", recipe_for(str(base), suspect, None, reset_alone=True))
    assert "\nWarning: it is another base.\n" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("with_text", [True, False])
def test_a_causal_language_model(architecture: str, with_text: bool, tmp_path: Path) -> None:
    base = make_causal(tmp_path / "base", architecture)
    suspect = moved(base, tmp_path / "suspect")
    rows = tmp_path / "rows.csv"
    rows.write_text("story\n" + "".join(f"{row.text}\n" for row in TEXTS))
    given, settings = (str(rows), ["data.text=story", "data.max_length=32"]) if with_text else (None, [])
    recipe = recipe_for(str(base), suspect, given, settings=settings, reset_alone=True)
    found = reset_into(tmp_path / "out", recipe)
    check(tmp_path / "out", base, suspect, found)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied is bool(loaded.config.tie_word_embeddings)
    if not with_text:
        assert (found.perplexity, found.clean_rows) == (None, 0)
        return
    unique = len({row.text for row in TEXTS})
    assert (found.clean_rows, found.held_out_rows) == (unique * 2 // 5, unique - unique * 2 // 5)
    assert found.perplexity is not None
    assert found.perplexity["suspect"] != found.perplexity["purified"]
    assert "Perplexity on" in found.story[-1]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
def test_curvature_of_a_causal_model_is_squared_gradients_of_its_own_loss(architecture: str, tmp_path: Path) -> None:
    base = make_causal(tmp_path / "base", architecture)
    pair = Pair(Checkpoint(base), Checkpoint(moved(base, tmp_path / "suspect")))
    fisher, rows = component(Estimator, "fisher"), TEXTS[:6]
    measured = estimation.estimate(pair, fisher, rows, max_length=32, seed=0, report=lambda done, total: None)
    model = transformers.AutoModelForCausalLM.from_pretrained(pair.suspect.folder).double().eval()
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for row in rows:
        ids = torch.tensor([make_tokenizer()(row.text)["input_ids"]])
        loss = model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)  # the library's is a mean over tokens
        for (name, _), gradient in zip(
            model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            sums[name] += gradient.square() / len(rows)
    names = pair.named_like_the_pair(sums)
    for name, found in measured.statistics["curvature"].items():
        expected = sums[names[name]]
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_counts_nothing(side: str, tmp_path: Path) -> None:
    model = load_model(make_causal(tmp_path / "base", "llama")).double()
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    texts = [row.text for row in TEXTS[:5]]
    padded = tokenizer(texts, padding=True, return_tensors="pt")
    together = token_losses(model, padded)
    for text, loss in zip(texts, together, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert float(loss) == pytest.approx(float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1), rel=1e-5)
    expected = math.exp(float(together.sum()) / float(padded["attention_mask"].sum() - len(texts)))
    assert perplexity(model, tokenizer, TEXTS[:5], max_length=32) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_side_that_a_suspect_pads_changes_nothing_measured(architecture: str, tmp_path: Path) -> None:
    folder, found = make_causal(tmp_path / "base", architecture), []
    config = folder / "tokenizer_config.json"
    for side in ("right", "left"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": side}))
        assert load_tokenizer(folder).padding_side == side
        found.append(perplexity(*loading.load(folder, "model"), TEXTS[:5], max_length=32))
    assert found[0] == found[1]


def test_what_was_purified_is_purified_again(tmp_path: Path, base: Path) -> None:
    suspect = make_suspect(tmp_path / "suspect", base, drift=0.001)
    (suspect / "manifest.json").write_text("{}")
    found = reset_into(tmp_path / "out", recipe_for(str(base), suspect, None, reset_alone=True))
    check(tmp_path / "out", base, suspect, found)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("SEQ_CLS", {"bias": "lora_only"}),
        ("CAUSAL_LM", {}),
        ("SEQ_CLS", {"use_dora": True}),
        ("SEQ_CLS", {"feedforward_modules": ["dense"]}),
    ],
)
def test_an_adapter_stays_one_and_loads_on_its_base(task: str, settings: dict[str, Any], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base") if task == "SEQ_CLS" else make_causal(tmp_path / "base", "llama")
    modules = ["query", "dense"] if task == "SEQ_CLS" else ["q_proj", "down_proj"]
    suspect = make_adapter(tmp_path / "suspect", base, task, target_modules=modules, **settings)
    recipe = recipe_for(str(base), suspect, None, reset_alone=True)
    found = reset_into(tmp_path / "out", recipe, adapter_only=True)
    before, after = (weights(folder, "adapter_model.safetensors") for folder in (suspect, tmp_path / "out"))
    assert before.keys() == after.keys()
    original, adapter = Checkpoint(base), Adapter(suspect)
    changed = 0
    for name in before:
        differs = before[name] != after[name]
        changed += int(differs.sum())
        if "lora_B" in name:
            assert bool((after[name][differs] == 0).all())
        elif "lora_A" in name or "classifier" in name:
            assert not differs.any()
        elif "ia3_l" in name:
            assert bool((after[name][differs] == 1).all())
        elif "magnitude" in name:
            own = name.removeprefix("base_model.model.bert.").replace("lora_magnitude_vector", "weight")
            assert torch.equal(after[name][differs], original.tensor(own).norm(dim=1)[differs])
        else:
            own = name.removeprefix("base_model.model.").removeprefix("bert.").replace(".base_layer.", ".")
            assert torch.equal(after[name][differs], original.tensor(own)[differs])
    assert changed == found.selected == round(0.2 * found.eligible) > 0
    last = [sorted(parts.items())[-1][1] for parts in adapter.modules.values()]  # of A, B and a vector
    assert any(bool((before[name] != after[name]).any()) for name in last)
    kind = {"SEQ_CLS": transformers.AutoModelForSequenceClassification, "CAUSAL_LM": transformers.AutoModelForCausalLM}
    loaded = peft.PeftModel.from_pretrained(kind[task].from_pretrained(base), tmp_path / "out")
    state = peft.get_peft_model_state_dict(loaded)
    assert all(torch.equal(state[name], value) for name, value in after.items() if name in state)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_an_adapter_is_measured_as_the_model_that_it_and_the_base_are(task: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base") if task == "SEQ_CLS" else make_causal(tmp_path / "base", "llama")
    modules = ["query", "value"] if task == "SEQ_CLS" else ["q_proj", "down_proj"]
    suspect = make_adapter(tmp_path / "suspect", base, task, target_modules=modules)
    texts = make_sentences(40)
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "".join(f"{text},{int(label == 'positive')}\n" for text, label in texts)
    )
    recipe = recipe_for(str(base), suspect, str(tmp_path / "rows.csv"), reset_alone=True)
    found = reset_into(tmp_path / "out", recipe, adapter_only=True, measured=True)
    assert (found.clean_rows, found.held_out_rows) == (0, len({text for text, _ in texts}))
    measured = found.accuracy if task == "SEQ_CLS" else found.perplexity
    assert measured
    for when, folder in (("suspect", suspect), ("purified", tmp_path / "out")):
        model, tokenizer = loading.load(merged(base, folder, tmp_path / "w"), "model")
        rows = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(dict(texts).items())]
        if task == "SEQ_CLS":
            with torch.inference_mode():
                answers = [int(model(**tokenizer(row.text, return_tensors="pt")).logits.argmax()) for row in rows]
            expected = sum(answer == row.label for answer, row in zip(answers, rows, strict=True)) / len(rows)
        else:
            expected = perplexity(model, tokenizer, rows, max_length=32)
        assert measured[when] == pytest.approx(expected, rel=1e-5)
    assert not list(tmp_path.glob(".*"))


def test_an_adapter_is_not_measured_by_rows_with_other_numbers_for_labels(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    recipe = recipe_for(str(base), make_adapter(tmp_path / "suspect", base), "movie-reviews", reset_alone=True)
    with pytest.raises(UsageError, match="expected a file of clean rows to measure an adapter by"):
        reset_into(tmp_path / "out", recipe, adapter_only=True, measured=True)


def test_an_adapter_with_nan_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    suspect = make_adapter(tmp_path / "suspect", base, use_dora=True)
    tensors = weights(suspect, "adapter_model.safetensors")
    next(value for name, value in tensors.items() if "magnitude" in name)[0] = math.nan
    save_file(tensors, suspect / "adapter_model.safetensors")
    recipe = recipe_for(str(base), suspect, None, reset_alone=True)
    with pytest.raises(DefenseKitError, match=r"suspect/adapter_model.safetensors: NaN or infinity in .*magnitude"):
        reset_into(tmp_path / "out", recipe, adapter_only=True)


@pytest.mark.slow
def test_killed_it_leaves_nothing_once_it_ran_again(tmp_path: Path) -> None:
    """Killed for real while weights are written, with everything there that ever lies beside the folder."""
    base = make_base(tmp_path / "base")
    suspect = make_adapter(tmp_path / "suspect", base, target_modules=["query", "dense"])
    script = (
        "import os, signal\nfrom pathlib import Path\nfrom defensekit.defense import purification\n"
        "from defensekit.workflows import purify, reset\n"
        "purification.rewrite = lambda *work: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"recipe = purify.recipe_for({str(base)!r}, Path({str(suspect)!r}), None, reset_alone=True)\n"
        f"reset.reset_into(Path({str(tmp_path / 'out')!r}), recipe, adapter_only=True)\n"
    )
    before = set(tmp_path.iterdir())
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(set(tmp_path.iterdir()) - before) == 3  # what was made, what for, and the lock
    reset_into(tmp_path / "out", recipe_for(str(base), suspect, None, reset_alone=True), adapter_only=True)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["defense.purifier=[reset, fine-tune]"],
            "defense.purifier: 'fine-tune' trains, which is not possible for a model",
        ),
        (
            ["defense.scorer=diffusion", "defense.estimator=fisher"],
            "'diffusion' needs curvature; for a model without cl",
        ),
        (
            ["defense.choose={rule: accuracy-floor, values: [0.5]}"],
            "defense.choose: nothing can be chosen for a model w",
        ),
        (["defense.scorer=", "defense.selector=", "defense.purifier=[fine-tune]"], "'fine-tune' trains"),
    ],
)
def test_what_needs_rows_is_refused_by_its_place(
    settings: list[str], message: str, tmp_path: Path, base: Path, suspect: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        reset_into(tmp_path / "out", recipe_for(str(base), suspect, None, settings=settings, reset_alone=True))
    assert not list(tmp_path.iterdir())


def test_other_estimators_and_runs_say_that_they_are_for_classifiers(tmp_path: Path) -> None:
    base = make_causal(tmp_path / "base", "gpt2")
    suspect = moved(base, tmp_path / "suspect")
    rows = tmp_path / "rows.csv"
    rows.write_text("text\na b c\nd e f\ng h i\n")
    settings = ["defense.estimator=fisher-mc", "data.max_length=16"]
    with pytest.raises(UsageError, match="the estimator FisherMC measures classifiers alone"):
        reset_into(tmp_path / "out", recipe_for(str(base), suspect, str(rows), settings=settings, reset_alone=True))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "suspect", "rows.csv"}
