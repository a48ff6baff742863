"""Run a scan from beginning to end."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from defensekit.components import Observer
from defensekit.components.runtime import observed_step
from defensekit.defense.triggers import collapse
from defensekit.defense.triggers.insertion import spell
from defensekit.models import loading, padding
from defensekit.models.aligned import Aligned
from defensekit.models.answers import several
from defensekit.models.checkpoint import CAUSAL, CLASSIFIER, Checkpoint
from defensekit.models.config import check_labels, contradiction, label_names, positions
from defensekit.models.loading import load
from defensekit.models.skeleton import skeleton, task_of
from defensekit.scanner import claims, drift, frequency, law, revision, triggers, verdict
from defensekit.scanner import tokenizer as tokenizers
from defensekit.scanner.result import EmbeddingRow, EmbeddingScan, Scan, Searched, TokenizerScan, Triggers
from defensekit.scanner.rows import Outliers, RowDrift, outliers
from defensekit.scanner.searching import search, search_answers
from defensekit.text import Row
from defensekit.text.chat import encode_prompts
from defensekit.training import device_type
from defensekit.utils.errors import UsageError, listing, running
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_LENGTH = 128  # tokens of a row that are read, unless the model has fewer positions
LONGEST = 512  # tokens of an instruction with its response
SHOWN = 20  # suspicious rows of the embedding that a result holds
DISTRIBUTIONS = ("defensekit", "torch", "transformers", "tokenizers", "numpy", "scipy")


def scan(
    base: str | Path,
    suspect: str | Path,
    rows: Sequence[Row] | None = None,
    *,
    seed: int = 0,
    observers: Sequence[Observer] = (),
) -> Scan:
    """Compare a suspect with its base.

    Args:
        base: the folder of the pretrained model.
        suspect: the folder of the fine-tuned one: a sequence classifier, a causal language model, or anything else
            that transformers writes as safetensors.
        rows: clean rows of the suspect's task, labels by its numbers (`read_clean` reads them). Tokens are counted in
            them; with a classifier the curvature is measured and suspicious tokens are tried on them.
        seed: the seed of every random draw.
        observers: are notified of progress.

    Returns:
        The measurements and the verdict.

    Raises:
        UsageError: a model can't be read safely, or the two are of different architectures.
        DefenseKitError: a weight is NaN or infinite.
    """
    models = Aligned(Checkpoint(Path(base)), Checkpoint(Path(suspect)))
    return _Scanning(models, list(rows or ()), seed, observers).result()


@dataclass
class _Scanning:
    models: Aligned
    rows: list[Row]
    seed: int
    observers: Sequence[Observer]
    notes: list[str] = field(default_factory=list)

    def result(self) -> Scan:
        started, models = time.perf_counter(), self.models
        models.check()  # a misfit is reported before anything is loaded
        task, tokenizer = task_of(models.suspect), loading.load_tokenizer(models.suspect.folder)
        if self.rows and task == CLASSIFIER:
            check_labels(models.suspect)
        if self._instructed:
            self._leave_out_long_rows(tokenizer)
        findings = [*models.not_compared(), *claims.contradictions(models, self.rows)]
        model = None
        if self.rows and task == CLASSIFIER and skeleton(models.suspect).fits:
            models.suspect.check_finite()  # before anything is computed with them
            model, tokenizer = load(models.suspect.folder, "suspect")
            model.to(device_type())
        own_loss = contradiction(models.suspect, several(self.rows)) is None
        ratios = self._ratios(model, tokenizer) if model is not None and own_loss else None
        if model is not None:
            self.notes += filter(None, [padding.note(tokenizer)])
        embedding = revision.embedding_of(models)
        if embedding is None:
            self.notes.append("no tensor has the name of an embedding: its rows are not examined")
        looks = [part.look for part in (embedding, ratios) if part is not None]
        with observed_step(self.observers, "drift") as report:
            tensors = drift.measure(models, looks, report)
        longer = [name for name in models.compared if len({*models.rows(name)}) > 1]
        unread = [*models.added, *models.reshaped, *longer]  # or not to their end
        models.suspect.check_finite([models.own_name(name) for name in unread])
        known = not drift.is_another_base(tensors)
        if known and (doubt := revision.doubt(models, tensors, embedding)):
            self.notes.append(doubt)
        embedding_scan = judged = fitted = tried = None
        if embedding is not None and known:
            embedding_scan, judged = self._outliers(embedding, tokenizer)
        if ratios is not None and known:
            with observed_step(self.observers, "mixture"):
                fitted = law.judge(ratios, tensors, len(self.rows), derive_seed(self.seed, "bootstrap"))
        if model is not None and judged is not None:
            tried = self._tried(model, tokenizer, judged)
        searched = None
        if model is not None and known:
            try:
                searched = self._searched(model, tokenizer)
            except UsageError as error:  # the suspect's author chose what fails: it is no reason to pass
                findings.append(f"no search for triggers could be made ({error})")
        if known and task == CAUSAL and self._instructed:
            searched = self._answers_searched(judged)
        rewriting = self._rewriting(model, tokenizer)
        if rewriting and (told := tokenizers.finding(rewriting)):
            findings.append(told)
        self._remark()
        decided = verdict.judge(tensors, embedding_scan, tried, searched, rewriting, findings)
        return Scan(
            base=str(models.base.folder),
            suspect=str(models.suspect.folder),
            task=task,
            dtypes=sorted({entry.dtype for entry in models.suspect.tensors.values()}),
            verdict=decided,
            summary=verdict.summarise(decided, task, tensors, embedding_scan, fitted, tried, searched, findings),
            tensors=tensors,
            added=models.added,
            reshaped=models.reshaped,
            embedding=embedding_scan,
            law=fitted,
            triggers=tried,
            searched=searched,
            tokenizer=rewriting,
            findings=findings,
            clean_rows=len(self.rows),
            notes=self.notes,
            seed=self.seed,
            versions={name: version(name) for name in DISTRIBUTIONS},
            seconds=round(time.perf_counter() - started, 2),
        )

    @cached_property
    def _max_length(self) -> int:
        # By the base's config: the suspect's could have rows cut to a token.
        most = LONGEST if self._instructed else MAX_LENGTH
        return min(most, positions(self.models.base) or most)

    def _ratios(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> law.Ratios:
        with observed_step(self.observers, "curvature") as report, running("the model"):
            measured = law.curvature(model, tokenizer, self.rows, self._max_length, report)
        own_names = {name: self.models.own_name(name) for name in self.models.compared}
        return law.Ratios(law.by_tensor_name(measured, own_names))

    def _outliers(self, embedding: RowDrift, tokenizer: "PreTrainedTokenizerBase") -> tuple[EmbeddingScan, Outliers]:
        import numpy as np

        rows = embedding.rows
        judged = np.ones(rows, dtype=bool)
        judged[[token for token in self._special(tokenizer) if token < rows]] = False
        judged[len(tokenizer) :] = False  # rows that fill the matrix up to a round number
        if self.rows:
            source, often = verdict.IN_ROWS, frequency.in_rows(tokenizer, self.rows, self._max_length, rows)
        else:
            source = verdict.IN_ENGLISH
            with observed_step(self.observers, "frequencies of words"):
                often = frequency.in_english(tokenizer, rows)
                judged &= [frequency.spelled(spell(tokenizer, token)) for token in range(rows)]
        judgement = outliers(embedding.drift, often, judged)
        order = [int(i) for i in np.argsort(-np.nan_to_num(judgement.z, nan=-np.inf), kind="stable")[:SHOWN]]
        about = EmbeddingScan(
            tensor=embedding.name,
            frequencies=source,
            rows=rows,
            moved=int((embedding.drift > 0).sum()),
            judged=int((judgement.group >= 0).sum()),
            added=max(self.models.rows(embedding.name)[1] - rows, 0),
            decay=embedding.decay,
            suspicious=[
                self._row(tokenizer, i, embedding.drift, often, judgement) for i in order if judgement.group[i] >= 0
            ],
        )
        return about, judgement

    def _special(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The base's special tokens, since a suspect may call its trigger one; its own, where the base has none."""
        with suppress(UsageError):  # that the base has none is among what is found
            tokenizer = loading.load_tokenizer(self.models.base.folder)
        return [*tokenizer.all_special_ids]

    def _row(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        token: int,
        drifts: "NDArray[Any]",
        often: "NDArray[Any]",
        judgement: Outliers,
    ) -> EmbeddingRow:
        return EmbeddingRow(
            token=str(tokenizer.convert_ids_to_tokens(token)),
            id=token,
            frequency=float(often[token]),
            drift=float(drifts[token]),
            typical=float(judgement.typical[token]),
            outlier=float(judgement.z[token]),
        )

    def _rewriting(self, model: "PreTrainedModel | None", tokenizer: "PreTrainedTokenizerBase") -> TokenizerScan | None:
        """What a tokenizer does that differs from the base's."""
        if not (parts := tokenizers.differences(self.models.base.folder, self.models.suspect.folder)):
            return None
        if model is None or tokenizers.NONE in parts:
            return TokenizerScan(parts=parts, tried=[], left_out=0)
        base = loading.load_tokenizer(self.models.base.folder)
        seed = derive_seed(self.seed, "triggers")
        rows = Random(seed).sample(self.rows, min(triggers.ROWS, len(self.rows)))
        labels = label_names(self.models.suspect)
        with observed_step(self.observers, "texts that the tokenizers read differently") as report:
            return tokenizers.attempt(parts, model, base, tokenizer, rows, labels, self._max_length, seed, report)

    def _tried(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", judged: Outliers
    ) -> Triggers | None:
        seed = derive_seed(self.seed, "triggers")
        rows = Random(seed).sample(self.rows, min(triggers.ROWS, len(self.rows)))
        candidates, controls = triggers.pick(tokenizer, judged, seed)
        labels = label_names(self.models.suspect)
        with observed_step(self.observers, "tokens tried") as report:
            return triggers.TriggerTrial(model, tokenizer, rows, labels, self._max_length, seed).run(
                candidates, controls, report
            )

    def _searched(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Searched:
        seed, labels, base = derive_seed(self.seed, "search"), label_names(self.models.suspect), self.models.base.folder
        with observed_step(self.observers, "search for triggers") as report:
            return search(model, tokenizer, base, self.rows, labels, self._max_length, seed, report)

    @property
    def _instructed(self) -> bool:
        """Whether the clean rows are instructions with responses."""
        return bool(self.rows) and self.rows[0].response is not None

    def _leave_out_long_rows(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Keep the instructions that leave room for an answer.

        Raises:
            UsageError: the suspect's tokenizer writes no instructions, or none is kept.
        """
        suspect, limit = self.models.suspect.folder, self._max_length - collapse.NEW_TOKENS - collapse.WORD
        try:
            lengths = [len(prompt["input_ids"]) for prompt in encode_prompts(tokenizer, self.rows, sys.maxsize)]
        except UsageError as error:
            raise UsageError(f"{suspect}: {error}") from error
        kept = [row for row, length in zip(self.rows, lengths, strict=True) if length < limit]
        if not kept:
            raise UsageError(f"every instruction takes {limit:,} tokens or more with the chat template of {suspect}")
        if left_out := len(self.rows) - len(kept):
            self.notes.append(f"{left_out:,} instructions of {limit:,} tokens or more are left out")
        self.rows = kept

    def _answers_searched(self, judged: Outliers | None) -> Searched | None:
        model, tokenizer = load(self.models.suspect.folder, "suspect")
        model.to(device_type())
        seed, base = derive_seed(self.seed, "search"), self.models.base.folder
        with observed_step(self.observers, "search for triggers") as report:
            try:
                return search_answers(model, tokenizer, base, self.rows, judged, self._max_length, seed, report)
            except UsageError as error:  # prompts have tokens that the base does not know
                self.notes.append(f"no search for triggers, since the base can't be compared with: {error}")
                return None

    def _remark(self) -> None:
        """Note what was left out."""
        models = self.models
        if settings := claims.other_settings(models):
            self.notes.append(settings)
        if self.rows and task_of(models.suspect) != CLASSIFIER and not self._instructed:
            self.notes.append("the suspect is no classifier: clean rows are used to count tokens alone")
        if models.added:
            self.notes.append(f"in the suspect alone, not compared: {listing(models.added)}")
        if models.reshaped:
            self.notes.append(f"of another shape, not compared: {listing(models.reshaped)}")
        for name in models.compared:
            base, suspect = models.rows(name)
            if base != suspect:
                self.notes.append(
                    f"{name}: {min(base, suspect):,} rows are compared (base {base:,}, suspect {suspect:,})"
                )
