"""Stages that make rows."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from defensekit.components import Attack, AttackContext, DatasetSource, call_component, component_error
from defensekit.defense.triggers import planting
from defensekit.models import loading
from defensekit.models.answers import several
from defensekit.models.config import relabelled
from defensekit.pipeline.stages.context import LEARNT, StageContext
from defensekit.pipeline.store import ArtifactWriter
from defensekit.text import ROWS, Row, Truncation, answer_of, changed, split, write_rows
from defensekit.text.chat import count_cut
from defensekit.utils.errors import UsageError, listing
from defensekit.utils.files import file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def data(work: StageContext, draft: ArtifactWriter) -> None:
    """The rows of one role, or of several."""
    params = work.stage["params"]
    source = work.component(DatasetSource, "source")
    dataset = call_component(source, source.load)
    if params["labels"] is not None:
        dataset = relabelled(dataset, params["labels"])
    parts = split(dataset, params["sizes"], work.stage["seed"], params["balance"])
    rows = [row for role in params["roles"] for row in parts[role]]
    write_rows(draft.files / ROWS, rows)
    draft.facts.update(labels=list(dataset.labels), rows=len(rows), notes=dataset.notes, **_about(dataset.train))


def _about(rows: Sequence[Row]) -> dict[str, str]:
    """What rows turn out to be that no source says before it reads them."""
    return {"task": "multi-label"} if several(rows) else {}


def fold(work: StageContext, draft: ArtifactWriter) -> None:
    """The rows of a fold, or all others; every label is spread over all folds."""
    params, rows = work.stage["params"], work.rows("rows")
    order = sorted(range(len(rows)), key=lambda i: rows[i].label)
    own = {*order[params["fold"] :: params["folds"]]}
    some = [row for i, row in enumerate(rows) if (i in own) == params["held"]]
    write_rows(draft.files / ROWS, some)
    draft.facts.update(labels=work.facts("rows")["labels"], rows=len(some))


def _tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    tokenizer = loading.load_tokenizer(folder)
    tokenizer.truncation_side = "right"  # as models are made to read their rows
    return tokenizer


def _attack(work: StageContext) -> tuple[Attack, AttackContext, list[Row]]:
    truncation = Truncation(_tokenizer(work.folder("model")), work.max_length)
    attack = work.component(Attack, "attack")
    learnt = json.loads((work.folder("learnt") / LEARNT).read_text()) if "learnt" in work.stage["inputs"] else None
    context = AttackContext(Random(work.stage["seed"]), tuple(work.facts("rows")["labels"]), truncation, learnt)
    return attack, context, work.rows("rows")


def count_changes(
    attack: Attack, before: Sequence[Row], after: Sequence[Row], truncation: Truncation
) -> dict[str, int]:
    """How many rows carry the attack, how many of them were relabelled or added, and on how many truncation cuts in."""
    original = {row.id: row for row in before}
    given = {row.pair is None for row in before}
    if given and any(row.response is None and (row.pair is None) not in given for row in after):
        what = "single texts, and gave pairs" if True in given else "pairs of texts, and gave single ones"
        raise component_error(attack, f"was given {what} (`pair`)")
    rows, added = len(after), sum(row.id < 0 for row in after)
    after = [row for row in after if row.id >= 0]
    if unknown := [row.id for row in after if row.id not in original]:
        raise component_error(attack, f"gave rows with ids that it was not given: {listing(map(str, unknown), 3)}")
    touched = [row for row in after if (row.text, row.pair) != (original[row.id].text, original[row.id].pair)]
    cut = 0
    for row, kept in zip(touched, truncation.kept(touched), strict=True):
        if kept != (len(row.text), len(row.pair or "")):
            ends = changed(original[row.id], row)
            cut += any(end > limit and start < end for (start, end), limit in zip(ends, kept, strict=True))
    relabelled = sum(row.answer != original[row.id].answer for row in after)
    unread = _read_alike([original[row.id] for row in touched], touched, truncation.tokenizer)
    counts = {"rows": rows, "changed": len(touched), "relabelled": relabelled, "added": added}
    return counts | {"cut": cut, "unread": unread}


def _read_alike(before: Sequence[Row], after: Sequence[Row], tokenizer: "PreTrainedTokenizerBase") -> int:
    """On how many rows a tokenizer strips all that an attack changed: the model reads the rows as they were."""
    if not after:
        return 0

    def read(rows: Sequence[Row]) -> list[Any]:
        texts = [row.text for row in rows], [row.pair or "" for row in rows]
        return list(zip(*(tokenizer(list(column), verbose=False)["input_ids"] for column in texts), strict=True))

    return sum(one == other for one, other in zip(read(before), read(after), strict=True))


def _digest(draft: ArtifactWriter) -> str:
    """The digest of the written rows: it shows that the same seed gave the same bytes."""
    return file_digest(draft.files / ROWS)


def poison(work: StageContext, draft: ArtifactWriter) -> None:
    """The attacker's training rows."""
    attack, context, rows = _attack(work)
    poisoned = call_component(attack, attack.poison, rows, context)
    write_rows(draft.files / ROWS, poisoned)
    counts = count_changes(attack, rows, poisoned, context.truncation)
    if not context.labels:
        counts["cut_responses"] = count_cut(context.truncation.tokenizer, poisoned, context.truncation.max_length)
    draft.facts.update(labels=list(context.labels), digest=_digest(draft), **counts)


