"""Purify a model by a reset alone: select dimensions, set them back to the base's, and nothing else.

This works without clean rows, for causal language models (with clean text: scored by curvature, and their perplexity
measured before and after), and for an adapter that is to stay one. It makes no run and uses no store.
"""

import shutil
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from defensekit.components import Observer, Predictions, call_component
from defensekit.components.runtime import observed_step
from defensekit.defense import estimation, purification
from defensekit.defense.scoring import score_pair
from defensekit.defense.selection import select, summary
from defensekit.host.table_sources import File
from defensekit.models import loading, padding
from defensekit.models.adapter_merge import Merged
from defensekit.models.adapters import WEIGHTS, Adapter
from defensekit.models.causal import perplexity
from defensekit.models.checkpoint import CAUSAL, SINGLE, Checkpoint, write_tensors
from defensekit.models.inference import predict
from defensekit.models.manifest import write_manifest
from defensekit.models.pair import Pair
from defensekit.models.skeleton import task_of
from defensekit.models.untrusted import ADAPTER_CONFIG, free_space
from defensekit.recipe.recipe import Recipe
from defensekit.result.model_card import CARD, render_card
from defensekit.scanner.clean import read_clean
from defensekit.text import Row
from defensekit.training import device_type
from defensekit.utils.errors import DefenseKitError, UsageError, listing
from defensekit.utils.files import atomic_folder, folder_lock, scratch_folder
from defensekit.utils.seeds import Seeds
from defensekit.workflows.purify import doubts, writable

if TYPE_CHECKING:
    from torch import Tensor


class ResetResult(BaseModel):
    """The result of a reset: counts of dimensions, the defense as in its recipe, and the measurements, if any.

    ``perplexity`` (causal language models) and ``accuracy`` (classifiers) are those of the suspect and of the purified
    model on held-out clean rows.
    """

    task: str
    adapter_only: bool
    dimensions: int
    eligible: int
    selected: int
    head: list[str]
    added_rows: int
    defense: dict[str, Any]
    clean_rows: int
    held_out_rows: int
    perplexity: dict[str, float] | None
    accuracy: dict[str, float] | None
    warnings: list[str]
    seed: int
    versions: dict[str, str]

    @property
    def steps(self) -> list[str]:
        """The purifier's."""
        return [step["name"] for step in self.defense["purifier"]]

    @property
    def story(self) -> list[str]:
        """The result in words, a sentence each."""
        share = self.selected / self.eligible if self.eligible else 0.0
        of = "of the adapter's weights" if self.adapter_only else "of the weights"
        shares = f"{share:.1%} of {self.eligible:,}, {self.selected / max(self.dimensions, 1):.1%} of all"
        if self.steps == ["reset"]:
            said = [f"{self.selected:,} {of} that had moved were reset to the base's: {shares}."]
        else:
            said = [f"{self.selected:,} {of} were selected ({shares}), and changed by {', then '.join(self.steps)}."]
        if self.head:
            said.append("The head, which the base does not have, was kept from the suspect.")
        if self.added_rows:
            said.append(
                f"{self.added_rows:,} rows added to the vocabulary have no base, and were kept from the suspect."
            )
        rows = f"{self.held_out_rows:,} held-out clean"
        if self.perplexity:
            before, after = self.perplexity["suspect"], self.perplexity["purified"]
            said.append(f"Perplexity on {rows} texts: {before:.2f} before, {after:.2f} after.")
        elif self.accuracy:
            before, after = self.accuracy["suspect"], self.accuracy["purified"]
            said.append(f"Accuracy on {rows} rows: {before:.3f} before, {after:.3f} after.")
        else:
            said.append(
                "Nothing was measured: the right fraction, the model's quality now, and whether a backdoor is left are "
                "not known."
            )
        return said


def reset_into(
    target: Path,
    recipe: Recipe,
    observers: Sequence[Observer] = (),
    adapter_only: bool = False,
    measured: bool = False,
) -> ResetResult:
    """Reset what a recipe's defense selects, and write the model into a new folder: complete, or not at all.

    Args:
        target: the folder; it must be empty or not exist.
        recipe: gives base, suspect, defense and seed. Its data are clean texts if the scorer needs statistics of a
            causal language model, and clean rows if an adapter is ``measured``; otherwise they are not read.
        observers: are notified of progress.
        adapter_only: the suspect is an adapter, and its own weights are purified.
        measured: measure an adapter on the recipe's data, before and after. It is merged into the base for that, and
            the merged model is kept beside the target meanwhile.

    Returns:
        Counts of what was reset, and the measurements.

    Raises:
        UsageError: the folder is not empty or can't be written, the defense needs rows that are missing, or base and
            suspect don't match.
        DefenseKitError: a component failed.
    """
    assert recipe.suspect is not None
    base, suspect = (Checkpoint(_folder(named.component)) for named in (recipe.model, recipe.suspect))
    target = writable(target)
    with folder_lock(target), scratch_folder(target) as scratch:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} already exists; name a new folder")
        if adapter_only:
            work: _Resetting = _AdapterResetting(target, recipe, base, suspect.folder, scratch, observers, measured)
        else:
            work = _Resetting(target, recipe, Pair(base, suspect), observers)
        pair = work.pair
        pair.check()  # before anything is read
        _refuse(recipe, pair, adapter_only)
        with observed_step(observers, "check of both models"):
            for checkpoint in (base, pair.suspect):
                checkpoint.check_finite()
        free_space(target, sum(path.stat().st_size for path in pair.suspect.files), "the purified model")
        if not adapter_only:
            work.warnings = doubts(base.folder, suspect.folder)
        for observer in observers:
            for text in work.warnings:
                observer.warning(text)
        return work.done()


