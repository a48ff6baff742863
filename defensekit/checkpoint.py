"""Models on disk: safetensors only, checked before anything reads them, no pickle, no remote code."""

import hashlib
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.errors import DefenseKitError, UsageError, listing
from defensekit.files import data_digest, file_digest, nearest_path
from defensekit.headers import ADAPTER_CONFIG, CONFIG, Entry, check_counts, check_folder, read_header, read_json
from defensekit.headers import INDEX as INDEX_LIMIT
from defensekit.logs import quiet
from defensekit.ranking import concurrently

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CLASSIFIER, CAUSAL = "sequence classification", "causal language model"
# Everything that says what a model is; weights in other formats and stray files are not part of it.
IDENTITY = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model's config and its weights as safetensors, one file or several with an index.

    Raises (on first use):
        UsageError: no such folder, no config, weights only as pickles, a damaged file, an index or link that leaves the
            folder, an index that does not fit the files, code that the config names.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        path = self.folder / "config.json"
        if not self.folder.is_dir():
            raise UsageError(f"there is no model folder {self.folder}.{nearest_path(self.folder)}")
        if not path.is_file() and not (self.folder / ADAPTER_CONFIG).is_file():  # of which more is said below
            raise UsageError(f"{self.folder} holds no model: config.json is missing")
        check_folder(self.folder)
        config = read_json(path, CONFIG)
        check_counts(path, config)
        if "transformers_weights" in config:
            raise UsageError(f"{path}: `transformers_weights` names other weights than {SINGLE}; refused")
        return config

    @cached_property
    def files(self) -> list[Path]:
        """The weight files, in the order of their names."""
        self.config  # noqa: B018 - a missing folder is reported before missing weights
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        if (self.folder / INDEX).is_file():
            names = sorted(set(self._weight_map.values()))
            for name in names:
                if Path(name).name != name or not name.endswith(".safetensors"):
                    raise UsageError(f"{self.folder / INDEX}: refused {name!r}; a weight file lies in the same folder")
                if not (self.folder / name).is_file():
                    raise UsageError(f"{self.folder / INDEX} names {name}, which is not there")
            return [self.folder / name for name in names]
        if pickles := sorted(p.name for pattern in PICKLES for p in self.folder.glob(pattern)):
            raise UsageError(
                f"{self.folder} holds its weights only as a pickle ({listing(pickles)}), which can run code when it is "
                "read; refused. Where you trust it, convert it: load it with transformers and call "
                "model.save_pretrained(FOLDER), which writes safetensors"
            )
        raise UsageError(f"{self.folder} holds no weights: expected {SINGLE} or {INDEX}")

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        weight_map = read_json(self.folder / INDEX, INDEX_LIMIT).get("weight_map")
        names = weight_map.values() if isinstance(weight_map, dict) else []
        if not isinstance(weight_map, dict) or not names or not all(isinstance(name, str) for name in names):
            raise UsageError(f"{self.folder / INDEX}: expected a `weight_map` from tensors to file names")
        return weight_map

    @cached_property
    def tensors(self) -> dict[str, Entry]:
        """Every tensor by its name in the file, in the order in which they lie in the files."""
        found: dict[str, Entry] = {}
        for path in self.files:
            entries = read_header(path)
            if twice := sorted(entries.keys() & found.keys()):
                raise UsageError(f"{path}: {listing(twice, 3)} stands in {found[twice[0]].file} as well")
            found |= entries
        if self.files[0].name != SINGLE:
            lies = {name: entry.file for name, entry in found.items()}
            if odd := sorted(
                name for name in lies.keys() | self._weight_map.keys() if lies.get(name) != self._weight_map.get(name)
            ):
                raise UsageError(f"{self.folder / INDEX} does not say where {listing(odd, 3)} lies")
        if odd := [
            f"{name} ({e.dtype})" for name, e in found.items() if e.dtype.startswith(("F8", "I8", "U8", "F4_", "F6_"))
        ]:
            raise UsageError(f"{self.folder} is quantised, expected F64, F32, F16 or BF16 weights: {listing(odd, 3)}")
        return found

    def tensor(self, name: str) -> "Tensor":
        """One tensor, in the dtype of the file. It is mapped: memory holds what is looked at, and can let go of it."""
        return read_tensor(self.folder / self.tensors[name].file, name)

    def check_finite(self) -> None:
        """Raise DefenseKitError naming the tensors that hold NaN or infinity."""
        import torch

        def finite(name: str) -> bool:
            # A finite sum has finite terms; it is many times cheaper than to look at each.
            parts = torch.split(self.tensor(name).reshape(-1), 1 << 18)
            return all(math.isfinite(float(p.float().sum())) or bool(p.isfinite().all()) for p in parts)

        names = list(self.tensors)
        good = concurrently(finite, names, torch.get_num_threads())
        if bad := [name for name, fine in zip(names, good, strict=True) if not fine]:
            raise DefenseKitError(f"{self.folder}: NaN or infinity in {listing(bad)}")

    def tensor_digests(self) -> dict[str, str]:
        """SHA-256 over every tensor's bytes in its file, by name."""
        found = {}
        for name, entry in self.tensors.items():
            with (self.folder / entry.file).open("rb") as file:
                file.seek(entry.start)
                digest, left = hashlib.sha256(), entry.stop - entry.start
                while left:
                    digest.update(some := file.read(min(left, 1 << 24)))
                    left -= len(some)
            found[name] = digest.hexdigest()
        return found

    @property
    def task(self) -> str:
        """What it is for, by the class that its config names: one of two tasks, or the name of that class."""
        names = self.config.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else "unknown"
        if name.endswith("ForSequenceClassification"):
            return CLASSIFIER
        return CAUSAL if name.endswith(("ForCausalLM", "LMHeadModel")) else name

    def digest(self) -> str:
        """SHA-256 over config, tokenizer and weights."""
        self.tensors  # noqa: B018 - damaged files are reported as such
        return data_digest({path.name: file_digest(path) for path in self.model_files()})

    def model_files(self) -> list[Path]:
        """Its config, tokenizer and weights: what of the folder is the model."""
        return identity_files(self.folder)


