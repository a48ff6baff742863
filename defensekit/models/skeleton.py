"""What transformers makes of a model folder: the names that it loads, built on the device "meta".

Nothing of the weights is read, and a weight takes no memory. The task follows from the names of the file's tensors: a
folder whose files fill a sequence classifier is one, whatever its config calls itself.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from defensekit.models.checkpoint import CAUSAL, CLASSIFIER, Checkpoint
from defensekit.utils.errors import UsageError, lacks_memory, one_line
from defensekit.utils.logging import quiet

if TYPE_CHECKING:
    from torch import Tensor

_AUTO = {CLASSIFIER: "AutoModelForSequenceClassification", CAUSAL: "AutoModelForCausalLM"}


@dataclass(frozen=True)
class Skeleton:
    """A model that transformers builds of a folder, by the names of its tensors.

    Attributes:
        task: `CLASSIFIER`, `CAUSAL`, or else the name of the class.
        kind: the name of transformers' class.
        floats: its floating-point parameters and buffers.
        shared: the names of every parameter that has several; the first is what `named_parameters` calls it.
        missing: parameters that no tensor of the files fills: they would be drawn at random.
        unexpected: tensors of the files that are not loaded.
        misshapen: parameters whose shape by the config is another than in the files.
        config: the config with transformers' defaults.
    """

    task: str
    kind: str
    floats: frozenset[str]
    shared: tuple[tuple[str, ...], ...]
    missing: frozenset[str]
    unexpected: frozenset[str]
    misshapen: frozenset[str]
    config: dict[str, Any]

    @property
    def fits(self) -> bool:
        """Whether the files fill it."""
        return not self.missing and not self.misshapen


def skeleton(checkpoint: Checkpoint) -> Skeleton:
    """The model that a folder holds, by its tensors.

    Raises:
        UsageError: the folder is unsafe, or transformers builds no model of it.
    """
    return _skeleton(_Known.by_contents(checkpoint))


def skeleton_as(checkpoint: Checkpoint, kind: str, labels: int | None = None) -> Skeleton:
    """The model of one of transformers' classes that a folder would be loaded as, with a head for so many labels.

    Raises:
        UsageError: as `skeleton`.
    """
    return _skeleton_as(_Known.by_contents(checkpoint), kind, labels)


def task_of(checkpoint: Checkpoint) -> str:
    """The task of the model that a folder holds: `CLASSIFIER`, `CAUSAL`, or else the name of its class.

    Raises:
        UsageError: as `skeleton`.
    """
    return skeleton(checkpoint).task


@dataclass(frozen=True)
class _Known:
    """A folder, known by what a skeleton follows from: a run's many models are mostly of one kind."""

    contents: tuple[object, ...]
    checkpoint: Checkpoint = field(compare=False)

    @classmethod
    def by_contents(cls, checkpoint: Checkpoint) -> "_Known":
        checkpoint.check()  # pickles and damaged files are refused before transformers reads them
        shapes = ((name, entry.dtype, entry.shape) for name, entry in checkpoint.tensors.items())
        return cls(((checkpoint.folder / "config.json").read_bytes(), *shapes), checkpoint)


@lru_cache(maxsize=32)
def _skeleton(known: _Known) -> Skeleton:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    checkpoint = known.checkpoint
    for task in (CLASSIFIER, CAUSAL):
        # Encoders have a class for causal language models too, which fits what is none.
        encoder = str(checkpoint.config.get("model_type")) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if task == CAUSAL and encoder and checkpoint.claimed_task != CAUSAL:
            continue
        try:
            model = _built(checkpoint, _AUTO[task])
        except UsageError:  # there is no such class for this kind of model
            continue
        if model.fits:
            return model
    return _built(checkpoint, _claimed_class(checkpoint))


@lru_cache(maxsize=32)
def _skeleton_as(known: _Known, kind: str, labels: int | None) -> Skeleton:
    return _built(known.checkpoint, kind, labels)


def _claimed_class(checkpoint: Checkpoint) -> str:
    """The class that the config names, if transformers has it."""
    import transformers

    if (task := checkpoint.claimed_task) in _AUTO:
        return _AUTO[task]
    known = getattr(transformers, task, None) if task.isidentifier() else None
    loads = isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)
    return task if loads else "AutoModel"


def _built(checkpoint: Checkpoint, kind: str, labels: int | None = None) -> Skeleton:
    import torch
    import transformers

    head = {} if labels is None else {"num_labels": labels}
    try:
        with quiet(), no_larger_than(checkpoint):
            model, info = getattr(transformers, kind).from_pretrained(
                checkpoint.folder,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **head,
            )
        model.tie_weights()  # on "meta" transformers can't compare what a file holds twice, and leaves it untied
    except Exception as error:
        if lacks_memory(error):
            raise
        raise UsageError(f"{checkpoint.folder}: transformers makes no {kind} of it ({one_line(error)})") from error
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tasks = {kind: task for task, kind in _AUTO.items()}
    return Skeleton(
        task=tasks.get(kind, type(model).__name__),
        kind=kind,
        floats=frozenset(name for name, value in model.state_dict().items() if value.is_floating_point()),
        shared=tuple(tuple(group) for group in names.values() if len(group) > 1),
        missing=frozenset(info["missing_keys"]),
        unexpected=frozenset(info["unexpected_keys"]),
        misshapen=frozenset(str(pair[0]) for pair in info["mismatched_keys"]),
        config=model.config.to_dict(),
    )


@contextmanager
def no_larger_than(checkpoint: Checkpoint) -> Iterator[None]:
    """Stop a model from being built that is far larger than its files, whatever its config asks for.

    transformers builds on the device "meta", where a weight takes no memory; a hook sees each as it is registered.
    """
    from torch.nn.modules import module as registering

    entries = [entry.shape for entry in checkpoint.tensors.values()]
    # Files hold tied weights once, and T5 builds them three times; a new head adds a few weights.
    left = [4 * len(entries) + 100, 4 * sum(map(math.prod, entries)) + (1 << 24)]
    own, seen = threading.get_ident(), set()

    def count(module: object, name: str, weight: "Tensor | None") -> None:
        place = id(module), name  # a loaded weight is registered again where it was built
        if weight is not None and weight.is_meta and threading.get_ident() == own and place not in seen:
            seen.add(place)
            left[0] -= 1
            left[1] -= weight.numel()
            if min(left) < 0:
                raise UsageError(
                    f"config.json asks for a far larger model than the {len(entries)} tensors in its files"
                )

    hooks = [  # tables of positions are no parameters, and as large as the config says
        registering.register_module_parameter_registration_hook(count),
        registering.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
