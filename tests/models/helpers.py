"""Adapters and causal models, small and made on the spot."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from tests.small_models import ARCHITECTURES, make_tokenizer

TASKS = {"SEQ_CLS": transformers.AutoModelForSequenceClassification, "CAUSAL_LM": transformers.AutoModelForCausalLM}


def make_adapter(folder: Path, base: Path, task: str = "SEQ_CLS", labels: int = 2, **settings: Any) -> Path:
    """An adapter whose every weight was drawn at random, as `save_pretrained` writes it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        more = {"num_labels": labels} if task == "SEQ_CLS" else {}
        model = TASKS[task].from_pretrained(base, ignore_mismatched_sizes=True, **more)
        kind = peft.IA3Config if "feedforward_modules" in settings else partial(peft.LoraConfig, r=4)
        made = peft.get_peft_model(model, kind(task_type=task, **settings))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if (
                    re.search("lora_|ia3_", name)
                    or "modules_to_save" in name
                    or (parameter.requires_grad and "bias" in name)
                ):
                    parameter.copy_(0.2 * torch.randn_like(parameter))
        made.save_pretrained(folder)
    return folder


def by_peft(base: Path, adapter: Path, task: str = "SEQ_CLS", labels: int = 2) -> dict[str, torch.Tensor]:
    """The weights that peft merges."""
    more = {"num_labels": labels} if task == "SEQ_CLS" else {}
    model = TASKS[task].from_pretrained(base, dtype="auto", **more)
    whole = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(whole.named_parameters())


def make_causal(folder: Path, architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A pretrained causal language model, with its output."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
    model.to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
