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

NOT_WORTH = "†"
NOT_WORTH_MEANS = "no more accurate than the base fine-tuned anew on the same clean rows: purifying was not worth it"
