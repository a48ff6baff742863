"""Models and tokenizers loaded by transformers, from folders that are checked before and compared afterwards."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.models.checkpoint import CAUSAL, CLASSIFIER, Checkpoint
from defensekit.models.names import align
from defensekit.models.padding import settle_padding, without_placeholder
from defensekit.models.skeleton import no_larger_than, task_of
from defensekit.models.tokenizer_trial import check_tokenizer
from defensekit.utils.errors import DefenseKitError, UsageError, is_failure, lacks_memory, listing, one_line
from defensekit.utils.logging import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder; one without a padding token pads with its end token.

    Raises:
        UsageError: the folder is unsafe, or has no fast tokenizer with a padding or end token.
    """
    from transformers import AutoTokenizer

    Checkpoint(folder).check_config()  # unsafe files are refused before transformers reads them
    check_tokenizer(folder)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except BaseException as error:
        if not is_failure(error) or lacks_memory(error):
            raise
        raise UsageError(f"{folder}: its tokenizer can't be loaded ({one_line(error)})") from error
    if not getattr(tokenizer, "is_fast", False):  # some of transformers' classes are no tokenizers themselves
        raise UsageError(f"{folder}: its tokenizer is not a fast one; expected a tokenizer.json")
    if type(tokenizer.model_max_length) not in (int, float) or "input_ids" not in tokenizer.model_input_names:
        raise UsageError(
            f"{folder / 'tokenizer_config.json'}: expected a number as `model_max_length` and `input_ids` among the "
            "`model_input_names`"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UsageError(f"{folder}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, labels: tuple[str, ...] | None = None, anew: bool = False) -> "PreTrainedModel":
    """A sequence classifier or causal language model, as the config says, in float32, in eval mode, on the CPU.

    With ``labels`` it is a classifier whatever the config says. Where the folder has no head, or ``anew`` one for
    another number of labels, a new one is drawn from torch's global random state.

    Raises:
        UsageError: the folder holds no model that can be loaded safely.
    """
    checkpoint = Checkpoint(folder)
    checkpoint.check()  # pickles and damaged files are refused before the config is trusted
    if labels is None and task_of(checkpoint) == CAUSAL:
        return load_language_model(folder)
    head: dict[str, Any] = {}
    if labels is not None:
        head = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    model, missing = _pretrained(checkpoint, CLASSIFIER, **head, **({"ignore_mismatched_sizes": True} if anew else {}))
    if labels is None and missing:
        raise UsageError(f"{folder} is no fine-tuned classifier: it lacks {listing(missing)}")
    model.config.problem_type = "single_label_classification"
    return model


def load_language_model(folder: Path) -> "PreTrainedModel":
    """A causal language model in float32, in eval mode, on the CPU.

    Raises:
        UsageError: the folder holds none that can be loaded safely.
    """
    model, missing = _pretrained(Checkpoint(folder), CAUSAL)
    if missing:
        raise UsageError(f"{folder} is no {CAUSAL}: it lacks {listing(missing)}")
    return model


def _pretrained(checkpoint: Checkpoint, task: str, **config: Any) -> "tuple[PreTrainedModel, list[str]]":
    """A model in float32, in eval mode, on the CPU, and the names of parameters that its files lack."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    checkpoint.check()  # pickles and damaged files are refused before transformers reads them
    try:
        with quiet(), no_larger_than(checkpoint):
            model, info = (
                AutoModelForCausalLM if task == CAUSAL else AutoModelForSequenceClassification
            ).from_pretrained(
                checkpoint.folder,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **config,
            )
    except Exception as error:
        if lacks_memory(error):
            raise
        kind = CAUSAL if task == CAUSAL else "sequence classifier"
        raise UsageError(f"{checkpoint.folder}: can't be loaded as a {kind} ({one_line(error)})") from error
    model.config.return_dict = True
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):  # chunks change no answer, and fail on most lengths
            module.chunk_size_feed_forward = 0
    return model.eval(), sorted(info["missing_keys"])


def save_model(model: "PreTrainedModel", folder: Path) -> None:
    """Write a model's config and weights."""
    try:
        with quiet(), without_placeholder(model):
            model.save_pretrained(folder)
    except Exception as error:  # safetensors reports a full disk as an error of its own
        raise DefenseKitError(f"the model could not be written to {folder}: {one_line(error)}") from error


def check_loaded(model: "PreTrainedModel", checkpoint: Checkpoint, anew: bool = False) -> None:
    """Compare a loaded model with its file: a name unknown to the library would leave a weight at random values.

    Where the model is to have a head of its own, ``anew``, tensors of another shape are not compared.

    Raises:
        UsageError: a tensor of the file, other than the head, is not in the model.
        DefenseKitError: a tensor holds NaN.
    """
    parameters = dict(model.named_parameters())
    loaded, in_file = align(parameters, checkpoint.tensors)
    for name in sorted(loaded.keys() & in_file.keys()):
        tensor = checkpoint.tensor(in_file[name])
        if anew and tensor.shape != parameters[loaded[name]].shape:
            continue
        if not parameters[loaded[name]].detach().cpu().equal(tensor.to(parameters[loaded[name]].dtype)):
            checkpoint.check_finite([in_file[name]])  # NaN is not equal to itself
            raise UsageError(
                f"{checkpoint.folder}: {in_file[name]} was not loaded; the names of its tensors are unusual"
            )


def load(
    folder: Path, called: str, labels: tuple[str, ...] | None = None, anew: bool = False
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model, compared with its file, and its tokenizer, both under a neutral name instead of their path.

    Raises:
        UsageError: as `load_model`, `load_tokenizer` and `check_loaded`.
        DefenseKitError: as `check_loaded`.
    """
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, labels, anew)
    check_loaded(model, Checkpoint(folder), anew)
    if labels is not None:  # a model that is trained here: what its padding is, is decided here too
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, neutral(model, tokenizer, called)


def neutral(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", called: str) -> "PreTrainedTokenizerBase":
    """Replace the folder in the names of model and tokenizer, so that no component can find other files by it.

    A model and its tokenizer are made to agree on padding, and rows are cut at their end.
    """
    if type(model).__name__.endswith("ForSequenceClassification"):
        settle_padding(model, tokenizer)
    else:
        model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.padding_side = "right"  # on the left it would shift every token's position
    tokenizer.truncation_side = "right"
    model.config._name_or_path = model.name_or_path = called
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = called
    return tokenizer