def identity_files(folder: Path) -> list[Path]:
    """What of a folder, its subfolders aside, says what the model or adapter in it is."""
    return sorted({path for pattern in IDENTITY for path in folder.glob(pattern) if path.is_file()})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, RuntimeError) as error:  # torch refuses a tensor that lies across its dtype's borders
        raise UsageError(f"{path} is damaged or not a safetensors file ({error})") from error


def tensor_names(path: Path) -> frozenset[str]:
    """The names of a safetensors file's tensors.

    Raises:
        UsageError: the file is damaged.
    """
    return frozenset(read_header(path))


def read_tensor(path: Path, name: str) -> "Tensor":
    """One tensor of a safetensors file.

    Raises:
        UsageError: the file is damaged.
    """
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def dtype_of(name: str) -> "torch.dtype":
    """What torch calls a dtype of floating-point weights."""
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write one safetensors file.

    Raises:
        DefenseKitError: it could not be written, for want of disk space, say.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except (OSError, SafetensorError, RuntimeError) as error:  # tensors that share memory are a RuntimeError
        raise DefenseKitError(f"{path.name} could not be written: {error}") from error


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder; one without a padding token pads with its end token."""
    from transformers import AutoTokenizer

    Checkpoint(folder).config  # noqa: B018 - what must not be read is refused before transformers sees it
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise UsageError(f"{folder}: its tokenizer can't be loaded ({_line(error)})") from error
    if not tokenizer.is_fast:
        raise UsageError(f"{folder}: its tokenizer is not a fast one; expected a tokenizer.json")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UsageError(f"{folder}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, labels: tuple[str, ...] | None = None) -> "PreTrainedModel":
    """A sequence classifier, or a causal language model where the config names one, in float32, in eval mode, on the
    CPU.

    With ``labels`` it is a classifier whatever the config says, and a new head is made where the folder has none, drawn
    from torch's global random state.

    Raises:
        UsageError: the folder holds no model that can be loaded safely.
    """
    checkpoint = Checkpoint(folder)
    checkpoint.tensors  # noqa: B018 - refuses pickles and damaged files before the config is believed
    if labels is None and checkpoint.task == CAUSAL:
        return load_language_model(folder)
    head: dict[str, Any] = {}
    if labels is not None:
        head = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    model, missing = _pretrained(checkpoint, CLASSIFIER, **head)
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
    """A model in float32, in eval mode, on the CPU; and the parameters that its files lack."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    checkpoint.tensors  # noqa: B018 - refuses pickles and damaged files before transformers sees them
    try:
        with quiet(), _no_larger_than(checkpoint):
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
        kind = CAUSAL if task == CAUSAL else "sequence classifier"
        raise UsageError(f"{checkpoint.folder}: can't be loaded as a {kind} ({_line(error)})") from error
    return model.eval(), sorted(info["missing_keys"])


