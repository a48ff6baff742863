"""LoRA adapters as PEFT writes them: read with the caution that a stranger's files need, and merged into their base.

Merging is W + s BA, what peft's `merge_and_unload` computes, without that library and a tensor at a time: the base is
never in memory as a whole. What can't be merged exactly is refused with a line that says which.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.checkpoint import SINGLE, Checkpoint, copy_companions, dtype_of, identity_files, read_tensor
from defensekit.errors import UsageError, listing
from defensekit.files import alone, data_digest, file_digest, put
from defensekit.headers import ADAPTER_CONFIG, BITS, CONFIG, Entry, check_folder, free_space, read_header, read_json
from defensekit.logs import quiet
from defensekit.pair import FLOATS, align
from defensekit.rewriting import write_streamed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
MOST_LABELS = 10_000
MOST_NAMES = 1_000
AT_ONCE = 1 << 22  # numbers of a matrix that are merged at once
_WRAPPED = "base_model.model."
_LORA = re.compile(r"(.+)\.lora_(?:embedding_([AB])|([AB])\.weight)")
_NAME = re.compile(r"[\w.]+")
_PLAIN_PATTERN = re.compile(r"\^?[\w.]+")

# Keys of adapter_config.json that do not decide what the merged weights are (or, like `r`, that the tensors tell as
# well), and those that do. Whatever else is set asks for something that is not done here.
_TOLD = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode", "peft_version",
    "r", "lora_dropout", "layers_pattern", "rank_pattern", "megatron_core", "qalora_group_size", "init_lora_weights",
    "eva_config", "runtime_config", "bias", "fan_in_fan_out", "ensure_weight_tying",
}  # fmt: skip
_USED = {"lora_alpha", "alpha_pattern", "use_rslora", "target_modules", "modules_to_save"}
# Ways to begin that leave the base as it is; others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take something out of it.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")

# Weights of a whole model, by the names that transformers looks for.
_WHOLE = ("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*")

_TASKS = {"SEQ_CLS": "AutoModelForSequenceClassification", "CAUSAL_LM": "AutoModelForCausalLM"}
_FIRST = "merge it with peft first: load it, call merge_and_unload(), and save_pretrained(FOLDER)"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; one beside a whole model is refused when it is read."""
    return (folder / ADAPTER_CONFIG).is_file()


