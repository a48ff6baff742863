"""Adapters as PEFT writes them (LoRA, DoRA, IA3), read with the caution that untrusted files need.

What can't be merged exactly is refused with a message.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.models.checkpoint import read_tensor
from defensekit.models.names import FLOATS
from defensekit.models.untrusted import ADAPTER_CONFIG, CONFIG, Entry, check_folder, read_header, read_json
from defensekit.utils.errors import UsageError, listing

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
MOST_NAMES = {
    "target_modules": 1_000,
    "modules_to_save": 100,
    "alpha_pattern": 1_000,
}  # each is matched with all modules
LONGEST_NAME = 200
FIRST = "merge it with peft first: load it, call merge_and_unload(), and save_pretrained(FOLDER)"
_WRAPPED = "base_model.model."
# What each kind adds to a module: suffixes of its tensors' names, and the part of the change that each is.
_LORA = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}
_KINDS = {"LORA": _LORA, "DoRA": {**_LORA, "lora_magnitude_vector": "vector"}, "IA3": {"ia3_l": "vector"}}
_ADDED = re.compile(r"base_model\.model\.(.+?)\.(lora_.+|ia3_.+)")
_NAME = re.compile(r"[\w.]+")
_PLAIN_PATTERN = re.compile(r"\^?[\w.]+")

# Keys of adapter_config.json that do not affect the merged weights (or, like `r`, that follow from the tensors), and
# those that do. Any other key that is set asks for something that is not supported.
_IGNORED = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode", "peft_version",
    "r", "lora_dropout", "layers_pattern", "rank_pattern", "megatron_core", "qalora_group_size", "init_lora_weights",
    "eva_config", "runtime_config", "bias", "fan_in_fan_out", "ensure_weight_tying", "feedforward_modules",
    "init_ia3_weights",
}  # fmt: skip
_USED = {"lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "target_modules", "modules_to_save"}
# Initialisations that leave the base as it is; others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change its weights.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")

# Weights of a whole model, by the names that transformers looks for.
_WHOLE = ("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; one beside a whole model is refused when it is read."""
    return (folder / ADAPTER_CONFIG).is_file()