@contextmanager
def _no_larger_than(checkpoint: Checkpoint) -> Iterator[None]:
    """Stop a model from being built that is far larger than its files, whatever its config asks for.

    transformers builds on the device "meta", where a weight takes no memory, and each is told of as a module takes it.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    entries = [entry.shape for entry in checkpoint.tensors.values()]
    # Of weights that are tied the files hold one, and T5 builds three; a new head has a few weights more.
    left = [4 * len(entries) + 100, 4 * sum(map(math.prod, entries)) + (1 << 24)]
    own = threading.get_ident()

    def see(module: object, name: str, weight: "Parameter | None") -> None:
        if weight is not None and weight.is_meta and threading.get_ident() == own:
            left[0] -= 1
            left[1] -= weight.numel()
            if min(left) < 0:
                raise UsageError(
                    f"config.json asks for a far larger model than the {len(entries)} tensors in its files"
                )

    hook = register_module_parameter_registration_hook(see)
    try:
        yield
    finally:
        hook.remove()


def positions(model: Checkpoint) -> int | None:
    """How many tokens a model has positions for; None where there is no last one."""
    if model.config.get("relative_attention"):
        return None
    for key in ("max_position_embeddings", "n_positions"):
        limit = model.config.get(key)
        if isinstance(limit, int):
            # RoBERTa counts positions from behind the padding token's number.
            return limit - (2 if "roberta" in str(model.config.get("model_type")) else 0)
    return None


def label_count(model: Checkpoint) -> int:
    """How many labels a classifier's config counts, named or not."""
    named, count = model.config.get("id2label"), model.config.get("num_labels")
    if type(count) is int and count > 0:
        return count  # transformers passes over names that are not as many
    if isinstance(named, dict) and named:
        return len(named)
    from transformers import CONFIG_MAPPING

    # transformers leaves out what is as its class has it: 2 as a rule, of BART 3.
    kind = str(model.config.get("model_type"))
    try:
        return int(CONFIG_MAPPING[kind]().num_labels) if kind in CONFIG_MAPPING else 2
    except Exception as error:  # a few classes are no classifier's, and can't be made from nothing
        raise UsageError(
            f"{model.folder / 'config.json'}: how many labels {kind!r} has is not known; expected `num_labels` or "
            "`id2label`"
        ) from error


def label_names(model: Checkpoint) -> list[str]:
    """The names of a classifier's labels, by their numbers, as its config has them.

    Raises:
        UsageError: the config does not number them from 0.
    """
    count, found = label_count(model), model.config.get("id2label")
    if not found or (isinstance(found, dict) and len(found) != count):
        found = {str(i): f"LABEL_{i}" for i in range(count)}
    try:
        return [str(found[str(i)]) for i in range(count)]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{model.folder / 'config.json'}: `id2label` does not number the labels from 0") from error


def save_model(model: "PreTrainedModel", folder: Path) -> None:
    """Write a model's config and weights."""
    try:
        with quiet():
            model.save_pretrained(folder)
    except Exception as error:  # safetensors reports a full disk as an error of its own
        raise DefenseKitError(f"the model could not be written to {folder}: {_line(error)}") from error


def copy_companions(source: Path, target: Path) -> None:
    """Copy what lies beside the weights (config, tokenizer), never weights of any format and never code."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.json", "*.txt", "*.model", "*.jinja"):
        for path in source.glob(pattern):
            if path.name != INDEX and path.is_file():
                (target / path.name).write_bytes(path.read_bytes())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