@dataclass(frozen=True)
class Adapter:
    """A folder with adapter_config.json and adapter_model.safetensors, of LoRA.

    Raises (on first use):
        UsageError: the folder holds something else, weights as a pickle, damaged files, or an adapter that can't be
            merged exactly.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of adapter_config.json, held to what is understood here."""
        check_folder(self.folder, adapter=True)
        path = self.folder / ADAPTER_CONFIG
        config = read_json(path, CONFIG)

        if whole := sorted(p.name for pattern in _WHOLE for p in self.folder.glob(pattern)):
            raise UsageError(
                f"{self.folder} holds an adapter and weights of a whole model ({listing(whole, 3)}): which of them is "
                "meant depends on who loads it; put one of them into a folder of its own"
            )

        def refuse(what: str) -> UsageError:
            return UsageError(f"{path}: {what}; {_FIRST}")

        if (kind := config.get("peft_type")) != "LORA":
            if "PROMPT" in str(kind) or "TUNING" in str(kind) or kind == "CPT":
                raise UsageError(
                    f"{path}: {short(kind)} changes what goes into the model; there is no weight to compare"
                )
            raise refuse(f"{short(kind)}; only LORA is merged here")
        if config.get("init_lora_weights") not in _BEGINNINGS:
            began = short(config["init_lora_weights"])
            raise refuse(f"`init_lora_weights` is {began}, which may change the base's weights when it is loaded")
        if odd := sorted(key for key, value in config.items() if _is_set(value) and key not in _TOLD | _USED):
            raise refuse(f"sets {listing(odd, 3)}, which is not merged here")
        for key in ("target_modules", "modules_to_save"):
            names = config.get(key) or []
            if not isinstance(names, list) or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in names):
                raise refuse(f"`{key}` is {short(names)}; a list of names is understood here")
        alphas = config.get("alpha_pattern") or {}
        if not isinstance(alphas, dict) or not all(map(_is_number, [config.get("lora_alpha"), *alphas.values()])):
            raise UsageError(f"{path}: expected numbers in `lora_alpha` and `alpha_pattern`")
        for key in ("target_modules", "modules_to_save", "alpha_pattern"):  # each is held to every module
            if (count := len(config.get(key) or ())) > MOST_NAMES:
                raise UsageError(f"{path}: `{key}` has {count:,} names, expected {MOST_NAMES:,} at most")
        if odd := sorted(key for key in alphas if not _PLAIN_PATTERN.fullmatch(key)):
            raise refuse(f"`alpha_pattern` has the regular expression {short(odd[0])}; names alone are understood here")
        return config

    @cached_property
    def tensors(self) -> dict[str, Entry]:
        """The tensors by their name in the file."""
        self.config  # noqa: B018 - what is no LoRA is told before missing weights
        path = self.folder / WEIGHTS
        if not path.is_file():
            if pickles := sorted(self.folder.glob("adapter_model.*")):
                raise UsageError(
                    f"{self.folder} holds its weights only as a pickle ({listing([p.name for p in pickles])}), which "
                    "can run code when it is read; refused. Where you trust it, load it with peft and save it again "
                    "by save_pretrained(FOLDER), which writes safetensors"
                )
            raise UsageError(f"{self.folder} holds no weights: expected {WEIGHTS}")
        found = read_header(path)
        if odd := [name for name, entry in found.items() if entry.dtype not in FLOATS]:
            raise UsageError(f"{path}: expected F64, F32, F16 or BF16 weights, not {listing(odd, 3)}")
        if odd := [n for n in found if not n.startswith(_WRAPPED) or (".lora_" in n and not _LORA.fullmatch(n))]:
            raise UsageError(f"{path}: {listing(odd, 3)} is nothing that is merged here; {_FIRST}")
        return found

    def tensor(self, name: str) -> "Tensor":
        """One tensor."""
        return read_tensor(self.folder / WEIGHTS, name)

    @cached_property
    def matrices(self) -> dict[str, tuple[str, str]]:
        """(A, B) by the name of the module that they are added to, all by their names in the file."""
        found: dict[str, dict[str, str]] = {}
        for name in self.tensors:
            if lora := _LORA.fullmatch(name):
                parts, part = found.setdefault(lora[1].removeprefix(_WRAPPED), {}), lora[2] or lora[3]
                if part in parts:
                    raise UsageError(f"{self.folder / WEIGHTS}: {parts[part]} and {name} are one matrix's")
                parts[part] = name
        if not found:
            raise UsageError(f"{self.folder / WEIGHTS}: there is no LoRA matrix")
        if odd := sorted(module for module, parts in found.items() if len(parts) < 2):
            raise UsageError(f"{self.folder / WEIGHTS}: {listing(odd, 3)} has not both of A and B")
        if odd := sorted(module for module in found if not self.targets(module)):
            raise UsageError(
                f"{self.folder / WEIGHTS}: {listing(odd, 3)} is not among the `target_modules` of {ADAPTER_CONFIG}; "
                "peft passes over what it holds for that"
            )
        return {module: (parts["A"], parts["B"]) for module, parts in sorted(found.items())}

    @cached_property
    def whole(self) -> dict[str, str]:
        """Tensors that take the base's place (a head, biases): the model's names to those in the file.

        With ``bias="all"`` a saved module's biases stand there three times; peft reads the one without these names.
        """
        found = {}
        for saved in self.tensors:
            if _LORA.fullmatch(saved) or re.search(r"\.(original_module|modules_to_save)\.", saved):
                continue
            owner, _, last = saved.removeprefix(_WRAPPED).rpartition(".")
            module = owner.removesuffix(".base_layer")
            if (module != owner) != self.targets(module):
                other = f"{_WRAPPED}{module}{'.base_layer' if module == owner else ''}.{last}"
                raise UsageError(f"{self.folder / WEIGHTS}: peft passes over {saved}; expected {other}")
            found[f"{module}.{last}" if module else last] = saved
        return found

    def targets(self, module: str) -> bool:
        """Whether peft puts LoRA on a module, as the config has it: what it saves whole it leaves alone."""
        if any(f".{name}." in f".{module}." for name in self.config.get("modules_to_save") or ()):
            return False
        return any(f".{module}".endswith(f".{name}") for name in self.config.get("target_modules") or ())

    def scale(self, module: str) -> float:
        """s, the factor of BA: alpha over the rank, or over its root (`use_rslora`)."""
        alpha = self.config["lora_alpha"]
        for key, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                alpha = value
                break
        rank = self.tensors[self.matrices[module][0]].shape[:1]
        if not rank or not rank[0]:
            raise UsageError(f"{self.folder / WEIGHTS}: {module} has a LoRA matrix of rank 0")
        return float(alpha / (math.sqrt(rank[0]) if self.config.get("use_rslora") else rank[0]))

    @property
    def names_base(self) -> str:
        """What the adapter calls its base: told, and never fetched."""
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        return "nothing" if not name else short(f"{name}@{revision}" if revision else name)


