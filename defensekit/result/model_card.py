"""The model card of a purified model: what was done to it, what that did, and what is not promised."""

import re
from collections.abc import Sequence
from typing import Any

from defensekit.recipe import yaml_document
from defensekit.recipe.vocabulary import described
from defensekit.result.narrative import NOT_PROMISED, named, search, story, verdict
from defensekit.result.schema import Result

CARD = "README.md"


def card(result: Result, kept: bool = False) -> str:
    """The card of a run's purified model.

    Args:
        result: the run's.
        kept: the model is the suspect as it was, since nothing was found in it.

    Returns:
        Markdown with the metadata that a hub reads; it names no folder of this machine.
    """
    from huggingface_hub import EvalResult

    after, data = result.models["suspect" if kept else "purified"].metrics, result.recipe["data"]
    task = "text-classification" if result.data["labels"] else "text-generation"
    facts: dict[str, Any] = {"pipeline_tag": task, "model_name": f"{result.name}-{'kept' if kept else 'purified'}"}
    if "id" in result.recipe["model"]:
        facts["base_model"] = result.recipe["model"]["id"]
    facts["eval_results"] = [
        EvalResult(
            task_type=task,
            dataset_type=data.get("id", "private"),
            dataset_name=f"held-out rows of {named(data)}",
            metric_type=result.metrics[name].hub_name,
            metric_value=round(measured.value, 4),
        )
        for name, measured in after.items()
        if result.metrics[name].hub_name
    ]
    told = [verdict(result).text, *search(result), "What is here is the suspect as it was, byte for byte."]
    return render_card(
        f"{result.name}, {'as it was' if kept else 'purified'}",
        told if kept else story(result),
        result.recipe["defense"],
        result.environment.versions["defensekit"],
        facts,
        result=result,
        metrics=list(after),
        models=[((result.marked(name), described(name)[1]), model) for name, model in result.models.items()],
        marked=" ".join(f"{mark} {means}." for mark, (means, _) in result.marks.items()),
        meanings={name: metric.meaning for name, metric in result.metrics.items() if metric.meaning},
        kept=kept,
    )


def render_card(
    title: str,
    story: Sequence[str],
    defense: dict[str, Any],
    version: str,
    metadata: dict[str, Any],
    warnings: Sequence[str] = (),
    **measured: Any,
) -> str:
    """A card; every text is escaped.

    Args:
        title: its heading.
        story: what was done, a sentence each.
        defense: as the recipe has it.
        version: DefenseKit's.
        metadata: what a hub reads, beside what all cards have.
        warnings: for the reader, a sentence each.
        measured: of a run: its ``result``, ``metrics``, ``models``, ``meanings``, and whether the suspect was ``kept``.

    Returns:
        Markdown under a block of YAML.
    """
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Markdown is escaped by `flat`; no HTML is produced.
    environment = Environment(
        loader=PackageLoader(__package__, "."), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    environment.filters["flat"] = _flat
    text = environment.get_template("model_card.md").render(
        title=title,
        story=story,
        defense=yaml_document.dump({"defense": defense}),
        version=version,
        warnings=warnings,
        not_promised=NOT_PROMISED,
        **{"result": None, "kept": False, **measured},
    )
    facts = {"library_name": "transformers", "tags": ["defensekit", "backdoor-defense"], **metadata}
    return f"---\n{ModelCardData(**facts).to_yaml()}\n---\n\n{text}"


def _flat(text: str) -> str:
    """Text from outside as one line that Markdown and HTML leave as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#!&~])", r"\\\1", " ".join(text.split()))
