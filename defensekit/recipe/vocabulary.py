"""What the models that a run reports are called, and the mark of those that the suspect was not worth."""

# Every model that a run reports: its title, and what it is.
MODELS = {
    "clean": ("clean reference", "the same fine-tuning without poison; a defender never has it"),
    "suspect": ("suspect", "the model that is not trusted"),
    "from-base": ("from the base", "the base fine-tuned anew on all of the defender's clean rows, without the suspect"),
    "fine-tuned": ("fine-tuned only", "what the training steps of the defense do without a reset"),
    "random": ("random", "as many dimensions taken, at random"),
    "purified": ("purified", "what the defense made of the suspect"),
    "filtered": ("filtered", "the base trained anew by the attacker's settings, on the rows that the defense left"),
    "sanitized": ("sanitized", "the suspect as it is, asked about rows that the defense rewrote before"),
}

_RETUNED = ", retuned on "


def retuned(model: str, rows: int) -> str:
    """What a model is called after the attacker trained it further on so many poisoned rows."""
    return f"{model}{_RETUNED}{rows}"


def is_retuned(model: str) -> bool:
    """Whether a model is called so."""
    return _RETUNED in model


def described(model: str) -> tuple[str, str]:
    """The title of a model that a run reports, and what it is."""
    before, _, rows = model.partition(_RETUNED)
    if rows:
        return described(before)[0] + _RETUNED + rows, f"trained further by the attacker, on {rows} poisoned rows"
    return MODELS.get(model, (model, "a defense to compare with"))


NOT_WORTH = "†"
NOT_WORTH_MEANS = "no more accurate than the base fine-tuned anew on the same clean rows: purifying was not worth it"
ONE_ANSWER = "‡"
ONE_ANSWER_MEANS = (
    "gives every plain test row the same answer, or half of them texts that say nothing: no other number of it means "
    "anything"
)
