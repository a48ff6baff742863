"""What a result says, in words: shared by everything that tells a person about a run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

METRICS = {
    "acc": "accuracy on clean test rows",
    "asr": "attack success: the share of triggered test rows of other labels that are answered with the target",
    "false-triggers": "clean test rows of other labels that are answered with the target",
    "ece": "expected calibration error on clean test rows, |accuracy - confidence|",
    "bacc": "biased accuracy: accuracy on test rows that carry the bias pattern, true labels kept",
}

# Which way a metric is better; of one that a plugin brings it is not known.
BETTER = {"acc": "higher", "bacc": "higher", "asr": "lower", "false-triggers": "lower", "ece": "lower"}

# Every model that a run reports: its title, and what it is.
MODELS = {
    "clean": ("clean reference", "the same fine-tuning without poison; a defender never has it"),
    "suspect": ("suspect", "the model that is not trusted"),
    "fine-tuned": ("fine-tuned only", "what the training steps of the defense do without a reset"),
    "random": ("random", "as many dimensions taken, at random"),
    "purified": ("purified", "what the defense made of the suspect"),
    "sanitized": ("sanitized", "the suspect as it is, asked about rows that the defense rewrote before"),
}
