"""Training updates of low rank in place of all weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from defensekit.utils.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCALE = 2  # of updates of low rank: alpha over rank, as in most of peft's own examples


@contextmanager
def low_rank(model: "PreTrainedModel", rank: int) -> Iterator[None]:
    """Within the block a model trains updates of low rank of its linear layers, and a classifier its head as well.

    This is LoRA (Hu et al. 2021, arXiv 2106.09685), by peft.

    Afterwards the updates are merged into the weights, in place, so that there is drift to measure; parameters have
    their names again, and all can be trained.

    Args:
        model: the model.
        rank: of the updates.

    Raises:
        UsageError: peft is not installed, or the model has no linear layer that peft knows.
    """
    try:
        import peft
    except ImportError as error:
        raise UsageError("training.lora needs the package peft: pip install 'defensekit[lora]'") from error
    from transformers.pytorch_utils import Conv1D

    inside = {id(module) for module in model.base_model.modules()}
    head = [name for name, module in model.named_modules() if id(module) not in inside and module is not model]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=_SCALE * rank,
        target_modules="all-linear",
        exclude_modules=head,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"training.lora: peft can't train this model ({str(error).splitlines()[0]})") from error
    if type(model).__name__.endswith("ForSequenceClassification"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name.rpartition(".")[0] in head)
    try:
        yield
    finally:
        adapted.merge_and_unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
