"""What a result says, in words: shared by everything that tells a person about a run."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from defensekit.components.metric import Measured
from defensekit.result.schema import STILL_WORKS, Filtered, Result, Verdict

_TOO_FEW = "too few clean rows have another answer, as the suspect sees them"
UNSEEN = "A trigger unlike these would not have been seen."

NOT_PROMISED = (
    "No certificate: what looked abnormal to this defense was changed, an attack that keeps clear of that goes unseen.",
    "A search, where one was made, tries single words: phrases, sentences, rewritings and styles go unseen.",
    "One run with one seed: another seed, split or machine gives other numbers.",
)


def story(result: Result) -> list[str]:
    """What was done and what came of it, a sentence each."""
    of_defense = {"sanitized": _on_inputs, "filtered": _on_training_rows}.get(result.defended, _on_weights)
    sentences = [_suspect(result), *of_defense(result)]
    before, after = result.models["suspect"].metrics, result.models[result.defended].metrics
    for name in [name for name in before if name in after]:
        reached = result.floors.get(name)
        floor = "" if reached is None else f", where a model that was never poisoned has {reached:.1%}"
        if result.metrics[name].bounds[0] < 0:
            signed = f", where a model that was never poisoned has {reached:+z.1%}" if reached is not None else ""
            change = f"{before[name].value:+z.1%} to {after[name].value:+z.1%}"
            sentences.append(f"{name.upper()} went from {change} on {after[name].rows:,} rows{signed}.")
            continue
        if result.metrics[name].bounds[1] > 1:
            change = f"{before[name].value:.3f} to {after[name].value:.3f}"
            sentences.append(f"{name.upper()} went from {change} on {after[name].rows:,} rows.")
            continue
        sentences.append(
            f"{name.upper()} went from {before[name].value:.1%} to {after[name].value:.1%} on {after[name].rows:,} rows"
            f"{floor}."
        )
    return [verdict(result).text, *sentences] if result.defended == "purified" else sentences


def _on_weights(result: Result) -> list[str]:
    recipe, defense, sentences = result.recipe, result.recipe["defense"], []
    folds = result.chosen.folds if result.chosen else None
    fit = result.clean_budget if folds or (defense.get("refit") and not result.chosen) else recipe["data"]["clean"]
    chose = f"the same rows, in {folds} folds" if folds else f"{result.clean_budget - fit:,} further clean rows"
    measured = f"measured {defense['estimator']['name']} on" if "estimator" in defense else "used"
    steps = ", then ".join(step["name"] for step in defense["purifier"])
    selection = (
        f"scored every dimension by {defense['scorer']['name']}, took dimensions by {defense['selector']['name']}, "
        if "selector" in defense
        else ""
    )
    sentences.append(f"The defense {measured} {fit:,} clean rows, {selection}and did: {steps}.")
    if result.chosen:
        sentences.append(_chosen(result, chose))
        if defense.get("refit"):
            sentences.append(f"The chosen defense was then made anew from all {result.clean_budget:,} rows.")
    reset = result.models["purified"].reset
    if reset:
        sentences.append(f"It took {reset.of_eligible:.1%} of the eligible dimensions, {reset.of_all:.1%} of all.")
    elif selection:
        sentences.append("Nothing was reset.")
    return sentences + search(result)


def search(result: Result) -> list[str]:
    """What a search for triggers found, if a step of the defense searched."""
    model = result.models[result.defended]
    if model.triggers is None:
        return []
    if not model.tried:
        return [f"No words were tried: {_TOO_FEW}."]
    towards = f" (not towards {_quoted(model.unjudged)}: {_TOO_FEW})" if model.unjudged else ""
    searched = f"A search tried {model.tried:,} words on the clean rows{towards}"
    if not model.triggers:
        return [f"{searched}: none turns the suspect alone. What is unlike them would not have been found."]
    triggers = "; ".join(
        f"{one.text!r} turns {one.flipped:.0%} of {one.rows:,} answers to {one.label!r} ({one.control:.0%} of a model "
        f"trained from the base), and {one.after:.0%} after the defense"
        for one in model.triggers
    )
    return [f"{searched}, and found what turns the suspect: {triggers}."]


def verdict(result: Result) -> Verdict:
    """Whether the defense did what it is for, as far as that was measured, and the sentence that says so.

    It claims no more than was measured: of a trigger that nobody found or named, nothing is known.
    """
    model = result.models[result.defended]
    if still := [one.text for one in model.triggers or () if one.works]:
        return _said(False, f"A backdoor is left: answers of the purified model are still turned by {_quoted(still)}.")
    if model.triggers:
        found = _quoted(one.text for one in model.triggers)
        return _said(True, f"What was found no longer works: {found}. {UNSEEN}")
    if "selector" in result.recipe["defense"] and not (model.reset and model.reset.selected):
        if model.reset:
            return _said(False, f"Nothing was reset: {result.recipe['defense']['selector']['name']} took no weight.")
        steps = ", then ".join(step["name"] for _, step in sorted((model.defense or {}).items()))
        since = f"the suspect after {steps} on the clean rows" if steps else "the suspect as it was"
        return _said(False, f"Nothing was reset: the model is {since}.")
    if model.triggers is not None and model.tried:
        towards = f" Towards {_quoted(model.unjudged)} none was tried: {_TOO_FEW}." if model.unjudged else ""
        found = "No word was found that turns the suspect's answers; a trigger of another kind was not looked for."
        return _said(None, found + towards)
    if planted := _planted(result):
        return planted
    why = f" ({_TOO_FEW})" if model.triggers is not None else ""
    return _said(None, f"No trigger was looked for{why}: whether a backdoor was there, and is gone, is not known.")


def _planted(result: Result) -> Verdict | None:
    """What the chosen value left of triggers that the defender planted into a copy of the suspect."""
    if not result.chosen or not (before := result.chosen.suspect_planted):
        return None
    value = result.chosen.value
    after = next(trial.planted for trial in result.curve if trial.value == value)
    worked = [family for family, turned in before.items() if turned > STILL_WORKS]
    if not worked:
        return None  # what never worked tells nothing of what was removed
    shares = ", ".join(f"a {family} {before[family]:.0%} before and {after[family]:.0%} after" for family in worked)
    removed = max(after[family] for family in worked) <= STILL_WORKS
    told = "Triggers of one's own, planted into a copy, no longer work" if removed else "Planted triggers still work"
    return _said(removed, f"{told}: answers turned by {shares}. {UNSEEN}")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _said(removed: bool | None, text: str) -> Verdict:
    return Verdict(removed=removed, text=text)


DETECTORS_MEAN = (
    "What is flagged is not answered, which is neither right nor the target. Thresholds are set on held-out clean rows "
    "(FPR: the share of them that may be flagged). AUROC and TPR compare the same test rows with and without the "
    "trigger; at the TPR, the share FPR of those without it is flagged."
)


def detector_table(result: Result) -> tuple[list[str], list[list[Measured | str]]]:
    """What is left of the suspect behind each detector, at each of its thresholds: a header, and rows of cells."""
    points = [(name, one, point) for name, one in result.detectors.items() for point in one.points]
    metrics = list(dict.fromkeys(name for _, _, point in points for name in point.metrics))
    header = ["detector", "AUROC", "ms a text", "FPR", "TPR", "flagged, plain", *(name.upper() for name in metrics)]
    suspect = result.models["suspect"].metrics
    rows: list[list[Measured | str]] = [["none", *["–"] * 5, *(suspect[name] for name in metrics)]]
    for name, one, point in points:
        at: list[Measured | str] = [f"{point.rate:.0%}", point.tpr or "–", f"{point.flagged['plain']:.1%}"]
        rows.append([name, one.auroc or "–", f"{one.milliseconds:.1f}", *at, *(point.metrics[key] for key in metrics)])
    return header, rows


def _on_inputs(result: Result) -> list[str]:
    sanitizer = result.recipe["defense"]["sanitizer"]
    reader = f" with {named(sanitizer['model'])!r}" if isinstance(sanitizer.get("model"), dict) else ""
    sentences = [
        f"The defense leaves the model as it is: {sanitizer['name']}{reader} rewrites every text before the model "
        "reads it, clean or triggered, and whoever asks the model without it meets what is in it."
    ]
    if result.chosen:
        sentences.append(_chosen(result, f"{result.recipe['data']['dev']:,} clean rows"))
    for on, counts in (result.models["sanitized"].sanitized or {}).items():
        rows = "clean test" if on == "plain" else on
        sentences.append(
            f"It changed {counts.changed:,} of {counts.rows:,} {rows} rows, and left {counts.words_left:,} of their "
            f"{counts.words:,} words."
        )
    return sentences


def _on_training_rows(result: Result) -> list[str]:
    filtered = result.models["filtered"].filtered
    assert filtered
    sentences = [
        f"The defense scored every training row by {result.recipe['defense']['filter']['name']}, took "
        f"{filtered.taken:,} of {filtered.rows:,} away, and trained the base anew on the others by the attacker's "
        "settings."
    ]
    if result.chosen:
        sentences.append(_chosen(result, f"{result.recipe['data']['dev']:,} clean rows"))
    if not filtered.poisoned:
        sentences.append("No row was poisoned: whatever it took was clean.")
    elif filtered.recall is not None:
        among = "" if filtered.precision is None else f", which are {filtered.precision:.1%} of what it took"
        sentences.append(f"It took {filtered.recall:.1%} of the {filtered.poisoned:,} poisoned rows{among}.")
    return sentences


FILTERED = ("taken", "share", "precision", "recall", "AUROC")
FILTERED_MEANS = (
    "precision is the share of poisoned rows among those taken, recall the share of the poisoned rows that was taken, "
    "AUROC the chance that a poisoned row has a higher score than another"
)


def filtered_cells(filtered: Filtered) -> list[str]:
    """The cells of a table under `FILTERED`."""
    shares = (filtered.precision, filtered.recall, filtered.auroc)
    known = ("–" if share is None else f"{share:.3f}" for share in shares)
    return [f"{filtered.taken:,} of {filtered.rows:,}", f"{filtered.share:.1%}", *known]


def _chosen(result: Result, rows: str) -> str:
    assert result.chosen
    over = f"{result.chosen.over} = {result.chosen.value:g}"
    return f"{over} was chosen by {result.chosen.rule} on {rows}: {result.chosen.reason}."


def named(spec: dict[str, Any]) -> str:
    """What a model or data set of a resolved recipe is called where no path of this machine should be."""
    return PurePath(spec["path"]).name if "path" in spec else str(spec.get("id", spec["name"]))


def _suspect(result: Result) -> str:
    recipe, attack = result.recipe, result.attack
    if "attack" not in recipe or not attack:
        known = ", with rows that carry a known trigger" if attack else ""
        return f"A given model was compared with its base{known}."
    train = attack["train"]
    target = attack["target"]
    if isinstance(target, int):
        target = result.data["labels"][target]
    aim = f", to be answered with {target!r}" if target is not None else ""
    return (
        f"The suspect was made from {named(recipe['model'])!r} by fine-tuning on {train['rows']:,} rows, "
        f"{train['changed']:,} of which carry the attack {recipe['attack']['name']!r}{aim}."
    )
