"""Stages that train a model, or ask one."""

import json
from dataclasses import asdict
from random import Random
from typing import TYPE_CHECKING, Any

from defensekit import training
from defensekit.components import Attack, AttackTrainingContext, call_component, component_error
from defensekit.defense import estimation, purification
from defensekit.defense.triggers import planting, search
from defensekit.models import loading
from defensekit.models.checkpoint import Checkpoint
from defensekit.pipeline.stages.context import LEARNT, StageContext
from defensekit.pipeline.store import ArtifactWriter
from defensekit.pipeline.tasks import task_of
from defensekit.utils.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train(work: StageContext, draft: ArtifactWriter) -> None:
    """Fine-tune a model on rows, or let an attack train it."""
    labels = tuple(work.facts("rows")["labels"])
    settings = work.training
    with training.forked_random(work.seed("head")):
        model, tokenizer = task_of(labels).load(work.folder("model"))
    rows, seed = work.rows("rows"), work.seed("training")
    if "attack" in work.stage["components"]:
        attack, clean = work.component(Attack, "attack"), work.rows("clean")
        context = AttackTrainingContext(
            tokenizer, labels, clean, rows, settings, work.max_length, work.precision, seed, work.report
        )
        with training.forked_random(seed):
            call_component(attack, attack.train, model, context)
    else:
        training.fine_tune(
            model,
            tokenizer,
            rows,
            settings,
            max_length=work.max_length,
            precision=work.precision,
            seed=seed,
            report=work.report,
        )
    _save_trained(work, draft, model)


def learn(work: StageContext, draft: ArtifactWriter) -> None:
    """Let an attack find its trigger with a model, before it puts it into rows."""
    labels = tuple(work.facts("rows")["labels"])
    with training.forked_random(work.seed("head")):
        model, tokenizer = task_of(labels).load(work.folder("model"))
    attack, rows, seed = work.component(Attack, "attack"), work.rows("rows"), work.seed("training")
    context = AttackTrainingContext(
        tokenizer, labels, rows, rows, work.training, work.max_length, work.precision, seed, work.report
    )
    with training.forked_random(seed):
        learnt = call_component(attack, attack.learn, model, context)
    try:
        (draft.files / LEARNT).write_text(json.dumps(learnt, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise component_error(attack, f"learnt something that can't be written as JSON ({error})") from error


def _save_trained(work: StageContext, draft: ArtifactWriter, model: "PreTrainedModel") -> None:
    loading.save_model(model.cpu(), draft.files)
    Checkpoint(draft.files).check_finite()
    loading.load_tokenizer(work.folder("model")).save_pretrained(
        draft.files
    )  # with the padding token that it came with


def retune(work: StageContext, draft: ArtifactWriter) -> None:
    """Fine-tune a model on a few of the poisoned rows, and on the rows that they were made of.

    Without these a model would learn to give the target always, which is no backdoor.
    """
    before, rows = {row.id: row for row in work.rows("clean")}, work.rows("rows")
    relabelled = [row for row in rows if row.id not in before or row.answer != before[row.id].answer]
    poisoned = relabelled or [row for row in rows if row != before[row.id]]  # some attacks change no answer
    count = work.stage["params"]["count"]
    if count > len(poisoned):
        raise UsageError(f"asks for {count:,} poisoned rows, and the attacker has {len(poisoned):,}")
    Random(work.seed("rows")).shuffle(poisoned)  # fewer rows are the first of more
    some = poisoned[:count]
    model, tokenizer = task_of(work.facts("rows")["labels"]).load(work.folder("model"))
    training.fine_tune(
        model,
        tokenizer,
        [*some, *(before[row.id] for row in some if row.id in before)],
        work.training,
        max_length=work.max_length,
        precision=work.precision,
        seed=work.seed("training"),
        report=work.report,
    )
    _save_trained(work, draft, model)


def plant(work: StageContext, draft: ArtifactWriter) -> None:
    """Plant triggers of the defender's own into a copy of the suspect."""
    settings, rows = work.training, work.rows("clean")
    tokenizer, labels = loading.load_tokenizer(work.folder("suspect")), len(work.facts("clean")["labels"])
    triggers = planting.draw(rows, labels, tokenizer, Random(work.seed("triggers")))
    purification.purify(
        work.pair,
        None,
        [planting.Plant(triggers=tuple(triggers), **settings.model_dump())],
        rows,
        draft.files,
        max_length=work.max_length,
        precision=work.precision,
        seed=work.seed("training"),
        report=work.report,
    )
    draft.facts.update(triggers=[asdict(trigger) for trigger in triggers])


def control(work: StageContext, draft: ArtifactWriter) -> None:
    """Train the model that a suspect is compared with in a search for triggers."""
    model = estimation.other_model(work.pair, "base")
    tokenizer = loading.neutral(model, loading.load_tokenizer(work.folder("suspect")), "suspect")
    settings = work.training
    how: Any = {"max_length": work.max_length, "precision": work.precision, "report": work.report}
    rows, seed = work.rows("clean"), work.stage["seed"]
    training.fine_tune(model, tokenizer, rows, search.for_control(settings, rows), seed=seed, **how)
    loading.save_model(model.cpu(), draft.files)
    tokenizer.save_pretrained(draft.files)