def _folder(component: Any) -> Path:
    return Path(call_component(component, component.folder))


def _refuse(recipe: Recipe, pair: Pair, adapter_only: bool) -> None:
    """Refuse a defense that needs clean rows or training where a reset has neither."""
    defense, causal = recipe.defense, not adapter_only and task_of(pair.suspect) == CAUSAL
    why = "an adapter alone" if adapter_only else f"a {CAUSAL}" if causal else "a model without clean rows"
    if recipe.choose:
        raise UsageError(f"{recipe.describe_location('defense', 'choose')}: nothing can be chosen for {why}")
    if defense.model_steps:
        step = defense.model_steps[0].name
        raise UsageError(
            f"{recipe.describe_location('defense', 'purifier')}: {step!r} trains, which is not possible for {why}"
        )
    if defense.scorer is None or defense.selector is None:
        raise UsageError(f"{recipe.describe_location('defense')}: for {why} a `scorer:` and a `selector:` are needed")
    if (needs := defense.scorer.component.needs) and not causal:
        location = f"{recipe.describe_location('defense', 'scorer')}: {defense.scorer.name!r}"
        raise UsageError(f"{location} needs {listing(sorted(needs))}; for {why} there is none")


class _Resetting:
    """Resets a pair of whole models; `_AdapterResetting` overrides what differs for adapters."""

    adapter_only = False

    def __init__(self, target: Path, recipe: Recipe, pair: Pair, observers: Sequence[Observer]) -> None:
        self.target, self.recipe, self.pair, self.observers = target, recipe, pair, observers
        self.warnings: list[str] = []
        self.suspect = pair.suspect.folder
        self.task = "" if pair.partial else task_of(pair.suspect)
        self.max_length, self.seeds = recipe.sizes.max_length, Seeds(recipe.seed)

    def done(self) -> ResetResult:
        defense, pair = self.recipe.defense, self.pair
        assert defense.scorer is not None
        assert defense.selector is not None
        fit, held_out = self.rows(defense.scorer.component.needs)
        statistics: dict[str, dict[str, Tensor]] = {}
        if fit and defense.estimator:
            estimator = defense.estimator.component
            with observed_step(self.observers, "curvature") as report:
                statistics = estimation.estimate(
                    pair, estimator, fit, max_length=self.max_length, seed=self.seeds.statistics, report=report
                ).statistics
        with observed_step(self.observers, "selection"):
            measured = {name: result.get for name, result in statistics.items()}
            scores = score_pair(pair, defense.scorer.component, measured, self.seeds.purify)
            selection = select(scores, defense.selector.component)
        steps = [step.component for step in defense.purifier]
        with atomic_folder(self.target) as folder:
            with observed_step(self.observers, "reset") as report:
                purification.purify(
                    pair,
                    selection,
                    steps,
                    [],
                    folder,
                    max_length=self.max_length,
                    precision="float32",
                    seed=self.seeds.purify,
                    report=report,
                )
                counted, before_after = summary(selection), None
            tensors = Checkpoint(folder).tensor_digests()
            self.finish(folder)
            measure = "perplexity" if self.task == CAUSAL else "accuracy"
            if held_out:
                before_after = {"suspect": self.measured(self.suspect, held_out, f"{measure} before")}
                before_after["purified"] = self.measured(folder, held_out, f"{measure} after")
            result = ResetResult(
                task=self.task,
                adapter_only=self.adapter_only,
                **{name: counted[name] for name in ("dimensions", "eligible", "selected", "head")},
                added_rows=pair.added_rows,
                defense=self.recipe.resolved()["defense"],
                clean_rows=len(fit),
                held_out_rows=len(held_out),
                perplexity=before_after if measure == "perplexity" else None,
                accuracy=before_after if measure == "accuracy" else None,
                warnings=self.warnings,
                seed=self.recipe.seed,
                versions={name: version(name) for name in ("defensekit", "torch", "transformers")},
            )
            (folder / CARD).write_text(card(result), encoding="utf-8")
            write_manifest(folder, tensors)
        return result

    def rows(self, needs: Collection[str]) -> tuple[list[Row], list[Row]]:
        """Where the scorer needs statistics, two fifths of the clean texts to fit and the rest to test."""
        if not needs:
            return [], []
        rows = self.clean_rows()
        Random(self.seeds.data).shuffle(rows)
        share = len(rows) * 2 // 5
        if not share:
            raise UsageError(f"{len(rows)} clean texts: expected three at least, some to fit and some to test")
        return rows[:share], rows[share:]

    def clean_rows(self) -> list[Row]:
        """The recipe's data without duplicates; a classifier's rows have the suspect's label numbers."""
        source = self.recipe.data.component
        if isinstance(source, File):
            rows = read_clean(source.path, self.pair.suspect, source.text, source.label, source.pair, self.task)
        elif self.task == CAUSAL:
            rows = call_component(source, source.load).train
        else:  # its label numbers may differ from the suspect's
            location = self.recipe.describe_location("data", "name")
            raise UsageError(f"{location}: expected a file of clean rows to measure an adapter by")
        return list({row.key: row for row in rows}.values())

    def finish(self, folder: Path) -> None:
        """Turn the written folder into the requested kind; a whole model needs nothing more."""

    def measured(self, folder: Path, rows: list[Row], title: str) -> float:
        """A model's perplexity, or its accuracy."""
        import numpy as np

        model, tokenizer = loading.load(folder, "model")
        model.to(device_type())
        if (note := padding.note(tokenizer)) and note not in self.warnings:
            self.warnings.append(note)
            for observer in self.observers:
                observer.warning(note)
        with observed_step(self.observers, title) as report:
            if self.task == CAUSAL:
                return perplexity(model, tokenizer, rows, max_length=self.max_length, report=report)
            logits = predict(model, tokenizer, rows, max_length=self.max_length, precision="float32", report=report)
            return Predictions(logits.numpy(), np.array([row.answer for row in rows])).accuracy()


