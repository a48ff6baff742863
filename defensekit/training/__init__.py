"""Fine-tuning with transformers' Trainer, for attacker and defender."""

import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from defensekit.text import Row, batches, encode, padded
from defensekit.training.devices import Precision as Precision
from defensekit.training.devices import attention_in_float32, device_type, native_precision
from defensekit.training.embedding import compact_embedding
from defensekit.training.low_rank import low_rank
from defensekit.utils.errors import DefenseKitError, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "ByLength",
    "TrainingSettings",
    "device_type",
    "fine_tune",
    "forked_random",
    "native_precision",
]


class TrainingSettings(BaseModel):
    """How to fine-tune: AdamW, the learning rate falling linearly to 0, gradients clipped at a norm of 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(3, ge=0, le=1000, description="passes over the rows")
    learning_rate: float = Field(2e-5, gt=0, le=1, description="the highest learning rate")
    batch_size: int = Field(32, ge=1, description="rows per step")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    warmup: float = Field(0.0, ge=0, lt=1, description="the share of steps over which the rate rises from 0")
    dropout: bool = Field(True, description="whether the model's dropout is on; on a CPU it takes a third of the time")
    grouping: Literal["coarse", "fine"] = Field(
        "coarse",
        description="rows of similar length share a batch: coarse, as the Trainer does it, among some rows at a time; "
        "fine, among all rows, with less padding, and less left to chance",
    )
    # Left out where it is not given, so that keys of what was trained before there was it stay what they are.
    lora: int | None = Field(
        None,
        ge=1,
        le=1024,
        exclude_if=lambda rank: rank is None,
        description="train updates of this rank in place of all weights, and merge them (all weights); needs peft",
    )

    @property
    def training(self) -> "TrainingSettings":
        """These settings alone, of a component that has others beside them."""
        return TrainingSettings.model_validate(self.model_dump(include=set(TrainingSettings.model_fields)))

    def for_new_head(self, rows: int, steps: int) -> "TrainingSettings":
        """The settings, changed for a head that starts at random and a few rows: small batches, and steps enough.

        Args:
            rows: how many rows there are.
            steps: the fewest to take.
        """
        batch = min(self.batch_size, 16)
        epochs = -(-steps // -(-rows // batch))
        return self.model_copy(update={"batch_size": batch, "epochs": max(self.epochs, epochs)})


@contextmanager
def forked_random(seed: int) -> Iterator[None]:
    """Within the block, seed the global random states of Python, numpy and torch; restore them afterwards.

    Args:
        seed: the seed.
    """
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class ByLength:
    """A sampler for batches of rows of similar length.

    In every pass the order of the batches, and that of rows of the same length, is drawn from torch's global random
    state.

    Args:
        lengths: the length of every row, in tokens.
        size: rows per batch.
    """

    def __init__(self, lengths: Sequence[int], size: int) -> None:
        self.lengths = lengths
        self.size = size

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        import torch

        order = sorted(torch.randperm(len(self.lengths)).tolist(), key=lambda i: -self.lengths[i])
        full = len(order) // self.size
        for batch in torch.randperm(full).tolist():
            yield from order[batch * self.size : (batch + 1) * self.size]
        yield from order[full * self.size :]  # the incomplete batch, of the shortest rows, comes last


@contextmanager
def _older_objects_aside() -> Iterator[None]:
    """Keep what was there before out of garbage collection.

    The Trainer collects as it begins, and going through all that was ever imported takes longer than ten of its steps.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def fine_tune(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    settings: TrainingSettings,
    *,
    max_length: int,
    precision: Precision,
    seed: int,
    report: Callable[[int, int], None] = lambda done, total: None,
    loss: "Callable[[PreTrainedModel, dict[str, Tensor]], Tensor] | None" = None,
    targets: "Tensor | None" = None,
) -> None:
    """Fine-tune a model in place, in float32 or under bfloat16 autocast.

    Rows with labels train a sequence classifier, instructions a causal language model, by their responses. The rows
    decide on a classifier's own loss, and its config is made to agree. Without a ``loss``, which may embed anything,
    only the rows of the embedding table that occur are trained.

    Args:
        model: the model; it is in eval mode afterwards.
        tokenizer: its tokenizer.
        rows: the training rows.
        settings: epochs, learning rate, batch size and the like.
        max_length: tokens at which rows are cut.
        precision: ``float32``, or ``bfloat16`` for autocast.
        seed: determines the order of the rows and the dropout; global random states are restored afterwards.
        report: ``report(done, total)`` is called after every step.
        loss: ``loss(model, batch)`` replaces the model's own loss, the cross-entropy of the batch's ``labels``: the
            mean over rows (of rows with any number of labels, of the binary one, over labels as well), or over the
            tokens of responses.
        targets: (rows, labels), the probability of every label, to be learnt in place of the rows' own labels.

    Raises:
        UsageError: there are no rows.
        DefenseKitError: a loss or gradient is NaN or infinite; the message names the tensor.
    """
    import torch
    import transformers

    if settings.epochs == 0:
        return
    if not rows:
        raise UsageError("there are no rows to train on")
    task = rows[0].task
    if task != "generation":
        model.config.problem_type = f"{'multi' if task == 'multi-label' else 'single'}_label_classification"

    class Checked(transformers.Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = super().training_step(model, inputs, num_items_in_batch)
            if not bool(torch.isfinite(loss)):
                raise DefenseKitError(f"the loss became {float(loss)} at step {self.state.global_step}")
            return loss

        def _clip_grad_norm(self, model: Any) -> Any:
            # As the Trainer does, but with the name of a tensor that is not finite.
            named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
            norms = torch.stack([norm.to(named[0][1].device) for norm in torch._foreach_norm([g for _, g in named])])
            if not bool(torch.isfinite(norms).all()):
                worst = next(name for (name, _), norm in zip(named, norms, strict=True) if not torch.isfinite(norm))
                raise DefenseKitError(
                    f"the gradient of {worst} became NaN or infinite at step {self.state.global_step}"
                )
            total = torch.linalg.vector_norm(norms)
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, total)
            return total

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if settings.grouping == "coarse":
                return super()._get_train_sampler(train_dataset)
            return ByLength([len(row["input_ids"]) for row in self.train_dataset], settings.batch_size)

        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            model.train(settings.dropout)  # Trainer has just switched it on
            own = loss or (partial(super().compute_loss, **options) if targets is None else soft_loss)
            # Not by the Trainer's `bf16`: all trainings of a process have the precision of the first one there.
            with torch.autocast(device_type(), torch.bfloat16, enabled=precision == "bfloat16"):
                if "parts" not in inputs:
                    return own(model, inputs)
                sizes = [len(part["labels"]) for part in inputs["parts"]]
                losses = (own(model, part) for part in inputs["parts"])
                return sum(one * (size / sum(sizes)) for one, size in zip(losses, sizes, strict=True))

    class Reporting(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            report(state.global_step, state.max_steps)

    def soft_loss(model: Any, batch: "dict[str, Tensor]") -> "Tensor":
        """The loss by targets, whose numbers a batch has as labels."""
        assert targets is not None
        logits = model(**{name: values for name, values in batch.items() if name != "labels"}).logits.float()
        aims, functional = targets[batch["labels"].cpu()].to(logits.device), torch.nn.functional
        if task == "multi-label":
            return functional.binary_cross_entropy_with_logits(logits, aims)
        return functional.cross_entropy(logits, aims)

    def in_parts(encoded: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch for a model that reads no padding: parts of one length each, whose losses are averaged."""
        return {"parts": [part for _, part in batches(encoded, tokenizer, len(encoded))]}

    encoded = encode(tokenizer, rows, max_length, model)
    if targets is not None:
        encoded = [row | {"labels": number} for number, row in enumerate(encoded)]
    tokens = {*tokenizer.all_special_ids}.union(*(row["input_ids"] for row in encoded))
    low = nullcontext() if settings.lora is None else low_rank(model, settings.lora)
    table = compact_embedding(model, tokens) if loss is None else nullcontext()
    steps = -(-len(rows) // settings.batch_size) * settings.epochs
    attention = attention_in_float32(precision)
    with tempfile.TemporaryDirectory() as scratch, forked_random(seed), low, table, attention, _older_objects_aside():
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            weight_decay=settings.weight_decay,
            warmup_steps=round(settings.warmup * steps),
            # One pass over memory instead of a dozen; with an embedding table the optimizer takes a third of the time.
            optim="adamw_torch_fused",
            # Batches of rows of similar length; otherwise half of the time goes into padding.
            train_sampling_strategy="group_by_length",
            use_cpu=device_type() == "cpu",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        _ = arguments.n_gpu  # looks for devices; with several the Trainer would multiply the batch by their number
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = Checked(
            model=model,
            args=arguments,
            train_dataset=encoded,
            data_collator=partial(padded, tokenizer=tokenizer) if tokenizer.pad_token else in_parts,
            callbacks=[Reporting()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    model.eval()