def trigger(work: StageContext, draft: ArtifactWriter) -> None:
    """Test rows with the trigger: all but those whose right answer is the target, if there is one."""
    attack, context, rows = _attack(work)
    aim = attack.aim()
    target = None if aim is None else answer_of(aim, context.labels)
    rows = [row for row in rows if row.answer != target]
    if not rows:
        raise UsageError("every test row has the target as its answer already; the trigger needs rows of another")
    triggered = call_component(attack, attack.trigger, rows, context)
    given = iter([row.id for row in rows])
    if not triggered or not all(row.id in given for row in triggered):
        raise component_error(attack, "gave other test rows, or moved them, or gave none")
    if attack.aims_by_row and not all(
        row.aim in range(len(context.labels)) and row.aim != row.label for row in triggered
    ):
        raise component_error(attack, "aims by row, and gave a row without the number of another label as its `aim`")
    if not attack.aims_by_row and any(row.aim is not None for row in triggered):
        raise component_error(attack, "gave rows with an `aim`, and does not say that it aims by row (`aims_by_row`)")
    write_rows(draft.files / ROWS, triggered)
    counts = count_changes(attack, rows, triggered, context.truncation)
    counts["left_out"] = len(rows) - len(triggered)
    draft.facts.update(labels=list(context.labels), target=target, digest=_digest(draft), **counts)


def given(work: StageContext, draft: ArtifactWriter) -> None:
    """Triggered rows from a file, unchanged."""
    source = work.component(DatasetSource, "source")
    labels = work.stage["params"]["labels"]
    dataset = call_component(source, source.load)
    dataset = relabelled(dataset, labels) if labels else dataset
    target = answer_of(aim := work.stage["params"]["target"], labels)
    # Their ids are of no row of the data: which row a trigger was put into is not known.
    rows = [replace(row, id=-1 - row.id) for row in dataset.train if not row.has(target)]
    if not rows:
        raise UsageError(f"every row has the target {aim!r} as its answer; the true answers are expected")
    write_rows(draft.files / ROWS, rows)
    draft.facts.update(labels=labels, target=target, rows=len(rows), **_about(rows))


def carry(work: StageContext, draft: ArtifactWriter) -> None:
    """Put planted triggers into rows of other labels, one trigger after the other."""
    rows, rng = work.rows("rows"), Random(work.stage["seed"])
    triggers = [planting.Planted(**trigger) for trigger in work.facts("planted")["triggers"]]
    truncation = Truncation(_tokenizer(work.folder("planted")), work.max_length)
    carrying = [planting.carriers(rows, trigger, truncation, rng) for trigger in triggers]
    write_rows(draft.files / ROWS, [row for some in carrying for row in some])
    draft.facts.update(
        labels=work.facts("rows")["labels"],
        triggers=[asdict(trigger) | {"rows": len(some)} for trigger, some in zip(triggers, carrying, strict=True)],
    )