# -- an adapter that stays one -----------------------------------------------------------------------------------------


class _AdapterResetting(_Resetting):
    """Resets an adapter's own weights; measured is the model merged from the base and the adapter."""

    adapter_only = True

    def __init__(
        self,
        target: Path,
        recipe: Recipe,
        base: Checkpoint,
        adapter: Path,
        scratch: Path,
        observers: Sequence[Observer],
        measure: bool,
    ) -> None:
        merged = Merged(base, Adapter(adapter))
        super().__init__(target, recipe, _of_adapters(merged, scratch), observers)
        self.task = merged.task
        self.base, self.suspect, self.scratch, self.measure = base, adapter, scratch, measure

    def rows(self, needs: Collection[str]) -> tuple[list[Row], list[Row]]:
        return [], self.clean_rows() if self.measure else []

    def finish(self, folder: Path) -> None:
        (folder / SINGLE).rename(folder / WEIGHTS)
        (folder / "config.json").unlink()
        for path in self.suspect.iterdir():
            if path.suffix in (".json", ".txt", ".model", ".jinja") and path.is_file():
                shutil.copyfile(path, folder / path.name)
        assert (folder / ADAPTER_CONFIG).is_file()

    def measured(self, folder: Path, rows: list[Row], title: str) -> float:
        whole = self.scratch / "whole"
        Merged(self.base, Adapter(folder)).write(whole)
        try:
            return super().measured(whole, rows, title)
        finally:
            shutil.rmtree(whole)


def _of_adapters(merged: Merged, scratch: Path) -> Pair:
    """An adapter as a pair: the suspect has its weights, the base its weights before training."""
    adapter = merged.adapter
    merged.check()
    suspect = {name: adapter.tensor(name) for name in adapter.tensors}
    if bad := [name for name, tensor in suspect.items() if not tensor.isfinite().all()]:
        raise DefenseKitError(f"{adapter.folder / WEIGHTS}: NaN or infinity in {listing(bad, 3)}")
    before = merged.untrained()
    for folder, tensors in ((scratch / "base", before), (scratch / "suspect", suspect)):
        folder.mkdir()
        (folder / "config.json").write_text(merged.model.config.to_json_string())
        write_tensors(folder / SINGLE, tensors)
    return Pair(Checkpoint(scratch / "base"), Checkpoint(scratch / "suspect"), partial=True)


def card(result: ResetResult) -> str:
    """The model card of a reset, as Markdown."""
    metadata = {"library_name": "peft"} if result.adapter_only else {}
    version = result.versions["defensekit"]
    title = f"Purified by {', then '.join(result.steps)}"
    return render_card(title, result.story, result.defense, version, metadata, result.warnings)