def _is_set(value: Any) -> bool:
    return bool(value) or type(value) is int  # the layer 0 is one


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def short(value: Any) -> str:
    """A stranger's text within a message."""
    return repr(value)[:200]


# -- merged into its base ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delta:
    """What is added to a matrix: ``scale`` B A, transposed where the matrix is (in, out)."""

    a: str
    b: str
    scale: float
    transposed: bool


@dataclass(frozen=True)
class Merged:
    """A base with an adapter merged into it, seen a tensor at a time.

    Raises (on first use):
        UsageError: the adapter does not fit the base, or can't be merged exactly.
    """

    base: Checkpoint
    adapter: Adapter

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model that they are together, without weights: it takes no memory."""
        model = self._built()
        for name, value in model.named_parameters():
            if saved := self.adapter.whole.get(name):
                wanted, given = tuple(value.shape), self.adapter.tensors[saved].shape
                if len(given) != 2 or wanted != (model.config.num_labels, *given[1:]) or wanted == given:
                    continue
                if given[0] > MOST_LABELS:  # before a model of that size is made
                    raise self._misfit(f"{name} is a head for {given[0]:,} labels; expected {MOST_LABELS:,} at most")
                return self._built(num_labels=given[0])  # a head for other labels than the base's config has
        return model

    def _built(self, **labels: int) -> "PreTrainedModel":
        import torch
        import transformers

        task = self.adapter.config.get("task_type")
        if not isinstance(task, str) or task not in _TASKS:
            place = self.adapter.folder / ADAPTER_CONFIG
            raise UsageError(f"{place}: expected the `task_type` SEQ_CLS or CAUSAL_LM, got {short(task)}; {_FIRST}")
        self.base.tensors  # noqa: B018 - what must not be read is refused before transformers sees it
        try:
            with quiet(), torch.device("meta"):
                config = transformers.AutoConfig.from_pretrained(
                    self.base.folder, trust_remote_code=False, local_files_only=True, **labels
                )
                model: PreTrainedModel = getattr(transformers, _TASKS[task]).from_config(config)
                model.tie_weights()
        except Exception as error:
            raise UsageError(f"{self.base.folder}: {_TASKS[task]} makes no model of it ({short(error)})") from error
        model.config.architectures = [type(model).__name__]
        return model

    @cached_property
    def _tied(self) -> dict[str, list[str]]:
        """Every parameter and buffer once: the first of its names, to all of them."""
        names: dict[int, list[str]] = {}
        for name, value in self.model.state_dict(keep_vars=True).items():
            names.setdefault(id(value), []).append(name)
        return {some[0]: some for some in names.values()}

    @cached_property
    def _in_base(self) -> dict[str, str]:
        """The model's names to those in the base's file."""
        ours, theirs = align(self._tied, self.base.tensors)
        return {own: theirs[common] for common, own in ours.items() if common in theirs}

    @cached_property
    def deltas(self) -> dict[str, Delta]:
        """What is added, by the parameter that it is added to."""
        return {f"{module}.weight": self._delta(module) for module in self.adapter.matrices}

    def _delta(self, module: str) -> Delta:
        name, (a, b) = f"{module}.weight", self.adapter.matrices[module]
        wanted, inner, outer = self._shape(name), self.adapter.tensors[a].shape, self.adapter.tensors[b].shape
        kind = type(self.model.get_submodule(module)).__name__
        embedding, transposed = kind == "Embedding", kind in ("Embedding", "Conv1D")
        if odd := [part for part in (a, b) if (".lora_embedding_" in part) != embedding]:
            raise self._misfit(f"{module} is of the class {kind}, and peft passes over {listing(odd)}")
        made = (inner[1:] + outer[:1]) if transposed else (outer[:1] + inner[1:])
        if not len(wanted) == len(inner) == len(outer) == 2 or made != wanted or outer[1:] != inner[:1]:
            raise self._misfit(f"{name}: A is {list(inner)}, B {list(outer)}, the matrix {list(wanted)}")
        return Delta(a, b, self.adapter.scale(module), transposed)

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter that the adapter changes."""
        for names in self._tied.values():
            if name in names and len(names) > 1:
                raise self._misfit(
                    f"{listing(names)} are one tensor, and {name}, merged, would change both; load the base with "
                    f"tie_word_embeddings=False, and {_FIRST}"
                )
        if name not in self._tied:
            raise self._misfit(f"{type(self.model).__name__} has no {name}")
        return tuple(self.model.state_dict()[name].shape)

    def _misfit(self, what: str) -> UsageError:
        return UsageError(f"adapter {self.adapter.folder} and base {self.base.folder} don't fit each other: {what}")

    @cached_property
    def entries(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every tensor of the merged model: the dtypes are the base's."""
        dtypes = Counter(entry.dtype for entry in self.base.tensors.values() if entry.dtype in FLOATS)
        for name, saved in self.adapter.whole.items():
            if (given := self.adapter.tensors[saved].shape) != (wanted := self._shape(name)):
                raise self._misfit(f"{name}: adapter {list(given)}, model {list(wanted)}")
        found, parameters = {}, dict(self.model.named_parameters())
        for name, value in self.model.state_dict().items():
            if own := self._in_base.get(name):
                entry = self.base.tensors[own]
                found[name] = (entry.dtype, tuple(value.shape))
                if entry.shape != value.shape and name not in self.adapter.whole:
                    raise self._misfit(f"{name}: base {list(entry.shape)}, model {list(value.shape)}")
            elif name in self.adapter.whole:
                found[name] = (dtypes.most_common(1)[0][0], tuple(value.shape))
            elif name in parameters:
                raise self._misfit(f"{name} is in neither (a head that was drawn at random, and not saved?)")
        self.deltas  # noqa: B018 - what does not fit is told before anything is written
        return found

    def from_base(self, name: str) -> "Tensor | None":
        """The base's values of a tensor, None where it has none."""
        return self.base.tensor(self._in_base[name]) if name in self._in_base else None

    def parts(self, name: str) -> "Iterator[Tensor]":
        """A tensor's values, in blocks of rows."""
        saved = self.adapter.whole.get(name)
        weight = self.base.tensor(self._in_base[name]) if saved is None else self.adapter.tensor(saved)
        weight = weight.to(dtype_of(self.entries[name][0])) if saved else weight
        if (delta := self.deltas.get(name)) is None:
            yield weight
            return
        a, b = self.adapter.tensor(delta.a).float(), self.adapter.tensor(delta.b).float()
        step = max(AT_ONCE // max(weight.shape[1], 1), 1)
        for rows in (slice(start, start + step) for start in range(0, len(weight), step)):
            added = ((b @ a[:, rows]).T if delta.transposed else b[rows] @ a) * delta.scale
            # peft adds in float32, and rounds what it adds to embeddings before as well.
            added = added.to(weight.dtype) if ".lora_embedding_" in delta.a else added
            yield (weight[rows] + added).to(weight.dtype)

    def write(self, target: Path) -> None:
        """Write the merged model into a folder that is not there: config, tokenizer (the adapter's, if it has one),
        and weights, streamed."""
        entries = self.entries
        size = sum(prod(shape) * BITS[dtype] // 8 for dtype, shape in entries.values())
        free_space(target, size, "the merged model")
        with put(target) as part:
            copy_companions(self.base.folder, part)
            copy_companions(self.adapter.folder, part)
            (part / ADAPTER_CONFIG).unlink()
            self.model.config.save_pretrained(part)
            write_streamed(part / SINGLE, entries, self.parts)


def merged(base: Path, suspect: Path, workspace: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """The suspect's folder itself; of an adapter, that of its merged model, made in a workspace where it is not there.

    ``say`` takes lines for the user.

    Raises:
        UsageError: the adapter does not fit the base, or can't be merged exactly.
    """
    if not is_adapter(suspect):
        return suspect
    model = Merged(Checkpoint(base), Adapter(suspect))
    model.entries  # noqa: B018 - misfits are told before a base's digest is taken
    own = {path.name: file_digest(path) for path in identity_files(suspect)}
    key = data_digest([model.base.digest(), own])[:12]
    target = workspace / "merged" / f"{suspect.resolve().name}-{key}"
    say(f"adapter {suspect} (it names its base: {model.adapter.names_base}), merged into {base}")
    with alone(target, wait=True):
        if not target.is_dir():
            model.write(target)
    return target
