"""Stages of defenses that make a model: what they measure, search and choose, and the model."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from defensekit.components import Estimator, Purifier, Scorer, Selector
from defensekit.defense import estimation, purification
from defensekit.defense.scoring import score_pair
from defensekit.defense.selection import select, summary
from defensekit.defense.triggers import search
from defensekit.models import checkpoint, loading
from defensekit.models.devices import placed
from defensekit.models.writer import write_streamed
from defensekit.pipeline.predictions import read_predictions
from defensekit.pipeline.stages.context import StageContext
from defensekit.pipeline.store import ArtifactWriter

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def statistics(work: StageContext, draft: ArtifactWriter) -> None:
    """Statistics per parameter on clean rows, for the tensors in scope, by the pair's names."""
    estimator = work.component(Estimator, "estimator")
    seed = work.stage["seed"]
    estimated = estimation.estimate(
        work.pair, estimator, work.rows("clean"), max_length=work.max_length, seed=seed, report=work.report
    )
    for statistic, tensors in estimated.statistics.items():
        entries = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
        write_streamed(draft.files / f"{statistic}.safetensors", entries, lambda name: [tensors[name]])  # noqa: B023
    draft.facts.update(estimated.facts)


def purify(work: StageContext, draft: ArtifactWriter) -> None:
    """Select dimensions of the suspect and purify it."""
    roles = sorted(role for role in work.stage["components"] if role.startswith("step"))
    selection = None
    if "selector" in work.stage["components"]:
        scorer, selector = work.component(Scorer, "scorer"), work.component(Selector, "selector")
        selection = select(score_pair(work.pair, scorer, _readers(work), work.stage["seed"]), selector)
    judged = [work.about(name) for name in work.stage["inputs"] if name.startswith("judged")]
    facts_of = [one["facts"] for one in judged if one]
    parts = [search.Judged.read(facts) for facts in facts_of]
    searched = search.Searched.whole(parts, facts_of[0]["tried"]) if parts else None
    facts = purification.purify(
        work.pair,
        selection,
        [work.component(Purifier, role) for role in roles],
        work.rows("clean"),
        draft.files,
        max_length=work.max_length,
        precision=work.precision,
        seed=work.stage["seed"],
        report=work.report,
        searched=searched,
    )
    draft.facts.update(facts)
    draft.facts["judged"] = judged
    if selection is not None:
        draft.facts.update(summary(selection))
        if "statistics" in work.stage["inputs"]:
            draft.facts["statistics"] = work.about("statistics")


def _readers(work: StageContext) -> "dict[str, Callable[[str], Tensor | None]]":
    if "statistics" not in work.stage["inputs"]:
        return {}

    def reader(path: Path) -> "Callable[[str], Tensor | None]":
        measured = checkpoint.tensor_names(path)
        return lambda name: checkpoint.read_tensor(path, name) if name in measured else None

    return {path.stem: reader(path) for path in sorted(work.folder("statistics").glob("*.safetensors"))}


def screen(work: StageContext, draft: ArtifactWriter) -> None:
    """Try a part of the words that the suspect knows."""
    suspect, tokenizer = loading.load(work.folder("suspect"), "suspect")
    known = search.vocabulary(suspect, tokenizer)
    part = search.split(known)[work.stage["params"]["part"]]
    screened = _search(work, tokenizer).screened(placed(suspect), part, work.report)
    draft.facts.update(screened=screened, tried=len(part))


def judge(work: StageContext, draft: ArtifactWriter) -> None:
    """Judge what was screened, for a part of the labels, beside the control."""
    suspect, tokenizer = loading.load(work.folder("suspect"), "suspect")
    control, _ = loading.load(work.folder("control"), "control")
    names = [name for name in work.stage["inputs"] if name.startswith("screened")]
    parts = [work.facts(name) for name in names]
    judged = _search(work, tokenizer).judged(
        placed(suspect),
        placed(control),
        [part["screened"] for part in parts],
        work.stage["params"]["part"],
        work.report,
    )
    artifacts = [work.store.open(work.stage["inputs"][name]) for name in ("answers", "control", *names)]
    peaks = [artifact.peak_memory for artifact in artifacts if artifact.peak_memory is not None]
    draft.facts.update(judged.plain(), tried=sum(part["tried"] for part in parts))
    draft.facts.update(seconds=sum(one.seconds for one in artifacts), peak_memory=max(peaks, default=None))


def _search(work: StageContext, tokenizer: "PreTrainedTokenizerBase") -> search.Search:
    import torch

    logits = torch.from_numpy(read_predictions(work.folder("answers")).logits)
    how = work.max_length, work.precision, work.stage["seed"]
    return search.Search.of(tokenizer, work.rows("clean"), logits, *how)