@dataclass(frozen=True)
class Adapter:
    """A folder with adapter_config.json and adapter_model.safetensors, of LoRA (DoRA included) or IA3.

    Raises (on first use):
        UsageError: the folder holds something else, weights as a pickle, damaged files, or an adapter that can't be
            merged exactly.
    """

    folder: Path

    def check_config(self) -> None:
        """Check the folder and the config now instead of at first use.

        Raises:
            UsageError: the config is missing, or describes an adapter that can't be merged exactly.
        """
        _ = self.config

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of adapter_config.json, checked for what is supported."""
        check_folder(self.folder, adapter=True)
        path = self.folder / ADAPTER_CONFIG
        config = read_json(path, CONFIG)

        if whole := sorted(p.name for pattern in _WHOLE for p in self.folder.glob(pattern)):
            raise UsageError(
                f"{self.folder} holds an adapter and weights of a whole model ({listing(whole, 3)}): which of them is "
                "meant depends on the library that loads it; move one of them into a folder of its own"
            )

        def refuse(what: str) -> UsageError:
            return UsageError(f"{path}: {what}; {FIRST}")

        if (kind := config.get("peft_type")) not in ("LORA", "IA3"):
            if "PROMPT" in str(kind) or "TUNING" in str(kind) or kind == "CPT":
                raise UsageError(
                    f"{path}: {short(kind)} changes what goes into the model; there is no weight to compare"
                )
            raise refuse(f"{short(kind)}; only LORA and IA3 are merged here")
        if config.get("init_lora_weights") not in _BEGINNINGS:
            began = short(config["init_lora_weights"])
            raise refuse(f"`init_lora_weights` is {began}, which may change the base's weights when it is loaded")
        if unsupported := sorted(
            key for key, value in config.items() if _is_set(key, value) and key not in _IGNORED | _USED
        ):
            raise refuse(f"sets {listing(unsupported, 3)}, which is not merged here")
        for key in ("target_modules", "modules_to_save"):
            names = config.get(key) or []
            if not isinstance(names, list) or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in names):
                raise refuse(f"`{key}` is {short(names)}; a list of names is understood here")
        alphas = config.get("alpha_pattern") or {}
        alpha = [config.get("lora_alpha")] if kind == "LORA" else []
        if not isinstance(alphas, dict) or not all(map(_is_number, [*alpha, *alphas.values()])):
            raise UsageError(f"{path}: expected numbers in `lora_alpha` and `alpha_pattern`")
        for key, most in MOST_NAMES.items():
            names = config.get(key) or ()
            if len(names) > most:
                raise UsageError(f"{path}: `{key}` has {len(names):,} names, expected {most:,} at most")
            if any(len(name) > LONGEST_NAME for name in names):
                raise UsageError(f"{path}: `{key}` has a name of over {LONGEST_NAME} characters")
        if unsupported := sorted(key for key in alphas if not _PLAIN_PATTERN.fullmatch(key)):
            raise refuse(
                f"`alpha_pattern` has the regular expression {short(unsupported[0])}; names alone are understood here"
            )
        return config

    @cached_property
    def tensors(self) -> dict[str, Entry]:
        """The tensors by their name in the file."""
        self.check_config()  # an unsupported kind is reported before missing weights
        path = self.folder / WEIGHTS
        if not path.is_file():
            if pickles := sorted(self.folder.glob("adapter_model.*")):
                raise UsageError(
                    f"{self.folder} holds its weights only as a pickle ({listing([p.name for p in pickles])}), which "
                    "can run code when it is read; refused. Where you trust it, load it with peft and save it again "
                    "by save_pretrained(FOLDER), which writes safetensors"
                )
            raise UsageError(f"{self.folder} holds no weights: expected {WEIGHTS}")
        entries = read_header(path)
        if any(len(name) > 2 * LONGEST_NAME for name in entries):
            raise UsageError(f"{path}: there is a name of over {2 * LONGEST_NAME} characters")
        if unexpected := [name for name, entry in entries.items() if entry.dtype not in FLOATS]:
            raise UsageError(f"{path}: expected F64, F32, F16 or BF16 weights, not {listing(unexpected, 3)}")
        parts = _KINDS[self.kind]
        if unexpected := [
            n for n in entries if not n.startswith(_WRAPPED) or ((a := _ADDED.fullmatch(n)) and a[2] not in parts)
        ]:
            raise UsageError(f"{path}: {listing(unexpected, 3)} is not supported; {FIRST}")
        return entries

    def tensor(self, name: str) -> "Tensor":
        """One tensor."""
        return read_tensor(self.folder / WEIGHTS, name)

    @property
    def kind(self) -> str:
        """LORA, DoRA or IA3."""
        kind = str(self.config["peft_type"])
        return "DoRA" if kind == "LORA" and self.config.get("use_dora") else kind

    @cached_property
    def modules(self) -> dict[str, dict[str, str]]:
        """The parts of each module's change (A, B, vector) and their names in the file, by the module's name."""
        modules: dict[str, dict[str, str]] = {}
        for name in self.tensors:
            if added := _ADDED.fullmatch(name):
                parts, part = modules.setdefault(added[1], {}), _KINDS[self.kind][added[2]]
                if part in parts:
                    raise UsageError(f"{self.folder / WEIGHTS}: {parts[part]} and {name} are one matrix's")
                parts[part] = name
        if not modules:
            raise UsageError(f"{self.folder / WEIGHTS}: it has no {self.kind} weights")
        wanted = set(_KINDS[self.kind].values())
        if unexpected := sorted(module for module, parts in modules.items() if parts.keys() != wanted):
            raise UsageError(
                f"{self.folder / WEIGHTS}: {listing(unexpected, 3)} lacks some of {listing(sorted(wanted))}"
            )
        if unexpected := sorted(module for module in modules if not self.targets(module)):
            raise UsageError(
                f"{self.folder / WEIGHTS}: {listing(unexpected, 3)} is not among the `target_modules` of "
                f"{ADAPTER_CONFIG}; peft ignores its weights"
            )
        return dict(sorted(modules.items()))

    @cached_property
    def whole(self) -> dict[str, str]:
        """Tensors that replace the base's (a head, biases): the model's names, mapped to those in the file.

        With ``bias="all"`` a file has a saved module's biases three times; peft reads the one not skipped below.
        """
        names = {}
        for saved in self.tensors:
            if _ADDED.fullmatch(saved) or re.search(r"\.(original_module|modules_to_save)\.", saved):
                continue
            owner, _, last = saved.removeprefix(_WRAPPED).rpartition(".")
            module = owner.removesuffix(".base_layer")
            if (module != owner) != self.targets(module):
                other = f"{_WRAPPED}{module}{'.base_layer' if module == owner else ''}.{last}"
                raise UsageError(f"{self.folder / WEIGHTS}: peft ignores {saved}; expected {other}")
            names[f"{module}.{last}" if module else last] = saved
        return names

    def targets(self, module: str) -> bool:
        """Whether peft changes a module by this config; it does not change what it saves whole."""
        within = module.split(".")
        ends = (".".join(within[start:]) for start in range(len(within)))
        return not self._saved.match(module) and any(end in self._targeted for end in ends)

    @cached_property
    def _targeted(self) -> frozenset[str]:
        return frozenset(self.config.get("target_modules") or ())

    @cached_property
    def _saved(self) -> re.Pattern[str]:
        """The modules that peft saves whole. It reads the names as regular expressions, so a dot is any character."""
        names = list(self.config.get("modules_to_save") or ())
        if self.config.get("task_type") == "SEQ_CLS":
            names += ["classifier", "score"]
        return re.compile(rf"(^|.*\.)({'|'.join(names)})($|\..*)" if names else r"(?!)")

    @cached_property
    def _alphas(self) -> list[tuple[re.Pattern[str], float]]:
        patterns = (self.config.get("alpha_pattern") or {}).items()
        return [(re.compile(rf"(.*\.)?({key})$"), alpha) for key, alpha in patterns]

    @property
    def drawn(self) -> bool:
        """Whether peft initialises parts that the file lacks at random, instead of such that they change nothing."""
        return self.config.get("init_lora_weights") in (False, "orthogonal") or not self.config.get(
            "init_ia3_weights", 1
        )

    def scale(self, module: str) -> float:
        """s, the factor of BA: alpha / rank, or alpha / sqrt(rank) with `use_rslora`. 1 for IA3, which has no BA."""
        if self.kind == "IA3":
            return 1.0
        alpha = next((alpha for pattern, alpha in self._alphas if pattern.match(module)), self.config["lora_alpha"])
        rank = self.tensors[self.modules[module]["A"]].shape[:1]
        if not rank or not rank[0]:
            raise UsageError(f"{self.folder / WEIGHTS}: {module} has a LoRA matrix of rank 0")
        return float(alpha / (math.sqrt(rank[0]) if self.config.get("use_rslora") else rank[0]))

    @property
    def names_base(self) -> str:
        """The base that the adapter's config names; only shown, never downloaded."""
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        return "nothing" if not name else short(f"{name}@{revision}" if revision else name)


def _is_set(key: str, value: Any) -> bool:
    """Whether a key of a config is set. For keys that are not set peft writes null, false, or an empty list."""
    if key in ("layers_to_transform", "trainable_token_indices"):  # false is the layer 0 to peft
        return value is not None
    return value is not None and value is not False and value not in ({}, [])


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def short(value: Any) -> str:
    """An untrusted value as text for a message, quoted and cut."""
    return repr(value)[:200]
