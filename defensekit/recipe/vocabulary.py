"""What the models that a run reports are called."""

# Every model that a run reports: its title, and what it is.
MODELS = {
    "clean": ("clean reference", "the same fine-tuning without poison; a defender never has it"),
    "suspect": ("suspect", "the model that is not trusted"),
    "fine-tuned": ("fine-tuned only", "what the training steps of the defense do without a reset"),
    "random": ("random", "as many dimensions taken, at random"),
    "purified": ("purified", "what the defense made of the suspect"),
    "sanitized": ("sanitized", "the suspect as it is, asked about rows that the defense rewrote before"),
}
